"""Tracers as programs written for fastroai 0.6 use them."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import MagicMock, patch

import pytest

from fastroai.tracing import LogfireTracer, NoOpTracer, SimpleTracer, Tracer


@pytest.fixture
def logfire_tracer() -> LogfireTracer:
    tracer = LogfireTracer()
    tracer._logfire = MagicMock()
    return tracer


@pytest.mark.parametrize("tracer", [SimpleTracer(), NoOpTracer(), LogfireTracer()])
def test_all_tracers_satisfy_the_protocol(tracer: object) -> None:
    assert isinstance(tracer, Tracer)


def test_other_objects_do_not() -> None:
    assert not isinstance(object(), Tracer)


def test_the_simple_tracers_logger() -> None:
    own = logging.getLogger("own")

    assert SimpleTracer().logger.name == "fastroai.tracing"
    assert SimpleTracer(own).logger is own
    assert SimpleTracer(logger=own).logger is own


async def test_a_span_is_logged_at_its_start_and_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fastroai.tracing"):
        async with SimpleTracer().span("work", user="u1") as trace_id:
            assert len(trace_id) == 36

    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.INFO]
    assert all("work" in record.getMessage() for record in caplog.records)
    assert all(record.__dict__["user"] == "u1" for record in caplog.records)


async def test_a_failed_span_is_logged_and_the_error_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with SimpleTracer().span("work"):
            raise ValueError("broken")

    failure = caplog.records[-1]
    assert failure.levelno == logging.ERROR
    assert "FAILED work" in failure.getMessage()
    assert "broken" in failure.getMessage()
    assert failure.exc_info


def test_metrics_and_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tracer = SimpleTracer()
    with caplog.at_level(logging.DEBUG, logger="fastroai.tracing"):
        tracer.log_metric("id", "tokens", 150)
        tracer.log_error("id", ValueError("broken"), {"step": "a"})
        tracer.log_error("id", ValueError("broken again"))

    metric, error, plain = caplog.records
    assert metric.levelno == logging.DEBUG
    assert "tokens=150" in metric.getMessage()
    assert error.levelno == plain.levelno == logging.ERROR
    assert "broken" in error.getMessage()
    assert error.__dict__["step"] == "a"


async def test_the_no_op_tracer_yields_ids_and_reports_nothing() -> None:
    tracer = NoOpTracer()
    async with tracer.span("a", x=1) as first, tracer.span("b") as second:
        assert len(first) == len(second) == 36
        assert first != second
    tracer.log_metric(first, "tokens", 1)
    tracer.log_error(first, ValueError("x"))
    tracer.log_error(first, ValueError("x"), context={"a": 1})


def test_logfire_is_asked_for_by_name_when_it_is_missing() -> None:
    with (
        patch("fastroai.tracing.tracer.logfire_module", None),
        pytest.raises(ImportError, match="logfire is required"),
    ):
        LogfireTracer()


async def test_a_logfire_span(logfire_tracer: LogfireTracer) -> None:
    async with logfire_tracer.span("work", user="u1") as trace_id:
        assert len(trace_id) == 36

    mock: Any = logfire_tracer._logfire
    mock.span.assert_called_once_with("work", _tags=["fastroai"], trace_id=trace_id, user="u1")
    mock.span.return_value.__enter__.assert_called_once()
    mock.span.return_value.__exit__.assert_called_once()


async def test_an_error_leaves_a_logfire_span(logfire_tracer: LogfireTracer) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with logfire_tracer.span("work"):
            raise ValueError("broken")

    mock: Any = logfire_tracer._logfire
    assert mock.span.return_value.__exit__.call_args.args[0] is ValueError


def test_a_logfire_metric(logfire_tracer: LogfireTracer) -> None:
    logfire_tracer.log_metric("id", "tokens", 150)

    (template,), fields = logfire_tracer._logfire.info.call_args
    assert "metric" in template
    assert {key: fields[key] for key in ("name", "value", "trace_id")} == {
        "name": "tokens",
        "value": 150,
        "trace_id": "id",
    }
    assert "metric" in fields["_tags"]


@pytest.mark.parametrize("context", [None, {}, {"step": "a"}])
def test_a_logfire_error(logfire_tracer: LogfireTracer, context: dict[str, Any] | None) -> None:
    error = ValueError("broken")
    logfire_tracer.log_error("id", error, context)

    (template,), fields = logfire_tracer._logfire.error.call_args
    assert "{error_type}" in template
    assert "error" in fields.pop("_tags")
    assert fields == {
        "error_type": "ValueError",
        "error_message": "broken",
        "trace_id": "id",
        "_exc_info": error,
        **(context or {}),
    }
