"""Fakes for tests and for runs without a key: models that answer in process, and fixed prices."""

from ..simulation.offline import OfflineModel
from .prices import fixed_prices
from .scripted import Reply, ScriptedModel, ToolCall

__all__ = ["OfflineModel", "Reply", "ScriptedModel", "ToolCall", "fixed_prices"]
