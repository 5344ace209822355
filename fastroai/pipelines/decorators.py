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

    def __init__(self, function: StepFunction, config: StepConfig) -> None:
        self.function = function
        self.config = config
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # the bound method of a callable object is what is awaited
        )
        functools.update_wrapper(self, function, updated=())  # type: ignore[arg-type]  # for its name and doc, it is no function

    async def execute(self, context: StepContext[Any]) -> Any:
        """Run the function.

        A plain function gets a thread, which a timeout abandons but can not stop.
        """
        if self._is_async:
            return await self.function(context)
        output = await anyio.to_thread.run_sync(self.function, context, abandon_on_cancel=True)
        return await output if inspect.isawaitable(output) else output

    def __repr__(self) -> str:
        return f"<step {getattr(self.function, '__qualname__', self.function)!s}>"


@overload
def step(function: StepFunction, /) -> FunctionStep: ...


@overload
def step(**config: Any) -> Callable[[StepFunction], FunctionStep]: ...


def step(
    function: StepFunction | None = None, /, **config: Any
) -> FunctionStep | Callable[[StepFunction], FunctionStep]:
    """Make a step of a function that takes a `StepContext`; as `@step` or as `@step(retries=2,
    timeout=30)`.

    Args:
        function: A coroutine function, or a plain one, which runs in a worker thread.
        **config: Fields of `StepConfig`; those not given are inherited from the pipeline.

    Raises:
        TypeError: A keyword is not a field of `StepConfig`, or the decorated object is not
            callable.
        ValueError: A value no engine could honour.
    """
    resolved = StepConfig(**config)

    def decorate(function: StepFunction) -> FunctionStep:
        if not callable(function):
            raise TypeError(f"@step decorates a function, not {function!r}.")
        return FunctionStep(function, resolved)

    return decorate if function is None else decorate(function)
