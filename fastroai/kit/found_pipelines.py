"""Pipelines in the Python files of a folder, found without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_LOOKED_IN = frozenset({"build", "dist", "node_modules", "site-packages", "tests", "venv"})


@dataclass(frozen=True, slots=True)
class FoundPipeline:
    """A line like `pipeline = Pipeline("name", …)` at the level of a module.

    Attributes:
        module: Its module, as it is imported from the folder.
        variable: The name it has there.
        name: The pipeline's own, or the variable's where it is no plain text.
        identifier: A Python name that no other of them has.
    """

    module: str
    variable: str
    name: str
    identifier: str

    @property
    def alias(self) -> str:
        """What it is imported as."""
        return f"{self.identifier}_pipeline"


def find_pipelines(folder: Path) -> list[FoundPipeline]:
    """The pipelines of a folder and those below it, by module."""
    found: dict[str, FoundPipeline] = {}
    for path in sorted(python_files(folder)):
        module = module_of(path.relative_to(folder))
        for variable, name in pipelines_in(path):
            short = module.rpartition(".")[2] if variable == "pipeline" else variable
            identifier = short if short not in found else module.replace(".", "_") + f"_{variable}"
            found[identifier] = FoundPipeline(module, variable, name or variable, identifier)
    return list(found.values())


def python_files(folder: Path) -> Iterator[Path]:
    """Those that can be imported from a folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name.isidentifier() and entry.name not in _NOT_LOOKED_IN:
            yield from python_files(entry)
        elif entry.suffix == ".py" and entry.stem.isidentifier():
            yield entry


def module_of(path: Path) -> str:
    """The module in a file, by its path from where it is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def pipelines_in(path: Path) -> Iterator[tuple[str, str | None]]:
    """Each pipeline's variable, and its name where it is a plain text."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # whatever it is, it can't be imported either
        return
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=variable)], value=ast.Call() as call):
                pass
            case ast.AnnAssign(target=ast.Name(id=variable), value=ast.Call() as call):
                pass
            case _:
                continue
        if ast.unparse(call.func).partition("[")[0].rpartition(".")[2] == "Pipeline":
            yield variable, named(call)


def named(call: ast.Call) -> str | None:
    """The name that a pipeline is given."""
    keywords = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    match [*call.args, *keywords]:
        case [ast.Constant(value=str(name)), *_]:
            return name
    return None
