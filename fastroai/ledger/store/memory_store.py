"""A ledger in this process's memory."""

from __future__ import annotations

from ..aggregation import Totals, totals_of
from ..entries import EntryState, LedgerEntry
from ..filters import LedgerFilter
from .mapping import as_stored


class MemoryStore:
    """A ledger that ends with the process and behaves like one in a database otherwise."""

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}

    async def must_exist(self) -> None:
        """It does, once it is made."""

    async def ready(self) -> None:
        """Nothing to wait for."""

    async def intend(self, entry: LedgerEntry) -> None:
        """Book a request that is about to be sent."""
        self._entries.setdefault(entry.id, as_stored(entry))

    def settle(self, entry: LedgerEntry) -> None:
        """Book what became of a request.

        Of several outcomes the first counts; an unsettled one may become final.
        """
        known = self._entries.get(entry.id)
        if known is None or known.settled_at is None or _resolves(entry, known):
            self._entries[entry.id] = as_stored(entry)

    async def flush(self) -> None:
        """Nothing is outstanding."""

    async def entries(self, selection: LedgerFilter) -> list[LedgerEntry]:
        """The selected entries in the order in which they were sent."""
        found = [entry for entry in self._entries.values() if selection.matches(entry)]
        return sorted(found, key=lambda entry: (entry.sent_at, entry.id))

    async def totals(self, selection: LedgerFilter, by: str | None) -> tuple[Totals, ...]:
        """The sums of the selected entries, grouped."""
        return totals_of(await self.entries(selection), by)

    async def close(self) -> None:
        """It stays until the process ends."""


def _resolves(entry: LedgerEntry, known: LedgerEntry) -> bool:
    return known.state is EntryState.UNSETTLED and entry.state is not EntryState.UNSETTLED
