"""Journal of a step: answered requests are not sent again when the step is retried."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import StrictInt, TypeAdapter
from pydantic_core import to_jsonable_python

from ..serialization.canonical_json import digest_of_json

FORMAT = 1


class JournalStore(Protocol):
    """Where a journal outlives its process."""

    async def read(self, key: str) -> bytes | None:
        """What is recorded, or None when that is nothing for sure.

        Raises:
            ResultStorageError: It can't be told; what may have been paid is not to be paid again.
        """
        ...

    async def write(self, key: str, content: bytes) -> None:
        """Record; a failure is told and not raised."""
        ...


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """What each record says of itself."""

    format: StrictInt
    place: str


RecordT = TypeVar("RecordT", bound=JournalRecord)


@dataclass(slots=True, eq=False)
class Journal:
    """The answered model requests and tool calls of one step.

    They are found again by what was asked, and the same question asked several times by its number.
    Concurrent calls may therefore come in any order, and a step whose code was changed between two
    attempts keeps what still fits.

    Args:
        step: Identity of the step within its run; the same whenever the run is executed again.
        store: Where records are kept beyond this process. None: nowhere.
        is_empty: Whether no other process can have kept any there.

    Attributes:
        waiting: By the id of an answer that is still to come: its place, and how many entries there
            were before it was asked for.
    """

    step: str
    store: JournalStore | None = None
    is_empty: bool = field(default=False, kw_only=True)
    waiting: dict[str, tuple[str, int]] = field(default_factory=dict, init=False)
    _known: dict[str, bytes] = field(default_factory=dict, init=False)
    _asked: dict[str, int] = field(default_factory=dict, init=False)
    # Two threads must not get the same place.
    _counting: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def records(self) -> dict[str, bytes]:
        """What is known in this process, by place."""
        return dict(self._known)

    def learn(self, records: Mapping[str, bytes]) -> None:
        """Know what another process has recorded, too."""
        self._known.update(records)

    @property
    def is_durable(self) -> bool:
        """Whether records outlive the process."""
        return self.store is not None

    @property
    def may_answer(self) -> bool:
        """Whether there may be an answer to something."""
        return bool(self._known) or (self.store is not None and not self.is_empty)

    def begin_attempt(self) -> None:
        """Read from the beginning again."""
        self._asked.clear()

    def place(self, kind: str, *question: Any) -> str:
        """Where the answer to a question belongs, this being the next time it is asked in this
        attempt.

        Args:
            question: As JSON, or turned into it; of what has no such form only the type counts.
        """
        parts = [FORMAT, self.step, kind, *question]
        key = digest_of_json(
            to_jsonable_python(parts, fallback=lambda value: type(value).__qualname__)
        )
        with self._counting:
            number = self._asked[key] = self._asked.get(key, 0) + 1
        return f"{key}-{number}"

    async def read(self, place: str, adapter: TypeAdapter[RecordT]) -> RecordT | None:
        """The record at a place; None where there is none of this kind that can be read."""
        content = self._known.get(place)
        if content is None and self.store is not None and not self.is_empty:
            content = await self.store.read(place)
        if content is None:
            return None
        try:
            record = adapter.validate_json(content)
        except (ValueError, RecursionError):
            return None  # of another version: asked again, rather than read as what it is not
        return record if (record.format, record.place) == (FORMAT, place) else None

    async def write(self, place: str, **record: Any) -> None:
        """Record an answer; also when the caller is cancelled meanwhile, since it was paid for."""
        content = json.dumps(
            {"format": FORMAT, "place": place} | record, separators=(",", ":")
        ).encode()
        # First here: whatever becomes of the storage, the next attempt in this process finds it.
        self._known[place] = content
        if self.store is not None:
            await asyncio.shield(self.store.write(place, content))
