"""Every error fastroai raises itself, grouped by what a caller catches.

FastroAIError
├── SettingsError                 a FASTROAI_* variable has an invalid value
├── PipelineValidationError       a pipeline, an input or a router is not valid
│   ├── InputValidationError      the input of a run does not match the pipeline's input type
│   │   └── SourceRefusedError    it names what this run may not read
│   └── UnknownPipelineError      a router chose an unregistered name (also a ValueError)
├── StepExecutionError            a step raised; carries the step, the cause and what was spent
│   ├── MappedStepError           more items of a mapped step failed than may
│   └── SourceStepError           the step failed that a step is mapped over
├── RemoteItemError               an item of a mapped step failed in another process
├── CostBudgetExceededError       spend reached a budget; nothing more is sent
├── DispatchSkippedError          raised by a user's hook: do not send this call, do not retry it
├── UnknownModelPriceError        no price is listed for a model (also a LookupError)
├── LedgerUnavailableError        the ledger's database can't be opened or written; nothing is sent
│   └── LedgerNotFoundError       there is no ledger to read yet
├── RunLeaseError                 the lease of a run was lost, or the run waits for itself
├── ResultStorageError            a result can't be stored: storage unreachable, or type unsupported
├── ProjectError                  a project's files can't be made, or read, as they are
├── StackError                    a local stack can't be started, or another command is changing it
└── ExecutorUnavailableError      the chosen executor can't be used here (also an ImportError)

All of them survive pickling: a Prefect task or a worker process may pass them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any


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
    """A `FASTROAI_*` variable has an invalid value.

    The message names each variable and its allowed values.
    """


class PipelineValidationError(FastroAIError):
    """A pipeline's definition is not valid. Raised at construction, before anything is sent."""


class InputValidationError(PipelineValidationError):
    """The input of a run does not match `input_type`. Raised before the first step; or by a step
    that finds that the input names what is not there.
    """


class SourceRefusedError(InputValidationError):
    """A run's input names what this run may not read, as `FASTROAI_READABLE` says; it was not
    looked at.
    """


class ProjectError(FastroAIError):
    """A project's files can't be made, or read, as they are."""


class StackError(FastroAIError):
    """A local stack can't be started, or another command is changing it."""


class UnknownPipelineError(PipelineValidationError, ValueError):
    """A router's `route` returned a name for which no pipeline is registered."""


class CostBudgetExceededError(FastroAIError):
    """A request did not fit a budget, and was not sent.

    Attributes:
        budget_microcents: The limit, in 1e-6 USD.
        actual_microcents: What was spent or unknown when it was checked, in 1e-6 USD.
        step_id: The step that made the request, or None outside a step.
        scope: Whose budget it is: `step`, `run` or `standing`. None where that was not said, as is
            all that follows.
        name: The budget's name, or else the step's id or the pipeline's name.
        limit: The limit in USD, exact.
        spent: What requests have cost, in USD, exact.
        held: The most that requests in flight can cost.
        unknown: The most that requests can have cost of which nobody knows.
        at_limit: What is to become of requests at the limit: `fail`, `skip`, `downgrade`, `pause`.
        reason: Why the request is refused that might have fitted.
        raise_with: What raises the limit: a command, or what is to be written into the code.
    """

    def __init__(
        self,
        budget: int,
        actual: int,
        step_id: str | None = None,
        *,
        scope: str | None = None,
        name: str | None = None,
        limit: Decimal | None = None,
        spent: Decimal | None = None,
        held: Decimal | None = None,
        unknown: Decimal | None = None,
        at_limit: str = "fail",
        reason: str | None = None,
        raise_with: str | None = None,
    ) -> None:
        self.budget_microcents = budget
        self.actual_microcents = actual
        self.step_id = step_id
        self.scope = scope
        self.name = name
        self.limit = limit
        self.spent = spent
        self.held = held
        self.unknown = unknown
        self.at_limit = at_limit
        self.reason = reason
        self.raise_with = raise_with
        where = "" if step_id is None else f" in step '{step_id}'"
        text = f"Cost budget exceeded{where}: {actual} microcents of {budget} microcents budget"
        super().__init__(f"{text}{self._details()}")

    def _details(self) -> str:
        if self.scope is None:
            return ""
        amounts = {"spent": self.spent, "held": self.held, "unknown": self.unknown}
        told = ", ".join(f"{usd:f} {what}" for what, usd in amounts.items() if usd is not None)
        limit = "" if self.limit is None else f" of {self.limit:f} USD"
        reason = f" {self.reason}" if self.reason else ""
        whose = f"{self.scope} budget {self.name!r}{limit}"
        return f" ({whose}: {told}).{reason} To raise it: {self.raise_with}"

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.budget_microcents, self.actual_microcents, self.step_id)
        return partial(type(self), **{name: getattr(self, name) for name in _DETAILS}), given


