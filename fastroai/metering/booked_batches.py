"""Requests of batches with their bookings, from when they are encoded until a result is read."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Final
from uuid import UUID, uuid5

from pydantic_ai.models.batch import Batch, EncodedBatchRequest

from ..ledger.entries import LedgerEntry
from ..replay.encoding import adapter_of
from ..replay.journal import Journal, JournalRecord
from .request_books import Foreseen, RequestBooks, Target


@dataclass(frozen=True, slots=True)
class SubmittedRequest(JournalRecord):
    """That a request was submitted, at its place in the journal."""

    submission: str
    custom_id: str
    entry: LedgerEntry


@dataclass(frozen=True, slots=True)
class Submission(JournalRecord):
    """What is known of a submission, under its id: what it is about to submit, then its batch."""

    ids: list[str] = field(default_factory=list)
    batch: Batch | None = None
    withdrawn: bool = False


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


AWAITED: Final = Awaited()
"""Of the process, because any agent that waits for a batch may be the one that reads it."""

_SUBMISSION: Final = "fastroai_submission"
"""Under which a batch's `provider_details` name its submission, from which its entries' ids are."""


def journals_of(bookings: Iterable[Booking]) -> list[Journal]:
    """Where requests have their places, each once."""
    places = [booking.place for booking in bookings if booking.place is not None]
    return list({id(place.journal): place.journal for place in places}.values())


def name_submission(batch: Batch, submission: str) -> None:
    batch.provider_details = {**(batch.provider_details or {}), _SUBMISSION: submission}


def submission_of(batch: Batch) -> str | None:
    submission = (batch.provider_details or {}).get(_SUBMISSION)
    return submission if isinstance(submission, str) else None


def batch_as_json(batch: Batch) -> Any:
    return adapter_of(Batch).dump_python(batch, mode="json")


def entry_id(submission: str, custom_id: str) -> str:
    """The id of a request's entry, by which whoever reads its result finds it."""
    return str(uuid5(UUID(submission), custom_id))
