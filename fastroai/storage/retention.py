"""Deletes old records from a storage: step results, and answered requests of steps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import filterfalse
from typing import Literal

from ..errors import ResultStorageError
from .object_store import CONNECTIONS, ObjectStore, StoredObject
from .result_store import ITEMS, REQUESTS
from .signing import BEGINNING, is_sealed

Kind = Literal["result", "request", "items"]

MINIMUM_AGE = timedelta(hours=1)
"""Nothing younger is deleted: runs that are under way, or about to be tried again, may still need
it.
"""

# 32 digits: what has no key of ours, such as the error of a failed task, and the keys of Prefect's
# own policies.
_RESULT = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_REQUEST = re.compile(r"[0-9a-f]{64}-[1-9][0-9]*")
_ITEMS = re.compile(r"[0-9a-f]{32}-(?P<ns>[0-9]{20})-[0-9a-f]{32}(?:[0-9a-f]{32})?")


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What was deleted from a storage, or what would be, and what stays there.

    Attributes:
        location: The storage in messages.
        before: What was last written before this is old.
        dry_run: Whether nothing was deleted.
        results: Results of steps that were deleted.
        requests: Recorded requests and tool calls that were deleted.
        items: Chunks of items of mapped steps, and of their requests, that were deleted.
        size: Bytes of both.
        younger: Objects under the names of records that are not old.
        others: Objects in the same folders that are no records of fastroai.
        failures: Why they could not be looked into or deleted, by the paths of old objects that
            stay.
    """

    location: str
    before: datetime
    dry_run: bool
    results: int = 0
    requests: int = 0
    items: int = 0
    size: int = 0
    younger: int = 0
    others: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def note(self, stored: StoredObject) -> None:
        """Count this one as deleted."""
        match kind_of(stored.name):
            case "result":
                self.results += 1
            case "items":
                self.items += 1
            case _:
                self.requests += 1
        self.size += stored.size


async def prune(
    objects: ObjectStore,
    described: str,
    *,
    older_than: timedelta,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Pruned:
    """Delete records that were last written long ago.

    An object is deleted only if it has the name of a record and begins with a seal, made with
    whatever secret. A record's age counts from when it was written; that it was used later does not
    count.

    Args:
        objects: Where.
        described: The storage in messages.
        older_than: Age from which records are deleted, at least `MINIMUM_AGE`.
        dry_run: Find out only.
        now: Counts as the present, timezone-aware. None: it is.

    Raises:
        ValueError: The age is below the minimum, or too large.
        ResultStorageError: The storage can't be listed or does not answer. Says what was deleted
            until then.
    """
    pruned = Pruned(location=described, before=cutoff(older_than, now), dry_run=dry_run)
    try:
        # What is below other folders is somebody else's. With a prefix of that name, both are one.
        for folder in sorted(set(map(objects.resolve, ("", ITEMS, REQUESTS)))):
            async for page in objects.pages(folder):
                await _prune(page, objects, pruned)
    except ResultStorageError:
        raise
    except Exception as error:
        deleted = pruned.results + pruned.requests + pruned.items
        until_then = "" if dry_run else f" Until then, {deleted} records were deleted."
        raise ResultStorageError(
            f"Old results can't be deleted from {described}: {type(error).__name__}: {error}."
            f"{until_then} Check that the storage exists and can be reached, and that its "
            "credentials may list, read and delete there (FASTROAI_RESULT_STORAGE, "
            "FASTROAI_S3_ENDPOINT_URL, the AWS credentials)."
        ) from error
    return pruned


def cutoff(older_than: timedelta, now: datetime | None = None) -> datetime:
    """The time before which what was written is older than that.

    Raises:
        ValueError: See `prune`.
    """
    if older_than < MINIMUM_AGE:
        raise ValueError(
            "records younger than an hour are never deleted, since runs under way may need them. "
            "Specify 1h or more."
        )
    try:
        return (now or datetime.now(UTC)) - older_than
    except OverflowError as error:
        raise ValueError("the age is too large. Specify less.") from error


def kind_of(name: str) -> Kind | None:
    """What kind of record may have such a name."""
    if _RESULT.fullmatch(name):
        return "result"
    if _ITEMS.fullmatch(name):
        return "items"
    return "request" if _REQUEST.fullmatch(name) else None


async def _prune(page: list[StoredObject], objects: ObjectStore, pruned: Pruned) -> None:
    old = _old_ones(page, pruned)
    ours: dict[str, StoredObject] = {}
    for start in range(0, len(old), CONNECTIONS):
        records = await _records(old[start : start + CONNECTIONS], objects, pruned)
        ours |= {stored.path: stored for stored in records}
    failed = {} if pruned.dry_run else await objects.delete(list(ours))
    pruned.failures |= failed
    for path in filterfalse(failed.__contains__, ours):
        pruned.note(ours[path])


def _old_ones(page: list[StoredObject], pruned: Pruned) -> list[StoredObject]:
    """What may be an old record, by its name and time; the others are counted."""
    named = [stored for stored in page if kind_of(stored.name) is not None]
    pruned.others += len(page) - len(named)
    old = [stored for stored in named if _written(stored, stored.modified) < pruned.before]
    pruned.younger += len(named) - len(old)
    return old


def _written(stored: StoredObject, modified: datetime) -> datetime:
    """When what is in an object was written: of items that were merged, before the object was."""
    found = _ITEMS.fullmatch(stored.name)
    if found is None:
        return modified
    return min(modified, datetime.fromtimestamp(int(found["ns"]) // 10**9, UTC))


async def _records(
    old: Sequence[StoredObject], objects: ObjectStore, pruned: Pruned
) -> list[StoredObject]:
    """Those of them that are records; the others are counted."""
    peeked = await asyncio.gather(
        *(objects.peek(stored, BEGINNING) for stored in old), return_exceptions=True
    )
    ours = []
    for stored, found in zip(old, peeked, strict=True):
        match found:
            case FileNotFoundError():
                pass  # somebody else deletes, too
            case Exception() if not objects.is_transient(found):
                pruned.failures[stored.path] = f"{type(found).__name__}: {found}"
            case BaseException():
                raise found  # the others would meet the same
            case _, modified if _written(stored, modified) >= pruned.before:
                pruned.younger += 1  # written again since it was listed
            # A name is not enough: a folder of Prefect's own results, or of any other program
            # that names objects by digests, has such names, too.
            case beginning, _ if is_sealed(beginning):
                ours.append(stored)
            case _:
                pruned.others += 1
    return ours
