"""A measuring process: one JSON command a line on stdin, one JSON answer a line on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def answer(work: Callable[[dict[str, Any]], Mapping[str, Any]], **hello: str) -> None:
    """Say that the process is there, then answer until there are no more commands."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not land between the answers
    answers.write(json.dumps(hello) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(work(json.loads(line))) + "\n")
        answers.flush()
