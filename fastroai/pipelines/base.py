"""BaseStep: base class of all steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from .context import StepContext
from .schemas import ConversationState, ConversationStatus

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


AnyStep = BaseStep[Any, Any]
"""A step where it does not matter of what."""
