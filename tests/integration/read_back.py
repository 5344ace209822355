"""What a Prefect server says of a run, read back through its API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED

from fastroai.executors._prefect.table_layout import HEADS

PATIENCE = 30.0
"""Seconds after which what a run sent to the server should have been stored there."""


@dataclass
class RunOnServer:
    """One flow run with its task runs by name and its artifacts by key."""

    flow_run: FlowRun
    flow_name: str
    task_runs: dict[str, TaskRun]
    artifacts: list[Artifact]
    all_task_runs: list[TaskRun] = field(default_factory=list)

    def edges(self) -> set[tuple[str, str]]:
        """`(upstream, downstream)` as the server stores them."""
        names = {task_run.id: task_run.name for task_run in self.all_task_runs}
        return {
            (names[upstream.id], task_run.name)
            for task_run in self.all_task_runs
            for inputs in task_run.task_inputs.values()
            for upstream in inputs
            if hasattr(upstream, "id")
        }

    def artifact(self, step_id: str | None = None) -> Artifact:
        """The cost table of a step's task run, or of the run."""
        task_run_id = self.task_runs[step_id].id if step_id is not None else None
        found = [artifact for artifact in self.cost_tables() if artifact.task_run_id == task_run_id]
        assert len(found) == 1, (
            f"{len(found)} tables of {step_id!r} among {[a.key for a in self.artifacts]}"
        )
        return found[0]

    def cost_tables(self) -> list[Artifact]:
        """The artifacts about costs: Prefect notes results as artifacts too, without a key."""
        return [
            artifact for artifact in self.artifacts if (artifact.key or "").startswith("costs-")
        ]

    def output(self) -> str:
        """What the run published of its output."""
        [published] = [str(a.data) for a in self.artifacts if (a.key or "").startswith("output-")]
        return published

    def rows(self, step_id: str | None = None) -> list[dict[str, Any]]:
        """The rows of that table."""
        return table(self.artifact(step_id))

    def rows_of_steps(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each step that has a table: those that asked something."""
        with_table = {artifact.task_run_id for artifact in self.cost_tables()}
        asked = [step_id for step_id, run in self.task_runs.items() if run.id in with_table]
        return {step_id: self.rows(step_id) for step_id in asked}


async def read_run(
    flow_run_id: str | UUID | None, *, tasks: int, artifacts: int | None = None
) -> RunOnServer:
    """A run, once the server has stored that many ended task runs and artifacts of it.

    Task runs reach the server as events, some time after the run has ended.
    """
    assert flow_run_id is not None
    id_ = UUID(str(flow_run_id))
    async with get_client() as client, asyncio.timeout(PATIENCE):
        flow_run = await client.read_flow_run(id_)
        flow = await client.read_flow(flow_run.flow_id)
        while True:
            found = await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id={"any_": [id_]}), limit=200
            )
            if len(found) >= tasks and all(t.state is not None and _ended(t) for t in found):
                break
            await asyncio.sleep(0.1)
        tables = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[id_])),
            limit=200,
        )
        flow_run = await client.read_flow_run(id_)
    run = RunOnServer(flow_run, flow.name, {t.name: t for t in found}, list(tables), list(found))
    if artifacts is not None:
        assert len(run.cost_tables()) == artifacts, [a.key for a in tables]
    return run


def table(artifact: Artifact) -> list[dict[str, Any]]:
    """The rows of a table but for its total, by the names of their columns. Amounts and counts that
    it does not show are zero.
    """
    rows = json.loads(artifact.data) if isinstance(artifact.data, str) else artifact.data
    names = {head: name for name, head in HEADS.items()}
    nothing = {name: "0" if name.endswith("_usd") else 0 for name in HEADS}
    found = [
        nothing | {names.get(head, head): value for head, value in row.items()} for row in rows
    ]
    return [row for row in found if "total" not in (row["step"], row["item"])]


def _ended(task_run: TaskRun) -> bool:
    assert task_run.state is not None
    return task_run.state.is_final() or task_run.state.name == "NotReady"


async def graph_of(flow_run_id: str | None) -> dict[str, set[str]]:
    """The run's graph as the UI draws it: for each node its parents, by name."""
    async with get_client() as client:
        response = await client._client.get(f"/flow_runs/{flow_run_id}/graph-v2")
    nodes = dict(response.raise_for_status().json()["nodes"])
    labels = {id_: node["label"] for id_, node in nodes.items()}
    return {
        labels[id_]: {labels[parent["id"]] for parent in node["parents"]}
        for id_, node in nodes.items()
    }


async def everything_stored(flow_run_id: str | UUID) -> str:
    """All the server knows of a run, as one text: the run, its parameters, task runs, artifacts,
    states and logs.
    """
    assert PREFECT_LOGGING_TO_API_ENABLED.value(), "the test uses the fixture logs_on_server"
    id_ = str(flow_run_id)
    of_run = {"flow_runs": {"id": {"any_": [id_]}}}
    async with get_client() as client:
        found: list[Any] = [(await client._client.get(f"/flow_runs/{id_}")).json()]
        for path, body in (
            ("/task_runs/filter", of_run),
            ("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [id_]}}}),
            ("/logs/filter", {"logs": {"flow_run_id": {"any_": [id_]}}}),
        ):
            found.append((await client._client.post(path, json=body)).raise_for_status().json())
        found.append(
            (await client._client.get("/flow_run_states/", params={"flow_run_id": id_})).json()
        )
        for task_run in found[1]:
            states = await client._client.get(
                "/task_run_states/", params={"task_run_id": task_run["id"]}
            )
            found.append(states.json())
        events = await client._client.post(
            "/events/filter",
            json={"filter": {"related": {"id": [f"prefect.flow-run.{id_}"]}}, "limit": 50},
        )
        found.append(events.raise_for_status().json())
    return json.dumps(found, ensure_ascii=False)


def usd(rows: Sequence[dict[str, Any]]) -> Decimal:
    """What is known of the cost of a table's rows."""
    known = [row["cost_usd"].partition(" + ")[0] for row in rows]
    return sum((Decimal(amount) for amount in known if amount != "unknown"), Decimal(0))
