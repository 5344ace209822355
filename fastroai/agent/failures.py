"""Which failures another attempt can't mend."""

from __future__ import annotations

from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded, UserError

from ..errors import (
    CostBudgetExceededError,
    DispatchSkippedError,
    PipelineValidationError,
    ResultStorageError,
    RunLeaseError,
    SettingsError,
    StepExecutionError,
    UnknownModelPriceError,
)

# 408 (timeout), 409 (conflict), 425 and 429 (too early, too many) pass with time; other 4xx say the request is wrong.
_PASSING_CLIENT_ERRORS = frozenset({408, 409, 425, 429})

_PERMANENT = (
    UserError,
    UsageLimitExceeded,
    CostBudgetExceededError,
    DispatchSkippedError,
    PipelineValidationError,
    ResultStorageError,
    RunLeaseError,
    SettingsError,
    UnknownModelPriceError,
)


def is_permanent(error: BaseException) -> bool:
    """Whether trying again can't help: wrong credentials, a bad request, a user's mistake, a spent budget.

    Anything not plainly permanent counts as passing, a plain `RuntimeError` included.
    """
    if isinstance(error, StepExecutionError):
        return is_permanent(error.original_error)
    if isinstance(error, ModelHTTPError):
        return 400 <= error.status_code < 500 and error.status_code not in _PASSING_CLIENT_ERRORS
    return isinstance(error, _PERMANENT)
