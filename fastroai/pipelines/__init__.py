"""Pipelines: steps, their configuration, and results."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..errors import (
        CostBudgetExceededError,
        DispatchSkippedError,
        ErrorCategory,
        FastroAIError,
        PipelineValidationError,
        StepExecutionError,
    )
    from .base import BaseStep
    from .config import PipelineConfig, StepConfig
    from .context import StepContext
    from .decorators import step
    from .estimates import CostEstimate, StepEstimate
    from .item_outputs import MappedOutputs, MappedResults
    from .mapped import MappedStep
    from .pipeline import Pipeline
    from .router import BasePipeline
    from .schemas import (
        ConversationState,
        ConversationStatus,
        PipelineResult,
        PipelineUsage,
        StepUsage,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "..errors": (
                "CostBudgetExceededError DispatchSkippedError ErrorCategory FastroAIError "
                "PipelineValidationError StepExecutionError"
            ),
            ".base": "BaseStep",
            ".config": "PipelineConfig StepConfig",
            ".context": "StepContext",
            ".decorators": "step",
            ".estimates": "CostEstimate StepEstimate",
            ".item_outputs": "MappedOutputs MappedResults",
            ".mapped": "MappedStep",
            ".pipeline": "Pipeline",
            ".router": "BasePipeline",
            ".schemas": (
                "ConversationState ConversationStatus PipelineResult PipelineUsage StepUsage"
            ),
        },
    )

__all__ = [
    "BasePipeline",
    "BaseStep",
    "ConversationState",
    "ConversationStatus",
    "CostBudgetExceededError",
    "CostEstimate",
    "DispatchSkippedError",
    "ErrorCategory",
    "FastroAIError",
    "MappedOutputs",
    "MappedResults",
    "MappedStep",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "PipelineUsage",
    "PipelineValidationError",
    "StepConfig",
    "StepContext",
    "StepEstimate",
    "StepExecutionError",
    "StepUsage",
    "step",
]
