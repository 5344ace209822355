"""The gated pipeline as a flow to deploy."""

from __future__ import annotations

from tests.support.gated_run import pipeline

flow = pipeline().to_flow(name="gated", version="1")
