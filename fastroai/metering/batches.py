"""Has the requests of batches booked: an entry each when they are submitted, settled when their
result is read.
"""

from __future__ import annotations

from functools import cache

from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from .batch_results import cancelling, keeping_submission, reading
from .batch_submissions import creating, encoding
from .sending_methods import Replace, replace_methods


@cache
def meter_batches() -> None:
    """Have each request of each batch booked, whoever submits it."""
    methods: dict[str, Replace] = {
        "batch_encode": encoding,
        "batch_create": creating,
        "batch_status": keeping_submission,
        "batch_cancel": cancelling,
        "batch_results": reading,
    }
    replace_methods(Model, methods, but=(WrapperModel, FallbackModel))
