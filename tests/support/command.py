"""Runs the `fastroai` command in this process, over ledgers that a test fills."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastroai.cli import main
from fastroai.usage import Ledger, LedgerEntry


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> dict[str, list[str]]:
        """The cells of each line of the first table, by its first cell; cells must not contain
        double spaces.
        """
        lines = self.out.splitlines()
        rulers = [number for number, line in enumerate(lines) if line and set(line) <= {"-", " "}]
        shown = [line for line in lines[rulers[0] + 1 :] if line and not set(line) <= {"-", " "}]
        found: dict[str, list[str]] = {}
        for line in shown:
            first, *cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
            found[first] = cells
            if first == "total":
                break
        return found

    def headings(self) -> list[str]:
        """Those of the first table."""
        lines = self.out.splitlines()
        ruler = next(
            number for number, line in enumerate(lines) if line and set(line) <= {"-", " "}
        )
        return [cell.strip() for cell in lines[ruler - 1].split("  ") if cell.strip()]


class Books:
    """The command over one ledger in SQLite, the one of `FASTROAI_LEDGER_URL`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = folder / "ledger.db"
        self.url = f"sqlite:///{self.path}"
        self._capsys = capsys

    def book(self, entries: Iterable[LedgerEntry]) -> None:
        """Add entries."""

        async def append() -> None:
            async with Ledger.open(self.url) as ledger:
                for entry in entries:
                    await ledger.append(entry)

        asyncio.run(append())

    def costs(self, *arguments: str) -> Ran:
        """Run `fastroai costs …`."""
        return self.run("costs", *arguments)

    def run(self, *arguments: str) -> Ran:
        """Run `fastroai …`."""
        self._capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit_:
            code = int(str(exit_.code))
        captured = self._capsys.readouterr()
        return Ran(code, captured.out, captured.err)


@pytest.fixture
def books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Books:
    """The command over a ledger that is not there yet, on a terminal of 120 columns."""
    found = Books(tmp_path, capsys)
    monkeypatch.setenv("FASTROAI_LEDGER_URL", found.url)
    monkeypatch.setenv("COLUMNS", "120")
    return found
