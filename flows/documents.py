"""Documents at a path or URI, read as text, or refused with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, url2pathname

from pydantic import BaseModel

from fastroai.errors import FastroAIError, InputValidationError, SourceRefusedError
from fastroai.settings import load_settings
from fastroai.storage.sources import check_readable
from flows.s3 import s3_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm")
MAX_BYTES = 2_000_000
"""Size of one document above which it is refused."""


class DocumentError(FastroAIError):
    """Documents can't be read.

    The message names the path, the cause and the remedy; no model was asked.
    """


class LocationError(DocumentError, InputValidationError):
    """The input names no documents: nothing is there, or no place that can be read."""


class Document(BaseModel):
    """One document as text."""

    name: str
    """Path or key, relative to the folder or prefix it was found in."""
    text: str


class Documents(BaseModel):
    """What was found at a path or URI."""

    location: str
    read: list[Document]
    left_out: list[str]
    """Names that were not read, each with the reason."""


@dataclass
class _Found:
    """A document before it is read."""

    name: str
    full_name: str
    size: int
    path: Path | None = None
    key: str = ""


@dataclass
class _Place:
    location: str
    found: list[_Found]
    is_single: bool
    left_out: list[str] = field(default_factory=list)
    bucket: str = ""


def read_documents(location: str, max_documents: int) -> Documents:
    """Read a file, or the documents in a folder or under an S3 prefix in order of their names.

    Args:
        location: A path, `file://…`, `https://…` or `s3://bucket/prefix`. In folders only files
            named as in `SUFFIXES` are read, and nothing hidden.
        max_documents: How many are read at most; the others are listed as left out.

    Raises:
        SourceRefusedError: This run may not read there, as `FASTROAI_READABLE` says.
        DocumentError: Nothing is there, or one of the documents can't be read.
    """
    check_readable(location, load_settings())
    if location.startswith("s3://"):
        place, client = _s3_place(location)
    elif location.startswith("https://"):
        place, client = _web_place(location), None
    else:
        place, client = _local_place(location), None
    chosen, beyond = place.found[:max_documents], place.found[max_documents:]
    left_out = [
        *place.left_out,
        *(f"{f.name}: beyond max_documents={max_documents}" for f in beyond),
    ]
    documents = []
    for found in chosen:
        text = _as_text(found, _content(found, place, client))
        if text:
            documents.append(Document(name=found.name, text=text))
        else:
            left_out.append(f"{found.name}: empty")
    if not documents:
        raise LocationError(
            f"There is no text to read at {location!r}"
            + (f" ({'; '.join(left_out[:5])})" if left_out else "")
            + f". Give a text file, or a folder or prefix with {', '.join(SUFFIXES)} files."
        )
    return Documents(location=location, read=documents, left_out=left_out)


def _local_place(location: str) -> _Place:
    path = _local_path(location)
    try:
        if path.is_dir():
            return _folder(location, path)
        if path.is_file():
            return _Place(location, [_Found(path.name, str(path), path.stat().st_size, path)], True)
    except OSError as error:
        raise _unreadable(str(path), error) from error
    if path.exists():
        raise LocationError(
            f"{str(path)!r} is neither a file nor a folder. Give one of them, or "
            "s3://bucket/prefix."
        )
    raise LocationError(
        f"There is no file or folder {str(path)!r}. Correct the path (a relative one starts at "
        f"{str(Path.cwd())!r}), "
        "or give s3://bucket/prefix."
    )


def _local_path(location: str) -> Path:
    parts = urlsplit(location)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise LocationError(
                f"{location!r} names the host {parts.netloc!r}. Write file:///absolute/path."
            )
        return Path(url2pathname(parts.path))
    if "://" in location:
        raise LocationError(
            f"{location!r}: {parts.scheme}:// can't be read. Give a path, file://…, https://… or "
            "s3://bucket/prefix."
        )
    if not location.strip():
        raise LocationError(
            "The path of the documents is empty. Give a file, a folder or s3://bucket/prefix."
        )
    return Path(location).expanduser().absolute()


def _folder(location: str, folder: Path) -> _Place:
    place = _Place(location, [], False)
    settings = load_settings()
    for path in sorted(_visible_files(folder)):
        name = path.relative_to(folder).as_posix()
        try:
            check_readable(str(path), settings)  # it may be a link to elsewhere
        except SourceRefusedError:
            place.left_out.append(f"{name}: a link to what this run may not read")
            continue
        if path.suffix.lower() in SUFFIXES:
            place.found.append(_Found(name, str(path), path.stat().st_size, path))
        else:
            place.left_out.append(f"{name}: not one of {', '.join(SUFFIXES)}")
    return place


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _visible_files(path)
        elif path.is_file():
            yield path


def _web_place(location: str) -> _Place:
    name = urlsplit(location).path.rpartition("/")[2] or "document"
    return _Place(location, [_Found(name, location, 0)], True)


class _RedirectsAsAllowed(HTTPRedirectHandler):
    """Follows a redirect only to what the run may read."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        check_readable(newurl, load_settings())
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(location: str) -> bytes:
    """What a web server sends, up to a byte more than a document may have."""
    seconds = load_settings().s3_read_timeout
    with build_opener(_RedirectsAsAllowed).open(location, timeout=seconds) as answer:
        return bytes(answer.read(MAX_BYTES + 1))


