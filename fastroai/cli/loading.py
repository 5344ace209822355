"""A pipeline by the name that the command line gives it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ..pipelines.deps import DepsFactory
from ..pipelines.pipeline import Pipeline
from .exit_codes import UsageError

if TYPE_CHECKING:
    from ..executors.prefect import PipelineFlow

AnyPipeline = Pipeline[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """What the command line names.

    Attributes:
        pipeline: The pipeline, or the one whose flow is named.
        module: Where it was found.
        deps_factory: Of the flow that is named, or of the one in the module that is the pipeline's.
    """

    pipeline: AnyPipeline
    module: ModuleType
    deps_factory: DepsFactory | None = None


def load_pipeline(target: str) -> AnyPipeline:
    """Import a pipeline, as `load_target`."""
    return load_target(target).pipeline


def load_target(target: str) -> Target:
    """Import a pipeline, from the working directory first.

    Args:
        target: `MODULE:PIPELINE`, or `FILE.py:PIPELINE`; for a pipeline also one of its flows.

    Raises:
        UsageError: There is no such module, file or pipeline.
    """
    name, _, attribute = target.rpartition(":")
    if not name or not attribute:
        raise UsageError(f"Expected MODULE:PIPELINE, got {target!r}.")
    module = load_module(name)
    found = getattr(module, attribute, None)
    if isinstance(found, Pipeline):
        factories = (one.deps_factory for one in flows_in(module) if one.pipeline is found)
        return Target(found, module, next(filter(None, factories), None))
    for flow in flows_in(module):
        if flow is found:
            return Target(flow.pipeline, module, flow.deps_factory)
    raise not_a_pipeline(module, name, attribute)


def load_factory(name: str, module: ModuleType) -> DepsFactory:
    """What `--deps` names: `MODULE:FACTORY`, `FILE.py:FACTORY`, or `FACTORY` of the pipeline's own
    module.

    Raises:
        UsageError: There is no such module, file or function.
    """
    place, _, attribute = name.rpartition(":")
    where = load_module(place) if place else module
    found = getattr(where, attribute, None)
    if callable(found):
        return cast("DepsFactory", found)
    problem = "is nothing that can be called" if hasattr(where, attribute) else "is not there"
    raise UsageError(
        f"--deps {name!r}: {attribute!r} {problem}. Name a function without arguments that makes "
        "the deps, as MODULE:FACTORY."
    )


def flows_in(module: ModuleType) -> list[PipelineFlow]:
    """The flows that a module made of pipelines."""
    # Who has made one has loaded this module; nobody else needs Prefect for it.
    prefect = sys.modules.get("fastroai.executors.prefect")
    if prefect is None:
        return []
    return [value for value in vars(module).values() if isinstance(value, prefect.PipelineFlow)]


def not_a_pipeline(module: ModuleType, name: str, attribute: str) -> UsageError:
    """What a module has under the name instead, and which pipelines it has."""
    found = getattr(module, attribute, None)
    problem = f"Module {name!r} has no {attribute!r}."
    if found is not None:
        problem = f"{attribute!r} in module {name!r} is not a Pipeline but {found!r:.80}."
    flows = {id(flow) for flow in flows_in(module)}
    pipelines = [
        key
        for key, value in vars(module).items()
        if isinstance(value, Pipeline) or id(value) in flows
    ]
    similar = get_close_matches(attribute, pipelines, n=1)
    meant = f" Did you mean {similar[0]!r}?" if similar else ""
    return UsageError(f"{problem}{meant} Its pipelines: {', '.join(pipelines) or 'none'}.")


def load_module(name: str) -> ModuleType:
    """Import a module by its name, or a file.

    Raises:
        UsageError: It is not there.
    """
    folder = Path.cwd()
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.is_file():
            raise UsageError(f"No file {name!r} (working directory: {folder}).")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))  # what the file imports may be named from here, too
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
