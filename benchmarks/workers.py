"""Measuring processes: started once per shape, asked in turn, answering in JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

K = TypeVar("K", bound=Hashable)


class Worker:
    """A measuring script in a process of its own.

    Args:
        script: File name in this folder.
        arguments: What the script is given.
        python: The interpreter. The default is this one, with this checkout importable; another one
            sees only what is installed beside it.
        env: Variables on top of a scrubbed environment.
        checkout: Whose script and package are measured.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        python: Path | None = None,
        env: Mapping[str, str] | None = None,
        checkout: Path = ROOT,
    ) -> None:
        script_path = checkout / HERE.name / script
        command = [str(python or sys.executable), "-P", str(script_path), *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(checkout if python is None else None, env),
        )
        try:
            self.hello: dict[str, Any] = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._process.args!r} ended with {self._process.wait()}; its message is above."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def environment(checkout: Path | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without the ones that would change what is measured.

    Args:
        checkout: What is importable beside the installed packages.
        extra: Variables on top.
    """
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("FASTROAI_", "PREFECT_", "PYTHON"))
    }
    kept |= {"FASTROAI_EXECUTOR": "memory", "DO_NOT_TRACK": "1"}
    if checkout is not None:
        kept["PYTHONPATH"] = str(checkout)
    return kept | dict(extra or {})


_SPAWN = """
import os, sys
nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
started = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=nowhere)
_, status, usage = os.wait4(started, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def processor(*command: str, env: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Processor seconds and peak memory, in MB, of a command in a process of its own."""
    # Out of a small process: a peak of memory is inherited, and this one's may be large.
    line = [sys.executable, "-c", _SPAWN, *command]
    variables = environment(ROOT, env)
    done = subprocess.run(line, stdout=subprocess.PIPE, env=variables, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def interleaved(measures: dict[K, Callable[[], float]], rounds: int) -> dict[K, list[float]]:
    """Ask every subject once per round, every second round in reverse, so that a drift hits all of
    them alike.
    """
    figures: dict[K, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        names = list(measures) if number % 2 == 0 else list(reversed(measures))
        for name in names:
            figures[name].append(measures[name]())
    return figures


def paired_ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median of the ratios of each round: two figures measured moments apart share the
    machine's mood.
    """
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def progress(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stderr.flush()
