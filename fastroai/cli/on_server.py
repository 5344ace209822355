"""What a command does on Prefect's server that is configured."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def on_server(work: Coroutine[Any, Any, T]) -> T:
    """Do something on Prefect's server that is configured, once it answers.

    Raises:
        ExecutorUnavailableError: None is, or it does not.
    """
    try:
        from ..executors.prefect import check_server, configured_server

        configured_server()
        await check_server()
    except BaseException:
        work.close()
        raise
    return await work
