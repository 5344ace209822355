"""Books the requests of batches when they are submitted, an entry each, and submits none twice."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from typing import Any, Final
from uuid import uuid4

from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.batch import Batch, BatchRequest, EncodedBatchRequest

from ..ledger.entries import EntryState, LedgerEntry
from ..pricing.calculator import CostCalculator
from ..replay.encoding import adapter_of
from ..replay.requests import RequestOfModel
from .booked_batches import (
    AWAITED,
    BookedRequest,
    Booking,
    Place,
    Submission,
    SubmittedRequest,
    batch_as_json,
    entry_id,
    journals_of,
    name_submission,
    place_of_request,
)
from .models import innermost
from .outcomes import settle_failure
from .request_books import Foreseen, RequestBooks, Target
from .scope import DispatchScope, current_scope, scope_outside_of_runs


def booked_request(
    encoded: EncodedBatchRequest,
    request: BatchRequest,
    books: RequestBooks,
    model: Model,
    place: Place | None,
) -> BookedRequest:
    """An encoded request with its booking.

    Raises:
        UnknownModelPriceError: `FASTROAI_UNPRICED` refuses it. Nothing is sent or booked.
    """
    target = Target(model)
    asked = RequestOfModel(
        request.messages, request.model_settings, request.model_request_parameters
    )
    foreseen = replace(books.foresee(target, asked), service_tier="batch")
    return BookedRequest.of(encoded, Booking(books, target, foreseen, place))


def encoding(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def encoded(self: Model, request: BatchRequest) -> EncodedBatchRequest:
        plain: EncodedBatchRequest = await method(self, request)
        scope = current_scope()
        if scope is None:
            return plain
        place = place_of_request.get() or await _place_in(scope, self, plain)
        books = RequestBooks(CostCalculator(), scope=scope)
        return booked_request(plain, request, books, self, place)

    return encoded


async def _place_in(scope: DispatchScope, model: Model, plain: EncodedBatchRequest) -> Place | None:
    if scope.journal is None:
        return None
    name = scope.journal.place("batch", model.model_id, plain.body)
    known = await scope.journal.read(name, adapter_of(SubmittedRequest))
    return Place(scope.journal, name, known)


async def _all_booked(
    model: Model, requests: Sequence[EncodedBatchRequest]
) -> Sequence[EncodedBatchRequest]:
    """The requests of a batch, also those that were encoded outside of any scope: they are booked
    to whoever submits them, or as outside of runs where others beside them are booked.
    """
    booked = [request for request in requests if isinstance(request, BookedRequest)]
    scope = current_scope()
    if len(booked) == len(requests) or (scope is None and not booked):
        return requests
    scope = scope or await scope_outside_of_runs()
    books, target = RequestBooks(CostCalculator(), scope=scope), Target(model)
    books.foresee(target, RequestOfModel([], None, ModelRequestParameters()))
    # What it can cost at most was to be read from the messages, which are encoded by now.
    foreseen = Foreseen(service_tier="batch")
    return [
        request
        if isinstance(request, BookedRequest)
        else BookedRequest.of(
            request, Booking(books, target, foreseen, await _place_in(scope, model, request))
        )
        for request in requests
    ]


def creating(method: Callable[..., Awaitable[Batch]]) -> Callable[..., Any]:
    @wraps(method)
    async def created(self: Model, requests: Sequence[EncodedBatchRequest]) -> Batch:
        if is_submitting(self):
            return await method(self, requests)
        requests = await _all_booked(self, requests)
        booked = [request for request in requests if isinstance(request, BookedRequest)]
        if not booked:
            return await method(self, requests)
        if (known := await _submitted_before(self, booked)) is not None:
            return known
        token = _submitting.set(self)
        try:
            return await _Submitter(self, booked).send(lambda: method(self, requests))
        finally:
            _submitting.reset(token)

    return created


# Ambient: a simulated batch asks its own model, and a class may ask its base.
_submitting: ContextVar[Model | None] = ContextVar("fastroai_submitting", default=None)


def is_submitting(model: Model) -> bool:
    """Whether a model is within a submission of its own: what it asks then is in the batch."""
    return _submitting.get() is model


submitted_by = _submitting.get
"""Gives the model by which a batch is being submitted here, whose requests are booked."""


class _Submitter:
    """The requests that are submitted as one batch."""

    def __init__(self, model: Model, requests: Sequence[BookedRequest]) -> None:
        self._model = model
        self._requests = requests
        self._id = str(uuid4())
        self._sent: list[tuple[Booking, LedgerEntry]] = []

    async def send(self, create: Callable[[], Any]) -> Batch:
        """Book the requests, submit them, and leave word where a further attempt looks for it."""
        try:
            for request in self._requests:
                await self._intend(request)
            await self._write({"ids": [request.custom_id for request in self._requests]})
        except BaseException as error:
            self._fail(error, left=False)
            raise
        try:
            batch: Batch = await create()
        except BaseException as error:
            self._fail(error, left=None)
            raise
        name_submission(batch, self._id)
        await self._write({"batch": batch_as_json(batch)})
        for request, (booking, entry) in zip(self._requests, self._sent, strict=True):
            awaited = replace(entry, error=f"In batch {batch.id!r}, whose result was not read yet.")
            booking.books.note(awaited)
            AWAITED.add(self._id, request.custom_id, booking, entry)
        return batch

    async def _intend(self, request: BookedRequest) -> None:
        booking, id_ = request.booking, entry_id(self._id, request.custom_id)
        entry = booking.books.draft(booking.target, booking.foreseen, id_)
        if booking.place is not None:
            # Before the ledger has it, so that an attempt that finds it can say that it never left.
            dumped = adapter_of(LedgerEntry).dump_python(entry, mode="json")
            await booking.place.journal.write(
                booking.place.name,
                submission=self._id,
                custom_id=request.custom_id,
                entry=dumped,
            )
        self._sent.append((booking, entry))
        booked = await booking.books.intend(entry)
        self._sent[-1] = booking, booked

    async def _write(self, record: dict[str, Any]) -> None:
        """For all requests at once, once in each journal that is asked for it."""
        for journal in journals_of(request.booking for request in self._requests):
            await journal.write(self._id, **record)

    def _fail(self, error: BaseException, *, left: bool | None) -> None:
        for booking, entry in self._sent:
            settled = settle_failure(entry, error, left=left)
            if isinstance(error, ModelHTTPError) and error.status_code >= 500:
                # The provider may have created the batch all the same.
                settled = replace(settled, state=EntryState.UNSETTLED)
            booking.books.note(settled)


async def _submitted_before(model: Model, requests: Sequence[BookedRequest]) -> Batch | None:
    """The batch in which an earlier attempt submitted just these requests."""
    submission, *others = {request.submission for request in requests}
    if submission is None or others:
        return None
    batch = None
    for request in requests:
        batch = await take_up(model, request)
    return batch


async def take_up(model: Model, request: BookedRequest) -> Batch | None:
    """Wait for what an earlier attempt submitted.

    Args:
        model: That reads the result.
        request: As it is asked now, with the record of its submission.

    Returns:
        Its batch. None: it never left, or its batch can't be found; it is to be submitted now.
    """
    booking, record = request.booking, request.known
    assert booking.place is not None
    assert record is not None
    submission, entry = record.submission, record.entry
    told = await booking.place.journal.read(submission, adapter_of(Submission))
    if told is None:
        booking.books.note(settle_failure(entry, InterruptedError(_ENDED), left=False))
        return None
    batch: Batch | None = told.batch
    if told.withdrawn:
        return None
    if batch is None:
        if not _can_be_asked(model):
            booking.books.note(replace(entry, error=_MAYBE_SUBMITTED))
            return None
        batch = await find_batch(model, told.ids, entry, request.group)
        if batch is None:
            booking.books.note(settle_failure(entry, InterruptedError(_ENDED), left=False))
            return None
        name_submission(batch, submission)
        await booking.place.journal.write(submission, batch=batch_as_json(batch))
    AWAITED.add(submission, record.custom_id, booking, booking.books.resume(entry))
    return batch


_ENDED: Final = "The process ended before the batch was submitted."
_MAYBE_SUBMITTED: Final = "The process ended while the batch was submitted."


def _can_be_asked(model: Model) -> bool:
    """Whether the provider can be asked for a batch whose id is not known: OpenAI's batches name
    the files in which their requests' ids are.
    """
    client = getattr(innermost(model), "client", None)
    return hasattr(client, "batches") and hasattr(client, "files")


async def find_batch(
    model: Model, custom_ids: Sequence[str], entry: LedgerEntry, group: str
) -> Batch | None:
    """The batch that was submitted just before a process ended; None: there is none."""
    client: Any = getattr(innermost(model), "client", None)
    since = entry.sent_at.timestamp() - _CLOCKS_APART
    async for listed in client.batches.list(limit=100):
        if listed.created_at < since:
            return None
        if await _ids_in_file(client, listed.input_file_id) == set(custom_ids):
            handle = Batch(
                id=listed.id,
                model_name=model.model_name,
                provider_name=model.system,
                group=group,
                status="in_progress",
                created_at=entry.sent_at,
                request_count=len(custom_ids),
            )
            return await model.batch_status(handle)
    return None


async def _ids_in_file(client: Any, file_id: str) -> set[str] | None:
    """The ids of the requests in a batch's input; None where it is gone, or not of this kind."""
    try:
        lines = (await client.files.content(file_id)).text.splitlines()
        return {json.loads(line)["custom_id"] for line in lines if line}
    except (ValueError, KeyError, TypeError):
        return None
    except Exception as error:
        if getattr(error, "status_code", None) == 404:
            return None
        raise


_CLOCKS_APART: Final = 300
"""Seconds by which the provider's clock may be behind."""
