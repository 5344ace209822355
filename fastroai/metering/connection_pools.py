"""Connection pools of HTTP clients: some for each event loop in which a client is used."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator
from threading import Lock
from typing import Any

Loop = asyncio.AbstractEventLoop

REQUESTS_OF_ONE = 50
"""Requests in one pool, which looks through all of them for each: a thousand in one pool cost more
than a quarter of the processor.
"""
MOST_POOLS = 20
_MOST_CONNECTS = 4
"""Times that a connection is waited for once more where it was our own loop that took too long."""
_TURNS_TO_CONNECT = 20
"""A loop that had fewer turns within the time to connect may have had none for the connection."""


class PoolPerLoop:
    """Stands for a connection pool of httpcore, and keeps some like it for each event loop. What
    the pool allows, they allow together.

    A connection belongs to the loop that opened it: the answer to a request that another loop
    sends by it is lost, after it was billed.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._pools: dict[Loop, list[Any]] = {}
        self._lock = Lock()

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request by a connection of the running loop."""
        patience = request.extensions.get("timeout", {}).get("connect")
        for _ in range(_MOST_CONNECTS):
            started = time.monotonic()
            try:
                return await self._pool_with_room().handle_async_request(request)
            except Exception as error:
                # Nothing has left by then.
                if not _is_connect_timeout(error) or not await _was_starved(started, patience):
                    raise
        return await self._pool_with_room().handle_async_request(request)

    def _pool_with_room(self) -> Any:
        loop = asyncio.get_running_loop()
        # The first that has room: as long as there is little to do, connections are used again.
        least, pool = REQUESTS_OF_ONE, None
        for candidate in self._pools.get(loop) or self._open(loop):
            busy = len(candidate._requests)
            if pool is None or busy < least:
                least, pool = busy, candidate
            if busy < REQUESTS_OF_ONE:
                break
        assert pool is not None
        return pool

    def _open(self, loop: Loop) -> list[Any]:
        number = min(max(self._pool._max_connections // REQUESTS_OF_ONE, 1), MOST_POOLS)
        pools = []
        for _ in range(number):
            pool = copy.copy(self._pool)
            pool._connections, pool._requests = [], []
            pool._max_connections //= number
            pool._max_keepalive_connections //= number
            pools.append(pool)
        with self._lock:
            # A pool's connections hold their loop, so weak references would keep the closed ones.
            alive = {other: kept for other, kept in self._pools.items() if not other.is_closed()}
            self._pools = alive | {loop: pools}
        return pools

    async def aclose(self) -> None:
        """Close the connections of all loops that run, each in its own."""
        with self._lock:
            pools_by_loop, self._pools = self._pools, {}
        for loop, pools in pools_by_loop.items():
            for pool in pools:
                if loop is asyncio.get_running_loop():
                    await pool.aclose()
                elif loop.is_running():
                    asyncio.run_coroutine_threadsafe(pool.aclose(), loop)
        await self._pool.aclose()

    async def __aenter__(self) -> PoolPerLoop:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _is_connect_timeout(error: Exception) -> bool:
    # By name, as clients may be of several versions of httpcore.
    return type(error).__name__ == "ConnectTimeout"


async def _was_starved(started: float, patience: float | None) -> bool:
    """Whether a connection that did not come in time was kept waiting by this loop, in which a
    thousand agents may be at work, and not by its host.

    Args:
        started: When it was asked for, by the clock that never goes back.
        patience: Seconds that it might take.
    """
    if patience is None:
        return False
    asked = time.monotonic()
    await asyncio.sleep(0)
    turn = max(time.monotonic() - asked, asked - started - patience)
    return turn > patience / _TURNS_TO_CONNECT


def keep_loops_apart(http_client: Any) -> bool:
    """Have an HTTP client keep a pool of connections for each event loop.

    What is under way in the pool it had ends there.

    Returns:
        Whether it does; not where a transport is none of httpx's.
    """
    split = [_split(transport) for transport in _transports(http_client)]
    return all(split)


def _transports(http_client: Any) -> Iterator[Any]:
    yield getattr(http_client, "_transport", None)
    for transport in getattr(http_client, "_mounts", {}).values():
        if transport is not None:
            yield transport


def _split(transport: Any) -> bool:
    """Replace the pool beneath a transport, and beneath those that it wraps."""
    done = False
    for name, value in list(getattr(transport, "__dict__", {}).items()):
        if isinstance(value, PoolPerLoop):
            done = True
        elif hasattr(value, "_connections") and hasattr(value, "_requests"):
            setattr(transport, name, PoolPerLoop(value))
            done = True
        elif hasattr(value, "handle_async_request"):
            done = _split(value) or done
    return done
