"""Ends the command on signals, also while a step's thread goes on."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from .exit_codes import Terminated

T = TypeVar("T")

STEP_THREAD = "AnyIO worker thread"
"""Plain functions of steps and tools run in these; idle ones end with the event loop."""
IDLE_SECONDS = 1.0


def run_until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run`; SIGTERM cancels it as Ctrl-C does.

    Raises:
        Terminated: It was cancelled so.
        KeyboardInterrupt: It was interrupted.
    """
    import asyncio  # only here: the help of a command needs none

    told: list[int] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            if not told:
                task.cancel()
            told.append(signal.SIGTERM)

        with suppress(NotImplementedError, RuntimeError):  # Windows, or not in the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work

    try:
        return asyncio.run(main())
    except BaseException as error:
        was_told = told and not isinstance(error, Exception)
        # Prefect's own signal, by name because Prefect is not imported here: a run that had not yet
        # or no longer steps.
        if was_told or type(error).__name__ == "TerminationSignal":
            raise Terminated from error
        raise


@dataclass
class Ending:
    """How the process is going to end.

    Attributes:
        code: Its exit code.
    """

    code: int = 0

    def leave(self) -> None:
        """End the process now if it only waits for threads of abandoned steps."""
        main = threading.main_thread()
        threads = [t for t in threading.enumerate() if not t.daemon and t is not main]
        if {thread.name for thread in threads} != {STEP_THREAD}:
            return
        for thread in threads:
            thread.join(IDLE_SECONDS)
        if not any(map(threading.Thread.is_alive, threads)):
            return
        try:
            # What Python would run after it has joined the threads, which never end: the ledger
            # and Prefect's queues are written, the temporary server is stopped.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # The only exit that does not join threads.
            os._exit(self.code)


def leave_abandoned_threads() -> Ending:
    """Have the process end without the threads of steps that were given up: they can't be stopped,
    only waited for.

    Before it ends so, everything has run that runs at exit. Where any other thread is still active,
    the process waits for all of them, as Python does.
    """
    ending = Ending()
    # Plain atexit functions run after threads are joined, that is never. These run before, in
    # reverse order: registered first, this is the last, after Prefect has sent what it had to.
    threading._register_atexit(ending.leave)  # type: ignore[attr-defined]
    return ending
