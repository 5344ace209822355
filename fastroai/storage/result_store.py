"""Signed records in one storage: read once, written now or as soon as the storage accepts them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..errors import ResultStorageError
from ..retries import Backoff, retry
from .object_store import PAGE, ObjectStore, relative_name
from .signing import Signer

T = TypeVar("T")

Clock = Callable[[], float]

logger = logging.getLogger("fastroai.executors")

HOLD_UP_SECONDS = 2.0
"""How long a storage that fails may hold up a step; after that it is tried again beside the run."""

BACKOFF = Backoff(0.1, longest=5.0)

REQUESTS = "requests"
"""Folder of the recorded requests, beside the results."""
ITEMS = "items"
"""Folder of the chunks of items' records, beside the results."""

CANT_BE_READ = (
    "%s can't be read now: %s. A result that may be there is not used. Its step is run, unless an "
    "earlier execution may have paid for a part of it."
)

KEPT_BYTES = 64 * 1024 * 1024
"""Records of earlier runs that are kept in the process because they could not be written."""
WAITING_BYTES = 64 * 1024 * 1024
"""Records that may wait in the process before whoever makes many has to wait, too."""
LOOK_SECONDS = 0.1


@dataclass(eq=False)
class Unwritten:
    """A record that waits for its storage.

    Attributes:
        owner: The step whose result it is; None for what no run misses once its step is done.
        content: The sealed record.
        cause: Why writing it failed last.
        since: When it failed first, by the store's clock.
    """

    owner: str | None
    content: bytes
    cause: Exception
    since: float


# By storage and name. Kept after a run, so that what it could not write is there when it is tried
# again.
_unwritten: dict[str, dict[str, Unwritten]] = {}


