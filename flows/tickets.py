"""Tickets in a file of rows: all looked at before the first is worked on, then read one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import islice

from pydantic import BaseModel

from flows.item_keys import item_key
from flows.row_files import Row, RowFileError, local_copy, read_rows

ROWS_AT_ONCE = 200
"""Rows that are read in one go, by a thread."""


class Ticket(BaseModel):
    """One row."""

    id: str
    text: str
    """Its other fields, one on each line; empty where all of them are."""

    @property
    def key(self) -> str:
        """What it is called in costs and lists of what failed."""
        return item_key(self.id)


class TicketFile:
    """The tickets at a path or URI, in the order of their rows.

    An asynchronous iterator, to be read once; it holds a few of them at a time.

    Args:
        location: A path, `file://…` or `s3://bucket/key`.
        id_field: The field that tells rows apart.

    Raises:
        RowFileError: There is no such file, it has no rows, or one of them is no ticket.
    """

    def __init__(self, location: str, id_field: str) -> None:
        self._location = location
        self._id_field = id_field
        with ExitStack() as opened:
            self._path = opened.enter_context(local_copy(location))
            self._rows = self._check()
            self._opened = opened.pop_all()

    def __len__(self) -> int:
        return self._rows

    async def __aiter__(self) -> AsyncIterator[Ticket]:
        with self._opened:
            tickets = self._tickets()
            while some := await asyncio.to_thread(list, islice(tickets, ROWS_AT_ONCE)):
                for ticket in some:
                    yield ticket

    def _tickets(self) -> Iterator[Ticket]:
        for number, row in read_rows(self._path, self._location):
            yield self._ticket(number, row)

    def _check(self) -> int:
        """How many rows there are, once all of them were looked at."""
        numbers: dict[str, int] = {}
        for number, ticket in enumerate(self._tickets(), start=1):
            first = numbers.setdefault(ticket.id, number)
            if first != number:
                raise RowFileError(
                    f"{self._location!r}: rows {first} and {number} have the same "
                    f"{self._id_field!r}, {ticket.id!r}. Correct it, or give another id_field."
                )
        if not numbers:
            raise RowFileError(f"{self._location!r} has no rows.")
        return len(numbers)

    def _ticket(self, number: int, row: Row) -> Ticket:
        given = row.get(self._id_field)
        if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
            raise RowFileError(
                f"{self._location!r}, row {number}: no text or whole number as {self._id_field!r}. "
                f"Its fields: {', '.join(row)}. Correct it, or give another id_field."
            )
        fields = {name: value for name, value in row.items() if name != self._id_field}
        lines = (f"{name}: {_as_text(value)}" for name, value in fields.items() if value)
        return Ticket(id=str(given), text="\n".join(lines))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
