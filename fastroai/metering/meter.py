"""Counts each model request that is really sent: intent before the send, outcome after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings

from ..ledger.entries import EntryState, LedgerEntry, replays
from ..ledger.recorder import RequestRecorder
from ..replay.model import JournaledModel
from .http_attempts import Send
from .model import Foreseen, MeteredModel, metered_model
from .outcomes import settle_answer, settle_stream
from .pricer import Pricer
from .scope import UNATTRIBUTED, DispatchScope
from .service_tiers import asked_service_tier


class RequestMeter(AbstractCapability[Any]):
    """Counts the model requests of one agent run.

    Args:
        calculator: Prices requests; anything with `price` or, failing that, `calculate_cost`.
        scope: Where to book; None keeps the entries here only.
        agent: Name of the agent, for the entries.
        max_retries: Further sends of a request after a passing failure. None: as often as the
            provider's client would.
    """

    def __init__(
        self,
        calculator: Any,
        *,
        scope: DispatchScope | None = None,
        agent: str | None = None,
        max_retries: int | None = None,
    ) -> None:
        self._pricer = Pricer(calculator)
        self._ledger = scope.ledger if scope else RequestRecorder()
        self._attribution = scope.attribution if scope else UNATTRIBUTED
        self.journal = scope.journal if scope else None
        self._agent = agent
        self._max_retries = max_retries
        self._sent: list[str] = []
        self._wrappers: dict[int, tuple[Model, Model]] = {}
        self.output_tools: set[str] = set()
        """Names of the tools whose calls only carry the run's output."""

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """What this run has sent so far, in order."""
        return self._ledger.of_ids(self._sent)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model as one that counts its requests."""
        return self.metered(model)

    def metered(self, model: Model) -> Model:
        """The model as one that counts its requests; members of a `FallbackModel` are counted one
        by one.
        """
        known = self._wrappers.get(id(model))
        if known is None:
            # The model is kept beside its wrapper, so that its id can't be given to another one
            # meanwhile.
            metered = metered_model(model, self)
            if self.journal is not None:
                metered = JournaledModel(metered, self.journal, self)
            known = self._wrappers[id(model)] = (model, metered)
        return known[1]

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the provider: what an outer wrapper answers by itself was not sent."""
        return _INNERMOST

    def foresee(
        self,
        model: Model,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> Foreseen:
        """What can be said of a request before it is sent.

        Raises:
            UnknownModelPriceError: `FASTROAI_UNPRICED` refuses it. Nothing is sent or booked.
        """
        if self._ledger.refuses_unpriced:
            self._pricer.require_price(model, settings)
        upper_bound = partial(self._pricer.upper_bound, model, messages, settings, parameters)
        return Foreseen(asked_service_tier(model, settings), upper_bound)

    async def intend(self, model: MeteredModel, foreseen: Foreseen) -> LedgerEntry:
        """Book a request that is about to be sent.

        Raises:
            LedgerUnavailableError: It can't be booked, and must be before it is sent.
        """
        entry = LedgerEntry(
            attribution=self._attribution,
            agent=self._agent,
            model_asked=model.asked,
            provider=model.system,
            provider_host=model.host,
            service_tier=foreseen.service_tier,
            # Without a ledger that outlives the process nobody asks before the outcome is unknown.
            upper_bound_usd=foreseen.upper_bound() if self._ledger.is_durable else None,
            simulated=model.simulated,
        )
        self._sent.append(entry.id)
        await self._ledger.intend(entry)
        return entry

    def replayed(self, entries: Sequence[LedgerEntry]) -> None:
        """Book that an answer is used again which earlier requests paid for."""
        self._ledger.restate(
            entry for entry in entries if entry.attribution.is_same_run(self._attribution)
        )
        for again in replays(entries, self._attribution):
            self._sent.append(again.id)
            self._ledger.record(again)

    async def settled(self) -> None:
        """Wait until the ledger has what was paid for: a record must not say so before."""
        if self.journal is not None and self.journal.is_durable:
            await self._ledger.flush()

    async def send(self, model: MeteredModel, foreseen: Foreseen) -> Send:
        """Book a request that is about to be sent, and follow what leaves for it."""
        entry = await self.intend(model, foreseen)
        return Send(
            entry,
            model.sender,
            lambda: self.intend(model, foreseen),
            lambda entry: self._record(entry, foreseen),
        )

    def answered(self, entry: LedgerEntry, response: ModelResponse, model: Model) -> None:
        """Settle a request whose answer is complete."""
        self._ledger.record(settle_answer(entry, response, model, self._pricer))

    def failed(self, send: Send, foreseen: Foreseen, error: BaseException) -> None:
        """Settle a request that raised.

        Synchronous, like all settling: a task may be being cancelled.
        """
        self._record(send.failed(error), foreseen)

    def streamed(
        self,
        entry: LedgerEntry,
        foreseen: Foreseen,
        stream: StreamedResponse,
        model: Model,
        error: BaseException | None,
    ) -> None:
        """Settle a streamed request that came to its end, or was left."""
        self._record(settle_stream(entry, stream, model, self._pricer, error), foreseen)

    def _record(self, entry: LedgerEntry, foreseen: Foreseen) -> None:
        if entry.state is EntryState.UNSETTLED and entry.upper_bound_usd is None:
            entry = replace(entry, upper_bound_usd=foreseen.upper_bound())
        self._ledger.record(entry)

    def retries_of(self, model: MeteredModel, settings: ModelSettings | None) -> int:
        """How many times a request may be sent again: its own setting, the agent's, else the
        client's.
        """
        for layer in (settings, model.settings):
            if layer and (own := layer.get("max_retries")) is not None:
                return own
        return model.client_retries if self._max_retries is None else self._max_retries


_INNERMOST = CapabilityOrdering(position="innermost")
