"""Keeps the exit of a process from waiting for a dead Prefect server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import WeakSet

from prefect._internal.concurrency.services import QueueService
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

ANSWER_SECONDS = 2

_covered: WeakSet[QueueService[Any]] = WeakSet()
"""Services that are given up at exit; of the process, as they and the exit hooks are."""


def exit_without_a_silent_server() -> None:
    """Have Prefect's services of this process give up at its exit if their server is silent then.

    Otherwise each retries for many minutes. While the process lives they go on: the server may come
    back.
    """
    # A temporary server ends with this process, in an order of its own.
    if not PREFECT_API_URL.value():
        return
    services = QueueService._instances.values()  # type: ignore[misc]
    new = [service for service in services if service not in _covered]
    if new:
        _covered.update(new)
        # Where the services register their own exit: the last one registered is called first.
        give_up = partial(copy_context().run, give_up_if_silent, new)
        threading._register_atexit(give_up)  # type: ignore[attr-defined]


def give_up_if_silent(services: Sequence[QueueService[Any]]) -> None:
    waiting = [(service._loop, service._task) for service in services if not service._stopped]
    if not waiting or server_answers():
        return
    for loop, task in waiting:
        if loop is not None and task is not None:
            loop.call_soon_threadsafe(task.cancel)


def server_answers() -> bool:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": ANSWER_SECONDS}) as client,
    ):
        return client.api_healthcheck() is None
