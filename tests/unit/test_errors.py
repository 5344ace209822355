"""The error tree: what it derives from, what it says, and that all of it survives pickling."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import fastroai
from fastroai import errors
from fastroai.errors import (
    CostBudgetExceededError,
    DispatchSkippedError,
    ExecutorUnavailableError,
    FastroAIError,
    InputValidationError,
    PipelineValidationError,
    StepExecutionError,
    UnknownModelPriceError,
    UnknownPipelineError,
)

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "RemoteItemError": ("BadInkError", "wet"),
    "CostBudgetExceededError": (150, 200, "summarise"),
    "MappedStepError": ("summarise", ValueError("bad"), {"doc-7": ValueError("bad")}, 0.1),
    "SourceStepError": ("read", ValueError("bad")),
    "StepExecutionError": ("summarise", ValueError("bad")),
}
"""Constructor arguments of the errors that take more than a message."""


class Skipped(DispatchSkippedError):
    """A user's own skip, with a constructor of its own and no `__reduce__`."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        super().__init__(provider)


def example(kind: type[FastroAIError]) -> FastroAIError:
    return kind(*EXAMPLES.get(kind.__name__, ("what happened",)))


def all_errors() -> Iterator[type[FastroAIError]]:
    """Every error class of the library, wherever it is defined; the command line has its own for
    its exit code.
    """
    for module in pkgutil.walk_packages(fastroai.__path__, "fastroai."):
        if "prefect" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending = [FastroAIError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.startswith("fastroai") and not kind.__module__.startswith(
            "fastroai.cli"
        ):
            yield kind


def test_every_error_of_the_package_is_defined_in_one_module() -> None:
    assert {kind.__module__ for kind in all_errors()} == {"fastroai.errors"}


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in all_errors() if kind.__name__ not in errors.__doc__] == []


def test_every_error_survives_pickling_and_copying() -> None:
    for kind in all_errors():
        error = example(kind)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind
            assert str(again) == str(error)


def test_a_pickled_budget_error_keeps_its_numbers() -> None:
    error = pickle.loads(pickle.dumps(CostBudgetExceededError(budget=150, actual=200, step_id="a")))
    assert (error.budget_microcents, error.actual_microcents, error.step_id) == (150, 200, "a")


def test_a_pickled_step_error_keeps_its_step_and_its_cause() -> None:
    error = pickle.loads(pickle.dumps(StepExecutionError("a", CostBudgetExceededError(1, 2))))
    assert error.step_id == "a"
    assert isinstance(error.original_error, CostBudgetExceededError)
    assert error.original_error.actual_microcents == 2
    assert error.__cause__ is error.original_error
    assert error.partial_result is None


def test_a_skip_of_the_users_own_survives_pickling() -> None:
    skip = pickle.loads(pickle.dumps(Skipped("openai")))
    assert (type(skip), skip.provider) == (Skipped, "openai")


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (InputValidationError, PipelineValidationError),
        (UnknownPipelineError, PipelineValidationError),
        (UnknownPipelineError, ValueError),
        (UnknownModelPriceError, LookupError),
        (ExecutorUnavailableError, ImportError),
    ],
)
def test_an_error_is_caught_as_what_it_also_is(
    kind: type[Exception], base: type[Exception]
) -> None:
    assert issubclass(kind, base)
    assert issubclass(kind, FastroAIError)


def test_a_price_error_reads_like_a_sentence() -> None:
    # KeyError, the other LookupError, would show its message in quotes.
    assert str(UnknownModelPriceError("No price for 'x'.")) == "No price for 'x'."
