"""What a request will likely count for: its size, and what those before it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..pricing.token_counts import TokenCounts
from ..rate_limits import Amounts
from ..replay.requests import RequestOfModel
from .token_bounds import FOR_TOOLS, PER_REQUEST, tokens_at_most

FIRST_RATIO: Final = 0.3
"""Tokens for each byte that is sent, until some are known."""
FIRST_INPUT: Final = 1000.0
"""Input tokens of a request with files, whose size says nothing of them, until some are known."""
FIRST_OUTPUT: Final = 1000.0
"""More than most have: what is expected too large only makes a slow start."""
SLOWEST: Final = 0.1
"""Weight of the latest request among those that are known."""
MOST_KNOWN: Final = 1000

Asker = tuple[str | None, str]
"""The agent's name, and the model's."""


@dataclass(slots=True)
class _Usual:
    """What the requests of one agent to one model usually come to."""

    requests: int = 0
    ratio: float = FIRST_RATIO
    input_tokens: float = FIRST_INPUT
    output_tokens: float = FIRST_OUTPUT

    def add(self, size: int, tokens: TokenCounts) -> None:
        self.requests += 1
        weight = max(1 / self.requests, SLOWEST)
        self.input_tokens += weight * (tokens.input_tokens - self.input_tokens)
        self.output_tokens += weight * (tokens.output_tokens - self.output_tokens)
        if size:
            self.ratio += weight * (tokens.input_tokens / size - self.ratio)


_usual: dict[Asker, _Usual] = {}
"""Of the process, as later runs know by it what earlier ones found."""


@dataclass(frozen=True, slots=True)
class LikelyTokens:
    """What one request likely counts for.

    Attributes:
        size: Bytes that are sent, about; 0: it can't be told.
        most_output: Tokens of output; None: not limited.
    """

    asker: Asker
    size: int
    most_output: int | None

    @classmethod
    def of(cls, asker: Asker, request: RequestOfModel | None) -> LikelyTokens:
        """Of a request before it is sent; None: nothing is known of it."""
        if request is None:
            return cls(asker, 0, None)
        return cls(asker, _size(request), (request.settings or {}).get("max_tokens"))

    def amounts(self) -> Amounts:
        """What it counts for, by what is known now."""
        usual = _usual.get(self.asker) or _Usual()
        input_tokens = self.size * usual.ratio if self.size else usual.input_tokens
        output_tokens = usual.output_tokens
        if self.most_output is not None:
            output_tokens = min(output_tokens, self.most_output)
        return Amounts.of(input_tokens, output_tokens)

    def learn(self, tokens: TokenCounts) -> None:
        """It came to this."""
        if self.asker not in _usual and len(_usual) >= MOST_KNOWN:
            _usual.pop(next(iter(_usual)), None)
        _usual.setdefault(self.asker, _Usual()).add(self.size, tokens)


def _size(request: RequestOfModel) -> int:
    bound = tokens_at_most(request.messages, {"max_tokens": 0}, request.parameters)
    if bound is None:
        return 0
    tools = request.parameters.function_tools or request.parameters.output_tools
    return max(bound[0] - PER_REQUEST - (FOR_TOOLS if tools else 0), 0)
