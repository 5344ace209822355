"""BasePipeline: chooses which pipeline an input goes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import UnknownPipelineError
from .pipeline import Pipeline

if TYPE_CHECKING:
    from ..executors.protocol import Executor
    from ..tracing.tracer import Tracer
    from .schemas import PipelineResult

DepsT = TypeVar("DepsT")
InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class BasePipeline(ABC, Generic[DepsT, InputT, OutputT]):
    """A router: subclasses implement `route`, which names the registered pipeline that takes an
    input.

    Args:
        name: For people.
        executor: Runs whichever pipeline is chosen. None: each pipeline's own.
    """

    # Class-level defaults: subclasses may leave out super().__init__().
    name: str = ""
    executor: Executor | str | None = None

    def __init__(self, name: str, executor: Executor | str | None = None) -> None:
        self.name = name
        self.executor = executor

    @property
    def pipelines(self) -> dict[str, Pipeline[DepsT, InputT, OutputT]]:
        """The registered pipelines by name."""
        registered: dict[str, Pipeline[DepsT, InputT, OutputT]] = self.__dict__.setdefault(
            "_pipelines", {}
        )
        return registered

    def register_pipeline(self, name: str, pipeline: Pipeline[DepsT, InputT, OutputT]) -> None:
        """Register a pipeline; a name that is registered already gets the new one."""
        self.pipelines[name] = pipeline

    @abstractmethod
    async def route(self, input_data: InputT, deps: DepsT) -> str:
        """The name of the pipeline for this input."""

    async def execute(
        self, input_data: InputT, deps: DepsT, tracer: Tracer | None = None, **options: Any
    ) -> PipelineResult[OutputT]:
        """Route the input and run the chosen pipeline; options are those of `Pipeline.execute`.

        Raises:
            UnknownPipelineError: `route` chose a name that is not registered.
        """
        name = await self.route(input_data, deps)
        pipeline = self.pipelines.get(name)
        if pipeline is None:
            known = ", ".join(map(repr, self.pipelines)) or "none"
            raise UnknownPipelineError(f"Unknown pipeline: {name!r}. Registered: {known}.")
        if self.executor is not None:
            pipeline = pipeline.with_executor(self.executor)
        return await pipeline.execute(input_data, deps, tracer, **options)
