"""Executors run pipelines; each is imported when it is used. Also parts to write your own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..errors import ExecutorUnavailableError
from ..lazy_names import import_without_collecting, lazy_names
from .protocol import ExecutionResult, Executor, PlanExecutor, StepRecord

if TYPE_CHECKING:
    from ..pipelines.plan import ExecutionPlan, PlannedStep
    from .in_memory import InMemoryExecutor
    from .prefect import PrefectExecutor, Spread
    from .scheduler import Outcome, run_plan
    from .session import RunSession, open_session
    from .step import may_retry, run_attempts, run_step
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".in_memory": "InMemoryExecutor",
            ".prefect": "PrefectExecutor Spread",
            ".scheduler": "Outcome run_plan",
            ".session": "RunSession open_session",
            ".step": "may_retry run_attempts run_step",
            "..pipelines.plan": "ExecutionPlan PlannedStep",
        },
    )

__all__ = [
    "ExecutionPlan",
    "ExecutionResult",
    "Executor",
    "InMemoryExecutor",
    "Outcome",
    "PlanExecutor",
    "PlannedStep",
    "PrefectExecutor",
    "RunSession",
    "Spread",
    "StepRecord",
    "get_executor",
    "may_retry",
    "open_session",
    "run_attempts",
    "run_plan",
    "run_step",
]

_EXECUTORS = {
    "memory": (".in_memory", "InMemoryExecutor"),
    "prefect": (".prefect", "PrefectExecutor"),
}


def get_executor(choice: Executor | str | None = None) -> Executor:
    """The executor for a choice: an executor as it is, `"memory"`, `"prefect"`, or None for
    `FASTROAI_EXECUTOR`.

    Raises:
        SettingsError: `FASTROAI_EXECUTOR` has a value it may not have.
        ExecutorUnavailableError: An unknown name or an object without `execute`; or Prefect can't
            be imported.
    """
    if choice is None:
        from ..settings import load_settings

        choice = load_settings().executor
    if not isinstance(choice, str):
        if not callable(getattr(choice, "execute", None)):
            raise ExecutorUnavailableError(f"executor={choice!r} has no execute method. {_ALLOWED}")
        return choice
    if choice not in _EXECUTORS:
        raise ExecutorUnavailableError(f"executor={choice!r} is unknown. {_ALLOWED}")
    return _shared_executor(choice)


_ALLOWED = "Give 'memory', 'prefect' or an object with the Executor protocol."


@cache
def _shared_executor(name: str) -> Executor:
    """One for all runs, as an executor keeps nothing of them."""
    module, attribute = _EXECUTORS[name]
    try:
        executor: Executor = getattr(import_without_collecting(module, __name__), attribute)()
    except ImportError as error:
        raise ExecutorUnavailableError(
            f"The {name!r} executor can't be imported ({error}). "
            "Install fastroai with its dependencies (`pip install fastroai`), or set "
            "FASTROAI_EXECUTOR=memory."
        ) from error
    return executor
