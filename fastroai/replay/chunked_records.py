"""Many small records in few objects of a result storage, each there within a moment."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from ..errors import ResultStorageError
from ..serialization.strict_json import loads_strictly
from ..storage.result_store import ITEMS, ResultStore

logger = logging.getLogger("fastroai.executors")

FORMAT = 1
GATHERING_SECONDS = 0.02
"""How far apart chunks begin to be written at least; one that comes alone waits for nothing."""
CHUNK_BYTES = 1024 * 1024
"""A chunk ends with the record that makes it as large as this."""
ALONE_BYTES = 16 * 1024
"""A record as large as this is an object by itself, which is found by its name, without being read
before it is needed.
"""
UNWRITTEN_BYTES = 8 * CHUNK_BYTES
"""What may be on its way before whoever adds more has to wait."""
READ_AT_ONCE = 16
KEPT_BYTES = 16 * CHUNK_BYTES
"""Of chunks that were read last, and are not read again for their other records."""

TRIES = 5
"""How often the chunks are listed while somebody merges them."""
MANY = 64
"""Small chunks that are merged by whoever finds so many of one subject."""
SMALL_BYTES = CHUNK_BYTES // 8
MERGED_SECONDS = 24 * 3600
"""How far apart in time chunks are merged: they are deleted by the age of the youngest."""


@dataclass(eq=False)
class ChunkedRecords:
    """The records of one subject, found by their keys.

    Whoever writes adds chunks of its own, so that any number of processes may write at once; of
    two records of one key the later one counts. A storage that fails keeps nobody waiting: chunks
    are then kept in the process until it answers, as all results are.

    Attributes:
        store: Where they are, in the folder of items.
        subject: What the names of its chunks begin with, 32 digits.
        owner: The step whose results they are; None for what no run misses once its step is done.
        is_empty: Whether nobody can have written there yet, so that it is not looked into.
        gathering: Seconds in which records are gathered in one chunk.
    """

    store: ResultStore
    subject: str
    owner: str | None = None
    is_empty: bool = False
    gathering: float = GATHERING_SECONDS
    _name_of: dict[str, str] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _indexing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _read: OrderedDict[str, asyncio.Task[Mapping[str, str]]] = field(default_factory=OrderedDict)
    _pending: dict[str, str] = field(default_factory=dict)
    _pending_bytes: int = 0
    _unwritten_bytes: int = 0
    _written: asyncio.Future[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _began: float = 0.0
    _writing: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        """Find out which records there are.

        Raises:
            ResultStorageError: That can't be read now.
        """
        if self.is_empty:
            return
        try:
            await self._index()
        except Exception as error:
            raise self._unreadable(error) from error
        small = [name for name, size in self._sizes.items() if size < SMALL_BYTES]
        if len(small) >= MANY:
            try:
                await self._merge(sorted(small))
            except Exception as error:  # whoever opens them next tries again
                logger.debug("Items in %s are not merged: %r", self.store.described, error)

    async def _index(self) -> None:
        """Note where each record is, all at once: meanwhile others go by what was noted before."""
        for _ in range(TRIES - 1):
            # One that is gone was merged with others into a new one meanwhile, or pruned.
            with suppress(FileNotFoundError):
                self._name_of, self._sizes = await self._places()
                return
        self._name_of, self._sizes = await self._places()

    async def look(self) -> None:
        """Find the records that others have written since.

        Raises:
            ResultStorageError: That can't be read now.
        """
        try:
            name_of, sizes = await self._places(self._sizes.keys() | set(self._name_of.values()))
        except FileNotFoundError:
            return  # merged with others meanwhile: there the next time
        except Exception as error:
            raise self._unreadable(error) from error
        self._sizes |= sizes
        for key, name in name_of.items():
            self._name_of[key] = max(name, self._name_of.get(key, ""))

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self._name_of

    async def _places(self, known: Collection[str] = ()) -> tuple[dict[str, str], dict[str, int]]:
        """Where each record is, and how large each chunk, without those that are known."""
        # They are named by their time: the last one of a key stays.
        listed = await self.store.names_in(ITEMS, f"{self.subject}-")
        names = sorted(name for name in listed if name not in known)
        name_of = {key: name for name in names if (key := _only_key_in(name)) is not None}
        sizes: dict[str, int] = {}
        for batch in _in_turn([name for name in names if _only_key_in(name) is None]):
            found = await asyncio.gather(*map(self._records, batch))
            for name, records in zip(batch, found, strict=True):
                sizes[name] = sum(map(len, records.values()))
                for key in map(_digest, records):
                    name_of[key] = max(name, name_of.get(key, ""))
        return name_of, sizes

    def _unreadable(self, error: Exception) -> ResultStorageError:
        return ResultStorageError(
            f"Which items were finished before can't be read from {self.store.described}: {error}. "
            "None is asked for again. Run again when the storage answers, or set "
            "cache_policy='off' for this step."
        )

    async def read(self, key: str) -> bytes | None:
        """The record of a key, or None where there is none that can be read.

        Raises:
            ResultStorageError: It can't be told.
        """
        try:
            try:
                found = await self._found(key)
            except FileNotFoundError:  # merged with others meanwhile, or pruned
                async with self._indexing:
                    await self._index()
                    found = await self._found(key)
        except Exception as error:
            raise self._unreadable(error) from error
        return None if found is None else found.encode()

    async def _found(self, key: str) -> str | None:
        name = self._name_of.get(_digest(key))
        return None if name is None else (await self._records(name)).get(key)

    async def _records(self, name: str) -> Mapping[str, str]:
        """
        Raises:
            FileNotFoundError: They are gone.
        """
        reading = self._read.get(name)
        if reading is None:
            reading = asyncio.create_task(self._records_of(name), name="fastroai-chunk")
            if _only_key_in(name) is None:
                self._read[name] = reading
        else:
            self._read.move_to_end(name)
        # One of many that wait for it may be cancelled.
        return await asyncio.shield(reading)

    async def contents(self) -> AsyncGenerator[bytes]:
        """What there is of each key, of those that were found.

        Raises:
            ResultStorageError: It can't be read now.
        """
        for name in sorted(set(self._name_of.values())):
            try:
                found = await self._latest_in(name)
            except FileNotFoundError:
                continue  # pruned meanwhile
            except Exception as error:
                raise self._unreadable(error) from error
            for text in found.values():
                yield text.encode()

    async def _latest_in(self, name: str) -> dict[str, str]:
        """The records in a chunk of which there are no later ones."""
        records = await self._records(name)
        return {key: text for key, text in records.items() if self._name_of[_digest(key)] == name}

    async def _records_of(self, name: str) -> Mapping[str, str]:
        try:
            content = await self.store.read(f"{ITEMS}/{name}")
        except ValueError as error:  # damaged or forged
            logger.warning("The items in %r are not used: %s", name, error)
            return {}
        except BaseException:
            self._read.pop(name, None)
            raise
        self._forget_read(len(content))
        try:
            return _records_in(content)
        except ValueError as error:
            logger.warning("The items in %r are not used: %s", name, error)
            return {}

    def _forget_read(self, more: int) -> None:
        """Make room for a chunk that was read."""
        sizes = [(name, self._sizes.get(name, 0)) for name in self._read]
        excess = sum(size for _, size in sizes) + more - KEPT_BYTES
        for name, size in sizes:
            if excess <= 0:
                return
            if self._read[name].done():
                del self._read[name]
                excess -= size

    def add(self, key: str, content: bytes) -> asyncio.Future[None]:
        """Have a record written.

        Returns:
            Done when the storage has it, or it waits in the process for a storage that fails.
        """
        loop = asyncio.get_running_loop()
        text, size = content.decode(), len(content)
        self._unwritten_bytes += size
        if size >= ALONE_BYTES:
            written = loop.create_future()
            self._start({key: text}, size, written, _digest(key))
            return written
        # Of two records of one key in one chunk, the later one counts.
        self._pending_bytes += size
        self._pending[key] = text
        if self._written is None:
            self._written = loop.create_future()
        written = self._written
        if self._pending_bytes >= CHUNK_BYTES:
            self._begin()
        elif self._timer is None:
            delay = self._began + self.gathering - loop.time()
            self._timer = loop.call_later(max(delay, 0.0), self._begin)
        return written

    async def write(self, key: str, content: bytes) -> None:
        """Write a record, with those of others that come in the same moment."""
        await self.add(key, content)

    async def room(self) -> None:
        """Wait while very much is on its way."""
        while self._unwritten_bytes > UNWRITTEN_BYTES and self._writing:
            await asyncio.wait(self._writing, return_when=asyncio.FIRST_COMPLETED)

    def _begin(self) -> None:
        """Write what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._written is None:
            return
        self._began = asyncio.get_running_loop().time()
        self._start(self._pending, self._pending_bytes, self._written, uuid4().hex)
        self._pending, self._pending_bytes, self._written = {}, 0, None

    def _start(
        self, records: Mapping[str, str], size: int, written: asyncio.Future[None], unique: str
    ) -> None:
        name = f"{self.subject}-{time.time_ns():020d}-{unique}"
        # Here, so that what was gathered is not held besides.
        content = _chunk_of(records)
        task = asyncio.create_task(self._write(name, content, size, written), name="fastroai-items")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(
        self, name: str, content: bytes, size: int, written: asyncio.Future[None]
    ) -> None:
        try:
            await self.store.write(f"{ITEMS}/{name}", content, self.owner)
        finally:
            self._unwritten_bytes -= size
            if not written.done():
                written.set_result(None)

    async def close(self) -> None:
        """Wait until all is written."""
        self._begin()
        while self._writing:
            await asyncio.wait(self._writing)

    async def _merge(self, names: list[str]) -> None:
        """Write the records of small chunks in few ones, and delete those then.

        Any number of processes may do so at once: each deletes only what it has written anew.
        """
        for group in _groups(names, self._sizes):
            records: dict[str, str] = {}
            for name in group:
                records |= await self._latest_in(name)
            merged = f"{group[-1].rpartition('-')[0]}-{uuid4().hex}"
            if not await self.store.write(f"{ITEMS}/{merged}", _chunk_of(records), None):
                return
            self._sizes[merged] = sum(self._sizes.pop(name) for name in group)
            self._name_of |= dict.fromkeys(map(_digest, records), merged)
            await self.store.delete(ITEMS, group)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _only_key_in(name: str) -> str | None:
    """The digest of the key of a record that is an object by itself; None: it is a chunk."""
    unique = name.rpartition("-")[2]
    return unique if len(unique) == len(_DIGEST) else None


_DIGEST = "0" * 64


def _in_turn(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), READ_AT_ONCE):
        yield names[start : start + READ_AT_ONCE]


def _groups(names: list[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Chunks to be merged: in the order of time, of one day, and none too large."""
    group: list[str] = []
    size = 0
    for name in names:
        is_of_another = group and _seconds(name) - _seconds(group[0]) > MERGED_SECONDS
        if is_of_another or size + sizes[name] > CHUNK_BYTES:
            if len(group) > 1:
                yield group
            group, size = [], 0
        group.append(name)
        size += sizes[name]
    if len(group) > 1:
        yield group


def _seconds(name: str) -> float:
    return int(name.split("-")[1]) / 1e9


def _chunk_of(records: Mapping[str, str]) -> bytes:
    return json.dumps({"format": FORMAT, "records": records}, separators=(",", ":")).encode()


def _records_in(content: bytes) -> Mapping[str, str]:
    """
    Raises:
        ValueError: It is no chunk.
    """
    found = loads_strictly(content)
    records = found.get("records") if found.get("format") == FORMAT else None
    if type(records) is not dict or not all(type(text) is str for text in records.values()):
        raise ValueError("it is not written as a chunk is")
    return records
