"""The jobs of flows/ on a schedule: a run pays for what is new and what changed."""

from __future__ import annotations

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastroai import PipelineResult
from fastroai.executors.stored_results import read_stored_result
from fastroai.usage import EntryState
from tests.integration.read_back import read_run
from tests.support.s3 import S3Service

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(autouse=True)
def _storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))


def asked(result: PipelineResult[Any]) -> Counter[str]:
    """How many requests each step sent."""
    sent = (entry for entry in result.entries if entry.state is not EntryState.REPLAYED)
    return Counter(str(entry.attribution.step_id) for entry in sent)


async def test_a_changed_document_is_one_request_for_its_summary_and_none_changed_is_none_at_all(
    tmp_path: Path,
):
    pipeline = import_module("flows.document_digest").pipeline.with_executor("prefect")
    folder = tmp_path / "minutes"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.md").write_text(f"Plan {name} must be kept until May.")

    async def digest() -> PipelineResult[Any]:
        return await pipeline.execute({"documents": str(folder)})

    together = {"topics": 1, "open_points": 1, "digest": 1}
    assert asked(await digest()) == {"summaries": 3} | together
    assert asked(await digest()) == {}
    (folder / "b.md").write_text("Plan b was given up. Who tells the miller?")
    result = await digest()
    assert asked(result) == {"summaries": 1} | together
    assert "given up" in result.output.documents[1].summary
    assert "plan c" in result.output.documents[2].summary.lower()


@pytest.mark.long
async def test_of_a_review_only_the_packages_that_are_new_are_asked_about():
    pipeline = import_module("flows.licence_review").pipeline.with_executor("prefect")
    first = await pipeline.execute({"packages": ["boto3", "pydantic"]})
    assert asked(first) == {"duties": 2, "upkeep": 2, "review": 1}
    more = await pipeline.execute({"packages": ["boto3", "pydantic", "rich"]})
    assert asked(more) == {"upkeep": 1, "review": 1}
    [of_mit] = [duties for duties in more.output.duties if duties.licence == "MIT"]
    assert of_mit.packages == ["pydantic", "rich"]


async def test_of_tickets_in_s3_only_those_that_are_new_or_had_failed_are_asked_about(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}/results")
    triage = import_module("flows.ticket_triage")
    pipeline = triage.pipeline.with_executor("prefect")
    rows = [{"id": f"T-{n}", "text": f"Billing: invoice {n} is wrong."} for n in range(60)]
    rows[7]["text"] = ""

    async def triaged() -> PipelineResult[Any]:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        s3.client.put_object(Bucket=s3.bucket, Key="in/tickets.jsonl", Body=body)
        return await pipeline.execute({"tickets": f"s3://{s3.bucket}/in/tickets.jsonl"})

    first = await triaged()
    assert asked(first) == {"triaged": 59}
    assert (first.output.triaged, first.output.failures.keys()) == (59, {"T-7"})
    assert len(s3.results("results")) < 59  # chunks, not an object for each ticket

    rows[7]["text"], rows[8]["text"] = "A bug.", "An outage."
    second = await triaged()
    assert asked(second) == {"triaged": 2}
    assert (second.output.triaged, second.output.failed) == (60, 0)
    lines = s3.read("in/tickets.triaged.jsonl").splitlines()
    written = {row["id"]: row["category"] for row in map(json.loads, lines)}
    assert list(written) == [row["id"] for row in rows]
    assert [written[id_] for id_ in ("T-6", "T-7", "T-8")] == ["billing", "bug", "outage"]
    stored = await read_run(second.run_id, tasks=3, artifacts=2)
    assert set(stored.task_runs) == {"tickets", "triaged", "report"}
    assert "60 of 60 items done (58 replayed)" in str(stored.artifact("triaged").description)
    items = (await read_stored_result(str(second.run_id), "triaged")).content["items"]
    assert items.keys() == {row["id"] for row in rows}
    assert items["T-8"]["output"]["value"]["category"] == "outage"
