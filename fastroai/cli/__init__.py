"""The `fastroai` command. Each of its commands is a module here, imported when it is run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from .exit_codes import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    WRONG_USAGE,
    Terminated,
    UsageError,
    as_wrong_usage,
    complain,
)
from .shutdown import leave_abandoned_threads


def _version() -> str:
    from ..version import __version__  # only here: to look it up takes as long as the help does

    return f"fastroai {__version__}"


app = App(
    name="fastroai",
    help="LLM pipelines that run as Prefect flows.",
    version=_version,
    help_format="plaintext",  # Markdown takes a third of the time, and here are single lines
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
# By their paths: the help of all commands must not import what one of them runs.
app.command(
    "fastroai.cli.run:run",
    name="run",
    help=(
        "Run a pipeline and show its result and its costs.\n\n"
        "Progress goes to stderr, the rest to stdout."
    ),
    help_format="markdown",
)
for _name, _help in {
    "init": (
        "Start a project that runs, passes its tests and can be deployed as it is.\n\n"
        "With --existing: what a project with pipelines lacks to be deployed."
    ),
    "up": (
        "Start a stack for this folder's project: Prefect, S3, ledger, worker.\n\n"
        "Deploys its flows and runs one of them; all on 127.0.0.1."
    ),
    "bootstrap": (
        "Make work pools, variables, limits and secrets on the Prefect server.\n\n"
        "As prefect.yaml and deployments/bootstrap.yaml say; what is there is left alone."
    ),
    "doctor": (
        "Say what of this folder's set-up does not work, and what to do.\n\n"
        "Settings, versions, Prefect, work pools, storage, ledger, keys, prices."
    ),
    "estimate": (
        "Say what a run will cost, sending nothing.\n\n"
        "By what earlier runs cost, and at most where that can be told."
    ),
    "costs": (
        "Show what the requests in the ledger cost.\n\n"
        "By pipeline, or as --by says. Amounts are exact USD."
    ),
    "budgets": (
        "List, set, raise and remove standing budgets.\n\n"
        "They are kept in the ledger and hold for all processes that write to it."
    ),
    "runs": (
        "List the last runs with what they cost, and resume dead ones.\n\n"
        "Those that write to this ledger; a run is dead when its process died."
    ),
    "results": "Show stored results, and delete old ones.",
}.items():
    app.command(f"fastroai.cli.{_name}:{_name}", name=_name, help=_help)
app.command("fastroai.cli.up:down", name="down", help="End what `fastroai up` started here.")
app.command(
    "fastroai.cli.completion:install",
    name="--install-completion",
    help="Install completion for your shell.",
)


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
    # What is imported stays: to look for garbage meanwhile takes a tenth of a command's time.
    gc.set_threshold(20_000, 20, 50)
    ending = leave_abandoned_threads()
    ending.code = _main(sys.argv[1:])
    return ending.code


def _main(argv: Sequence[str]) -> int:
    try:
        code = _execute(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("fastroai: interrupted.\n")
        return INTERRUPTED
    except Terminated:
        sys.stderr.write("fastroai: terminated.\n")
        return TERMINATED
    except BrokenPipeError:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--debug" in argv:
            import traceback

            traceback.print_exc()
        complain(error)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def _execute(argv: Sequence[str]) -> int:
    if list(argv) in ([], ["results"], ["budgets"]):
        raise UsageError(f"Expected a command, see `{' '.join(['fastroai', *argv])} --help`.")
    with as_wrong_usage(CycloptsError), meant_commands():
        return app(options_last(argv), print_error=False, exit_on_error=False) or 0


@contextmanager
def meant_commands() -> Iterator[None]:
    """Guess the command that was meant by a word that nothing takes: cyclopts does so only where
    there has to be a command.
    """
    try:
        yield
    except UnusedCliTokensError as error:
        names = list(error.app) if error.app is not None else []
        similar = get_close_matches((error.unused_tokens or [""])[0], names, n=1)
        if not similar:
            raise
        raise UsageError(f'{error} Did you mean "{similar[0]}"?') from error


def options_last(argv: Sequence[str]) -> list[str]:
    """Put options of `fastroai costs` that stand before the name of its command behind it.

    What is given behind it counts.
    """
    if argv[0] != "costs":
        return list(argv)
    before, rest = leading_options(argv[1:])
    command = "".join(rest[:1])
    if command not in ("reconcile", "what-if", "export"):
        return list(argv)
    if command == "what-if" and "--model" in before:
        # There, --model is the other model.
        before["--recorded-model"] = "--recorded-" + before.pop("--model").removeprefix("--")
    for argument in rest:
        before.pop(argument.partition("=")[0], None)
    return ["costs", *rest, *before.values()]


def leading_options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The options at the beginning by their names, each as one argument; then what follows."""
    options: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0].startswith("--"):
        argument = rest.pop(0)
        name = argument.partition("=")[0]
        if name == argument and name not in ("--json", "--debug") and rest:
            argument = f"{name}={rest.pop(0)}"
        options[name] = argument
    return options, rest
