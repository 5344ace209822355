"""Tracers: report what runs do."""

from .tracer import LogfireTracer, NoOpTracer, SimpleTracer, Tracer

__all__ = ["LogfireTracer", "NoOpTracer", "SimpleTracer", "Tracer"]
