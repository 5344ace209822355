"""Triage of the tickets in a file: category, urgency, summary and a reply for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastroai import (
    DispatchSkippedError,
    FastroAgent,
    MappedResults,
    Pipeline,
    PipelineConfig,
    StepContext,
    step,
)
from flows.models import choose_model
from flows.row_files import check_target, written_rows
from flows.tickets import Ticket, TicketFile

CHARACTERS_PER_TICKET = 20_000
"""What of a ticket is sent."""
CONCURRENT_TICKETS = 50
MAX_FAILURES = 25
"""Tickets that may fail before the run ends."""
FAILURES_SHOWN = 20


class TriageInput(BaseModel):
    """Which tickets, and where the results go."""

    model_config = ConfigDict(extra="forbid")  # a misspelt field must not mean the default

    tickets: str = Field(
        default="flows/samples/tickets.jsonl",
        description="A .jsonl or .csv file: a path, file://… or s3://bucket/key. A relative path "
        "starts where the run does.",
    )
    id_field: str = Field(
        default="id", min_length=1, description="The field of a row that tells it from others."
    )
    guidance: str = Field(
        default="",
        max_length=2000,
        description="What matters here: products, what is urgent, the tone of replies.",
    )
    results: str = Field(
        default="",
        description="A .jsonl or .parquet file, as a path or URI. Empty: beside the tickets, as "
        "NAME.triaged.jsonl.",
    )


class Triage(BaseModel):
    """What is to become of a ticket."""

    category: Literal[
        "other", "billing", "bug", "outage", "account", "how-to", "feature request", "complaint"
    ] = Field(description="What it is about.")
    urgency: Literal["normal", "low", "high", "critical"] = Field(
        description="How soon somebody has to look at it; normal where the text does not say."
    )
    summary: str = Field(description="What the customer wants, in one sentence.")
    reply: str = Field(description="A first reply to the customer, in two or three sentences.")


class TriagedTicket(Triage):
    """A row of the results."""

    id: str


class EmptyTicketError(DispatchSkippedError):
    """There is nothing to ask about; to try again is of no use."""


class TriageReport(BaseModel):
    """The result."""

    results: str
    """Where they are: one row for each ticket, with `error` where it failed."""
    triaged: int
    failed: int
    failures: dict[str, str]
    """Why, by the ticket's id; of very many the first ones."""
    categories: dict[str, int]
    urgencies: dict[str, int]


COLUMNS = ("id", "category", "urgency", "summary", "reply", "error")

triager = FastroAgent(
    model=choose_model(),
    name="triager",
    output_type=Triage,
    system_prompt=(
        "You triage tickets of customers. Use only what the ticket says, and write in its language."
    ),
)


# Read anew by each run, and one by one: what it gives is a stream, which can't be kept.
@step(retries=0, cache_policy="off", persist_result=False)
def tickets(context: StepContext[Any]) -> TicketFile:
    """All tickets; one that can't be read ends the run here, before any request, and so do results
    that could not be written.
    """
    check_target(_results_of(context))
    return TicketFile(context.get_input("tickets"), context.get_input("id_field"))


@step(cache_policy="inputs")
async def triage(context: StepContext[Any]) -> TriagedTicket:
    """One ticket: asked about again where it, or the guidance, has changed."""
    ticket: Ticket = context.item
    if not ticket.text:
        raise EmptyTicketError("the ticket has no text")
    guidance = context.get_input("guidance")
    task = f"Triage this ticket.{f' Mind: {guidance}' if guidance else ''}"
    prompt = f"{task}\n\n{ticket.text[:CHARACTERS_PER_TICKET]}"
    found = (await context.run(triager, prompt)).output
    return TriagedTicket(id=ticket.id, **found.model_dump())


# Not kept: whether the file is still there, a stored result does not know.
@step(cache_policy="off")
def report(context: StepContext[Any]) -> TriageReport:
    """Write the results, one at a time, and count them."""
    triaged: MappedResults[TriagedTicket] = context.get_dependency("triaged")
    failures = {key: f"{type(e).__name__}: {e}" for key, e in triaged.errors.items()}
    target = _results_of(context)
    categories: Counter[str] = Counter()
    urgencies: Counter[str] = Counter()
    with written_rows(target, COLUMNS) as rows:
        for ticket in triaged.values():
            rows.add(_row(ticket.model_dump()))
            categories[ticket.category] += 1
            urgencies[ticket.urgency] += 1
        for key, error in failures.items():
            rows.add(_row({"id": key, "error": error}))
    return TriageReport(
        results=target,
        triaged=len(triaged),
        failed=len(failures),
        failures=dict(islice(failures.items(), FAILURES_SHOWN)),
        categories=dict(categories.most_common()),
        urgencies=dict(urgencies.most_common()),
    )


def _row(known: Mapping[str, str]) -> dict[str, str | None]:
    return {column: known.get(column) for column in COLUMNS}


def _results_of(context: StepContext[Any]) -> str:
    given: str = context.get_input("results")
    source: str = context.get_input("tickets")
    if given:
        return given
    end = len(PurePosixPath(source).suffix)
    return f"{source[: len(source) - end]}.triaged.jsonl"


pipeline: Pipeline[None, TriageInput, TriageReport] = Pipeline(
    "ticket-triage",
    steps={
        "tickets": tickets,
        "triaged": triage.map(
            over="tickets",
            key="key",
            max_concurrency=CONCURRENT_TICKETS,
            max_failures=MAX_FAILURES,
        ),
        "report": report,
    },
    dependencies={"report": ["triaged"]},
    config=PipelineConfig(retries=2, retry_delay=2.0, timeout=600),
    input_type=TriageInput,
)
