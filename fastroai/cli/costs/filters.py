"""Which entries of which ledger the command line asks for, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Group, Parameter

from ...ledger.aggregation import grouping
from ..exit_codes import UsageError
from ..parsing import moment, shown

_IN_WORDS = ("run_id", "run_key", "pipeline", "deployment", "step_id", "model", "tag")
_WHICH = Group("Which requests", sort_key=1)
_HOW = Group("Source and format", sort_key=2)


def check_grouping(type_: object, value: str) -> None:
    """Refuse what entries can't be grouped by."""
    grouping(value)


By = Annotated[str, Parameter(validator=check_grouping)]
"""One dimension, or several with commas."""


@Parameter(name="*", group=_WHICH)
@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What entries must have in common; the arguments of `Ledger.totals` and `Ledger.entries` of
    the same names. Each is an option, and its text here is the option's help.

    Attributes:
        since: Sent then or later.
        until: Sent before.
        pipeline: Of this pipeline.
        deployment: Of this deployment, FLOW/DEPLOYMENT.
        run_id: Of this run.
        run_key: Of all executions under this run key.
        step_id: Of this step, under the name that its pipeline gives it.
        tag: With this tag, NAME=VALUE; NAME alone also finds tags of flow runs.
        model: To this model, asked or answered; gpt-5-mini also finds openai:gpt-5-mini.

    Raises:
        UsageError: Nothing can lie between `since` and `until`.
    """

    since: Annotated[datetime | None, Parameter(converter=moment)] = None
    until: Annotated[datetime | None, Parameter(converter=moment)] = None
    pipeline: str | None = None
    deployment: str | None = None
    run_id: Annotated[str | None, Parameter(name="--run")] = None
    run_key: str | None = None
    step_id: Annotated[str | None, Parameter(name="--step")] = None
    tag: str | None = None
    model: str | None = None

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

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """From when until before when."""
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        return self.since or first, self.until or last

    @property
    def in_brackets(self) -> str:
        """For behind a text, from which it sets itself apart; empty where all is asked for."""
        return f" ({self})" if self else ""

    def __bool__(self) -> bool:
        return any(self.described())

    def __str__(self) -> str:
        return ", ".join(self.described())

    def described(self) -> Iterator[str]:
        """Each filter that is given, in words."""
        since = self.since and f"since {shown(self.since)}"
        until = self.until and f"before {shown(self.until)}"
        if self.since and self.until:
            since, until = f"{shown(self.since)} to {shown(self.until)}", None
        yield from filter(None, (since, until))
        for name in _IN_WORDS:
            value = getattr(self, name)
            if value is not None:
                yield f"{name.removesuffix('_id').replace('_', ' ')} {value!r}"


@Parameter(name="*", group=_WHICH)
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFilters(Filters):
    """The same where `--model` means another model than the recorded one."""

    model: Annotated[str | None, Parameter(name="--recorded-model")] = None


@Parameter(name="*", group=_HOW)
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which ledger is read, and how what it says is shown.

    Attributes:
        ledger: URL; default: FASTROAI_LEDGER_URL.
        json: As JSON, exact amounts as strings.
        debug: Show tracebacks of errors.
    """

    ledger: str | None = None
    json: bool = False
    debug: bool = False


ALL = Filters()
ALL_RECORDED = RecordedFilters()
CONFIGURED = Source()
