"""BaseStep: base class of all steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .context import StepContext
from .schemas import ConversationState, ConversationStatus

if TYPE_CHECKING:
    from .mapped import ItemKey, MappedStep, TaskRuns

__all__ = ["BaseStep", "ConversationState", "ConversationStatus", "StepContext"]

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")


class BaseStep(ABC, Generic[DepsT, OutputT]):
    """One step.

    Subclasses implement `execute`; an instance or class attribute `config: StepConfig` configures
    it.
    """

    @abstractmethod
    async def execute(self, context: StepContext[DepsT]) -> OutputT:
        """Do the step's work and return its output, which dependents read with
        `context.get_dependency`.
        """

    def map(
        self,
        over: str,
        *,
        key: ItemKey | None = None,
        max_concurrency: int = 100,
        max_failures: float = 0,
        task_runs: TaskRuns = "none",
    ) -> MappedStep:
        """This step, run once for each element of what another step or the run's input gives.

        Its code reads `context.item` and `context.item_key`; each item is retried, timed out,
        budgeted and reused by itself. The arguments are those of `MappedStep`.

        Raises:
            ValueError: A value that can't be meant.
        """
        from .mapped import MappedStep  # only here: it is a step itself

        return MappedStep(
            self,
            over,
            key=key,
            max_concurrency=max_concurrency,
            max_failures=max_failures,
            task_runs=task_runs,
        )


AnyStep = BaseStep[Any, Any]
"""A step where it does not matter of what."""
