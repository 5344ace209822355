"""Tools that return an error text to the model instead of failing its run."""

from .decorators import DEFAULT_TOOL_MAX_RETRIES, DEFAULT_TOOL_TIMEOUT, safe_tool
from .toolsets import FunctionToolsetBase, SafeToolset

__all__ = [
    "DEFAULT_TOOL_MAX_RETRIES",
    "DEFAULT_TOOL_TIMEOUT",
    "FunctionToolsetBase",
    "SafeToolset",
    "safe_tool",
]
