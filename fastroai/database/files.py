"""Files and folders that only their owner can read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner only.

    Folders that exist keep their mode: somebody may share them on purpose.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)


def make_private_file(path: Path) -> None:
    """Make an empty file for its owner only, unless there is one."""
    # Exclusively, as an existing file must not even be opened: closing it again would release the
    # locks that other connections of this process hold on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE))


def write_whole(file: IO[bytes], content: bytes) -> None:
    """Write to an unbuffered file, and have it on disk.

    Raises:
        OSError: It took only a part, as a full disk may.
    """
    if file.write(content) != len(content):
        raise OSError(f"{file.name} took only a part")
    os.fsync(file.fileno())


def open_private_file(path: Path) -> BinaryIO:
    """Open a file to append to and to read from; a new one is for its owner only."""

    def for_owner(name: str, flags: int) -> int:
        return os.open(name, flags, _FILE_MODE)

    return open(path, "ab+", buffering=0, opener=for_owner)
