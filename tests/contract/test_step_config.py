"""Contract section 4: configs, and how their layers merge for each step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fastroai import (
    BaseStep,
    Pipeline,
    PipelineConfig,
    PipelineValidationError,
    StepConfig,
    StepContext,
    step,
)
from fastroai.pipelines.config import expiration


class Probe(BaseStep[Any, StepConfig]):
    """Gives back the config it was run with."""

    def __init__(self, config: StepConfig | None = None) -> None:
        if config is not None:
            self.config = config

    async def execute(self, context: StepContext[Any]) -> StepConfig:
        return context.config


async def resolved(
    *,
    pipeline: PipelineConfig | None = None,
    own: StepConfig | None = None,
    near: StepConfig | None = None,
) -> StepConfig:
    """The config a step sees when these layers are given."""
    step_configs = None if near is None else {"probe": near}
    result = await Pipeline(
        "p", {"probe": Probe(own)}, config=pipeline, step_configs=step_configs
    ).execute({}, None)
    return result.output


def test_a_step_config_reads_its_defaults() -> None:
    config = StepConfig()
    assert (config.timeout, config.retries, config.retry_delay, config.cost_budget) == (
        None,
        0,
        1.0,
        None,
    )


def test_a_step_config_takes_its_fields_by_position() -> None:
    config = StepConfig(30.0, 2, 0.5, 1000)
    assert (config.timeout, config.retries, config.retry_delay, config.cost_budget) == (
        30.0,
        2,
        0.5,
        1000,
    )


def test_an_explicit_default_is_equal_to_an_unset_one() -> None:
    assert StepConfig() == StepConfig(timeout=None, retries=0, retry_delay=1.0, cost_budget=None)


def test_a_config_shows_no_sentinel() -> None:
    assert "<" not in repr(StepConfig())
    assert StepConfig().__dataclass_fields__["retries"].default == 0


def test_a_pipeline_config_is_a_step_config_with_more() -> None:
    config = PipelineConfig()
    assert isinstance(config, StepConfig)
    assert (config.trace, config.on_error, config.max_concurrency) == (True, "fail", None)
    assert (config.timeout, config.retries, config.retry_delay, config.cost_budget) == (
        None,
        0,
        1.0,
        None,
    )


@pytest.mark.parametrize(
    "option",
    ["persist_result", "result_storage", "cache_policy", "cache_expiration", "cache_scope"],
)
def test_engine_options_default_to_none(option: str) -> None:
    assert getattr(StepConfig(), option) is None


def test_configs_can_be_changed_after_they_were_made() -> None:
    config = StepConfig()
    config.retries = 4
    assert config.retries == 4


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"timeout": -1.0},
        {"cost_budget": -1},
        {"retry_delay": -0.1},
        {"retry_delay": []},
    ],
)
def test_a_value_that_no_engine_could_honour_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        StepConfig(**options)


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"max_concurrency": 0}])
def test_a_pipeline_value_that_no_engine_could_honour_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        PipelineConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_policy": "sometimes"},
        {"cache_scope": ""},
        {"cache_scope": 7},
        *(
            {"cache_expiration": value}
            for value in (0, -1, True, float("nan"), float("inf"), 10**400, "1 h")
        ),
        {"cache_expiration": timedelta(0)},
        {"cache_expiration": timedelta(days=40_000)},
    ],
    ids=lambda options: f"{options!r:.60}",
)
def test_a_cache_option_that_no_engine_could_honour_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        StepConfig(**options)
    config = StepConfig()
    setattr(config, name, options[name])
    with pytest.raises(PipelineValidationError, match=f"probe.*{name}"):
        Pipeline("p", {"probe": Probe()}, step_configs={"probe": config})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (90, timedelta(seconds=90)),
        (0.5, timedelta(seconds=0.5)),
        (timedelta(days=1), timedelta(days=1)),
    ],
)
def test_an_expiration_is_seconds_or_a_timedelta(given: Any, expected: timedelta | None) -> None:
    assert expiration(StepConfig(cache_expiration=given)) == expected


async def test_cache_options_of_a_pipeline_are_inherited() -> None:
    far = PipelineConfig(cache_policy="inputs", cache_expiration=60, cache_scope="tenant")
    config = await resolved(pipeline=far, near=StepConfig(cache_scope=None))
    assert (config.cache_policy, config.cache_expiration, config.cache_scope) == (
        "inputs",
        60,
        None,
    )


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="retrys"):
        StepConfig(retrys=2)  # type: ignore[call-arg]


async def test_without_any_config_a_step_sees_the_defaults() -> None:
    assert await resolved() == StepConfig()


async def test_an_untouched_step_inherits_the_pipelines_values() -> None:
    config = await resolved(pipeline=PipelineConfig(timeout=30.0, retries=2, retry_delay=0.5))
    assert (config.timeout, config.retries, config.retry_delay) == (30.0, 2, 0.5)


async def test_a_bare_decorated_step_inherits_the_pipelines_values() -> None:
    @step
    async def probe(ctx: StepContext[Any]) -> StepConfig:
        return ctx.config

    pipeline = Pipeline(
        "p", {"probe": probe}, config=PipelineConfig(timeout=12.0, retries=3, retry_delay=0.25)
    )
    config = (await pipeline.execute({}, None)).output
    assert (config.timeout, config.retries, config.retry_delay) == (12.0, 3, 0.25)


async def test_a_step_sees_the_pipelines_budget_as_its_own_limit() -> None:
    assert (await resolved(pipeline=PipelineConfig(cost_budget=5000))).cost_budget == 5000


async def test_a_steps_own_config_beats_the_pipelines() -> None:
    config = await resolved(
        pipeline=PipelineConfig(timeout=30.0, retries=1), own=StepConfig(retries=5)
    )
    assert (config.timeout, config.retries) == (30.0, 5)


async def test_step_configs_beat_the_steps_own_config() -> None:
    config = await resolved(
        pipeline=PipelineConfig(timeout=30.0),
        own=StepConfig(retries=5, cost_budget=10),
        near=StepConfig(retries=7, retry_delay=0.1),
    )
    assert (config.timeout, config.retries, config.retry_delay, config.cost_budget) == (
        30.0,
        7,
        0.1,
        10,
    )


async def test_the_decorators_options_are_the_steps_own_layer() -> None:
    @step(timeout=5.0, retries=4)
    async def probe(ctx: StepContext[Any]) -> StepConfig:
        return ctx.config

    config = (
        await Pipeline("p", {"probe": probe}, config=PipelineConfig(retries=1)).execute({}, None)
    ).output
    assert (config.timeout, config.retries) == (5.0, 4)


@pytest.mark.parametrize(
    ("name", "far", "near"),
    [
        ("timeout", 30.0, None),
        ("retries", 3, 0),
        ("retry_delay", 0.5, 1.0),
        ("cost_budget", 9, None),
    ],
)
async def test_an_explicit_default_in_a_nearer_layer_wins(name: str, far: Any, near: Any) -> None:
    pipeline = PipelineConfig(**{name: far})
    assert getattr(await resolved(pipeline=pipeline, own=StepConfig(**{name: near})), name) == near
    assert getattr(await resolved(pipeline=pipeline, near=StepConfig(**{name: near})), name) == near


async def test_a_value_assigned_after_construction_counts_as_given() -> None:
    near = StepConfig()
    near.retries = 0
    assert (await resolved(pipeline=PipelineConfig(retries=3), near=near)).retries == 0


async def test_a_step_config_of_another_type_is_not_taken_for_one() -> None:
    class Odd(Probe):
        config = {"retries": 3}  # type: ignore[assignment]  # noqa: RUF012

    config = (await Pipeline("p", {"probe": Odd()}).execute({}, None)).output
    assert config == StepConfig()


async def test_a_class_attribute_configures_a_step_too() -> None:
    class Configured(Probe):
        config = StepConfig(retries=6)

    assert (await Pipeline("p", {"probe": Configured()}).execute({}, None)).output.retries == 6
