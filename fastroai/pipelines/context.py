"""StepContext: inputs, dependency outputs, deps, and calls of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ..errors import DispatchSkippedError
from ..metering.deadlines import Deadline
from ..metering.retries import is_permanent
from ..retries import retry
from .config import StepConfig, retry_delay
from .map_state import OVER, Item
from .step_state import RunBooks, StepState, find_state

if TYPE_CHECKING:
    from ..agent.agent import FastroAgent
    from ..agent.schemas import ChatResponse
    from ..tracing.tracer import Tracer
    from .schemas import StepUsage

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")


class _NotedOutputs(dict[str, Any]):
    """Outputs of a step's dependencies, as an item sees them: it may depend on all elements."""

    __slots__ = ("_over", "_state")

    def __init__(self, outputs: Mapping[str, Any], over: str, state: StepState) -> None:
        super().__init__(outputs)
        self._over = over
        self._state = state

    def __getitem__(self, step_id: str) -> Any:
        if step_id == self._over:
            self._state.reads.add(OVER)
        return super().__getitem__(step_id)

    def get(self, step_id: str, default: Any = None) -> Any:
        if step_id not in self:
            return default
        return self[step_id]


class _NotGiven:
    def __repr__(self) -> str:
        return "<as configured>"


AS_CONFIGURED: Final[Any] = _NotGiven()


