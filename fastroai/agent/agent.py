"""FastroAgent: a pydantic-ai agent whose requests are counted and priced one by one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from inspect import isawaitable, signature
from typing import TYPE_CHECKING, Any, Generic, cast

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelTimeoutError
from pydantic_ai.messages import ModelMessage, UserContent
from pydantic_ai.models import Model, infer_model
from pydantic_ai.output import OutputSpec
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import AbstractToolset

from ..metering.meter import RequestMeter
from ..metering.scope import current_scope, scope_outside_of_runs
from ..pricing.calculator import CostCalculator
from ..replay.tools import ToolJournal
from ..tracing.tracer import NoOpTracer, Tracer
from .garbage import AT_WORK
from .models import ModelsOfLoops, is_overridden, reasons
from .responses import read_response, tool_calls_in, tool_calls_of_run
from .schemas import (
    DEFAULT_MODEL,
    AgentConfig,
    ChatResponse,
    OutputT,
    StreamChunk,
    complain_of_unknown,
)
from .streaming import HandOver, in_own_task, stream_content

if TYPE_CHECKING:
    from ..pipelines.agent_step import AgentStepWrapper
    from ..pipelines.context import StepContext

BeforeDispatch = Callable[[], Awaitable[None]]
"""Awaited before each attempt of a step's call; what it raises ends the call, and nothing is sent.
"""
AfterDispatch = Callable[[BaseException | None], Awaitable[None]]
"""Awaited after each attempt of a step's call with its error, or None."""
Settings = ModelSettings | Mapping[str, Any] | Callable[[Any], Any]
Message = str | Sequence[UserContent]


