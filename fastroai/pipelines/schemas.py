"""Result of a pipeline's run: usage per step and in total, conversation state, output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from ..agent.schemas import ChatResponse
from ..errors import StepExecutionError
from ..ledger.entries import EntryState, LedgerEntry, total_usd
from ..pricing.money import microcents_to_usd, usd_to_microcents
from ..pricing.token_counts import TOKEN_COUNTERS, summed

T = TypeVar("T")
OutputT = TypeVar("OutputT")

_COUNTERS = (*TOKEN_COUNTERS, "request_count", "tool_call_count", "processing_time_ms")
_BOOKS = (
    "cost_usd",
    "replayed_cost_usd",
    "replayed_count",
    "unsettled_count",
    "unpriced_count",
    "refused_count",
)


# The published base classes: str() of a member is part of the API.
class ConversationStatus(str, Enum):  # noqa: UP042
    """Whether a conversation has what it needs."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


class ConversationState(BaseModel, Generic[T]):
    """A step's output in a conversation over several turns; an `INCOMPLETE` one ends the run early.

    Attributes:
        status: `COMPLETE` lets dependents run, `INCOMPLETE` starts no further step.
        data: What was gathered so far.
        context: Anything the next turn needs.
    """

    model_config = ConfigDict(defer_build=True)

    status: ConversationStatus
    data: T | None = None
    context: dict[str, Any] = Field(default_factory=dict)


class StepUsage(BaseModel):
    """Tokens, requests and cost of one step: failed attempts count, replayed requests do not.

    Attributes:
        cost_usd: Exact USD of everything whose price is known.
        cost_microcents: The same in 1e-6 USD, rounded once.
        processing_time_ms: Time spent in agent calls, summed; concurrent calls add up.
        model: The first model that answered.
        replayed_cost_usd: What replayed requests cost when they were paid: saved now.
        unsettled_count: Requests that were sent and whose outcome, so also their price, is unknown.
        unpriced_count: Requests that were answered by a model without a known price.
        refused_count: Those of `request_count` that a provider refused or that could not be sent;
            nothing is billed.
    """

    model_config = ConfigDict(defer_build=True)

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_audio_read_tokens: int = 0
    request_count: int = 0
    tool_call_count: int = 0
    cost_microcents: int = 0
    processing_time_ms: int = 0
    model: str | None = None
    cost_usd: Decimal | None = None
    replayed_cost_usd: Decimal = Decimal(0)
    replayed_count: int = 0
    unsettled_count: int = 0
    unpriced_count: int = 0
    refused_count: int = 0

    def model_post_init(self, context: Any, /) -> None:
        if self.cost_usd is None:
            self.cost_usd = microcents_to_usd(self.cost_microcents)

    @classmethod
    def from_chat_response(cls, response: ChatResponse[Any]) -> Self:
        """The usage of one agent call, as its response reports it."""
        counters = {name: getattr(response, name) for name in _COUNTERS}
        exact = response.cost_usd if isinstance(response.cost_usd, Decimal) else None
        return cls(
            **counters,
            cost_microcents=response.cost_microcents,
            cost_usd=exact,
            model=response.model,
        )

    @classmethod
    def from_entries(
        cls,
        entries: Iterable[LedgerEntry],
        *,
        tool_call_count: int = 0,
        processing_time_ms: int = 0,
    ) -> Self:
        """Sum ledger entries; `tool_call_count` and `processing_time_ms` are not in them and are
        passed on.
        """
        entries = tuple(entries)
        spend = [e for e in entries if e.is_spend]
        replayed = [e for e in entries if e.state is EntryState.REPLAYED]
        cost = total_usd(spend)
        requests: Counter[EntryState] = Counter()
        for entry in entries:
            requests[entry.state] += entry.request_count
        return cls(
            **summed(entry.tokens for entry in spend),
            request_count=requests.total() - requests[EntryState.REPLAYED],
            tool_call_count=tool_call_count,
            processing_time_ms=processing_time_ms,
            cost_usd=cost,
            # Of the sum: a single request may cost less than half of a microcent.
            cost_microcents=usd_to_microcents(cost),
            model=next((e.model_answered for e in entries if e.model_answered), None),
            replayed_cost_usd=sum((e.cost_usd or Decimal(0) for e in replayed), Decimal(0)),
            replayed_count=len(replayed),
            unsettled_count=requests[EntryState.UNSETTLED],
            unpriced_count=requests[EntryState.UNPRICED],
            refused_count=requests[EntryState.REFUSED],
        )

    @property
    def share_priced(self) -> float | None:
        """Share of the requests that count as spend whose cost is known in full.

        None: there are none.
        """
        return _share_priced(
            self.request_count, self.refused_count, self.unsettled_count + self.unpriced_count
        )

    def __add__(self, other: StepUsage) -> StepUsage:
        sums = {name: getattr(self, name) + getattr(other, name) for name in (*_COUNTERS, *_BOOKS)}
        return StepUsage(
            **sums,
            cost_microcents=usd_to_microcents(sums["cost_usd"]),
            model=self.model or other.model,
        )


