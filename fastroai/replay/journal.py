"""Journal of a step: answered requests are not sent again when the step is retried."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from typing import Any, Protocol

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


class Journal:
    """The answered model requests and tool calls of one step.

    They are found again by what was asked, and the same question asked several times by its number.
    Concurrent calls may therefore come in any order, and a step whose code was changed between two
    attempts keeps what still fits.

    Args:
        step: Identity of the step within its run; the same whenever the run is executed again.
        store: Where records are kept beyond this process. None: nowhere.
    """

    def __init__(self, step: str, store: JournalStore | None = None) -> None:
        self._step = step
        self._store = store
        self._known: dict[str, bytes] = {}
        self._asked: Counter[str] = Counter()
        self._counting = threading.Lock()  # two threads must not get the same place

    @property
    def is_durable(self) -> bool:
        """Whether records outlive the process."""
        return self._store is not None

    def begin_attempt(self) -> None:
        """Read from the beginning again."""
        self._asked.clear()

    def place(self, kind: str, *question: Any) -> str:
        """Where the answer to a question belongs, this being the next time it is asked in this
        attempt.
        """
        key = digest_of_json([FORMAT, self._step, kind, *question])
        with self._counting:
            self._asked[key] += 1
            number = self._asked[key]
        return f"{key}-{number}"

    async def read(self, place: str) -> dict[str, Any] | None:
        """The record at a place; None where there is none that can be read."""
        content = self._known.get(place)
        if content is None and self._store is not None:
            content = await self._store.read(place)
        if content is None:
            return None
        try:
            record = json.loads(content)
            return record if record["format"] == FORMAT and record["place"] == place else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    async def write(self, place: str, **record: Any) -> None:
        """Record an answer; also when the caller is cancelled meanwhile, since it was paid for."""
        content = json.dumps(
            {"format": FORMAT, "place": place} | record, separators=(",", ":")
        ).encode()
        self._known[place] = content
        if self._store is not None:
            await asyncio.shield(self._store.write(place, content))
