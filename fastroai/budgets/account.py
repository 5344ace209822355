"""What a budget's requests amount to, and whether another one fits: the same for every budget."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum

from ..ledger.entries import ZERO_USD, EntryState, LedgerEntry
from ..pricing.money import EXACT
from .budget import Budget, counts, is_in_flight


class Kind(IntEnum):
    """What is known of an amount."""

    HELD = 0
    """In flight: it will be less, or nothing."""
    UNKNOWN = 1
    """Sent, and nobody knows what it cost: the most that it can have."""
    SPENT = 2


class Verdict(Enum):
    """What becomes of a request now."""

    ADMITTED = "admitted"
    WAITS = "waits"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one entry counts for."""

    kind: Kind
    usd: Decimal


@dataclass(slots=True)
class Account:
    """What is spent, held and unknown of a budget, in USD, exact."""

    spent: Decimal = ZERO_USD
    held: Decimal = ZERO_USD
    unknown: Decimal = ZERO_USD

    @property
    def settled(self) -> Decimal:
        """What no settling gives back."""
        return EXACT.add(self.spent, self.unknown)

    def add(self, charge: Charge) -> None:
        """Count an amount."""
        self._change(charge.kind, charge.usd)

    def remove(self, charge: Charge) -> None:
        """Count an amount no longer."""
        self._change(charge.kind, -charge.usd)

    def _change(self, kind: Kind, usd: Decimal) -> None:
        name = _FIELDS[kind]
        setattr(self, name, EXACT.add(getattr(self, name), usd))

    def verdict(self, budget: Budget, bound: Decimal | None) -> Verdict:
        """Whether a request may be sent that costs so much at most.

        Args:
            bound: None: that can't be told.
        """
        settled = self.settled
        if budget.strength == "settled":
            return Verdict.REFUSED if settled >= budget.usd else Verdict.ADMITTED
        if bound is None:
            return Verdict.REFUSED
        needed = EXACT.add(settled, bound)
        if needed > budget.usd:
            return Verdict.REFUSED
        if EXACT.add(needed, self.held) > budget.usd:
            return Verdict.WAITS
        return Verdict.ADMITTED

    def left(self, budget: Budget) -> Decimal:
        """What of a budget is neither spent, unknown nor held; never below 0."""
        used = EXACT.add(self.settled, self.held)
        return max(ZERO_USD, EXACT.subtract(budget.usd, used))


_FIELDS = {Kind.HELD: "held", Kind.UNKNOWN: "unknown", Kind.SPENT: "spent"}


def unheld(charge: Charge | None) -> Charge | None:
    """A charge once whoever sent the request is gone: what was held for it may have been spent."""
    if charge is None or charge.kind is not Kind.HELD:
        return charge
    return Charge(Kind.UNKNOWN, charge.usd)


def charge_of(entry: LedgerEntry, budget: Budget) -> Charge | None:
    """What an entry counts for in a budget; None: nothing.

    A request of which nobody knows what it cost counts for the most that it can have, as far as
    that can be told.
    """
    if not counts(entry):
        return None
    cost = entry.cost_usd or ZERO_USD
    if entry.state is EntryState.CHARGED:
        return Charge(Kind.SPENT, cost)
    bound = budget.bound_of(entry) or ZERO_USD
    if is_in_flight(entry):
        return Charge(Kind.HELD, bound)
    return Charge(Kind.UNKNOWN, max(bound, cost))
