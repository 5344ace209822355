"""`fastroai run` on real documents, in memory and under Prefect: what `make run` does."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, REPOSITORY, Command
from tests.integration.read_back import read_run, usd
from tests.support import forked
from tests.support.cost_table import read_cost_table
from tests.support.provider import KEY
from tests.support.provider_process import ProviderProcess

DIGEST = ("fastroai.cli", "run", "flows.document_digest:pipeline")
QUICK = ("fastroai.cli", "run", "quick:pipeline")
STEPS = ("read", "documents", "topics", "open_points", "summaries", "digest")


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest as `quick:pipeline`, which does not try again: that takes its time."""
    (tmp_path / "quick.py").write_text(
        "from fastroai import Pipeline, PipelineConfig\n"
        "from flows.document_digest import pipeline as patient\n"
        "steps = {s: patient.steps[s] for s in ('read', 'topics')}\n"
        "pipeline = Pipeline('digest', steps, {'topics': ['read']},\n"
        "    config=PipelineConfig(retries=0), input_type=patient.input_type)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")


def test_a_digest_in_memory_shows_progress_a_result_of_its_input_and_costs_that_add_up(
    command: Command, documents: Path
):
    done = command(*DIGEST, f"documents={documents}", FASTROAI_EXECUTOR="memory")
    assert done.returncode == 0, done.stderr
    for step_id in STEPS:
        assert re.search(rf"start +{step_id}\n", done.stderr)
        assert re.search(rf"done +{step_id} \(", done.stderr)
    assert "name: harbour.txt" in done.stdout
    assert "miller must repair" in done.stdout
    table = read_cost_table(done.stdout)
    assert [line.split()[0] for line in table.lines] == list(STEPS)
    assert table.adds_up()
    assert table.usd > 0
    assert (
        "SIMULATED by an offline model, priced as openai:gpt-5-mini; nothing was paid."
        in done.stdout
    )


async def test_a_digest_under_prefect_says_where_to_look_and_its_artifacts_have_the_same_costs(
    command: Command, documents: Path, prefect_api: str
):
    done = command(*DIGEST, f"documents={documents}")
    assert done.returncode == 0, done.stderr
    table = read_cost_table(done.stdout)
    assert table.adds_up()
    base = prefect_api.removesuffix("/api")
    url = re.search(rf"{re.escape(base)}/runs/flow-run/([0-9a-f-]+)", done.stdout)
    assert url is not None
    assert f"{base}/artifacts/key/costs-document-digest" in done.stdout
    stored = await read_run(url[1], tasks=len(STEPS), artifacts=len(STEPS) - 1)
    assert stored.flow_run.state_name == "Completed"
    assert usd(stored.rows()) == table.usd
    of_steps = stored.rows_of_steps()
    assert set(of_steps) == set(STEPS) - {"read", "documents"}  # which ask no model
    assert sum(map(usd, of_steps.values()), Decimal(0)) == table.usd


# `.ci/run` sees the same of `make run`, and test_server_absence.py of a program.
@pytest.mark.long
def test_without_a_server_a_temporary_one_runs_the_job_and_the_output_says_how_to_keep_one(
    command: Command, documents: Path, tmp_path: Path
):
    home = tmp_path / "prefect"
    done = command(
        *DIGEST, f"documents={documents}", FASTROAI_EXECUTOR="prefect", PREFECT_HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert "no Prefect server is set, so a temporary one is started" in done.stderr
    assert read_cost_table(done.stdout).adds_up()
    assert f"kept in {home}" in done.stdout
    assert "prefect server start`" in done.stdout
    run_id = re.search(r"/runs/flow-run/([0-9a-f-]+)", done.stdout)
    assert run_id is not None
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        stored = database.execute(
            "SELECT state_type FROM flow_run WHERE id = ?", (run_id[1],)
        ).fetchall()
    assert stored == [("COMPLETED",)]


@pytest.mark.parametrize("executor", ["memory", pytest.param("prefect", marks=pytest.mark.long)])
def test_a_missing_path_is_one_message_and_nothing_was_sent(
    command: Command, executor: str, request: pytest.FixtureRequest
):
    if executor == "prefect":
        request.getfixturevalue("prefect_api")
    done = command(*DIGEST, "documents=/no/such/folder", "--executor", executor)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("or give s3://bucket/prefix.")
    assert "There is no file or folder '/no/such/folder'" in done.stderr
    assert "Nothing: no request was sent." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_key_is_one_message_and_costs_nothing(
    command: Command, documents: Path, provider: ProviderProcess
):
    done = command(
        *DIGEST,
        f"documents={documents}",
        FASTROAI_EXECUTOR="memory",
        OPENAI_API_KEY="wrong-key",
        OPENAI_BASE_URL=provider.base_url,
    )
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "Traceback" not in done.stderr
    assert "refused by the provider" in done.stderr
    assert done.stdout == ""
    assert provider.billed == []
    # A wrong key is not tried again: one request per document and question at most.
    assert len(provider.lines) <= 4


@pytest.mark.usefixtures("quick")
def test_a_provider_that_can_not_be_reached_is_named_with_what_to_look_at(
    command: Command, documents: Path, unused_tcp_port: int
):
    done = command(
        *QUICK,
        f"documents={documents}",
        FASTROAI_EXECUTOR="memory",
        OPENAI_API_KEY=KEY,
        OPENAI_BASE_URL=f"http://127.0.0.1:{unused_tcp_port}/v1",
    )
    assert done.returncode == 1
    assert "were not sent: ModelConnectionError" in done.stderr
    assert f"Not reached: 127.0.0.1:{unused_tcp_port}. Check the network" in done.stderr
    assert "OPENAI_BASE_URL" in done.stderr
    assert "refused by the provider" not in done.stderr


def test_no_key_is_one_message_and_nothing_was_sent(command: Command, documents: Path):
    done = command(
        *DIGEST,
        f"documents={documents}",
        FASTROAI_EXECUTOR="memory",
        FASTROAI_MODEL="openai:gpt-5-mini",
    )
    assert done.returncode == 1
    assert "OPENAI_API_KEY is not set. Set it in the environment or the file .env" in done.stderr
    assert "OpenAIProvider" not in done.stderr
    assert "Nothing: no request was sent." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("quick")
def test_a_key_in_the_dotenv_file_is_the_one_that_is_used(
    documents: Path, provider: ProviderProcess, tmp_path: Path
):
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    done = forked.run(
        [sys.executable, "-m", *QUICK, f"documents={documents}", "--executor", "memory"],
        cwd=tmp_path,
        env=os.environ | {"OPENAI_BASE_URL": provider.base_url},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert provider.billed, done.stderr
    assert "OPENAI_API_KEY" not in done.stderr
    assert "401" not in done.stderr


@pytest.mark.usefixtures("quick")
def test_with_a_key_the_job_asks_the_provider_and_is_not_simulated(
    command: Command, documents: Path, provider: ProviderProcess
):
    # The loopback provider answers in plain text, which is no structured output: what was billed is
    # shown all the same.
    done = command(
        *QUICK,
        f"documents={documents}",
        FASTROAI_EXECUTOR="memory",
        OPENAI_API_KEY=KEY,
        OPENAI_BASE_URL=provider.base_url,
    )
    assert provider.billed
    assert done.returncode == 1
    assert "SIMULATED" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
