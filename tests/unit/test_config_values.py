"""What a configuration or a definition may not say, and what the error says of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fastroai import Pipeline, PipelineConfig, StepConfig, step
from fastroai.errors import PipelineValidationError
from tests.support.steps import Give

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        *[("retries", value, "a whole number >= 0") for value in (1.5, True, "2", None, -1, NAN)],
        *[
            ("timeout", value, "seconds >= 0, or None")
            for value in ("x", NAN, INFINITE, True, -1.0)
        ],
        *[
            ("retry_delay", value, "seconds >= 0, or a list")
            for value in (INFINITE, NAN, "1", True, None, [])
        ],
        *[
            ("retry_delay", [1.0, value], "seconds >= 0, or a list")
            for value in (INFINITE, "1", False, None, -1)
        ],
        *[
            ("cost_budget", value, "a whole number >= 0")
            for value in (0.5, "1", True, -1, INFINITE)
        ],
        *[("persist_result", value, "True, False or None") for value in ("no", 1, 0)],
        *[("trace", value, "True or False") for value in ("no", None, 1)],
        *[
            ("max_concurrency", value, "a whole number >= 1, or None")
            for value in (1.5, 0, True, "2", INFINITE)
        ],
        ("on_error", "ignore", "'fail' or 'continue'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_field_and_what_is_allowed(
    field: str, value: Any, allowed: str
):
    with pytest.raises(ValueError, match=f"^{field}=") as caught:
        PipelineConfig(**{field: value})
    assert f"{field}={value!r}" in str(caught.value)
    assert allowed in str(caught.value)

    if field in {f.name for f in dataclasses.fields(StepConfig)}:
        with pytest.raises(ValueError, match=f"^{field}="):
            StepConfig(**{field: value})

    changed_later = PipelineConfig()
    setattr(changed_later, field, value)
    with pytest.raises(PipelineValidationError, match=f"{field}="):
        Pipeline("p", {"a": Give(1)}, config=changed_later)


@pytest.mark.parametrize("former", ["a", "b"])
def test_a_former_name_that_a_present_step_has_is_refused(former: str):
    renamed = step(formerly=former)(Give(1).execute)
    with pytest.raises(PipelineValidationError, match=f"'b' has formerly='{former}'"):
        Pipeline("p", {"a": Give(1), "b": renamed}, {"b": ["a"]})
    Pipeline("p", {"c": Give(1), "d": renamed}, {"d": ["c"]})


def test_whole_numbers_are_seconds_too():
    config = PipelineConfig(
        timeout=3, retries=0, retry_delay=[0, 1.5], cost_budget=0, max_concurrency=1
    )
    assert (config.timeout, config.retry_delay) == (3, [0, 1.5])


@pytest.mark.parametrize("name", ["two\nlines", "a\x00", "tab\tbed", "\x7f", "a\u2028b", "\ud800"])
def test_a_name_with_characters_that_nobody_sees_is_refused(name: str):
    with pytest.raises(PipelineValidationError, match="Pipeline name") as caught:
        Pipeline(name, {"a": Give(1)})
    assert repr(name) in str(caught.value)
    with pytest.raises(PipelineValidationError, match="Step id"):
        Pipeline("p", {name: Give(1)})


@pytest.mark.parametrize("name", ["Zürich", "日本", "a b/c%d", "costs 100 €", "{braces}"])
def test_any_other_name_is_taken(name: str):
    assert Pipeline(name, {name: Give(1)}).output_step == name


def test_a_long_cycle_is_told_by_its_ends_and_its_length():
    count = 50_000
    steps = {f"s{n}": Give(n) for n in range(count)}
    around = {f"s{n}": [f"s{(n + 1) % count}"] for n in range(count)}
    with pytest.raises(PipelineValidationError, match="cycle") as caught:
        Pipeline("p", steps, around)
    assert "s0 -> s1 -> s2 -> s3 -> s4 -> … (50,000 steps in all) -> s49996" in str(caught.value)
    assert str(caught.value).count(" -> ") < 12
