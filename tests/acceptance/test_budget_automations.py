"""`fastroai budgets automations` on a real server: a reached budget calls a webhook, cancels the
run and pauses its deployment.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from fastroai import Pipeline, PipelineConfig, StepContext, step
from fastroai.budgets import Budget
from fastroai.cli import main
from tests.integration.models import PRICE, Ask, CountingModel
from tests.support.deployed_runs import deployed, work
from tests.support.serving import serving

PATIENCE = 60.0
ALL = ("--cancel", "--pause", "--deployment", "watched/d")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a webhook, and what it was sent."""
    received: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            received.append(json.loads(self.rfile.read(length)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Hook) as url:
        yield f"{url}/hook", received


async def automations(*arguments: str, code: int = 0) -> str:
    """What `fastroai budgets automations` says, in this process."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert await asyncio.to_thread(main, ["budgets", "automations", *arguments]) == code
    return said.getvalue()


async def read(run: UUID) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
# Whose triggers work; the server that most tests share has none.
@pytest.mark.usefixtures("restartable_server")
async def test_a_reached_budget_calls_a_webhook_cancels_the_run_and_pauses_its_deployment(
    hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    url, received = hook
    agent = CountingModel().agent()
    runs: list[UUID] = []

    @step
    async def goes_on(ctx: StepContext[Any]) -> str:
        """It would go on for ever."""
        async with asyncio.timeout(PATIENCE):
            while (state := (await read(runs[0])).state_name) != "Cancelling":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return str(state)

    flow = Pipeline(
        "watched",
        {"first": Ask(agent), "second": Ask(agent, "first"), "goes_on": goes_on},
        {"second": ["first"]},
        output_step="goes_on",
        config=PipelineConfig(budget=Budget(usd=PRICE), on_error="continue"),
    ).to_flow()
    runs.append(await deployed(flow, {"topic": "t"}))

    planned = await automations("--webhook", url, *ALL, "--dry-run")
    assert planned.splitlines() == [
        "create 'fastroai-budgets-watched-d'",
        "create 'fastroai budgets of watched/d: notify'",
        "create 'fastroai budgets of watched/d: cancel'",
        "create 'fastroai budgets of watched/d: pause'",
    ]
    assert await automations("--webhook", url, *ALL) == planned
    assert await automations("--webhook", url, *ALL) == "Nothing to change.\n"
    moved = await automations("--webhook", f"{url}/moved", *ALL, "--json")
    assert json.loads(moved) == {
        "changes": [{"action": "change", "name": "fastroai-budgets-watched-d"}]
    }
    assert "change" in await automations("--webhook", url, *ALL)

    await work(flow, runs[0])
    await until(lambda: len(received) >= 2)
    by_event = {body["event"]: body for body in received}
    assert set(by_event) == {"fastroai.budget.warning", "fastroai.budget.exceeded"}
    exceeded = by_event["fastroai.budget.exceeded"]
    assert exceeded["flow_run"] == (await read(runs[0])).name
    assert exceeded["budget"]["budget"] == "watched"
    assert exceeded["budget"]["spent_usd"] == str(PRICE)
    async with get_client() as client, asyncio.timeout(PATIENCE):
        while not (await client.read_deployment_by_name("watched/d")).paused:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    kept = await automations("--webhook", "webhook/fastroai-budgets-watched-d", *ALL[2:], "--prune")
    assert kept.splitlines() == [
        "remove 'fastroai budgets of watched/d: cancel'",
        "remove 'fastroai budgets of watched/d: pause'",
    ]
    missing = await automations("--webhook", "no-such-block", code=1)
    assert "no Webhook block 'no-such-block'" in missing
    missing = await automations("--cancel", "--deployment", "no/such", code=1)
    assert "no deployment 'no/such'" in missing
