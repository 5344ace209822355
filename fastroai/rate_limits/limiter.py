"""The rate limits that requests of this process are sent under, with all who share them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from ..provider_limits import ProviderLimit
from ..providers import canonical_provider, provider_at
from . import pools
from .answer_headers import Told
from .dispatcher import Dispatcher
from .pools import Amounts, Terms, paces_of
from .shared_pools import SharedPools
from .turns import Route, Turn, Waiting

LATE: Final = 0.2
"""Seconds after which a turn is missed: those that a busy loop kept from going must not all go at
once when it is free.
"""
MOST_MISSED: Final = 3
"""How often a request asks for its turn at most; the last one it takes in any case."""


class RateLimiter:
    """Has requests wait for their turn. Any coroutine, event loop or thread may ask.

    Args:
        shared: Where it is kept how much of each limit is used.
        lease: Seconds without a heartbeat after which what a process has under way counts no more.
        clock: Seconds that nobody sets.
    """

    def __init__(
        self, shared: SharedPools, *, lease: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits: Mapping[str, ProviderLimit] = {}
        self._hosts: Mapping[str, str] = {}
        self._terms: dict[str, Terms] = {}
        self._routes: dict[tuple[str, str, str | None], Route] = {}
        self._under_way: Counter[object] = Counter()
        self._changing = threading.Lock()
        self.dispatcher = Dispatcher(self._terms, shared, lease=lease, clock=clock)

    def configure(self, limits: Mapping[str, ProviderLimit], hosts: Mapping[str, str]) -> None:
        """Have requests fit some limits from now on.

        Args:
            limits: By `provider` or `provider:model`.
            hosts: Who answers at a host, as `FASTROAI_PROVIDER_HOSTS` has it.
        """
        if limits == self._limits and hosts == self._hosts:
            return
        with self._changing:
            for name in self._limits.keys() - limits.keys():
                del self._terms[name]
            self._limits, self._hosts = limits, hosts
            self._terms |= {name: Terms.of(limit) for name, limit in limits.items()}
            self._routes = {}

    def route(self, provider: str, model: str, host: str | None) -> Route:
        """The pools of a request; empty: nothing limits it.

        Args:
            provider: As pydantic-ai calls it.
            model: Its name there.
            host: Where it goes, with the port where one is named.
        """
        asked = provider, model, host
        route = self._routes.get(asked)
        if route is None:
            with self._changing:
                *stated, told = self._names(*asked)
                route = tuple(name for name in stated if name in self._terms)
                # With limits of its own or not: others may have been told to wait.
                route += (told,) if route or told in self._terms else ()
                self._routes[asked] = route
        return route

    def _names(self, provider: str, model: str, host: str | None) -> tuple[str, str, str]:
        billed = provider_at(host, self._hosts) if host else None
        canonical = billed or canonical_provider(provider)
        name = f"{canonical}:{model}"
        # What an answer says is of its host: another one may only speak the same protocol.
        return canonical, name, f"{name} at {host}"

    def says(self, route: Route) -> str:
        """For people: what the limits of a route are."""
        limits = self._limits
        said = (f"{name} ({limits[name]})" for name in route if name in limits)
        return ", ".join(said) or f"what {route[-1]} allows"

    async def take(
        self, route: Route, run: Hashable, expected: Callable[[], Amounts], waiting: Waiting
    ) -> Turn:
        """Wait for a request's turn; until it is settled, it counts as under way.

        Args:
            run: Whose it is: runs come in turn.
            expected: Says what it will likely count for; asked when it goes, in another thread.
            waiting: Is told when it is expected to go.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        for more in reversed(range(MOST_MISSED)):
            is_nested = self._under_way[task] > 0
            turn = Turn(route, run, expected, loop.create_future(), waiting, task, is_nested)
            self.dispatcher.add(turn)
            try:
                due = await turn.future
                await asyncio.sleep(due - time.monotonic())
            except BaseException:  # cancelled
                self.dispatcher.leave(turn)
                raise
            if time.monotonic() - due <= LATE or not more:
                break
            self.dispatcher.leave(turn)
        with self._changing:
            self._under_way[task] += 1
        return turn

    def settle(self, turn: Turn, used: Amounts) -> None:
        """A request is answered, or failed, or was not sent after all. In any thread.

        Args:
            used: What it counts for, as far as is known.
        """
        with self._changing:
            self._under_way[turn.task] -= 1
            if not self._under_way[turn.task]:
                del self._under_way[turn.task]
        self.dispatcher.end(turn, used)

    def hear(
        self, provider: str, model: str, host: str | None, told: Told, amounts: Amounts
    ) -> None:
        """An answer says what the provider allows. In any thread.

        Args:
            amounts: What its request counts for.
        """
        name = self._names(provider, model, host)[-1]
        known = self._terms.get(name)
        if known is None and not told.is_tight:
            return
        # As far as the provider says that it remains, a minute's share may go at once.
        terms = Terms(paces_of(told.per_minute), pools.MINUTE)
        if known is None or (any(told.per_minute) and terms != known):
            with self._changing:
                self._terms[name] = terms
                self._routes = {}
        self.dispatcher.hear(name, told, amounts)
