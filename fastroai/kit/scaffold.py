"""`fastroai init`: the files of a new project, and of what an existing one lacks to be deployed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template

from ..errors import ProjectError
from ..version import __version__
from .found_pipelines import FoundPipeline, find_pipelines

SUFFIX = ".template"
ENTRYPOINTS = PurePosixPath("deployments/entrypoints.py")
_HERE = PurePosixPath()
ENVIRONMENTS = ("dev", "staging", "production")

_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_QUESTION = """inputs:
        question: When do parcels arrive?
        tone: friendly
        passages: 3"""


@dataclass(frozen=True, slots=True)
class Written:
    """What `init` did.

    Attributes:
        folder: The project's.
        made: Files that were written, by their paths in it.
        kept: Files that were there already, and are as they were.
        flows: Names of the flows that prefect.yaml deploys.
    """

    folder: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    flows: tuple[str, ...]


def new_project(folder: Path) -> Written:
    """Write a project that runs, passes its tests and can be deployed as it is.

    Args:
        folder: New, or empty; its name is the project's.

    Raises:
        ProjectError: The name can't be used, or something is in the folder.
    """
    name = checked_name(folder.absolute().name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(
            f"{str(folder)!r} exists and is not an empty folder. Give another name, or add what is "
            "missing to a project that has pipelines: `fastroai init --existing` in its folder."
        )
    flows = {"support": Flow("Answers a question out of the handbook.", _QUESTION)}
    contents = {**_template("project", name), **_template("deployment", name, flows)}
    return _write(folder, contents, flows)


def add_deployment(folder: Path) -> Written:
    """Write what a project with pipelines lacks to be deployed; no file that is there is changed.

    Args:
        folder: Whose Python files are looked through for pipelines.

    Raises:
        ProjectError: There is none in it.
    """
    found = find_pipelines(folder) if folder.is_dir() else []
    if not found:
        raise ProjectError(
            f"No pipeline was found in {str(folder)!r}: no Python file there has a line like "
            "`pipeline = Pipeline(…)`. Start a new project with `fastroai init NAME`."
        )
    plain = re.sub("[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-") or "project"
    flows = {one.identifier: Flow(f"Pipeline {one.name!r}.", "") for one in found}
    contents = _template("deployment", plain, flows)
    contents[ENTRYPOINTS] = entrypoints_of(found)
    return _write(folder, contents, flows)


@dataclass(frozen=True, slots=True)
class Flow:
    """What prefect.yaml says of a flow.

    Attributes:
        parameters: YAML, as it is indented there; empty: none.
    """

    description: str
    parameters: str


def checked_name(name: str) -> str:
    """A name for a project, its work pools and its image.

    Raises:
        ProjectError: It can't be one.
    """
    if _NAME.fullmatch(name) is None:
        raise ProjectError(
            f"{name!r} can't name a project: use lower-case letters, digits and dashes, for "
            "example invoice-digest."
        )
    return name


def entrypoints_of(found: Sequence[FoundPipeline]) -> str:
    """A module with a flow for each pipeline."""
    imports = [f"from {one.module} import {one.variable} as {one.alias}" for one in found]
    flows = [f"{one.identifier} = {one.alias}.to_flow()" for one in found]
    return "\n".join(
        [
            '"""Flows that prefect.yaml deploys."""\n',
            "from __future__ import annotations\n",
            *sorted(imports),
            "",
            "# A pipeline with deps needs what makes them: to_flow(deps_factory=make_deps).",
            *flows,
            "",
        ]
    )


def _template(
    part: str, name: str, flows: dict[str, Flow] | None = None
) -> dict[PurePosixPath, str]:
    """The files of a part of the template, by their paths in the project."""
    values = {"name": name, "version": __version__}
    if flows is not None:
        values["flows"] = "\n".join(_definition(flow, said) for flow, said in flows.items())
        values["deployments"] = "\n".join(
            f"  - <<: [*{flow}, *{environment}]" for flow in flows for environment in ENVIRONMENTS
        )
    root = files(__package__) / "template" / part
    return {
        _path(relative): Template(source.read_text(encoding="utf-8")).substitute(values)
        for relative, source in _walk(root)
    }


def _walk(
    folder: Traversable, at: PurePosixPath = _HERE
) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, at / entry.name)
        elif entry.name.endswith(SUFFIX):
            yield at / entry.name, entry


def _path(template: PurePosixPath) -> PurePosixPath:
    """Where a file of the template goes: hidden ones are not hidden there."""
    return template.with_name(template.name.removesuffix(SUFFIX).removeprefix("dot"))


def _definition(flow: str, said: Flow) -> str:
    lines = [
        f"  {flow}: &{flow}",
        f"    entrypoint: {ENTRYPOINTS}:{flow}",
        f"    description: {said.description}",
    ]
    if said.parameters:
        lines += ["    parameters:", f"      {said.parameters}"]
    else:
        lines.append("    parameters: {}  # what a schedule runs it with: {inputs: {field: value}}")
    return "\n".join([*lines, ""])


def _write(folder: Path, contents: dict[PurePosixPath, str], flows: dict[str, Flow]) -> Written:
    made: list[str] = []
    kept: list[str] = []
    for relative, text in sorted(contents.items()):
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except FileExistsError:
            kept.append(str(relative))
        else:
            made.append(str(relative))
    return Written(folder, tuple(made), tuple(kept), tuple(flows))
