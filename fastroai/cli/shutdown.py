"""How the command ends when it is told to, and when a step's thread does not."""

from __future__ import annotations

import asyncio
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
        # Prefect's own signal, by name because Prefect is not imported here: a run that had not yet
        # or no longer steps.
        if (told and not isinstance(error, Exception)) or type(
            error
        ).__name__ == "TerminationSignal":
            raise Terminated from error
        raise


@dataclass
class Ending:
    """How the process is going to end.

    Attributes:
        code: Its exit code.
    """

    code: int = 0


def leave_abandoned_threads() -> Ending:
    """Have the process end without the threads of steps that were given up: they can't be stopped,
    only waited for.

    Before it ends so, everything has run that runs at exit: Prefect's queues and the ledger are
    written, the temporary server is stopped. Where any other thread is still at work, the process
    waits for all of them, as Python does.
    """
    ending = Ending()

    def leave() -> None:
        others = [
            t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()
        ]
        if not others or any(t.name != STEP_THREAD for t in others):
            return
        for thread in others:
            thread.join(IDLE_SECONDS)
        if any(thread.is_alive() for thread in others):
            try:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(ending.code)

    # Called the last of its kind, because registered first: before Python joins threads, after
    # Prefect has sent what it still had to.
    threading._register_atexit(leave)  # type: ignore[attr-defined]
    return ending
