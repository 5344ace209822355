"""Transient and permanent errors: of model requests and of steps."""

from __future__ import annotations

from typing import Final

from pydantic_ai.exceptions import (
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelTimeoutError,
    UsageLimitExceeded,
    UserError,
)

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
from ..retries import Backoff

BACKOFF: Final = Backoff(0.5, longest=8.0)
LONGEST_RETRY_AFTER: Final = 60.0
"""A provider that asks for more seconds than this is not waited for."""

NOT_SENT_PHASES: Final = frozenset({"pool", "connect"})
"""Phases of a transport failure in which the request had not left this machine."""

_SENT_AGAIN = frozenset({408, 409, 429})
"""HTTP statuses below 500 after which a request is sent again: timeout, conflict, too many."""
_PASSING = _SENT_AGAIN | {425}
"""Those that pass with time, too early among them; other 4xx say that the request is wrong."""

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


def retry_delay(error: BaseException, sends: int) -> float | None:
    """Seconds to wait before a request is sent again, or None when it should not be.

    Args:
        error: What the last send raised.
        sends: How often the request has been sent, from 1.
    """
    if not _is_passing(error):
        return None
    asked = getattr(error, "retry_after", None)
    if asked is not None and asked >= 0:
        return float(asked) if asked <= LONGEST_RETRY_AFTER else None
    return BACKOFF.after(sends)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ModelQuotaExceededError):
        return False
    if isinstance(error, ModelHTTPError):
        if error.provider_retry_hint is not None:
            return error.provider_retry_hint
        return error.status_code in _SENT_AGAIN or error.status_code >= 500
    if isinstance(error, ModelTimeoutError):
        # A request that was sent may still be worked on, and billed; what was never sent can be
        # sent.
        return error.phase in NOT_SENT_PHASES
    return isinstance(error, ModelConnectionError)


def is_permanent(error: BaseException) -> bool:
    """Whether trying again can't help: wrong credentials, a bad request, a user's mistake, a spent
    budget.

    Anything not plainly permanent counts as passing, a plain `RuntimeError` included.
    """
    if isinstance(error, StepExecutionError):
        return is_permanent(error.original_error)
    if isinstance(error, BaseExceptionGroup):
        # Of a fallback that was made to go on after anything: all its members were refused.
        return error.subgroup(CostBudgetExceededError) is not None
    if isinstance(error, ModelHTTPError):
        return 400 <= error.status_code < 500 and error.status_code not in _PASSING
    return isinstance(error, _PERMANENT)
