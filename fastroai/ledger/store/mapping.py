"""Ledger entries as rows of the tables, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from operator import attrgetter, itemgetter
from typing import Any

from ...database.values import Row, microseconds, moment
from ...pricing.money import EXACT
from ...pricing.token_counts import TokenCounts
from ...redaction import redact
from ..aggregation import TOKEN_NAMES
from ..entries import DIMENSIONS, ZERO_USD, Attribution, EntryState, LedgerEntry

_LARGEST = 2**63 - 1
_PLACES = 12
"""Amounts are whole numbers of 1e-12 USD."""
_UNITS = 10**_PLACES

INTENT_TEXTS = (
    "agent", "model_asked", "provider_host", "service_tier", "replay_of", "downgraded_from",
)  # fmt: skip
OUTCOME_TEXTS = (
    "model_answered", "provider", "service_tier", "response_id",
    "price_source", "price_version",
)  # fmt: skip

_TEXTS_BEFORE = (*DIMENSIONS, *INTENT_TEXTS)
_dimensions_of, _intent_texts_of = attrgetter(*DIMENSIONS), attrgetter(*INTENT_TEXTS)
_outcome_texts_of, _tokens_of = attrgetter(*OUTCOME_TEXTS), attrgetter(*TOKEN_NAMES)
_INTENT_ONLY = tuple(name for name in INTENT_TEXTS if name != "service_tier")

_STATES = {state.value: state for state in EntryState}

_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def intent_row(entry: LedgerEntry) -> Row:
    """What is known before a request is sent."""
    at = entry.attribution
    amounts, exact = _amounts(upper_bound=entry.upper_bound_usd)
    return {
        "id": _text(entry.id),
        **_named(_TEXTS_BEFORE, _dimensions_of(at) + _intent_texts_of(entry)),
        **amounts,
        "exact": exact,
        "attempt": _whole(at.attempt),
        "dispatch": _whole(at.dispatch),
        "tags": tags_json(at.tags) if at.tags else None,
        "flow_tags": _dumps([_text(str(tag)) for tag in at.flow_tags]) if at.flow_tags else None,
        "sent_at": microseconds(entry.sent_at),
        "request_count": _whole(entry.request_count),
        "simulated": bool(entry.simulated),
    }


def outcome_row(entry: LedgerEntry) -> Row:
    """What is known after it."""
    entry = _without_impossible_cost(entry)
    amounts, exact = _amounts(
        cost=entry.cost_usd,
        request_fees=entry.request_fees_usd,
        cache_saved=entry.cache_saved_usd,
        upper_bound=entry.upper_bound_usd,
    )
    further = {_text(str(key)): value for key, value in entry.further_usage.items()} or None
    return {
        "entry_id": _text(entry.id),
        "final": int(entry.state is not EntryState.UNSETTLED),
        "state": entry.state.value,
        "settled_at": microseconds(entry.settled_at or datetime.now(UTC)),
        **_named(OUTCOME_TEXTS, _outcome_texts_of(entry)),
        "error": None if entry.error is None else _text(redact(entry.error)),
        **dict(zip(TOKEN_NAMES, map(_whole, _tokens_of(entry.tokens)), strict=True)),
        "further_usage": further and _dumps(further),
        **amounts,
        "exact": exact,
    }


Known = dict[Any, Any]
"""What entries that are read together have in common, by what it was made of."""


def entry_from(row: Mapping[Any, Any], known: Known | None = None) -> LedgerEntry:
    """The entry of an intent row joined with its outcome's columns, which are prefixed `o_`;
    those are None without.

    Args:
        known: Of entries read before: many share what is made for one.
    """
    known = {} if known is None else known
    settled = row["o_state"] is not None
    return LedgerEntry(
        id=row["id"],
        attribution=_attribution_from(row, known),
        **{name: row[name] for name in _INTENT_ONLY},
        sent_at=moment(row["sent_at"]),
        request_count=row["request_count"],
        simulated=bool(row["simulated"]),
        **(_outcome_from(row, known) if settled else _no_outcome_from(row, known)),
    )


def _attribution_from(row: Mapping[Any, Any], known: Known) -> Attribution:
    key = _attributed(row)
    found: Attribution | None = known.get(key)
    if found is None:
        found = known[key] = Attribution(
            **{name: row[name] for name in DIMENSIONS},
            attempt=row["attempt"],
            dispatch=row["dispatch"],
            tags=_parsed(row["tags"], known),
            flow_tags=tuple(_parsed(row["flow_tags"], known)),
        )
    return found


_attributed = itemgetter(*DIMENSIONS, "attempt", "dispatch", "tags", "flow_tags")


def _parsed(text: str | None, known: Known) -> Any:
    if text not in known:
        known[text] = json.loads(text) if text else {}
    return known[text]


def _no_outcome_from(row: Mapping[Any, Any], known: Known) -> dict[str, Any]:
    """The fields that an outcome would restate."""
    exact = _parsed(row["exact"], known)
    return {
        "service_tier": row["service_tier"],
        "upper_bound_usd": _amount("upper_bound", row["upper_bound"], exact, known),
    }


def _outcome_from(row: Mapping[Any, Any], known: Known) -> dict[str, Any]:
    exact = _parsed(row["o_exact"], known)
    return {
        **{name: row[f"o_{name}"] for name in OUTCOME_TEXTS},
        "state": _STATES[row["o_state"]],
        "error": row["o_error"],
        "settled_at": moment(row["o_settled_at"]),
        "tokens": TokenCounts(**{name: row[f"o_{name}"] for name in TOKEN_NAMES}),
        "further_usage": _parsed(row["o_further_usage"], known),
        "cost_usd": _amount("cost", row["o_cost"], exact, known),
        "request_fees_usd": _amount("request_fees", row["o_request_fees"], exact, known),
        "cache_saved_usd": _amount("cache_saved", row["o_cache_saved"], exact, known),
        "upper_bound_usd": _amount("upper_bound", row["o_upper_bound"], exact, known),
    }


def as_stored(entry: LedgerEntry) -> LedgerEntry:
    """The entry as it will read once it is written; the same one but for what no database takes."""
    intent, outcome = intent_row(entry), outcome_row(entry)
    settled = entry.settled_at is not None
    return entry_from(
        intent | {f"o_{name}": value if settled else None for name, value in outcome.items()}
    )


def digest_of_id(id_: str) -> int:
    """A number of 64 bits that stands for an entry's id."""
    digest = hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def to_units(usd: Decimal) -> int | None:
    """An amount in 1e-12 USD.

    None: it is not a whole number of them, or too large for the column.
    """
    try:
        units = EXACT.scaleb(usd, _PLACES)
    except InvalidOperation:
        return None
    if units != units.to_integral_value(context=EXACT) or abs(units) > _LARGEST:
        return None
    return int(units)


