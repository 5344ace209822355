"""A request's turn: what it takes of its pools, from when it may go until it is answered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from .pools import NOTHING, Amounts

Route = tuple[str, ...]
"""The pools that a request belongs to, by name."""


@dataclass(slots=True, eq=False)
class Waiting:
    """The requests of one step that wait for a rate limit now.

    Attributes:
        requests: How many.
        until: When the next of them is expected to go, in seconds since 1970; None: it is not
            known, as for an end of others' requests.
        limit: For people: what they wait for.
        since: As `until`, when the first of them began to wait.
        is_said: Whether a log line says that its run waits.
    """

    since: float
    requests: int = 0
    until: float | None = None
    limit: str = ""
    is_said: bool = False


@dataclass(slots=True, eq=False)
class Turn:
    """One request that is to go, or goes.

    Attributes:
        run: Between runs, turns go round.
        expected: Says what it is expected to count for, as is known now.
        amounts: What was expected when it was taken.
        is_nested: Whether it is asked for by code that has a turn in the same pools, and would wait
            for itself.
        future: When it may go, by `time.monotonic`, once that is known.
    """

    route: Route
    run: Hashable
    expected: Callable[[], Amounts]
    future: asyncio.Future[float]
    waiting: Waiting
    task: object
    is_nested: bool
    amounts: Amounts = NOTHING

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.cancelled()


class Queue:
    """Turns that wait for the pools of one route: run by run in their order, and between runs in
    turn.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[Hashable, deque[Turn]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def __iter__(self) -> Iterator[Turn]:
        """The next one of each run."""
        return (turns[0] for turns in self._runs.values())

    @property
    def runs(self) -> int:
        """How many have some here."""
        return len(self._runs)

    def add(self, turn: Turn) -> None:
        """Last of its run; one that others wait for comes first of all."""
        turns = self._runs.setdefault(turn.run, deque())
        if turn.is_nested:
            turns.appendleft(turn)
            self._runs.move_to_end(turn.run, last=False)
        else:
            turns.append(turn)

    def next(self) -> Turn | None:
        """Whose turn it is."""
        return next(iter(self), None)

    def pop(self) -> None:
        """It goes; the next one is another run's."""
        run, turns = next(iter(self._runs.items()))
        turns.popleft()
        self._runs.move_to_end(run)
        if not turns:
            del self._runs[run]

    def prune(self) -> None:
        """Forget those that nobody waits for any more."""
        for run, turns in list(self._runs.items()):
            kept = deque(turn for turn in turns if not turn.is_left)
            self._runs[run] = kept
            if not kept:
                del self._runs[run]
