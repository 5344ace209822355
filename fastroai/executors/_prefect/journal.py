"""A step's journal in its result storage: other processes do not send answered requests again."""

from __future__ import annotations

from ...errors import ResultStorageError
from ...replay.journal import Journal
from ...serialization.canonical_json import digest
from ...storage.result_store import REQUESTS, ResultStore
from .first_execution import is_first_execution
from .run_scope import RunScope


class StoredJournal:
    """Keeps the records of a journal beside the results, sealed like them.

    Args:
        store: Where.
        run: The run that the step belongs to.
        pipeline: Its name.
        ledger_url: The ledger in which its requests are booked.
    """

    def __init__(self, store: ResultStore, run: RunScope, pipeline: str, ledger_url: str) -> None:
        self._store = store
        self._run = run
        self._pipeline = pipeline
        self._ledger_url = ledger_url
        self._is_first: bool | None = None

    async def read(self, key: str) -> bytes | None:
        """See `JournalStore.read`."""
        if not self._run.may_have_results:
            return None
        path = f"{REQUESTS}/{key}"
        try:
            return await self._store.read(path)
        except (FileNotFoundError, ValueError):  # also what is damaged or forged
            return None
        except Exception as error:
            if await self._nothing_was_recorded():
                return None
            raise ResultStorageError(
                f"Whether a request was answered before can't be read from {path!r}: {error}. It "
                "is not sent again. Run again when the storage answers, or set durable='step' for "
                "this step."
            ) from error

    async def _nothing_was_recorded(self) -> bool:
        # Asked only when the storage fails, and once for a step.
        if self._is_first is None:
            self._is_first = await is_first_execution(self._run, self._pipeline, self._ledger_url)
        return self._is_first

    async def write(self, key: str, content: bytes) -> None:
        """See `JournalStore.write`."""
        await self._store.write(f"{REQUESTS}/{key}", content, None)


def journal_of(
    run: RunScope,
    pipeline: str,
    step_id: str,
    scope: str | None,
    store: ResultStore | None,
    ledger_url: str,
) -> Journal:
    """The journal of a step of a run.

    Args:
        scope: The step's `cache_scope`: tenants do not share answers either.
        store: None: what is answered is known in this process only.
        ledger_url: The ledger in which the run's requests are booked.
    """
    step = digest([run.text, pipeline, step_id, scope])
    stored = None if store is None else StoredJournal(store, run, pipeline, ledger_url)
    return Journal(step, stored)
