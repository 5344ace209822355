"""Items of a mapped step in the run that spreads them over other runs, and waits for these."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun

from ...errors import RemoteItemError, ResultStorageError, is_pause
from ...leases.table import LeaseRecord
from ...ledger.entries import changed
from ...ledger.filters import LedgerFilter
from ...pipelines.map_state import Item, ItemRecord
from ...pipelines.plan import PlannedStep
from ...redaction import redact
from ...replay.chunked_records import ChunkedRecords
from ...replay.journal import Journal
from ..session import RunSession
from .chunk_runs import CHUNK_LABEL
from .kept_items import ItemsOf, KeptItems, StoredItem
from .options import Spread
from .spread_given import GivenRecords
from .spread_records import (
    ChunkRecord,
    FailureRecord,
    read_record,
)
from .spread_runs import ChunkRuns, verdict

logger = logging.getLogger("fastroai.executors")

LINGER = 0.3
"""Seconds that an item waits for others to be sent with it."""
POLL, LOOK = 0.4, 2.0
"""Seconds between two looks at what came back, and at the runs that work."""
RESTARTS = 2
"""How often a run that died or failed is begun again."""
PATIENCE = 60.0
"""Seconds for which neither the storage nor the server may be reached."""
CLOSING = 15.0
"""Seconds for what is to be done at the end, whoever cancels."""


@dataclass(eq=False)
class _Waiting:
    """An item that another process is to work on."""

    item: Item
    done: asyncio.Future[None]


@dataclass(eq=False)
class _Chunk:
    """What one run works on.

    Attributes:
        name: Of its record.
        waiting: Its items that have not come back, by the keys of their records.
        refusal: What a budget said to one of them at which the run is to pause.
        unheard: Since when it should have had a heartbeat, by `time.monotonic`.
        is_in_hand: Whether it is about to be begun again.
    """

    name: str
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    restarts: int = 0
    refusal: Exception | None = None
    unheard: float | None = None
    is_in_hand: bool = False


@dataclass(eq=False)
class SpreadItems:
    """See `ItemStore`: finished items come back from other runs by the storage.

    Attributes:
        kept: Where they are.
        errors: Records of those that failed.
        given: Writes what the other runs read.
        runs: These.
        may_go_on: Whether an earlier execution may have started some that go on.
        began: When this execution of it began.
    """

    spread: Spread
    kept: KeptItems
    errors: ChunkedRecords
    given: GivenRecords
    runs: ChunkRuns
    session: RunSession
    node: PlannedStep
    may_go_on: bool
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _pending: dict[str, _Waiting] = field(default_factory=dict)
    _lingering: asyncio.TimerHandle | None = None
    _chunks: dict[UUID, _Chunk] = field(default_factory=dict)
    _chunk_of: dict[str, _Chunk] = field(default_factory=dict)
    _fresh: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failed: dict[str, Exception] = field(default_factory=dict)
    _watching: asyncio.Task[None] | None = None
    _looked: float = 0.0
    _starting: int = 0

    @property
    def folder(self) -> ItemsOf:
        """Where finished items come back."""
        return self.kept.folders[0]

    async def open(self) -> None:
        """See `ItemStore.open`."""
        await self.kept.open()
        if self.may_go_on:
            await self._take_over()
            await self._hear()

    async def _take_over(self) -> None:
        """Wait for what runs of an earlier execution work on, instead of having it done twice."""
        store = self.folder.records.store
        for run in await self.runs.earlier():
            name = run.labels.get(CHUNK_LABEL)
            try:
                record = await read_record(store, name, ChunkRecord)
            except ResultStorageError as error:
                logger.warning("%s", error)
                continue
            chunk = _Chunk(str(name))
            self._chunks[run.id] = chunk
            for name_of, content in zip(record.keys, record.digests, strict=True):
                key = self.folder.key_of(Item(name_of, None, content, 0))
                if key not in self.folder.records:
                    self._chunk_of[key] = chunk

    async def room(self) -> None:
        """See `ItemStore.room`."""
        await self.kept.room()

    async def find(self, item: Item) -> ItemRecord | None:
        """See `ItemStore.find`."""
        key = self.folder.key_of(item)
        if key not in self._fresh:
            return await self.kept.find(item)
        # Of this very run: what it was made of, and when, need not be looked at.
        content = await self.folder.records.read(key)
        try:
            found = StoredItem.model_validate_json(content or b"")
        except ValueError as error:
            raise ResultStorageError(
                f"Item {item.key!r} of step '{self.node.step_id}' came back from another process "
                f"as what can't be read: {error}. Give all workers one version of fastroai."
            ) from error
        return ItemRecord(
            output=found.output,
            entries=found.entries,
            reads=found.reads,
            attempts=found.attempts,
            is_fresh=True,
        )

    async def keep(self, item: Item, record: ItemRecord) -> None:
        """See `ItemStore.keep`."""
        await self.kept.keep(item, record)

    def journal_of(self, item: Item) -> Journal | None:
        """See `ItemStore.journal_of`."""
        return self.kept.journal_of(item)

    def read_digest(self, name: str) -> str:
        """See `ItemStore.read_digest`."""
        return self.kept.read_digest(name)

    async def work_on(self, item: Item, run: Callable[[], Awaitable[None]]) -> None:
        """Have an item worked on elsewhere, unless it is finished; then take what came of it.

        Raises:
            Exception: It failed there, or nobody works on it.
        """
        if await self.find(item) is None:
            limits, identity = self.session.limits, self.session.identity
            if limits is not None:
                limits.require(changed(identity, step_id=self.node.step_id, item=item.key))
            await self._elsewhere(item)
        await run()

    async def _elsewhere(self, item: Item) -> None:
        key = self.folder.key_of(item)
        if key in self._failed:
            raise self._failed[key]
        waiting = _Waiting(item, asyncio.get_running_loop().create_future())
        if key in self._chunk_of:
            self._chunk_of[key].waiting[key] = waiting
        else:
            self._pending[key] = waiting
            if len(self._pending) >= self.spread.items:
                self._send()
            elif self._lingering is None:
                self._lingering = waiting.done.get_loop().call_later(LINGER, self._send)
        if self._watching is None or self._watching.done():
            self._watching = self._begin(self._watch())
        await waiting.done

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="fastroai-spread")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send(self) -> None:
        """Have what is gathered worked on, as far as there may be runs for it."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        working = sum(bool(chunk.waiting) for chunk in self._chunks.values()) + self._starting
        for _ in range(working, self.spread.runs):
            keys = list(self._pending)[: self.spread.items]
            if not keys:
                break
            self._starting += 1
            self._begin(self._start({key: self._pending.pop(key) for key in keys}))

    async def _start(self, pending: dict[str, _Waiting]) -> None:
        try:
            for key in list(pending):
                if (problem := self.given.problem_of(pending[key].item)) is not None:
                    _end({key: pending.pop(key)}, problem)
            if not pending:
                return
            name = await self.given.write([waiting.item for waiting in pending.values()])
            chunk = _Chunk(name, pending)
            self._chunk_of.update(dict.fromkeys(pending, chunk))
            run = await self.runs.start(name, len(pending))
            self._chunks[run.id] = chunk
        except Exception as error:
            _end(pending, error)
        finally:
            self._starting -= 1

    async def _watch(self) -> None:
        """Give each item what came of it, and have what is lost done again, until all is over."""
        reached = time.monotonic()
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._hear()
                if time.monotonic() - self._looked >= LOOK:
                    await self._look()
                    self._looked = time.monotonic()
                if self._lingering is None:
                    self._send()
                reached = time.monotonic()
            except Exception as error:
                message = "What became of the items of step %r can't be found out now: %s"
                logger.warning(message, self.node.step_id, redact(repr(error)))
                if time.monotonic() - reached > PATIENCE:
                    for waiting in (self._pending, *(c.waiting for c in self._chunks.values())):
                        _end(waiting, error)
                    return

    async def _hear(self) -> None:
        """Take what came back."""
        if not self._chunk_of:
            return
        finished = self.folder.records
        await finished.look()
        await self.errors.look()
        for key, chunk in list(self._chunk_of.items()):
            if key in finished:
                self._fresh.add(key)
                _end(self._come(key), None)
            elif (failure := f"{chunk.name}:{key}") in self.errors:
                error = self._failed[key] = self._failure(await self.errors.read(failure))
                if is_pause(error):
                    chunk.refusal = error
                _end(self._come(key), error)

    def _come(self, key: str) -> dict[str, _Waiting]:
        """The item that something came back of, if it was asked for; others may be, later."""
        waiting = self._chunk_of.pop(key).waiting.pop(key, None)
        return {} if waiting is None else {key: waiting}

    def _failure(self, content: bytes | None) -> Exception:
        """What an item failed with; what was spent on it is counted."""
        record = FailureRecord.of(content or b"")
        self.session.recorder.adopt(record.entries)
        return record.error()

    async def _look(self) -> None:
        """Look at the runs that still have items: what died is begun again."""
        for id_, chunk in list(self._chunks.items()):
            if not chunk.waiting and chunk not in self._chunk_of.values():
                del self._chunks[id_]
        if not self._chunks:
            return
        looked_at = list(self._chunks)  # others may be started meanwhile
        runs, holdings = await self.runs.look_at(looked_at)
        ended = {
            id_: found
            for id_ in looked_at
            if (found := verdict(runs.get(id_), holdings.get(str(id_)))) != "works"
        }
        if ended:
            await self._hear()  # all that these have written
        for id_, chunk in list(self._chunks.items()):
            found = ended.get(id_, "works")
            if found != "unheard":
                chunk.unheard = None
            elif chunk.unheard is None:
                chunk.unheard = time.monotonic()
            is_late = chunk.unheard and time.monotonic() - chunk.unheard > self.spread.patience
            if chunk.waiting and (found in ("lost", "over") or is_late) and not chunk.is_in_hand:
                run = None if found == "over" else runs.get(id_)
                state = _described(runs.get(id_))
                if run is None or chunk.refusal is not None or chunk.restarts >= RESTARTS:
                    self._give_up(id_, chunk, state)
                else:
                    chunk.is_in_hand = True
                    self._begin(self._begin_again(run, chunk, holdings.get(str(id_))))

    async def _begin_again(self, run: FlowRun, chunk: _Chunk, holding: LeaseRecord | None) -> None:
        """Have a run that was lost go on; that it died takes some time to be certain."""
        try:
            if await self.runs.begin_again(run, holding):
                chunk.restarts, chunk.unheard = chunk.restarts + 1, None
                message = "Flow run %s of step %r was lost; it is begun again for %d items."
                logger.warning(message, run.id, self.node.step_id, len(chunk.waiting))
        except Exception as error:  # looked at again
            logger.warning("Flow run %s can't be begun again now: %s", run.id, redact(str(error)))
        finally:
            chunk.is_in_hand = False

    def _give_up(self, id_: UUID, chunk: _Chunk, state: str) -> None:
        text = f"The flow run {id_}, which was to work on it, {state}"
        # Others would be refused by the same budget.
        error = chunk.refusal or RemoteItemError("ChunkRunEnded", text)
        del self._chunks[id_]
        for key in [key for key, of in self._chunk_of.items() if of is chunk]:
            self._failed[key] = error
            del self._chunk_of[key]
        _end(chunk.waiting, error)

    async def close(self) -> None:
        """See `ItemStore.close`; runs whose items nobody waits for any more are cancelled."""
        if self._lingering is not None:
            self._lingering.cancel()
        with anyio.move_on_after(CLOSING, shield=True):
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                # Who lost the run to another process leaves it these.
                if not any(held.lease.lost for held in self.session.leases):
                    await self.runs.cancel(id_ for id_, c in self._chunks.items() if c.waiting)
                await self._adopt_the_rest()
            except Exception as error:
                message = "The runs of step %r could not be ended: %s"
                logger.warning(message, self.node.step_id, redact(repr(error)))
            with suppress(Exception):
                await self.runs.close()
        await self.kept.close()

    async def _adopt_the_rest(self) -> None:
        """Count what the ledger has of processes that died before they could tell."""
        if self._watching is None:
            return
        identity, recorder = self.session.identity, self.session.recorder
        booked = await recorder.stored(
            LedgerFilter(run_id=identity.run_id, step_id=self.node.step_id, since=self._since())
        )
        known = {entry.id for entry in recorder.of_step(self.node.step_id)}
        recorder.adopt(entry for entry in booked if entry.id not in known)

    def _since(self) -> datetime | None:
        """None in a first execution, whatever the clocks of other machines say."""
        return self.began if self.may_go_on else None


def _described(run: FlowRun | None) -> str:
    """How a run ended, in words that follow its name."""
    if run is None or run.state is None:
        return "is gone."
    return f"ended as {run.state.name}: {redact(run.state.message or 'without a word')}"


def _end(waiting: dict[str, _Waiting], error: Exception | None) -> None:
    """Let items go on that came back, or that failed."""
    for each in waiting.values():
        if not each.done.done():
            if error is None:
                each.done.set_result(None)
            else:
                each.done.set_exception(error)
    waiting.clear()
