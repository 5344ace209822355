"""Triage of the tickets in a file: what is read, what is written, what is refused before any
request.
"""

from __future__ import annotations

import csv
import json
import tracemalloc
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastroai import PipelineResult, StepExecutionError
from fastroai.errors import InputValidationError
from flows.row_files import RowFileError, written_rows
from flows.tickets import TicketFile
from tests.support.s3 import S3Service

ROWS = [
    {"id": "a", "subject": "Charged twice", "text": "A billing question. Please refund it."},
    {"id": "b", "subject": "App crashes", "text": "A bug of high urgency: the app crashes."},
    {"id": "c", "subject": "", "text": ""},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, path.read_text().splitlines()))


async def triaged(**inputs: Any) -> PipelineResult[Any]:
    # Imported where no key of the machine is set, so that it is offline.
    pipeline = import_module("flows.ticket_triage").pipeline
    return await pipeline.with_executor("memory").execute(inputs)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
async def test_each_ticket_has_a_row_beside_the_input_also_one_that_failed(
    tmp_path: Path, form: str
):
    write = write_csv if form == "csv" else write_jsonl
    source = write(tmp_path / f"tickets.{form}", ROWS)
    result = await triaged(tickets=str(source))
    report = result.output
    assert (report.triaged, report.failed) == (2, 1)
    assert report.categories == {"billing": 1, "bug": 1}
    assert "has no text" in report.failures["c"]
    assert report.results == str(tmp_path / "tickets.triaged.jsonl")
    first, second, failed = read_jsonl(tmp_path / "tickets.triaged.jsonl")
    assert (first["id"], first["category"], first["error"]) == ("a", "billing", None)
    assert "refund" in first["reply"] + first["summary"]
    assert (second["id"], second["urgency"]) == ("b", "high")
    assert (failed["id"], failed["category"]) == ("c", None)
    assert "has no text" in failed["error"]
    assert len(result.entries) == 2


async def test_the_guidance_reaches_the_model(tmp_path: Path):
    source = write_jsonl(tmp_path / "tickets.jsonl", ROWS[:1])
    model = import_module("flows.ticket_triage").triager.agent.model
    before = len(model.prompts)
    await triaged(tickets=str(source), guidance="Refunds go to Ann.")
    assert "Refunds go to Ann." in model.prompts[before]


async def test_the_sample_is_triaged(tmp_path: Path):
    inputs = import_module("flows.ticket_triage").TriageInput()
    sample = Path(__file__).parents[2] / inputs.tickets
    target = tmp_path / "found.jsonl"
    report = (await triaged(tickets=str(sample), results=str(target))).output
    assert report.failed == 0
    assert [row["id"] for row in read_jsonl(target)] == [row["id"] for row in read_jsonl(sample)]
    assert len(report.categories) > 3
    assert len(report.urgencies) > 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"id": "a"}\n{"id": "a"}\n', "rows 1 and 2 have the same 'id', 'a'"),
        ("t.jsonl", '{"id": 1}\n{"ID": 2}\n', "row 2: no text or whole number as 'id'.* ID"),
        ("t.jsonl", '{"id": 1}\n{"id": \n', "after row 1: Expecting value"),
        ("t.jsonl", '{"id": 1}\n[1]\n', "after row 1: a list is no JSON object"),
        ("t.jsonl", "\n", "has no rows"),
        ("t.csv", "id,text\na,b\nc,d,e\n", "after row 1: .*more cells than the header"),
        ("t.csv", "id,text\na,b\n,d\n", "row 2: no text or whole number as 'id'"),
        ("t.csv", b"id,text\na,\xff\n", "after row 0: .*codec can't decode"),
        ("t.xlsx", "", "none of .jsonl, .ndjson, .csv"),
    ],
)
async def test_a_file_that_is_not_all_tickets_ends_the_run_before_any_request(
    tmp_path: Path, name: str, content: str | bytes, said: str
):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StepExecutionError, match=said) as caught:
        await triaged(tickets=str(path))
    assert caught.value.step_id == "tickets"
    assert isinstance(caught.value.original_error, InputValidationError)
    assert isinstance(caught.value.partial_result, PipelineResult)
    assert caught.value.partial_result.entries == ()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"tickets": "absent.jsonl"}, "no file '.*absent.jsonl'. Correct the path"),
        ({"tickets": "https://example.org/t.csv"}, "is no place: give a path"),
        ({"tickets": "s3://t.csv"}, "names no object"),
        ({"results": "found.txt"}, "none of .jsonl and .parquet"),
        ({"results": "absent/found.jsonl"}, "'.*absent' is no folder, or not writable"),
    ],
)
async def test_a_place_that_can_not_be_used_is_named_with_what_to_give(
    tmp_path: Path, inputs: dict[str, str], said: str
):
    source = write_jsonl(tmp_path / "tickets.jsonl", ROWS)
    with pytest.raises(StepExecutionError, match=said):
        await triaged(**({"tickets": str(source)} | inputs))


