"""Records in a storage that fails for a while: what is tried when, what waits, and what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import pytest

from fastroai.errors import ResultStorageError
from fastroai.storage import result_store
from fastroai.storage.object_store import ObjectStore
from fastroai.storage.result_store import BACKOFF, HOLD_UP_SECONDS, ResultStore
from fastroai.storage.signing import Signer
from tests.support.clock import on_virtual_clock

RECORD = b'{"result":"1"}'
_numbers = count()


class Place(ObjectStore):
    """An object store in this process that fails while `error` is set."""

    def __init__(self) -> None:
        self.identity = f"place {next(_numbers)}"
        self.objects: dict[str, bytes] = {}
        self.error: Exception | None = None
        self.calls = 0
        self.refuses = False

    def resolve(self, path: str) -> str:
        return path

    async def get(self, name: str) -> bytes:
        self._call()
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self.objects[name]

    async def put(self, name: str, content: bytes) -> None:
        self._call()
        self.objects[name] = content

    async def delete(self, paths: Sequence[str]) -> dict[str, str]:
        self._call()
        for path in paths:
            self.objects.pop(path, None)
        return {}

    def is_transient(self, error: Exception) -> bool:
        return not self.refuses

    def _call(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


def opened(place: Place, *, retry_seconds: float = 30.0) -> ResultStore:
    clock = asyncio.get_running_loop().time
    return ResultStore(
        place, Signer(), retry_seconds=retry_seconds, described="the place", clock=clock
    )


def in_no_time(test: Callable[[], Awaitable[Any]]) -> Any:
    """What a test gives, and the seconds that passed on its clock."""

    async def main() -> Any:
        return await test()

    return on_virtual_clock(main)


def test_a_store_is_asked_on_a_host_that_was_just_started():
    place = Place()
    store = ResultStore(
        place, Signer(), retry_seconds=0, described="the place", clock=lambda: 0.125
    )
    asyncio.run(store.probe())
    assert place.calls == 3


def test_a_failure_holds_up_one_step_for_a_moment_and_the_next_ones_not_at_all():
    async def test() -> None:
        place = Place()
        store = opened(place)
        place.error = ConnectionError("down")
        clock = asyncio.get_running_loop().time
        began = clock()
        with pytest.raises(ConnectionError, match="down"):
            await store.read("a")
        assert 0 < clock() - began <= HOLD_UP_SECONDS
        calls, began = place.calls, clock()
        with pytest.raises(ConnectionError, match=r"a moment ago: .*down$") as caught:
            await store.read("b")
        assert caught.value.__cause__ is place.error
        assert (place.calls, clock()) == (calls, began)
        await asyncio.sleep(BACKOFF.longest)
        place.error = None
        with pytest.raises(FileNotFoundError):
            await store.read("b")

    in_no_time(test)


def test_what_is_refused_is_not_tried_again():
    async def test() -> None:
        place = Place()
        place.error, place.refuses = PermissionError("no"), True
        with pytest.raises(ResultStorageError, match=r"the place.*PermissionError: no"):
            await opened(place).probe()
        assert place.calls == 1

    assert in_no_time(test)[1] == 0


def test_a_record_that_waits_is_read_from_the_process_and_written_when_the_storage_is_back():
    async def test() -> None:
        place = Place()
        store = opened(place)
        place.error = ConnectionError("down")
        await store.write("a", RECORD, "step")
        assert await store.read("a") == RECORD
        assert place.objects == {}
        await asyncio.sleep(1)
        place.error = None
        await asyncio.sleep(10)
        assert Signer().open("a", place.objects["a"]) == RECORD
        assert await store.flush(wait=True) == {}

    in_no_time(test)


@pytest.mark.parametrize("wait", [True, False])
def test_the_end_of_a_run_waits_as_long_as_it_is_told_and_names_what_is_lost(wait: bool):
    async def test() -> dict[str, str]:
        place = Place()
        store = opened(place, retry_seconds=30.0)
        place.error = ConnectionError("down")
        await store.write("a", RECORD, "step")
        await store.write("requests/x", RECORD, None)
        return await store.flush(wait=wait)

    lost, seconds = in_no_time(test)
    assert lost == {"step": "ConnectionError: down"}
    assert (30 <= seconds < 40) if wait else seconds < 3


def test_the_next_run_of_the_process_writes_what_the_last_one_could_not():
    async def test() -> None:
        place = Place()
        first = opened(place, retry_seconds=0)
        place.error = ConnectionError("down")
        await first.write("a", RECORD, "step")
        assert set(await first.flush(wait=True)) == {"step"}
        place.error = None
        second = opened(place)
        assert await second.read("a") == RECORD
        second.retry()
        assert await second.flush(wait=True) == {}
        assert Signer().open("a", place.objects["a"]) == RECORD

    in_no_time(test)


def test_a_record_that_is_read_twice_is_asked_for_once():
    async def test() -> None:
        place = Place()
        store = opened(place)
        await store.write("a", RECORD, "step")
        calls = place.calls
        assert await store.read("a", twice=True) is await store.read("a")
        assert place.calls == calls + 1

    in_no_time(test)


def test_who_waits_for_what_an_earlier_run_has_left_is_told_why_it_could_not_be_written(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(result_store, "WAITING_BYTES", 0)

    async def test() -> None:
        place = Place()
        place.error = ConnectionError("down")
        assert not await opened(place).write("a", RECORD, "step")
        again = opened(place, retry_seconds=0)
        with pytest.raises(ResultStorageError, match="ConnectionError: down") as caught:
            await again.room()
        assert caught.value.__cause__ is place.error

    in_no_time(test)
