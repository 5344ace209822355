"""Filters of ledger entries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from .entries import EntryState


class FilterFields(TypedDict, total=False):
    """The fields of a `LedgerFilter`, as keyword arguments."""

    id: str | None
    run_id: str | None
    run_key: str | None
    pipeline: str | None
    deployment: str | None
    step_id: str | None
    model: str | None
    tag: str | None
    since: datetime | None
    until: datetime | None
    state: EntryState | None
    simulated: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFilter:
    """What entries must have in common; None: anything.

    Attributes:
        id: One entry.
        run_id: One execution.
        run_key: All executions of one piece of work.
        pipeline: A pipeline's name.
        deployment: As `flow/deployment`.
        step_id: A step's id.
        model: As it was asked for or as it answered; `gpt-5-mini` also selects `openai:gpt-5-mini`.
        tag: `team=search`, or `team` for any value. A bare name also selects the tags of flow runs.
        since: Sent at this time or later, timezone-aware.
        until: Sent before this time, timezone-aware.
        state: What is known of the request.
        simulated: Whether an offline model answered.

    Raises:
        ValueError: A time is naive.
    """

    id: str | None = None
    run_id: str | None = None
    run_key: str | None = None
    pipeline: str | None = None
    deployment: str | None = None
    step_id: str | None = None
    model: str | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    state: EntryState | None = None
    simulated: bool | None = None

    def __post_init__(self) -> None:
        for name, value in (("since", self.since), ("until", self.until)):
            if value is not None and value.utcoffset() is None:
                raise ValueError(
                    f"{name} must be timezone-aware, got {value!r}. Use datetime(..., tzinfo=UTC)."
                )

    @property
    def tag_parts(self) -> tuple[str, str | None]:
        """Name and value of the tag that is asked for; no value means any."""
        name, equals, value = (self.tag or "").partition("=")
        return name, value if equals else None


EVERYTHING = LedgerFilter()
