"""Finished items of a mapped step, and what their requests were answered, in a result storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError

from ...ledger.entries import LedgerEntry
from ...pipelines.map_state import OVER, Item, ItemRecord
from ...replay.chunked_records import ChunkedRecords
from ...replay.journal import Journal
from ...serialization.canonical_json import digest
from ...storage.result_store import ResultStore
from .caching import digest_of_input, digest_or_unique

PLACE = "place"


class StoredItem(BaseModel):
    """What is stored of an item; anything else that is found is a miss.

    Attributes:
        item: Its key, for people; empty of those that were stored before keys were.
    """

    model_config = ConfigDict(extra="forbid")

    item: str = ""
    output: Any
    entries: tuple[LedgerEntry, ...]
    reads: dict[str, str]
    attempts: StrictInt
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class ItemsOf:
    """Records of the items of one step.

    Attributes:
        base: What tells the step from others, under which its items are found.
    """

    base: str
    records: ChunkedRecords

    def key_of(self, item: Item) -> str:
        """Under what an item is found."""
        return hashlib.sha256(f"{self.base}\n{item.digest}\n{item.key}".encode()).hexdigest()


@dataclass(eq=False)
class KeptItems:
    """See `ItemStore`.

    Attributes:
        folders: Where finished items are; those of the step's former names are only read.
        requests: Where answered requests of items are; None: they are not kept.
        inputs: The run's input.
        source: Gives all that is mapped over.
        expiration: How long a finished item may be used again.
        place: Where it is noted under what the run's items are found; None: nowhere.
    """

    folders: Sequence[ItemsOf]
    requests: ItemsOf | None
    inputs: Mapping[str, Any]
    source: Callable[[], Any]
    expiration: timedelta | None = None
    place: ChunkedRecords | None = None
    _digests: dict[str, str] = field(default_factory=dict)

    async def open(self) -> None:
        """See `ItemStore.open`."""
        await asyncio.gather(*(records.open() for records in self._all()))
        if self.place is not None:
            self.place.add(PLACE, self.folders[0].base.encode())

    def _all(self) -> list[ChunkedRecords]:
        of_items = [items.records for items in (*self.folders, self.requests) if items is not None]
        return [*of_items, *([] if self.place is None else [self.place])]

    async def room(self) -> None:
        """See `ItemStore.room`."""
        await self.folders[0].records.store.room()

    async def find(self, item: Item) -> ItemRecord | None:
        """See `ItemStore.find`."""
        for folder in self.folders:
            content = await folder.records.read(folder.key_of(item))
            if content is not None and (found := self._usable(content)) is not None:
                return found
        return None

    def _usable(self, content: bytes) -> ItemRecord | None:
        try:
            stored = StoredItem.model_validate_json(content)
        except (ValidationError, RecursionError):
            return None  # of another version
        if self.expiration is not None and datetime.now(UTC) - stored.stored_at > self.expiration:
            return None
        if any(self.read_digest(name) != value for name, value in stored.reads.items()):
            return None
        return ItemRecord(
            output=stored.output,
            entries=stored.entries,
            reads=stored.reads,
            attempts=stored.attempts,
        )

    async def keep(self, item: Item, record: ItemRecord) -> None:
        """See `ItemStore.keep`."""
        stored = StoredItem(
            item=item.key,
            output=None,
            entries=record.entries,
            reads=dict(record.reads),
            attempts=record.attempts,
            stored_at=datetime.now(UTC),
        )
        # The output is JSON already, and may hold text that pydantic does not encode.
        content = stored.model_dump(mode="json") | {"output": record.output}
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        folder = self.folders[0]
        folder.records.add(folder.key_of(item), text.encode())
        await folder.records.room()

    def journal_of(self, item: Item) -> Journal | None:
        """See `ItemStore.journal_of`."""
        if self.requests is None:
            return None
        records = self.requests.records
        return Journal(self.requests.key_of(item), records, is_empty=records.is_empty)

    def read_digest(self, name: str) -> str:
        """See `ItemStore.read_digest`."""
        if name not in self._digests:
            self._digests[name] = (
                digest_or_unique(self.source())
                if name == OVER
                else digest_of_input(self.inputs, name)
            )
        return self._digests[name]

    async def close(self) -> None:
        """See `ItemStore.close`."""
        for records in self._all():
            await records.close()


def place_of(store: ResultStore, flow_run_id: object, step_id: str) -> ChunkedRecords:
    """Where it is noted under what the items of a step of a run are found."""
    subject = digest(["items of", str(flow_run_id), step_id])[:32]
    return ChunkedRecords(store, subject, is_empty=True)


async def stored_items(
    store: ResultStore, flow_run_id: object, step_id: str
) -> dict[str, StoredItem] | None:
    """What is kept of the items that a step of a run could use, by their keys; of two of one key,
    the later one. None where nothing was noted of them.

    Raises:
        ResultStorageError: It can't be read now.
    """
    place = place_of(store, flow_run_id, step_id)
    await place.look()
    if (base := await place.read(PLACE)) is None:
        return None
    records = ChunkedRecords(store, base.decode()[:32])
    await records.look()
    found: list[StoredItem] = []
    async with aclosing(records.contents()) as contents:
        async for content in contents:
            with suppress(ValidationError, RecursionError):  # of another version
                found.append(StoredItem.model_validate_json(content))
    return {stored.item: stored for stored in sorted(found, key=attrgetter("stored_at"))}