class PipelineUsage(BaseModel):
    """Usage of a run: the sums over its steps, and each step's own.

    Attributes:
        total_cost_usd: Exact USD; `total_cost_microcents` is the same in 1e-6 USD, rounded once.
        total_processing_time_ms: Agent time summed over steps; steps that ran at once add up.
        wall_time_ms: How long the run took.
        steps: Usage per step id, of the steps that made requests.
    """

    model_config = ConfigDict(defer_build=True)

    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cache_read_tokens: int = 0
    total_cache_write_tokens: int = 0
    total_input_audio_tokens: int = 0
    total_output_audio_tokens: int = 0
    total_cache_audio_read_tokens: int = 0
    total_request_count: int = 0
    total_tool_call_count: int = 0
    total_cost_microcents: int = 0
    total_processing_time_ms: int = 0
    total_cost_usd: Decimal = Decimal(0)
    total_replayed_cost_usd: Decimal = Decimal(0)
    total_replayed_count: int = 0
    total_unsettled_count: int = 0
    total_unpriced_count: int = 0
    total_refused_count: int = 0
    wall_time_ms: int = 0
    steps: dict[str, StepUsage] = Field(default_factory=dict)

    @classmethod
    def from_step_usages(
        cls, step_usages: Mapping[str, StepUsage], *, wall_time_ms: int = 0
    ) -> Self:
        """Sum the usages of a run's steps."""
        totals = {
            f"total_{name}": sum(getattr(usage, name) for usage in step_usages.values())
            for name in (*_COUNTERS, *_BOOKS)
        }
        totals["total_cost_usd"] = Decimal(totals["total_cost_usd"])
        totals["total_replayed_cost_usd"] = Decimal(totals["total_replayed_cost_usd"])
        return cls(
            **totals,
            total_cost_microcents=usd_to_microcents(totals["total_cost_usd"]),
            wall_time_ms=wall_time_ms,
            steps=dict(step_usages),
        )

    @property
    def total_cost_dollars(self) -> float:
        """Total cost in USD, as a float for display; `total_cost_usd` is exact."""
        return self.total_cost_microcents / 1_000_000

    @property
    def share_priced(self) -> float | None:
        """Share of the requests that count as spend whose cost is known in full.

        None: there are none.
        """
        unknown = self.total_unsettled_count + self.total_unpriced_count
        return _share_priced(self.total_request_count, self.total_refused_count, unknown)


def _share_priced(requests: int, refused: int, unknown: int) -> float | None:
    spend = requests - refused
    return (spend - unknown) / spend if spend > 0 else None


class PipelineResult(BaseModel, Generic[OutputT]):
    """What a run of a pipeline produced.

    Attributes:
        output: Output of the output step. None when the run stopped before it, or it failed or was
            skipped.
        step_outputs: Outputs of all finished steps by step id.
        conversation_state: The last conversation state a step returned.
        usage: None when no step made a request.
        stopped_early: An `INCOMPLETE` conversation state ended the run.
        run_id: Identity of this execution.
        entries: One ledger entry per model request, in the order in which they were sent.
        errors: With `on_error="continue"`, what failed, by step id.
        skipped: The optional steps that a budget left out; with `on_error="continue"`, also the
            steps that did not run because one they depend on failed.
        not_stored: Why the result of a step could not be stored, by step id; another run would pay
            for it again.
        unmetered: By step id and host, how many requests to providers were sent past all meters, by
            an SDK that a step used itself: what they cost is not in the books. `""` for no step.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, defer_build=True)

    output: OutputT | None = None
    step_outputs: dict[str, Any] = Field(default_factory=dict)
    conversation_state: ConversationState[Any] | None = None
    usage: PipelineUsage | None = None
    stopped_early: bool = False
    run_id: str | None = None
    entries: tuple[SkipValidation[LedgerEntry], ...] = ()
    errors: dict[str, SkipValidation[StepExecutionError]] = Field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    not_stored: dict[str, str] = Field(default_factory=dict)
    unmetered: dict[str, dict[str, int]] = Field(default_factory=dict)
