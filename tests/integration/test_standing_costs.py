"""The standing cost artifacts: what they say, and that what was written last is never older than
what was written before.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort

from fastroai import Pipeline, StepContext, step
from fastroai.database.engine import database_url, open_database
from fastroai.database.location import ledger_url
from fastroai.errors import StepExecutionError
from fastroai.executors._prefect.artifacts import ArtifactWriter, artifact_key
from fastroai.executors._prefect.standing_costs import StandingCosts, standing_key
from fastroai.executors._prefect.standing_tables import Overview
from fastroai.leases.heartbeat import Heartbeat
from fastroai.leases.latest import show_latest
from fastroai.leases.table import LeaseRequest, LeaseTable
from fastroai.ledger.recent import EndedRun
from fastroai.ledger.store import open_store
from fastroai.settings import load_settings
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.integration.read_back import everything_stored
from tests.support.ledger_entries import charged
from tests.support.models import COST, counted_agent
from tests.support.prefect_proxy import ArtifactProxy
from tests.support.prefect_server import prefect_settings

NOW = datetime(2026, 3, 12, 15, tzinfo=UTC)  # a Thursday
USD = Decimal(COST) / 1_000_000


@step
async def asks(context: StepContext[Any]) -> str:
    answer = await context.run(context.deps, "Go on.")
    if context.get_input("fails"):
        raise ValueError("after the answer")
    return str(answer.content)


def pipeline_of(name: str) -> Pipeline[Any, Any, str]:
    return Pipeline(name, {"asks": asks}, executor="prefect")


async def versions(key: str) -> list[Artifact]:
    """The last versions of an artifact, the oldest first: what all runs on a server write has more
    than a page of them.
    """
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            sort=ArtifactSort.CREATED_DESC,
        )
    return sorted(found, key=lambda artifact: artifact.created or NOW)


def shown(artifact: Artifact) -> tuple[int, list[Decimal]]:
    """How many requests there were in all, and what the last runs cost."""
    text = artifact.description or ""
    rows = re.findall(r"^\| \[.*$", text, re.MULTILINE)
    amounts = [Decimal(cell) for row in rows for cell in re.findall(r"\| ([\d.]+) \| 1 \|", row)]
    return int(re.findall(r"for (\d+) requests?", text)[0]), amounts


async def test_runs_that_end_at_once_are_all_in_what_was_written_last(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    agent, _ = counted_agent()
    name = f"at once {uuid4().hex[:6]}"
    runs = [pipeline_of(name).execute({}, agent) for _ in range(5)]
    failing = pipeline_of(name).execute({"fails": True}, agent)
    *results, failure = await asyncio.gather(*runs, failing, return_exceptions=True)
    assert isinstance(failure, StepExecutionError)
    written = await versions(standing_key(name))
    requests, amounts = shown(written[-1])
    assert requests == 6
    assert amounts == [USD] * 6
    async with Ledger.open() as ledger:
        [total] = await ledger.totals(pipeline=name)
    assert sum(amounts) == total.cost_usd
    counts = [shown(artifact)[0] for artifact in written]
    assert counts == sorted(counts)
    last = written[-1].description or ""
    assert last.count("| completed |") == 5
    assert last.count("| failed |") == 1
    for result in results:
        assert not isinstance(result, BaseException)
        assert f"/runs/flow-run/{result.run_id})" in last
    of_all = await versions(standing_key(None))
    assert any(f"| {name} |" in (artifact.description or "") for artifact in of_all)


async def test_a_run_that_asked_nothing_renews_nothing(prefect_api: str) -> None:
    @step
    async def asks_nothing(context: StepContext[Any]) -> int:
        return 1

    name = f"asks-nothing-{uuid4().hex[:6]}"
    quiet: Pipeline[Any, Any, int] = Pipeline(name, {"n": asks_nothing}, executor="prefect")
    await quiet.execute({}, None)
    assert await versions(standing_key(name)) == []


async def test_a_server_that_takes_no_artifact_is_warned_of_and_nothing_is_raised(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fastroai.executors")
    settings = load_settings()
    store = await open_store(ledger_url(settings))
    logger.addHandler(handler)
    try:
        with (
            ArtifactProxy(prefect_server, refusals=100) as proxy,
            prefect_settings(proxy.url, tmp_path / "results", monkeypatch),
        ):
            proxy.status = 400
            async with ArtifactWriter(15) as artifacts:
                costs = StandingCosts(store, settings, artifacts)
                artifacts.beside(costs.renew(ended("r", 0), uuid4()))
    finally:
        logger.removeHandler(handler)
        await store.close()
    assert len(messages) == 1
    assert "standing costs" in messages[0]
    assert proxy.passed == 0


@pytest.mark.usefixtures("logs_on_server")
async def test_a_secret_among_tags_names_and_errors_of_a_run_is_nowhere_on_the_server(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "sentinel-of-the-shop-4c21"
    monkeypatch.setenv("SHOP_API_KEY", secret)
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")

    @step
    async def tells(context: StepContext[Any]) -> str:
        await context.run(context.deps, secret)
        raise ValueError(f"refused with {secret}")

    name = f"planted {uuid4().hex[:6]}"
    planted: Pipeline[Any, Any, str] = Pipeline(name, {"t": tells}, executor="prefect")
    agent, _ = counted_agent()
    with pytest.raises(StepExecutionError) as failure:
        await planted.execute({"key": secret}, agent, tags={"customer": secret})
    assert failure.value.partial_result is not None
    run_id = failure.value.partial_result.run_id
    assert run_id is not None
    [written] = await versions(standing_key(name))
    assert "customer=\\*\\*\\*" in str(written.data)
    assert secret not in await everything_stored(run_id)


def test_no_table_of_a_run_or_step_has_the_key_of_a_standing_artifact() -> None:
    names = ["a", "costs", "pipeline-costs-a", "pipeline costs", "日本", "a--b"]
    standing = {standing_key(name) for name in (None, *names)}
    tables = {artifact_key(name, step) for name in names for step in (None, "a", "costs")}
    assert len(standing) == len(names) + 1
    assert not standing & tables


@pytest.fixture
def heartbeats(tmp_path: Path) -> Iterator[list[Heartbeat]]:
    """Of several processes that share a ledger."""
    url = database_url(f"sqlite:///{tmp_path / 'ledger.db'}")
    running = [Heartbeat(LeaseTable(open_database(url, writes=True))) for _ in range(4)]
    yield running
    for heartbeat in running:
        heartbeat.stop(10)


def claim() -> LeaseRequest:
    return LeaseRequest(kind="artifact", name="costs", seconds=60)


async def test_who_comes_while_another_shows_an_older_state_waits_and_one_of_them_shows_all(
    heartbeats: list[Heartbeat],
) -> None:
    state, written = 0, list[int]()
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        read = state
        reading.set()
        await go_on.wait()
        written.append(read)

    async def quick() -> None:
        read = state
        await asyncio.sleep(0.2)  # as long as others look several times
        written.append(read)

    first = asyncio.create_task(show_latest(heartbeats[0], claim(), slow))
    await reading.wait()
    state = 3  # all of them have booked what they spent
    others = [asyncio.create_task(show_latest(h, claim(), quick)) for h in heartbeats[1:]]
    await asyncio.sleep(0.2)
    assert written == []
    go_on.set()
    assert await first
    assert sum(await asyncio.gather(*others)) == len(written) - 1
    assert written[0] == 0
    assert set(written[1:]) == {3}


async def test_a_state_is_read_again_where_the_turn_was_lost_while_it_was_shown(
    heartbeats: list[Heartbeat], tmp_path: Path
) -> None:
    mine, calls = claim(), list[int]()
    url = database_url(f"sqlite:///{tmp_path / 'ledger.db'}")
    table = LeaseTable(open_database(url, writes=True))

    async def show() -> None:
        calls.append(1)
        if len(calls) == 1:
            table.release(mine.token)  # as if another had taken it, and was done
            await asyncio.wrap_future(heartbeats[0].confirm())

    assert await show_latest(heartbeats[0], mine, show)
    assert len(calls) == 2
    table.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_ledger"))


async def overview(url: str, pipeline: str | None, *runs: EndedRun) -> Overview:
    store = await open_store(url)
    try:
        for run in runs:
            store.note_end(run)
        # As a run reads them: of its pipeline and of all at once.
        since = NOW - timedelta(days=13, hours=15)
        both = dict.fromkeys((pipeline, None))
        recent, *_ = await store.recent(tuple(both), since, 3)
    finally:
        await store.close()
    return Overview(pipeline, recent, NOW, lambda run_id: f"/{run_id}")


def ended(run_id: str, minutes: int, outcome: str = "completed") -> EndedRun:
    at = NOW - timedelta(minutes=minutes)
    return EndedRun(
        run_id=run_id, name=f"name_{run_id}", pipeline="p", outcome=outcome, ended_at=at
    )


def sent(days: int, usd: str, **at: Any) -> LedgerEntry:
    """A request of some days ago."""
    attribution = {"run_id": "r1", "pipeline": "p", "deployment": "p/nightly"} | at
    entry = charged(usd, **attribution)
    return replace(entry, sent_at=NOW - timedelta(days=days), model_asked="openai:m")


async def test_sums_by_day_deployment_model_and_tag_stand_beside_those_of_the_week_before(
    url: str,
) -> None:
    entries = [
        sent(0, "0.3", tags={"team": "search"}),
        sent(6, "0.1", run_id="r2", deployment=None),
        sent(7, "0.2", run_id="r0"),
        sent(14, "9", run_id="r0"),
        sent(0, "5", run_id="q", pipeline="other"),
    ]
    async with Ledger.open(url) as ledger:
        for entry in entries:
            await ledger.append(entry)
    runs = [ended("r0", 9), ended("r2", 8), ended("r1", 7, "failed"), ended("r1", 2), ended("x", 1)]
    view = await overview(url, "p", *runs)
    first, second = view.first_look, view.second_look
    assert "**p**: **$0.4** in the last 7 days for 2 requests, $0.2 in the 7 before (▲ 100 %)" in (
        first
    )
    shown_runs = [line.split(" | ") for line in first.splitlines() if line.startswith("| [")]
    assert [row[:3] for row in shown_runs] == [
        ["| [name\\_x](/x)", "0", "0"],
        ["| [name\\_r1](/r1)", "0.3", "1"],
        ["| [name\\_r2](/r2)", "0.1", "1"],
    ]
    assert [row[3] for row in shown_runs] == ["completed"] * 3
    bar = "█" * 20
    assert f"| today | 0.3 | {bar} | 1 | 0.2 | ▲ 50 % |" in first
    assert "| Fri 06 Mar | 0.1 | ███████░░░░░░░░░░░░░ | 1 | 0 | new |" in first
    assert f"| p/nightly | 0.3 | {bar} | 1 | 0.2 | ▲ 50 % |" in second
    assert "| none | 0.1 | ███████░░░░░░░░░░░░░ | 1 | 0 | new |" in second
    assert f"| openai:m | 0.4 | {bar} | 2 | 0.2 | ▲ 100 % |" in second
    assert f"| team=search | 0.3 | {bar} | 1 | 0 | new |" in second
    assert "By pipeline" not in second
    everything = await overview(url, None)
    assert f"| other | 5 | {bar} | 1 | 0 | new |" in everything.second_look


async def test_deployments_of_one_name_in_two_flows_are_two_rows_of_each_table(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    spent = {"digest/daily": "0.1", "triage/daily": "0.3"}
    async with Ledger.open(url) as ledger:
        for name, usd in spent.items():
            await ledger.append(sent(0, usd, run_id=name, deployment=name))
    runs = [replace(ended(name, 1), deployment=name) for name in spent]
    for pipeline in ("p", None):
        view = await overview(url, pipeline, *runs)
        last = [line for line in view.first_look.splitlines() if line.startswith("| [")]
        assert [(row.split(" | ")[-1], row.split(" | ")[-5]) for row in last] == [
            (f"{name} |", usd) for name, usd in spent.items()
        ]
        by_deployment = re.findall(r"^\| (\w+/daily) \| ([\d.]+) \|", view.second_look, re.M)
        assert by_deployment == [("triage/daily", "0.3"), ("digest/daily", "0.1")]


async def test_what_is_unknown_is_told_apart_and_names_are_plain_text_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", "key-of-the-search-service-77")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    tags = {"a|b": "*c*", "leak": "key-of-the-search-service-77"}
    async with Ledger.open(url) as ledger:
        await ledger.append(sent(0, "0.3", tags=tags))
        priceless = replace(sent(0, "0", tags=tags), state=EntryState.UNPRICED, cost_usd=None)
        await ledger.append(priceless)
    view = await overview(url, "p", ended("r1", 1))
    assert "0.3 + 1 unknown" in view.first_look
    assert "| a\\|b=\\*c\\* | 0.3 + 1 unknown |" in view.second_look
    assert "key-of-the-search-service-77" not in view.first_look + view.second_look
    assert "leak=\\*\\*\\*" in view.second_look


async def test_beyond_ten_groups_the_rest_is_one_row_that_completes_the_sum(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with Ledger.open(url) as ledger:
        for number in range(13):
            entry = sent(0, f"0.{number + 10}", deployment=f"p/d{number:02}")
            await ledger.append(entry)
    text = (await overview(url, "p")).second_look
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| p/d")]
    [rest] = [line.split(" | ") for line in text.splitlines() if "others" in line]
    assert len(rows) == 10
    assert rest[:2] == ["| 3 others", "0.33"]
    assert sum(Decimal(row[1]) for row in [*rows, rest]) == Decimal("2.08")
