"""A step's journal in its result storage: other processes do not send answered requests again."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ResultStorageError
from ...storage.result_store import REQUESTS, ResultStore
from .first_execution import is_first_execution
from .run_scope import RunScope


@dataclass(eq=False)
class StoredJournal:
    """Keeps the records of a journal beside the results, sealed like them.

    Attributes:
        store: Where.
        run: The run that the step belongs to.
        pipeline: Its name.
        ledger_url: The ledger in which its requests are booked.
    """

    store: ResultStore
    run: RunScope
    pipeline: str
    ledger_url: str
    _is_first: bool | None = None

    async def read(self, key: str) -> bytes | None:
        """See `JournalStore.read`."""
        path = f"{REQUESTS}/{key}"
        try:
            return await self.store.read(path)
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
            self._is_first = await is_first_execution(self.run, self.pipeline, self.ledger_url)
        return self._is_first

    async def write(self, key: str, content: bytes) -> None:
        """See `JournalStore.write`."""
        await self.store.write(f"{REQUESTS}/{key}", content, None)
