"""A Prefect server that is not there, not one, silent, or gone during the run: seconds at most, and
nothing lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest

from fastroai import BaseStep, Pipeline, StepContext, StepExecutionError
from fastroai.database.engine import database_url, open_database
from fastroai.errors import ExecutorUnavailableError
from fastroai.executors._prefect.temporary_server import server_command
from fastroai.leases.table import LeaseRequest, LeaseTable
from tests.integration.models import PRICE, Ask, CountingModel
from tests.support import forked
from tests.support.prefect_server import IN_USED_HOME, prefect_settings, used_home
from tests.support.restartable_server import RestartableServer
from tests.support.steps import Join, WaitsForever, soon

# Not a limit on speed: left alone, Prefect's client takes minutes where ours takes seconds.
NOT_FOR_EVER = 40.0


def under_prefect(model: CountingModel) -> Pipeline[Any, Any, Any]:
    return Pipeline("absent", {"a": Ask(model.agent())}, executor="prefect")


async def refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run says to a URL where no Prefect server answers."""
    model = CountingModel()
    with (
        prefect_settings(url, tmp_path / "r", monkeypatch),
        pytest.raises(ExecutorUnavailableError) as caught,
    ):
        async with asyncio.timeout(NOT_FOR_EVER):
            await under_prefect(model).execute({"topic": "t"}, None)
    assert model.calls == 0
    assert url in str(caught.value)
    assert "prefect server start" in str(caught.value)
    assert "FASTROAI_EXECUTOR=memory" in str(caught.value)
    return str(caught.value)


