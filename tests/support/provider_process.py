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
        invoice: The file it writes its invoice to. None: to that of `begin`.
    """

    def __init__(self, invoice: Path | None = None) -> None:
        self._invoice = invoice

    def __enter__(self) -> Self:
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.support.provider"],
            kind=forked.BARE,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._invoice is not None:
            self.begin(self._invoice)
        return self

    def begin(self, invoice: Path) -> None:
        """Be another provider, at another port, that knows nothing of the one before."""
        self._invoice = invoice
        self.host = f"127.0.0.1:{int(self._told({'invoice': str(invoice)}))}"
        """Host and port, as ledger entries name it."""

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
        command = {"prompt": prompt, "behaviours": [to_json(behaviour) for behaviour in behaviours]}
        assert self._told(command) == "scripted"

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

    def lines_when(
        self, condition: Callable[[list[InvoiceLine]], bool], patience: float = _PATIENCE
    ) -> list[InvoiceLine]:
        """The invoice, once something can be said of it, within so many seconds."""
        assert self._invoice is not None
        deadline = time.monotonic() + patience
        while not condition(lines := read_invoice(self._invoice)):
            assert time.monotonic() < deadline, f"The invoice stays as it is: {lines}"
            time.sleep(0.01)
        return lines

    def _told(self, command: object) -> str:
        """What it says to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().strip()
        assert line, "The provider has ended; its error output says why."
        return line


@pytest.fixture(scope="session")
def provider_process() -> Iterator[ProviderProcess]:
    """The process of all tests' providers, one after the other."""
    with ProviderProcess() as running:
        yield running


@pytest.fixture
def provider(
    provider_process: ProviderProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ProviderProcess:
    """A provider that OpenAI's clients made in this test use."""
    provider_process.begin(tmp_path / "invoice.jsonl")
    monkeypatch.setenv("OPENAI_BASE_URL", provider_process.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return provider_process
