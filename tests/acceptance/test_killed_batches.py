"""`kill -9` while batches are under way: each is submitted once, and costs what it costs once."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from fastroai.usage import Ledger
from tests.support.agreement import assert_agree
from tests.support.invoice import invoiced_usd, list_price
from tests.support.killed_batches import PROMPTS, execute_killed
from tests.support.provider_process import ProviderProcess


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
async def test_each_batch_is_submitted_and_paid_for_once(
    kills: int,
    provider: ProviderProcess,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({provider.host: "openai"}))
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    keys, hits = execute_killed(kills, random.Random(seed), tmp_path / "results", provider)
    lines = provider.lines
    asked = Counter(line.prompt for line in lines)
    assert asked == {f"{prompt} {key}": 1 for key in keys for prompt in PROMPTS}
    async with Ledger.open(url) as ledger:
        entries = await ledger.entries()
        [totals] = await ledger.totals()
    # A kill may come when a submission is booked and not yet sent: the next attempt says so.
    sent = [entry for entry in entries if not (entry.error or "").startswith("Not sent")]
    assert_agree(lines, sent, list_price)
    assert totals.cost_usd == invoiced_usd(lines, list_price)
    print(f"{hits} of {kills} kills came while a batch was under way")  # noqa: T201
