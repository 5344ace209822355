"""Clients that fastroai keeps pools for: many requests at once are spread, within the limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore2
import httpx2
import pytest

from fastroai.metering.connection_pools import REQUESTS_OF_ONE, keep_loops_apart

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers once as many requests as it waits for are under way, and counts connections."""

    def __init__(self, waits_for: int) -> None:
        self.waits_for = waits_for
        self.opened = self.asked = 0
        self.may_answer = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                if self.asked >= self.waits_for:
                    self.may_answer.set()
                await self.may_answer.wait()
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.talk, "127.0.0.1", 0, backlog=500)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize("most", [30, 2 * REQUESTS_OF_ONE, 1000])
async def test_requests_at_once_open_no_more_connections_than_the_client_may(most: int) -> None:
    requests = 3 * REQUESTS_OF_ONE
    server = Server(waits_for=min(most, requests))
    async with (
        server.url() as url,
        httpx2.AsyncClient(limits=httpx2.Limits(max_connections=most), timeout=60) as client,
    ):
        assert keep_loops_apart(client)
        answers = await asyncio.gather(*(client.get(url) for _ in range(requests)))
    assert {answer.text for answer in answers} == {"ok"}
    assert server.opened == min(most, requests)


async def test_one_request_after_the_other_uses_one_connection() -> None:
    server = Server(waits_for=1)
    async with server.url() as url, httpx2.AsyncClient() as client:
        assert keep_loops_apart(client)
        for _ in range(5):
            await client.get(url)
    assert server.opened == 1


class Busy(httpcore2.AsyncMockBackend):
    """Connects at the second try; at the first, the loop is busy until it is too late, or the host
    does not answer.
    """

    def __init__(self, busy_seconds: float) -> None:
        super().__init__([ANSWER])
        self.busy_seconds = busy_seconds
        self.asked = 0

    async def connect_tcp(self, *args: object, **options: object) -> httpcore2.AsyncNetworkStream:
        self.asked += 1
        if self.asked > 1:
            return await super().connect_tcp("host", 80)
        time.sleep(self.busy_seconds)  # noqa: ASYNC251  # that is the matter
        raise httpcore2.ConnectTimeout


def client_with(backend: Busy, patience: float) -> httpx2.AsyncClient:
    transport = httpx2.AsyncHTTPTransport()
    transport._pool = httpcore2.AsyncConnectionPool(network_backend=backend)
    client = httpx2.AsyncClient(transport=transport, timeout=patience)
    assert keep_loops_apart(client)
    return client


async def test_a_connection_that_a_busy_loop_had_no_time_for_is_waited_for_once_more() -> None:
    backend = Busy(busy_seconds=0.05)
    async with client_with(backend, patience=0.02) as client:
        answer = await client.get("http://host/")
    assert answer.text == "ok"
    assert backend.asked == 2


async def test_a_host_that_does_not_answer_in_time_is_not_asked_again() -> None:
    backend = Busy(busy_seconds=0)
    async with client_with(backend, patience=100) as client:
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get("http://host/")
    assert backend.asked == 1
