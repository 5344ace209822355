"""An agent on a scripted model at fixed prices: what it is asked is counted, what it costs is
known.
"""

from __future__ import annotations

import copyreg
from typing import Any
from weakref import WeakKeyDictionary

from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent
from fastroai.testing import Reply, ScriptedModel, fixed_prices
from tests.support.shared import SharedList

INPUT_TOKENS = 100
OUTPUT_TOKENS = 50
COST = 200
"""Microcents of one request: 100 input tokens at $1, 50 output tokens at $2 a million."""


_made_of: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""What agents and models were made of that may go to other processes. They are of no class of their
own, which might be other ones for what looks at them.
"""


class _Elsewhere(ScriptedModel):
    """What a scripted model is in another process: it goes on with the same script."""

    def __init__(
        self, replies: tuple[Reply, ...], options: dict[str, Any], prompts: Any, taken: SharedList
    ) -> None:
        super().__init__(*replies, **options)
        self.prompts = prompts
        self._taken = taken

    def _next_reply(self) -> Reply:
        self._given = self._taken.append(None)
        return super()._next_reply()


def shared_model(*replies: Reply, **options: Any) -> ScriptedModel:
    """A scripted model that answers in whichever process; `prompts` are those of all."""
    model = ScriptedModel(*replies, **options)
    model.prompts = SharedList()  # type: ignore[assignment]  # reads like a list
    _made_of[model] = {
        "replies": replies,
        "options": options,
        "prompts": model.prompts,
        "taken": SharedList(),
    }
    return model


def shared_agent(**options: Any) -> FastroAgent[Any]:
    """An agent that is made anew, of the same model, where it is unpickled."""
    agent: FastroAgent[Any] = FastroAgent(**options)
    _made_of[agent] = options
    return agent


def _reduced(shared: Any) -> Any:
    if shared not in _made_of:
        return shared.__reduce_ex__(4)
    kind = shared_agent if isinstance(shared, FastroAgent) else _Elsewhere
    return _made_again, (kind, _made_of[shared])


def _made_again(kind: Any, options: dict[str, Any]) -> Any:
    return kind(**options)


copyreg.pickle(FastroAgent, _reduced)
copyreg.pickle(ScriptedModel, _reduced)


def counted_agent(*answers: Any, **options: Any) -> tuple[FastroAgent[Any], ScriptedModel]:
    """An agent, and the model whose `prompts` are the requests that reached it; the last answer is
    given again.
    """
    usage = RequestUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    model = shared_model(*(answers or ("answer",)), usage=usage, repeat=True)
    prices = fixed_prices()
    return shared_agent(model=model, name="counted", cost_calculator=prices, **options), model
