"""A module as a process of a stack: `python -m fastroai.kit.service MODULE ARGUMENTS`.

Until stdin gives it a byte, it ends as soon as stdin ends: whoever starts a stack and is killed on
the way leaves nothing behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from ..environment import process_environment
from .processes import MARK, end, marked

SECONDS_TO_END = 5.0


def main() -> None:
    """Run the module that the command line names."""
    told = os.dup(0)
    # What the module starts would take the byte for itself.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with_starter, args=(told,), daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter(told: int) -> None:
    if os.read(told, 1):
        return
    # The others first: with this process, which a signal may end at once, this thread ends, too.
    end(list(marked({process_environment()[MARK]})), SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_END)
    os._exit(1)


if __name__ == "__main__":
    main()
