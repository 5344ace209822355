"""Counts each model request of an agent run, as a capability of pydantic-ai."""

from __future__ import annotations

from typing import Any

from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.models import Model

from ..replay.model import JournaledModel
from .members import is_made_of_models
from .model import COUNTING, MeteredMembers, MeteredModel, meter_all_models
from .request_books import RequestBooks

_INNERMOST = CapabilityOrdering(position="innermost")


class RequestMeter(RequestBooks, AbstractCapability[Any]):
    """Counts the model requests of one agent run; its arguments are those of `RequestBooks`."""

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model as one that counts its requests."""
        known = self.metered_models.get(id(model))
        if known is None:
            # The model is kept beside its wrapper, so that its id can't be given to another one
            # meanwhile.
            known = self.metered_models[id(model)] = (model, self.metered(model))
        return known[1]

    def metered(self, model: Model) -> Model:
        """The model as one that counts its requests, and within a step records its answers.

        One that counts already, for the agent that runs this one as its tool, counts for this run
        instead. Those of a model made of models are counted one by one, where they are sent.
        """
        sender = model
        while isinstance(sender, COUNTING):
            self.retry_like(sender.books)
            sender = sender.wrapped
        metered: Model
        if is_made_of_models(sender):
            meter_all_models()
            metered = MeteredMembers(sender, self)
        else:
            metered = MeteredModel(sender, self)
        if self.journal is not None:
            metered = JournaledModel(metered, self.journal, self)
        return metered

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the provider: what an outer wrapper answers by itself was not sent."""
        return _INNERMOST
