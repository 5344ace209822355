"""Tracers: report what runs do."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .tracer import LogfireTracer, NoOpTracer, SimpleTracer, Tracer
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {".tracer": "LogfireTracer NoOpTracer SimpleTracer Tracer"}
    )

__all__ = ["LogfireTracer", "NoOpTracer", "SimpleTracer", "Tracer"]
