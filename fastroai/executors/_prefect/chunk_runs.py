"""Flow runs that work on some items of a mapped step of another one, told by their labels."""

from __future__ import annotations

from prefect.client.schemas.objects import FlowRun

from .run_scope import active_flow_run

CHUNK_LABEL, STEP_LABEL = "fastroai.chunk", "fastroai.step"
"""Labels of a flow run that works on a chunk: the name of its record, and the step's id."""


def active_chunk_run() -> FlowRun | None:
    """The flow run that is active here, if it is such a one."""
    flow_run = active_flow_run()
    return flow_run if flow_run is not None and CHUNK_LABEL in flow_run.labels else None
