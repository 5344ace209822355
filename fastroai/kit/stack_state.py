"""What a stack consists of, as it is noted in its folder."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import StackError
from .processes import Process

FOLDER = ".fastroai"
BUCKET = "fastroai"
HOST = "127.0.0.1"
# Both are for moto's server, which lets everybody in; they are no words that a text may hold, as
# secrets are masked in texts.
_ACCESS_KEY_ID = "fastroai-loopback-key"
_SECRET_ACCESS_KEY = "fastroai-loopback-secret"


@dataclass(frozen=True, slots=True)
class StackState:
    """A stack of one project.

    Attributes:
        prefect_port: Of Prefect's server.
        s3_port: Of the S3 endpoint.
        processes: Those that were started, in their order.
    """

    prefect_port: int
    s3_port: int
    processes: tuple[Process, ...] = field(default=())

    @property
    def ui_url(self) -> str:
        """Prefect's UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def s3_url(self) -> str:
        """The S3 endpoint."""
        return f"http://{HOST}:{self.s3_port}"

    def alive(self) -> dict[str, Process]:
        """Those of its processes that run, by name."""
        return {one.name: one for one in self.processes if one.is_alive}

    def with_process(self, process: Process) -> StackState:
        """The same stack with one process more, in place of one of its name."""
        others = tuple(one for one in self.processes if one.name != process.name)
        return replace(self, processes=(*others, process))


@dataclass(frozen=True, slots=True)
class StackFolder:
    """The folder in which a project's stack keeps its state, its data and its logs.

    Attributes:
        project: The project's folder.
    """

    project: Path

    @classmethod
    def of(cls, project: Path) -> StackFolder:
        """That of a project, whichever way its folder is named."""
        return cls(project.resolve())

    @property
    def path(self) -> Path:
        """The stack's own."""
        return self.project / FOLDER

    @property
    def ledger_url(self) -> str:
        """Where all that is sent is booked."""
        return f"sqlite:///{self.path / 'ledger.db'}"

    @property
    def prefect_home(self) -> Path:
        """Where Prefect's server has its database."""
        return self.path / "prefect"

    def log(self, name: str) -> Path:
        """Where a process writes what it says."""
        return self.path / "logs" / f"{name}.log"

    def make(self) -> None:
        """Have the folder, out of the project's history and closed to others."""
        for folder in (self.path, self.path / "logs", self.prefect_home):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / ".gitignore").write_text("*\n")

    def read(self) -> StackState | None:
        """The stack that was started here; None: there is none, or no more.

        Raises:
            StackError: The file that says so was written by another version, or is damaged.
        """
        try:
            content = json.loads((self.path / "stack.json").read_text())
            processes = tuple(Process(**one) for one in content.pop("processes"))
            return StackState(processes=processes, **content)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise StackError(
                f"{self.path / 'stack.json'} is not what this version writes ({error}). End the "
                "processes of the stack by hand, and delete that file."
            ) from error

    def write(self, state: StackState) -> None:
        """Note a stack: at once, so that half of it is never read."""
        content: dict[str, Any] = asdict(state)
        partial = self.path / "stack.json.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.path / "stack.json")

    def forget(self) -> None:
        """Note that nothing runs."""
        for name in ("stack.json", "env"):
            (self.path / name).unlink(missing_ok=True)

    def write_environment(self, state: StackState) -> Path:
        """Write what a shell reads to use the stack."""
        file = self.path / "env"
        lines = [f"export {name}={shlex.quote(v)}" for name, v in self.variables(state).items()]
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as written:
            written.write("\n".join([f"unset {' '.join(FOREIGN)}", *lines, ""]))
        return file

    def variables(self, state: StackState) -> dict[str, str]:
        """The variables of a process that uses the stack."""
        return {
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_API_URL": f"{state.ui_url}/api",
            "FASTROAI_EXECUTOR": "prefect",
            "FASTROAI_LEDGER_URL": self.ledger_url,
            "FASTROAI_RESULT_STORAGE": f"s3://{BUCKET}/results",
            "FASTROAI_S3_ENDPOINT_URL": state.s3_url,
            "FASTROAI_S3_REGION": "us-east-1",
            "FASTROAI_S3_ACCESS_KEY_ID": _ACCESS_KEY_ID,
            "FASTROAI_S3_SECRET_ACCESS_KEY": _SECRET_ACCESS_KEY,
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the stack changed by one command at a time.

        Raises:
            StackError: Another one does.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StackError(
                    f"Another `fastroai up` or `down` is at work in {self.project}. Wait for it."
                ) from error
            yield
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


FOREIGN = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE")
"""Variables that are for another server."""
