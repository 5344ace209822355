"""What a step is mapped over: a list, an iterator, another mapped step, or a part of these."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import aclosing
from typing import Any

from ..errors import FastroAIError, SourceStepError
from .context import StepContext
from .item_outputs import ItemOutputs, MappedOutputs, MappedResults


class ItemSource:
    """What is mapped over.

    Attributes:
        total: How many elements there are; None: that is known at the end only.
    """

    def __init__(self, values: Iterable[Any] | AsyncIterable[Any], total: int | None) -> None:
        self._values = values
        self.total = total

    async def elements(self) -> AsyncGenerator[tuple[str | None, Any]]:
        """Each element, with the key that it has already."""
        values = self._values
        try:
            if isinstance(values, AsyncIterable):
                async for value in values:
                    yield None, value
            else:
                for value in values:
                    yield None, value
        finally:
            # What it holds open is let go at once, also where a failure ends the map.
            if isinstance(values, AsyncGenerator):
                await values.aclose()
            elif isinstance(values, Generator):
                values.close()

    def note(self, given: str | None, key: str) -> None:
        """Note under which key an element goes on."""

    def in_order(self, keys: list[str]) -> list[str]:
        """The keys of the elements, as they came, in the order of the source."""
        return keys


class MappedSource(ItemSource):
    """The outputs of another mapped step, each as soon as there is one."""

    def __init__(self, step_id: str, outputs: ItemOutputs) -> None:
        super().__init__((), None)
        self._step_id = step_id
        self._outputs = outputs
        self._keys: dict[str, str] = {}

    async def elements(self) -> AsyncGenerator[tuple[str | None, Any]]:
        async with aclosing(self._outputs.arriving()) as arriving:
            async for key in arriving:
                yield key, self._outputs[key]
        if self._outputs.failure is not None:
            raise SourceStepError(self._step_id, self._outputs.failure)

    def note(self, given: str | None, key: str) -> None:
        assert given is not None
        self._keys[given] = key

    def in_order(self, keys: list[str]) -> list[str]:
        return [self._keys[key] for key in self._outputs.order if key in self._keys]


class GivenItems(ItemSource):
    """Some of the elements that a step is mapped over, with their keys, where another process has
    the rest.
    """

    def __init__(self, items: Sequence[tuple[str, Any]]) -> None:
        super().__init__((), len(items))
        self._items = items

    async def elements(self) -> AsyncGenerator[tuple[str | None, Any]]:
        for key, value in self._items:
            yield key, value

    def _refuse(self, *_: object) -> Any:
        raise FastroAIError(
            "An item reads all that its step is mapped over, which is not there where items are "
            "spread over processes. Have a step before it give what it needs of the others."
        )

    __iter__ = __len__ = __getitem__ = _refuse


def source_of(over: str, context: StepContext[Any]) -> ItemSource:
    """What a step is mapped over.

    Raises:
        TypeError: There is nothing that could be mapped over.
        ValueError: The step that gives it was left out.
    """
    source = context.source_of_items(over)
    if isinstance(source, ItemSource):
        return source
    if isinstance(source, MappedOutputs | MappedResults):
        source = source.outputs
    if isinstance(source, ItemOutputs):
        return MappedSource(over, source)
    if isinstance(source, list | tuple | AsyncIterable | Iterator):
        return ItemSource(source, len(source) if isinstance(source, Sized) else None)
    hint = "; give list(d.items()) of a dict" if isinstance(source, Mapping) else ""
    raise TypeError(
        f"Step '{context.step_id}' maps over '{over}', which gave a {type(source).__qualname__}: "
        f"expected a list, a tuple, an iterator or an asynchronous iterator{hint}."
    )
