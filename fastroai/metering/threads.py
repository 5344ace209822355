"""Carries the books of a step into the threads that it starts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial, wraps
from multiprocessing.pool import ThreadPool
from threading import Thread
from typing import Any

from .scope import CarriedScope, carried, current_scope


def carry_into_threads() -> None:
    """Have a thread that a step starts, and a function that it hands to a pool, be booked to that
    step; called when the first scope opens.

    A thread of its own begins with no context variables before Python 3.14. What copies them
    (`asyncio.to_thread`, anyio) needs no help, and keeps what it copied.
    """
    if not hasattr(Thread.start, "__wrapped_by_fastroai__"):
        Thread.start = _carrying_start(Thread.start)  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = _carrying_submit(ThreadPoolExecutor.submit)  # type: ignore[method-assign]
        for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
            setattr(ThreadPool, name, _carrying_task(getattr(ThreadPool, name)))


def _carrying_start(start: Callable[[Thread], None]) -> Any:
    @wraps(start)
    def started(self: Thread) -> None:
        scope = current_scope()
        if scope is not None:
            self.run = partial(_within, CarriedScope(scope), self.run)  # type: ignore[method-assign]
        start(self)

    started.__wrapped_by_fastroai__ = True  # type: ignore[attr-defined]
    return started


def _carrying_submit(submit: Callable[..., Future[Any]]) -> Any:
    @wraps(submit)
    def submitted(
        self: Executor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        scope = current_scope()
        # Outside of any scope, too: the pool's thread may have been started within one.
        carried_on = None if scope is None else CarriedScope(scope)
        return submit(self, _within, carried_on, function, *args, **kwargs)

    return submitted


def _carrying_task(method: Callable[..., Any]) -> Any:
    """A method of a pool of threads, which may have been started before the step, or by another
    one.
    """

    @wraps(method)
    def tasked(self: ThreadPool, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scope = current_scope()
        carried_on = None if scope is None else CarriedScope(scope)
        return method(self, partial(_within, carried_on, func), *args, **kwargs)

    return tasked


def _within(
    scope: CarriedScope | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    with carried(scope):
        return function(*args, **kwargs)
