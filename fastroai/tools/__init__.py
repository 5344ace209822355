"""Tools that return an error text to the model instead of failing its run."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .decorators import DEFAULT_TOOL_MAX_RETRIES, DEFAULT_TOOL_TIMEOUT, safe_tool
    from .toolsets import FunctionToolsetBase, SafeToolset
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".decorators": "DEFAULT_TOOL_MAX_RETRIES DEFAULT_TOOL_TIMEOUT safe_tool",
            ".toolsets": "FunctionToolsetBase SafeToolset",
        },
    )

__all__ = [
    "DEFAULT_TOOL_MAX_RETRIES",
    "DEFAULT_TOOL_TIMEOUT",
    "FunctionToolsetBase",
    "SafeToolset",
    "safe_tool",
]
