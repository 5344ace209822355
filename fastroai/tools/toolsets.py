"""Named groups of tools."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_ai import FunctionToolset, Tool
from pydantic_ai.tools import AgentDepsT, ToolFuncEither


class FunctionToolsetBase(FunctionToolset[AgentDepsT]):
    """A group of tools under a stable name, to be subclassed.

    Args:
        tools: Functions or `Tool` objects; a function may take a `RunContext` first.
        name: Also the toolset's `id`, which durable execution needs: unique among the toolsets of
            one agent. None: the name of the class.
    """

    def __init__(
        self,
        tools: Sequence[Tool[AgentDepsT] | ToolFuncEither[AgentDepsT, ...]],
        name: str | None = None,
    ) -> None:
        self.name = name if name is not None else type(self).__name__
        super().__init__(tools=tools, id=self.name)


class SafeToolset(FunctionToolsetBase[AgentDepsT]):
    """A toolset whose author says that every tool in it is a `safe_tool`. Nothing is checked."""
