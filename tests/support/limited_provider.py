"""A provider that keeps count: beyond so many requests and tokens in a window it answers 429.

`python -m tests.support.limited_provider REQUESTS TOKENS WINDOW SECONDS` says its port in its first
line, answers each request after some seconds, and writes what it counted when its standard input is
closed. `TELLS` as a fifth argument has it say in each answer what remains.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support import forked

_REPOSITORY = Path(__file__).parents[2]


@dataclass
class Counted:
    """What a provider has counted.

    Attributes:
        arrivals: When it answered requests, in seconds since it started.
        refused: When it refused some.
        tokens: Of the answered ones.
        most_at_once: Requests that were under way at once.
        senders: By the prompt, how many it answered.
    """

    arrivals: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    most_at_once: int = 0
    senders: dict[str, int] = field(default_factory=dict)

    def used(self, begin: float, end: float) -> tuple[int, int]:
        """Requests and tokens that were answered in a time."""
        pairs = zip(self.arrivals, self.tokens, strict=True)
        tokens = [many for at, many in pairs if begin <= at < end]
        return len(tokens), sum(tokens)


class LimitedProvider:
    """Serves OpenAI's Chat Completions on a free port of 127.0.0.1.

    Args:
        requests: In each window, which slides.
        tokens: As well.
        seconds: That an answer takes.
        tells: Whether answers say what remains.
    """

    def __init__(
        self, requests: int, tokens: int, window: float, seconds: float, *, tells: bool = False
    ) -> None:
        self.limits = requests, tokens
        self.window = window
        self.seconds = seconds
        self.tells = tells
        self.counted = Counted()
        self._recent: deque[tuple[float, int]] = deque()
        self._under_way = 0
        self._random = random.Random(1)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Its port, while the block lasts."""
        self._began = time.monotonic()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        yield server.sockets[0].getsockname()[1]
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
        with suppress(*gone):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                status, headers, answer = self._admit(body)
                if status == 200:
                    self._under_way += 1
                    self.counted.most_at_once = max(self.counted.most_at_once, self._under_way)
                    await asyncio.sleep(self.seconds)
                    self._under_way -= 1
                content = json.dumps(answer).encode()
                headers |= {"content-type": "application/json", "content-length": len(content)}
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content)
                await writer.drain()
        writer.close()

    def _admit(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
        now = time.monotonic() - self._began
        while self._recent and self._recent[0][0] <= now - self.window:
            self._recent.popleft()
        output = min(self._random.randint(10, 60), body.get("max_completion_tokens") or 60)
        tokens = 135 + output
        used = len(self._recent), sum(many for _, many in self._recent)
        if used[0] + 1 > self.limits[0] or used[1] + tokens > self.limits[1]:
            self.counted.refused.append(now)
            wait = max(self._recent[0][0] + self.window - now, 0.001)
            headers = {"retry-after-ms": round(wait * 1000)}
            return 429, headers, {"error": {"message": "Too many.", "code": "rate_limit_exceeded"}}
        self._recent.append((now, tokens))
        self.counted.arrivals.append(now)
        self.counted.tokens.append(tokens)
        sender = str(body["messages"][-1]["content"])
        self.counted.senders[sender] = self.counted.senders.get(sender, 0) + 1
        return 200, self._said(used, tokens), _answer(body["model"], tokens - output, output)

    def _said(self, used: tuple[int, int], tokens: int) -> dict[str, Any]:
        if not self.tells:
            return {}
        requests_left, tokens_left = self.limits[0] - used[0] - 1, self.limits[1] - used[1] - tokens
        return {
            "x-ratelimit-limit-requests": self.limits[0],
            "x-ratelimit-limit-tokens": self.limits[1],
            "x-ratelimit-remaining-requests": requests_left,
            "x-ratelimit-remaining-tokens": tokens_left,
        }


def _answer(model: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "answered"}
    return {
        "id": "answer",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }


class LimitedProcess:
    """A limited provider in a process of its own.

    Attributes:
        base_url: For `OPENAI_BASE_URL`.
        counted: What it counted, once it has ended.
    """

    counted: Counted

    def __init__(self, *arguments: object) -> None:
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.support.limited_provider", *map(str, arguments)],
            kind=forked.BARE,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.base_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def end(self) -> Counted:
        """Have it end, and say what it counted."""
        out, _ = self._process.communicate()
        self.counted = Counted(**json.loads(out))
        return self.counted


@contextmanager
def limited_provider(*arguments: object) -> Iterator[LimitedProcess]:
    """One that runs while the block lasts; its arguments are those of the module."""
    process = LimitedProcess(*arguments)
    try:
        yield process
    finally:
        if not hasattr(process, "counted"):
            process.end()


async def _main(requests: str, tokens: str, window: str, seconds: str, *more: str) -> None:
    provider = LimitedProvider(
        int(requests), int(tokens), float(window), float(seconds), tells="TELLS" in more
    )
    async with provider.serving() as port:
        print(port, flush=True)  # noqa: T201  # whoever started it reads this
        await asyncio.to_thread(sys.stdin.read)
        print(json.dumps(asdict(provider.counted)), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
