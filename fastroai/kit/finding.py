"""What a check of a set-up found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ..errors import FastroAIError
from ..redaction import redact

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `fastroai doctor`.

    Attributes:
        check: What was looked at.
        status: `warning`: it works, but not as most want it to. `skipped`: it is not used here, or
            could not be looked at.
        found: What is so, without secrets.
        remedy: What to do; empty where nothing has to be done.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """Makes the findings of one kind."""

    name: str

    def ok(self, found: str) -> Finding:
        """It works."""
        return Finding(self.name, "ok", redact(found))

    def skipped(self, found: str) -> Finding:
        """It was not looked at."""
        return Finding(self.name, "skipped", redact(found))

    def warning(self, found: str, remedy: str) -> Finding:
        """It works in another way than most want."""
        return Finding(self.name, "warning", redact(found), remedy)

    def failed(self, found: str, remedy: str = "") -> Finding:
        """It does not work. Our own errors name their remedies themselves."""
        return Finding(self.name, "failed", redact(found), remedy)

    @contextmanager
    def noting(self, findings: list[Finding], remedy: str = "") -> Iterator[None]:
        """Note an error of the block as a failure."""
        try:
            yield
        except FastroAIError as error:
            findings.append(self.failed(str(error), remedy))
        except Exception as error:  # whatever it is, the other checks are to go on
            findings.append(self.failed(f"{type(error).__name__}: {error}", remedy))
