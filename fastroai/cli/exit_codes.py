"""Exit codes, and the one message of a command that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import FastroAIError

FAILED, WRONG_USAGE, NOT_BALANCED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class UsageError(FastroAIError):
    """The command line is wrong, or names an input that can't be used."""


@contextmanager
def as_wrong_usage(kind: type[Exception] = ValueError, where: str = "") -> Iterator[None]:
    """Raise an error of the block as one of the command line, its text behind where it was met."""
    try:
        yield
    except kind as error:
        raise UsageError(f"{where}{error}") from error


class Terminated(BaseException):
    """The process received SIGTERM; what ran was cancelled and has cleaned up."""


_NO_KEY = re.compile(r"Set the `(\w+)` environment variable or pass it via .*", re.DOTALL)
"""How pydantic-ai says that a provider's key is missing; what it advises is for code."""


def complain(error: BaseException) -> None:
    """One message on stderr."""
    kind = "" if isinstance(error, FastroAIError) else f"{type(error).__name__}: "
    sys.stderr.write(f"fastroai: {kind}{_NO_KEY.sub(_advise, str(error))}\n")


def _advise(missing: re.Match[str]) -> str:
    name = missing[1]
    where = "environment or the file .env" if name == "OPENAI_API_KEY" else "environment"
    return (
        f"{name} is not set. Set it in the {where}, or name a model of another provider (the jobs "
        "in flows/ read FASTROAI_MODEL, which may be `offline`)."
    )
