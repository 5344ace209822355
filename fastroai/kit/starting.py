"""The processes that one `fastroai up` starts: they end with it, unless it keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from ..environment import process_environment
from ..errors import StackError
from .processes import MARK, Process, end, family, start_of
from .stack_state import StackFolder, StackState

SERVER, S3, WORKER = "server", "s3", "worker"
END_SECONDS = 20.0
LAST_LINES = 5

Tell = Callable[[str], None]
"""Is told what is being done, in a sentence."""


@dataclass
class Starting:
    """The processes that one `up` starts, which end with it unless it keeps them."""

    folder: StackFolder
    state: StackState
    tell: Tell
    mark: str = field(default_factory=lambda: uuid4().hex)
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One for all of them: a single write keeps all, or none.
        self._waited_on, self._held = os.pipe()

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a process of the stack: none of another server's."""
        own = {k: v for k, v in process_environment().items() if not k.startswith("PREFECT_")}
        of_stack = self.folder.variables(self.state)
        return own | of_stack | {MARK: self.mark, "PWD": str(self.folder.project)} | more

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Start a process unless it runs; says whether it did."""
        if name in self.state.alive():
            return False
        self.tell(f"Starting {name}")
        with self.folder.log(name).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "fastroai.kit.service", *arguments],
                cwd=self.folder.project,
                env=dict(environment),
                stdin=self._waited_on,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children[name] = child
        started = start_of(child.pid) or ""
        self.state = self.state.with_process(Process(name, child.pid, started, self.mark))
        self.folder.write(self.state)
        return True

    def check(self) -> None:
        """See that all that was started still runs.

        Raises:
            StackError: Something has ended; contains what it said last.
        """
        for name, child in self.children.items():
            if (code := child.poll()) is not None:
                log = self.folder.log(name)
                said = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
                raise StackError(
                    f"The {name} ended with exit code {code}; nothing was left running. Its log "
                    f"is {log}:\n" + "\n".join(said)
                )

    def keep(self) -> None:
        """Have what was started go on when this process has ended."""
        self.check()
        os.write(self._held, b"k" * max(1, len(self.children)))

    def give_up(self) -> None:
        """End what was started here, and what that has started."""
        mine = [one for one in self.state.processes if one.mark == self.mark]
        others = [one for one in self.state.alive().values() if one.mark != self.mark]
        end_stack(mine)
        if others:
            self.folder.write(replace(self.state, processes=tuple(others)))
        else:
            self.folder.forget()

    def close(self) -> None:
        """Give back what is held here."""
        os.close(self._waited_on)
        os.close(self._held)


def end_stack(processes: Sequence[Process]) -> tuple[list[Process], list[Process]]:
    """End processes of a stack: first the workers and their runs, which tell the server of it."""
    everyone = family(processes)
    first = [one for one in everyone if one.name not in (SERVER, S3)]
    killed = end(first, END_SECONDS)
    rest = family(processes)
    killed += end(rest, END_SECONDS)
    return list({one.pid: one for one in [*everyone, *rest]}.values()), killed
