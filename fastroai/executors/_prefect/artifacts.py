"""Cost artifacts: tables in Prefect's UI of what each step spent, written beside the run."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache, partial
from http import HTTPStatus
from math import floor
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.exceptions import PrefectException
from pydantic_core import to_jsonable_python

from ...budgets import Account, Budget, BudgetState, Limit
from ...ledger.aggregation import totals_of, with_unknown
from ...ledger.entries import EntryState, LedgerEntry, total_usd
from ...pipelines.item_outputs import ItemOutputs
from ...redaction import redact
from ...retries import Backoff, retry
from .table_layout import laid_out

logger = logging.getLogger("fastroai.executors")

Row = dict[str, object]
CONCURRENT_WRITES = 8
LONGEST_OUTPUT = 100_000
BACKOFF = Backoff(0.2, longest=2.0)
"""Seconds between two attempts to write one table; each pause is twice as long as the last."""
DEAREST = 20
"""Items of a mapped step that have a row of their own for what they cost."""
MOST_FAILURES = 1000
LONGEST_ERROR = 500
NAMED = 10
"""How many missing tables a warning names."""


@lru_cache(maxsize=4096)
def artifact_key(pipeline: str, step_id: str | None = None, kind: str = "costs") -> str:
    """`costs-<pipeline>[--<step>]` in the characters Prefect allows; or of another kind.

    It is the same for each run, so that the UI shows a history.
    """
    key = f"{kind}-{slug_of(pipeline, separator='-')}"
    return key if step_id is None else f"{key}--{slug_of(step_id, separator='_')}"


def slug_of(name: str, separator: str) -> str:
    """A name in lowercase letters, digits and dashes; with a hash if it could be ambiguous."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if re.fullmatch(rf"[a-z0-9]+({separator}[a-z0-9]+)*", name):
        return slug
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{slug}-{digest[:6]}".strip("-")


def step_rows(entries: Sequence[LedgerEntry]) -> list[Row]:
    """One row per agent, model and state of a step's requests; without requests, one of zeros."""
    if not entries:
        return [NO_REQUESTS]
    groups: dict[tuple[str, str, str], list[LedgerEntry]] = {}
    for entry in entries:
        model = entry.answering_model or "unknown"
        groups.setdefault((entry.agent or "unnamed", model, entry.state.value), []).append(entry)
    return [
        {"agent": agent, "model": model, "state": state} | vars(_Costs.of(group))
        for (agent, model, state), group in groups.items()
    ]


def item_rows(entries: Sequence[LedgerEntry], outputs: ItemOutputs, items: int) -> list[Row]:
    """Rows of a mapped step's table, which add up to what it cost: the dearest items, all that
    failed, the others as one.

    Args:
        outputs: What came of them.
        items: How many there are.
    """
    of_items: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        of_items.setdefault(entry.attribution.item or "", []).append(entry)
    of_step = of_items.pop("", [])
    dearest = sorted(of_items, key=lambda key: total_usd(of_items[key]), reverse=True)[:DEAREST]
    shown = [*dict.fromkeys((*dearest, *list(outputs.errors)[:MOST_FAILURES]))]
    rows: list[Row] = []
    for key in shown:
        costs = vars(_Costs.of(of_items.pop(key, [])))
        rows.append({"item": key, "state": _ending(outputs, key)} | costs)
    rest = [entry for group in of_items.values() for entry in group]
    if items > len(shown):
        rows.append(_folded(f"{items - len(shown):,} others", rest))
    if of_step:
        rows.append(_folded("none", of_step))
    return rows


def _ending(outputs: ItemOutputs, key: str) -> str:
    if key in outputs.errors:
        return "failed"
    return "completed" if key in outputs else "broken off"


def _folded(item: str, entries: Sequence[LedgerEntry]) -> Row:
    return {"item": item, "state": ""} | vars(_Costs.of(entries))


def failure_rows(errors: Mapping[str, BaseException]) -> list[Row]:
    """One row per item that failed, with its error; of very many the first ones."""
    rows: list[Row] = []
    for key, error in list(errors.items())[:MOST_FAILURES]:
        text = redact(str(error))[:LONGEST_ERROR]
        rows.append({"item": key, "error": type(error).__qualname__, "message": text})
    if more := len(errors) - len(rows):
        rows.append({"item": f"{more:,} more", "error": "", "message": ""})
    return rows


def run_rows(records: Mapping[str, tuple[str, int, tuple[LedgerEntry, ...]]]) -> list[Row]:
    """One row per step: `(state, attempts, entries)` by step id. The costs add up to the run's."""
    total = sum((total_usd(entries) for _, _, entries in records.values()), Decimal(0))
    rows = []
    for step_id, (state, attempts, entries) in records.items():
        models = sorted({entry.answering_model or "unknown" for entry in entries})
        head = {
            "step": step_id,
            "state": state,
            "attempts": attempts,
            "models": ", ".join(models) or "none",
        }
        bar = {"share": bar_of(total_usd(entries), total)}
        rows.append(head | vars(_Costs.of(entries)) | bar)
    return rows


