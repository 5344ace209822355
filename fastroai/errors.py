"""Every error fastroai raises itself, cut by what a caller catches.

FastroAIError
├── SettingsError                 a FASTROAI_* variable has a value it may not have
├── PipelineValidationError       a pipeline, an input or a router that can't run
│   ├── InputValidationError      the input of a run does not fit the pipeline's input model
│   └── UnknownPipelineError      a router chose a name nobody registered (also a ValueError)
├── StepExecutionError            a step raised; carries the step, the cause and what was spent
├── CostBudgetExceededError       spend reached a budget; nothing more is sent
├── DispatchSkippedError          raised by a user's hook: don't send this request, don't try again
├── UnknownModelPriceError        no price is listed for a model (also a LookupError)
├── LedgerUnavailableError        the ledger's database can't be opened or written; nothing is sent
│   └── LedgerNotFoundError       there is no ledger to read yet
├── RunLeaseError                 a run's key is held elsewhere: lost to another process, or asked
for from within ├── ResultStorageError            results can't be kept: storage unreachable, or an
output of no storable type └── ExecutorUnavailableError      an executor was asked for that can't be
used here (also an ImportError)

All of them survive pickling: a Prefect task or a worker process may hand them over.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executors.protocol import ExecutionResult
    from .pipelines.schemas import PipelineResult


class FastroAIError(Exception):
    """Base of every error that fastroai raises itself; a provider's errors pass through
    unchanged.
    """


class ErrorCategory(StrEnum):
    """A vocabulary for after-dispatch hooks; the library itself classifies nothing with it."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    RESOURCE_EXHAUSTION = "resource_exhaustion"
    UNKNOWN = "unknown"


class SettingsError(FastroAIError):
    """A `FASTROAI_*` variable has a value it may not have.

    The message names each variable and what is allowed.
    """


class PipelineValidationError(FastroAIError):
    """A pipeline can't run as it was defined. Raised at construction, before anything is sent."""


class InputValidationError(PipelineValidationError):
    """The input of a run does not fit the pipeline's `input_type`. Raised before the first step."""


class UnknownPipelineError(PipelineValidationError, ValueError):
    """A router's `route` returned a name for which no pipeline is registered."""


class CostBudgetExceededError(FastroAIError):
    """Recorded spend reached a budget before the next dispatch; that dispatch was not sent.

    Attributes:
        budget_microcents: The limit, in 1e-6 USD.
        actual_microcents: What was spent when the limit was checked, in 1e-6 USD.
        step_id: The step that asked for the dispatch, or None outside a step.
    """

    def __init__(self, budget: int, actual: int, step_id: str | None = None) -> None:
        self.budget_microcents = budget
        self.actual_microcents = actual
        self.step_id = step_id
        where = "" if step_id is None else f" in step '{step_id}'"
        super().__init__(
            f"Cost budget exceeded{where}: {actual} microcents >= {budget} microcents budget"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.budget_microcents, self.actual_microcents, self.step_id)


class DispatchSkippedError(FastroAIError):
    """Raise it, or a subclass with its own constructor, from a before-hook: nothing is sent,
    nothing is retried.
    """


class StepExecutionError(FastroAIError):
    """A step of a pipeline raised.

    Attributes:
        step_id: The step that failed.
        original_error: What it raised, the same object; also the `__cause__`.
        partial_result: What the run had when it ended: finished outputs, usage and ledger entries,
            spend of the failed attempts included. An `ExecutionResult` from an executor called
            directly; None when the error was not raised by a run. Not pickled.
    """

    def __init__(self, step_id: str, original_error: BaseException) -> None:
        self.step_id = step_id
        self.original_error = original_error
        self.partial_result: PipelineResult[Any] | ExecutionResult | None = None
        super().__init__(f"Step '{step_id}' failed: {_told(original_error)}")
        self.__cause__ = original_error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step_id, self.original_error)


def _told(error: BaseException) -> str:
    """An error's text; with its type where the text alone says nothing (`'amount'`, or none at
    all).
    """
    text = str(error)
    return (
        f"{type(error).__name__}: {text}".rstrip(": ")
        if not text or isinstance(error, KeyError)
        else text
    )


class UnknownModelPriceError(FastroAIError, LookupError):
    """No price is listed for a model. The caller decides what that means; it never means 0."""


class LedgerUnavailableError(FastroAIError):
    """The ledger's database can't be opened, written or read.

    The message names it without its password, and why.
    """


class LedgerNotFoundError(LedgerUnavailableError):
    """There is no ledger where one was to be read. Nothing was made there."""


class RunLeaseError(FastroAIError):
    """A run may not go on, because another execution of the same work does, or waits for it.

    Nothing more is sent.
    """


class ResultStorageError(FastroAIError):
    """A result can't be kept.

    The message names the storage or the type, the cause and the remedy.
    """


class ExecutorUnavailableError(FastroAIError, ImportError):
    """An executor was asked for that can't be used here.

    The message says what to install or to set.
    """
