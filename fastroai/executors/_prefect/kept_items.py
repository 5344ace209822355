"""Finished items of a mapped step, and what their requests were answered, in a result storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError

from ...ledger.entries import LedgerEntry
from ...pipelines.map_state import OVER, Item, ItemRecord
from ...replay.chunked_records import ChunkedRecords
from ...replay.journal import Journal
from .caching import digest_of_input, digest_or_unique


class StoredItem(BaseModel):
    """What is stored of an item; anything else that is found is a miss."""

    model_config = ConfigDict(extra="forbid")

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
    """

    folders: Sequence[ItemsOf]
    requests: ItemsOf | None
    inputs: Mapping[str, Any]
    source: Callable[[], Any]
    expiration: timedelta | None = None
    _digests: dict[str, str] = field(default_factory=dict)

    async def open(self) -> None:
        """See `ItemStore.open`."""
        await asyncio.gather(*(items.records.open() for items in self._all()))

    def _all(self) -> list[ItemsOf]:
        return [*self.folders, *([] if self.requests is None else [self.requests])]

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
        for items in self._all():
            await items.records.close()