async def test_a_url_where_nothing_listens_is_refused(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await refused(f"http://127.0.0.1:{unused_tcp_port}/api", tmp_path, monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on the look for a server ends in half a second."""
    monkeypatch.setattr("fastroai.executors._prefect.server.CHECK_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_a_url_that_never_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await refused(f"http://127.0.0.1:{silent.getsockname()[1]}/api", tmp_path, monkeypatch)


@pytest.fixture(
    params=[(404, "{}"), (200, "<html>a wiki</html>"), (503, "busy"), (200, "true")], ids=repr
)
def other_service(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that is no Prefect server."""
    status, body = request.param

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status if body != "true" or self.path.endswith("/health") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer  # noqa: N815  # the names http.server looks for

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("impatient")
async def test_a_url_of_another_service_is_refused(
    other_service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await refused(other_service, tmp_path, monkeypatch)


@pytest.fixture
def mortal_server(restartable_server: RestartableServer, monkeypatch: pytest.MonkeyPatch) -> int:
    """A server that may be stopped; gives the id of its process group."""
    monkeypatch.setenv("FASTROAI_ARTIFACT_TIMEOUT", "0.5")
    for module in ("server", "shutdown"):
        monkeypatch.setattr(f"fastroai.executors._prefect.{module}.ANSWER_SECONDS", 0.5)
    return restartable_server.group


class Stops(BaseStep[Any, str]):
    """Pays for an answer, and sends the server a signal."""

    def __init__(
        self, model: CountingModel, pid: int, number: int, then: BaseException | None = None
    ) -> None:
        self.agent = model.agent()
        self.pid = pid
        self.number = number
        self.then = then

    async def execute(self, context: StepContext[Any]) -> str:
        answer = await context.run(self.agent, "before the end")
        os.killpg(self.pid, self.number)
        if self.then is not None:
            raise self.then
        return answer.output


def outliving(model: CountingModel, kills: BaseStep[Any, str]) -> Pipeline[Any, Any, Any]:
    steps = {
        "first": Ask(model.agent()),
        "kills": kills,
        "after": Ask(model.agent(), "first", "kills"),
        "last": Join("after"),
    }
    dependencies = {"kills": ["first"], "after": ["first", "kills"], "last": ["after"]}
    return Pipeline("outlives", steps, dependencies, executor="prefect")


async def test_a_server_that_hangs_or_dies_during_the_run_costs_seconds_and_not_the_run(
    mortal_server: int,
):
    model = CountingModel()
    async with not_for_ever():
        result = await outliving(model, Stops(model, mortal_server, signal.SIGSTOP)).execute(
            {"topic": "t"}, None
        )
    assert result.output.startswith("last(answer:after|t|answer:first|t|answer:before the end")
    assert result.usage.total_cost_usd == 3 * PRICE

    os.killpg(mortal_server, signal.SIGCONT)
    own = ValueError("its own")
    with pytest.raises(StepExecutionError) as caught:
        async with not_for_ever():
            await outliving(model, Stops(model, mortal_server, signal.SIGKILL, own)).execute(
                {"topic": "t"}, None
            )
    assert caught.value.original_error is own
    assert caught.value.partial_result.usage.total_cost_usd == 2 * PRICE
    assert "first" in caught.value.partial_result.step_outputs


@pytest.mark.long
async def test_a_run_is_cancelled_within_seconds_while_its_server_hangs(mortal_server: int):
    model, waits = CountingModel(), WaitsForever()
    async with not_for_ever():
        running = asyncio.create_task(outliving(model, waits).execute({"topic": "t"}, None))
        await soon(waits.started.wait())
        os.killpg(mortal_server, signal.SIGSTOP)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert waits.cleaned_up


@asynccontextmanager
async def not_for_ever() -> AsyncIterator[None]:
    """Fails where Prefect's own retries were waited for; `asyncio.timeout` would end them instead
    of showing them.
    """
    began = time.monotonic()
    yield
    assert time.monotonic() - began < NOT_FOR_EVER


STOPS_ITS_SERVER = """
import asyncio, os, signal, sys
from fastroai import Pipeline, step

@step
async def stops(context):
    os.killpg(int(sys.argv[1]), signal.SIGSTOP)
    return "done"

print(asyncio.run(Pipeline("outlives", {"stops": stops}).execute({}, None)).output)
"""


async def test_a_program_whose_server_hangs_ends_all_the_same(mortal_server: int):
    command = [sys.executable, "-c", STOPS_ITS_SERVER, str(mortal_server)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    async with not_for_ever():
        done = await asyncio.to_thread(
            forked.run, command, env=environment, capture_output=True, text=True, timeout=170
        )
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0


PROGRAM = """
import asyncio
from fastroai import Pipeline, step
from prefect import get_client

@step
async def only(context):
    async with get_client() as client:
        return (await client._client.get("/admin/settings")).json()["server"]["analytics_enabled"]

print(asyncio.run(Pipeline("temporary", {"only": only}).execute({}, None)).output)
"""
"""Runs a pipeline that says whether its server phones home."""


def program(source: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run a program without a server, in the test's environment with these variables; a None unsets
    one.
    """
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "FASTROAI_"))
    }
    environment |= {
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment = {k: v for k, v in (environment | variables).items() if v is not None}
    return forked.run(
        [sys.executable, "-c", source],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def test_without_a_server_a_temporary_one_is_told_of_with_the_ways_out_and_does_not_phone_home(
    tmp_path: Path,
):
    home = used_home(tmp_path / "home")
    done = program(
        PROGRAM, PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED=None, **IN_USED_HOME
    )
    assert done.stdout.strip() == "False", done.stderr
    assert "temporary" in done.stderr
    assert "PREFECT_API_URL" in done.stderr
    assert "FASTROAI_EXECUTOR=memory" in done.stderr
    assert done.stderr.count("temporary one is started") == 1


COMMAND = """
import sys
from fastroai.cli import main
code = main({arguments!r})
import asyncio
from prefect import get_client

async def says():
    async with get_client() as client:
        return (await client._client.get("/admin/settings")).json()["server"]["analytics_enabled"]

# Who started a server has imported this, which takes a second.
server = sys.modules.get("prefect.server.api.server")
print(code, server is not None and server.SubprocessASGIServer().running and asyncio.run(says()))
"""
"""Runs the command, and says whether it started a server that phones home."""


@pytest.mark.long
def test_a_stored_result_is_looked_for_on_a_temporary_server_that_does_not_phone_home(
    tmp_path: Path,
):
    home = used_home(tmp_path / "home")
    source = COMMAND.format(arguments=["results", "show", "no-such-run", "read"])
    done = program(
        source, PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED=None, **IN_USED_HOME
    )
    assert done.stdout == "1 False\n", done.stderr
    assert done.stderr.count("temporary one is started") == 1
    assert "no flow run 'no-such-run'" in done.stderr
    # It would not help: a run in memory stores no results.
    assert "FASTROAI_EXECUTOR" not in done.stderr


async def test_runs_of_a_ledger_are_not_listed_by_a_server_started_for_it(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    table = LeaseTable(open_database(database_url(url), writes=True))
    home = {"PREFECT_HOME": str(tmp_path / "home"), "FASTROAI_LEDGER_URL": url}
    listing = COMMAND.format(arguments=["runs"])
    assert program(listing, **home).stdout == "No active or dead runs.\n0 False\n"
    run_id = str(uuid4())
    table.take(LeaseRequest(kind="flow_run", name=run_id, seconds=30))
    table.close()
    listed = program(listing, **home).stdout.splitlines()
    [line] = [line for line in listed if line.startswith(run_id)]
    assert line.endswith("alive")
    assert listed[-2] == (
        "From the ledger alone, without names, states and pages: No Prefect server is configured."
    )
    done = program(COMMAND.format(arguments=["runs", "resume", "--all"]), **home)
    assert done.stdout == "1 False\n", done.stderr
    [said] = [line for line in done.stderr.splitlines() if line.startswith("fastroai: ")]
    assert "No Prefect server is configured" in said
    assert "PREFECT_API_URL" in said
    assert "FASTROAI_EXECUTOR" not in said


def test_the_advice_to_start_a_server_can_be_typed_where_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    assert server_command() == "prefect server start"
    (commands / "prefect").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    assert server_command() == ".venv/bin/prefect server start"
    monkeypatch.chdir("/")
    assert server_command() == f"{commands}/prefect server start".lstrip("/")
    monkeypatch.setenv("PATH", str(commands))
    assert server_command() == "prefect server start"


async def test_without_a_server_and_with_the_temporary_one_forbidden_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        temporary_settings,
    )

    model = CountingModel()
    with (
        temporary_settings(
            {PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}, restore_defaults={PREFECT_API_URL}
        ),
        pytest.raises(ExecutorUnavailableError, match="FASTROAI_EXECUTOR=memory"),
    ):
        await under_prefect(model).execute({"topic": "t"}, None)
    assert model.calls == 0


@pytest.mark.parametrize("broken", ["database", pytest.param("folder", marks=pytest.mark.long)])
def test_a_temporary_server_that_can_not_start_is_told_with_what_it_said(
    tmp_path: Path, broken: str
):
    home = tmp_path / "home"
    if broken == "database":
        home.mkdir()
        (home / "prefect.db").write_text(
            "no database, but long enough to be taken for a damaged one"
        )
    else:
        home.write_text("no folder")
        home = home / "below"
    done = program(PROGRAM, PREFECT_HOME=str(home))
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(
        "fastroai.errors.ExecutorUnavailableError: The temporary Prefect server did not start"
    )
    assert {"database": "file is not a database", "folder": "unable to open database file"}[
        broken
    ] in said
    assert f"PREFECT_HOME={str(home)!r}" in said
    assert "FASTROAI_EXECUTOR=memory" in said


@pytest.mark.parametrize("chosen", [True, False])
def test_a_user_who_chose_decides_whether_the_temporary_server_phones_home(chosen: bool):
    from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings

    from fastroai.executors._prefect.temporary_server import server_environment

    with temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: chosen}):
        assert server_environment()["PREFECT_SERVER_ANALYTICS_ENABLED"] == str(chosen)
