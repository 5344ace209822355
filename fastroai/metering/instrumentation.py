"""Books the requests of pydantic-ai agents that a step or a tool runs directly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from inspect import signature
from typing import Any, Final

from pydantic_ai import Agent

from ..pricing.calculator import CostCalculator
from ..replay.tools import ToolJournal
from .batch_journal import journal_batches
from .batches import meter_batches
from .meter import RequestMeter
from .model import COUNTING, meter_all_models
from .other_models import meter_other_models
from .scope import current_scope
from .threads import carry_into_threads
from .unmetered import notice_unmetered

logger = logging.getLogger("fastroai.agent")


TRIED_ON: Final = "2.62 to 2.68"
"""Versions of pydantic-ai whose `Agent.iter` was seen to take what is added to a call here."""


def install() -> bool:
    """Have all be booked that a step sends by itself, also from threads of its own; called when the
    first scope opens.

    Returns:
        Whether it is; see `book_all_agents`.
    """
    carry_into_threads()
    meter_all_models()
    meter_other_models()
    meter_batches()
    journal_batches()
    notice_unmetered()
    return book_all_agents()


def book_all_agents() -> bool:
    """Have every run of a pydantic-ai agent within a step counted, also one that no FastroAgent
    starts.

    pydantic-ai has no hook for all agents, and a request that nobody counts is one that the books
    don't balance with. Runs outside of steps are left as they are.

    Returns:
        Whether they are; not with a version whose `Agent.iter` takes other arguments.
    """
    if hasattr(Agent.iter, "__wrapped_by_fastroai__"):
        return True
    parameters = signature(Agent.iter).parameters
    if not {"model", "capabilities"} <= parameters.keys():
        logger.warning(
            "Requests of pydantic-ai agents that a step runs without FastroAgent are not booked: "
            "Agent.iter of pydantic-ai %s takes other arguments than that of %s. Wrap those "
            "agents: FastroAgent(agent=...).",
            version("pydantic-ai-slim"),
            TRIED_ON,
        )
        return False
    Agent.iter = _booked(Agent.iter)  # type: ignore[method-assign]
    return True


def _booked(iterate: Callable[..., Any]) -> Any:
    @wraps(iterate)
    def booked(self: Agent[Any, Any], *args: Any, **kwargs: Any) -> Any:
        model = kwargs.get("model")
        if isinstance(model, COUNTING) and not model.books.is_in_use:
            # Made for this run; a tool's `ctx.model` counts for the run that called the tool.
            model.books.is_in_use = True
            return iterate(self, *args, **kwargs)
        scope = current_scope()
        given = kwargs.get("capabilities") or ()
        if scope is not None and RequestMeter not in map(type, given):
            meter = RequestMeter(CostCalculator(), scope=scope, agent=self.name)
            journal = [] if scope.journal is None else [ToolJournal(scope.journal)]
            kwargs["capabilities"] = [*given, meter, *journal]
        return iterate(self, *args, **kwargs)

    booked.__wrapped_by_fastroai__ = True  # type: ignore[attr-defined]
    return booked
