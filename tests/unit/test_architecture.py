"""What holds the house together: the contracts of pyproject.toml, and what they can't say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import forked

ROOT = Path(__file__).parents[2]

ADAPTERS = ("fastroai.executors.prefect", "fastroai.executors._prefect")
"""Where Prefect may be imported when the module is."""


def modules() -> dict[str, Path]:
    """Our modules by dotted name."""
    found: dict[str, Path] = {}
    for package in ("fastroai", "flows", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def test_the_contracts_of_imports_hold() -> None:
    """Layers, homes and circles: `[tool.importlinter]` in pyproject.toml."""
    # In a process of its own: it switches off the loggers of the one it runs in.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_outside_the_adapters_imports_prefect_when_it_is_imported() -> None:
    outside = [
        name
        for name in MODULES
        if not name.startswith((*ADAPTERS, "deployments")) and not name.endswith("__main__")
    ]
    program = f"""
import importlib, sys
for name in {outside}:
    importlib.import_module(name)
    assert "prefect" not in sys.modules, f"{{name}} imports Prefect"
"""
    command = [sys.executable, "-c", program]
    done = forked.run(command, kind=forked.BARE, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_settings_reads_the_environment() -> None:
    readers = [
        f"{module}:{line} reads the environment"
        for module, path in MODULES.items()
        if module.startswith("fastroai") and module != "fastroai.settings"
        for line in environment_reads(ast.parse(path.read_text()))
    ]
    assert readers == []


def test_every_module_says_in_a_line_what_it_is_for() -> None:
    wrong = [
        name
        for name, path in MODULES.items()
        if (tree := ast.parse(path.read_text())).body and not says_what_it_is_for(tree, name)
    ]
    assert wrong == []


def environment_reads(tree: ast.AST) -> Iterator[int]:
    """The lines on which a module takes something from its environment."""
    names = {"environ", "environb", "getenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in names and ast.unparse(node.value) == "os":
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in names)


def says_what_it_is_for(tree: ast.Module, name: str) -> bool:
    """Whether the docstring starts with a whole sentence, and is short."""
    first, _, rest = (ast.get_docstring(tree) or "").partition("\n")
    # The error tree is drawn in its module's docstring.
    short = name == "fastroai.errors" or len(rest.splitlines()) <= 6
    return short and (first.endswith((".", "…")) or ":" in first)
