"""The error of a request that does not fit a budget, and the command that raises it."""

from __future__ import annotations

import shlex
from decimal import Decimal
from typing import Final

from ..errors import CostBudgetExceededError
from ..pricing.money import EXACT, plain, usd_to_microcents
from .account import Account
from .budget import MAX_COST, Budget
from .signals import Scope

NO_BOUND: Final = (
    "What the request can cost at most can't be told, so nothing can be reserved for it: set the "
    "agent's max_tokens, a price for its model (FASTROAI_PRICES), or the budget's max_request_usd."
)
WAITS_FOR_ITSELF: Final = (
    "All that is held of it is held by requests of those who wait for it: read the answers first "
    "that are under way, or raise the budget."
)


def why_refused(budget: Budget, bound: Decimal | None) -> str | None:
    """Why a request does not fit that costs so much at most; None: the limit is reached."""
    if budget.strength == "settled":
        return None
    return NO_BOUND if bound is None else f"The request can cost up to {bound:f} USD."


def refusal(
    budget: Budget,
    scope: Scope,
    name: str,
    account: Account,
    step_id: str | None,
    *,
    reason: str | None = None,
    ledger: str | None = None,
) -> CostBudgetExceededError:
    """The error that says which budget a request does not fit, and what there is of it.

    Args:
        ledger: URL of the one that a standing budget is in; None: the one that commands use anyway.
    """
    return CostBudgetExceededError(
        usd_to_microcents(budget.usd),
        usd_to_microcents(account.settled),
        step_id,
        scope=scope,
        name=name,
        limit=budget.usd,
        spent=plain(account.spent),
        held=plain(account.held),
        unknown=plain(account.unknown),
        at_limit=budget.at_limit,
        reason=reason,
        raise_with=_raise_with(budget, scope, name, ledger),
    )


def _raise_with(budget: Budget, scope: Scope, name: str, ledger: str | None) -> str:
    doubled = plain(EXACT.multiply(budget.usd, 2) or Decimal(1))
    if scope == "standing":
        command = ["fastroai", "budgets", "raise"]
        command += [] if ledger is None else ["--ledger", ledger]
        command += ["--"] if name.startswith("-") else []
        return shlex.join([*command, name, f"{doubled:f}"])
    if budget.name == MAX_COST:
        return f"{MAX_COST} {doubled:f}"
    kind = "StepConfig" if scope == "step" else "PipelineConfig"
    return f"{kind}(budget=Budget(usd='{doubled}'))"
