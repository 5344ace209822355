"""Every kind of storage behind one port: what it keeps, what it lists, and how it fails."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from pydantic import Field

from fastroai.errors import ResultStorageError
from fastroai.executors._prefect.blocks import BlockStore, store_of_block
from fastroai.settings import load_settings
from fastroai.storage.filesystem import FileSystemStore
from fastroai.storage.folder import FolderStore
from fastroai.storage.location import open_object_store
from fastroai.storage.object_store import ObjectStore, relative_name
from fastroai.storage.result_store import ResultStore
from fastroai.storage.retention import prune
from fastroai.storage.signing import Signer
from tests.support.flaky_filesystem import FlakyFileSystem
from tests.support.s3 import S3Service

RECORD = b'{"metadata":{},"result":"{}"}'


class Shelf(WritableFileSystem):
    """A block of somebody's own, whose errors are its own too."""

    _block_type_name = "shelf"
    objects: dict[str, bytes] = Field(default_factory=dict)
    missing: Any = None
    fails: bool = False

    async def read_path(self, path: str) -> bytes:
        if self.fails:
            raise ValueError("the shelf is locked")
        if path not in self.objects:
            raise self.missing(path)
        return self.objects[path]

    async def write_path(self, path: str, content: bytes) -> None:
        self.objects[path] = content


class ItemNotFoundError(Exception):
    """As `google.api_core.exceptions.NotFound` is, without a common base."""


def no_such_item(path: str) -> Exception:
    return ValueError(f"no {path!r} here")


def caused(path: str) -> Exception:
    error = ValueError(f"request {uuid4()} failed")
    error.__cause__ = FileNotFoundError(path)
    return error


def unclear(path: str) -> Exception:
    return ValueError(f"request {uuid4()} failed")


def refused(path: str) -> Exception:
    return ValueError(f"read of {path} denied")


def url(place: str) -> Callable[[Path, S3Service], ObjectStore]:
    def opened(folder: Path, s3: S3Service) -> ObjectStore:
        # What is in memory is the process's, not the test's.
        found = place.format(folder=folder, bucket=s3.bucket, unique=uuid4().hex)
        return open_object_store(found, load_settings())

    return opened


def block(make: Callable[[Path], WritableFileSystem]) -> Callable[[Path, S3Service], ObjectStore]:
    return lambda folder, s3: store_of_block(make(folder), load_settings())


STORES: dict[str, Callable[[Path, S3Service], ObjectStore]] = {
    "folder": url("{folder}/a/b"),
    "file URL": url("file://{folder}/a/b"),
    "S3": url("s3://{bucket}/a/b"),
    "S3 without a prefix": url("s3://{bucket}"),
    "memory URL": url("memory://{unique}/a"),
    "memory URL with a slash": url("memory://{unique}/b/"),
    "LocalFileSystem": block(lambda folder: LocalFileSystem(basepath=str(folder / "c"))),
    "RemoteFileSystem": block(
        lambda folder: RemoteFileSystem(basepath=f"memory://{uuid4().hex}/a")
    ),
    "file system with real folders": lambda folder, s3: FileSystemStore.open(f"file://{folder}/d"),
}


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, tmp_path: Path, s3: S3Service, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return STORES[request.param](tmp_path, s3)


async def listed(store: ObjectStore, folder: str = "") -> set[str]:
    return {
        relative_name(store, stored.name) async for page in store.pages(folder) for stored in page
    }


async def test_what_was_written_is_read_replaced_listed_and_deleted(store: ObjectStore):
    await store.probe()
    assert await listed(store) == set(), "the probe leaves nothing"
    with pytest.raises(FileNotFoundError):
        await store.get("x")
    for content in (b"first", b"second"):
        await store.put("x", content)
        assert await store.get("x") == content
        assert await store.get(store.resolve("x")) == content
    await store.put("requests/y", b"below")
    assert await store.get("requests/y") == b"below"
    assert await listed(store) == {"x"}
    assert await listed(store, "requests") == {"y"}
    assert await listed(store, "nothing") == set()
    assert await store.delete([store.resolve("x"), store.resolve("requests/y")]) == {}
    with pytest.raises(FileNotFoundError):
        await store.get("x")


async def test_a_name_is_the_same_before_and_after_it_was_resolved(store: ObjectStore):
    for name in ("ab" * 32, "requests/" + "ab" * 32 + "-1"):
        assert relative_name(store, name) == relative_name(store, store.resolve(name)) == name
        assert store.resolve(store.resolve(name)) == store.resolve(name)


