"""Requests of batches with their bookings, from when they are encoded until a result is read."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, fields

from pydantic_ai.models.batch import EncodedBatchRequest

from ..ledger.entries import LedgerEntry
from ..replay.journal import Journal, JournalRecord
from .request_books import Foreseen, RequestBooks, Target


@dataclass(frozen=True, slots=True)
class SubmittedRequest(JournalRecord):
    """That a request was submitted, at its place in the journal."""

    submission: str
    custom_id: str
    entry: LedgerEntry


@dataclass(frozen=True, slots=True)
class Place:
    """Where a journal keeps that a request was submitted.

    Attributes:
        name: Of the record, within the journal.
        known: The record of an earlier attempt that is to be taken up; None: there is none.
        is_agents: Whether an agent's run waits for the answer, and takes it up again.
    """

    journal: Journal
    name: str
    known: SubmittedRequest | None = None
    is_agents: bool = False


# Ambient, because between an agent's request and the batch that it goes into stands pydantic-ai.
place_of_request: ContextVar[Place | None] = ContextVar("fastroai_batch_place", default=None)


@dataclass(frozen=True, slots=True)
class Booking:
    """Whom a request of a batch is booked to, as it was known when it was encoded."""

    books: RequestBooks
    target: Target
    foreseen: Foreseen
    place: Place | None


@dataclass(frozen=True, kw_only=True)
class BookedRequest(EncodedBatchRequest):
    """A request that carries its booking into the batch, which another one may submit."""

    booking: Booking

    @classmethod
    def of(cls, encoded: EncodedBatchRequest, booking: Booking) -> BookedRequest:
        """A request as it was encoded, with its booking."""
        plain = {each.name: getattr(encoded, each.name) for each in fields(EncodedBatchRequest)}
        return cls(**plain, booking=booking)

    @property
    def known(self) -> SubmittedRequest | None:
        """The record of an earlier attempt that is to be taken up; None: there is none."""
        place = self.booking.place
        return None if place is None else place.known

    @property
    def submission(self) -> str | None:
        """In which an earlier attempt submitted it under the id that it has now."""
        known = self.known
        return known.submission if known and known.custom_id == self.custom_id else None


_Waiting = dict[str, tuple[Booking, LedgerEntry]]
"""By the request's id in its batch, what has no result yet."""


class Awaited:
    """By submission, what has no result yet.

    Results may never be read: beyond so many requests the oldest submissions are forgotten. Those
    that are read all the same are looked for in the ledger, as another process's are.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._count = 0
        self._by_submission: dict[str, _Waiting] = {}

    def add(self, submission: str, custom_id: str, booking: Booking, entry: LedgerEntry) -> None:
        """One more; the latest submission is never forgotten."""
        waiting = self._by_submission.setdefault(submission, {})
        self._count += custom_id not in waiting
        waiting[custom_id] = booking, entry
        while (
            self._count > self._most and (oldest := next(iter(self._by_submission))) != submission
        ):
            self.pop(oldest)

    def of(self, submission: str | None) -> _Waiting:
        """What is known of a submission."""
        return self._by_submission.get(submission or "", {})

    def pop(self, submission: str) -> _Waiting | None:
        """The same, to be settled; None: it is not of this process."""
        waiting = self._by_submission.pop(submission, None)
        self._count -= len(waiting or ())
        return waiting