class ResultStore:
    """The records of one run in one storage.

    A storage that fails holds up the first step that meets it for a moment. From then on records
    wait in the process, are read from there, and are written beside the run until `flush`.

    Args:
        objects: Where the records are.
        signer: Seals them, and checks their seals.
        retry_seconds: How long writing a record is tried, from its first failure, before the run
            ends without it.
        described: The storage in messages.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        objects: ObjectStore,
        signer: Signer,
        *,
        retry_seconds: float,
        described: str,
        clock: Clock = time.monotonic,
    ) -> None:
        self.objects = objects
        self.described = described
        self._signer = signer
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._waiting = _unwritten.setdefault(objects.identity, {})
        self._written_here: set[str] = set()
        self._read_ahead: dict[str, bytes] = {}
        self._failed_at: float | None = None
        self._failure: Exception | None = None
        self._retrying: asyncio.Task[None] | None = None

    async def probe(self) -> None:
        """Make sure that records can be stored, and begin to write what waits to be.

        Raises:
            ResultStorageError: They can't. Names the storage, the cause and the remedy.
        """
        try:
            await self._insist(self.objects.probe)
        except Exception as error:
            # Of an object that is not there, the storage's own words say more.
            cause = (isinstance(error, FileNotFoundError) and error.__cause__) or error
            raise ResultStorageError(
                f"Results can't be stored at {self.described}: {_described(cause)}. Nothing was "
                "run or spent. Check that the storage exists, can be reached, and that its "
                "credentials may write, read and delete there (FASTROAI_RESULT_STORAGE, "
                "FASTROAI_S3_ENDPOINT_URL, the AWS credentials), or set FASTROAI_RESULT_STORAGE to "
                "a local folder."
            ) from error
        if self._waiting:  # of an earlier run in this process
            self.retry()

    async def read(self, path: str, *, twice: bool = False) -> bytes:
        """The record at a path.

        Args:
            path: As the storage has it, or within the storage.
            twice: Whether the same is going to be read once more, which then asks nobody.

        Raises:
            FileNotFoundError: There is none.
            ValueError: What is there is not a record that was sealed for this name.
            Exception: The storage can't be asked, so that there may be one.
        """
        name = relative_name(self.objects, path)
        # The newest is here, whatever the storage has under that name.
        if name in self._waiting:
            return self._signer.open(name, self._waiting[name].content)
        found = self._read_ahead.pop(name, None)
        if found is None:
            try:
                content = await self._insist(partial(self.objects.get, name))
            except Exception as error:
                if not isinstance(error, FileNotFoundError):
                    logger.warning(CANT_BE_READ, self.described, _described(error))
                raise
            found = self._signer.open(name, content)
            if twice:
                self._read_ahead[name] = found
        return found

    async def names_in(self, folder: str, beginning: str) -> list[str]:
        """The names of the records right in a folder that begin so, those included that wait to be
        written.

        Raises:
            Exception: The storage can't be asked.
        """
        found = await self._insist(partial(self._listed, folder, beginning))
        waiting = (name for name in self._waiting if name.startswith(f"{folder}/{beginning}"))
        return [*found, *(name.rpartition("/")[2] for name in waiting)]

    async def _listed(self, folder: str, beginning: str) -> list[str]:
        pages = self.objects.pages(folder, beginning)
        return [stored.name async for page in pages for stored in page]

    async def delete(self, folder: str, names: Sequence[str]) -> None:
        """Delete records right in a folder."""
        paths = [self.objects.resolve(f"{folder}/{name}") for name in names]
        for start in range(0, len(paths), PAGE):
            await self.objects.delete(paths[start : start + PAGE])

    async def write(self, path: str, record: bytes, owner: str | None) -> bool:
        """Write a record; one that can't be written now waits.

        The failure is only logged for debugging where the record has no owner.

        Returns:
            Whether the storage has it.
        """
        name = relative_name(self.objects, path)
        # What was read ahead is the record that this one replaces.
        self._read_ahead.pop(name, None)
        self._written_here.add(name)
        content = self._signer.close(name, record)
        try:
            await self._insist(partial(self.objects.put, name, content))
        except Exception as error:
            # The step is paid for and done: that it can't be stored now is no reason to fail it.
            log = logger.debug if owner is None else logger.warning
            log(
                "The result of step %r can't be written to %s now: %s. The run goes on, and "
                "writing is tried again.",
                owner,
                self.described,
                _described(error),
            )
            self._waiting[name] = Unwritten(owner, content, error, self._clock())
            self.retry()
            return False
        self._waiting.pop(name, None)
        return True

    async def room(self) -> None:
        """Wait while very much waits to be written, which would fill the memory in the end.

        Raises:
            ResultStorageError: It could not be written for as long as is tried.
        """
        began: float | None = None
        while (size := self._waiting_bytes()) > WAITING_BYTES:
            described = f"{size / 1e6:,.1f} MB of results can't be written to {self.described}"
            # What an earlier run has left may not have been tried again yet.
            failure = self._failure or next(iter(self._waiting.values())).cause
            cause = _described(failure)
            if began is None:
                began = self._clock()
                logger.warning("%s now: %s. Nothing more is begun until it is.", described, cause)
                self.retry()
            elif self._clock() - began > self._retry_seconds:
                raise ResultStorageError(
                    f"{described}: {cause}. They wait in this process, and nothing more was begun. "
                    "Run again when the storage answers, or give it more time "
                    "(FASTROAI_RESULT_RETRY_SECONDS)."
                ) from failure
            await asyncio.sleep(LOOK_SECONDS)

    def _waiting_bytes(self) -> int:
        return sum(len(unwritten.content) for unwritten in self._waiting.values())

    def retry(self) -> None:
        """Begin to write what waits, beside the run."""
        if self._waiting and not self._is_retrying():
            self._retrying = asyncio.create_task(self._retry(), name="fastroai-results")

    async def flush(self, *, wait: bool) -> dict[str, str]:
        """Give what waits its last chance; for the end of a run.

        Args:
            wait: Whether a storage that fails gets the time that is left, or one more attempt only.

        Returns:
            Why it was not written, by the owner of each record of this run that was not.
        """
        # From here on one loop writes, so that its last attempt is not made twice.
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait({self._retrying})
        failures = 0
        while self._waiting:
            await self._write_waiting()
            failures += 1
            left = self._time_left() if wait else 0.0
            if left <= 0:
                break
            await asyncio.sleep(min(BACKOFF.after(failures), left))
        lost = {owner: _described(unwritten.cause) for owner, unwritten in self._mine()}
        _forget_the_oldest(self._waiting)
        return lost

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call the storage, for a moment also again and again; not at all while it is known to
        fail.
        """
        # Each step would otherwise wait in turn for what the first one found out.
        if self._failed_at is not None and (
            self._is_retrying() or self._clock() - self._failed_at < BACKOFF.longest
        ):
            raise ConnectionError(
                f"it failed a moment ago: {_described(self._failure)}"
            ) from self._failure
        gives_up = self._clock() + HOLD_UP_SECONDS

        def delay_after(error: Exception, failures: int) -> float | None:
            if isinstance(error, FileNotFoundError):
                return None  # an answer
            pause = BACKOFF.after(failures)
            if self.objects.is_transient(error) and self._clock() + pause <= gives_up:
                return pause
            self._note(error)
            return None

        result = await retry(lambda _: call(), delay_after)
        self._failed_at = None
        return result

    def _note(self, error: Exception) -> None:
        self._failed_at, self._failure = self._clock(), error

    def _is_retrying(self) -> bool:
        return self._retrying is not None and not self._retrying.done()

    async def _retry(self) -> None:
        failures = 1
        while self._waiting:
            await asyncio.sleep(BACKOFF.after(failures))
            await self._write_waiting()
            failures += 1

    async def _write_waiting(self) -> None:
        """One attempt for what waits, the oldest first."""
        for name, unwritten in list(self._waiting.items()):
            try:
                await self.objects.put(name, unwritten.content)
            except Exception as error:
                self._note(error)
                unwritten.cause = error
                if self.objects.is_transient(error):
                    return  # the others would meet the same
            else:
                self._failed_at = None
                # Not what was written anew meanwhile, which waits in its place.
                if self._waiting.get(name) is unwritten:
                    del self._waiting[name]

    def _mine(self) -> list[tuple[str, Unwritten]]:
        """The results of this run that wait, and their steps."""
        return [
            (unwritten.owner, unwritten)
            for name, unwritten in self._waiting.items()
            if name in self._written_here and unwritten.owner is not None
        ]

    def _time_left(self) -> float:
        """Seconds for which it is worth trying on: none for what was refused."""
        hopeful = [
            unwritten.since
            for _, unwritten in self._mine()
            if self.objects.is_transient(unwritten.cause)
        ]
        return max(hopeful) + self._retry_seconds - self._clock() if hopeful else 0.0


def _described(error: BaseException | None) -> str:
    """Without a full stop: a sentence goes on behind it."""
    return f"{type(error).__name__}: {error}".rstrip(". ")


def _forget_the_oldest(waiting: dict[str, Unwritten]) -> None:
    size = sum(len(unwritten.content) for unwritten in waiting.values())
    for name in list(waiting):
        if size <= KEPT_BYTES:
            break
        size -= len(waiting.pop(name).content)
