"""What the loopback provider can be told to do with a request."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer, billed. `tool` names a function to call, with its arguments, instead of a text.

    Attributes:
        slowest: Seconds; each answer takes a random part of them.
        left_after: Words of a stream after which the provider waits until the client has left. An
            answer in one piece is then kept back from the start.
    """

    text: str = "Hello from the loopback provider."
    tool: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    input_tokens: int = 120
    output_tokens: int = 30
    cached_tokens: int = 0
    reports_usage: bool = True
    slowest: float = 0.0
    left_after: int | None = None


@dataclass(frozen=True)
class Refuse:
    """An HTTP error, not billed."""

    status: int = 429
    retry_after_ms: int | None = 1
    code: str = "refused_by_script"


@dataclass(frozen=True)
class Hang:
    """Accepts the request, bills it, and never answers."""

    input_tokens: int = 120


@dataclass(frozen=True)
class Die:
    """Bills the request, sends the first words of a stream, and cuts the connection."""

    words: int = 2
    input_tokens: int = 120
    output_tokens: int = 30


@dataclass(frozen=True)
class Expire:
    """A request of a batch that is not run before the batch expires; not billed."""

    slowest: float = 0.0


@dataclass(frozen=True)
class Turns:
    """Answers a conversation by the tool results it holds already, so that one begun again gets the
    same answers.
    """

    answers: tuple[Answer, ...]


Behaviour = Answer | Refuse | Hang | Die | Expire | Turns
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Answer, Refuse, Hang, Die, Expire, Turns)
}


def to_json(behaviour: Behaviour) -> dict[str, Any]:
    """A behaviour as plain JSON."""
    return {"kind": type(behaviour).__name__, **asdict(behaviour)}


def from_json(data: dict[str, Any]) -> Behaviour:
    """A behaviour from `to_json`."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    if data["kind"] == Turns.__name__:
        fields["answers"] = tuple(Answer(**answer) for answer in fields["answers"])
    behaviour: Behaviour = _KINDS[data["kind"]](**fields)
    return behaviour
