"""Processes of a stack: each known by its id and by when it started, and all by a mark in their
environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "FASTROAI_STACK"
"""The variable that every process of a stack has, also those that its worker starts."""
PART = "part"
"""The name of what a process of a stack has started."""
LOOK_EVERY = 0.05
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, which is never taken for another that got its id later.

    Attributes:
        name: What it is in the stack.
        pid: Its id.
        started: When it started, as the system tells it.
        mark: The value of `MARK` in its environment, and in that of what it starts.
    """

    name: str
    pid: int
    started: str
    mark: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return start_of(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        with suppress(ProcessLookupError):
            if not hasattr(os, "pidfd_open"):
                if self.is_alive:
                    os.kill(self.pid, number)
                return
            # Held by this, the id can't pass on to another between the look and the signal.
            held = os.pidfd_open(self.pid)
            try:
                if self.is_alive:
                    signal.pidfd_send_signal(held, number)
            finally:
                os.close(held)


def start_of(pid: int) -> str | None:
    """When the process with an id started; None: there is none, or it has ended."""
    if not (_PROC / "self/stat").exists():
        return _start_by_ps(pid)
    try:
        # The name, in parentheses, may hold anything.
        state, *fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # In ticks since the system was booted, which is told apart from an earlier time.
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return None if state in "ZX" else f"{boot}/{fields[18]}"


def _start_by_ps(pid: int) -> str | None:
    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or None


def marked(marks: Iterable[str]) -> Iterator[Process]:
    """The processes with one of these marks, but for this one; only Linux tells."""
    lines = {f"{MARK}={mark}".encode(): mark for mark in marks}
    for path in _PROC.glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with suppress(OSError):  # it ended meanwhile, or is somebody else's
            found = lines.keys() & set(path.read_bytes().split(b"\0"))
            started = start_of(pid)
            if found and pid != os.getpid() and started is not None:
                yield Process(PART, pid, started, lines[found.pop()])


def family(processes: Iterable[Process]) -> list[Process]:
    """Those of some processes that still run, and whatever has their marks."""
    processes = tuple(processes)
    found = {one.pid: one for one in marked({one.mark for one in processes})}
    return list((found | {one.pid: one for one in processes if one.is_alive}).values())


def end(processes: Sequence[Process], patience: float) -> list[Process]:
    """End processes.

    Args:
        patience: Seconds they have to end by themselves, before they are killed.

    Returns:
        Those that had to be killed.
    """
    for one in processes:
        one.send(signal.SIGTERM)
    left = still_alive(processes, patience)
    for one in left:
        one.send(signal.SIGKILL)
    still_alive(left, patience)
    return left


def still_alive(processes: Sequence[Process], patience: float) -> list[Process]:
    """Those that have not ended after some seconds."""
    deadline = time.monotonic() + patience
    while left := [one for one in processes if one.is_alive]:
        if time.monotonic() > deadline:
            return left
        time.sleep(LOOK_EVERY)
    return []
