"""Names of a package that are imported when they are asked for (PEP 562)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def import_without_collecting(name: str, package: str | None = None) -> ModuleType:
    """As `importlib.import_module`; Python looks for garbage only afterwards.

    Next to nothing of what is imported is garbage, and to walk through all of it again and again
    while it comes together takes 0.13 of the 1.9 s until a flow's first step begins.
    """
    if not gc.isenabled():
        return import_module(name, package)
    gc.disable()
    try:
        return import_module(name, package)
    finally:
        gc.enable()


def lazy_names(
    package: str, origins: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`, so that importing it imports none of its parts.

    Beside it, the package imports the same names under `TYPE_CHECKING`: those are what type
    checkers and editors read.

    Args:
        package: Its `__name__`.
        origins: What is imported from where: names, divided by spaces, by their module, which is
            named from the package: `".schemas"`. The package's own modules are found as its
            attributes, too, as they are once something has imported them.
    """
    modules = {name: module for module, names in origins.items() for name in names.split()}
    parts = {module[1:].partition(".")[0] for module in origins if not module.startswith("..")}

    def load(name: str) -> Any:
        if name in modules:
            value = getattr(import_without_collecting(modules[name], package), name)
        elif name in parts:
            value = import_without_collecting(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # From now on, Python finds it by itself.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *parts})

    return load, names
