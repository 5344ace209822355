"""@step: a function as a step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

import anyio.to_thread

from .base import BaseStep
from .config import StepConfig
from .context import StepContext

OutputT = TypeVar("OutputT")
StepFunction = Callable[[StepContext[Any]], Any]


class FunctionStep(BaseStep[Any, Any]):
    """A step whose work is a function of the context: a coroutine function, or a plain one run in a
    worker thread.
    """

    def __init__(
        self, function: StepFunction, config: StepConfig, version: str | None = None
    ) -> None:
        self.function = function
        self.config = config
        self.version = version
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            # Of a callable object, its bound method is what is awaited.
            getattr(function, "__call__", None)  # noqa: B004
        )
        # For its name and doc: it is no function.
        functools.update_wrapper(self, function, updated=())  # type: ignore[arg-type]

    async def execute(self, context: StepContext[Any]) -> Any:
        """Run the function.

        A plain function gets a thread, which a timeout abandons but can not stop.
        """
        if self._is_async:
            return await self.function(context)
        output = await anyio.to_thread.run_sync(self.function, context, abandon_on_cancel=True)
        return await output if inspect.isawaitable(output) else output

    @property
    def is_plain(self) -> bool:
        """Whether its function is a plain one, which runs in a thread."""
        return not self._is_async

    def __repr__(self) -> str:
        return f"<step {getattr(self.function, '__qualname__', self.function)!s}>"


@overload
def step(function: StepFunction, /) -> FunctionStep: ...


@overload
def step(
    *, version: str | None = None, **config: Any
) -> Callable[[StepFunction], FunctionStep]: ...


def step(
    function: StepFunction | None = None, /, *, version: str | None = None, **config: Any
) -> FunctionStep | Callable[[StepFunction], FunctionStep]:
    """Make a step of a function that takes a `StepContext`; as `@step` or as `@step(retries=2,
    timeout=30)`.

    Args:
        function: A coroutine function, or a plain one, which runs in a worker thread.
        version: Stands for the step's code when its stored results are looked up: they are reused
            until you change it, whatever you edit. The agents that the step uses, its output type
            and its input still count. None: a fingerprint of the code; see docs/caching.md.
        **config: Fields of `StepConfig`; those not given are inherited from the pipeline.

    Raises:
        TypeError: A keyword is not a field of `StepConfig`, or the decorated object is not
            callable.
        ValueError: A value no engine could honour, or an empty version.
    """
    if version is not None and not version:
        raise ValueError("version must not be empty. Give for example version='1', or none.")
    resolved = StepConfig(**config)

    def decorate(function: StepFunction) -> FunctionStep:
        if not callable(function):
            raise TypeError(f"@step decorates a function, not {function!r}.")
        return FunctionStep(function, resolved, version)

    return decorate if function is None else decorate(function)
