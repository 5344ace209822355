"""`fastroai up` and `fastroai down`: a whole stack on this machine's loopback, and its end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LedgerNotFoundError, StackError
from .prefect_file import Deployment, in_environment, pools_of, read_deployments
from .processes import Process
from .stack_state import BUCKET, HOST, StackFolder, StackState
from .starting import S3, SERVER, WORKER, Starting, Tell, end_stack

if TYPE_CHECKING:
    from ..executors.prefect import EndedRun, PrefectClient

PORTS = {SERVER: 4200, S3: 4566}
START_SECONDS = 120.0
RUN_SECONDS = 300.0
LOOK_EVERY = 0.1
WORKER_LOOKS_EVERY = "2"
"""Seconds; five times as often as Prefect's workers do, as somebody sits before it and waits."""

OFFLINE = {"FASTROAI_MODEL": "offline"}
"""Of the one run that nobody has asked for: it is not to cost anything."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `fastroai up` is told.

    Attributes:
        environment: Deployments of this name are deployed; all, where none has it.
        prefect_port: None: as before, or 4200, or any that is free.
        s3_port: None: as before, or 4566, or any that is free.
        run: Whether one run is made.
    """

    environment: str = "dev"
    prefect_port: int | None = None
    s3_port: int | None = None
    run: bool = True


@dataclass(frozen=True, slots=True)
class Running:
    """A stack that runs.

    Attributes:
        environment_file: What a shell reads to use it.
        started: Names of the processes that were started now; none: all ran already.
        workers: Names of the work pools that have a worker.
        deployments: As `flow/deployment`, what was deployed now.
        run: The one run; None: none was made.
        cost_usd: What it was booked with, which is simulated as its model was.
        remark: Why no run was made, where one was wanted.
    """

    state: StackState
    folder: StackFolder
    environment_file: Path
    started: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    run: EndedRun | None = None
    cost_usd: Decimal | None = None
    remark: str = ""


async def up(project: Path, wanted: Wanted, tell: Tell) -> Running:
    """Start what does not run yet, deploy the project's flows, and run one of them.

    Whatever goes wrong on the way, also that this process is killed: nothing that was started here
    is left running.

    Raises:
        ProjectError: prefect.yaml can't be read; nothing was started.
        StackError: Something can't be started or deployed.
    """
    require_moto()
    deployments = read_deployments(project) or []
    folder = StackFolder.of(project)
    folder.make()
    with folder.locked():
        state = planned(folder.read(), wanted)
        starting = Starting(folder, state, tell)
        try:
            running = await _bring_up(starting, deployments, wanted)
            starting.keep()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(starting.give_up))
            raise
        finally:
            starting.close()
        return running


def down(project: Path) -> tuple[list[Process], list[Process]]:
    """End what `up` started in a project, and nothing else.

    Returns:
        What was ended, and which of that had to be killed.

    Raises:
        StackError: Another command is changing the stack.
    """
    folder = StackFolder.of(project)
    if not folder.path.is_dir():
        return [], []
    with folder.locked():
        state = folder.read()
        if state is None:
            return [], []
        ended, killed = end_stack(state.processes)
        folder.forget()
    return ended, killed


def require_moto() -> None:
    """See that there is what serves S3 here.

    Raises:
        StackError: It is not installed.
    """
    for module in ("moto", "flask", "flask_cors"):
        if find_spec(module) is None:
            raise StackError(
                f"The stack's S3 endpoint is moto's server, and {module!r} is not installed here. "
                f"Install it: {Path(sys.executable).name} -m pip install 'fastroai[local]'"
            )


def planned(before: StackState | None, wanted: Wanted) -> StackState:
    """The stack as it is to be: with what still runs of the one before.

    Raises:
        StackError: A port that was asked for is taken, or another one is in use.
    """
    if before is None or not before.alive():
        taken = before and (before.prefect_port, before.s3_port)
        prefect = free_port(wanted.prefect_port, taken[0] if taken else PORTS[SERVER])
        s3 = free_port(wanted.s3_port, taken[1] if taken else PORTS[S3], prefect)
        return StackState(prefect, s3)
    ports = {before.prefect_port: wanted.prefect_port, before.s3_port: wanted.s3_port}
    for port, asked in ports.items():
        if asked not in (None, port):
            raise StackError(
                f"The stack of this project runs on port {port}, not {asked}. `fastroai down` ends "
                "it."
            )
    return before


def free_port(asked: int | None, usual: int, other: int = 0) -> int:
    """A port of loopback that nobody listens on.

    Raises:
        StackError: The one that was asked for is taken.
    """
    for port in (usual, 0) if asked is None else (asked,):
        with socket.socket() as probe:
            # As servers do, which are not kept off by connections that have just ended.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
        if found != other:
            return found
    raise StackError(f"Port {asked} is taken by another program. Give another one, or none.")


