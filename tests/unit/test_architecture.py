"""What holds the house together: the contracts of pyproject.toml, and what they can't say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_the_environment_is_read_in_one_place() -> None:
    readers = [
        f"{module}:{line} reads the environment"
        for module, path in MODULES.items()
        if module.startswith("fastroai")
        and module not in ("fastroai.environment", "fastroai.settings")
        for line in environment_reads(ast.parse(path.read_text()))
    ]
    assert readers == []


ENTRIES = {
    "agent.models": "an agent is made by a user, and its model with OpenAI's key",
    "cli.run_list": "a command",
    "cli.runs": "a command",
    "executors": "get_executor",
    "executors._prefect.flow": "a flow of to_flow, called by anybody",
    "executors.prefect": "execute",
    "executors.session": "open_session",
    "executors.stored_results": "reading, explaining and pruning results",
    "kit.doctor": "a command",
    "ledger.recorder": "a recorder made by hand",
    "metering.scope": "an agent that is called by itself",
    "pricing.calculator": "a calculator is made by a user, outside of runs",
    "settings": "what is secret",
}
"""The modules that read settings, and why each of them begins something."""


def test_settings_are_read_where_something_begins_and_handed_down_from_there() -> None:
    readers = {
        module.removeprefix("fastroai.")
        for module, path in MODULES.items()
        if module.startswith("fastroai")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "load_settings"
    }
    assert readers == set(ENTRIES)


def test_all_state_of_the_process_has_its_reason_beside_it() -> None:
    """Context variables, caches and locks of a module: a comment at them, or a string below."""
    bare = [
        f"{module}:{line}"
        for module, path in MODULES.items()
        if module.startswith("fastroai")
        for line in states_without_reason(path.read_text())
    ]
    assert bare == []


def states_without_reason(source: str) -> Iterator[int]:
    """The lines on which a module makes something that it changes later, and doesn't say why."""
    tree, lines = ast.parse(source), ["", *source.splitlines()]
    changed = {
        name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names
    }
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if ast.unparse(target) not in changed and not _is_state(statement.value):
            continue
        is_commented = "#" in lines[statement.lineno - 1] + lines[statement.lineno]
        is_described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if not is_commented and not is_described:
            yield statement.lineno


def _is_state(value: ast.expr) -> bool:
    """Whether a value is an empty container, or of a class that is there to be changed."""
    if isinstance(value, ast.Dict | ast.List):
        return ast.unparse(value) in {"{}", "[]"}
    if not isinstance(value, ast.Call):
        return False
    made = ast.unparse(value.func).rpartition(".")[2]
    if made in {"set", "dict", "list"}:
        return not value.args
    return made in {"ContextVar", "Lock", "RLock", "OpenLedgers"} or made.startswith("Weak")


@pytest.mark.parametrize("made", ["{}", "set()", "ContextVar('x')", "threading.Lock()"])
def test_state_without_a_reason_is_found(made: str) -> None:
    assert list(states_without_reason(f"a = 1\n\n_kept = {made}\nb = 2\n")) == [3]
    assert list(states_without_reason(f"a = 1\n\n_kept = {made}\n'Why.'\n")) == []
    assert list(states_without_reason(f"# why\n_kept = {made}\n")) == []
    assert list(states_without_reason("_kept = None\ndef f():\n    global _kept\n")) == [1]


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
