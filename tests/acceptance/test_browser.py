"""What a person sees in both of Prefect's UIs: a run's cost, the standing costs, a flow's form."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ConfigDict, Field

from fastroai import Pipeline, StepContext, step
from fastroai.usage import Ledger
from tests.support.browser import Page, chromium, open_page
from tests.support.models import counted_agent
from tests.support.prefect_server import prefect_settings
from tests.support.restartable_server import RestartableServer

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium"),
]

UIS = [pytest.param("/v2", id="v2"), pytest.param("", id="v1", marks=pytest.mark.long)]


class Order(BaseModel):
    """What is ordered."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=3, max_length=20, description="What it says on the sack.")
    sacks: int = Field(default=2, ge=1, le=9, description="How many.")
    grain: Literal["rye", "oats"] = Field(default="rye", description="Which.")


@step
async def asks(context: StepContext[Any]) -> int:
    times = int(context.get_input("times"))
    for _ in range(times):
        await context.run(context.deps, "Go on.")
    return times


@step
def mills(context: StepContext[None]) -> str:
    return "flour"


asking: Pipeline[Any, Any, int] = Pipeline("asking", {"asks": asks}, executor="prefect")
milling: Pipeline[None, Order, str] = Pipeline("milling", {"mills": mills}, input_type=Order)


@dataclass(frozen=True)
class Shown:
    """What is on the server.

    Attributes:
        url: Of the UIs.
        runs: Ids of three runs, the oldest first, that asked once, twice, three times.
        total: What they cost, by the ledger; USD.
        deployment: Id of a deployment with a typed input.
    """

    url: str
    runs: list[str]
    total: Decimal
    deployment: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("browser")
    server = RestartableServer(folder / "home", shows_ui=True)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{folder / 'ledger.db'}")
            with prefect_settings(server.url, folder / "results", patch, logs=True):
                yield asyncio.run(show_on(server.url))
    finally:
        server.kill()


async def show_on(url: str) -> Shown:
    agent, _ = counted_agent()
    runs = [await asking.execute({"times": times}, agent) for times in (1, 2, 3)]
    async with Ledger.open() as ledger:
        [total] = await ledger.totals()
    flow = milling.to_flow()
    async with get_client() as client:
        deployment = await client.create_deployment(
            flow_id=await client.create_flow(flow),
            name="typed",
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            enforce_parameter_schema=True,
        )
    ids = [str(run.run_id) for run in runs]
    return Shown(url.removesuffix("/api"), ids, total.cost_usd, str(deployment))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as opened:
        yield opened


@pytest.mark.parametrize("ui", UIS)
def test_the_page_of_a_run_names_its_cost(shown: Shown, page: Page, ui: str) -> None:
    page.open(f"{shown.url}{ui}/runs/flow-run/{shown.runs[1]}")
    page.wait_for_text("$0.0004 for 2 requests")


@pytest.mark.parametrize("ui", UIS)
def test_the_standing_artifact_shows_the_last_runs_with_amounts_that_add_up_to_the_ledgers(
    shown: Shown, page: Page, ui: str
) -> None:
    page.open(f"{shown.url}{ui}/artifacts/key/pipeline-costs-asking")
    page.wait_for_text("Last runs", "By day")
    rows = page.evaluate(_ROWS)
    assert [Decimal(cost) for _, cost, *_ in rows] == list(map(Decimal, _AMOUNTS))
    assert sum(Decimal(cost) for _, cost, *_ in rows) == shown.total
    links = [link for link, *_ in rows]
    for link, run in zip(links, reversed(shown.runs), strict=True):
        assert link.endswith(f"/runs/flow-run/{run}")
    assert f"asking: ${shown.total} in the last 7 days for 6 requests" in page.text


_AMOUNTS = ["0.0006", "0.0004", "0.0002"]
_ROWS = """[...document.querySelector('table').rows].slice(1).map(row =>
  [row.querySelector('a').href, ...[...row.cells].slice(1).map(cell => cell.innerText.trim())])"""


@pytest.mark.parametrize("ui", UIS)
def test_a_form_shows_what_each_field_means_and_may_be_and_refuses_what_is_mistyped(
    shown: Shown, page: Page, ui: str
) -> None:
    page.open(f"{shown.url}{ui}/deployments/deployment/{shown.deployment}/run")
    page.wait_for_text("What it says on the sack.", "How many.", "Which.", "Sacks (Optional)")
    assert page.evaluate("document.querySelector('input[type=number]').value") == "2"
    page.click("textarea")
    page.type("F")
    page.wait_for("document.querySelector('textarea').value == 'F'")
    for _ in range(50):  # one of them takes a moment to notice what was typed
        page.click("button", "Submit")
        page.wait_for("/too short|required property/.test(document.body.innerText)")
        if "too short" in page.text:
            break
        time.sleep(0.1)
    assert "too short" in page.text
    assert asyncio.run(runs_of(shown.deployment)) == []
    if ui:  # the other one has a plain list, whose choices are in the page's text
        page.click("button", "rye")
    page.wait_for_text("oats")


async def runs_of(deployment: str) -> list[Any]:
    async with get_client() as client:
        asked = DeploymentFilter(id={"any_": [deployment]})
        return list(await client.read_flow_runs(deployment_filter=asked))