@pytest.mark.parametrize("field", ["tickets", "results"])
async def test_a_run_reads_and_writes_only_where_it_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
):
    (tmp_path / "in").mkdir()
    source = write_jsonl(tmp_path / "in" / "tickets.jsonl", ROWS[:1])
    monkeypatch.setenv("FASTROAI_READABLE", json.dumps([str(tmp_path / "in")]))
    await triaged(tickets=str(source))
    elsewhere = write_jsonl(tmp_path / "tickets.jsonl", ROWS[:1])
    before = elsewhere.read_bytes()
    with pytest.raises(StepExecutionError, match="not among what this run may read"):
        await triaged(**({"tickets": str(source)} | {field: str(elsewhere)}))
    assert elsewhere.read_bytes() == before


async def test_parquet_needs_pyarrow_which_is_said_before_any_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flows.row_files.find_spec", lambda name: None)
    source = write_jsonl(tmp_path / "tickets.jsonl", ROWS)
    with pytest.raises(StepExecutionError, match="needs pyarrow, which is not installed"):
        await triaged(tickets=str(source), results=str(tmp_path / "found.parquet"))


async def test_with_pyarrow_results_may_be_parquet(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    source = write_jsonl(tmp_path / "tickets.jsonl", ROWS)
    await triaged(tickets=str(source), results=str(tmp_path / "found.parquet"))
    rows = parquet.read_table(tmp_path / "found.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["category"] for row in rows] == ["billing", "bug", None]


def test_results_are_there_as_a_whole_or_not_at_all(tmp_path: Path):
    target = write_jsonl(tmp_path / "found.jsonl", [{"id": "before"}])

    def write_some() -> None:
        with written_rows(str(target), ("id",)) as rows:
            rows.add({"id": "a"})
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        write_some()
    assert read_jsonl(target) == [{"id": "before"}]
    assert list(tmp_path.iterdir()) == [target]


async def test_a_large_file_is_never_held_as_a_whole(tmp_path: Path):
    rows = [{"id": n, "text": f"{n} " + "x" * 10_000} for n in range(2000)]
    tickets = TicketFile(str(write_jsonl(tmp_path / "tickets.jsonl", rows)), "id")
    del rows
    tracemalloc.start()
    try:
        read = [ticket.id async for ticket in tickets]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == [str(n) for n in range(2000)]
    assert most < 8_000_000  # of 20 MB


@pytest.fixture
def bucket(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


async def test_tickets_in_s3_are_triaged_beside_them(bucket: S3Service, tmp_path: Path):
    source = write_csv(tmp_path / "t.csv", ROWS)
    bucket.client.upload_file(str(source), bucket.bucket, "in/t.csv")
    report = (await triaged(tickets=f"s3://{bucket.bucket}/in/t.csv")).output
    assert report.results == f"s3://{bucket.bucket}/in/t.triaged.jsonl"
    assert sorted(bucket.keys()) == ["in/t.csv", "in/t.triaged.jsonl"]
    rows = list(map(json.loads, bucket.read("in/t.triaged.jsonl").splitlines()))
    assert [row["id"] for row in rows] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"tickets": "s3://{bucket}/absent.csv"}, "absent.csv' can't be read: .*404"),
        ({"results": "s3://no-such-bucket-here/t.jsonl"}, "can't be written: .*NoSuchBucket"),
    ],
)
async def test_what_s3_does_not_have_is_said_before_any_request(
    bucket: S3Service, tmp_path: Path, inputs: dict[str, str], said: str
):
    source = write_jsonl(tmp_path / "tickets.jsonl", ROWS)
    given = {name: value.format(bucket=bucket.bucket) for name, value in inputs.items()}
    with pytest.raises(StepExecutionError, match=said) as caught:
        await triaged(**({"tickets": str(source)} | given))
    assert isinstance(caught.value.original_error, RowFileError)
