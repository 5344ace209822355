"""The object store at a URL or in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ResultStorageError
from ..settings import FastroAISettings
from .folder import FolderStore
from .object_store import ObjectStore


def open_object_store(place: str | os.PathLike[str], settings: FastroAISettings) -> ObjectStore:
    """The store at `s3://bucket/prefix`, any other URL that fsspec knows, or a local folder.

    Nothing is asked of it yet.

    Raises:
        ResultStorageError: fsspec doesn't know the URL, or lacks a package for it.
    """
    scheme, separator, path = str(place).partition("://")
    if isinstance(place, Path) or not separator:
        return FolderStore(Path(place))
    if scheme in ("file", "local"):
        return FolderStore(Path(path))
    if scheme == "s3":
        from .s3 import s3_store

        return s3_store(str(place), settings)
    from .filesystem import FileSystemStore

    try:
        return FileSystemStore.open(str(place))
    except (ImportError, ValueError) as error:
        raise ResultStorageError(
            f"Results can't be stored at {place!r}: {error}. Install the package it needs, or set "
            "FASTROAI_RESULT_STORAGE to another place."
        ) from error
