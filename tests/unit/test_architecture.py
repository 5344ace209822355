"""The floors: a module imports its own floor or a lower one, and some imports have one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS: list[tuple[str, int]] = [
    ("fastroai.errors", 0),
    ("fastroai.settings", 0),
    ("fastroai.redaction", 0),
    ("fastroai.providers", 0),
    ("fastroai.pricing", 1),
    ("fastroai.database", 1),
    ("fastroai.serialization", 1),
    ("fastroai.tracing", 1),
    ("fastroai.tools", 1),
    ("fastroai.ledger", 2),
    ("fastroai.usage", 2),
    ("fastroai.leases", 2),
    ("fastroai.storage", 2),
    ("fastroai.replay", 3),
    ("fastroai.metering", 3),
    ("fastroai.agent", 4),
    ("fastroai.pipelines", 5),
    ("fastroai.fingerprint", 5),
    # Names of executors by choice, the protocol, and what both executors share.
    ("fastroai.executors", 6),
    ("fastroai.executors.in_memory", 7),
    ("fastroai.executors.prefect", 7),
    ("fastroai.executors.stored_results", 7),
    ("fastroai.executors._prefect", 7),
    ("fastroai.simulation", 7),
    ("fastroai.testing", 7),
    ("fastroai.cli", 8),
    ("fastroai.__main__", 8),
    ("fastroai", 8),
    ("flows", 8),
    ("deployments", 8),
]
"""The longest matching name counts."""

UPWARD: set[tuple[str, str]] = {
    # Pipeline.execute and Pipeline.to_flow: the definition asks for the engine when it is run.
    ("fastroai.pipelines.pipeline", "fastroai.executors"),
    # PipelineExecutor, the published name of the engine in process.
    ("fastroai.pipelines.executor", "fastroai.executors.in_memory"),
    # FastroAgent.as_step, and AgentStepWrapper as a name of fastroai.agent.
    ("fastroai.agent.agent", "fastroai.pipelines.agent_step"),
    ("fastroai.agent", "fastroai.pipelines.agent_step"),
}
"""(module, what it imports from above), each inside a function.

`fastroai.executors` loads executors by name.
"""

HOMES: dict[str, tuple[str, ...]] = {
    "prefect": ("fastroai.executors.prefect", "fastroai.executors._prefect"),
    "prefect_aws": ("fastroai.executors.prefect", "fastroai.executors._prefect"),
    "genai_prices": ("fastroai.pricing.price_list", "fastroai.pricing.max_cost"),
    "sqlite3": ("fastroai.database", "fastroai.ledger.store", "fastroai.leases"),
    "sqlalchemy": ("fastroai.database", "fastroai.ledger.store", "fastroai.leases"),
}
"""Packages with one home in fastroai/."""


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    importer: str
    target: str
    line: int
    lazy: bool
    """Inside a function."""
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Our modules by dotted name."""
    found: dict[str, Path] = {}
    for package in ("fastroai", "flows", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> list[Import]:
    """What a module imports, submodules told from names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_walk(ast.parse(path.read_text()), module, package, lazy=False, typing_only=False))


def _walk(
    node: ast.AST, module: str, package: str, *, lazy: bool, typing_only: bool
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        in_function = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_typing = typing_only or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        )
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, lazy, typing_only)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, package)
            for alias in child.names:
                submodule = f"{base}.{alias.name}"
                yield Import(
                    module,
                    submodule if submodule in MODULES else base,
                    child.lineno,
                    lazy,
                    typing_only,
                )
        yield from _walk(child, module, package, lazy=in_function, typing_only=for_typing)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parents = parts[: len(parts) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def floor(module: str) -> int | None:
    """The floor of one of our modules; None for a module of somebody else."""
    matching = [
        (len(name), level)
        for name, level in FLOORS
        if module == name or module.startswith(name + ".")
    ]
    return max(matching)[1] if matching else None


def within(module: str, homes: tuple[str, ...]) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(module == home or module.startswith(home + ".") for home in homes)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_floor_or_a_lower_one(module: str) -> None:
    own = floor(module)
    assert own is not None
    wrong = []
    for found in imports(module):
        target = floor(found.target)
        if target is None or target <= own or found.typing_only:
            continue
        if (module, found.target) not in UPWARD or not found.lazy:
            wrong.append(str(found))
    assert wrong == []


def test_every_module_has_a_floor_of_its_own() -> None:
    """The package's own floor is for its `__init__` only: a new module has to be put somewhere."""
    named = {name for name, _ in FLOORS} - {"fastroai"}
    homeless = [m for m in MODULES if m != "fastroai" and not within(m, tuple(named))]
    assert homeless == []


def test_every_exception_to_the_floors_is_used() -> None:
    used = {
        (found.importer, found.target)
        for module in MODULES
        for found in imports(module)
        if not found.typing_only
    }
    assert UPWARD - used == set()


@pytest.mark.parametrize("package", HOMES)
def test_a_package_is_imported_in_its_home_only(package: str) -> None:
    strangers = [
        str(found)
        for module in MODULES
        if module.startswith("fastroai") and not within(module, HOMES[package])
        for found in imports(module)
        if found.target.split(".")[0] == package and not found.typing_only
    ]
    assert strangers == []


def test_genai_prices_is_imported_only_when_a_price_is_asked_for() -> None:
    found = [
        i
        for i in imports("fastroai.pricing.price_list")
        if i.target.split(".")[0] == "genai_prices"
    ]
    assert found
    assert [str(i) for i in found if not (i.lazy or i.typing_only)] == []


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in MODULES
        if m.startswith(("fastroai", "flows")) and "prefect" not in m and "storage" not in m
    ],
)
def test_no_module_outside_the_adapter_imports_prefect_when_it_is_imported(module: str) -> None:
    eager = [
        str(found)
        for found in imports(module)
        if found.target.split(".")[0] in ("prefect", "prefect_aws")
        and not (found.lazy or found.typing_only)
    ]
    assert eager == []


_ENVIRONMENT = {"environ", "environb", "getenv"}


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _ENVIRONMENT and ast.unparse(node.value) == "os"
    return (
        isinstance(node, ast.ImportFrom)
        and node.module == "os"
        and bool(_ENVIRONMENT & {a.name for a in node.names})
    )


def test_only_settings_reads_the_environment() -> None:
    readers = [
        f"{module}:{node.lineno} reads the environment"  # type: ignore[attr-defined]
        for module, path in MODULES.items()
        if module.startswith("fastroai") and module != "fastroai.settings"
        for node in ast.walk(ast.parse(path.read_text()))
        if _reads_environment(node)
    ]
    assert readers == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_one_line_what_it_is_for(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    if not tree.body:
        return
    docstring = ast.get_docstring(tree)
    assert docstring, f"{module} has no docstring"
    first, _, rest = docstring.partition("\n")
    assert first.endswith((".", "…")) or ":" in first
    # The error tree is drawn in its module's docstring.
    assert module == "fastroai.errors" or len(rest.splitlines()) <= 6