async def test_old_records_are_deleted_from_every_storage_that_can_be_listed(store: ObjectStore):
    name, foreign = "ab" * 32, "cd" * 32
    await store.put(name, Signer().close(name, RECORD))
    await store.put(foreign, b"\x80\x04of somebody else")
    later = datetime.now(UTC) + timedelta(hours=2)
    for dry_run in (True, False):
        pruned = await prune(
            store, "here", older_than=timedelta(hours=1), dry_run=dry_run, now=later
        )
        assert (pruned.results, pruned.others, pruned.failures) == (1, 1, {})
    assert await listed(store) == {foreign}


@pytest.mark.parametrize("missing", [FileNotFoundError, KeyError, ItemNotFoundError, no_such_item])
async def test_a_block_is_asked_which_error_says_that_there_is_nothing(missing: Any):
    shelf = Shelf(missing=missing)
    store = BlockStore(shelf)
    await store.probe()
    with pytest.raises(FileNotFoundError):
        await store.get("never written")
    shelf.fails = True
    with pytest.raises(ValueError, match="locked"):
        await store.get("never written")


async def test_the_cause_of_a_blocks_error_is_believed_too():
    store = BlockStore(Shelf(missing=caused))
    await store.probe()
    with pytest.raises(FileNotFoundError):
        await store.get("never written")


@pytest.mark.parametrize("missing", [unclear, refused])
async def test_a_block_that_does_not_tell_nothing_from_a_failure_is_refused(missing: Any):
    store = ResultStore(
        BlockStore(Shelf(missing=missing)), Signer(), retry_seconds=0, described="the shelf"
    )
    with pytest.raises(ResultStorageError, match=r"the shelf.*FileNotFoundError"):
        await store.probe()


def test_a_package_that_a_url_needs_is_named():
    for place, package in (("gs://bucket/x", "gcsfs"), ("az://container/x", "adlfs")):
        with pytest.raises(ResultStorageError, match=package) as caught:
            open_object_store(place, load_settings())
        assert repr(place) in str(caught.value)
    with pytest.raises(ResultStorageError, match="nobody-knows"):
        open_object_store("nobody-knows://x/y", load_settings())


async def test_a_read_that_fails_is_no_absence(tmp_path: Path):
    folder = FolderStore(tmp_path / "r")
    await folder.put("x", b"content")
    (tmp_path / "r" / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        await folder.get("folder")
    (tmp_path / "r").rename(tmp_path / "away")
    (tmp_path / "r").write_text("a file where the folder was")
    with pytest.raises(NotADirectoryError):
        await folder.get("x")
    flaky = store_of_block(RemoteFileSystem(basepath="flaky://r"), load_settings())
    with FlakyFileSystem.fails("read"), pytest.raises(ConnectionResetError):
        await flaky.get("x")
    with pytest.raises(FileNotFoundError):
        await flaky.get("x")


@pytest.mark.parametrize("kind", [FolderStore, lambda path: FileSystemStore.open(f"file://{path}")])
async def test_a_link_that_leads_nowhere_is_no_absence(kind: Any, tmp_path: Path):
    """As to a disk that is not mounted."""
    store = kind(tmp_path / "r")
    await store.put("x", b"content")
    gone = tmp_path / "gone"
    (tmp_path / "r" / "record").symlink_to(gone)
    (tmp_path / "r" / "requests").symlink_to(gone)
    for name in ("record", "requests/record"):
        with pytest.raises(OSError, match=r"is a link to .*gone") as caught:
            await store.get(name)
        assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        await store.get("never written")


async def test_a_folder_that_is_a_link_to_nowhere_is_not_made_anew(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="link' is a link to"):
        await FolderStore(tmp_path / "link").probe()
    assert not (tmp_path / "gone").exists()


async def test_what_a_folder_keeps_is_readable_by_its_owner_only(tmp_path: Path):
    folder = FolderStore(tmp_path / "new" / "results")
    await folder.put("requests/x", b"a prompt")
    made = [tmp_path / "new", tmp_path / "new/results", tmp_path / "new/results/requests"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    assert stat.S_IMODE((made[-1] / "x").stat().st_mode) == 0o600


async def test_no_name_leads_out_of_a_folder(tmp_path: Path):
    folder = FolderStore(tmp_path / "r")
    for name in ("../x", "requests/../../x", "/etc/passwd", f"{tmp_path}/r2/x"):
        with pytest.raises(ValueError, match="outside"):
            folder.resolve(name)
