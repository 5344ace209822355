"""fastroai: LLM pipelines over pydantic-ai that run as Prefect flows, with exact costs."""

from importlib.metadata import PackageNotFoundError, version

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
    Pipeline,
    PipelineConfig,
    PipelineResult,
    PipelineUsage,
    StepConfig,
    StepContext,
    StepUsage,
    step,
)
from .tools import FunctionToolsetBase, SafeToolset, safe_tool
from .tracing import LogfireTracer, NoOpTracer, SimpleTracer, Tracer
from .usage import CostCalculator

try:
    __version__ = version("fastroai")
except PackageNotFoundError:
    __version__ = "0.0.0+unknown"

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
    "DispatchSkippedError",
    "ErrorCategory",
    "FastroAIError",
    "FastroAgent",
    "FunctionToolsetBase",
    "InputValidationError",
    "LogfireTracer",
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
    "StepExecutionError",
    "StepUsage",
    "StreamChunk",
    "Tracer",
    "__version__",
    "safe_tool",
    "step",
]
