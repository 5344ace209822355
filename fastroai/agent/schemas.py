"""Configuration of an agent, and the response of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from itertools import filterfalse
from typing import Any, Final, Generic

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, model_validator
from pydantic_ai.models import Model
from typing_extensions import TypeVar

from ..ledger.entries import LedgerEntry

DEFAULT_MODEL: Final = "openai:gpt-4o"
DEFAULT_MAX_TOKENS: Final = 4096
DEFAULT_TEMPERATURE: Final = 0.7
DEFAULT_MAX_RETRIES: Final = 3
DEFAULT_SYSTEM_PROMPT: Final = "You are a helpful AI assistant."

OutputT = TypeVar("OutputT", default=Any)


class AgentConfig(BaseModel):
    """How an agent is built and what its requests carry. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    model: str | InstanceOf[Model] = Field(
        default=DEFAULT_MODEL,
        description="`provider:model`, `test`, or a pydantic-ai `Model` instance.",
    )
    cheaper_model: str | InstanceOf[Model] | None = Field(
        default=None,
        description=(
            "What takes a request at the limit of a budget with `at_limit='downgrade'`. None: the "
            "pipeline's."
        ),
    )
    system_prompt: str | None = Field(
        default=None, description="None: the default prompt. An empty string counts."
    )
    max_tokens: int = Field(
        default=DEFAULT_MAX_TOKENS, description="Output tokens a request may produce."
    )
    temperature: float = Field(default=DEFAULT_TEMPERATURE, ge=0.0, le=2.0)
    timeout: float | None = Field(
        default=None,
        gt=0,
        description="Seconds one request may take, passed to the provider's client. None: its own.",
    )
    timeout_name: str | None = Field(
        default=None,
        description="A name for the timeout: shown in spans and as a note on the error it causes.",
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES,
        ge=0,
        description=(
            "Further sends of one model request after a passing failure (HTTP 408, 409, 429, 5xx, "
            "connection); each is a ledger entry. The provider's SDK is told not to send again by "
            "itself."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and (complaint := complain_of_unknown(data)):
            raise ValueError(complaint)
        return data

    def get_effective_system_prompt(self) -> str:
        """The system prompt, or the default one when none was set."""
        return DEFAULT_SYSTEM_PROMPT if self.system_prompt is None else self.system_prompt

    @property
    def model_label(self) -> str:
        """The model as `provider:model`, whether it was given as a name or as an instance."""
        return self.model if isinstance(self.model, str) else self.model.model_id


def complain_of_unknown(options: Iterable[Any], arguments: Iterable[str] = ()) -> str | None:
    """A message that names the options which are no field of `AgentConfig`; None: all are known.

    Args:
        options: Their names.
        arguments: What else is known where they were given.
    """
    known = [*AgentConfig.model_fields, *(name for name in arguments if name != "options")]
    unknown = map(str, filterfalse(known.__contains__, options))
    named = ", ".join(with_hint(name, known) for name in unknown)
    return f"unknown option {named}; known are {', '.join(known)}" if named else None


def with_hint(name: str, known: Sequence[str]) -> str:
    """A name, with one that is known and may have been meant."""
    near = get_close_matches(name, known, n=1)
    return f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)


class ChatResponse(BaseModel, Generic[OutputT]):
    """The outcome of one agent call.

    Tokens and cost are those of every request the call really sent, its retries and failed tool
    rounds included.
    """

    model_config = ConfigDict(protected_namespaces=(), defer_build=True)

    output: OutputT
    content: str
    """The output as text."""
    model: str | None
    """The model that answered last, as the provider names it."""
    input_tokens: int
    """Includes cached and audio tokens."""
    output_tokens: int
    total_tokens: int
    cost_microcents: int
    """In 1e-6 USD, rounded once from `cost_usd`.

    0 where no price is known; `cost_usd` is None then.
    """
    processing_time_ms: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_audio_read_tokens: int = 0
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    """Tools the model called: `tool_name`, `args` (a dict), `tool_call_id`.

    Calls that only carry output: left out.
    """
    tool_call_count: int = 0
    request_count: int = 1
    """Requests sent, refused ones included."""
    trace_id: str | None = None
    usage_details: dict[str, int] = Field(default_factory=dict)
    """Further counters of the provider, by its names."""
    cost_usd: Decimal | None = None
    """Exact cost in USD of the requests whose price is known; None when none is."""
    entries: tuple[LedgerEntry, ...] = Field(default=(), repr=False)
    """One entry for each request sent; empty when the agent could not be metered."""
    messages: list[Any] = Field(default_factory=list, repr=False, exclude=True)
    """The conversation so far, pydantic-ai messages: pass it as `message_history` to go on.

    Not serialised.
    """

    @property
    def cost_dollars(self) -> float:
        """Cost in USD, for display."""
        return self.cost_microcents / 1_000_000


class StreamChunk(BaseModel, Generic[OutputT]):
    """A piece of a streamed answer. Concatenated, the `content` of all chunks is the answer."""

    model_config = ConfigDict(defer_build=True)

    content: str = ""
    """New text: the answer's, or for a structured output a piece of its JSON."""
    is_final: bool = False
    usage_data: ChatResponse[OutputT] | None = None
    """The whole response; on the final chunk only."""
