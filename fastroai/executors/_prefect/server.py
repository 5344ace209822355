"""Checks the Prefect server before a run, and stops waiting for a silent one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID

from anyio import fail_after
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.context import (
    AsyncClientContext,
    SettingsContext,
    SyncClientContext,
    get_settings_context,
)
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
)

from ...errors import ExecutorUnavailableError
from ...redaction import redact
from .shutdown import ANSWER_SECONDS, exit_without_a_silent_server
from .temporary_server import server_command, start_temporary_server

CHECK_SECONDS = 10
RECORDING_SECONDS = 10
PAGE = 100


async def have_server() -> None:
    """Have a server to ask, if only a temporary one; whether it answers is not found out.

    Prefect would start one by itself that sends telemetry.
    """
    if not PREFECT_API_URL.value():
        await start_temporary_server(for_a_run=False)


def configured_server() -> str:
    """The URL of the API of the server that is set.

    Raises:
        ExecutorUnavailableError: None is.
    """
    url: str | None = PREFECT_API_URL.value()
    if not url:
        raise ExecutorUnavailableError(
            "No Prefect server is configured. Set PREFECT_API_URL to the API of the one that the "
            f"runs are on, for example http://127.0.0.1:4200/api (`{server_command()}` starts it)."
        )
    return url


async def check_server() -> None:
    """Find out whether a server answers; see `answering_server`."""
    async with answering_server():
        pass


@asynccontextmanager
async def answering_server() -> AsyncIterator[None]:
    """Find out whether a server answers, before anything is run or spent; start a temporary one
    where none is set. While this is open, all calls of it go by one client.

    Raises:
        ExecutorUnavailableError: None does. Names the URL, the cause and the ways out.
    """
    url: str | None = PREFECT_API_URL.value()
    if not url:
        await start_temporary_server()
    # Prefect makes four clients for a flow run, and each reads the certificates of all authorities:
    # some 100 ms, and in vain where there is no TLS.
    is_plain = not url or url.startswith("http:")
    settings = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)} if is_plain else None
    async with AsyncExitStack() as clients:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                context, blocking = AsyncClientContext(settings), SyncClientContext(settings)
                # Prefect gets their clients also where it asks for one of no special settings.
                context._httpx_settings = blocking._httpx_settings = None
                await clients.enter_async_context(context)
                if url:
                    await context.client.api_version()
        except Exception as error:
            raise ExecutorUnavailableError(
                f"No Prefect server answers at PREFECT_API_URL={redact(repr(url))} "
                f"({type(error).__name__}: {redact(str(error))}). Nothing was run or spent. Start "
                f"one with `{server_command()}`, correct the URL, or run in process with "
                "FASTROAI_EXECUTOR=memory."
            ) from error
        clients.enter_context(blocking)
        yield


async def stop_retrying_if_silent() -> None:
    """Make the rest of this asyncio task give up at once on a server that no longer answers.

    Prefect tries each call for more than a minute; the steps are done, and their results should not
    wait for that. Only for a task that ends with the flow: the setting stays in its context.
    """
    exit_without_a_silent_server()
    try:
        # Not asyncio's: before Python 3.11.3 its timeout is a cancellation in a cancelled task.
        with fail_after(ANSWER_SECONDS):
            async with get_client() as client:
                await client.api_version()
    except Exception:  # whatever it is, the server did not answer
        # The flow's own client reads its limits when it is made: it is told, too.
        get_client()._client.timeout = ANSWER_SECONDS
        context = get_settings_context()
        settings = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
        SettingsContext(profile=context.profile, settings=settings).__enter__()


async def wait_for_task_runs(task_run_ids: Sequence[UUID]) -> None:
    """Give a temporary server, which ends with this process, the time to note how the tasks of a
    run ended.

    Task states travel as events and are noted in batches; without this the last ones of a short
    program are lost.
    """
    if PREFECT_API_URL.value():
        return
    # A server that does not get there within the limit only lacks a few states in its UI.
    with suppress(Exception):
        with fail_after(RECORDING_SECONDS):
            async with get_client() as client:
                last = list(task_run_ids)[-PAGE:]
                # Only the server knows.
                while await final_task_runs(client, last) < len(last):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)


async def final_task_runs(client: PrefectClient, task_run_ids: list[UUID]) -> int:
    task_runs = await client.read_task_runs(
        task_run_filter=TaskRunFilter(id=TaskRunFilterId(any_=task_run_ids))
    )
    return sum(task_run.state is not None and task_run.state.is_final() for task_run in task_runs)
