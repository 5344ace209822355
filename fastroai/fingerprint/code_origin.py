"""Origin of code: own code is followed by a fingerprint, libraries count by name."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

_LIBRARIES = frozenset({"fastroai", "prefect", "pydantic", "pydantic_ai"})
_PYTHONS_FOLDER = os.path.dirname(os.path.abspath(os.__file__))


@dataclass(frozen=True)
class CodeOrigin:
    """A top-level package, or the folder of modules that are in none.

    Attributes:
        name: The package's name, or the folder's path.
        root: The folder that holds it; "" where there is none. Paths in it are told relative to it.
        is_library: Whether it is Python's or ours, which are never followed: another version is no
            other step.
    """

    name: str
    root: str
    is_library: bool = False

    def holds(self, module: str) -> bool:
        """Whether a module of that name is at home here; nothing is imported to find out."""
        top = module.partition(".")[0]
        if self.is_library:
            return False
        if not self.root or self.name != self.root:
            return top == self.name
        return any(os.path.exists(os.path.join(self.root, top + ending)) for ending in ("", ".py"))

    def place(self, text: str) -> str:
        """A text, or where it is a path in this home or above it, the path without what only this
        machine has.
        """
        is_path = len(text) > 1 and os.path.isabs(text) and "\n" not in text
        if not self.root or not is_path:
            return text
        path = os.path.normpath(text)
        if path == self.root or path.startswith(self.root + os.sep):
            return "<home>" + path[len(self.root) :].replace(os.sep, "/")
        if self.root.startswith(path + os.sep):
            return "<home>" + "/.." * self.root[len(path) :].count(os.sep)
        return text


def origin_of_function(function: FunctionType) -> CodeOrigin:
    """The home of the module whose globals a function reads, whatever a decorator wrote on it."""
    return _home(*located(function.__globals__))


def origin_of_class(cls: type) -> CodeOrigin:
    """The home of the module that defines a class."""
    module = sys.modules.get(cls.__module__)
    return _home(cls.__module__, None, False) if module is None else _home(*located(vars(module)))


def origin_of_module(module: ModuleType) -> CodeOrigin:
    """The home of a module."""
    return _home(*located(vars(module)))


def located(module: Mapping[str, Any]) -> tuple[str, str | None, bool]:
    name = str(module.get("__name__", "__main__"))
    spec = module.get("__spec__")
    if name == "__main__" and spec is not None:  # python -m package.module
        name = spec.name
    return name, module.get("__file__"), "__path__" in module


@functools.lru_cache(maxsize=1024)
def _home(name: str, file: str | None, is_package: bool) -> CodeOrigin:
    package = name.partition(".")[0]
    if package in _LIBRARIES or is_pythons(package, file):
        return CodeOrigin(package, "", is_library=True)
    if is_package or "." in name:
        return CodeOrigin(package, folder_of(package))
    if file is None:
        return CodeOrigin(package, "")
    folder = os.path.dirname(os.path.abspath(file))
    return CodeOrigin(folder, folder)


def folder_of(package: str) -> str:
    """The folder that holds a package; empty where it is in none."""
    paths = list(getattr(sys.modules.get(package), "__path__", []))
    return os.path.dirname(os.path.abspath(paths[0])) if paths else ""


def is_pythons(package: str, file: str | None) -> bool:
    """Whether a module is of the standard library; one of somebody else's may have such a name
    too.
    """
    if package not in sys.stdlib_module_names or package == "__main__":
        return False
    return file is None or os.path.abspath(file).startswith(_PYTHONS_FOLDER + os.sep)