class FastroAgent(Generic[OutputT]):
    """An agent whose every model request is an entry in the books, priced exactly.

    Args:
        config: How to build the agent. Or give its fields as keyword arguments; not both.
        agent: A ready pydantic-ai agent to use instead of building one. It keeps its own model,
            prompt and settings: only fields that were explicitly configured are sent with a run, a
            system prompt as further instructions. A `model` only names what answered, where the
            agent's responses don't.
        output_type: What the agent answers with: a type or any of pydantic-ai's output markers.
            Default: text.
        toolsets: Tools the model may call.
        cost_calculator: Prices requests. Default: a `CostCalculator` without overrides.
        on_before_dispatch: Hook of `StepContext.run`; `run` and `run_stream` called directly fire
            none.
        on_after_dispatch: As above.
        name: Names the agent in ledger entries and in pydantic-ai's spans.
        **options: Fields of `AgentConfig`.

    Raises:
        TypeError: An unknown option, or options beside a config.
        ValidationError: An option has a value it may not have.
        UserError: The model's name has no provider.

    A provider's key is looked for on the first run, which raises pydantic-ai's `UserError` where
    there is none.
    """

    def __init__(
        self,
        config: AgentConfig | None = None,
        agent: Agent[Any, OutputT] | None = None,
        output_type: OutputSpec[OutputT] | None = None,
        toolsets: list[AbstractToolset[Any]] | None = None,
        cost_calculator: CostCalculator | None = None,
        on_before_dispatch: BeforeDispatch | None = None,
        on_after_dispatch: AfterDispatch | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self.config = _configured(config, options)
        self.toolsets: list[AbstractToolset[Any]] = toolsets if toolsets is not None else []
        self.cost_calculator = cost_calculator if cost_calculator is not None else CostCalculator()
        self._on_before_dispatch = on_before_dispatch
        self._on_after_dispatch = on_after_dispatch
        self._name = name
        self._is_built = agent is None
        self._models = ModelsOfLoops()
        self._run_options: dict[str, Any] = {}
        self._fallback_model: str | None = self.config.model_label
        self._span_attributes: dict[str, Any] = {"model": self.config.model_label}
        if self.config.timeout_name is not None:
            self._span_attributes["timeout_name"] = self.config.timeout_name
        if agent is None:
            self._agent = self._build(output_type)
        else:
            self._agent = agent
            self._run_options = self._options_of_runs(output_type)
            if "model" not in options and (config is None or config.model == DEFAULT_MODEL):
                self._fallback_model = None

    @property
    def agent(self) -> Agent[Any, OutputT]:
        """The pydantic-ai agent, for what this class does not offer.

        Its own runs are booked within a step only.
        """
        return self._agent

    async def run(
        self,
        message: Message,
        deps: Any = None,
        message_history: Sequence[ModelMessage] | None = None,
        model_settings: Settings | None = None,
        tracer: Tracer | None = None,
        **kwargs: Any,
    ) -> ChatResponse[OutputT]:
        """Send a message and wait for the answer.

        Args:
            message: The user's message, as text or as pydantic-ai content (images, documents, …).
            deps: Handed to tools.
            message_history: The conversation so far, for example `response.messages`.
            model_settings: Settings for this run; they win over the configured ones, key by key.
            tracer: Gets a span, three metrics, and the error of a failed run.
            **kwargs: Further arguments of pydantic-ai's `Agent.run`.

        Raises:
            Exception: Whatever pydantic-ai, a tool or the provider raised, unchanged. What was
                spent until then is in the ledger of the `DispatchScope` around the call.
        """
        tracer = tracer if tracer is not None else NoOpTracer()
        history = {
            "has_history": message_history is not None,
            "history_length": len(message_history or ()),
        }
        async with tracer.span(
            "fastroai.agent.run", **self._span_attributes, **history
        ) as trace_id:
            try:
                meter, call = await self._call(
                    message, deps, message_history, model_settings, kwargs
                )
                started = time.perf_counter()
                running = self._agent.run(**call)
                del call  # a thousand that wait would each hold theirs
                with AT_WORK:
                    result = await running
                elapsed = int((time.perf_counter() - started) * 1000)
                response = self._respond(result, result.output, meter, trace_id, elapsed)
            except Exception as error:
                self._explain(error)
                tracer.log_error(trace_id, error)
                raise
            _log_metrics(tracer, trace_id, response)
            return response

    def run_stream(
        self,
        message: Message,
        deps: Any = None,
        message_history: Sequence[ModelMessage] | None = None,
        model_settings: Settings | None = None,
        tracer: Tracer | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[StreamChunk[OutputT]]:
        """Send a message and hand over the answer as it comes; the arguments are those of `run`.

        Each chunk carries what is new: text, or for a structured output a piece of its JSON. The
        last one has no content, `is_final`, and the whole response. Leaving early stops the
        request; what it cost until then is in the books as unsettled. Close the generator when you
        leave it (`contextlib.aclosing`), or Python does so later.
        """
        call = (message, deps, message_history, model_settings, kwargs)

        async def produce(hand_over: HandOver[StreamChunk[OutputT]]) -> None:
            with AT_WORK:
                await self._stream(hand_over, tracer, call)

        return in_own_task(produce)

    async def _stream(
        self,
        hand_over: HandOver[StreamChunk[OutputT]],
        tracer: Tracer | None,
        call_args: tuple[Any, ...],
    ) -> None:
        tracer = tracer if tracer is not None else NoOpTracer()
        async with tracer.span("fastroai.agent.run_stream", **self._span_attributes) as trace_id:
            try:
                meter, call = await self._call(*call_args)
                started = time.perf_counter()
                async with self._agent.run_stream(**call) as stream:
                    async with aclosing(stream_content(stream, meter.output_tools)) as pieces:
                        async for content in pieces:
                            if not await hand_over(StreamChunk(content=content)):
                                return
                    output = stream.get_output()
                    output = await output if isawaitable(output) else output
                elapsed = int((time.perf_counter() - started) * 1000)
                # Only now is the last request settled.
                response = self._respond(stream, output, meter, trace_id, elapsed)
            except Exception as error:
                self._explain(error)
                tracer.log_error(trace_id, error)
                raise
            _log_metrics(tracer, trace_id, response)
            await hand_over(StreamChunk(is_final=True, usage_data=response))

    def as_step(self, prompt: str | Callable[[StepContext[Any]], Any]) -> AgentStepWrapper[OutputT]:
        """This agent as a pipeline step.

        Args:
            prompt: The message, or a plain or coroutine function that makes it from the step's
                context.
        """
        from ..pipelines.agent_step import AgentStepWrapper

        return AgentStepWrapper(self, prompt)

    def _options_of_runs(self, output_type: OutputSpec[OutputT] | None) -> dict[str, Any]:
        """What a ready agent, which was built without them, is given with each run."""
        options = {
            "output_type": output_type,
            "toolsets": self.toolsets or None,
            "instructions": self.config.system_prompt or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _build(self, output_type: OutputSpec[OutputT] | None) -> Agent[Any, OutputT]:
        model = self.config.model
        if isinstance(model, str) and ":" not in model:
            # `test`, or an error that suggests the full name; neither needs a key
            model = infer_model(model)
        return cast(
            "Agent[Any, OutputT]",
            Agent(
                model=model,
                name=self._name,
                system_prompt=self.config.get_effective_system_prompt(),
                toolsets=self.toolsets or None,
                output_type=cast(
                    "OutputSpec[OutputT]", str if output_type is None else output_type
                ),
                defer_model_check=True,
            ),
        )

    def _build_default_model_settings(self) -> dict[str, Any]:
        """What the configuration says about requests; for a ready agent only what was explicitly
        set.
        """
        given = self.config.model_fields_set
        settings: dict[str, Any] = {}
        for name in ("max_tokens", "temperature"):
            if self._is_built or name in given:
                settings[name] = getattr(self.config, name)
        if self.config.timeout is not None:
            settings["timeout"] = self.config.timeout
        return settings

    async def _call(
        self,
        message: Message,
        deps: Any,
        message_history: Sequence[ModelMessage] | None,
        model_settings: Settings | None,
        kwargs: Mapping[str, Any],
    ) -> tuple[RequestMeter, dict[str, Any]]:
        """The books of a run, and the arguments of pydantic-ai's `run` and `run_stream` with which
        its requests are counted, and within a step its answers recorded.
        """
        configured = self._is_built or "max_retries" in self.config.model_fields_set
        meter = RequestMeter(
            self.cost_calculator,
            scope=current_scope() or await scope_outside_of_runs(),
            agent=self._name or (self._agent.name if not self._is_built else None),
            max_retries=self.config.max_retries if configured else None,
        )
        if self.config.cheaper_model is not None:
            meter.cheaper_model = self.config.cheaper_model
        model = self._agent.model if self._is_built else None
        if isinstance(model, str):
            model = self._models.of_running_loop(model)
        call = {
            # Its own agent would look for a name among our variables, for each run again.
            **({"infer_name": False} if self._is_built else self._run_options),
            "user_prompt": message,
            "deps": deps,
            "message_history": message_history,
            "model_settings": self._settings_of_run(model, model_settings),
            **kwargs,
        }
        capabilities = list(kwargs.get("capabilities") or ())
        own_model = None if "model" in kwargs or is_overridden(self._agent) else model
        if own_model is not None and "capabilities" not in kwargs:
            # A capability would cost a run more than all the rest of metering: here the model can
            # stand for it.
            call["model"] = meter.metered(own_model)
        else:
            if own_model is not None:
                call["model"] = own_model
            capabilities.append(meter)
        if meter.journal is not None and (self.toolsets or not self._is_built):
            capabilities.append(ToolJournal(meter.journal))
        if capabilities:
            call["capabilities"] = capabilities
        return meter, call

    def _settings_of_run(self, model: Model | None, given: Settings | None) -> Any:
        """The configured settings with the given ones over them, key by key; a function of the
        run's context stays one.
        """
        defaults = self._build_default_model_settings()
        is_configured = "temperature" in self.config.model_fields_set
        if not is_configured and reasons(model or self._agent.model):
            # nobody asked for it, and the model would only warn that it takes none
            defaults.pop("temperature", None)
        if callable(given):
            return lambda context: {**defaults, **(given(context) or {})}
        return {**defaults, **(given or {})} or None

    def _respond(
        self, result: Any, output: Any, meter: RequestMeter, trace_id: str, processing_time_ms: int
    ) -> ChatResponse[OutputT]:
        return read_response(
            result,
            output,
            entries=meter.entries,
            calculator=self.cost_calculator,
            fallback_model=self._fallback_model,
            output_tools=meter.output_tools,
            trace_id=trace_id,
            processing_time_ms=processing_time_ms,
        )

    def _explain(self, error: Exception) -> None:
        """Name the configured timeout on the error it caused."""
        name, timeout = self.config.timeout_name, self.config.timeout
        if (
            name is not None
            and timeout is not None
            and isinstance(error, TimeoutError | ModelTimeoutError)
        ):
            error.add_note(f"Timeout {name!r}: {timeout:g} s for one request.")

    def _extract_tool_calls(self, result: Any) -> list[dict[str, Any]]:
        return tool_calls_of_run(result)

    def _extract_tool_calls_from_messages(self, messages: Iterable[Any]) -> list[dict[str, Any]]:
        return tool_calls_in(messages)


def __getattr__(name: str) -> Any:
    if name == "AgentStepWrapper":  # published here too; it lives with the pipelines
        from ..pipelines.agent_step import AgentStepWrapper

        return AgentStepWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _configured(config: AgentConfig | None, options: dict[str, Any]) -> AgentConfig:
    if config is None:
        if complaint := complain_of_unknown(options, signature(FastroAgent).parameters):
            raise TypeError(f"FastroAgent got an {complaint}.")
        return AgentConfig(**options)
    if options:
        named = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise TypeError(
            f"FastroAgent got config= and {named} beside it. Put them into the AgentConfig."
        )
    return config


def _log_metrics(tracer: Tracer, trace_id: str, response: ChatResponse[Any]) -> None:
    for name in ("input_tokens", "output_tokens", "cost_microcents"):
        tracer.log_metric(trace_id, name, getattr(response, name))
