"""What a mapped step shares within a run: with its executor, its dependents, and who watches."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..collectors import Collector
from ..ledger.entries import LedgerEntry
from ..rate_limits.turns import Waiting
from ..replay.journal import Journal
from .item_outputs import ItemOutputs, OutputCodec

OVER = "\0over"
"""Among what an item has read: all that its step is mapped over."""


@dataclass(frozen=True, slots=True)
class Item:
    """One element that a step is mapped over.

    Attributes:
        key: Its stable name.
        value: The element.
        digest: What tells its content from others; of one that has no such text, never the same.
        position: Among the elements, from 0.
    """

    key: str
    value: Any
    digest: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """One finished item: the unit that is kept and replayed.

    Attributes:
        output: As the step's codec wrote it, plain JSON.
        reads: Digest of each value of the run's input that it has read.
        attempts: How often it was tried, from 1.
        is_fresh: Whether another process has just worked on it for this very run, so that its
            entries are this run's spend, and in the ledger.
    """

    output: Any
    entries: tuple[LedgerEntry, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 1
    is_fresh: bool = False


class ItemStore(Protocol):
    """Where an executor keeps the finished items of a step, and what their requests were
    answered.
    """

    async def open(self) -> None:
        """Find out what there is.

        Raises:
            ResultStorageError: It can't be told; what may have been paid is not to be paid again.
        """
        ...

    async def room(self) -> None:
        """Wait while too much of what is kept could not be written yet.

        Raises:
            ResultStorageError: It can't be.
        """
        ...

    async def find(self, item: Item) -> ItemRecord | None:
        """An item that was finished before, by the same code and of the same content."""
        ...

    async def keep(self, item: Item, record: ItemRecord) -> None:
        """Keep a finished item; it is on its way when this returns."""
        ...

    def journal_of(self, item: Item) -> Journal | None:
        """Where the answers to its requests are recorded; None: in process, if at all."""
        ...

    def read_digest(self, name: str) -> str:
        """What tells a value that an item may read of the run's input from others."""
        ...

    async def close(self) -> None:
        """Wait until what is kept is written, or kept elsewhere to be written later."""
        ...


@dataclass(eq=False)
class MapProgress:
    """How far a mapped step is.

    Attributes:
        total: How many items there are; None: nobody knows yet.
        started: Items that were begun.
        done: Those of them that have an output, replayed ones included.
        replayed: Those whose output was kept from before.
        failed: Those that failed for good.
        has_ended: Whether nothing more comes.
        began: When, by `time.monotonic`.
        waits: The requests of the run that wait for a rate limit now, by step.
    """

    step_id: str
    total: int | None = None
    started: int = 0
    done: int = 0
    replayed: int = 0
    failed: int = 0
    has_ended: bool = False
    began: float = field(default_factory=time.monotonic)
    waits: Mapping[str | None, Waiting] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Items whose request waits for a rate limit; several of one item count as several, as far
        as there are items that are worked on.
        """
        waiting = self.waits.get(self.step_id)
        return 0 if waiting is None else min(waiting.requests, self.running)

    @property
    def running(self) -> int:
        """Items that are worked on now; once it has ended, none is, whatever was broken off."""
        return 0 if self.has_ended else self.started - self.done - self.failed

    @property
    def share(self) -> float | None:
        """Share of the items that have ended; None: nobody knows how many there are."""
        if self.total is None:
            return 1.0 if self.has_ended else None
        return (self.done + self.failed) / self.total if self.total else 1.0

    def seconds_left(self, now: float) -> float | None:
        """How long the rest takes at the pace so far; None where nobody can say.

        Args:
            now: By `time.monotonic`.
        """
        worked = self.done + self.failed - self.replayed
        if self.total is None or worked <= 0 or self.has_ended:
            return None
        return (now - self.began) / worked * (self.total - self.done - self.failed)

    def left_in_words(self, now: float) -> str:
        """How long the rest takes, as `about 20 s left`; empty where nobody can say.

        Args:
            now: By `time.monotonic`.
        """
        seconds = self.seconds_left(now)
        if seconds is None:
            return ""
        minutes = round(seconds / 60)
        if seconds < 90:
            return f"about {max(1, round(seconds))} s left"
        return f"about {minutes} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"

    def counts(self) -> dict[str, int]:
        """What there is to tell of its items, by words."""
        found = {
            "replayed": self.replayed,
            "failed": self.failed,
            "running": self.running - self.waiting,
            "waiting for a rate limit": self.waiting,
        }
        return {word: number for word, number in found.items() if number}

    def in_words(self) -> str:
        """How far it is, as `900 of 1,000 items done (20 replayed, 3 failed)`."""
        total = "" if self.total is None else f" of {self.total:,}"
        counts = ", ".join(f"{number:,} {word}" for word, number in self.counts().items())
        return f"{self.done:,}{total} items done" + (f" ({counts})" if counts else "")


Around = Callable[[Item, Callable[[], Awaitable[None]]], Awaitable[None]]


@dataclass(eq=False)
class MapState:
    """What a mapped step shares while it is under way.

    Attributes:
        codec: Writes its outputs; None: they are held in memory, and not kept.
        store: Where finished items are kept; None: nowhere.
        around: How each item is run; None: as it is.
        at_once: How many items are begun at once; None: as the step says.
        outputs: What came of the items.
    """

    progress: MapProgress
    codec: OutputCodec | None = None
    store: ItemStore | None = None
    around: Around | None = None
    at_once: int | None = None
    outputs: ItemOutputs = field(default_factory=ItemOutputs)

    def __post_init__(self) -> None:
        self.outputs.codec = self.codec


_maps: Collector[MapProgress] = Collector("fastroai_watched_maps")

watched_maps = _maps.collected
"""The progress of each mapped step that starts in a context, in the order of their starts."""

watch = _maps.add
"""Show a mapped step to whoever watches."""