class StepContext(Generic[DepsT]):
    """What one execution of a step sees.

    Agent calls are booked to the run that is under way, or else in the ledger of
    `FASTROAI_LEDGER_URL`. Our executors own the step's `timeout` and `retries`. A context
    constructed by hand stands alone: `run` then applies `config.timeout` and `config.retries` to
    each call itself.

    Args:
        step_id: The step's id.
        inputs: The run's input, by key.
        deps: The caller's live objects.
        step_outputs: Outputs of the step's dependencies by step id.
        tracer: Handed to agents as it is.
        config: The step's resolved configuration.
        state: The step's state within a run; None: found when an agent is first called.
        item: Of a mapped step, the item that is worked on.
    """

    def __init__(
        self,
        step_id: str,
        inputs: Mapping[str, Any],
        deps: DepsT,
        step_outputs: Mapping[str, Any],
        tracer: Tracer | None = None,
        config: StepConfig | None = None,
        *,
        state: StepState | None = None,
        item: Item | None = None,
    ) -> None:
        self._step_id = step_id
        self._item = item
        self._inputs = inputs
        self._deps = deps
        self._outputs = step_outputs
        self._tracer = tracer
        self._config = config if config is not None else StepConfig()
        self._stands_alone = state is None
        self._is_booked = state is not None
        self._state = state if state is not None else StepState(step_id, RunBooks())

    @property
    def step_id(self) -> str:
        """The step's id."""
        return self._step_id

    @property
    def deps(self) -> DepsT:
        """The caller's live objects, the same ones."""
        return self._deps

    @property
    def tracer(self) -> Tracer | None:
        """The run's tracer; never None within a pipeline."""
        return self._tracer

    @property
    def usage(self) -> StepUsage:
        """What this step has used so far, its failed attempts included."""
        return self._state.usage

    @property
    def config(self) -> StepConfig:
        """The step's resolved configuration."""
        return self._config

    @property
    def attempt(self) -> int:
        """Which attempt of the step this is, from 1."""
        return self._state.attempt

    @property
    def item(self) -> Any:
        """The element that a mapped step works on.

        Raises:
            ValueError: The step is not mapped.
        """
        return self._item_of_map().value

    @property
    def item_key(self) -> str:
        """Its stable name.

        Raises:
            ValueError: The step is not mapped.
        """
        return self._item_of_map().key

    def _item_of_map(self) -> Item:
        if self._item is None:
            raise ValueError(
                f"Step '{self._step_id}' has no item: it is not mapped. Use step.map(over=…)."
            )
        return self._item

    def for_item(self, item: Item, state: StepState, over: str) -> StepContext[DepsT]:
        """What one item of a mapped step sees: all that its step does.

        Args:
            over: The step that is mapped over; that its output is read as a whole is noted.
        """
        return StepContext(
            self._step_id,
            self._inputs,
            self._deps,
            _NotedOutputs(self._outputs, over, state),
            self._tracer,
            self._config,
            state=state,
            item=item,
        )

    def source_of_items(self, over: str) -> Any:
        """What a mapped step maps over: the output of a step, or a value of the run's input.

        Raises:
            ValueError: There is none.
        """
        if over in self._outputs:
            return self._outputs[over]
        if over in self._inputs:
            return self._inputs[over]
        raise ValueError(
            f"Step '{self._step_id}' maps over '{over}': the run has neither the output of such a "
            "step nor such a field in its input."
        )

    def get_input(self, key: str, default: Any = None) -> Any:
        """One value of the run's input, or the default where it has none of that name."""
        self._state.reads.add(key)
        return self._inputs.get(key, default)

    def get_dependency(
        self, step_id: str, output_type: type[OutputT] | None = None
    ) -> OutputT | Any:
        """The output of a step this one depends on; `output_type` only tells a type checker what it
        is.

        Raises:
            ValueError: The step was not declared as a dependency, or was not executed.
        """
        try:
            return self._outputs[step_id]
        except KeyError:
            available = ", ".join(map(repr, self._outputs)) or "none"
            raise ValueError(
                f"{step_id!r} is not a dependency of step {self._step_id!r} (available: "
                f"{available}). "
                "Declare it in the pipeline's dependencies."
            ) from None

    def get_dependency_or_none(
        self, step_id: str, output_type: type[OutputT] | None = None
    ) -> OutputT | Any | None:
        """The output of a step this one depends on, or None where there is none."""
        return self._outputs.get(step_id)

    async def run(
        self,
        agent: FastroAgent[OutputT],
        message: Any,
        *,
        timeout: float | None = AS_CONFIGURED,
        retries: int = AS_CONFIGURED,
    ) -> ChatResponse[OutputT]:
        """Call an agent: check budgets, fire its hooks, book what it spends.

        Args:
            agent: The agent; its `run` is called by keyword with `message`, `deps` and `tracer`.
            message: The user's message.
            timeout: Seconds for each attempt of this call; None or 0: no limit. Not given: the
                step's deadline holds.
            retries: Further attempts of this call. Not given: none, the step is tried again.

        Raises:
            CostBudgetExceededError: The step or its run has spent its budget. Nothing was sent, no
                hook fired.
            TimeoutError: The last attempt took longer than `timeout`.
            Exception: What the last attempt, or a hook, raised.
        """
        if timeout is AS_CONFIGURED:
            timeout = self._config.timeout if self._stands_alone else None
        if retries is AS_CONFIGURED or retries is None:
            retries = self._config.retries if self._stands_alone else 0
        # Not before: to find it may open the ledger, and most contexts by hand are tests.
        if not self._is_booked:
            await booked_state(self)
        state, attempts = self._state, max(1, retries + 1)
        if attempts == 1:
            return await self._dispatch(agent, message, timeout, 1, 1)

        def delay_after(error: Exception, failures: int) -> float | None:
            if failures == attempts or state.is_final(error) or is_permanent(error):
                return None
            return retry_delay(self._config, failures)

        attempt = partial(self._dispatch, agent, message, timeout, attempts)
        return await retry(attempt, delay_after)

    async def _dispatch(
        self, agent: Any, message: object, timeout: float | None, attempts: int, attempt: int
    ) -> ChatResponse[Any]:
        """One attempt of one call: before-hook, the call, its books, after-hook; or its replay."""
        replayed = self._state.replay(agent, message)
        if replayed is not None:
            return replayed
        self._state.check_budgets(self._config)
        if (before := getattr(agent, "_on_before_dispatch", None)) is not None:
            await self._fire(before)
        after = getattr(agent, "_on_after_dispatch", None)
        try:
            which = f"attempt {attempt}/{attempts}"
            response = await self._call(agent, message, timeout, which)
        except DispatchSkippedError as error:
            self._state.final(error)
            await self._fire(after, error)
            raise
        # A cancelled call was sent as well; a hook that counts calls has to hear of it.
        except (Exception, asyncio.CancelledError) as error:
            await self._fire(after, error)
            raise
        await self._fire(after, None)
        return response

    async def _call(
        self, agent: Any, message: object, timeout: float | None, which: str
    ) -> ChatResponse[Any]:
        state = self._state
        attribution = state.next_attribution()
        recorder = state.books.recorder
        others = len(recorder.of_dispatch(attribution))  # of another context by the same name
        with state.scope_of(attribution):
            try:
                # Without one, as short a way as possible.
                async with Deadline(timeout) if timeout else asyncio.timeout(None) as deadline:
                    response: ChatResponse[Any] = await agent.run(
                        message=message, deps=self._deps, tracer=self._tracer
                    )
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                raise TimeoutError(f"Agent call timed out after {timeout}s ({which})") from error
        entries = recorder.of_dispatch(attribution)[others:]
        state.book(agent, message, response, entries, attribution)
        return response

    async def _fire(self, hook: Any, *args: Any) -> None:
        """Await a hook; what it raises ends the step, with no further attempt."""
        if hook is None:
            return
        try:
            await hook(*args)
        except Exception as error:
            self._state.final(error)
            raise


async def booked_state(context: StepContext[Any]) -> StepState:
    """The state of a context's step, which of one that was made by hand is found now.

    Raises:
        LedgerUnavailableError: The ledger can't be used, and must be.
    """
    if not context._is_booked:
        context._state = await find_state(context._step_id)
        context._is_booked = True
    return context._state


@dataclass(frozen=True, slots=True)
class ContextParts:
    """What a context was made of, for who has the step run elsewhere.

    Attributes:
        outputs: Of the step's dependencies; of an item, what it is mapped over is among them.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    item: Item | None
    state: StepState

    @classmethod
    def of(cls, context: StepContext[Any]) -> ContextParts:
        """The parts of a context within a run."""
        return cls(context._inputs, dict(context._outputs), context._item, context._state)
