"""Reading a ledger: its entries, and what they add up to."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

from ..database.location import default_url
from .aggregation import Totals
from .entries import EntryState, LedgerEntry
from .filters import LedgerFilter
from .store import LedgerStore, flush_shared, open_store


class Ledger:
    """Every model request that was booked, of all runs that wrote to one database. Open it with
    `Ledger.open`.

    An entry without an outcome is unsettled: it is under way, or its process ended before the
    answer was booked.
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None = None, *, create: bool = True) -> AsyncGenerator[Ledger]:
        """Open a ledger for the length of an `async with` block.

        Args:
            url: `sqlite:///path`, `postgresql://user@host/name`, or `memory://`, this process's
                own. None: the one in `FASTROAI_LEDGER_URL`, or else `~/.fastroai/ledger.db`.
            create: Whether to make a ledger where there is none yet. If not, nothing is made or
                changed there.

        Raises:
            LedgerNotFoundError: There is none, and none was to be made.
            LedgerUnavailableError: It can't be opened, or brought up to date.
        """
        url = url or ledger_url() or default_url()
        await flush_shared(url)
        store = await open_store(url, create=create)
        try:
            yield cls(store)
        finally:
            await store.close()

    async def entries(
        self,
        *,
        run_id: str | None = None,
        run_key: str | None = None,
        pipeline: str | None = None,
        step_id: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        state: EntryState | None = None,
        simulated: bool | None = None,
    ) -> list[LedgerEntry]:
        """The entries that fit all that is given, in the order in which they were sent.

        Args:
            run_id: One execution.
            run_key: All executions of one piece of work.
            pipeline: A pipeline's name.
            step_id: A step's id.
            model: As asked for or as answered; `gpt-5-mini` also finds `openai:gpt-5-mini`.
            tag: `team=search`, or `team` for any value; a bare name also finds tags of flow runs.
            since: Sent then or later, timezone-aware.
            until: Sent before, timezone-aware.
            state: What is known of the request.
            simulated: Whether an offline model answered.

        Raises:
            ValueError: A time is naive.
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.entries(
            LedgerFilter(
                run_id=run_id,
                run_key=run_key,
                pipeline=pipeline,
                step_id=step_id,
                model=model,
                tag=tag,
                since=since,
                until=until,
                state=state,
                simulated=simulated,
            )
        )

    async def totals(
        self,
        by: str | None = None,
        *,
        run_id: str | None = None,
        run_key: str | None = None,
        pipeline: str | None = None,
        step_id: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        state: EntryState | None = None,
        simulated: bool | None = None,
    ) -> tuple[Totals, ...]:
        """What the entries that fit add up to, in groups ordered by key; one sum of all when not
        grouped.

        Args:
            by: `run`, `run_key`, `pipeline`, `step` (as `pipeline/step`), `agent`, `model`,
                `provider`, `deployment`, `day` (UTC), `tag`, or `tag:NAME` for the values of one
                tag. By `tag`, an entry is in the group of each of its tags, so the groups add up to
                more than the whole.
            run_id: As in `entries`, like all that follow.

        Raises:
            ValueError: Entries can't be grouped so, or a time is naive.
            LedgerUnavailableError: The database can't be read.
        """
        selection = LedgerFilter(
            run_id=run_id,
            run_key=run_key,
            pipeline=pipeline,
            step_id=step_id,
            model=model,
            tag=tag,
            since=since,
            until=until,
            state=state,
            simulated=simulated,
        )
        return await self._store.totals(selection, by)

    async def append(self, entry: LedgerEntry) -> None:
        """Book an entry: a request from elsewhere, or the outcome of one that is unsettled. Nothing
        is ever changed.

        Raises:
            ValueError: The ledger says something else of this entry already.
            LedgerUnavailableError: It can't be written.
        """
        if entry.settled_at is None:
            await self._store.intend(entry)
        else:
            self._store.settle(entry)
            await self._store.flush()
        [stored] = await self._store.entries(LedgerFilter(id=entry.id))
        if entry.settled_at is not None and (stored.state, stored.cost_usd) != (
            entry.state,
            entry.cost_usd,
        ):
            raise ValueError(
                f"Entry {entry.id!r} is booked as {stored.state} at {stored.cost_usd} USD already; "
                f"it can't become {entry.state} at {entry.cost_usd} USD. Book a correction as an "
                "entry of its own."
            )


def ledger_url() -> str | None:
    """What `FASTROAI_LEDGER_URL` says."""
    from ..settings import load_settings  # only here: pydantic-settings takes its time to import

    url = load_settings().ledger_url
    return None if url is None else url.get_secret_value()
