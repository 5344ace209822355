"""Has requests wait for their turn under rate limits, before they are booked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from ..ledger.entries import NOT_SENT, Attribution, EntryState, LedgerEntry
from ..providers import canonical_provider
from ..rate_limits import NOTHING, Amounts, RateLimiter, Turn
from ..rate_limits.turns import Waiting
from ..replay.requests import RequestOfModel
from .deadlines import standing_still
from .likely_tokens import LikelyTokens

logger = logging.getLogger("fastroai.usage")

WORTH_SAYING: Final = 1.0
"""Seconds after which it is said that a run waits."""

StepsWaiting = dict[str | None, Waiting]
"""Of one run, the steps with requests that wait now."""

_counting = Lock()
"""Held while requests are counted that wait: a run's steps may be in several threads."""


class RequestTurns:
    """The turns of what one agent run sends.

    Args:
        run: Whose requests they are: those of different runs come in turn.
        waiting: Is told what waits.
        at: Whom its requests are booked to.
        agent: Its name.
    """

    def __init__(
        self, run: Hashable, waiting: StepsWaiting, at: Attribution, agent: str | None
    ) -> None:
        self._run = run
        self._waiting = waiting
        self._at = at
        self._agent = agent
        self._held: dict[str, tuple[RateLimiter, Turn, LikelyTokens]] = {}

    async def wait(
        self,
        limiter: RateLimiter,
        asked: tuple[str, str, str | None],
        request: RequestOfModel | None,
        entry_id: str,
    ) -> None:
        """Wait until a request may be sent; nothing is left of it when this is cancelled.

        Args:
            asked: Provider, model, and the host where it goes.
            entry_id: Of the entry that it is about to be booked by.
        """
        route = limiter.route(*asked)
        if not route:
            return
        likely = LikelyTokens.of((self._agent, ":".join(asked[:2])), request)
        with self._told(limiter.says(route)) as waiting, standing_still():
            turn = await limiter.take(route, self._run, likely.amounts, waiting)
        self._held[entry_id] = limiter, turn, likely

    def settle(self, entry: LedgerEntry) -> None:
        """A request is answered, or it is known what became of it."""
        held = self._held.pop(entry.id, None)
        if held is None:
            return
        limiter, turn, likely = held
        limiter.settle(turn, used_by(entry, turn.amounts))
        if entry.state is not EntryState.REFUSED and entry.tokens.input_tokens:
            likely.learn(entry.tokens)

    def end(self, entry_id: str, *, was_sent: bool) -> None:
        """It is no longer under way, whatever it will count for; or it was not sent."""
        held = self._held.pop(entry_id, None)
        if held is not None:
            limiter, turn, _ = held
            limiter.settle(turn, turn.amounts if was_sent else NOTHING)

    @contextmanager
    def _told(self, limit: str) -> Iterator[Waiting]:
        """Count a request that waits, and say so where that takes long: once for the whole run."""
        step_id, steps = self._at.step_id, self._waiting
        with _counting:
            waiting = steps.setdefault(step_id, Waiting(time.time()))
            waiting.requests += 1
            waiting.limit = limit
        timer = asyncio.get_running_loop().call_later(WORTH_SAYING, self._say, waiting)
        try:
            yield waiting
        finally:
            timer.cancel()
            with _counting:
                waiting.requests -= 1
                goes_on = self._leave(waiting) if not waiting.requests else None
            if goes_on is not None:
                logger.info("%s goes on after %.1f s.", self._name, time.time() - goes_on)

    def _say(self, waiting: Waiting) -> None:
        with _counting:
            if any(step.is_said for step in self._waiting.values()):
                return
            waiting.is_said = True
        logger.info(
            "%s waits for a rate limit: %d request(s) for %s.",
            self._name,
            waiting.requests,
            waiting.limit,
        )

    def _leave(self, waiting: Waiting) -> float | None:
        """None of a step's requests waits any more; since when the run did, if that was said and
        is over.
        """
        self._waiting.pop(self._at.step_id, None)
        if not waiting.is_said:
            return None
        for other in self._waiting.values():
            other.is_said, other.since = True, min(waiting.since, other.since)
            return None
        return waiting.since

    @property
    def _name(self) -> str:
        at = self._at
        if at.step_id is None:
            return repr(at.pipeline or self._agent or "An agent")
        return f"Step {at.step_id!r} of {at.pipeline!r}"


def used_by(entry: LedgerEntry, expected: Amounts) -> Amounts:
    """What a request counts for at its provider, as its entry says; where it does not, as was
    expected.
    """
    if entry.state is EntryState.REFUSED:
        was_sent = not (entry.error or "").startswith(NOT_SENT)
        return Amounts.of(0, 0) if was_sent else NOTHING
    tokens = entry.tokens
    if not tokens.input_tokens and not tokens.output_tokens:
        return expected
    # Anthropic does not count what it reads from a cache.
    is_anthropic = canonical_provider(entry.provider or "") == "anthropic"
    cached = tokens.cache_read_tokens if is_anthropic else 0
    return Amounts.of(max(tokens.input_tokens - cached, 0), tokens.output_tokens)
