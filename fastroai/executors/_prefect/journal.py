"""A step's journal in the storage of its results: what was answered is not asked again by another process."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from botocore.exceptions import ClientError
from prefect._internal.compatibility.blocks import call_explicitly_async_block_method
from prefect.context import FlowRunContext

from ...agent.journal import Journal
from ...errors import ResultStorageError
from ...pipelines.canonical import digest
from .caching import run_scope

logger = logging.getLogger("fastroai.executors")

FOLDER = "requests"
_PAUSES = (0.2, 0.6, 1.8)
"""Seconds before each further try."""
_MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})


class StoredJournal:
    """Keeps the records of a journal in a storage block.

    Args:
        storage: Where.
        reads: Whether anything can be there: not when the run is executed for the first time.
    """

    def __init__(self, storage: Any, *, reads: bool) -> None:
        self._storage = storage
        self._reads = reads

    async def read(self, key: str) -> bytes | None:
        """See `JournalStore.read`."""
        if not self._reads:
            return None
        path = f"{FOLDER}/{key}"
        for pause in (*_PAUSES, None):
            try:
                content: bytes = await call_explicitly_async_block_method(self._storage, "read_path", (path,), {})
                return content
            except Exception as error:
                if _is_missing(error):
                    return None
                if pause is None:
                    raise ResultStorageError(
                        f"Whether a request was answered before can't be read from {path!r}: {error}. It is not sent "
                        "again. Run again when the storage answers, or set durable='step' for this step."
                    ) from error
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    async def write(self, key: str, content: bytes) -> None:
        """See `JournalStore.write`."""
        path = f"{FOLDER}/{key}"
        for pause in (*_PAUSES, None):
            try:
                await call_explicitly_async_block_method(self._storage, "write_path", (path,), {"content": content})
                return
            except Exception as error:
                if pause is None:
                    logger.warning(
                        "The answer to a request can't be kept at %r: %r. Were the run to end now, it would be sent "
                        "again.", path, error,
                    )  # fmt: skip
                    return
                await asyncio.sleep(pause)


def journal_of(pipeline: str, step_id: str, storage: Any) -> Journal:
    """The journal of a step of the flow run that is active here."""
    return Journal(digest([run_scope(), pipeline, step_id]), StoredJournal(storage, reads=_was_executed_before()))


def _was_executed_before() -> bool:
    """Whether another execution of this run may have left answers; in case of doubt, yes."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    flow_run = context.flow_run
    keyed = run_scope().startswith("key:")
    return keyed or flow_run.run_count > 1 or flow_run.parent_task_run_id is not None


def _is_missing(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return error.response.get("Error", {}).get("Code") in _MISSING_CODES
    # Prefect's local storage raises a ValueError that says so.
    return isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and "does not exist" in str(error))
