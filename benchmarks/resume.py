"""What a run costs that goes on where it stopped: its replay, its durable requests, its way to the
next request.
"""

from __future__ import annotations

from . import crash, durable_requests, replay
from .prefect_server import prefect_server
from .report import Section


def measure(quick: bool) -> list[Section]:
    with prefect_server() as server:
        return [part.measure(server, quick) for part in (replay, durable_requests, crash)]
