"""Links to a run and its costs in Prefect's UI."""

from __future__ import annotations

from prefect.settings import PREFECT_HOME
from prefect.utilities.urls import url_for

from .artifacts import artifact_key
from .standing_costs import standing_key
from .temporary_server import server_command

_DEFAULT_UI = "http://127.0.0.1:4200"
_ALL_COSTS = f"/artifacts/key/{standing_key(None)}"


def links_to_run(pipeline_name: str, run_id: str) -> list[str]:
    """Lines for the terminal: the pages of a run that has just been, or how to see them when its
    server is gone.
    """
    run = url_for("flow-run", obj_id=run_id)
    costs = f"/artifacts/key/{artifact_key(pipeline_name)}"
    if run is not None:
        return [
            "\nIn Prefect's UI",
            f"  this run   {run}",
            f"  its costs  {run.partition('/runs/')[0]}{costs}",
            f"  all costs  {run.partition('/runs/')[0]}{_ALL_COSTS}",
        ]
    return [
        "\nThe temporary Prefect server ends with this command; the run and its costs are kept in "
        f"{PREFECT_HOME.value()}.",
        f"To look at them, start a server that stays: `{server_command()}`. Then open",
        f"  this run   {_DEFAULT_UI}/runs/flow-run/{run_id}",
        f"  its costs  {_DEFAULT_UI}{costs}",
        f"  all costs  {_DEFAULT_UI}{_ALL_COSTS}",
    ]
