"""Contract section 1: the public names, frozen; and what importing them may not cost."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import version

import pytest

from tests.support import forked

PUBLISHED: dict[str, set[str]] = {
    "fastroai": {
        "__version__", "FastroAgent", "AgentStepWrapper", "AgentConfig", "ChatResponse",
        "StreamChunk",
        "FastroAIError", "PipelineValidationError", "CostBudgetExceededError",
        "DispatchSkippedError", "ErrorCategory",
        "Pipeline", "PipelineResult", "PipelineConfig", "BaseStep", "StepContext", "StepConfig",
        "step",
        "ConversationState", "ConversationStatus", "BasePipeline", "StepUsage", "PipelineUsage",
        "StepExecutionError",
        "safe_tool", "FunctionToolsetBase", "SafeToolset", "Tracer", "SimpleTracer",
        "LogfireTracer", "NoOpTracer",
        "CostCalculator",
    },
    "fastroai.agent": {
        "FastroAgent", "AgentStepWrapper", "AgentConfig", "ChatResponse", "StreamChunk",
        "DEFAULT_MODEL",
        "DEFAULT_MAX_TOKENS", "DEFAULT_TEMPERATURE", "DEFAULT_MAX_RETRIES", "DEFAULT_SYSTEM_PROMPT",
    },
    "fastroai.pipelines": {
        "BaseStep", "StepContext", "ConversationStatus", "ConversationState", "StepConfig",
        "PipelineConfig", "step",
        "FastroAIError", "PipelineValidationError", "StepExecutionError", "CostBudgetExceededError",
        "DispatchSkippedError", "ErrorCategory", "Pipeline", "PipelineResult", "BasePipeline",
        "StepUsage",
        "PipelineUsage",
    },
    "fastroai.tools": {
        "safe_tool", "DEFAULT_TOOL_TIMEOUT", "DEFAULT_TOOL_MAX_RETRIES", "FunctionToolsetBase",
        "SafeToolset",
    },
    "fastroai.tracing": {"Tracer", "SimpleTracer", "LogfireTracer", "NoOpTracer"},
    "fastroai.usage": {"CostCalculator"},
}  # fmt: skip

ADDED: dict[str, set[str]] = {name: set() for name in PUBLISHED} | {
    "fastroai": {
        "CostEstimate",
        "InputValidationError",
        "MappedOutputs",
        "MappedResults",
        "MappedStep",
        "StepEstimate",
    },
    "fastroai.pipelines": {
        "CostEstimate",
        "MappedOutputs",
        "MappedResults",
        "MappedStep",
        "StepEstimate",
    },
    "fastroai.usage": {"EntryState", "Ledger", "LedgerEntry", "Price", "Totals"},
}
"""Names that version 1 adds on purpose; a name in neither table fails the test."""

MODULES = [
    *PUBLISHED,
    "fastroai.agent.agent",
    "fastroai.agent.schemas",
    "fastroai.errors",
    "fastroai.pipelines.base",
    "fastroai.pipelines.config",
    "fastroai.pipelines.decorators",
    "fastroai.pipelines.executor",
    "fastroai.pipelines.pipeline",
    "fastroai.pipelines.router",
    "fastroai.pipelines.schemas",
    "fastroai.tools.decorators",
    "fastroai.tools.toolsets",
    "fastroai.tracing.tracer",
    "fastroai.pricing.calculator",
]

HOMES: dict[str, set[str]] = {
    "fastroai.agent.agent": {"FastroAgent"},
    "fastroai.agent.schemas": {"AgentConfig", "ChatResponse", "StreamChunk"},
    "fastroai.pipelines.base": {
        "BaseStep",
        "StepContext",
        "ConversationState",
        "ConversationStatus",
    },
    "fastroai.pipelines.config": {"StepConfig", "PipelineConfig"},
    "fastroai.pipelines.decorators": {"step"},
    "fastroai.pipelines.executor": {"PipelineExecutor"},
    "fastroai.pipelines.pipeline": {"Pipeline", "PipelineResult"},
    "fastroai.pipelines.router": {"BasePipeline"},
    "fastroai.pipelines.schemas": {"StepUsage", "PipelineUsage"},
    "fastroai.tools.decorators": {"safe_tool"},
    "fastroai.tools.toolsets": {"FunctionToolsetBase", "SafeToolset"},
    "fastroai.tracing.tracer": {"Tracer", "SimpleTracer", "LogfireTracer", "NoOpTracer"},
    "fastroai.pricing.calculator": {"CostCalculator"},
}


@pytest.mark.parametrize("module", MODULES)
def test_a_published_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("module", PUBLISHED)
def test_a_module_exports_the_published_names_and_the_added_ones(module: str) -> None:
    exported = importlib.import_module(module).__all__
    assert set(exported) == PUBLISHED[module] | ADDED[module]
    assert len(exported) == len(set(exported))


@pytest.mark.parametrize("module", PUBLISHED)
def test_an_exported_name_is_there(module: str) -> None:
    imported = importlib.import_module(module)
    missing = [name for name in imported.__all__ if not hasattr(imported, name)]
    assert missing == []


@pytest.mark.parametrize("module", HOMES)
def test_a_name_can_be_imported_from_where_it_is_documented(module: str) -> None:
    imported = importlib.import_module(module)
    assert {name for name in HOMES[module] if not hasattr(imported, name)} == set()


def test_a_name_is_the_same_object_everywhere() -> None:
    top = importlib.import_module("fastroai")
    for module in (*PUBLISHED, *HOMES):
        imported = importlib.import_module(module)
        for name in PUBLISHED["fastroai"] - {"__version__"}:
            if hasattr(imported, name):
                assert getattr(imported, name) is getattr(top, name), f"{module}.{name}"


def test_the_constants_have_their_published_values() -> None:
    from fastroai import agent, tools

    assert agent.DEFAULT_MODEL == "openai:gpt-4o"
    assert agent.DEFAULT_MAX_TOKENS == 4096
    assert agent.DEFAULT_TEMPERATURE == 0.7
    assert agent.DEFAULT_MAX_RETRIES == 3
    assert agent.DEFAULT_SYSTEM_PROMPT == "You are a helpful AI assistant."
    assert tools.DEFAULT_TOOL_TIMEOUT == 30
    assert tools.DEFAULT_TOOL_MAX_RETRIES == 3


def test_the_version_is_the_distributions() -> None:
    import fastroai

    assert fastroai.__version__ == version("fastroai")
    assert re.match(r"\d+\.\d+", fastroai.__version__)


def test_the_version_of_an_uninstalled_package_says_so() -> None:
    code = (
        "import importlib.metadata as m\n"
        "found = m.version\n"
        "def version(name):\n"
        "    if name == 'fastroai': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.version = version\n"
        "import fastroai; print(fastroai.__version__)"
    )
    assert python(code) == "0.0.0+unknown"


def test_the_package_says_it_is_typed() -> None:
    from importlib.resources import files

    assert files("fastroai").joinpath("py.typed").is_file()


def test_importing_never_imports_prefect() -> None:
    imports = "\n".join(f"import {module}" for module in MODULES)
    assert python(f"{imports}\nimport sys; print('prefect' in sys.modules)") == "False"


def test_importing_fastroai_imports_nothing_heavy_that_pydantic_ai_does_not() -> None:
    heavy = {
        "boto3",
        "prefect",
        "prefect_aws",
        "openai",
        "genai_prices",
        "logfire",
        "sqlalchemy",
        "fastapi",
        "pytest",
    }
    loaded = f"set(sys.modules) & {heavy!r}"
    code = f"import sys, pydantic_ai; theirs = {loaded}; import fastroai; print({loaded} - theirs)"
    assert python(code) == "set()"


def test_a_run_in_memory_never_imports_prefect() -> None:
    code = """
import asyncio, sys
from fastroai import FastroAgent, Pipeline, PipelineConfig, step
agent = FastroAgent(model="test")
@step(retries=1)
async def ask(ctx): return (await ctx.run(agent, "hello")).output
@step
def size(ctx): return len(ctx.get_dependency("ask"))
config = PipelineConfig(on_error="continue")
pipeline = Pipeline("p", {"ask": ask, "size": size}, {"size": ["ask"]}, config=config)
result = asyncio.run(pipeline.execute({}, None))
assert result.output > 0
print(any(name.split(".")[0] in ("prefect", "prefect_aws", "boto3") for name in sys.modules))
"""
    assert python(code) == "False"


def python(code: str) -> str:
    """What an interpreter prints that has not imported fastroai."""
    command = [sys.executable, "-c", code]
    done = forked.run(command, kind=forked.BARE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
