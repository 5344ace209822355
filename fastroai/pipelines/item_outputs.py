"""Outputs of a mapped step: held as long as they are few, on disk beyond that, read by key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import Any, ClassVar, Generic, Protocol, TypeVar, overload

from pydantic_core import SchemaSerializer, core_schema

OutputT = TypeVar("OutputT")

IN_MEMORY = 32 * 1024 * 1024
"""Bytes of encoded outputs of one step that are kept in memory; all of them are on disk beyond."""
SMALL = 256
"""Characters of a text that is held as it is."""

_PLAIN = frozenset({bool, int, float, type(None)})


class OutputCodec(Protocol):
    """Writes the outputs of one step as plain JSON, and reads them back."""

    def encode(self, output: Any) -> Any:
        """An output as plain JSON.

        Raises:
            ResultStorageError: It would not come back the same.
        """
        ...

    def decode(self, stored: Any) -> Any: ...


class ItemOutputs:
    """What came of each item, while they are worked on and afterwards.

    Args:
        codec: Writes outputs that are not small to disk; None: all are held.

    Attributes:
        order: The key of each element that was mapped over, equal ones more than once.
        errors: By key, what the items raised that failed for good.
        failure: What the step itself failed with.
    """

    def __init__(self, codec: OutputCodec | None = None) -> None:
        self.codec = codec
        self.order: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self._held: dict[str, Any] = {}
        self._spilled: dict[str, tuple[int, int]] = {}
        self._file: SpooledTemporaryFile[bytes] | None = None
        self._reading = threading.Lock()
        self._arrived: list[str] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._arriving = threading.Lock()
        self._has_ended = False
        self.failure: BaseException | None = None
        self._digests: dict[str, bytes] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._held or key in self._spilled

    def __getitem__(self, key: str) -> Any:
        if key in self._held:
            return self._held[key]
        start, length = self._spilled[key]
        assert self._file is not None
        assert self.codec is not None
        with self._reading:
            self._file.seek(start)
            content = self._file.read(length)
        return self.codec.decode(json.loads(content))

    def __getstate__(self) -> dict[str, Any]:
        """All that there is, for a step in another process."""
        outputs = {key: self[key] for key in (*self._held, *self._spilled)}
        return {"order": self.order, "errors": self.errors, "_held": outputs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)
        self.end()

    def add(self, key: str, output: Any, encoded: bytes | None) -> None:
        """Note the output of an item.

        Args:
            encoded: The output as its codec writes it, in JSON; None: it is held as it is.
        """
        if encoded is None or _is_small(output):
            self._held[key] = output
        else:
            self._spill(key, encoded)
        if encoded is not None:
            self._digests[key] = hashlib.sha256(encoded).digest()
        self._arrive(key)

    def fail(self, key: str, error: BaseException) -> None:
        """Note that an item has failed for good."""
        self.errors[key] = error

    def arrange(self, order: list[str]) -> None:
        """Put the keys, and what failed, in the order of the elements."""
        self.order[:] = order
        errors = dict(self.errors)
        self.errors.clear()
        self.errors.update((key, errors[key]) for key in order if key in errors)

    def end(self, failure: BaseException | None = None) -> None:
        """Note that nothing more comes, and whether that is because the step failed."""
        with self._arriving:
            self._has_ended, self.failure = True, failure
            self._wake()

    async def arriving(self) -> AsyncGenerator[str]:
        """The key of each item that has an output, as soon as it has, until the step ends."""
        position = 0
        while True:
            while position < len(self._arrived):
                yield self._arrived[position]
                position += 1
            waiting = asyncio.get_running_loop().create_future()
            with self._arriving:  # another thread may add the next one
                if position < len(self._arrived):
                    continue
                if self._has_ended:
                    return
                self._waiting.append(waiting)
            await waiting

    def digest(self) -> str | None:
        """What tells these outputs from others; None: one of them can't be told."""
        text = hashlib.sha256()
        for key in self.order:
            digest = self._digests.get(key)
            if digest is None and key not in self.errors:
                return None
            text.update(json.dumps(key).encode())
            text.update(digest or b"failed")
        return text.hexdigest()

    def _spill(self, key: str, encoded: bytes) -> None:
        if self._file is None:
            # Closed with this object.
            self._file = SpooledTemporaryFile(IN_MEMORY, prefix="fastroai-")  # noqa: SIM115
        with self._reading:
            start = self._file.seek(0, 2)
            self._file.write(encoded)
        self._spilled[key] = (start, len(encoded))

    def _arrive(self, key: str) -> None:
        with self._arriving:
            self._arrived.append(key)
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            with suppress(RuntimeError):  # its loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _is_small(output: object) -> bool:
    return type(output) in _PLAIN or (type(output) is str and len(output) <= SMALL)


def _written_as(kind: type[list[Any]] | type[dict[Any, Any]]) -> SchemaSerializer:
    """Has pydantic write outputs as what they read as, wherever it meets them."""
    as_kind = core_schema.plain_serializer_function_ser_schema(kind)
    return SchemaSerializer(core_schema.any_schema(serialization=as_kind))


class MappedOutputs(Sequence[OutputT], Generic[OutputT]):
    """The outputs of a mapped step, in the order of its items; reads as a list.

    Large ones are read from disk each time they are asked for.

    Attributes:
        keys: The item's key for each output.
    """

    __pydantic_serializer__: ClassVar[SchemaSerializer] = _written_as(list)

    def __init__(self, outputs: ItemOutputs) -> None:
        self.outputs = outputs
        self.keys: Sequence[str] = outputs.order

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> OutputT: ...
    @overload
    def __getitem__(self, index: slice) -> list[OutputT]: ...
    def __getitem__(self, index: int | slice) -> OutputT | list[OutputT]:
        if isinstance(index, slice):
            return [self.outputs[key] for key in self.keys[index]]
        output: OutputT = self.outputs[self.keys[index]]
        return output

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | tuple | MappedOutputs):
            return NotImplemented
        return len(self) == len(other) and all(map(_equal, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return _shortened("MappedOutputs", map(repr, self[:_SHOWN]), len(self))


class MappedResults(Mapping[str, OutputT], Generic[OutputT]):
    """What there is of a mapped step whose items may fail: outputs by the item's key, in the order
    of the items.

    Attributes:
        errors: By key, what the items raised that failed.
    """

    __pydantic_serializer__: ClassVar[SchemaSerializer] = _written_as(dict)

    def __init__(self, outputs: ItemOutputs) -> None:
        self.outputs = outputs
        self.errors: Mapping[str, BaseException] = outputs.errors
        self._keys = dict.fromkeys(key for key in outputs.order if key in outputs)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> OutputT:
        if key not in self._keys:
            raise KeyError(key)
        output: OutputT = self.outputs[key]
        return output

    def __repr__(self) -> str:
        shown = (f"{key!r}: {self[key]!r}" for key in list(self)[:_SHOWN])
        return _shortened("MappedResults", shown, len(self), f"; {len(self.errors)} failed")


_SHOWN = 3


def _equal(one: object, other: object) -> bool:
    return one is other or one == other


def _shortened(name: str, shown: Iterator[str], length: int, more: str = "") -> str:
    parts = [*shown, *(["…"] if length > _SHOWN else [])]
    return f"<{name} of {length}: {', '.join(parts)}{more}>"
