"""Budget: a limit of spend, for what it holds, and what becomes of a request at it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, get_args
from zoneinfo import ZoneInfo

from ..ledger.aggregation import deployment_key
from ..ledger.entries import EntryState, LedgerEntry
from .windows import WINDOWS, Window, window_at

Strength = Literal["settled", "reserved"]
AtLimit = Literal["fail", "skip", "downgrade", "pause"]

SCOPES: Final = ("pipeline", "deployment", "tag", "model")
"""What a standing budget is for: entries that have all that it names; all entries without any."""


MAX_COST: Final = "--max-cost"
"""The name of the budget that this option of `fastroai run` sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit of spend, checked before every model request.

    Attributes:
        usd: The limit in USD, exact: a `Decimal`, an int, or a text as `"2.50"`.
        strength: `settled`: a request is sent while what is spent and what is unknown are below
            the limit; requests in flight may overshoot it. `reserved`: a request is sent once the
            most it can cost fits beside what is spent, unknown and held by requests in flight. It
            waits while it would fit beside the first two only.
        at_limit: `fail`: `CostBudgetExceededError`. `skip`: so, too, but a step marked `optional`
            is left out and the run goes on. `downgrade`: the `cheaper_model` of the agent or the
            pipeline takes the request, whatever is left; give a second budget that fails, to limit
            that as well. `pause`: a run of a deployment under Prefect is suspended, without a
            process, until it is resumed; any other as with `fail`. What runs is let finish.
        warn_at: Shares of the limit that are worth a warning.
        max_request_usd: What a request is held to cost at most where that can't be told. None:
            such a request is refused under `reserved`, and under `settled` it is not seen.
        name: Of a standing budget, by which it is changed. Of a step's or a run's: for messages.
        window: In which spend adds up: `total`, `hour`, `day`, `week` or `month`.
        zone: IANA name of the time zone in which days begin.
        pipeline: A standing budget's: only requests of this pipeline. Likewise:
        deployment: as `flow/deployment`.
        tag: as `team=search`; a name alone for any value, and for tags of flow runs.
        model: as it is asked for; `gpt-5-mini` is `openai:gpt-5-mini`, too.

    Raises:
        ValueError: A value is not of its kind.
    """

    usd: Decimal
    strength: Strength = "settled"
    at_limit: AtLimit = "fail"
    warn_at: tuple[Decimal, ...] = (Decimal("0.8"),)
    max_request_usd: Decimal | None = None
    name: str = ""
    window: Window = "total"
    zone: str = "UTC"
    pipeline: str | None = None
    deployment: str | None = None
    tag: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        _set(self, "usd", amount("usd", self.usd))
        if self.max_request_usd is not None:
            _set(self, "max_request_usd", amount("max_request_usd", self.max_request_usd))
        _set(self, "warn_at", tuple(sorted(amount("warn_at", one) for one in self.warn_at)))
        for name, allowed in (
            ("strength", get_args(Strength)),
            ("at_limit", get_args(AtLimit)),
            ("window", WINDOWS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: choose {' or '.join(map(repr, allowed))}.")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError) as error:
            example = "an IANA name, as 'Europe/Berlin'"
            raise ValueError(f"zone={self.zone!r} is no time zone: give {example}.") from error

    @property
    def is_of_a_run(self) -> bool:
        """Whether it may be a step's or a run's: it names no scope and no window."""
        return self.window == "total" and all(getattr(self, name) is None for name in SCOPES)

    def is_for_model(self, name: str | None) -> bool:
        """Whether requests to a model are in its scope, as far as that says which."""
        return self.model is None or is_model(self.model, name)

    def covers(self, entry: LedgerEntry) -> bool:
        """Whether an entry is in a standing budget's scope."""
        at = entry.attribution
        return (
            self.pipeline in (None, at.pipeline)
            and self.deployment in (None, deployment_key(at.pipeline, at.deployment))
            and self.is_for_model(entry.model)
            and (self.tag is None or has_tag(self.tag, entry))
        )

    def window_of(self, at: datetime) -> tuple[datetime, datetime]:
        """The first moment of its window at a time, and that of the next one."""
        return window_at(self.window, self.zone, at)

    def has_downgraded(self, entry: LedgerEntry) -> bool:
        """Whether a request goes to the cheaper model already, which is all that it asks for."""
        return self.at_limit == "downgrade" and entry.downgraded_from is not None

    def bound_of(self, entry: LedgerEntry) -> Decimal | None:
        """What a request can cost at most; None where nobody can tell."""
        return self.max_request_usd if entry.upper_bound_usd is None else entry.upper_bound_usd


_set = object.__setattr__  # the dataclass is frozen


def budgets_given(value: object) -> tuple[Budget, ...]:
    """The budgets of a configuration: none, one, or several.

    Raises:
        ValueError: It is something else, or a budget that is not a step's or a run's.
    """
    if value is None:
        return ()
    given: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
    for one in given:
        if not isinstance(one, Budget):
            raise ValueError(f"budget={one!r}: give Budget(usd='2.50'), or a list of them.")
        if not one.is_of_a_run:
            raise ValueError(
                f"budget={one!r}: a step's or a run's budget has no scope and no window. Set such "
                "a one in the ledger: `Budgets.set`."
            )
    return tuple(given)


def amount(name: str, value: object) -> Decimal:
    """An exact amount of USD.

    Raises:
        ValueError: It is none, or a float, which is not exact.
    """
    if isinstance(value, Decimal | int | str) and not isinstance(value, bool):
        try:
            usd = Decimal(value)
        except InvalidOperation:
            usd = Decimal("NaN")
        if usd.is_finite() and usd >= 0:
            return usd
    raise ValueError(f"{name}={value!r}: give an exact amount >= 0, as '2.50' or Decimal('2.50').")


def to_json(budget: Budget) -> str:
    """A budget as it is stored."""
    fields = {name: value for name, value in asdict(budget).items() if value is not None}
    return json.dumps(fields, default=str, sort_keys=True)


def from_json(text: str) -> Budget:
    """A budget as it was stored."""
    fields = json.loads(text)
    return Budget(**fields | {"warn_at": tuple(fields["warn_at"])})


def counts(entry: LedgerEntry) -> bool:
    """Whether an entry costs anything: replayed, refused and simulated ones don't."""
    return entry.is_spend and not entry.simulated


def is_in_flight(entry: LedgerEntry) -> bool:
    """Whether a request's outcome is still to come."""
    return entry.state is EntryState.UNSETTLED and entry.settled_at is None


def is_model(wanted: str, model: str | None) -> bool:
    """Whether a model is the one of a budget's scope."""
    return model is not None and (wanted == model or wanted == model.partition(":")[2])


def has_tag(tag: str, entry: LedgerEntry) -> bool:
    name, equals, value = tag.partition("=")
    tags = entry.attribution.tags
    if equals:
        return tags.get(name) == value
    return name in tags or name in entry.attribution.flow_tags
