"""The arguments of a PrefectExecutor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...pipelines.config import Durable


@dataclass(frozen=True, slots=True)
class PrefectOptions:
    """See `PrefectExecutor`.

    Attributes:
        result_storage: Where results of steps go whose own configuration does not say; None: as the
            settings say.
    """

    result_storage: Any = None
    default_task_config: Mapping[str, Any] = field(default_factory=dict)
    flow_config: Mapping[str, Any] = field(default_factory=dict)
    durable: Durable = "request"
