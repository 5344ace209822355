"""Cost artifacts: who spent what, as tables in Prefect's UI; written beside the run, never in its
way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from math import floor
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from pydantic_core import to_jsonable_python

from ...ledger.aggregation import totals_of, with_unknown
from ...ledger.entries import EntryState, LedgerEntry, total_usd
from ...settings import load_settings

logger = logging.getLogger("fastroai.executors")

Row = dict[str, Any]
CONCURRENT_WRITES = 8
LONGEST_OUTPUT = 100_000


def artifact_key(pipeline: str, step_id: str | None = None) -> str:
    """`costs-<pipeline>[--<step>]` in the letters Prefect allows: the same for each run, so the UI
    shows a history.
    """
    key = f"costs-{_slug(pipeline, separator='-')}"
    return key if step_id is None else f"{key}--{_slug(step_id, separator='_')}"


def _slug(name: str, separator: str) -> str:
    """A name in lowercase letters, digits and single dashes; with a hash where another name could
    give the same.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if re.fullmatch(rf"[a-z0-9]+({separator}[a-z0-9]+)*", name):
        return slug
    return f"{slug}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}".strip(
        "-"
    )


def step_rows(entries: Iterable[LedgerEntry]) -> list[Row]:
    """One row per agent, model and state of a step's requests; a step without requests has one row
    of zeros.
    """
    groups: dict[tuple[str, str, str], list[LedgerEntry]] = {}
    for entry in entries:
        model = entry.model_answered or entry.model_asked or "unknown"
        groups.setdefault((entry.agent or "unnamed", model, entry.state.value), []).append(entry)
    if not groups:
        return [_row({"agent": "none", "model": "none", "state": "no requests"}, [])]
    return [
        _row({"agent": agent, "model": model, "state": state}, group)
        for (agent, model, state), group in groups.items()
    ]


def run_rows(records: Mapping[str, tuple[str, int, tuple[LedgerEntry, ...]]]) -> list[Row]:
    """One row per step: `(state, attempts, entries)` by step id. The costs add up to the run's."""
    total = sum((total_usd(entries) for _, _, entries in records.values()), Decimal(0))
    rows = []
    for step_id, (state, attempts, entries) in records.items():
        spent = total_usd(entries)
        share = int(spent / total * 20 + Decimal("0.5")) if total else 0
        models = sorted({e.model_answered or e.model_asked or "unknown" for e in entries})
        head = {
            "step": step_id,
            "state": state,
            "attempts": attempts,
            "models": ", ".join(models) or "none",
        }
        rows.append(_row(head, entries) | {"share": "█" * share + "░" * (20 - share)})
    return rows


def _row(head: Row, entries: Iterable[LedgerEntry]) -> Row:
    entries = list(entries)
    sent = [e for e in entries if e.state is not EntryState.REPLAYED]
    spend = [e for e in entries if e.is_spend]
    return head | {
        "requests": sum(e.request_count for e in sent),
        "replayed": len(entries) - len(sent),
        "input_tokens": sum(e.tokens.input_tokens for e in spend),
        "output_tokens": sum(e.tokens.output_tokens for e in spend),
        "cost_usd": with_unknown(plain_usd(total_usd(spend)), spend),
        "requests_without_price": sum(e.request_count for e in spend if e.cost_usd is None),
        "saved_usd": _saved([e for e in entries if e.state is EntryState.REPLAYED]),
    }


def _saved(replayed: list[LedgerEntry]) -> str:
    return with_unknown(
        plain_usd(sum((e.cost_usd or Decimal(0) for e in replayed), Decimal(0))), replayed
    )


def _dollars(told: str) -> str:
    return told if told == "unknown" else f"${told}"


def plain_usd(amount: Decimal) -> str:
    """USD, exact, without an exponent or trailing zeros."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe_costs(title: str, entries: Iterable[LedgerEntry], attempts: int | None = None) -> str:
    """The line above a table, in Markdown."""
    entries = tuple(entries)
    sent = sum(e.request_count for e in entries if e.state is not EntryState.REPLAYED)
    replayed = [e for e in entries if e.state is EntryState.REPLAYED]
    spend = [e for e in entries if e.is_spend]
    cost = _dollars(with_unknown(plain_usd(total_usd(spend)), spend))
    parts = [f"**{title}**: **{cost}** for {sent} request{'' if sent == 1 else 's'}"]
    if attempts is not None:
        parts.append(f"{attempts} attempt{'' if attempts == 1 else 's'}")
    if replayed:
        parts.append(f"{len(replayed)} replayed, which saved {_dollars(_saved(replayed))}")
    [totals] = totals_of(spend)
    if totals.share_priced is not None and totals.share_priced < 1:
        parts.append(
            f"{floor(totals.share_priced * 100)} % of the requests are priced, the rest is not "
            "included"
        )
    if any(e.simulated for e in entries):
        parts.append("simulated by an offline model at the listed model's prices, nothing was paid")
    return " · ".join(parts)


async def write_output_artifact(pipeline: str, output: Any) -> None:
    """Show a run's output as the Markdown artifact `output-<pipeline>`; a run never fails for want
    of it.
    """
    text = json.dumps(to_jsonable_python(output, fallback=repr), indent=2, ensure_ascii=False)
    if len(text) > LONGEST_OUTPUT:
        text = f"{text[:LONGEST_OUTPUT]}\n… ({len(text):,} characters in all)"
    try:
        async with asyncio.timeout(load_settings().artifact_timeout):
            await acreate_markdown_artifact(
                f"```json\n{text}\n```",
                key=f"output-{_slug(pipeline, separator='-')}",
                description=f"Output of {pipeline}",
            )
    except Exception as error:
        logger.warning("The output of %r could not be shown in Prefect: %r", pipeline, error)


class ArtifactWriter:
    """Writes artifacts in the background; a server that takes none for a while is given up, with a
    warning.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._queue: asyncio.Queue[ArtifactCreate | None] = asyncio.Queue()
        self._failure: Exception | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._client: PrefectClient | None = None
        self._given = 0
        self._written = 0

    async def __aenter__(self) -> ArtifactWriter:
        self._client = await get_client().__aenter__()
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
            data=json.dumps(rows, ensure_ascii=False),
            flow_run_id=flow_run_id,
            task_run_id=task_run_id,
        )
        self._given += 1
        self._queue.put_nowait(artifact)
        if len(self._workers) < CONCURRENT_WRITES:
            self._workers.append(asyncio.create_task(self._work(), name="fastroai-artifacts"))

    async def _work(self) -> None:
        assert self._client is not None
        while (artifact := await self._queue.get()) is not None:
            try:
                if self._failure is None:
                    await self._client.create_artifact(artifact)
                    self._written += 1
            # artifacts never fail a run; the first failure stops the others
            except Exception as error:
                self._failure = error

    async def _finish(self) -> None:
        """Wait for the workers as long as they get on."""
        late, gets_on = set(self._workers), True
        while late and gets_on:
            written = self._written
            _, late = await asyncio.wait(late, timeout=self._timeout)
            gets_on = self._written > written
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def __aexit__(self, *exc_info: object) -> None:
        for _ in self._workers:
            self._queue.put_nowait(None)
        await self._finish()
        if lost := self._given - self._written:
            reason = (
                self._failure or f"no answer within {self._timeout:g} s (FASTROAI_ARTIFACT_TIMEOUT)"
            )
            logger.warning("%d cost artifact(s) may be missing in Prefect: %s", lost, reason)
        assert self._client is not None
        with suppress(Exception):  # the client of a server that is gone
            await self._client.__aexit__(None, None, None)
