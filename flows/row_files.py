"""Files of rows at a path or URI: looked through and read row by row, and written as a whole or
not at all.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fastroai.errors import InputValidationError, SourceRefusedError
from fastroai.settings import load_settings
from fastroai.storage.sources import check_readable
from flows.s3 import s3_client

READ_FROM = (".jsonl", ".ndjson", ".csv")
WRITTEN_TO = (".jsonl", ".parquet")
ROWS_AT_ONCE = 1000
"""Rows of a group of a Parquet file, which is held until it is full."""

Row = Mapping[str, Any]


class RowFileError(InputValidationError):
    """A file of rows can't be read, or written where it is to be. The message names it, the cause
    and the remedy.
    """


def read_rows(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    """Each row of a file, with its number from 1.

    Args:
        path: Where it can be read.
        name: What it is called; its end says what it is.

    Raises:
        RowFileError: A row can't be read.
    """
    read = _csv_rows if name.lower().endswith(".csv") else _json_rows
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(read(file), start=1):
                yield number, row
    except (OSError, ValueError, csv.Error) as error:
        raise RowFileError(
            f"{name!r} can't be read after row {number}: {error}. Rows are UTF-8 text: JSON "
            "objects, one on each line (.jsonl), or CSV with a header (.csv)."
        ) from error


def _json_rows(file: IO[str]) -> Iterator[Row]:
    for line in file:
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__} is no JSON object")
            yield row


def _csv_rows(file: IO[str]) -> Iterator[Row]:
    for row in csv.DictReader(file, strict=True):
        if None in row:
            raise ValueError("the next one has more cells than the header")
        yield row


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """A file at a path or URI, as one that can be read here.

    Raises:
        SourceRefusedError: This run may not read there, as `FASTROAI_READABLE` says.
        RowFileError: There is none, or it can't be read.
    """
    check_readable(location, load_settings())
    if not location.lower().endswith(READ_FROM):
        raise RowFileError(f"{location!r} is none of {', '.join(READ_FROM)}. Convert it to one.")
    if not location.startswith("s3://"):
        path = local_path(location)
        if not path.is_file():
            raise RowFileError(
                f"There is no file {str(path)!r}. Correct the path (a relative one starts at "
                f"{str(Path.cwd())!r}), or give s3://bucket/key."
            )
        yield path
        return
    bucket, key = _s3_address(location)
    # Not read as it comes: a connection is not kept open for as long as a model needs for all rows.
    with tempfile.NamedTemporaryFile(prefix="fastroai-") as copy:
        try:
            s3_client().download_file(bucket, key, copy.name)
        except Exception as error:  # botocore's are made per client
            raise _unreachable(location, "read", error) from error
        yield Path(copy.name)


class _Writer(Protocol):
    def add(self, row: Row) -> None: ...
    def close(self) -> None: ...


@contextmanager
def written_rows(location: str, columns: tuple[str, ...]) -> Iterator[_Writer]:
    """Writes rows to a file at a path or URI, which is there once this is closed, and unchanged if
    anything fails.

    Args:
        location: Its end says what it becomes.
        columns: Of text, in Parquet.

    Raises:
        RowFileError: It can't be written.
    """
    target = None if location.startswith("s3://") else local_path(location)
    descriptor, name = tempfile.mkstemp(
        prefix=".fastroai-", suffix=".part", dir=None if target is None else target.parent
    )
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            writer = _writer(file, location, columns)
            yield writer
            writer.close()
        if target is not None:
            part.replace(target)
        else:
            _upload(part, location)
    finally:
        part.unlink(missing_ok=True)


def check_target(location: str) -> None:
    """See that a file can be written, before anything is paid for what is to be in it.

    Raises:
        SourceRefusedError: It is in no place that this run may read: whoever may start a run must
            not thereby write anywhere.
        RowFileError: It can't be written.
    """
    try:
        check_readable(location, load_settings())
    except SourceRefusedError as error:
        raise SourceRefusedError(f"Results go where a run may read, too: {error}") from error
    if not location.lower().endswith(WRITTEN_TO):
        raise RowFileError(f"{location!r} is none of {' and '.join(WRITTEN_TO)}: name one of them.")
    if location.lower().endswith(".parquet") and find_spec("pyarrow") is None:
        raise RowFileError(
            f"{location!r} needs pyarrow, which is not installed: `pip install pyarrow`, or name a "
            ".jsonl file."
        )
    if location.startswith("s3://"):
        bucket, key = _s3_address(location)
        try:
            client = s3_client()
            client.put_object(Bucket=bucket, Key=f"{key}.part", Body=b"")
            client.delete_object(Bucket=bucket, Key=f"{key}.part")
        except Exception as error:  # as above
            raise _unreachable(location, "written", error) from error
        return
    folder = local_path(location).parent
    if not os.access(folder, os.W_OK):
        raise RowFileError(
            f"{location!r} can't be written: {str(folder)!r} is no folder, or not writable. Make "
            "it, or name another place."
        )


def local_path(location: str) -> Path:
    """
    Raises:
        RowFileError: It is none.
    """
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    if "://" in location:
        raise RowFileError(f"{location!r} is no place: give a path, file:///… or s3://bucket/key.")
    return Path(location).expanduser().absolute()


def _s3_address(location: str) -> tuple[str, str]:
    parts = urlsplit(location)
    key = parts.path.lstrip("/")
    if not parts.netloc or not key:
        raise RowFileError(f"{location!r} names no object. Write s3://bucket/key.")
    return parts.netloc, key


def _upload(part: Path, location: str) -> None:
    bucket, key = _s3_address(location)
    try:
        s3_client().upload_file(str(part), bucket, key)
    except Exception as error:  # as above
        raise _unreachable(location, "written", error) from error


def _unreachable(location: str, what: str, error: Exception) -> RowFileError:
    return RowFileError(
        f"{location!r} can't be {what}: {type(error).__name__}: {error}. Check that it exists and "
        "that you may (FASTROAI_S3_ENDPOINT_URL, FASTROAI_S3_REGION, the AWS credentials)."
    )


def _writer(file: IO[bytes], location: str, columns: tuple[str, ...]) -> _Writer:
    return _Parquet(file, columns) if location.lower().endswith(".parquet") else _JsonLines(file)


class _JsonLines:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, row: Row) -> None:
        self._file.write(json.dumps(dict(row), ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        self._file.flush()


class _Parquet:
    def __init__(self, file: IO[bytes], columns: tuple[str, ...]) -> None:
        import pyarrow  # type: ignore[import-not-found,unused-ignore]  # only where it is installed
        import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]

        self._schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
        self._writer: Any = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._batch_of: Any = pyarrow.RecordBatch.from_pylist
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_ONCE:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_batch(self._batch_of(self._rows, self._schema))
        self._rows = []
