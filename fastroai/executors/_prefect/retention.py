"""Old records, deleted from a storage: results of steps, and the requests that were answered within
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import Any, Literal

from ...errors import ResultStorageError
from ...settings import load_settings
from ...storage.listing import Listing, Stored, listing_of
from ...storage.object_store import CONNECTIONS, NotThereError
from ...storage.signing import beginning_of_sealed
from .blocks import describe_storage, resolve_storage
from .journal import FOLDER
from .results import SERIALIZER

Kind = Literal["result", "request"]

MINIMUM_AGE = timedelta(hours=1)
"""Nothing younger is deleted: runs that are under way, or about to be tried again, may still need
it.
"""

# 32 digits: what has no key of ours, such as the error of a failed task, and the keys of Prefect's
# own policies.
_RESULT = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_REQUEST = re.compile(r"[0-9a-f]{64}-[1-9][0-9]*")


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What was deleted from a storage, or what would be, and what stays there.

    Attributes:
        location: The storage as people know it.
        before: What was last written before this is old.
        dry_run: Whether nothing was deleted.
        results: Results of steps that were deleted.
        requests: Recorded requests and tool calls that were deleted.
        size: Bytes of both.
        younger: Objects under the names of records that are not old.
        others: Objects in the same folders that are no records of fastroai, or can't be told to be.
        failures: Why they could not be looked into or deleted, by the paths of old objects that
            stay.
    """

    location: str
    before: datetime
    dry_run: bool
    results: int = 0
    requests: int = 0
    size: int = 0
    younger: int = 0
    others: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def note(self, objects: Iterable[Stored]) -> None:
        """Count these as deleted."""
        for stored in objects:
            if kind_of(stored.name) == "result":
                self.results += 1
            else:
                self.requests += 1
            self.size += stored.size


async def prune_results(
    *,
    older_than: timedelta,
    storage: Any = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Pruned:
    """Delete records that were last written long ago.

    An object is deleted only if it has the name of a record and begins as the record of that name
    does: sealed, by whatever secret, and a result by our serializer or a recorded request. A
    record's age counts from when it was written; that it was used later does not count.

    Args:
        older_than: Age from which records are deleted, at least `MINIMUM_AGE`.
        storage: Where, as `FASTROAI_RESULT_STORAGE`. None: as the settings say.
        dry_run: Find out only.
        now: Counts as the present, timezone-aware. None: it is.

    Raises:
        ValueError: The age is below the minimum, or reaches back before the calendar does.
        ResultStorageError: The storage can't be listed or does not answer. Says what was deleted
            until then.
    """
    before = cutoff(older_than, now)
    settings = load_settings()
    choice = storage if storage is not None else settings.result_storage
    pruned = Pruned(location=repr(str(choice)), before=before, dry_run=dry_run)
    try:
        block = await resolve_storage(choice, settings)
        pruned.location = describe_storage(choice, block)
        listing = listing_of(block, settings, pruned.location)
        async for page in listing.pages(("", FOLDER)):
            await _prune(page, listing, pruned)
    except ResultStorageError:
        raise
    except Exception as error:
        until_then = (
            ""
            if dry_run
            else f" Until then, {pruned.results + pruned.requests} records were deleted."
        )
        raise ResultStorageError(
            f"Old results can't be deleted from {pruned.location}: {type(error).__name__}: "
            f"{error}.{until_then} Check "
            "that the storage exists and can be reached, and that its credentials may list, read "
            "and delete there (FASTROAI_RESULT_STORAGE, FASTROAI_S3_ENDPOINT_URL, the AWS "
            "credentials)."
        ) from error
    return pruned


def cutoff(older_than: timedelta, now: datetime | None = None) -> datetime:
    """The time before which what was written is older than that.

    Raises:
        ValueError: See `prune_results`.
    """
    if older_than < MINIMUM_AGE:
        raise ValueError(
            "what is younger than an hour is never deleted, since runs under way may need it. Give "
            "1h or more."
        )
    try:
        return (now or datetime.now(UTC)) - older_than
    except OverflowError as error:
        raise ValueError("no calendar reaches back so far. Give less.") from error


async def _prune(page: list[Stored], listing: Listing, pruned: Pruned) -> None:
    named = [stored for stored in page if kind_of(stored.name) is not None]
    pruned.others += len(page) - len(named)
    old = [stored for stored in named if stored.modified < pruned.before]
    pruned.younger += len(named) - len(old)
    ours: list[Stored] = []
    for start in range(0, len(old), CONNECTIONS):
        ours += await _ours(old[start : start + CONNECTIONS], listing, pruned)
    failed = {} if pruned.dry_run else await listing.delete(ours)
    pruned.failures |= failed
    pruned.note(stored for stored in ours if stored.path not in failed)


async def _ours(old: list[Stored], listing: Listing, pruned: Pruned) -> list[Stored]:
    """Those of them that are records; the others are counted."""
    ours = []
    for stored, look in zip(old, await listing.look(old), strict=True):
        if isinstance(look, NotThereError):
            continue
        if isinstance(look, Exception):
            pruned.failures[stored.path] = f"{type(look).__name__}: {look}"
        elif look.modified >= pruned.before:  # written again since it was listed
            pruned.younger += 1
        elif is_record(stored.name, look.beginning):
            ours.append(stored)
        else:
            pruned.others += 1
    return ours


def kind_of(name: str) -> Kind | None:
    """What kind of record may have such a name."""
    if _RESULT.fullmatch(name):
        return "result"
    return "request" if _REQUEST.fullmatch(name) else None


def is_record(name: str, beginning: bytes) -> bool:
    """Whether what is stored under this name, and begins so, is a record of ours that was written
    under it.
    """
    record = beginning_of_sealed(beginning)
    if record is None:
        return False
    if kind_of(name) == "request":
        return re.match(rb'\{"format":[0-9]+,"place":"%b",' % name.encode(), record) is not None
    opening = '{"metadata":'
    text = record.decode(errors="replace")
    if kind_of(name) is None or not text.startswith(opening):
        return False
    try:
        metadata, _ = json.JSONDecoder().raw_decode(text, len(opening))
        return (
            metadata["serializer"] == {"type": SERIALIZER}
            and PurePath(metadata["storage_key"]).name == name
        )
    # or it does not end within what is looked at
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
