"""fastroai: LLM pipelines over pydantic-ai that run as Prefect flows, with exact costs."""

from typing import TYPE_CHECKING

from .lazy_names import lazy_names

if TYPE_CHECKING:
    from .agent import AgentConfig, AgentStepWrapper, ChatResponse, FastroAgent, StreamChunk
    from .errors import (
        CostBudgetExceededError,
        DispatchSkippedError,
        ErrorCategory,
        FastroAIError,
        InputValidationError,
        PipelineValidationError,
        StepExecutionError,
    )
    from .pipelines import (
        BasePipeline,
        BaseStep,
        ConversationState,
        ConversationStatus,
        CostEstimate,
        MappedOutputs,
        MappedResults,
        MappedStep,
        Pipeline,
        PipelineConfig,
        PipelineResult,
        PipelineUsage,
        StepConfig,
        StepContext,
        StepEstimate,
        StepUsage,
        step,
    )
    from .tools import FunctionToolsetBase, SafeToolset, safe_tool
    from .tracing import LogfireTracer, NoOpTracer, SimpleTracer, Tracer
    from .usage import CostCalculator
    from .version import __version__
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".agent": "AgentConfig AgentStepWrapper ChatResponse FastroAgent StreamChunk",
            ".errors": (
                "CostBudgetExceededError DispatchSkippedError ErrorCategory "
                "FastroAIError InputValidationError PipelineValidationError "
                "StepExecutionError"
            ),
            ".pipelines": (
                "BasePipeline BaseStep ConversationState ConversationStatus CostEstimate "
                "MappedOutputs MappedResults MappedStep "
                "Pipeline PipelineConfig PipelineResult PipelineUsage StepConfig "
                "StepContext StepEstimate StepUsage step"
            ),
            ".tools": "FunctionToolsetBase SafeToolset safe_tool",
            ".tracing": "LogfireTracer NoOpTracer SimpleTracer Tracer",
            ".usage": "CostCalculator",
            ".version": "__version__",
        },
    )

__all__ = [
    "AgentConfig",
    "AgentStepWrapper",
    "BasePipeline",
    "BaseStep",
    "ChatResponse",
    "ConversationState",
    "ConversationStatus",
    "CostBudgetExceededError",
    "CostCalculator",
    "CostEstimate",
    "DispatchSkippedError",
    "ErrorCategory",
    "FastroAIError",
    "FastroAgent",
    "FunctionToolsetBase",
    "InputValidationError",
    "LogfireTracer",
    "MappedOutputs",
    "MappedResults",
    "MappedStep",
    "NoOpTracer",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "PipelineUsage",
    "PipelineValidationError",
    "SafeToolset",
    "SimpleTracer",
    "StepConfig",
    "StepContext",
    "StepEstimate",
    "StepExecutionError",
    "StepUsage",
    "StreamChunk",
    "Tracer",
    "__version__",
    "safe_tool",
    "step",
]
