"""What providers answer, as data, and what each answer costs: tests/cases/answers, a file each.

The true clients get the answers from memory, at the provider's true address; nothing leaves.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fastroai import FastroAgent
from fastroai.ledger.entries import LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from tests.support.answered import answered_model

CASES = sorted((Path(__file__).parents[1] / "cases" / "answers").glob("*.json"))


def read_case(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case


async def entries_of(case: dict[str, Any]) -> tuple[LedgerEntry, ...]:
    model = answered_model(case)
    retries = {"max_retries": case["max_retries"]} if "max_retries" in case else {}
    agent: FastroAgent[str] = FastroAgent(model=model, **retries)
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        try:
            if case.get("stream"):
                async for _ in agent.run_stream("Hi"):
                    pass
            else:
                await agent.run("Hi")
        except Exception:  # what a failure costs is a case as well
            assert ledger.entries
    return ledger.entries


def fits(entries: tuple[LedgerEntry, ...], outcome: dict[str, Any]) -> bool:
    if len(entries) != len(outcome["entries"]):
        return False
    return all(
        entry.state in ("unpriced", "unsettled")
        if told["state"] == "unpriced"
        else entry.state == told["state"]
        and ("cost_usd" not in told or entry.cost_usd == Decimal(told["cost_usd"]))
        for entry, told in zip(entries, outcome["entries"], strict=True)
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
async def test_an_answer_is_booked_at_what_it_costs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_case(path)
    for name, value in case.get("environment", {}).items():
        monkeypatch.setenv(name, value)
    entries = await entries_of(case)
    outcomes = [case["expected"], *case.get("accept", [])]
    got = [(entry.state.value, entry.cost_usd, entry.error) for entry in entries]
    assert any(fits(entries, outcome) for outcome in outcomes), (got, case["why"])
    # What is not known is said, with a reason.
    assert all(entry.error for entry in entries if re.match("un", entry.state))
