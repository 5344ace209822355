"""Books the requests of one agent run: intent before sending, outcome afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.settings import ModelSettings

from ..errors import CostBudgetExceededError
from ..ledger.entries import EntryState, LedgerEntry
from ..ledger.recorder import RequestRecorder
from ..providers import host_in
from ..rate_limits import LIMITERS, Amounts, limiter_of, told_by
from ..replay.requests import Books, RequestOfModel
from .http_attempts import Send
from .models import endpoint, innermost
from .outcomes import settle_answer, settle_stream
from .pricer import Pricer
from .raw_answers import RawAnswer
from .request_turns import RequestTurns
from .retries import LONGEST_RETRY_AFTER
from .scope import UNATTRIBUTED, DispatchScope
from .sdk_retries import client_retries
from .service_tiers import asked_service_tier


class Target:
    """A model that sends, as the books name it.

    Attributes:
        model: As it was given, with its wrappers.
        sender: The one beneath them, which has the client.
        asked: Its id.
        host: Where its requests go, with the port where one is named.
        simulated: Whether nothing is really sent.
        limited: By what rate limits know it: provider, model, host.
        instead_of: Id of the model whose request it takes, at the limit of a budget.
    """

    def __init__(self, model: Model, *, instead_of: str | None = None) -> None:
        self.model = model
        self.sender = innermost(model)
        self.asked = model.model_id
        self.host = host_in(endpoint(model) or "")
        self.simulated = getattr(model, "simulated", False) is True
        self.limited = (model.system, model.model_name, self.host)
        self.instead_of = instead_of


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What can be said of a request before it is sent.

    Attributes:
        service_tier: The tier it asks for.
        request: What is asked; None: it is no chat.
    """

    service_tier: str | None = None
    request: RequestOfModel | None = None


@dataclass(slots=True, eq=False)
class AttemptsOf:
    """What the attempts at one request tell the books. One object: a thousand requests that wait
    each hold theirs.
    """

    _books: RequestBooks
    _target: Target
    _foreseen: Foreseen

    async def intend(self) -> LedgerEntry:
        return await self._books.intend_in_turn(self._target, self._foreseen)

    def book(self, entry: LedgerEntry) -> None:
        self._books.record(self._target, self._foreseen, entry)

    def settled(self, entry: LedgerEntry, response: ModelResponse, raw: RawAnswer) -> LedgerEntry:
        return self._books.settled_by(entry, self._target, response, raw)

    def hear(self, status: int, headers: Mapping[str, str]) -> None:
        self._books.hear(self._target, status, headers)


