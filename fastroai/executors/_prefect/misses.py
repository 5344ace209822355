"""Why a step was executed although results of it are stored: what was found, and why it did not
fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.client.schemas.objects import TaskRun
from prefect.client.schemas.sorting import TaskRunSort

from ...errors import ResultStorageError
from ...settings import FastroAISettings
from .inspection import Records, read_stored_result

LOOKED_AT = 20
"""Executions before the run that are compared with it."""


@dataclass(frozen=True, slots=True)
class StoredBefore:
    """A result that was stored before the run.

    Attributes:
        run_id: The flow run that stored it.
        step_id: Its step, which may have had another name.
        location: The storage, and the record's name in it.
        reasons: Why it did not fit, one sentence each; empty where its key is the same.
    """

    run_id: str
    step_id: str
    location: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MissExplanation:
    """What `explain_miss` found out.

    Attributes:
        run_id: The flow run.
        step_id: The step.
        state: Of its task: `Cached` says that it was no miss.
        found: Results stored before, those with the fewest reasons first.
        unknown: Results of the step that are of an older version and do not say what their keys
            are made of.
    """

    run_id: str
    step_id: str
    state: str
    found: tuple[StoredBefore, ...]
    unknown: int = 0

    def lines(self) -> Iterator[str]:
        """The explanation as text."""
        if self.state == "Cached":
            yield f"Step {self.step_id!r} was not executed: its result was replayed."
            return
        if not self.found:
            yield f"No earlier result of step {self.step_id!r} is stored."
        for before in self.found:
            yield f"{before.step_id!r} of run {before.run_id} is stored at {before.location}:"
            yield from (f"  {reason}" for reason in before.reasons or (_SAME_KEY,))
        if self.unknown:
            yield f"{self.unknown} older results do not say what their keys are made of."


_SAME_KEY = "Its key is the same: it had expired, was not valid, or was stored too late."
_REASONS = {
    "fingerprint": "The step's code, prompts, model or configuration changed.",
    "inputs": "The run had another input.",
    "scope": "`cache_scope` was {then!r} and is {now!r}.",
    "pipeline": "The pipeline was named {then!r}: PipelineConfig(formerly={then!r}) finds it.",
    "step_id": "The step was named {then!r}: StepConfig(formerly={then!r}) finds it.",
    "run": "It is of another run, and cache_policy='run' keeps results for their own run.",
    "format": "It was stored by another version of fastroai.",
}


async def explain_miss(
    run: str, step_id: str, *, settings: FastroAISettings, storage: object = None
) -> MissExplanation:
    """See `fastroai.executors.stored_results.explain_miss`."""
    own = await read_stored_result(run, step_id, settings=settings, storage=storage)
    key = own.content.get("key")
    if key is None:
        raise ResultStorageError(
            f"The result of step {step_id!r} of run {own.run_name!r} does not say what its key is "
            "made of: an older version stored it, or its cache_policy is Prefect's."
        )
    found: list[StoredBefore] = []
    unknown = 0
    async with get_client() as client:
        earlier = await earlier_tasks(client, own.run_id, key["identity"]["pipeline"], step_id)
    records = Records(settings, storage)
    for task_run in earlier:
        try:
            location, content = await records.of(task_run)
        except ResultStorageError:
            continue  # deleted since
        then = content.get("key")
        if then is None:
            unknown += task_run.name == step_id
            continue
        reasons = tuple(differences(then, key))
        # Another step of the pipeline is of interest only where it may be this one by another name.
        is_same_code = then["identity"]["fingerprint"] == key["identity"]["fingerprint"]
        if task_run.name == step_id or is_same_code:
            run_id = str(task_run.flow_run_id)
            found.append(StoredBefore(run_id, task_run.name, location, reasons))
    found.sort(key=lambda before: len(before.reasons))
    return MissExplanation(own.run_id, step_id, own.state, tuple(found), unknown)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before, after = {**then, **then["identity"]}, {**now, **now["identity"]}
    for name, reason in _REASONS.items():
        if before.get(name) != after.get(name):
            yield reason.format(then=before.get(name), now=after.get(name))
    yield from differences_of_outputs(before["dependencies"], after["dependencies"])


def differences_of_outputs(
    outputs_then: Mapping[str, str], outputs: Mapping[str, str]
) -> Iterator[str]:
    """How what a step depends on was otherwise, by the digests of its outputs."""
    for step_id, output in outputs.items():
        if step_id not in outputs_then:
            yield f"It did not depend on step {step_id!r}, or that had another name."
        elif outputs_then[step_id] != output:
            yield f"Step {step_id!r}, which it depends on, gave another output."
    for step_id in outputs_then.keys() - outputs.keys():
        yield f"It depended on step {step_id!r}."


async def earlier_tasks(
    client: PrefectClient, run_id: str, pipeline: str, step_id: str
) -> list[TaskRun]:
    """Executions of the step in any pipeline, and of any step in the pipeline, but for the run's
    own.
    """
    of_step = TaskRunFilter(name=TaskRunFilterName(any_=[step_id]))
    of_pipeline = FlowFilter(name=FlowFilterName(any_=[pipeline]))
    not_this = FlowRunFilter.model_validate({"id": {"not_any_": [run_id]}})
    latest = partial(
        client.read_task_runs,
        flow_run_filter=not_this,
        sort=TaskRunSort.EXPECTED_START_TIME_DESC,
        limit=LOOKED_AT,
    )
    found = [*await latest(task_run_filter=of_step), *await latest(flow_filter=of_pipeline)]
    return list({task_run.id: task_run for task_run in found}.values())
