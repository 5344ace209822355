"""What a PrefectExecutor was constructed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PrefectOptions:
    """See `PrefectExecutor`."""

    result_storage: Any = None
    default_task_config: Mapping[str, Any] = field(default_factory=dict)
    flow_config: Mapping[str, Any] = field(default_factory=dict)