class RequestBooks:
    """Books the requests of one agent run.

    Args:
        calculator: Prices requests; anything with `price` or, failing that, `calculate_cost`.
        scope: Where to book; None keeps the entries here only.
        agent: Name of the agent, for the entries.
        max_retries: Further sends of a request after a passing failure. None: as often as the
            provider's client would.
    """

    def __init__(
        self,
        calculator: object,
        *,
        scope: DispatchScope | None = None,
        agent: str | None = None,
        max_retries: int | None = None,
    ) -> None:
        self._pricer = Pricer(calculator)
        self._recorder = scope.ledger if scope else RequestRecorder()
        self._attribution = scope.attribution if scope else UNATTRIBUTED
        self.journal = scope.journal if scope else None
        self._limiters = LIMITERS[self._recorder.ledger_url]
        self._waiting = getattr(scope and scope.run, "waiting", None)
        self._turns: RequestTurns | None = None
        self._agent = agent
        self.max_retries = max_retries
        self.cheaper_model: Model | str | None = getattr(scope and scope.run, "cheaper_model", None)
        """What takes requests at the limit of a budget that says so."""
        self.sent: list[str] = []
        """Ids of the entries of what this run has sent so far, in order."""
        self.is_in_use = False
        """Whether a run of pydantic-ai has begun that these books are for."""
        self.output_tools: frozenset[str] = frozenset()
        """Names of the tools whose calls only carry the run's output."""
        self.metered_models: dict[int, tuple[Model, Model]] = {}
        """By id, each model that was used with the one that counts its requests."""

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """What this run has sent so far, in order."""
        return self._recorder.of_ids(self.sent)

    def foresee(self, target: Target, request: RequestOfModel) -> Foreseen:
        """What can be said of a request before it is sent.

        Raises:
            UnknownModelPriceError: `FASTROAI_UNPRICED` refuses it. Nothing is sent or booked.
        """
        model, settings = target.model, request.settings
        if self._recorder.refuses_unpriced:
            self._pricer.require_price(model, settings)
        return Foreseen(asked_service_tier(model, settings), request)

    async def send(self, target: Target, foreseen: Foreseen) -> Send:
        """Book a request that is about to be sent, and follow what leaves for it.

        Raises:
            LedgerUnavailableError: It can't be booked, and must be before it is sent.
        """
        attempts = AttemptsOf(self, target, foreseen)
        return Send(await self.intend_in_turn(target, foreseen), target.sender, attempts)

    async def intend_in_turn(self, target: Target, foreseen: Foreseen) -> LedgerEntry:
        """Book a request once rate limits allow it: what waits for them is not in the books."""
        if not self._limiters:
            return await self.intend(self.draft(target, foreseen))
        if self._turns is None:
            waiting = {} if self._waiting is None else self._waiting
            at = self._attribution
            self._turns = RequestTurns(id(self._recorder), waiting, at, self._agent)
        entry_id = str(uuid4())
        await self._turns.wait(self._limiters[0], target.limited, foreseen.request, entry_id)
        try:
            return await self.intend(self.draft(target, foreseen, entry_id))
        except BaseException:
            self._turns.end(entry_id, was_sent=False)
            raise

    def hear(self, target: Target, status: int, headers: Mapping[str, str]) -> None:
        """An answer says something of its provider's limits."""
        told = told_by(status, headers)
        if told.retry_after is not None and told.retry_after > LONGEST_RETRY_AFTER:
            told = replace(told, retry_after=None)  # its request fails, and so may others
        if self._limiters or told.is_tight:
            limiter = limiter_of(self._recorder.ledger_url)
            limiter.hear(*target.limited, told, Amounts.of(0, 0))

    def is_under_way(self, entry: LedgerEntry) -> None:
        """A provider works on a request, and is asked for its answer later."""
        if self._turns is not None:
            self._turns.end(entry.id, was_sent=True)

    async def intend(self, entry: LedgerEntry) -> LedgerEntry:
        """Book a request that is about to be sent.

        Returns:
            Its entry; where it had to wait for a budget, as of now.

        Raises:
            CostBudgetExceededError: It does not fit a budget.
            LedgerUnavailableError: It can't be booked, and must be before it is sent.
        """
        self.sent.append(entry.id)
        try:
            return await self._recorder.intend(entry)
        except CostBudgetExceededError:
            self.sent.remove(entry.id)
            raise

    def draft(self, target: Target, foreseen: Foreseen, entry_id: str | None = None) -> LedgerEntry:
        """The entry of a request before it is sent."""
        # Without a ledger that outlives the process, nor a budget, nobody asks before the outcome
        # is unknown.
        needs_bound = self._recorder.is_durable or self._recorder.limits is not None
        bound = self._pricer.max_cost(target.model, foreseen.request) if needs_bound else None
        return LedgerEntry(
            id=entry_id or str(uuid4()),
            sent_at=datetime.now(UTC),
            attribution=self._attribution,
            agent=self._agent,
            model_asked=target.asked,
            provider=target.model.system,
            provider_host=target.host,
            service_tier=foreseen.service_tier,
            upper_bound_usd=bound,
            downgraded_from=target.instead_of,
            simulated=target.simulated,
        )

    def streamed(
        self, send: Send, target: Target, stream: StreamedResponse, error: BaseException | None
    ) -> None:
        """Settle a streamed request that came to its end, or was left.

        Synchronous, like all settling: a task may be being cancelled.
        """
        if send.is_given:
            return
        send.book(settle_stream(send.entry, stream, target.model, self._pricer, error, send.raw))

    def record(self, target: Target, foreseen: Foreseen, entry: LedgerEntry) -> None:
        """Book what is now known of a request, and what it can have cost where that is unknown."""
        is_unknown = entry.state in (EntryState.UNSETTLED, EntryState.UNPRICED)
        if is_unknown and entry.upper_bound_usd is None:
            bound = self._pricer.max_cost(target.model, foreseen.request)
            entry = replace(entry, upper_bound_usd=bound)
        self._recorder.record(entry)
        if self._turns is not None:
            self._turns.settle(entry)

    def settle(
        self, entry: LedgerEntry, target: Target, response: ModelResponse, raw: RawAnswer
    ) -> None:
        """Book what an answer costs that came apart from its request."""
        self._recorder.record(self.settled_by(entry, target, response, raw))

    def settled_by(
        self, entry: LedgerEntry, target: Target, response: ModelResponse, raw: RawAnswer
    ) -> LedgerEntry:
        """The entry of a request with what its answer costs."""
        return settle_answer(entry, response, target.model, self._pricer, raw)

    def note(self, entry: LedgerEntry) -> None:
        """Book what is now known of a request."""
        self._recorder.record(entry)

    def resume(self, entry: LedgerEntry) -> LedgerEntry:
        """Take over a request that an earlier execution sent, whose answer is still to come."""
        self.sent.append(entry.id)
        taken = replace(entry, attribution=self._attribution)
        self._recorder.record(taken)
        return taken

    def replayed(self, entries: Sequence[LedgerEntry]) -> None:
        """Book that an answer is used again which earlier requests paid for."""
        self.sent += [entry.id for entry in self._recorder.replay(entries, self._attribution)]

    async def settled(self) -> None:
        """Wait until the ledger has what was paid for: a record must not say so before."""
        if self.journal is not None and self.journal.is_durable:
            await self._recorder.flush()

    def retry_like(self, other: Books) -> None:
        """Send as often as those of another run, whose model is used, unless that is said."""
        if self.max_retries is None:
            self.max_retries = other.max_retries

    def retries_of(self, target: Target, settings: ModelSettings | None) -> int:
        """How many times a request may be sent again: its own setting, the agent's, else the
        client's.
        """
        for layer in (settings, target.model.settings):
            if layer and (own := layer.get("max_retries")) is not None:
                return own
        return client_retries(target.sender) if self.max_retries is None else self.max_retries
