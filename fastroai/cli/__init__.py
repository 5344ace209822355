"""The `fastroai` command.

Each of its commands is a module here that puts its arguments on the parser.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from . import costs, results, run, runs
from .exit_codes import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    WRONG_USAGE,
    Terminated,
    UsageError,
    complain,
)
from .shutdown import leave_abandoned_threads

COMMANDS = (run, costs, runs, results)
"""In the order of the help.

Each has `register(commands)`, and imports what it runs only when it is run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The `fastroai` command.

    Args:
        argv: Arguments after the command's name. None: those of the process.

    Returns:
        0 done; 1 it failed, which stderr explains; 2 wrong usage; 3 books that don't balance; 130
        interrupted; 143 terminated.
    """
    if argv is not None:
        return _main(argv)
    ending = leave_abandoned_threads()
    ending.code = _main(argv)
    return ending.code


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not arguments.takes_rest or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        code: int = arguments.execute(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("fastroai: interrupted.\n")
        return INTERRUPTED
    except Terminated:
        sys.stderr.write("fastroai: terminated.\n")
        return TERMINATED
    except BrokenPipeError:
        # Whoever read the output has enough of it; Python would complain again when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        complain(error)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastroai", description="LLM pipelines that run as Prefect flows."
    )
    parser.add_argument("--version", action="version", version=f"fastroai {__version__}")
    parser.set_defaults(takes_rest=False, debug=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser
