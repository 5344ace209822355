"""Which Prefect server a run talks to, and what to say when there is none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import anyio.to_thread
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
)

from ...errors import ExecutorUnavailableError

NOTICE = (
    "fastroai: no Prefect server is set, so a temporary one is started (about 10 s). To skip the wait, set "
    "PREFECT_API_URL to a running server (`prefect server start`), or run in process with FASTROAI_EXECUTOR=memory.\n"
)

STARTUP_SECONDS = 120
CHECK_SECONDS = 10
ANSWER_SECONDS = 2
RECORDING_SECONDS = 10
PAGE = 100


async def check_server() -> None:
    """Find out whether a server answers, before anything is run or spent.

    Raises:
        ExecutorUnavailableError: None does. Names the URL, the cause and the ways out.
    """
    url = PREFECT_API_URL.value()
    if not url:
        await _start_temporary_server()
        return
    try:
        async with asyncio.timeout(CHECK_SECONDS), get_client() as client:
            await client.api_version()
    except Exception as error:
        raise ExecutorUnavailableError(
            f"No Prefect server answers at PREFECT_API_URL={url!r} ({type(error).__name__}: {error}). Nothing was "
            "run or spent. Start one with `prefect server start`, correct the URL, or run in process with "
            "FASTROAI_EXECUTOR=memory."
        ) from error


async def stop_retrying_if_silent() -> None:
    """Make the rest of this asyncio task give up at once on a server that no longer answers.

    Prefect tries each call for more than a minute; the steps are done, and their results should not wait for that.
    Only for a task that ends with the flow: the setting stays in its context.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS), get_client() as client:
            await client.api_version()
    except Exception:  # whatever it is, the server did not answer
        # The flow's own client reads its limits when it is made: it is told, too.
        get_client()._client.timeout = ANSWER_SECONDS
        context = get_settings_context()
        settings = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
        SettingsContext(profile=context.profile, settings=settings).__enter__()


async def wait_for_task_runs(task_run_ids: Sequence[UUID]) -> None:
    """Give a temporary server, which ends with this process, the time to note how the tasks of a run ended.

    Task states travel as events and are noted in batches; without this the last ones of a short program are lost.
    """
    if PREFECT_API_URL.value():
        return
    # A server that does not get there within the limit only lacks a few states in its UI.
    with suppress(Exception):
        async with asyncio.timeout(RECORDING_SECONDS), get_client() as client:
            last = list(task_run_ids)[-PAGE:]
            while await _final_task_runs(client, last) < len(last):  # noqa: ASYNC110  # only the server knows
                await asyncio.sleep(0.2)


async def _final_task_runs(client: PrefectClient, task_run_ids: list[UUID]) -> int:
    task_runs = await client.read_task_runs(task_run_filter=TaskRunFilter(id=TaskRunFilterId(any_=task_run_ids)))
    return sum(task_run.state is not None and task_run.state.is_final() for task_run in task_runs)


async def _start_temporary_server() -> None:
    """Start it here, with patience: on a fresh or busy machine Prefect's own 20 s are not always enough."""
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise ExecutorUnavailableError(
            "No Prefect server is set and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is off. Set PREFECT_API_URL to a running "
            "server (`prefect server start`), or run in process with FASTROAI_EXECUTOR=memory."
        )
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one per process; Prefect's clients find it running
    if server.running:
        return
    sys.stderr.write(NOTICE)
    sys.stderr.flush()
    patience = max(STARTUP_SECONDS, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    try:
        await anyio.to_thread.run_sync(server.start, patience)
    except Exception as error:
        raise ExecutorUnavailableError(
            f"The temporary Prefect server could not be started within {patience} s: {error} Nothing was run or spent. "
            "Set PREFECT_API_URL to a running server (`prefect server start`), or run in process with "
            "FASTROAI_EXECUTOR=memory."
        ) from error
