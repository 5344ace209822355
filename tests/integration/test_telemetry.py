"""What a collector is told of the ledger's settlements, by OpenTelemetry's own exporters."""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked
from tests.support.otlp_collector import OtlpCollector

PROGRAM = """
import asyncio, json
from dataclasses import replace
from decimal import Decimal
from fastroai import FastroAgent, Pipeline, step
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.pricing.token_counts import TokenCounts
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage
{before}

def answer(messages, info):
    usage = RequestUsage(input_tokens=1000, output_tokens=50)
    return ModelResponse([TextPart("yes")], usage=usage, model_name="gpt-5-mini")

agent = FastroAgent(agent=Agent(FunctionModel(answer, model_name="gpt-5-mini"), name="judge"))

@step
async def first(context):
    return (await context.run(agent, "Is it?")).output

@step
async def second(context):
    await context.run(agent, "Really?")
    return (await context.run(agent, "Are you sure?")).output

async def main():
    pipeline = Pipeline(
        "asked",
        {{"first": first, "second": second}},
        dependencies={{"second": ["first"]}},
        executor="memory",
    )
    result = await pipeline.execute({{}}, None, tags={{"team": "search"}})
    at = Attribution(pipeline="by hand", step_id="one", run_id="r")
    recorder = RequestRecorder(refuses_unpriced=False)
    sent = LedgerEntry(
        attribution=at, model_asked="openai:gpt-5-mini", provider="openai",
        provider_host="api.openai.com",
    )
    tokens = TokenCounts(input_tokens=7, output_tokens=3)
    paid = {{"cost_usd": Decimal("0.25"), "tokens": tokens, "response_id": "resp-1"}}
    await recorder.intend(sent)
    lost = sent.settled(EntryState.UNSETTLED, error="ReadTimeout: token sk-abc")
    recorder.record(lost)
    charged = lost.settled(EntryState.CHARGED, **paid)
    recorder.record(charged)
    recorder.record(charged)  # as a program might that is not sure
    recorder.record(replace(sent, id="u").settled(EntryState.UNPRICED, tokens=tokens))
    recorder.record(replace(sent, id="n").settled(EntryState.REFUSED))
    recorder.replay([charged], at)
    print(json.dumps([
        [e.state.value, e.simulated, e.tokens.input_tokens, e.tokens.output_tokens,
         str(e.cost_usd)] for e in result.entries
    ]))

asyncio.run(main())
"""
SPANS = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
spans = TracerProvider()
spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(spans)
"""


def run(collector: OtlpCollector, before: str = "", **variables: str) -> list[Any]:
    """Run the program in a process of its own; what the books of its pipeline say."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "FASTROAI_"))}
    environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **variables,
    }
    done = forked.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_collector_is_told_each_settlement_once_and_replays_apart() -> None:
    with OtlpCollector() as collector:
        booked = run(collector, SPANS)
    assert len(booked) == 3
    assert {state for state, *_ in booked} == {"charged"}
    pipeline = {"fastroai__pipeline": "asked"}
    kind = "fastroai.cost.simulated" if booked[0][1] else "fastroai.cost"
    usd = sum(Decimal(cost) for *_, cost in booked)
    assert collector.total(kind, **pipeline) == pytest.approx(float(usd), rel=1e-12)
    tokens = "gen_ai.client.token.usage"
    for name, place in (("input", 2), ("output", 3)):
        expected = sum(entry[place] for entry in booked)
        assert collector.total(tokens, gen_ai__token__type=name, **pipeline) == expected > 0
    steps = {"first": 1, "second": 2}
    for step_id, requests in steps.items():
        assert collector.total("fastroai.requests", fastroai__step=step_id) == requests

    # Of the one that was lost first and is paid after all, once; of a replay, nothing.
    by_hand = {"fastroai__pipeline": "by hand"}
    assert collector.total("fastroai.cost", **by_hand) == 0.25
    assert collector.total("fastroai.cost.replayed", **by_hand) == 0.25
    assert collector.total(tokens, gen_ai__token__type="input", **by_hand) == 14
    states = {
        state: collector.total("fastroai.requests", fastroai__state=state, **by_hand)
        for state in ("charged", "unpriced", "unsettled", "refused", "replayed")
    }
    assert states == {"charged": 1, "unpriced": 1, "unsettled": 0, "refused": 1, "replayed": 1}
    assert collector.total("fastroai.cost", gen_ai__request__model="gpt-5-mini", **by_hand) == 0.25
    assert collector.scopes == {"fastroai"}

    spans = [span for span in collector.spans if span[1].get("fastroai.pipeline") == "by hand"]
    shown = {(name, at["fastroai.state"]) for name, at in spans}
    assert shown == {
        ("chat openai:gpt-5-mini", "unsettled"),
        ("chat openai:gpt-5-mini", "unpriced"),
        ("chat openai:gpt-5-mini", "refused"),
        ("replay openai:gpt-5-mini", "replayed"),
    }
    [unpriced] = [at for _, at in spans if at["fastroai.state"] == "unpriced"]
    assert not [name for name in unpriced if name.startswith("fastroai.cost")]
    assert unpriced["gen_ai.usage.input_tokens"] == 7
    assert unpriced["gen_ai.provider.name"] == "openai"
    [replay] = [at for _, at in spans if at["fastroai.state"] == "replayed"]
    assert (replay["fastroai.cost.replayed"], replay["gen_ai.response.id"]) == (0.25, "resp-1")
    assert "gen_ai.usage.input_tokens" not in replay
    assert len([at for _, at in collector.spans if at.get("fastroai.pipeline") == "asked"]) == 3
    assert "sk-abc" not in repr(collector.spans)


def test_the_span_of_a_request_that_pydantic_ai_makes_has_the_cost_and_is_the_only_one() -> None:
    with OtlpCollector() as collector:
        booked = run(collector, f"{SPANS}\nAgent.instrument_all()")
    asked = [(n, at) for n, at in collector.spans if at.get("fastroai.pipeline") == "asked"]
    assert len(asked) == len(booked) == 3
    assert {at["gen_ai.operation.name"] for _, at in asked} == {"chat"}
    chats = [at for _, at in collector.spans if at.get("gen_ai.operation.name") == "chat"]
    assert len([at for at in chats if at.get("fastroai.pipeline") != "by hand"]) == 3
    # Its own metrics, which count replays, are not exported beside these.
    assert collector.scopes == {"fastroai"}


def test_the_standard_settings_turn_it_off() -> None:
    with OtlpCollector() as collector:
        assert run(collector, OTEL_SDK_DISABLED="true")
    assert collector.metrics == set()
