"""Records in chunks: whoever writes, merges or fails meanwhile, none is lost, and the last one of a
key counts.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from fastroai.errors import ResultStorageError
from fastroai.replay.chunked_records import ALONE_BYTES, MANY, ChunkedRecords
from fastroai.storage.folder import FolderStore
from fastroai.storage.result_store import ResultStore
from fastroai.storage.signing import Signer

SUBJECT = "ab" * 16


class CountedFolder(FolderStore):
    """A folder that counts what is read of it, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: Counter[str] = Counter()
        self.is_broken = False

    async def get(self, name: str) -> bytes:
        self.read[name] += 1
        if self.is_broken:
            raise PermissionError("not now")
        return await super().get(name)

    def is_transient(self, error: Exception) -> bool:
        return False


@pytest.fixture
def objects(tmp_path: Path) -> CountedFolder:
    return CountedFolder(tmp_path)


def records_in(objects: FolderStore) -> ChunkedRecords:
    """As another process has them."""
    store = ResultStore(objects, Signer(), retry_seconds=1, described="the folder")
    return ChunkedRecords(store, SUBJECT, "each")


async def opened(objects: FolderStore) -> ChunkedRecords:
    records = records_in(objects)
    await records.open()
    return records


async def write_one_by_one(objects: FolderStore, keys: list[str], content: bytes = b"1") -> None:
    """Each in a chunk of its own, as so many runs would."""
    for key in keys:
        records = records_in(objects)
        records.add(key, content)
        await records.close()


def files(objects: FolderStore) -> list[Path]:
    return sorted(Path(objects.resolve("items")).glob(f"{SUBJECT}-*"))


async def test_what_one_process_wrote_another_finds(objects: CountedFolder) -> None:
    writing = records_in(objects)
    for number in range(100):
        writing.add(f"key {number}", f'"record {number}"'.encode())
    await writing.close()
    assert len(files(objects)) == 1
    reading = await opened(objects)
    assert await reading.read("key 7") == b'"record 7"'
    assert await reading.read("key 100") is None


async def test_a_record_is_stored_when_its_writing_returns(objects: CountedFolder) -> None:
    writing = records_in(objects)
    await asyncio.gather(*(writing.write(f"{number}", b"1") for number in range(20)))
    assert await (await opened(objects)).read("19") == b"1"


async def test_of_two_records_of_one_key_the_later_counts(objects: CountedFolder) -> None:
    large = b"2" * ALONE_BYTES
    for content in (b"1", large, b"3"):
        await write_one_by_one(objects, ["key", "another"], content)
        assert await (await opened(objects)).read("key") == content


async def test_a_large_record_is_read_only_when_it_is_asked_for(objects: CountedFolder) -> None:
    await write_one_by_one(objects, ["large", "huge"], b"2" * ALONE_BYTES)
    reading = await opened(objects)
    assert not objects.read
    assert await reading.read("huge") == b"2" * ALONE_BYTES
    assert objects.read.total() == 1


async def test_a_chunk_that_many_want_is_read_once(objects: CountedFolder) -> None:
    writing = records_in(objects)
    for number in range(50):
        writing.add(f"{number}", b"1")
    await writing.close()
    reading = await opened(objects)
    found = await asyncio.gather(*(reading.read(f"{number}") for number in range(50)))
    assert found == [b"1"] * 50
    assert max(objects.read.values()) == 1


async def test_many_small_chunks_become_few_and_keep_the_last_record_of_each_key(
    objects: CountedFolder,
) -> None:
    keys = [f"key {number}" for number in range(MANY)]
    await write_one_by_one(objects, keys, b"1")
    await write_one_by_one(objects, ["key 0"], b"2" * (ALONE_BYTES + 1))
    await write_one_by_one(objects, ["key 1"], b"3")
    earlier = records_in(objects)
    await earlier._index()  # of a run that began before they were merged
    await opened(objects)
    assert len(files(objects)) == 2
    for records in (earlier, await opened(objects)):
        found = {key: await records.read(key) for key in keys}
        expected = dict.fromkeys(keys, b"1") | {
            "key 0": b"2" * (ALONE_BYTES + 1),
            "key 1": b"3",
        }
        assert found == expected


async def test_several_that_merge_and_write_at_once_lose_nothing(objects: CountedFolder) -> None:
    keys = [f"key {number}" for number in range(2 * MANY)]
    await write_one_by_one(objects, keys)
    writing = records_in(objects)

    async def write_meanwhile() -> None:
        for number in range(20):
            await writing.write(f"new {number}", b"1")

    found, *_ = await asyncio.gather(
        opened(objects), opened(objects), opened(objects), write_meanwhile()
    )
    late = await opened(objects)
    for key in [*keys, *(f"new {number}" for number in range(20))]:
        assert await late.read(key) == b"1"
    assert [await found.read(key) for key in keys] == [b"1"] * len(keys)
    assert len(files(objects)) < MANY


@pytest.mark.parametrize("damage", ["cut off", "moved", "another secret", "no chunk"])
async def test_a_chunk_that_was_tampered_with_is_as_good_as_missing(
    objects: CountedFolder, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await write_one_by_one(objects, ["kept", "lost"])
    _, second = files(objects)
    content = second.read_bytes()
    name = f"items/{second.name}"
    if damage == "cut off":
        second.write_bytes(content[:-1])
    elif damage == "moved":
        second.rename(second.with_name(f"{SUBJECT}-{'9' * 20}-{'cd' * 16}"))
    elif damage == "another secret":
        forged = json.dumps({"format": 1, "records": {"lost": "{}"}}).encode()
        second.write_bytes(Signer(secret=b"another").close(name, forged.replace(b'", "', b'","')))
    else:
        second.write_bytes(Signer().close(name, b'{"format":1,"records":{"lost":1}}'))
    reading = await opened(objects)
    assert (await reading.read("kept"), await reading.read("lost")) == (b"1", None)
    assert "are not used" in caplog.text


async def test_a_storage_that_fails_is_no_storage_without_records(objects: CountedFolder) -> None:
    await write_one_by_one(objects, ["small"])
    await write_one_by_one(objects, ["large"], b"1" * ALONE_BYTES)
    reading = await opened(objects)
    objects.is_broken = True
    with pytest.raises(ResultStorageError, match="None is asked for again"):
        await opened(objects)
    with pytest.raises(ResultStorageError, match="not now"):
        await reading.read("large")
