"""What the ledger says of each request this process settled, for OpenTelemetry.

Metrics: `gen_ai.client.token.usage`, `fastroai.cost`, `fastroai.requests` and those of what was
simulated or replayed. Spans: one for each request, unless the one around it is of that request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from ..environment import process_environment
from ..pricing.money import EXACT
from ..version import __version__
from .entries import ZERO_USD, EntryState, LedgerEntry

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider, UpDownCounter

logger = logging.getLogger("fastroai.usage")

_TOKEN_BUCKETS = [4**power for power in range(14)]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google": "gcp.gen_ai",
    "google-cloud": "gcp.vertex_ai",
    "google-gla": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "grok": "x_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""pydantic-ai's names of providers as the semantic conventions have them; others are the same."""

Attributes = dict[str, str | int | float | bool]


def tell(entry: LedgerEntry, before: LedgerEntry | None) -> None:
    """Count what became of a request, and show it in a span. Never raises.

    Args:
        before: What was known of it; of one that was settled already, only what is new counts.
    """
    was_settled = before is not None and before.settled_at is not None
    if entry.settled_at is None or (was_settled and before == entry):
        return
    try:
        told = before if was_settled else None
        if _is_counted():
            _instruments().count(entry, told)
        if told is None:
            _show(entry)
    except Exception:  # of an exporter, or of a span processor of the user's
        _warn_once()


def _is_counted() -> bool:
    """Whether there is a meter: without one, to tell costs a request more than all its prices."""
    metrics, _ = _api()
    return _own_provider() is not None or _is_set(metrics.get_meter_provider())


@cache
def _api() -> tuple[Any, Any]:
    """OpenTelemetry's metrics and traces. Imported with the first request, as that takes its time;
    and once, as each request asks for them.
    """
    from opentelemetry import metrics, trace

    return metrics, trace


def _is_set(provider: object) -> bool:
    # The class that stands for one of metrics until it is set is private.
    return "Proxy" not in type(provider).__name__


@cache
def _warn_once() -> None:
    logger.warning("Requests can't be told to OpenTelemetry; the ledger has them.", exc_info=True)


@dataclass(frozen=True, slots=True)
class _Instruments:
    tokens: Histogram
    cost: Counter
    simulated: Counter
    replayed: Counter
    requests: UpDownCounter

    def count(self, entry: LedgerEntry, told: LedgerEntry | None) -> None:
        common = _common(entry)
        for one, sign in ((told, -1), (entry, 1)):
            if one is not None:
                state: Attributes = {"fastroai.state": one.state.value}
                self.requests.add(sign * one.request_count, common | state)
        counter = self._counter_of(entry)
        if counter is not None and (usd := EXACT.subtract(_known(entry), _known(told))) > 0:
            # The one place where an amount is rounded: no OpenTelemetry number is a decimal.
            counter.add(float(usd), common)
        if entry.is_spend:
            for kind, number in _tokens_of(entry, told):
                self.tokens.record(number, common | {"gen_ai.token.type": kind})

    def _counter_of(self, entry: LedgerEntry) -> Counter | None:
        if entry.state is EntryState.REPLAYED:
            return self.replayed
        if not entry.is_spend:
            return None
        return self.simulated if entry.simulated else self.cost


def _known(entry: LedgerEntry | None) -> Decimal:
    return ZERO_USD if entry is None or entry.cost_usd is None else entry.cost_usd


def _tokens_of(entry: LedgerEntry, told: LedgerEntry | None) -> Iterator[tuple[str, int]]:
    for kind in ("input", "output"):
        name = f"{kind}_tokens"
        number = getattr(entry.tokens, name) - (getattr(told.tokens, name) if told else 0)
        if number > 0:
            yield kind, number


@cache
def _instruments() -> _Instruments:
    meter = _meter()
    return _Instruments(
        meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKEN_BUCKETS,
        ),
        meter.create_counter("fastroai.cost", "USD", "Known cost of requests that were paid."),
        meter.create_counter(
            "fastroai.cost.simulated", "USD", "What simulated requests would have cost."
        ),
        meter.create_counter("fastroai.cost.replayed", "USD", "What replays saved."),
        meter.create_up_down_counter(
            "fastroai.requests", "{request}", "Requests by what became of them."
        ),
    )


def _meter() -> Meter:
    # Without one of its own that of the program: what it sets later takes effect, too.
    metrics, _ = _api()
    return (_own_provider() or metrics).get_meter("fastroai", __version__)


