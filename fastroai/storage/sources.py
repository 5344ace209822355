"""What a run may read by path or URI: whoever may start one must not thereby read the worker's disk
or its network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from ..errors import SourceRefusedError
from ..settings import FastroAISettings

HERE = (".",)
"""What a deployed run may read where no setting says more: the folder it runs in."""

_PORTS = {"http": 80, "https": 443}

# Of a run's context: settings are of the process, and in a worker's all runs are deployed, while a
# program may run its own pipelines beside a deployed one.
_given_by_others: ContextVar[bool] = ContextVar("input_given_by_others", default=False)


@contextmanager
def input_given_by_others(by_others: bool = True) -> Iterator[None]:
    """Say that the input of what runs here came from a server, on which others may have given
    it.
    """
    token = _given_by_others.set(by_others)
    try:
        yield
    finally:
        _given_by_others.reset(token)


def readable_places(settings: FastroAISettings) -> Sequence[str] | None:
    """The places that the run here may read; None: any."""
    if settings.readable is not None:
        return settings.readable
    return HERE if _given_by_others.get() else None


def check_readable(location: str, settings: FastroAISettings) -> None:
    """Refuse a path or URI that the run here may not read.

    Args:
        location: A path, or a URI with any scheme. Of a path, what its symbolic links point to
            counts.

    Raises:
        SourceRefusedError: It is in none of the places of `FASTROAI_READABLE`; where that is not
            set, a run that was started from a deployment reads its own folder only.
    """
    places = readable_places(settings)
    if places is None or any(is_within(location, place) for place in places):
        return
    raise SourceRefusedError(
        f"{location!r} is not among what this run may read: {', '.join(map(repr, places))}. Name "
        "another, or have who runs the worker add its folder, bucket or host to FASTROAI_READABLE, "
        'for example ["docs", "s3://bucket/prefix", "https://example.com/reports"].'
    )


def is_within(location: str, place: str) -> bool:
    """Whether a path or URI is a place, or is in it."""
    file, folder = local_path(location), local_path(place)
    if file is not None or folder is not None:
        return file is not None and folder is not None and file.is_relative_to(folder)
    (origin, path), (allowed, prefix) = parts_of(location), parts_of(place)
    # "prefix" is no part of the path "prefix-of-others".
    below = prefix.rstrip("/")
    inside = path == below or path.startswith(below + "/")
    return origin is not None and origin == allowed and inside


def local_path(location: str) -> Path | None:
    """The path that a location names, with its links followed; None: it is a URI of elsewhere."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return Path(location).expanduser().resolve()
    parts = urlsplit(location)
    if scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        return None
    return Path(url2pathname(parts.path)).resolve()


def parts_of(uri: str) -> tuple[tuple[object, ...] | None, str]:
    """What a URI is of, to be compared, and its path.

    None: it may mean another place than it seems to, so that it is nowhere.
    """
    try:
        parts = urlsplit(uri)
        scheme, host = parts.scheme.lower(), parts.hostname
        port = parts.port or _PORTS.get(scheme)
    except ValueError:
        return None, ""
    path = parts.path
    # Servers decode and shorten paths, and each in its own way.
    plain = unquote(path)
    steps_out = {".", ".."} & set(plain.replace("\\", "/").split("/"))
    if not host or "@" in parts.netloc or steps_out or "\\" in plain or "%2f" in path.lower():
        return None, ""
    # Buckets are case-sensitive where they are no hosts.
    name = host if scheme in _PORTS else parts.netloc
    return (scheme, name, port), path
