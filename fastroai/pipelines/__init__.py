"""Pipelines: steps, their configuration, and results."""

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
from .pipeline import Pipeline
from .router import BasePipeline
from .schemas import (
    ConversationState,
    ConversationStatus,
    PipelineResult,
    PipelineUsage,
    StepUsage,
)

__all__ = [
    "BasePipeline",
    "BaseStep",
    "ConversationState",
    "ConversationStatus",
    "CostBudgetExceededError",
    "DispatchSkippedError",
    "ErrorCategory",
    "FastroAIError",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "PipelineUsage",
    "PipelineValidationError",
    "StepConfig",
    "StepContext",
    "StepExecutionError",
    "StepUsage",
    "step",
]
