"""The loopback provider in a process of its own, as a fixture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support import forked
from tests.support.behaviours import Behaviour, to_json
from tests.support.invoice import InvoiceLine, read_invoice
from tests.support.provider import KEY

_REPOSITORY = Path(__file__).parents[2]
_PATIENCE = 30.0


class ProviderProcess:
    """Runs while its `with` block lasts, and no longer than this process.

    Args:
        invoice: The file it writes its invoice to.
    """

    def __init__(self, invoice: Path) -> None:
        self._invoice = invoice

    def __enter__(self) -> Self:
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.support.provider", str(self._invoice)],
            kind=forked.BARE,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.host = f"127.0.0.1:{int(self._said())}"
        """Host and port, as ledger entries name it."""
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def base_url(self) -> str:
        """For `OPENAI_BASE_URL`."""
        return f"http://{self.host}/v1"

    def script(self, prompt: str, *behaviours: Behaviour) -> None:
        """What to do, in order, with the requests whose last user prompt contains a text; the last
        goes on.
        """
        assert self._process.stdin is not None
        command = {"prompt": prompt, "behaviours": [to_json(behaviour) for behaviour in behaviours]}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        assert self._said() == "scripted"

    @property
    def lines(self) -> list[InvoiceLine]:
        """The invoice, once it says of each request what became of it."""
        return self.lines_when(lambda lines: all(line.delivered is not None for line in lines))

    @property
    def billed(self) -> list[InvoiceLine]:
        """What would be on the bill."""
        return [line for line in self.lines if line.billed]

    def wait_until_it_hangs(self) -> None:
        """Blocks until a request was received that is not going to be answered."""
        self.lines_when(lambda lines: any(line.outcome == "hung" for line in lines))

    def lines_when(self, condition: Callable[[list[InvoiceLine]], bool]) -> list[InvoiceLine]:
        """The invoice, once something can be said of it."""
        deadline = time.monotonic() + _PATIENCE
        while not condition(lines := read_invoice(self._invoice)):
            assert time.monotonic() < deadline, f"The invoice stays as it is: {lines}"
            time.sleep(0.01)
        return lines

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "The provider has ended; its error output says why."
        return line


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ProviderProcess]:
    """A provider that OpenAI's clients made in this test use."""
    with ProviderProcess(tmp_path / "invoice.jsonl") as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running
