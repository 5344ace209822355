"""`fastroai estimate MODULE:PIPELINE key=value …`: what a run will cost, sending nothing."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .costs.filters import CONFIGURED, Source
from .costs.report import publish
from .forecasts import as_json, estimated, show
from .inputs import valid_input
from .loading import load_pipeline


def estimate(
    target: Annotated[str, Parameter(name="MODULE:PIPELINE")],
    /,
    *inputs: Annotated[str, Parameter(name="key=value")],
    source: Source = CONFIGURED,
) -> None:
    """Say what a run will cost: what earlier runs let expect, and an upper bound.

    Args:
        target: For example flows.document_digest:pipeline; also FILE.py:PIPELINE.
        inputs: Fields of the input; a value is JSON, else it is text.
    """
    pipeline = load_pipeline(target)
    found = estimated(pipeline, valid_input(pipeline, inputs), source.ledger)
    publish(source, as_json(found), lambda: show(found))
