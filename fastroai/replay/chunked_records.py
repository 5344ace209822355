"""Many small records in few objects of a result storage, each there within a moment."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from ..errors import ResultStorageError
from ..serialization.strict_json import loads_strictly
from ..storage.result_store import ITEMS, ResultStore

logger = logging.getLogger("fastroai.executors")

FORMAT = 1
GATHERING_SECONDS = 0.02
"""How long a record waits for others that are written with it."""
CHUNK_BYTES = 1024 * 1024
"""A chunk ends with the record that makes it as large as this."""
READ_AT_ONCE = 16
KEPT_CHUNKS = 4
"""Chunks that were read last, and are not read again for their other records."""


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
    """

    store: ResultStore
    subject: str
    owner: str | None = None
    is_empty: bool = False
    _chunk_of: dict[str, str] = field(default_factory=dict)
    _read: OrderedDict[str, Mapping[str, str]] = field(default_factory=OrderedDict)
    _pending: dict[str, str] = field(default_factory=dict)
    _written: asyncio.Future[None] | None = None
    _writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Find out which records there are.

        Raises:
            ResultStorageError: That can't be read now.
        """
        if self.is_empty:
            return
        try:
            names = sorted(await self.store.names_in(ITEMS, f"{self.subject}-"))
            for batch in _in_turn(names):
                await asyncio.gather(*map(self._note, batch))
        except Exception as error:
            raise ResultStorageError(
                "Which items were finished before can't be read from "
                f"{self.store.described}: {error}. None is asked for again. Run again when the "
                "storage answers, or set cache_policy='off' for this step."
            ) from error

    async def _note(self, name: str) -> None:
        for key in await self._records(name):
            # Chunks are named by their time, and may be read in any order.
            self._chunk_of[key] = max(name, self._chunk_of.get(key, ""))

    def __contains__(self, key: object) -> bool:
        return key in self._chunk_of

    async def read(self, key: str) -> bytes | None:
        """The record of a key, or None where there is none that can be read."""
        name = self._chunk_of.get(key)
        if name is None:
            return None
        found = (await self._records(name)).get(key)
        return None if found is None else found.encode()

    async def _records(self, name: str) -> Mapping[str, str]:
        if name in self._read:
            self._read.move_to_end(name)
            return self._read[name]
        records: Mapping[str, str] = {}
        try:
            records = _records_in(await self.store.read(f"{ITEMS}/{name}"))
        except FileNotFoundError:  # pruned meanwhile
            logger.debug("The items in %r are gone.", name)
        except ValueError as error:  # damaged or forged
            logger.warning("The items in %r are not used: %s", name, error)
        self._read[name] = records
        if len(self._read) > KEPT_CHUNKS:
            self._read.popitem(last=False)
        return records

    def add(self, key: str, content: bytes) -> asyncio.Future[None]:
        """Have a record written.

        Returns:
            Done when the storage has it, or it waits in the process for a storage that fails.
        """
        self._pending[key] = content.decode()
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="fastroai-chunks")
        return self._written

    async def write(self, key: str, content: bytes) -> None:
        """Write a record, with those of others that come in the same moment."""
        await self.add(key, content)

    async def _write(self) -> None:
        while self._pending:
            await asyncio.sleep(GATHERING_SECONDS)
            pending, self._pending = self._pending, {}
            written, self._written = self._written, None
            for chunk in _chunks(pending):
                name = f"{self.subject}-{time.time_ns():020d}-{uuid4().hex}"
                content = {"format": FORMAT, "records": chunk}
                record = json.dumps(content, separators=(",", ":")).encode()
                await self.store.write(f"{ITEMS}/{name}", record, self.owner)
            if written is not None and not written.done():
                written.set_result(None)
        self._writing = None

    async def close(self) -> None:
        """Wait until all is written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)


def _in_turn(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), READ_AT_ONCE):
        yield names[start : start + READ_AT_ONCE]


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


def _chunks(records: Mapping[str, str]) -> Iterator[dict[str, str]]:
    chunk: dict[str, str] = {}
    size = 0
    for key, text in records.items():
        chunk[key] = text
        size += len(text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
