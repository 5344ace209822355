"""`fastroai up` and `fastroai down`: the whole stack on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..kit import stack
from ..kit.stack_state import BUCKET
from .exit_codes import FAILED
from .rendering.tables import exact
from .shutdown import run_until_terminated

Port = Annotated[int | None, Parameter(show_default=False)]


def up(
    *,
    environment: str = "dev",
    port: Port = None,
    s3_port: Port = None,
    run: Annotated[bool, Parameter(negative="--no-run")] = True,
) -> int:
    """Start the stack of the project in this folder, deploy its flows and run one of them.

    Prefect's server with its UI, an S3 endpoint, a ledger, a worker; all on 127.0.0.1 and kept in
    .fastroai. The one run is made with FASTROAI_MODEL=offline; --no-run makes none.

    Args:
        environment: Deploys the deployments of this name in prefect.yaml; all, if none has it.
        port: Of Prefect's server. Default: 4200, or any that is free.
        s3_port: Of the S3 endpoint. Default: 4566, or any that is free.
        run: Whether one run is made.
    """
    wanted = stack.Wanted(environment, port, s3_port, run)
    running = run_until_terminated(stack.up(Path.cwd(), wanted, _tell))
    _show(running)
    return FAILED if running.run is not None and not running.run.succeeded else 0


def down() -> int:
    """End what `fastroai up` started in this folder, and nothing else.

    Prefect's database and the ledger stay in .fastroai; stored results were in the memory of the S3
    endpoint and are gone.
    """
    ended, killed = stack.down(Path.cwd())
    for one in ended:
        how = "killed" if one in killed else "ended"
        sys.stdout.write(f"  {how}  {one.name} (process {one.pid})\n")
    sys.stdout.write("" if ended else "Nothing of this folder's stack runs.\n")
    return 0


def _tell(what: str) -> None:
    sys.stderr.write(f"{what} …\n")
    sys.stderr.flush()


def _show(running: stack.Running) -> None:
    state, out = running.state, sys.stdout
    if not running.started:
        out.write("It runs already.\n")
    out.write(
        f"\n  Prefect   {state.ui_url}\n"
        f"  S3        {state.s3_url}  bucket {BUCKET}\n"
        f"  ledger    {running.folder.ledger_url}\n"
        f"  workers   {', '.join(running.workers) or 'none: there is no prefect.yaml here'}\n"
    )
    if running.deployments:
        out.write(f"  deployed  {', '.join(running.deployments)}\n")
    _show_run(running)
    here = running.environment_file.relative_to(running.folder.project)
    out.write(
        f"\nIn this shell: `. {here}`, then `fastroai`, `prefect` and your programs use it.\n"
    )
    out.write("`fastroai down` ends it.\n")


def _show_run(running: stack.Running) -> None:
    run = running.run
    if running.remark:
        sys.stderr.write(f"fastroai: {running.remark}\n")
    if run is None:
        return
    cost = "" if running.cost_usd is None else f", {exact(running.cost_usd)} USD (simulated)"
    url = f"{running.state.ui_url}/runs/flow-run/{run.run_id}"
    sys.stdout.write(f"  run       {run.name}: {run.state}{cost}\n            {url}\n")
    if not run.succeeded:
        sys.stderr.write(
            f"fastroai: The run {run.name!r} is {run.state}: {run.message}\n"
            f"What the worker said is in {running.folder.path / 'logs'}. The stack goes on.\n"
        )
