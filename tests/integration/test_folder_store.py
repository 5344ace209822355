"""A local folder of results: a file is there as a whole or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastroai.storage.folder import FolderStore
from tests.support import forked

LENGTH = 4_000_000


def folder(path: Path) -> FolderStore:
    return FolderStore(path)


def files(path: Path) -> dict[str, int]:
    """The sizes of all files by name."""
    return {file.name: file.stat().st_size for file in path.rglob("*") if file.is_file()}


def partial(path: Path) -> list[str]:
    return [name for name in files(path) if name.startswith(".")]


async def test_what_was_written_is_read_replaced_and_deleted(tmp_path: Path):
    store = folder(tmp_path / "new" / "folder")
    with pytest.raises(FileNotFoundError):
        await store.get("a")
    for content in (b"first", b"second", b""):
        await store.put("below/a", content)
        assert await store.get("below/a") == content
        assert await store.get(str(store.resolve("below/a"))) == content
    assert await store.delete([store.resolve("below/a")]) == {}
    with pytest.raises(FileNotFoundError):
        await store.get("below/a")
    assert files(tmp_path) == {}


async def test_who_reads_while_another_writes_sees_the_old_or_the_new_and_nothing_between(
    tmp_path: Path,
):
    store = folder(tmp_path)
    whole = {bytes([byte]) * LENGTH for byte in b"ab"}
    await store.put("it", min(whole))

    async def write() -> None:
        for content in [*whole] * 10:
            await store.put("it", content)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await store.get("it") in whole
    await writing


async def test_a_write_that_is_cancelled_leaves_no_part_of_it(tmp_path: Path):
    store = folder(tmp_path)
    for wait in range(20):
        writing = asyncio.create_task(store.put(f"it-{wait}", b"x" * LENGTH))
        await asyncio.sleep(wait / 4000)
        writing.cancel()
        await asyncio.wait([writing])
    # The thread that writes can't be stopped, and ends what it does.
    while partial(tmp_path):  # noqa: ASYNC110  # only the folder knows
        await asyncio.sleep(0.01)
    assert set(files(tmp_path).values()) <= {LENGTH}


async def test_a_write_that_fails_says_why_and_leaves_no_part_of_it(tmp_path: Path):
    store = folder(tmp_path)
    (tmp_path / "it").mkdir()
    with pytest.raises(IsADirectoryError):
        await store.put("it", b"content")
    assert files(tmp_path) == {}


WRITES = """
import asyncio, sys
from tests.integration.test_folder_store import *

async def write():
    while True:
        await folder(Path(sys.argv[1])).put("it", b"x" * LENGTH)
        print("written", flush=True)

asyncio.run(write())
"""


def test_who_is_killed_while_writing_leaves_what_was_there_before(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with forked.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "it").read_bytes() == b"x" * LENGTH
