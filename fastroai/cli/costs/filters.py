"""Which entries of which ledger the command line asks for, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Group, Parameter

from ...ledger.aggregation import GROUPINGS, grouping
from ..exit_codes import UsageError
from ..parsing import moment, shown

_WHICH = Group("Which requests", sort_key=1)
_HOW = Group("Source and format", sort_key=2)
_MODEL = "To this model, asked or answered; gpt-5-mini also finds openai:gpt-5-mini."


def _is_grouping(type_: object, value: str) -> None:
    grouping(value)


By = Annotated[
    str,
    Parameter(
        name="--by",
        validator=_is_grouping,
        help=(f"{', '.join(GROUPINGS)}, or tag:NAME for the values of one tag. Default: pipeline."),
    ),
]


def _which(name: str, help_: str, **options: Any) -> Parameter:
    return Parameter(name=name, help=help_, group=_WHICH, **options)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What entries must have in common; the arguments of `Ledger.totals` and `Ledger.entries` of
    the same names.

    Raises:
        UsageError: Nothing can lie between `since` and `until`.
    """

    since: Annotated[
        datetime | None, _which("--since", "Sent then or later.", converter=moment)
    ] = None
    until: Annotated[datetime | None, _which("--until", "Sent before.", converter=moment)] = None
    pipeline: Annotated[str | None, _which("--pipeline", "Of this pipeline.")] = None
    run_id: Annotated[str | None, _which("--run", "Of this run.")] = None
    run_key: Annotated[str | None, _which("--run-key", "Of all executions under this run key.")] = (
        None
    )
    step_id: Annotated[
        str | None, _which("--step", "Of this step, under the name that its pipeline gives it.")
    ] = None
    tag: Annotated[
        str | None,
        _which("--tag", "With this tag, NAME=VALUE; NAME alone also finds tags of flow runs."),
    ] = None
    model: Annotated[str | None, _which("--model", _MODEL)] = None

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UsageError(
                f"Nothing lies between --since {shown(self.since)} and --until {shown(self.until)}."
            )

    def as_arguments(self) -> dict[str, Any]:
        """For `Ledger.totals` and `Ledger.entries`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_json(self) -> dict[str, str]:
        """What is given; times in UTC."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.as_arguments().items()
            if value is not None
        }

    def __bool__(self) -> bool:
        return any(self._described())

    def __str__(self) -> str:
        return ", ".join(self._described())

    def _described(self) -> Iterator[str]:
        if self.since is not None and self.until is not None:
            yield f"{shown(self.since)} to {shown(self.until)}"
        elif self.since is not None:
            yield f"since {shown(self.since)}"
        elif self.until is not None:
            yield f"before {shown(self.until)}"
        for name, value in (
            ("run", self.run_id),
            ("run key", self.run_key),
            ("pipeline", self.pipeline),
            ("step", self.step_id),
            ("model", self.model),
            ("tag", self.tag),
        ):
            if value is not None:
                yield f"{name} {value!r}"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFilters(Filters):
    """The same where `--model` means another model than the recorded one."""

    model: Annotated[str | None, _which("--recorded-model", _MODEL)] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which ledger is read, and how what it says is shown."""

    ledger: Annotated[
        str | None,
        Parameter(name="--ledger", help="URL; default: FASTROAI_LEDGER_URL.", group=_HOW),
    ] = None
    json: Annotated[
        bool, Parameter(name="--json", help="As JSON, exact amounts as strings.", group=_HOW)
    ] = False
    debug: Annotated[
        bool, Parameter(name="--debug", help="Show tracebacks of errors.", group=_HOW)
    ] = False


ALL = Filters()
ALL_RECORDED = RecordedFilters()
CONFIGURED = Source()
