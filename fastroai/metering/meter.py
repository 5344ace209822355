"""Counts each model request of an agent run, as a capability of pydantic-ai."""

from __future__ import annotations

from typing import Any

from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.models import Model

from ..replay.model import JournaledModel
from .model import metered_model
from .request_books import RequestBooks

_INNERMOST = CapabilityOrdering(position="innermost")


class RequestMeter(RequestBooks, AbstractCapability[Any]):
    """Counts the model requests of one agent run; its arguments are those of `RequestBooks`."""

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model as one that counts its requests."""
        return self.metered(model)

    def metered(self, model: Model) -> Model:
        """The model as one that counts its requests, and within a step records its answers."""
        known = self.metered_models.get(id(model))
        if known is None:
            # The model is kept beside its wrapper, so that its id can't be given to another one
            # meanwhile.
            metered = metered_model(model, self)
            if self.journal is not None:
                metered = JournaledModel(metered, self.journal, self)
            known = self.metered_models[id(model)] = (model, metered)
        return known[1]

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the provider: what an outer wrapper answers by itself was not sent."""
        return _INNERMOST
