"""How cost tables are laid out for a person: columns in the order of use, readable heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import filterfalse
from typing import Final

Row = Mapping[str, object]

HEADS: Final[Mapping[str, str]] = {
    "step": "step",
    "item": "item",
    "agent": "agent",
    "cost_usd": "cost (USD)",
    "share": "share",
    "requests": "requests",
    "replayed": "replayed",
    "saved_usd": "saved (USD)",
    "requests_without_price": "without price",
    "cache_saved_usd": "caching saved (USD)",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "model": "model",
    "models": "models",
    "state": "state",
    "attempts": "attempts",
}
"""Names of columns, in the order in which they are shown; others follow behind."""

_ALWAYS: Final = frozenset({"step", "item", "agent", "cost_usd", "requests", "state"})
_NOTHING: Final = frozenset({0, "0", "", "none"})


def laid_out(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as they are shown: a column that is empty or zero throughout is left out."""
    given = dict.fromkeys(name for row in rows for name in row)
    in_order = [*filter(given.__contains__, HEADS), *filterfalse(HEADS.__contains__, given)]
    shown = [name for name in in_order if name in _ALWAYS or not _is_empty(name, rows)]
    return [{HEADS.get(name, name): row.get(name, "") for name in shown} for row in rows]


def _is_empty(name: str, rows: Sequence[Row]) -> bool:
    return all(row.get(name, "") in _NOTHING for row in rows)
