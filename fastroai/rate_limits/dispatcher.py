"""The thread that gives requests their turns; it is busy only while some wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from secrets import token_hex
from typing import Final

from ..database.registry import OPEN_LEDGERS
from .answer_headers import Told
from .pools import NOTHING, Amounts, Terms
from .share import Own, Share
from .shared_pools import Holders, OwnPools, Pools, SharedPools
from .turns import Queue, Route, Turn

logger = logging.getLogger("fastroai.usage")

AHEAD: Final = 0.5
"""Seconds for which turns are given ahead; what a process has of them when it is killed is lost."""
POLL: Final = 0.25
"""Seconds between looks at what others have left, while some wait: two in what is given ahead."""
SHORTEST_POLL: Final = 0.01
GATHER: Final = 0.05
"""Seconds that what is given back waits for company, while nobody waits for it."""
BEATS_PER_LEASE: Final = 3
ALONE: Final = 10.0
"""Seconds after a failure of the database in which it is not tried again."""
EXIT_PATIENCE: Final = 2.0
"""Seconds that a process waits at its end to leave nothing that others would wait for."""


class Dispatcher:
    """Decides in one thread, for all who ask at once in one transaction.

    Args:
        terms: By pool; changed by others.
        shared: Where pools are kept.
        lease: Seconds without a heartbeat after which a process counts as dead.
        clock: Seconds that nobody sets.
    """

    def __init__(
        self,
        terms: Mapping[str, Terms],
        shared: SharedPools,
        *,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token = token_hex(8)
        """Of this process, for others."""
        self._terms = terms
        self._shared = shared
        self._alone = OwnPools()
        self._lease = lease
        self._clock = clock
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._queues: dict[Route, Queue] = {}
        self._own: defaultdict[str, Own] = defaultdict(Own)
        self._ended: list[tuple[Turn, Amounts]] = []
        self._heard: list[tuple[str, Told, Amounts]] = []
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        self._beat = 0
        self._beat_at = self._look_at = float("inf")
        self._is_failing = False
        self._alone_until = 0.0

    def add(self, turn: Turn) -> None:
        """Have a request wait. Like the next ones: in any thread."""

        def work() -> None:
            self._queues.setdefault(turn.route, Queue()).add(turn)
            self._look_at = self._clock()

        self._do(work)

    def leave(self, turn: Turn) -> None:
        """It waits no longer, and was not sent."""

        def work() -> None:
            if turn.route in self._queues:
                self._queues[turn.route].prune()
            self._look_soon()

        self._do(work if turn.future.cancelled() else partial(self._end, turn, NOTHING))

    def end(self, turn: Turn, used: Amounts) -> None:
        """It is no longer under way."""
        self._do(partial(self._end, turn, used))

    def hear(self, pool: str, told: Told, amounts: Amounts) -> None:
        """A provider says what is left of a pool."""

        def work() -> None:
            self._heard.append((pool, told, amounts))
            self._look_at = self._clock()

        self._do(work)

    def close_at_exit(self) -> None:
        """Leave nothing that others would wait for."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join(EXIT_PATIENCE)

    def _do(self, work: Callable[[], None]) -> None:
        self._inbox.put(work)
        if self._thread is not None:
            return
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="fastroai-turns", daemon=True)
                thread.start()
                self._thread = thread
                OPEN_LEDGERS.add(self)

    def _run(self) -> None:
        while self._read():
            self._pass()
        self._look_at = self._clock()
        self._pass()
        with suppress(Exception):
            if any(own.row is not None for own in self._own.values()):
                self._shared.transact(self._leave_all)
        self._shared.close()

    def _leave_all(self, pools: Pools) -> None:
        for name, own in self._own.items():
            if own.row is not None:
                pools.leave(name, self.token)

    def _read(self) -> bool:
        """Wait for something to do, and note what was asked for; false: it is the end."""
        due = min(self._look_at, self._beat_at)
        timeout = None if due == float("inf") else max(due - self._clock(), 0.0)
        with suppress(Empty):
            work = self._inbox.get(timeout=timeout)
            while work is not None:
                work()
                work = self._inbox.get_nowait()
            return False
        return True

    def _end(self, turn: Turn, used: Amounts) -> None:
        self._ended.append((turn, used))
        self._look_soon()

    def _look_soon(self) -> None:
        pause = 0.0 if self._queues else GATHER
        self._look_at = min(self._look_at, self._clock() + pause)

    def _pass(self) -> None:
        """Give what there is to those who wait."""
        if self._clock() < min(self._look_at, self._beat_at):
            return
        self._look_at = float("inf")
        names = {name for name, own in self._own.items() if own.row is not None}
        names.update(*self._queues, *(turn.route for turn, _ in self._ended))
        names.update(name for name, *_ in self._heard)
        given: list[tuple[Turn, float]] = []
        if names:
            self._transact(partial(self._decide, sorted(names), given))
        for turn, seconds in given:
            self._give(turn, seconds)

    def _transact(self, work: Callable[[Pools], None]) -> None:
        if self._clock() < self._alone_until:
            self._alone.transact(work)
            return
        try:
            self._shared.transact(work)
        except Exception as error:
            if not self._is_failing:
                logger.warning(
                    "What is used of rate limits can't be shared with other processes: %r. Until "
                    "it can, this one keeps to them by itself.",
                    error,
                )
            self._is_failing = True
            # Each try may take seconds, for which all who ask would wait.
            self._alone_until = self._clock() + ALONE
            self._alone.transact(work)
        else:
            self._is_failing = False

    def _give(self, turn: Turn, seconds: float) -> None:
        due = time.monotonic() + seconds

        def resolve() -> None:
            if turn.future.done():  # cancelled meanwhile
                self.end(turn, NOTHING)
            else:
                turn.future.set_result(due)

        try:
            turn.future.get_loop().call_soon_threadsafe(resolve)
        except RuntimeError:  # its loop is closed
            self._end(turn, NOTHING)

    def _decide(self, names: list[str], given: list[tuple[Turn, float]], pools: Pools) -> None:
        now, states, holders = pools.read(names)
        dead = self._dead(holders)
        for name, token in dead:
            pools.leave(name, token)
        gone = {token for _, token in dead} | {self.token}
        shares = {}
        for name in names:
            others = [one for one in holders.get(name, ()) if one.token not in gone]
            terms = self._terms.get(name, Terms())
            shares[name] = Share(terms, states[name], self._own[name], others, now)
        self._note(shares)
        for route in list(self._queues):
            self._serve(route, [shares[name] for name in route], now, given)
        pools.write(states)
        self._tell(pools, shares)

    def _note(self, shares: Mapping[str, Share]) -> None:
        """Count what is known by now, and how many wait."""
        ended, self._ended = self._ended, []
        for turn, used in ended:
            for name in turn.route:
                shares[name].give_back(turn, used)
        heard, self._heard = self._heard, []
        for name, told, amounts in heard:
            shares[name].hear(told, amounts)
        for route, queue in self._queues.items():
            for name in route:
                shares[name].waiting += len(queue)
                shares[name].runs += queue.runs
        for share in shares.values():
            row = share.own.row
            if share.waiting and (row is None or not row.waiting):
                share.join()

    def _serve(
        self, route: Route, shares: list[Share], now: float, given: list[tuple[Turn, float]]
    ) -> None:
        # At the end again: of routes that share a pool, none is always the first.
        queue = self._queues.pop(route)
        while (turn := queue.next()) is not None:
            turn.amounts = turn.expected()
            start = now if turn.is_left else max(share.start(turn) for share in shares)
            if start > now + AHEAD:
                self._queues[route] = queue
                self._wait(queue, start - now)
                return
            queue.pop()
            for share in shares:
                share.waiting -= 1
                if not turn.is_left:
                    share.take(turn)
            if not turn.is_left:
                given.append((turn, max(start - now, 0.0)))

    def _wait(self, queue: Queue, seconds: float) -> None:
        until = time.time() + seconds if seconds < float("inf") else None
        for turn in queue:
            turn.waiting.until = until
        pause = min(max(seconds - AHEAD, SHORTEST_POLL), POLL)
        self._look_at = min(self._look_at, self._clock() + pause)

    def _tell(self, pools: Pools, shares: Mapping[str, Share]) -> None:
        """Have others know what this process has and waits for."""
        self._beat += 1
        self._beat_at = float("inf")
        for name, share in shares.items():
            row = share.row(self.token, self._beat)
            if row is not None:
                pools.hold(name, row)
                self._beat_at = self._clock() + self._lease / BEATS_PER_LEASE
            elif share.own.row is not None:
                pools.leave(name, self.token)
            share.own.row = row

    def _dead(self, holders: Holders) -> list[tuple[str, str]]:
        """Pools and who is in them without a heartbeat for a lease, as long as that was watched."""
        now, dead = self._clock(), []
        for pool, found in holders.items():
            for holder in found:
                place = pool, holder.token
                beat, since = self._seen.get(place, (None, now))
                if beat != holder.beat:
                    self._seen[place] = holder.beat, now
                elif holder.token != self.token and now - since > self._lease:
                    dead.append(place)
                    del self._seen[place]
        return dead
