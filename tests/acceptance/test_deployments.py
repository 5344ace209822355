"""`make deploy` and a worker: all jobs are deployed, run to their end, and leave no secret on the
server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType

from fastroai.ledger.entries import total_usd
from fastroai.usage import Ledger
from tests.acceptance.conftest import REPOSITORY, Command
from tests.integration.read_back import everything_stored, read_run, usd

SENTINEL = "sentinel-of-a-secret-9f4c"
SECRETS = {
    "OPENAI_API_KEY": SENTINEL,
    "FASTROAI_S3_SECRET_ACCESS_KEY": SENTINEL,
    "FASTROAI_S3_ACCESS_KEY_ID": SENTINEL,
    # With a key set, the jobs would ask OpenAI.
    "FASTROAI_MODEL": "offline",
}
DEPLOYMENTS = {
    "document-digest/daily": (6, 4),
    "licence-review/weekly": (7, 3),
    "ticket-triage/nightly": (3, 1),
}
"""Name, number of steps, and how many of them ask a model and so have a table of their own."""


@pytest.mark.usefixtures("logs_on_server")
async def test_all_jobs_are_deployed_by_one_command_and_a_worker_runs_them(
    command: Command, documents: Path, prefect_api: str
):
    pool = command(
        "prefect", "--no-prompt", "work-pool", "create", "--type", "process", "fastroai", **SECRETS
    )
    assert pool.returncode == 0, pool.stderr
    deployed = command("prefect", "--no-prompt", "deploy", "--all", **SECRETS)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    await _wait_until_scheduled(len(DEPLOYMENTS))
    tickets = documents / "tickets.csv"
    tickets.write_text("id,text\n1,The mill is closed.\n2,Who pays for the crane?\n")
    triage = {"tickets": str(tickets), "id_field": "id", "guidance": "", "results": ""}
    inputs: dict[str, dict[str, Any]] = {
        "document-digest/daily": {
            "documents": str(documents),
            "focus": "wheel",
            "max_documents": 5,
        },
        "ticket-triage/nightly": triage,
    }
    runs = {}
    async with get_client() as client:
        for name in DEPLOYMENTS:
            deployment = await client.read_deployment_by_name(name)
            _check_deployment(deployment)
            parameters = {"inputs": inputs[name]} if name in inputs else None
            run = await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
            runs[name] = run.id

    start = ["worker", "start", "--pool", "fastroai", "--run-once"]
    # Elsewhere than in the folder that the runs are in.
    readable = json.dumps([str(documents)])
    worked = command("prefect", *start, FASTROAI_READABLE=readable, **SECRETS)
    assert worked.returncode == 0, worked.stdout + worked.stderr

    for name, (steps, asking) in DEPLOYMENTS.items():
        stored = await read_run(runs[name], tasks=steps, artifacts=asking + 1)
        assert stored.flow_run.state_name == "Completed", (
            f"{name}: {stored.flow_run.state}\n{worked.stderr}"
        )
        assert set(stored.flow_run.parameters) == {"inputs"}
        of_steps = stored.rows_of_steps().values()
        assert sum(map(usd, of_steps), Decimal(0)) == usd(stored.rows()) > 0
        everything = await everything_stored(runs[name])
        assert SENTINEL not in everything
        assert stored.output().startswith("```json")
        await _check_books(runs[name], name, usd(stored.rows()))
    digest = await read_run(runs["document-digest/daily"], tasks=6)
    assert "miller" in digest.output()
    assert digest.flow_run.parameters == {"inputs": inputs["document-digest/daily"]}
    assert len((documents / "tickets.triaged.jsonl").read_text().splitlines()) == 2
    assert SENTINEL not in worked.stdout + worked.stderr


async def _wait_until_scheduled(deployments: int) -> None:
    """The server's scheduler has planned runs of each deployment; it looks for new ones every few
    seconds.
    """
    async with get_client() as client, asyncio.timeout(90):
        scheduled: set[Any] = set()
        while len(scheduled) < deployments:
            await asyncio.sleep(0.5)
            found = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=["SCHEDULED"]))
                )
            )
            scheduled = {run.deployment_id for run in found if run.auto_scheduled}


async def _check_books(flow_run_id: Any, deployment: str, cost: Decimal) -> None:
    async with Ledger.open() as ledger:
        entries = await ledger.entries(run_id=str(flow_run_id))
    assert total_usd(entries) == cost
    assert {entry.attribution.deployment for entry in entries} == {deployment}
    assert all("fastroai" in entry.attribution.flow_tags for entry in entries)


def _check_deployment(deployment: Any) -> None:
    assert deployment.description
    assert "fastroai" in deployment.tags
    assert deployment.work_pool_name == "fastroai"
    assert [schedule.active for schedule in deployment.schedules] == [True]
    assert set(deployment.parameters) == {"inputs"}
    form = deployment.parameter_openapi_schema
    [model] = form["definitions"].values()
    assert set(deployment.parameters["inputs"]) == set(model["properties"]), (
        "every field of the form is prefilled"
    )
    assert all(field.get("description") for field in model["properties"].values())
    assert SENTINEL not in json.dumps(deployment.model_dump(mode="json"))


def test_the_entrypoints_are_flows_named_after_their_pipelines():
    from prefect import Flow

    from deployments import entrypoints

    for deployment in _prefect_yaml()["deployments"]:
        flow = getattr(entrypoints, deployment["entrypoint"].partition(":")[2])
        assert isinstance(flow, Flow)
        assert flow.name == deployment["entrypoint"].partition(":")[2].replace("_", "-")
        assert flow.fn.__module__ == "deployments.entrypoints"
        assert flow.description


def test_what_is_deployed_is_every_job_there_is():
    entrypoints = {d["entrypoint"].partition(":")[2] for d in _prefect_yaml()["deployments"]}
    jobs = {
        path.stem
        for path in (REPOSITORY / "flows").glob("*.py")
        if re.search(r"^pipeline\b.*= Pipeline\(", path.read_text(), re.MULTILINE)
    }
    assert entrypoints == jobs


def test_prefilled_parameters_fit_the_input_models():
    from importlib import import_module

    for deployment in _prefect_yaml()["deployments"]:
        pipeline = import_module(f"flows.{deployment['entrypoint'].partition(':')[2]}").pipeline
        assert pipeline.validate_input(deployment["parameters"]["inputs"])


def test_the_file_names_no_path_of_a_machine():
    text = (REPOSITORY / "prefect.yaml").read_text()
    assert "{{ $PWD }}" in text
    assert str(REPOSITORY) not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], r"fastroai run flows\.document_digest:pipeline *$"),
        (["run", "DOCS=/a b"], r'flows\.document_digest:pipeline "documents=\$DOCS"'),
        (["run", "FLOW=ticket_triage"], r"fastroai run flows\.ticket_triage:pipeline *$"),
        (["run", "FLOW=licence_review"], r"fastroai run flows\.licence_review:pipeline *$"),
        (
            ["deploy"],
            r"work-pool create --type process fastroai[\s\S]*prefect --no-prompt deploy --all",
        ),
    ],
)
def test_make_runs_what_the_readme_says(arguments: list[str], said: str, tmp_path: Path):
    # `-o` treats the installation as done.
    environment = os.environ | {"VENV": str(tmp_path)}
    done = subprocess.run(
        ["make", "-n", "-o", f"{tmp_path}/.installed", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout, re.MULTILINE), done.stdout


def _prefect_yaml() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "prefect.yaml").read_text()))
