"""The terminal, file or pipe that a command writes to."""

from __future__ import annotations

import io
import json
import shutil
import sys
from typing import TextIO

from rich.console import Console
from rich.text import Text

UNLIMITED = 10_000
"""Columns of what is no terminal: nothing is folded there."""
_PROSE = 100


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream, stdout by default; without colour unless it is a terminal.

    Its width is the terminal's, or `COLUMNS`. Text is never taken for markup. What the stream's
    encoding lacks becomes question marks.
    """
    stream = sys.stdout if stream is None else stream
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=is_terminal,
        width=None if is_terminal else shutil.get_terminal_size((UNLIMITED, 0)).columns,
        markup=False,
        emoji=False,
        highlight=False,
    )


def printable(text: str) -> str:
    """A text on one line, without what a terminal would take for a command."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def write_json(content: object) -> None:
    """Write what is found to stdout, for programs."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def prose(out: Console, text: str) -> None:
    """Write a sentence, on as many lines as it needs."""
    for line in text.split("\n"):
        out.print(Text(printable(line)), width=min(out.width, _PROSE))
