"""Where runs report what they do."""

from .tracer import LogfireTracer, NoOpTracer, SimpleTracer, Tracer

__all__ = ["LogfireTracer", "NoOpTracer", "SimpleTracer", "Tracer"]
