"""The live objects of a run: as they are given, or as a factory makes them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any

DepsFactory = Callable[[], Any]
"""A function without arguments that returns the deps, a coroutine of them, or a (plain or async)
context manager of them.
"""


@asynccontextmanager
async def live_deps(given: Any, factory: DepsFactory | None) -> AsyncIterator[Any]:
    """The deps as given, or as the factory makes them here, closed again where they can be."""
    made = given if factory is None else factory()
    if factory is not None and inspect.isawaitable(made):
        made = await made
    if factory is None:
        yield made
    elif isinstance(made, AbstractAsyncContextManager):
        async with made as live:
            yield live
    elif isinstance(made, AbstractContextManager):
        with made as live:
            yield live
    else:
        yield made
