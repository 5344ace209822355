"""Shows something again from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from rich.console import Console


def watch_until_interrupted(out: Console, show: Callable[[], None], every: float) -> int:
    """Show something every so many seconds, on a cleared screen where it is a terminal; Ctrl-C is
    how it ends well.
    """
    with suppress(KeyboardInterrupt):
        while True:
            out.clear()
            show()
            out.file.write(
                f"\n{datetime.now(UTC):%H:%M:%S} UTC, every {every:g} s. Ctrl-C ends it.\n"
            )
            out.file.flush()
            time.sleep(every)
    return 0
