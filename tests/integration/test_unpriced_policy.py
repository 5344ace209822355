"""`FASTROAI_UNPRICED`: a request whose price is unknown is sent and booked so, or never leaves."""

from __future__ import annotations

import pytest

from fastroai import FastroAgent
from fastroai.errors import SettingsError, UnknownModelPriceError
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from tests.support.behaviours import Answer
from tests.support.provider_process import ProviderProcess

# Nobody's list has the prices of what a local endpoint serves.
MODEL = "openai:gpt-5-mini"


@pytest.fixture(autouse=True)
def answering(provider: ProviderProcess) -> None:
    provider.script("Hi", Answer("Hello!"))


async def ask() -> RequestRecorder:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        await FastroAgent(model=MODEL).run("Hi")
    return ledger


@pytest.mark.parametrize("chosen", [None, "warn"])
async def test_by_default_it_is_sent_and_booked_as_unpriced(
    provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    if chosen is not None:
        monkeypatch.setenv("FASTROAI_UNPRICED", chosen)
    [entry] = (await ask()).entries
    assert entry.state == "unpriced"
    assert len(provider.lines) == 1


async def test_with_fail_nothing_is_sent_or_booked(
    provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_UNPRICED", "fail")
    ledger = RequestRecorder()
    with (
        DispatchScope(ledger),
        pytest.raises(UnknownModelPriceError, match="FASTROAI_PROVIDER_HOSTS"),
    ):
        await FastroAgent(model=MODEL).run("Hi")
    assert ledger.entries == ()
    assert provider.lines == []


async def test_with_fail_a_price_that_is_known_lets_it_pass(
    provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_UNPRICED", "fail")
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1": "openai"}')
    [entry] = (await ask()).entries
    assert entry.state == "charged"
    assert len(provider.lines) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FASTROAI_UNPRICED", "maybe"), ("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8000": "acme"}')],
)
async def test_a_bad_setting_is_told_before_anything_is_sent(
    provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        await ask()
    assert provider.lines == []