async def _bring_up(starting: Starting, deployments: list[Deployment], wanted: Wanted) -> Running:
    chosen = in_environment(deployments, wanted.environment)
    pools = pools_of(chosen)
    workers = {f"{WORKER} {pool}": pool for pool in pools}
    running = Running(
        state=starting.state,
        folder=starting.folder,
        environment_file=starting.folder.write_environment(starting.state),
        workers=tuple(pools),
    )
    if {SERVER, S3, *workers} <= starting.state.alive().keys():
        return running
    _start_servers(starting)
    # While they start: it takes a second.
    from ..executors.prefect import client_at, make_process_pools

    api = f"{starting.state.ui_url}/api"
    await _answers(starting, f"{api}/health", "GET")
    await _answers(starting, f"{starting.state.s3_url}/{BUCKET}", "PUT")
    async with client_at(api) as client:
        await make_process_pools(client, pools_of(deployments))
        often = starting.environment(PREFECT_WORKER_QUERY_SECONDS=WORKER_LOOKS_EVERY)
        for name, pool in workers.items():
            of_pool = ["--pool", pool, "--type", "process"]
            starting.start(name, ["prefect", "worker", "start", *of_pool], often)
        running = replace(running, state=starting.state, started=tuple(starting.children))
        if chosen:
            running = await _deploy_and_run(starting, client, running, chosen, wanted)
        return running


def _start_servers(starting: Starting) -> None:
    state, home = starting.state, starting.folder.prefect_home
    database = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    own = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_UI_API_URL": f"{state.ui_url}/api",
        # Prefect's own is in the installed package, which this user may not be able to write.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
    }
    environment = starting.environment(**own)
    del environment["PREFECT_API_URL"]
    listening = ["--host", HOST, "--port", str(state.prefect_port), "--log-level", "warning"]
    ending = ["--lifespan", "on", "--timeout-graceful-shutdown", "5"]
    application = ["--factory", "prefect.server.api.server:create_app"]
    starting.start(SERVER, ["uvicorn", *application, *listening, *ending], environment)
    moto = ["moto.server", "-H", HOST, "-p", str(state.s3_port)]
    starting.start(S3, moto, starting.environment())


async def _answers(starting: Starting, url: str, method: str) -> None:
    """Wait until a server does what it is asked."""
    request = urllib.request.Request(url, method=method)
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        starting.check()
        if await asyncio.to_thread(_is_done, request):
            return
        await asyncio.sleep(LOOK_EVERY)
    raise StackError(
        f"{method} {url} was not answered within {START_SECONDS:g} s. See {starting.folder.log('')}"
    )


def _is_done(request: urllib.request.Request) -> bool:
    # Without the proxy that the environment may name: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.CONFLICT  # the bucket is there already
    except OSError:
        return False


async def _deploy_and_run(
    starting: Starting,
    client: PrefectClient,
    running: Running,
    chosen: list[Deployment],
    wanted: Wanted,
) -> Running:
    from ..executors.prefect import RunRefusedError, deployed, run_deployment

    starting.tell(f"Deploying {', '.join(f'{one.flow}/{one.name}' for one in chosen)}")
    await _deploy(starting, chosen, wanted.environment)
    found = await deployed(client, {(one.entrypoint, one.name) for one in chosen})
    running = replace(running, deployments=tuple(found))
    if not wanted.run:
        return running
    name = first_of(chosen, found)
    if chosen[0].pool is None:
        return replace(
            running, remark=f"{name} was not run: prefect.yaml names no work pool for it."
        )
    starting.tell(f"Running {name} once, offline")
    starting.check()
    try:
        run = await run_deployment(client, found[name], OFFLINE, RUN_SECONDS)
    except RunRefusedError as error:
        return replace(running, remark=f"{name} was not run: {error}")
    cost = await _cost_of(starting.folder.ledger_url, run.run_id)
    return replace(running, run=run, cost_usd=cost)


def first_of(chosen: Sequence[Deployment], found: Mapping[str, object]) -> str:
    """The deployment that stands first in prefect.yaml, under its name on the server."""
    first = chosen[0]
    exact = f"{first.flow}/{first.name}"
    return exact if exact in found else next(n for n in found if n.endswith(f"/{first.name}"))


async def _deploy(starting: Starting, chosen: list[Deployment], environment: str) -> None:
    names = {one.name for one in chosen}
    what = ["-n", environment] if names == {environment} else ["--all"]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "prefect", "--no-prompt", "deploy", *what],
        cwd=starting.folder.project,
        env=starting.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        written, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    if process.returncode:
        said = written.decode(errors="replace").strip()
        raise StackError(
            f"`prefect deploy {' '.join(what)}` failed; nothing was left running. It said:\n{said}"
        )


async def _cost_of(ledger_url: str, run_id: str) -> Decimal | None:
    """What a run is booked with; None: no request was."""
    from ..ledger.entries import total_usd
    from ..ledger.ledger import Ledger

    try:
        async with Ledger.open(ledger_url, create=False) as ledger:
            entries = await ledger.entries(run_id=run_id)
    except LedgerNotFoundError:
        return None
    return total_usd(entries) if entries else None
