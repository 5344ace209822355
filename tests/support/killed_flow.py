"""The pipeline whose runs are killed, as a worker runs it: each flow run keeps its results in a
folder of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.killed_runs import RESULTS, WORKER, Process, pipeline, sign_requests

run = os.environ["PREFECT__FLOW_RUN_ID"]
sign_requests(f"{os.environ[WORKER]}-{run}")
flow = pipeline("prefect", Path(os.environ[RESULTS]) / run).to_flow(
    name="killed", version="1", deps_factory=Process
)
