"""Tracers beyond their contract: reserved names, cancellation, parents, real Logfire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID

import pytest

from fastroai.tracing import LogfireTracer, NoOpTracer, SimpleTracer
from fastroai.tracing import tracer as tracer_module


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """All that reaches the tracers' logger."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    logger, handler = logging.getLogger("fastroai.tracing"), Keep()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_names_that_a_log_record_has_already_get_a_prefix(
    records: list[logging.LogRecord],
) -> None:
    attributes: dict[str, Any] = {
        "module": "m",
        "message": "hi",
        "args": (1,),
        "trace_id": "mine",
        "model": "gpt-4o",
    }
    async with SimpleTracer().span("work", **attributes) as trace_id:
        pass
    SimpleTracer().log_error(trace_id, ValueError("x"), {"name": "n", "exc_info": 1})

    for record in records[:2]:
        assert record.__dict__["model"] == "gpt-4o"
        assert record.__dict__["trace_id"] == trace_id
        assert {
            key: record.__dict__[f"attr_{key}"] for key in ("module", "message", "args", "trace_id")
        } == {
            "module": "m",
            "message": "hi",
            "args": (1,),
            "trace_id": "mine",
        }
    assert records[2].__dict__["attr_name"] == "n"
    assert records[2].__dict__["attr_exc_info"] == 1


async def test_a_cancelled_span_is_logged(records: list[logging.LogRecord]) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with SimpleTracer().span("work"):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert records[-1].levelno == logging.WARNING
    assert records[-1].getMessage().startswith("CANCELLED work")


async def test_a_span_in_a_stream_that_nobody_reads_on_is_closed(
    records: list[logging.LogRecord],
) -> None:
    async def stream() -> AsyncIterator[int]:
        async with SimpleTracer().span("stream"):
            yield 1
            yield 2

    numbers = stream()
    assert await anext(numbers) == 1
    # Another context than the one the span was opened in, as when the event loop closes an
    # abandoned generator.
    await asyncio.create_task(numbers.aclose())  # type: ignore[attr-defined]

    assert records[-1].levelno == logging.INFO
    assert records[-1].getMessage().startswith("CLOSED stream")


async def test_spans_name_their_parent_across_tasks(records: list[logging.LogRecord]) -> None:
    tracer = SimpleTracer()

    async def child(name: str) -> None:
        async with tracer.span(name):
            await asyncio.sleep(0)

    async with tracer.span("root") as root:
        await asyncio.gather(child("a"), child("b"))
        async with tracer.span("c") as inner, tracer.span("d"):
            pass
    async with tracer.span("after"):
        pass

    parents = {
        record.getMessage().split()[1]: record.__dict__["parent_id"]
        for record in records
        if record.getMessage().startswith("START")
    }
    assert parents == {"root": None, "a": root, "b": root, "c": root, "d": inner, "after": None}


async def test_a_span_says_how_long_it_took(records: list[logging.LogRecord]) -> None:
    async with SimpleTracer().span("work"):
        pass

    assert records[-1].__dict__["duration_ms"] >= 0


async def test_ids_are_uuids_of_version_4() -> None:
    for tracer in (SimpleTracer(), NoOpTracer()):
        async with tracer.span("work") as trace_id:
            assert UUID(trace_id).version == 4


async def test_silent_spans_let_errors_through() -> None:
    with pytest.raises(ValueError, match="broken"):
        async with NoOpTracer().span("work"):
            raise ValueError("broken")


async def test_attributes_can_not_collide_with_logfires_own_arguments() -> None:
    tracer = LogfireTracer()
    tracer._logfire = MagicMock()
    attributes: dict[str, Any] = {"trace_id": "mine", "_tags": "mine"}

    async with tracer.span("work", **attributes) as trace_id:
        pass
    tracer.log_error(trace_id, ValueError("x"), {"error_type": "mine", "_exc_info": False})

    assert tracer._logfire.span.call_args.kwargs == {
        "_tags": ["fastroai"],
        "trace_id": trace_id,
        "attr_trace_id": "mine",
        "attr__tags": "mine",
    }
    fields = tracer._logfire.error.call_args.kwargs
    assert (fields["error_type"], fields["attr_error_type"], fields["attr__exc_info"]) == (
        "ValueError",
        "mine",
        False,
    )


async def test_real_logfire_takes_what_the_tracer_sends() -> None:
    import logfire
    from logfire.testing import TestExporter
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = TestExporter()
    tracer = LogfireTracer()
    tracer._logfire = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )

    async with tracer.span("outer", user="u1") as outer, tracer.span("inner"):
        tracer.log_metric(outer, "tokens", 150)
        tracer.log_error(outer, ValueError("broken"), {"step": "a"})

    spans: dict[str, Any] = {span["name"]: span for span in exporter.exported_spans_as_dict()}
    assert spans["outer"]["attributes"]["trace_id"] == outer
    assert spans["outer"]["attributes"]["user"] == "u1"
    assert spans["outer"]["attributes"]["fastroai.tokens"] == 150
    assert spans["inner"]["parent"]["span_id"] == spans["outer"]["context"]["span_id"]
    assert spans["metric {name}={value}"]["attributes"]["value"] == 150
    error = spans["{error_type}: {error_message}"]
    assert error["attributes"]["step"] == "a"
    assert error["events"][0]["name"] == "exception"


def test_the_tracer_uses_the_module_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = object()
    monkeypatch.setattr(tracer_module, "logfire_module", stand_in)

    assert LogfireTracer()._logfire is stand_in