def total_row(entries: Sequence[LedgerEntry]) -> Row:
    """The last row of a run's table: what all of it comes to."""
    return {"step": "total"} | vars(_Costs.of(entries))


def bar_of(part: Decimal, whole: Decimal) -> str:
    """A part of a whole as 20 characters, rounded half up."""
    filled = int(part / whole * 20 + Decimal("0.5")) if whole else 0
    return "█" * filled + "░" * (20 - filled)


@dataclass
class _Costs:
    """What some entries come to: the columns of each table."""

    requests: int = 0
    replayed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: str = "0"
    requests_without_price: int = 0
    saved_usd: str = "0"
    cache_saved_usd: str = "0"

    @classmethod
    def of(cls, entries: Sequence[LedgerEntry]) -> _Costs:
        """The sums of some entries, taken in one go: a run has a table for each of its steps."""
        costs = cls()
        spend: list[LedgerEntry] = []
        replayed: list[LedgerEntry] = []
        for entry in entries:
            if entry.state is EntryState.REPLAYED:
                replayed.append(entry)
                continue
            costs.requests += entry.request_count
            if not entry.is_spend:
                continue
            spend.append(entry)
            costs.input_tokens += entry.tokens.input_tokens
            costs.output_tokens += entry.tokens.output_tokens
            if entry.cost_usd is None:
                costs.requests_without_price += entry.request_count
        saved = sum((entry.cost_usd or Decimal(0) for entry in replayed), Decimal(0))
        costs.cache_saved_usd = cache_saved(spend)
        costs.replayed = len(replayed)
        costs.cost_usd = with_unknown(plain_usd(total_usd(spend)), spend)
        costs.saved_usd = with_unknown(plain_usd(saved), replayed)
        return costs


def cache_saved(entries: Sequence[LedgerEntry]) -> str:
    """What prompt caching saved in some paid requests, in USD; below 0: it cost more."""
    cached = [e for e in entries if e.tokens.cache_read_tokens or e.tokens.cache_write_tokens]
    known = [entry.cache_saved_usd for entry in cached if entry.cache_saved_usd is not None]
    amount = plain_usd(sum(known, Decimal(0)))
    if len(known) == len(cached):
        return amount
    return f"{amount} + {len(cached) - len(known)} unknown" if known else "unknown"


NO_REQUESTS: Row = {"agent": "none", "model": "none", "state": "no requests"} | vars(_Costs())


def dollars(amount: str) -> str:
    return amount if amount == "unknown" else f"${amount}"


def plain_usd(amount: Decimal) -> str:
    """USD, exact, without an exponent or trailing zeros."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe_costs(
    title: str,
    entries: Sequence[LedgerEntry],
    attempts: int | None = None,
    *,
    unmetered: Iterable[Mapping[str, int]] = (),
) -> str:
    """The line above a table, in Markdown.

    Args:
        unmetered: How many requests went past all meters, by host.
    """
    spent, *notes = costs_in_words(entries) if entries else ["**$0** for 0 requests"]
    if attempts is not None:
        notes.insert(0, counted(attempts, "attempt"))
    for hosts in unmetered:
        for host, requests in hosts.items():
            notes.append(f"**not in the books**: {counted(requests, 'request')} to {host}")
    return " · ".join([f"**{title}**: {spent}", *notes])


def describe_budgets(limits: Iterable[Limit], standing: Iterable[BudgetState] = ()) -> str:
    """A table in Markdown of a run's budgets and what is left of each, in USD; empty without any.

    It stands above the costs: as rows among them it would count twice.
    """
    lines = [_budget_line(limit.name, limit.scope, limit.budget, limit.account) for limit in limits]
    for state in standing:
        account = Account(state.spent, state.held, state.unknown)
        of = f"standing, {state.budget.window}"
        lines.append(_budget_line(state.budget.name, of, state.budget, account))
    return "\n".join([_BUDGETS_HEAD, *lines]) if lines else ""


def _budget_line(name: str, of: str, budget: Budget, account: Account) -> str:
    usd = budget.usd, account.spent, account.held, account.unknown, account.left(budget)
    return f"| {table_cell(name)} | {of} | {' | '.join(map(plain_usd, usd))} |"


def table_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_BUDGETS_HEAD = """