def from_units(units: int) -> Decimal:
    """The amount in USD, exact, without trailing zeros."""
    if not units:  # as most amounts of a large ledger's groups are
        return ZERO_USD
    whole, rest = divmod(units, _UNITS)
    return EXACT.normalize(EXACT.scaleb(Decimal(units), -_PLACES)) if rest else Decimal(whole)


def tags_json(tags: Mapping[str, str]) -> str:
    """Tags as canonical JSON: the same tags are the same text."""
    return _dumps({_text(str(name)): _text(str(value)) for name, value in tags.items()})


def tag_fragments(name: str, value: str | None) -> tuple[str, ...]:
    """Texts of which canonical JSON contains one exactly when it has that tag, or a tag of that
    name.

    Quotes inside a name or a value are escaped, so a fragment that starts at an opening quote is
    never found in one.
    """
    pair = f"{_dumps(_text(name))}:" + ("" if value is None else _dumps(_text(value)))
    return f"{{{pair}", f",{pair}"


def flow_tag_fragments(name: str) -> tuple[str, ...]:
    """The same for the list of a flow run's tags."""
    item = _dumps(_text(name))
    return f"[{item}", f",{item}"


def _amounts(**amounts: Decimal | None) -> tuple[dict[str, int | None], str | None]:
    units: dict[str, int | None] = dict.fromkeys(amounts)
    exact: dict[str, str] = {}
    for name, usd in amounts.items():
        if usd is not None and usd.is_finite():
            units[name] = to_units(usd)
            if units[name] is None:
                exact[name] = str(usd)
    return units, _dumps(exact) if exact else None


def _amount(name: str, units: int | None, exact: Mapping[str, str], known: Known) -> Decimal | None:
    if name in exact:
        return Decimal(exact[name])
    if units is None:
        return None
    if units not in known:
        known[units] = from_units(units)
    found: Decimal = known[units]
    return found


def _without_impossible_cost(entry: LedgerEntry) -> LedgerEntry:
    if entry.state is not EntryState.CHARGED or entry.cost_usd is None:
        return entry
    if entry.cost_usd.is_finite():
        return entry
    reason = f"The calculated price is {entry.cost_usd}, which is not an amount of money."
    return replace(entry, cost_usd=None, state=EntryState.UNPRICED, error=reason)


def _dumps(content: Any) -> str:
    return _encoder.encode(content)


def _whole(count: int) -> int:
    """A count within what the column takes."""
    if type(count) is int and -_LARGEST <= count <= _LARGEST:
        return count
    return max(-_LARGEST, min(int(count), _LARGEST))


def _named(names: tuple[str, ...], texts: Iterable[str | None]) -> dict[str, str | None]:
    found = dict(zip(names, texts, strict=True))
    for name, text in found.items():
        # Most are none: to call a function for each takes longer than all else about a row.
        if text is not None:
            found[name] = _text(text)
    return found


def _text(value: str | None) -> str | None:
    """A text that any database takes: no NUL, no half of a surrogate pair."""
    if value is None or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
