"""Settles the requests of batches when a result is read, or a batch is withdrawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any

from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.batch import Batch, BatchRequest, BatchResult

from ..ledger.entries import EntryState, LedgerEntry
from ..ledger.filters import LedgerFilter
from ..pricing.calculator import CostCalculator
from .booked_batches import (
    AWAITED,
    Booking,
    entry_id,
    journals_of,
    name_submission,
    submission_of,
)
from .pricer import describe_error
from .raw_answers import Body, RawAnswer
from .request_books import Foreseen, RequestBooks, Target
from .scope import scope_outside_of_runs

logger = logging.getLogger("fastroai.agent")


def keeping_submission(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def told(self: Model, batch: Batch) -> Batch:
        now: Batch = await method(self, batch)
        if (submission := submission_of(batch)) is not None and now is not batch:
            name_submission(now, submission)
        return now

    return told


def cancelling(method: Callable[..., Any]) -> Callable[..., Any]:
    keeping = keeping_submission(method)

    @wraps(method)
    async def cancelled(self: Model, batch: Batch) -> Batch:
        submission = submission_of(batch)
        awaited = list(AWAITED.of(submission).values())
        if any(_is_taken_up_again(booking) for booking, _ in awaited):
            logger.warning(
                "Batch %r is left running: its run takes it up when it is executed again. If it "
                "is not to be, cancel it at %s.",
                batch.id,
                batch.provider_name,
            )
            return batch
        now: Batch = await keeping(self, batch)
        reason = f"Batch {batch.id!r} was withdrawn; what it had answered is billed."
        for booking, entry in awaited:
            booking.books.note(replace(entry, error=reason))
        for journal in journals_of(booking for booking, _ in awaited):
            await journal.write(submission or "", withdrawn=True)
        return now

    return cancelled


def _is_taken_up_again(booking: Booking) -> bool:
    place = booking.place
    return place is not None and place.is_agents and place.journal.is_durable


def reading(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def read(self: Model, batch: Batch) -> list[BatchResult]:
        submission = submission_of(batch)
        try:
            results: list[BatchResult] = await method(self, batch)
        except ModelHTTPError as error:
            # The one kind that says that the job ended without having run anything.
            if type(error).__name__ == "BatchJobError":
                _refuse_all(submission, describe_error(error))
            raise
        if submission is not None:
            await _settle_all(self, batch, submission, results)
        return results

    return read


async def _settle_all(
    model: Model, batch: Batch, submission: str, results: Sequence[BatchResult]
) -> None:
    awaited = AWAITED.pop(submission)
    if awaited is None:
        try:
            awaited = await _booked_elsewhere(model, batch, submission, results)
        except Exception as error:  # whoever reads the results has paid for them
            logger.warning(
                "The entries of batch %r stay unsettled, as the ledger can't be asked for them: %s",
                batch.id,
                describe_error(error),
            )
            return
    for result in results:
        if (known := awaited.pop(result.custom_id, None)) is not None:
            _settle(model, result, *known)
    for booking, entry in awaited.values():
        reason = f"Batch {batch.id!r} ended without a result for it."
        booking.books.note(entry.settled(EntryState.UNSETTLED, error=reason))


async def _booked_elsewhere(
    model: Model, batch: Batch, submission: str, results: Sequence[BatchResult]
) -> dict[str, tuple[Booking, LedgerEntry]]:
    """What another process submitted, from the ledger of `FASTROAI_LEDGER_URL`, if that is set."""
    ids = {entry_id(submission, result.custom_id): result.custom_id for result in results}
    day = timedelta(days=1)
    around = LedgerFilter(since=batch.created_at - day, until=batch.created_at + day)
    scope = await scope_outside_of_runs()
    books = RequestBooks(CostCalculator(), scope=scope)
    booking = Booking(books, Target(model), Foreseen(), None)
    return {
        ids[entry.id]: (booking, entry)
        for entry in await scope.ledger.stored(around)
        if entry.id in ids and entry.state is EntryState.UNSETTLED
    }


def _settle(model: Model, result: BatchResult, booking: Booking, entry: LedgerEntry) -> None:
    if result.status in ("expired", "canceled"):
        reason = f"The batch ended before the model ran it ({result.status}): nothing is billed."
        _refuse(booking, entry, reason)
        return
    try:
        asked = BatchRequest(custom_id=result.custom_id, messages=[])
        response = model.batch_decode(result, asked)
    except ModelAPIError as error:
        _refuse(booking, entry, describe_error(error))
    except Exception as error:  # what it cost is unknown, and its agent is told by itself
        booking.books.note(entry.settled(EntryState.UNSETTLED, error=describe_error(error)))
    else:
        told = Body((result.body or "").encode())  # a line of the batch's file
        booking.books.settle(entry, booking.target, response, RawAnswer(told))


def _refuse_all(submission: str | None, reason: str) -> None:
    awaited = AWAITED.pop(submission or "") or {}
    for booking, entry in awaited.values():
        _refuse(booking, entry, reason)


def _refuse(booking: Booking, entry: LedgerEntry, reason: str) -> None:
    booking.books.note(entry.settled(EntryState.REFUSED, error=reason))