| budget | of | limit USD | spent | held | unknown | left |
|---|---|---:|---:|---:|---:|---:|"""


def costs_in_words(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """What entries came to, then what there is to say of that."""
    costs = _Costs.of(entries)
    requests = counted(costs.requests, "request")
    yield f"**{dollars(costs.cost_usd)}** for {requests}"
    if costs.replayed:
        yield f"{costs.replayed} replayed, which saved {dollars(costs.saved_usd)}"
    if any(entry.is_spend and entry.state is not EntryState.CHARGED for entry in entries):
        share_priced = totals_of(entries)[0].share_priced
        if share_priced is not None:
            percent = floor(share_priced * 100)
            yield f"{percent} % of the requests are priced, the rest is not included"
    if any(entry.simulated for entry in entries):
        yield "simulated by an offline model at the listed model's prices, nothing was paid"


def cost_line(entries: Sequence[LedgerEntry]) -> str:
    """The same in one line of plain text, for a state's message and the log."""
    return " · ".join(costs_in_words(entries)).replace("**", "")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def write_output_artifact(pipeline: str, output: object, *, timeout: float) -> None:
    """Show a run's output as the Markdown artifact `output-<pipeline>`, within some seconds; never
    raises.
    """
    content = to_jsonable_python(output, fallback=repr)
    text = redact(json.dumps(content, indent=2, ensure_ascii=False))
    if len(text) > LONGEST_OUTPUT:
        text = f"{text[:LONGEST_OUTPUT]}\n… ({len(text):,} characters in all)"
    try:
        async with asyncio.timeout(timeout):
            await acreate_markdown_artifact(
                f"```json\n{text}\n```",
                key=f"output-{slug_of(pipeline, separator='-')}",
                description=f"Output of {pipeline}",
            )
    except Exception as error:
        message = redact(repr(error))
        logger.warning("The output of %r could not be shown in Prefect: %s", pipeline, message)


@dataclass(eq=False)
class _Table:
    """One artifact to write, and why it could not be written so far."""

    artifact: ArtifactCreate
    failure: Exception | None = None


@dataclass(eq=False)
class ArtifactWriter:
    """Writes tables in the background, and keeps trying until the run ends.

    Attributes:
        timeout: Seconds that the end of the run waits without any table being written. Those that
            are missing then are named in one warning.
    """

    timeout: float
    _queue: asyncio.Queue[_Table | None] = field(default_factory=asyncio.Queue)
    _unwritten: list[_Table] = field(default_factory=list)
    _workers: list[asyncio.Task[None]] = field(default_factory=list)
    _others: list[asyncio.Task[None]] = field(default_factory=list)
    _client: PrefectClient = field(default_factory=get_client)

    @property
    def client(self) -> PrefectClient:
        """Open as long as this is."""
        return self._client

    async def __aenter__(self) -> ArtifactWriter:
        await self._client.__aenter__()
        return self

    def add(
        self,
        key: str,
        rows: list[Row],
        description: str,
        *,
        flow_run_id: UUID | None,
        task_run_id: UUID | None = None,
    ) -> None:
        """Queue a table."""
        artifact = ArtifactCreate(
            key=key,
            type="table",
            description=description,
            data=json.dumps(laid_out(rows), ensure_ascii=False),
            flow_run_id=flow_run_id,
            task_run_id=task_run_id,
        )
        table = _Table(artifact)
        self._unwritten.append(table)
        self._queue.put_nowait(table)
        if len(self._workers) < CONCURRENT_WRITES:
            self._workers.append(asyncio.create_task(self._work(), name="fastroai-artifacts"))

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something else beside, which must not raise. The run's end waits for it, too."""
        self._others.append(asyncio.create_task(work, name="fastroai-artifacts"))

    async def create(self, artifact: ArtifactCreate) -> None:
        """Write one now, with more tries where the server can't take it at once.

        Raises:
            Exception: It will not take it.
        """
        await retry(lambda _: self._client.create_artifact(artifact), _delay_after)

    async def _work(self) -> None:
        while (table := await self._queue.get()) is not None:
            with suppress(Exception):  # a table never fails a run
                await retry(partial(self._write, table), _delay_after)

    async def _write(self, table: _Table, _attempt: int) -> None:
        try:
            await self._client.create_artifact(table.artifact)
        except Exception as error:
            table.failure = error
            raise
        self._unwritten.remove(table)

    async def __aexit__(self, *exc_info: object) -> None:
        for _ in self._workers:
            self._queue.put_nowait(None)
        await self._finish()
        self._warn()
        with suppress(Exception):  # the client of a server that is gone
            await self._client.__aexit__(None, None, None)

    async def _finish(self) -> None:
        """Wait for the workers as long as they make progress."""
        # A limit for all of them together would drop the tables of a large run on a slow server.
        working = {*self._workers, *self._others}
        while working:
            unwritten = len(self._unwritten)
            _, working = await asyncio.wait(working, timeout=self.timeout)
            if len(self._unwritten) == unwritten:
                break
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)

    def _warn(self) -> None:
        if not self._unwritten:
            return
        reason = f"no answer within {self.timeout:g} s (FASTROAI_ARTIFACT_TIMEOUT)"
        for table in self._unwritten:
            if table.failure is not None:
                reason = redact(repr(table.failure))
        names = ", ".join(str(table.artifact.key) for table in self._unwritten[:NAMED])
        if (more := len(self._unwritten) - NAMED) > 0:
            names += f" and {more} more"
        logger.warning("Cost tables may be missing in Prefect: %s. Cause: %s.", names, reason)


def _delay_after(error: Exception, failures: int) -> float | None:
    """None: the server will not take a table later, either, that it did not take now."""
    may_pass = not isinstance(error, PrefectException)
    if isinstance(error, HTTPStatusError):
        status = error.response.status_code
        may_pass = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY
    return BACKOFF.after(failures) if may_pass else None


_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