@cache
def _own_provider() -> MeterProvider | None:
    """What the standard settings ask for, where the program has set nothing itself. It is not made
    the program's: pydantic-ai would count the same tokens in it, and replays as well.
    """
    from opentelemetry import metrics

    if not _asks_for_export() or type(metrics.get_meter_provider()).__name__ == "MeterProvider":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    except ImportError as error:
        logger.warning(
            "%s is set, but costs and tokens can't be exported: %s. Install it with: "
            "pip install 'fastroai[otel]'",
            next(filter(process_environment().get, _ENDPOINTS)),
            error,
        )
        return None
    return MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])


def _asks_for_export() -> bool:
    variables = process_environment()
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if variables.get("OTEL_METRICS_EXPORTER", "otlp").strip() != "otlp":
        return False
    return any(map(variables.get, _ENDPOINTS))


def _common(entry: LedgerEntry) -> Attributes:
    """What requests are told apart by; a run is not among it: each would be a series of its own."""
    at = entry.attribution
    found = {
        "gen_ai.operation.name": operation_of(entry),
        "gen_ai.provider.name": _provider_of(entry),
        "gen_ai.request.model": (entry.model_asked or "").rpartition(":")[2],
        "gen_ai.response.model": entry.model_answered,
        "gen_ai.agent.name": entry.agent,
        "server.address": entry.provider_host,
        "fastroai.pipeline": at.pipeline,
        "fastroai.step": at.step_id,
        "fastroai.deployment": at.deployment,
    }
    return {name: value for name, value in found.items() if value}


def operation_of(entry: LedgerEntry) -> str:
    """As the conventions name it. An entry does not say, but models that embed have such names."""
    return "embeddings" if "embed" in (entry.model or "") else "chat"


def _provider_of(entry: LedgerEntry) -> str | None:
    name = entry.answering_provider
    return _PROVIDERS.get(name or "", name)


_OF_ONE_REQUEST = ("chat", "embeddings", "generate_content", "text_completion")


def _show(entry: LedgerEntry) -> None:
    """Put a settlement into the span of its request, or into one of its own."""
    _, trace = _api()
    around = trace.get_current_span()
    known = getattr(around, "attributes", None) or {}
    if around.is_recording() and known.get("gen_ai.operation.name") in _OF_ONE_REQUEST:
        around.set_attributes(_of_entry(entry))
        return
    if not _is_set(trace.get_tracer_provider()):
        return
    tracer = trace.get_tracer("fastroai", __version__)
    what = "replay" if entry.state is EntryState.REPLAYED else operation_of(entry)
    span = tracer.start_span(
        f"{what} {entry.answering_model or 'unknown'}",
        kind=trace.SpanKind.CLIENT,
        start_time=_nanoseconds(entry.sent_at),
        attributes=_common(entry) | dict(_usage_of(entry)) | _of_entry(entry),
    )
    if entry.state in (EntryState.REFUSED, EntryState.UNSETTLED):
        span.set_status(trace.StatusCode.ERROR)
    span.end(_nanoseconds(entry.settled_at or entry.sent_at))


def _usage_of(entry: LedgerEntry) -> Iterator[tuple[str, int]]:
    tokens = entry.tokens
    if entry.is_spend:
        yield "gen_ai.usage.input_tokens", tokens.input_tokens
        yield "gen_ai.usage.output_tokens", tokens.output_tokens
        yield "gen_ai.usage.cache_read.input_tokens", tokens.cache_read_tokens
        yield "gen_ai.usage.cache_creation.input_tokens", tokens.cache_write_tokens


def _of_entry(entry: LedgerEntry) -> Attributes:
    """What only the ledger knows. A cost that is not known has no attribute."""
    at = entry.attribution
    cost = "fastroai.cost"
    if entry.state is EntryState.REPLAYED:
        cost += ".replayed"
    elif entry.simulated:
        cost += ".simulated"
    found = {
        "fastroai.entry_id": entry.id,
        "fastroai.state": entry.state.value,
        "fastroai.run_id": at.run_id,
        "fastroai.run_key": at.run_key,
        "fastroai.pipeline": at.pipeline,
        "fastroai.step": at.step_id,
        "fastroai.deployment": at.deployment,
        "fastroai.replay_of": entry.replay_of,
        "gen_ai.response.id": entry.response_id,
        cost: None if entry.cost_usd is None else float(entry.cost_usd),
    }
    return {name: value for name, value in found.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1e6) * 1000
