"""The arguments of a PrefectExecutor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect.task_runners import TaskRunner

from ...pipelines.config import Durable
from ...pipelines.deps import DepsFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How items of mapped steps are spread over the workers of a Prefect work pool.

    Args:
        deployment: Whose runs work on items, as `flow/deployment`; a flow of the same pipeline.
            None: that of the run itself. A run of none then works on its items by itself.
        items: How many items one flow run works on.
        runs: How many such flow runs a mapped step has at once.
        patience: Seconds after which a flow run that a worker has taken is begun again if it has
            given no heartbeat yet: longer than it takes to start one.

    Raises:
        ValueError: A value that can't be meant.
    """

    deployment: str | None = None
    items: int = 50
    runs: int = 8
    patience: float = 300.0

    def __post_init__(self) -> None:
        for name in ("items", "runs"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number >= 1.")
        if not self.patience > 0:
            raise ValueError(f"patience={self.patience!r}: give seconds.")
        if self.deployment is not None and self.deployment.count("/") != 1:
            raise ValueError(f"deployment={self.deployment!r}: give it as 'flow/deployment'.")


@dataclass(frozen=True, slots=True)
class PrefectOptions:
    """See `PrefectExecutor`.

    Attributes:
        result_storage: Where results of steps go whose own configuration does not say; None: as the
            settings say.
        spread: How items of mapped steps are spread over other runs; None: they are not.
        task_runner: Has steps run that are remote; None: none is.
        deps_factory: Makes their deps there.
    """

    result_storage: Any = None
    default_task_config: Mapping[str, Any] = field(default_factory=dict)
    flow_config: Mapping[str, Any] = field(default_factory=dict)
    durable: Durable = "request"
    spread: Spread | None = None
    task_runner: TaskRunner[Any] | None = None
    deps_factory: DepsFactory | None = None
