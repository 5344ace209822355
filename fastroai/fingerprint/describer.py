"""Describer: the protocol by which agents, classes and values have their parts described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .code_origin import CodeOrigin


class Describer(Protocol):
    """Turns objects into plain lists that are the same in every process."""

    def value(self, value: object) -> object:
        """Data by its content, code by what it does, anything else by its type's name."""
        ...

    def root(self, value: object) -> object:
        """An object together with its own home, in which code is followed."""
        ...

    def once(self, value: object, describe: Callable[[], object]) -> object:
        """A description, or for an object that was described before, its number."""
        ...

    def hint(self, hint: object) -> object:
        """A type with its schema and the code of its classes."""
        ...

    def parts(self, hint: object) -> object:
        """The code of the classes and validators in a type."""
        ...

    def is_own(self, cls: type) -> bool:
        """Whether a class belongs to the code that is followed."""
        ...

    def follows(self, home: CodeOrigin) -> bool:
        """Whether code of this origin is followed."""
        ...

    def holds(self, module: str) -> bool:
        """Whether a module of that name belongs to the code that is followed."""
        ...
