"""A run of a pipeline between a provider with its invoice and a ledger in a database."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from fastroai import (
    BaseStep,
    CostCalculator,
    FastroAgent,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    StepExecutionError,
)
from fastroai.testing import fixed_prices
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.agreement import Pair, assert_agree
from tests.support.invoice import Price, fixed_price, invoiced_usd, list_price
from tests.support.provider_process import ProviderProcess

MODELS = ("gpt-5-mini", "gpt-4.1-mini")
TAGS = {"team": "search"}


@dataclass
class Books:
    """Runs steps on one executor, and compares what provider, ledger and result say of it.

    Attributes:
        api: `openai` or `openai-chat`.
        executor: `memory` or `prefect`.
        ledger_url: Of an empty database; nothing but the runs of this object is booked there.
        price: What a line of the invoice costs.
    """

    provider: ProviderProcess
    api: str
    executor: str
    ledger_url: str
    price: Price = fixed_price

    def at_list_prices(self) -> Books:
        """The same, with agents that know no price but the listed one."""
        return replace(self, price=list_price)

    @property
    def _calculator(self) -> CostCalculator:
        return fixed_prices(*MODELS) if self.price is fixed_price else CostCalculator()

    def agent(self, model: str = "gpt-5-mini", **options: Any) -> FastroAgent[Any]:
        """An agent on the provider."""
        return FastroAgent(model=f"{self.api}:{model}", cost_calculator=self._calculator, **options)

    def ready(self, agent: Any, **options: Any) -> FastroAgent[Any]:
        """A user's own pydantic-ai agent."""
        return FastroAgent(agent=agent, cost_calculator=self._calculator, **options)

    async def run(
        self, steps: Mapping[str, BaseStep[Any, Any]], dependencies: Any = None, **config: Any
    ) -> PipelineResult[Any]:
        """What a run gives back, or what it had come to when it failed.

        Its books are compared with the database.
        """
        result = await self._execute(steps, dependencies, config)
        async with Ledger.open(self.ledger_url) as ledger:
            booked = await ledger.entries(run_id=result.run_id)
            [totals] = await ledger.totals(run_id=result.run_id)
        # What several parallel steps send at once, the database orders by time and then by id.
        assert {entry.id: entry for entry in booked} == {
            entry.id: entry for entry in result.entries
        }
        assert all(entry.attribution.tags == TAGS for entry in booked)
        assert all(entry.attribution.run_key == "the-run" for entry in booked)
        assert result.usage is not None
        assert totals.cost_usd == result.usage.total_cost_usd
        assert totals.cost_usd == sum(
            (usage.cost_usd or 0 for usage in result.usage.steps.values()), Decimal(0)
        )
        assert totals.requests == result.usage.total_request_count
        assert totals.replayed == result.usage.total_replayed_count
        return result

    async def _execute(
        self, steps: Mapping[str, BaseStep[Any, Any]], dependencies: Any, config: Mapping[str, Any]
    ) -> PipelineResult[Any]:
        settings = PipelineConfig(**({"retry_delay": 0.0} | dict(config)))
        pipeline = Pipeline(
            "books", dict(steps), dependencies, [*steps][-1], settings, executor=self.executor
        )
        try:
            return await pipeline.execute({}, None, run_key="the-run", tags=TAGS)
        except StepExecutionError as error:
            partial: PipelineResult[Any] = error.partial_result
            return partial

    async def run_until_it_hangs(self, steps: Mapping[str, BaseStep[Any, Any]]) -> None:
        """Cancel a run once a request of it hangs."""
        running = asyncio.create_task(self._execute(steps, None, {}))
        await asyncio.to_thread(self.provider.wait_until_it_hangs)
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            return
        raise AssertionError("a run that was cancelled came to its end")

    async def entries(self) -> list[LedgerEntry]:
        """All that is in the database."""
        async with Ledger.open(self.ledger_url) as ledger:
            return await ledger.entries()

    async def agree(self, *further: ProviderProcess) -> list[tuple[str, str]]:
        """Compare the database with the invoices, line by line and in the sums.

        Returns:
            What became of each request at the provider, and in the ledger; of one provider after
            the other.
        """
        lines = [line for provider in (self.provider, *further) for line in provider.lines]
        pairs: list[Pair] = assert_agree(lines, await self.entries(), self.price)
        async with Ledger.open(self.ledger_url) as ledger:
            [totals] = await ledger.totals()
        assert totals.cost_usd == invoiced_usd(
            (line for line in lines if line.became == "answered"), self.price
        )
        assert totals.requests == len(lines)
        assert totals.refused == sum(not line.billed for line in lines)
        assert totals.unsettled == sum(line.became in ("left", "hung", "died") for line in lines)
        return [(line.became, entry.state.value) for line, entry in pairs]


PAID = ("answered", EntryState.CHARGED.value)
NOT_PAID = ("refused", EntryState.REFUSED.value)
HUNG = ("hung", EntryState.UNSETTLED.value)
LEFT = ("left", EntryState.UNSETTLED.value)
DIED = ("died", EntryState.UNSETTLED.value)
