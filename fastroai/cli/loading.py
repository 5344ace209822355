"""A pipeline by the name that the command line gives it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..pipelines.pipeline import Pipeline
from .exit_codes import UsageError

AnyPipeline = Pipeline[Any, Any, Any]


def load_pipeline(target: str) -> AnyPipeline:
    """Import a pipeline, from the working directory first.

    Args:
        target: `MODULE:PIPELINE`, or `FILE.py:PIPELINE`.

    Raises:
        UsageError: There is no such module, file or pipeline.
    """
    name, _, attribute = target.rpartition(":")
    if not name or not attribute:
        raise UsageError(f"Expected MODULE:PIPELINE, got {target!r}.")
    module = _import(name)
    found = getattr(module, attribute, None)
    if isinstance(found, Pipeline):
        return found
    raise not_a_pipeline(module, name, attribute)


def not_a_pipeline(module: ModuleType, name: str, attribute: str) -> UsageError:
    """What a module has under the name instead, and which pipelines it has."""
    found = getattr(module, attribute, None)
    problem = f"Module {name!r} has no {attribute!r}."
    if found is not None:
        problem = f"{attribute!r} in module {name!r} is not a Pipeline but {found!r:.80}."
    pipelines = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    return UsageError(f"{problem} Its pipelines: {', '.join(pipelines) or 'none'}.")


def _import(name: str) -> ModuleType:
    folder = Path.cwd()
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.is_file():
            raise UsageError(f"No file {name!r} (working directory: {folder}).")
        folder, name = file.parent, file.stem
    # In front, as `python -m` has it.
    sys.path.insert(0, str(folder))
    prefer(name, folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"No module named {name!r} (searched {folder} and installed packages)."
            ) from error
        raise


def prefer(name: str, folder: Path) -> None:
    """Have a module of a folder win over installed ones of the same name.

    Being first on the path is not enough: a package that was imported before stays, and a folder
    without `__init__.py` loses to any package that has one.
    """
    top, _, rest = name.partition(".")
    spec = PathFinder.find_spec(top, [str(folder)])
    if spec is None or top == "fastroai" or not holds(spec, rest):
        return
    loaded = sys.modules.get(top)
    if loaded is None or origin_of(loaded.__spec__) != origin_of(spec):
        forget(top)
        if spec.origin is None:
            sys.modules[top] = module_from_spec(spec)


def forget(top: str) -> None:
    """Have a module and those in it be imported anew."""
    for name in list(sys.modules):
        if f"{name}.".startswith(f"{top}."):
            del sys.modules[name]


def holds(spec: ModuleSpec, submodule: str) -> bool:
    """Whether a folder is meant: one without `__init__.py` may hold anything."""
    if spec.origin is not None:
        return True
    first = submodule.partition(".")[0]
    places = list(spec.submodule_search_locations or [])
    return bool(first) and PathFinder.find_spec(first, places) is not None


def origin_of(spec: ModuleSpec | None) -> object:
    return spec and (spec.origin, list(spec.submodule_search_locations or []))
