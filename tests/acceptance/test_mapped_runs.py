"""Mapped steps between a provider with its invoice, S3 and a Prefect server: the item is what is
paid for, reused and failed.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from fastroai import FastroAgent, MappedResults, Pipeline, StepContext, StepExecutionError, step
from fastroai.testing import fixed_prices
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.integration.read_back import RunOnServer, read_run, table
from tests.support.behaviours import Answer, Refuse
from tests.support.invoice import invoiced_usd
from tests.support.provider_process import ProviderProcess
from tests.support.s3 import S3Service

MOST_TASK_RUNS, MOST_ARTIFACTS = 200, 300


def sizes(sample: int) -> pytest.MarkDecorator:
    """How many items there are: a sample of them, or all."""
    long = pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("items", [sample, long])


@pytest.fixture(autouse=True)
def ledger_url(
    prefect_api: str, s3: S3Service, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Of an empty ledger; results are kept in S3."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return url


def digest_of_all(**options: Any) -> Pipeline[Any, Any, Any]:
    """A pipeline that asks for each document of its input."""
    agent = FastroAgent(model="openai:gpt-5-mini", cost_calculator=fixed_prices(), max_retries=0)

    @step(cache_policy="inputs")
    async def summarise(context: StepContext[Any]) -> str:
        place = f"each[{context.item_key}]"
        answer: str = (await context.run(agent, f"{place}: {context.item['text']}")).output
        return answer

    return Pipeline(
        "digest", {"each": summarise.map(over="documents", key="id", **options)}, executor="prefect"
    )


def documents(number: int) -> list[dict[str, Any]]:
    return [{"id": index, "text": f"Document {index}."} for index in range(number)]


async def entries_in(ledger_url: str) -> list[LedgerEntry]:
    async with Ledger.open(ledger_url) as ledger:
        return await ledger.entries()


def states(entries: list[LedgerEntry]) -> Counter[EntryState]:
    return Counter(entry.state for entry in entries)


async def counted_on_server(run_id: str | None) -> tuple[int, int]:
    """Task runs and artifacts of a run."""
    of_run = {"flow_runs": {"id": {"any_": [run_id]}}}
    async with get_client() as client:
        tasks = await client._client.post("/task_runs/count", json=of_run)
        artifacts = await client._client.post("/artifacts/count", json=of_run)
    return int(tasks.json()), int(artifacts.json())


async def assert_the_table_adds_up(run: RunOnServer, items: int, asked: int, paid: Decimal) -> None:
    rows = table(run.artifact("each"))
    assert sum(Decimal(row["cost_usd"]) for row in rows) == paid
    assert sum(row["requests"] for row in rows) == asked
    assert sum(row["replayed"] for row in rows) == items - asked
    assert len(rows) <= 25


@sizes(100)
async def test_one_changed_document_is_one_request(
    provider: ProviderProcess, ledger_url: str, s3: S3Service, items: int
) -> None:
    pipeline, given = digest_of_all(), documents(items)
    first = await pipeline.execute({"documents": given})
    assert len(provider.lines) == items
    given[items // 2] = {"id": items // 2, "text": "Another text."}
    second = await pipeline.execute({"documents": given})

    new = provider.lines[items:]
    assert [line.prompt for line in new] == [f"each[{items // 2}]: Another text."]
    assert list(second.output) == list(first.output)
    entries = await entries_in(ledger_url)
    assert states(entries) == {EntryState.CHARGED: items + 1, EntryState.REPLAYED: items - 1}
    paid = sum((e.cost_usd or Decimal(0) for e in entries if e.is_spend), Decimal(0))
    assert paid == invoiced_usd(provider.lines)
    for result, lines in ((first, provider.lines[:items]), (second, new)):
        cost = invoiced_usd(lines)
        assert result.usage is not None
        assert result.usage.total_cost_usd == cost
        run = await read_run(result.run_id, tasks=1)
        await assert_the_table_adds_up(run, items, len(lines), cost)
        tasks, artifacts = await counted_on_server(result.run_id)
        assert tasks <= MOST_TASK_RUNS
        assert artifacts <= MOST_ARTIFACTS
    assert len(s3.keys("items/")) <= items // 2  # not an object for each


@sizes(40)
async def test_a_run_completes_without_the_few_that_fail_and_later_asks_for_them_only(
    provider: ProviderProcess, ledger_url: str, items: int
) -> None:
    failing = [1, items // 2, items - 1]
    for number in failing:
        provider.script(f"each[{number}]:", Refuse(400))
    pipeline, given = digest_of_all(max_failures=3), documents(items)
    result = await pipeline.execute({"documents": given})
    assert isinstance(result.output, MappedResults)
    assert sorted(result.output.errors, key=int) == [str(number) for number in failing]
    assert len(result.output) == items - 3
    run = await read_run(result.run_id, tasks=1)
    assert run.flow_run.state is not None
    assert run.flow_run.state.name == "Completed"
    [listed] = [a for a in run.artifacts if a.key == "failures-digest--each"]
    assert sorted(row["item"] for row in table(listed)) == sorted(map(str, failing))
    assert len(provider.lines) == items

    for number in failing:
        provider.script(f"each[{number}]:", Answer())
    again = await pipeline.execute({"documents": given})
    assert (len(again.output), len(again.output.errors)) == (items, 0)
    asked = sorted(line.prompt.partition(":")[0] for line in provider.lines[items:])
    assert asked == sorted(f"each[{number}]" for number in failing)
    assert states(await entries_in(ledger_url)) == {
        EntryState.CHARGED: items,
        EntryState.REFUSED: 3,
        EntryState.REPLAYED: items - 3,
    }


@sizes(40)
async def test_a_run_that_an_item_fails_loses_nothing_that_was_answered(
    provider: ProviderProcess, ledger_url: str, items: int
) -> None:
    failing = [items // 2, items - 2, items - 1]
    for number in failing:
        provider.script(f"each[{number}]:", Refuse(400))
    provider.script("each[", Answer(slowest=0.02))
    pipeline, given = digest_of_all(), documents(items)
    with pytest.raises(StepExecutionError) as failed:
        await pipeline.execute({"documents": given}, run_key="nightly")
    assert failed.value.partial_result is not None
    run = await read_run(failed.value.partial_result.run_id, tasks=1)
    assert run.flow_run.state is not None
    assert run.flow_run.state.is_failed()
    answered = states(await entries_in(ledger_url))[EntryState.CHARGED]
    assert items // 4 < answered < items
    refused = sum(line.outcome == "refused" for line in provider.lines)
    assert 1 <= refused <= len(failing)

    for number in failing:
        provider.script(f"each[{number}]:", Answer())
    result = await pipeline.execute({"documents": given}, run_key="nightly")
    assert len(result.output) == items
    entries = await entries_in(ledger_url)
    charged = Counter(e.attribution.item for e in entries if e.state is EntryState.CHARGED)
    assert set(charged.values()) == {1}
    assert len(charged) == items
    assert states(entries)[EntryState.REPLAYED] >= answered
    unsettled = states(entries)[EntryState.UNSETTLED]
    # What the failure cancelled may have reached the provider, or not.
    assert items + refused <= len(provider.lines) <= items + refused + unsettled
