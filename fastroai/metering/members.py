"""Models made of models: those of them that send are found where they send."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from itertools import islice
from typing import Any, Final

from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from ..replay.requests import members_asked
from .http_attempts import current_send
from .own_requests import OwnRequest
from .sending_methods import is_of_a_user, replace_methods

Stand = Callable[[Model], Model | None]
"""Gives the model that stands for one that is asked, or None where it is to answer itself."""

_WAYS_OF_ASKING: Final = ("request", "request_stream", "compact_messages")
_SENDS_NOTHING: Final = (WrapperModel, FallbackModel)
_LOOKED_AT: Final = 100
"""Values of a container that are looked at, with each request."""


def is_made_of_models(model: Model) -> bool:
    """Whether a model may have others send: it wraps one, or it is of a user's class that holds
    some or inherits sending.
    """
    if isinstance(model, _SENDS_NOTHING):
        return True
    cls = type(model)
    if not is_of_a_user(cls):
        return False
    return _inherits_sending(cls) or any(holds(Model, value) for value in vars(model).values())


def have_stood_for(stand: Stand) -> None:
    """Have each model that sends ask for the one that stands for it.

    It is put into the classes, because a user's model may ask others that no attribute of it names.
    """
    methods = {name: partial(_stood_for, name, stand) for name in _WAYS_OF_ASKING}
    replace_methods(Model, methods, but=_SENDS_NOTHING, extended=True)


def _stood_for(name: str, stand: Stand, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def asked(self: Model, *args: Any, **kwargs: Any) -> Any:
        send = current_send()
        if send is None or send.model is not self:
            other = None if _is_asking(self) else stand(_Sender(self, name, method))
            if other is not None:
                return getattr(other, name)(*args, **kwargs)
        elif name == "request" and getattr(type(self), name) is not asked:
            # A subclass's own method is sending already, and may do so several times.
            return send.part(method(self, *args, **kwargs))
        return method(self, *args, **kwargs)

    return asked


def _is_asking(model: Model) -> bool:
    own = members_asked.get()
    return isinstance(own, OwnRequest) and own.model is model


def may_only_hand_on(model: Model) -> bool:
    """Whether a model, out of its wrappers, is of a user's class that may have others answer, or
    send by itself.
    """
    return not _inherits_sending(type(model)) and is_made_of_models(model)


@lru_cache(maxsize=1024)
def _inherits_sending(cls: type[Model]) -> bool:
    return any(
        not is_of_a_user(base) and name in base.__dict__
        for base in cls.__mro__
        if base is not Model
        for name in _WAYS_OF_ASKING
    )


class _Sender(WrapperModel):
    """A model as one of its classes sends, without what subclasses make of that."""

    def __init__(self, model: Model, name: str, method: Callable[..., Any]) -> None:
        super().__init__(model)
        setattr(self, name, partial(method, model))


def holds(kinds: type | tuple[type, ...], value: object) -> bool:
    """Whether a value is of given classes, or a plain container of some that are."""
    if isinstance(value, dict):
        value = list(islice(value.values(), _LOOKED_AT))
    # No other iterables: what those do when they are iterated is the user's.
    if isinstance(value, list | tuple | set | frozenset):
        return any(isinstance(item, kinds) for item in list(islice(value, _LOOKED_AT)))
    return isinstance(value, kinds)