def _s3_place(location: str) -> tuple[_Place, S3Client]:
    parts = urlsplit(location)
    prefix = parts.path.lstrip("/")
    if not parts.netloc:
        raise LocationError(f"{location!r} names no bucket. Write s3://bucket/prefix.")
    client = s3_client()
    place = _Place(location, [], False, bucket=parts.netloc)
    base = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    try:
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=parts.netloc, Prefix=prefix
        ):
            for item in page.get("Contents", []):
                key, size = item["Key"], item["Size"]
                found = _Found(key.removeprefix(base), f"s3://{parts.netloc}/{key}", size, key=key)
                if key == prefix and not key.endswith("/"):
                    found.name = key.rpartition("/")[2]
                    return _Place(location, [found], True, bucket=parts.netloc), client
                if not key.startswith(base) or any(
                    part.startswith(".") for part in found.name.split("/")
                ):
                    continue
                if key.lower().endswith(SUFFIXES):
                    place.found.append(found)
                elif not key.endswith("/"):
                    place.left_out.append(f"{found.name}: not one of {', '.join(SUFFIXES)}")
    # botocore makes its error classes per client, and connection errors of its own
    except Exception as error:
        raise _unreadable(location, error) from error
    return place, client


def _content(found: _Found, place: _Place, client: S3Client | None) -> bytes:
    if found.size > MAX_BYTES:
        raise _too_large(found.full_name, f"{found.size:,}")
    try:
        if client is not None:
            return client.get_object(Bucket=place.bucket, Key=found.key)["Body"].read()
        if found.path is not None:
            return found.path.read_bytes()
        content = _fetch(found.full_name)
    except SourceRefusedError:
        raise
    except Exception as error:  # as above
        raise _unreadable(found.full_name, error) from error
    if len(content) > MAX_BYTES:
        raise _too_large(found.full_name, f"more than {MAX_BYTES:,}")
    return content


def _too_large(name: str, size: str) -> DocumentError:
    return DocumentError(
        f"{name!r} has {size} bytes; one document may have {MAX_BYTES:,}. Split it, or leave it "
        "out."
    )


def _as_text(found: _Found, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{found.full_name!r} is not UTF-8 text (byte {error.start}: {error.reason}). Convert "
            "it to text, for example with iconv or pdftotext, or leave it out."
        ) from error
    if "\0" in text:
        raise DocumentError(
            f"{found.full_name!r} is binary, not text. Convert it to text, or leave it out."
        )
    return (_text_of_html(text) if found.name.lower().endswith((".html", ".htm")) else text).strip()


def _unreadable(name: str, error: Exception) -> DocumentError:
    remedy = "Check that it exists and that you may read it"
    if name.startswith("s3://"):
        remedy += " (FASTROAI_S3_ENDPOINT_URL, FASTROAI_S3_REGION, the AWS credentials)"
    return DocumentError(f"{name!r} can't be read: {type(error).__name__}: {error}. {remedy}.")


class _Text(HTMLParser):
    _SILENT = ("script", "style", "template", "head")
    _BLOCKS = (
        "p",
        "div",
        "br",
        "li",
        "tr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "pre",
        "section",
        "article",
    )

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self._SILENT
        if tag in self._BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self._SILENT and self._silent > 0
        if tag in self._BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)


def _text_of_html(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).splitlines())
    return "\n".join(line for line in lines if line)
