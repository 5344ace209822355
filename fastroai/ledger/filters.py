"""Which entries of a ledger are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .entries import EntryState, LedgerEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFilter:
    """What entries must have in common; None: anything.

    Attributes:
        model: As it was asked for or as it answered; `gpt-5-mini` also selects `openai:gpt-5-mini`.
        tag: `team=search`, or `team` for any value. A bare name also selects the tags of flow runs.
        since: Sent at this time or later, timezone-aware.
        until: Sent before this time, timezone-aware.

    Raises:
        ValueError: A time is naive.
    """

    id: str | None = None
    run_id: str | None = None
    run_key: str | None = None
    pipeline: str | None = None
    step_id: str | None = None
    model: str | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    state: EntryState | None = None
    simulated: bool | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None and value.utcoffset() is None:
                raise ValueError(
                    f"{name} must be timezone-aware, got {value!r}. Use datetime(..., tzinfo=UTC)."
                )

    @property
    def tag_parts(self) -> tuple[str, str | None]:
        """Name and value of the tag that is asked for; no value means any."""
        name, equals, value = (self.tag or "").partition("=")
        return name, value if equals else None

    def matches(self, entry: LedgerEntry) -> bool:
        """Whether an entry is asked for."""
        at = entry.attribution
        return (
            all(
                wanted is None or wanted == found
                for wanted, found in (
                    (self.id, entry.id),
                    (self.run_id, at.run_id),
                    (self.run_key, at.run_key),
                    (self.pipeline, at.pipeline),
                    (self.step_id, at.step_id),
                    (self.state, entry.state),
                    (self.simulated, entry.simulated),
                )
            )
            and (self.since is None or entry.sent_at >= self.since)
            and (self.until is None or entry.sent_at < self.until)
            and self._has_model(entry)
            and self._has_tag(entry)
        )

    def _has_model(self, entry: LedgerEntry) -> bool:
        asked = entry.model_asked or ""
        return (
            self.model is None
            or self.model in (asked, entry.model_answered)
            or asked.partition(":")[2] == self.model
        )

    def _has_tag(self, entry: LedgerEntry) -> bool:
        if self.tag is None:
            return True
        name, value = self.tag_parts
        if value is not None:
            return entry.attribution.tags.get(name) == value
        return name in entry.attribution.tags or name in entry.attribution.flow_tags
