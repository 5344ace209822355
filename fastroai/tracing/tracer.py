"""Tracers that report to a logger, to Logfire, or not at all."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from ..redaction import redact

# Imported at once, as pydantic-ai does the same when Logfire is there: being lazy would save
# nothing.
logfire_module: Any
try:
    import logfire as logfire_module
except ImportError:
    logfire_module = None

_RECORD_KEYS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OWN_KEYS = frozenset({"trace_id", "parent_id", "duration_ms", "metric_name", "metric_value"})
_LOG_KEYS = _RECORD_KEYS | _OWN_KEYS


@runtime_checkable
class Tracer(Protocol):
    """What a run reports to. Any object with these three methods will do."""

    def span(self, name: str, **attributes: Any) -> AbstractAsyncContextManager[str]:
        """Surround a piece of work; yields the span's id."""
        ...

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """Report a number that belongs to the span with this id."""
        ...

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None:
        """Report an error that belongs to the span with this id."""
        ...


class SimpleTracer:
    """Writes spans, metrics and errors to a logger.

    A span is logged when it starts and when it is `DONE` (both INFO), `FAILED` (ERROR, with
    traceback), `CANCELLED` (WARNING) or `CLOSED` (INFO: nobody reads the stream it surrounds any
    more). `trace_id`, `parent_id` (the span around it, or None), `duration_ms` and the attributes
    are fields of the log record; an attribute whose name a record has already gets the prefix
    `attr_`.

    Args:
        logger: None: the logger `fastroai.tracing`.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger if logger is not None else logging.getLogger("fastroai.tracing")

    def span(self, name: str, **attributes: Any) -> AbstractAsyncContextManager[str]:
        """Log the start and the end of a piece of work; yields a fresh UUID."""
        return _LoggedSpan(self.logger, name, attributes)

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """Log a metric at DEBUG."""
        fields = {"trace_id": trace_id, "metric_name": name, "metric_value": value}
        self.logger.debug("METRIC %s=%s", name, value, extra=fields)

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None:
        """Log an error at ERROR, with its traceback."""
        fields = {**_renamed(context or {}, _LOG_KEYS), "trace_id": trace_id}
        message = "ERROR %s: %s"
        _log_error(self.logger, fields, error, message, type(error).__name__, redact(str(error)))


# Ambient, because the code between two spans is the user's.
_current_span: ContextVar[str | None] = ContextVar("fastroai_current_span", default=None)


class _LoggedSpan:
    def __init__(self, logger: logging.Logger, name: str, attributes: Mapping[str, Any]) -> None:
        self._logger = logger
        self._name = name
        self._fields = _renamed(attributes, _LOG_KEYS)
        self._started = 0.0
        self._token: Token[str | None] | None = None

    async def __aenter__(self) -> str:
        trace_id = str(uuid4())
        self._fields |= {"trace_id": trace_id, "parent_id": _current_span.get()}
        self._logger.info("START %s", self._name, extra=self._fields)
        self._token = _current_span.set(trace_id)
        self._started = time.perf_counter()
        return trace_id

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            # An abandoned async generator is closed in another context, where the token does not
            # count.
            with suppress(ValueError):
                _current_span.reset(self._token)
        milliseconds = (time.perf_counter() - self._started) * 1000
        fields = {**self._fields, "duration_ms": milliseconds}
        if error is None:
            self._logger.info("DONE %s in %.0f ms", self._name, milliseconds, extra=fields)
        elif isinstance(error, asyncio.CancelledError):
            self._logger.warning(
                "CANCELLED %s after %.0f ms", self._name, milliseconds, extra=fields
            )
        elif isinstance(error, GeneratorExit):
            self._logger.info("CLOSED %s after %.0f ms", self._name, milliseconds, extra=fields)
        else:
            message, text = "FAILED %s after %.0f ms: %s", redact(str(error))
            _log_error(self._logger, fields, error, message, self._name, milliseconds, text)


def _log_error(
    logger: logging.Logger,
    fields: Mapping[str, Any],
    error: BaseException,
    message: str,
    *args: object,
) -> None:
    """Log an error with its traceback, in which secrets are masked."""
    if not logger.isEnabledFor(logging.ERROR):
        return
    path, line, function, _ = logger.findCaller(stacklevel=3)
    exc_info = (type(error), error, error.__traceback__)
    record = logger.makeRecord(
        logger.name, logging.ERROR, path, line, message, args, exc_info, function, fields
    )
    # What formatters write instead of the traceback that they would make.
    record.exc_text = redacted_traceback(error)
    logger.handle(record)


def redacted_traceback(error: BaseException) -> str:
    """An error's traceback with its causes, in which secrets are masked."""
    return redact("".join(traceback.format_exception(error)).rstrip())


class LogfireTracer:
    """Sends spans, metrics and errors to Logfire, which links and nests the spans itself.

    Raises:
        ImportError: The package `logfire` is not installed.
    """

    def __init__(self) -> None:
        if logfire_module is None:
            raise ImportError(
                "logfire is required for LogfireTracer. Install it with: pip install "
                "'fastroai[logfire]'"
            )
        self._logfire: Any = logfire_module
        self._spans: dict[str, Any] = {}

    @asynccontextmanager
    async def span(self, name: str, **attributes: Any) -> AsyncIterator[str]:
        """A Logfire span; yields a fresh UUID, which is its attribute `trace_id`."""
        trace_id = str(uuid4())
        fields = _renamed(attributes, {"trace_id"})
        failure: Exception | None = None
        with self._logfire.span(name, _tags=["fastroai"], trace_id=trace_id, **fields) as span:
            self._spans[trace_id] = span
            try:
                yield trace_id
            except Exception as error:
                text = redacted_traceback(error)
                if text == "".join(traceback.format_exception(error)).rstrip():
                    raise
                # Logfire would record the error as it is.
                span.set_level("error")
                span.set_attribute("exception.stacktrace", text)
                failure = error
            finally:
                del self._spans[trace_id]
        if failure is not None:
            raise failure

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """A Logfire info message, and an OpenTelemetry attribute `fastroai.<name>` of the span
        while it is open.
        """
        if (span := self._spans.get(trace_id)) is not None:
            span.set_attribute(f"fastroai.{name}", value)
        self._logfire.info(
            "metric {name}={value}",
            name=name,
            value=value,
            trace_id=trace_id,
            _tags=["fastroai", "metric"],
        )

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None:
        """A Logfire error message with the exception."""
        has_secrets = redact(str(error)) != str(error)
        self._logfire.error(
            "{error_type}: {error_message}",
            error_type=type(error).__name__,
            error_message=redact(str(error)),
            trace_id=trace_id,
            _exc_info=False if has_secrets else error,
            _tags=["fastroai", "error"],
            **_renamed(context or {}, {"error_type", "error_message", "trace_id"}),
        )


class NoOpTracer:
    """Reports to nowhere; spans still yield a fresh UUID."""

    def span(self, name: str, **attributes: Any) -> AbstractAsyncContextManager[str]:
        """Nothing but an id."""
        return nullcontext(str(uuid4()))

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """Nothing."""

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None:
        """Nothing."""


def _renamed(attributes: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """The attributes, with the prefix `attr_` where the backend has that name already or keeps it
    for itself (`_…`).
    """
    return {
        f"attr_{key}" if key in taken or key.startswith("_") else key: value
        for key, value in attributes.items()
    }
