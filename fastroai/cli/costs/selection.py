"""Which entries of a ledger the command line asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..exit_codes import UsageError
from ..parsing import moment, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What entries must have in common; the arguments of `Ledger.totals` and `Ledger.entries` of
    the same names.
    """

    run_id: str | None
    run_key: str | None
    pipeline: str | None
    step_id: str | None
    model: str | None
    tag: str | None
    since: datetime | None
    until: datetime | None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Filters:
        """What the arguments of `add_filters` say.

        Raises:
            UsageError: A time can't be read, or nothing can lie between the two.
        """
        since = None if arguments.since is None else moment("--since", arguments.since)
        until = None if arguments.until is None else moment("--until", arguments.until)
        if since is not None and until is not None and since >= until:
            raise UsageError(
                f"Nothing lies between --since {shown(since)} and --until {shown(until)}."
            )
        return cls(
            run_id=arguments.run,
            run_key=arguments.run_key,
            pipeline=arguments.pipeline,
            step_id=arguments.step,
            model=arguments.recorded_model,
            tag=arguments.tag,
            since=since,
            until=until,
        )

    def as_arguments(self) -> dict[str, Any]:
        """For `Ledger.totals` and `Ledger.entries`."""
        return asdict(self)

    def as_json(self) -> dict[str, str]:
        """What is given; times in UTC."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in given.items()
        }

    def __bool__(self) -> bool:
        return any(self._said())

    def __str__(self) -> str:
        return ", ".join(self._said())

    def _said(self) -> Iterator[str]:
        if self.since is not None and self.until is not None:
            yield f"{shown(self.since)} to {shown(self.until)}"
        elif self.since is not None:
            yield f"since {shown(self.since)}"
        elif self.until is not None:
            yield f"before {shown(self.until)}"
        names = {"run_id": "run", "run_key": "run key", "step_id": "step"}
        for name in ("run_id", "run_key", "pipeline", "step_id", "model", "tag"):
            if (value := getattr(self, name)) is not None:
                yield f"{names.get(name, name)} {value!r}"


def add_filters(
    parser: argparse.ArgumentParser, *, inherits: bool = False, model_option: str = "--model"
) -> None:
    """Add the options that say which entries of which ledger, and how they are shown.

    Args:
        inherits: Whether they were added to the command above too: what is given there stays then.
        model_option: What the filter for the model is called.
    """
    unset: Any = argparse.SUPPRESS if inherits else None
    group = parser.add_argument_group("which requests")
    for option, metavar, meaning in (
        ("--since", "TIME", "sent then or later"),
        ("--until", "TIME", "sent before"),
        ("--pipeline", "NAME", "of this pipeline"),
        ("--run", "ID", "of this run"),
        ("--run-key", "KEY", "of all executions of this piece of work"),
        ("--step", "ID", "of this step, under the name that its pipeline gives it"),
        (
            "--tag",
            "NAME[=VALUE]",
            "with this tag; without a value, also with this tag of the flow run",
        ),
    ):
        group.add_argument(option, metavar=metavar, default=unset, help=meaning)
    group.add_argument(
        model_option,
        dest="recorded_model",
        metavar="MODEL",
        default=unset,
        help="to this model, asked or answered; gpt-5-mini also finds openai:gpt-5-mini",
    )
    output = parser.add_argument_group("where from, and how")
    output.add_argument(
        "--ledger", metavar="URL", default=unset, help="default: FASTROAI_LEDGER_URL"
    )
    for option, meaning in (("--json", "exact amounts as strings"), ("--debug", "show tracebacks")):
        default = argparse.SUPPRESS if inherits else False
        output.add_argument(option, action="store_true", default=default, help=meaning)
