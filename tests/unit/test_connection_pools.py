"""Clients that fastroai keeps pools for: many requests at once are spread, within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
