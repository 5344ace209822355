"""The entries that a command looks at one by one, and those that it can't: archived ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ...ledger.entries import LedgerEntry
from ...ledger.ledger import Ledger
from ...ledger.store.archiving import ArchivedEntries
from ..parsing import shown
from .filters import Filters


@dataclass(frozen=True, slots=True)
class Recorded:
    """Entries of a ledger.

    Attributes:
        archived: What was moved out of it, of the time that is asked for.
    """

    # asyncio.run restores the signal handlers, which takes the repr of what it returns.
    entries: list[LedgerEntry] = field(repr=False)
    archived: ArchivedEntries | None

    def remarks(self) -> Iterator[str]:
        """What is not among the entries."""
        if self.archived is not None:
            yield (
                f"ARCHIVED: {self.archived.entries:,} entries, sent from "
                f"{shown(self.archived.first_sent_at)} to {shown(self.archived.last_sent_at)}, "
                f"were moved to files, the last of them on {shown(self.archived.archived_at)}, and "
                "are left out here."
            )

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        if self.archived is None:
            return {"archived": None}
        first, last = self.archived.first_sent_at, self.archived.last_sent_at
        return {
            "archived": {
                "entries": self.archived.entries,
                "first_sent_at": first.isoformat(),
                "last_sent_at": last.isoformat(),
            }
        }


async def read_recorded(
    url: str | None, filters: Filters, keep: Callable[[LedgerEntry], bool] | None = None
) -> Recorded:
    """The entries that filters select, and that are to be kept.

    Raises:
        LedgerNotFoundError: There is no ledger.
        LedgerUnavailableError: It can't be read.
    """
    async with Ledger.open(url, create=False) as ledger:
        entries = await ledger.entries(keep=keep, **filters.as_arguments())
        archived = await ledger.archived(since=filters.since, until=filters.until)
    return Recorded(entries, archived)
