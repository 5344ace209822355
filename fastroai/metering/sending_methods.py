"""Replaces methods of a class and of all its subclasses, those that are defined later too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

Replace = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Gives what stands in a class for one of its functions."""

MARK: Final = "__wrapped_by_fastroai__"
_REPLACED: Final = "__replaced_by_fastroai__"


def replace_methods(
    base: type[Any],
    methods: Mapping[str, Replace],
    *,
    but: tuple[type, ...] = (),
    extended: bool = False,
) -> None:
    """Replace methods wherever a subclass of `base` defines them; once, however often it is called.

    It is put into the classes, because whoever has an object of them may call it: an agent, one of
    pydantic-ai's functions, a step's own code.

    Args:
        base: A class of pydantic-ai, whose own methods are abstract.
        methods: By name, what stands for each.
        but: Subclasses that are left alone, with those of them.
        extended: Also where a user's class extends a method that is replaced.
    """
    replaced = vars(base).get(_REPLACED, frozenset())
    if replaced.issuperset(methods):
        return
    setattr(base, _REPLACED, replaced.union(methods))
    # As it is found on the base: its own, or what it inherits.
    define = vars(base).get("__init_subclass__", classmethod(_defined_by_the_next(base)))

    def defined(cls: type[Any], /, **options: Any) -> None:
        define.__get__(None, cls)(**options)
        _replace_in(cls, methods, but, extended)

    # In this way mypy sees no assignment to a method.
    setattr(base, "__init_subclass__", classmethod(defined))  # noqa: B010
    for cls in _subclasses(base):
        _replace_in(cls, methods, but, extended)


def _defined_by_the_next(base: Any) -> Callable[..., None]:
    def defined(cls: Any, /, **options: Any) -> None:
        super(base, cls).__init_subclass__(**options)

    return defined


def as_written(function: Any) -> Any:
    """A function as its source has it, without what stands for it here."""
    while hasattr(function, MARK) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _replace_in(
    cls: type[Any], methods: Mapping[str, Replace], but: tuple[type, ...], extended: bool
) -> None:
    if issubclass(cls, but):
        return
    for name, replace in methods.items():
        method = cls.__dict__.get(name)
        is_extended = not extended and _sends_by_its_base(cls, name)
        if method is None or hasattr(method, MARK) or is_extended or _is_abstract(method):
            continue
        replaced = replace(method)
        if replaced is not method:
            setattr(replaced, MARK, True)
            setattr(cls, name, replaced)


def _is_abstract(method: object) -> bool:
    return getattr(method, "__isabstractmethod__", False)


def _sends_by_its_base(cls: type[Any], name: str) -> bool:
    """Whether a user's class extends a sending one: it may answer without asking that."""
    if is_of_pydantic_ai(cls):
        return False
    return any(hasattr(vars(base).get(name), MARK) for base in cls.__mro__[1:])


def is_of_pydantic_ai(cls: type[Any]) -> bool:
    return cls.__module__.startswith("pydantic_ai.")


@lru_cache(maxsize=1024)
def is_of_a_user(cls: type[Any]) -> bool:
    return not cls.__module__.startswith(("pydantic_ai.", "fastroai."))


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
