"""The arguments of a PrefectExecutor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...pipelines.config import Durable
from ...settings import FastroAISettings


@dataclass(frozen=True, slots=True)
class PrefectOptions:
    """See `PrefectExecutor`."""

    result_storage: Any = None
    default_task_config: Mapping[str, Any] = field(default_factory=dict)
    flow_config: Mapping[str, Any] = field(default_factory=dict)
    durable: Durable = "request"

    def default_storage(self, settings: FastroAISettings) -> Any:
        """Where results of steps go whose own configuration does not say; None: where the flow's
        go.
        """
        choices = (
            self.default_task_config.get("result_storage"),
            self.result_storage,
            settings.result_storage,
        )
        return next((choice for choice in choices if choice is not None), None)
