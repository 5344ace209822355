"""An API key that a provider echoes in its error is neither stored nor logged."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.integration.read_back import everything_stored, read_run
from tests.support import forked
from tests.support.serving import serving

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-loopback-0123456789abcdefghijklmnop"

PROGRAM = """
import asyncio, json, logging, sys
from fastroai import FastroAgent, Pipeline, PipelineConfig, StepExecutionError, step
from fastroai.tracing import SimpleTracer

logging.basicConfig(level=logging.INFO)
agent = FastroAgent(model="openai-chat:gpt-5-mini", name="asks")

@step
async def first(context):
    return "fine"

@step(retries=1, retry_delay=0.0)
async def second(context):
    return (await context.run(agent, "a question")).output

pipeline = Pipeline("echoed", {"first": first, "second": second}, {"second": ["first"]})
try:
    asyncio.run(pipeline.execute({}, None, tracer=SimpleTracer()))
except StepExecutionError as error:
    logging.getLogger("mine").error("It failed", exc_info=error)
    result = error.partial_result
    entries = [repr(entry) for entry in result.entries]
    print(json.dumps({"said": str(error), "run_id": result.run_id, "entries": entries}))
"""


class _Echo(BaseHTTPRequestHandler):
    """Refuses each request, with the headers that it came with."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        echoed = {"message": f"bad key in {dict(self.headers)}", "headers": dict(self.headers)}
        body = json.dumps({"error": echoed}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def echoing_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serving(_Echo) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield


@pytest.mark.usefixtures("prefect_api", "logs_on_server", "echoing_provider")
async def test_a_key_that_a_provider_echoes_is_stored_and_logged_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "stored"))
    done = await asyncio.to_thread(
        forked.run,
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "FASTROAI_EXECUTOR": "prefect"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    assert "bad key" in done.stdout
    assert KEY not in done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    stored = await read_run(report["run_id"], tasks=2)
    assert stored.flow_run.state_name == "Failed"
    everything = await everything_stored(stored.flow_run.id)
    assert "bad key" in everything
    assert KEY not in everything
    assert files_with(b"bad key", tmp_path)
    assert files_with(KEY.encode(), tmp_path) == []


def files_with(content: bytes, folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if content in path.read_bytes()]