_DETAILS = (
    "scope", "name", "limit", "spent", "held", "unknown", "at_limit", "reason", "raise_with",
)  # fmt: skip


class DispatchSkippedError(FastroAIError):
    """Raise it, or a subclass with its own constructor, from a before-hook to skip a call: it is
    neither sent nor retried.
    """


class StepExecutionError(FastroAIError):
    """A step of a pipeline raised.

    Attributes:
        step_id: The step that failed.
        original_error: What it raised, the same object; also the `__cause__`.
        partial_result: Finished outputs, usage and ledger entries of the run, spend of the failed
            attempts included. A `PipelineResult`, or an `ExecutionResult` from an executor called
            directly; None when the error was not raised by a run. Not pickled.
    """

    def __init__(self, step_id: str, original_error: BaseException) -> None:
        self.step_id = step_id
        self.original_error = original_error
        # Any: the types of results belong to the packages above, which import this one.
        self.partial_result: Any = None
        super().__init__(f"Step '{step_id}' failed: {_describe(original_error)}")
        self.__cause__ = original_error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step_id, self.original_error)


class MappedStepError(StepExecutionError):
    """More items of a mapped step failed than may. What was finished is kept.

    Attributes:
        original_error: What the first of them raised.
        item_errors: By the item's key, what each of them raised.
        max_failures: How many, or which share of them, may fail.
    """

    def __init__(
        self,
        step_id: str,
        original_error: BaseException,
        item_errors: Mapping[str, BaseException],
        max_failures: float = 0,
    ) -> None:
        super().__init__(step_id, original_error)
        self.item_errors = dict(item_errors)
        self.max_failures = max_failures
        first = f"item {next(iter(self.item_errors))!r}: {_describe(original_error)}"
        if max_failures:
            failed = f"{len(self.item_errors)} items failed, with max_failures={max_failures}"
            first = f"{failed}; the first, {first}"
        self.args = (f"Step '{step_id}' failed: {first}",)

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.step_id, self.original_error, self.item_errors, self.max_failures)
        return type(self), given


class SourceStepError(StepExecutionError):
    """A step has no more elements to be mapped over: the step that gives them failed.

    It is how the task of the mapped step ends. The run tells the failure that is behind it, and
    counts the mapped step among the skipped ones.
    """


class RemoteItemError(FastroAIError):
    """A step, or an item of a mapped one, failed in another process, from which its error's text
    came back; or that process was lost.

    Attributes:
        error_type: The name of the error's class there.
        message: Its text.
    """

    def __init__(self, error_type: str, message: str) -> None:
        self.error_type = error_type
        self.message = message
        super().__init__(error_type, message)

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"


def refusal_in(error: BaseException) -> CostBudgetExceededError | None:
    """The refusal of a budget behind an error, if that and nothing else is behind it."""
    while isinstance(error, StepExecutionError):
        error = error.original_error
    if isinstance(error, BaseExceptionGroup) and error.split(CostBudgetExceededError)[1] is None:
        return refusal_in(error.exceptions[0])
    return error if isinstance(error, CostBudgetExceededError) else None


def is_pause(error: BaseException) -> bool:
    """Whether it is of a budget at whose limit the run is to wait for somebody."""
    refusal = refusal_in(error)
    return refusal is not None and refusal.at_limit == "pause"


def _describe(error: BaseException) -> str:
    """An error's text; with its type where the text alone is unclear (`'amount'`, or empty)."""
    text = str(error)
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"KeyError: {text}"
    return text


class UnknownModelPriceError(FastroAIError, LookupError):
    """No price is listed for a model. The caller decides how to handle that; it never means 0.

    Attributes:
        reason: The message without its advice, for places where that can't be followed.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason} {advice}".rstrip())


class LedgerUnavailableError(FastroAIError):
    """The ledger's database can't be opened, written or read.

    The message names the database without its password, and the reason.
    """


class LedgerNotFoundError(LedgerUnavailableError):
    """No ledger exists at the URL to read. Nothing was created."""


class RunLeaseError(FastroAIError):
    """A run must stop: another process took over its lease, or it would wait for itself.

    Nothing more is sent.
    """


class ResultStorageError(FastroAIError):
    """A result can't be stored.

    The message names the storage or the type, the cause and the remedy.
    """


class ExecutorUnavailableError(FastroAIError, ImportError):
    """The chosen executor can't be used here.

    The message names what to install or to set.
    """
