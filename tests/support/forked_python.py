"""Python as a command: hands what it is to run to the process that is forked, and ends as that
does. It imports little, and nothing outside the standard library.
"""

from __future__ import annotations

import os
import signal
import sys

from tests.support import forked

HANDED_ON = (signal.SIGINT, signal.SIGTERM)


def main(shared: str) -> None:
    """Run the arguments of this process, of the pytest run that shares this folder."""
    environment = dict(os.environ)  # which may be a test's own, and not say which run it is of
    os.environ[forked.SHARED_DIR] = shared
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    arguments = sys.argv[1:]
    # So does only execnet start its workers, which need the Python that they were started with.
    is_worker = arguments[0] == "-u"
    process = forked.Popen(
        [sys.executable, *arguments[is_worker:]],
        kind=forked.SERVER if arguments[:2] == ["-m", "uvicorn"] else forked.FULL,
        env=environment,
        executable=sys.executable if is_worker else None,
    )
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(process.pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    # Who reads what the fork writes is to see it end.
    os.close(0)
    os.close(1)
    code = process.wait()
    if code < 0:
        if -code in HANDED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
