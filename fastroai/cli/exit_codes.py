"""Exit codes, and the one message of a command that fails."""

from __future__ import annotations

import sys

from ..errors import FastroAIError

FAILED, WRONG_USAGE, NOT_BALANCED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class UsageError(FastroAIError):
    """The command line is wrong, or names an input that can't be used."""


class Terminated(BaseException):
    """The process received SIGTERM; what ran was cancelled and has cleaned up."""


def complain(error: BaseException) -> None:
    """One message on stderr."""
    kind = "" if isinstance(error, FastroAIError) else f"{type(error).__name__}: "
    sys.stderr.write(f"fastroai: {kind}{error}\n")
