"""What starting does not import; and that names which load when asked for are like any others."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import fastroai
from fastroai.environment import variable
from fastroai.ledger.ledger import Ledger
from fastroai.settings import load_settings
from tests.support import forked
from tests.support.examples import examples

LAZY = [
    "fastroai",
    "fastroai.agent",
    "fastroai.executors",
    "fastroai.pipelines",
    "fastroai.tools",
    "fastroai.tracing",
    "fastroai.usage",
]
HEAVY = {"pydantic_ai", "pydantic", "logfire", "prefect", "genai_prices", "boto3", "openai"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """What a fresh interpreter has imported when it has run some code."""
    program = f"import sys\ntry:\n {code}\nfinally:\n print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


COMMAND = "from fastroai.cli import main; assert main(sys.argv[1:]) == 0"


def test_importing_fastroai_imports_nothing_else() -> None:
    assert not loaded_by("import fastroai") & {*HEAVY, "sqlalchemy", "rich", "cyclopts", "asyncio"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_help_imports_nothing_that_a_command_needs(arguments: list[str]) -> None:
    assert not loaded_by(COMMAND, *arguments) & {*HEAVY, "sqlalchemy", "asyncio"}


@pytest.mark.parametrize(
    "command",
    [["costs"], *(pytest.param([name], marks=pytest.mark.long) for name in ("runs", "results"))],
)
def test_the_help_of_a_command_imports_nothing_that_a_run_needs(command: list[str]) -> None:
    assert not loaded_by(COMMAND, *command, "--help") & HEAVY


@pytest.mark.parametrize("command", ["costs", "runs"])
async def test_a_ledger_is_read_without_what_a_run_needs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with Ledger.open(url):
        pass
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    loaded = loaded_by(COMMAND, command)
    assert "sqlalchemy" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_are_told_the_names_that_load_when_asked_for(package: str) -> None:
    imported = importlib.import_module(package)
    told = dict(told_to_type_checkers(package))
    assert set(told) <= set(imported.__all__)
    for name, module in told.items():
        assert getattr(imported, name) is getattr(importlib.import_module(module), name)
    eager = set(vars(imported)) | set(told)
    assert set(imported.__all__) <= eager


def told_to_type_checkers(package: str) -> list[tuple[str, str]]:
    """The names that a package imports under TYPE_CHECKING, and from which modules."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    [block] = [
        node
        for node in ast.parse(Path(spec.origin).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    assert block.orelse, f"{package} has no names that load when asked for"
    return [
        (alias.name, importlib.util.resolve_name("." * node.level + (node.module or ""), package))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


@pytest.mark.parametrize("package", LAZY)
def test_a_package_lists_its_names_before_they_are_loaded(package: str) -> None:
    listed = "listed = dir(module); assert set(module.__all__) <= set(listed)"
    program = f"import {package} as module; {listed}; assert listed == sorted(listed)"
    command = [sys.executable, "-c", program]
    done = forked.run(command, kind=forked.BARE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", LAZY)
def test_a_name_that_is_not_there_is_said_as_by_any_module(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Pipelin'"):
        module.Pipelin  # noqa: B018
    with pytest.raises(ImportError, match="Pipelin"):
        exec(f"from {package} import Pipelin")


def test_all_names_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from fastroai import *", names)
    assert set(fastroai.__all__) <= set(names)


def test_the_public_modules_are_attributes_without_being_imported() -> None:
    loaded_by(
        "import fastroai\n"
        " assert fastroai.pipelines.Pipeline is fastroai.Pipeline\n"
        " assert fastroai.agent.schemas.AgentConfig is fastroai.AgentConfig\n"
        " assert fastroai.usage.CostCalculator is fastroai.CostCalculator\n"
        " assert fastroai.errors.FastroAIError is fastroai.FastroAIError"
    )


def test_a_class_is_the_same_once_pickled() -> None:
    for name in fastroai.__all__:
        value = getattr(fastroai, name)
        if isinstance(value, type):
            assert pickle.loads(pickle.dumps(value)) is value


@given(
    own=st.sampled_from([None, "", "memory://", "sqlite:///own.db"]),
    spelled=st.sampled_from(["FASTROAI_LEDGER_URL", "fastroai_ledger_url"]),
    dotenv=st.sampled_from(
        [
            None,
            "",
            "FASTROAI_LEDGER_URL=",
            "FASTROAI_LEDGER_URL=sqlite:///a.db",
            "fastroai_ledger_url='sqlite:///with space.db' # why",
            'export FASTROAI_LEDGER_URL="sqlite:///b.db"',
            "NAME=c\nFASTROAI_LEDGER_URL=sqlite:///${NAME}.db",
            "FASTROAI_LEDGER_URL",
        ]
    ),
)
@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_variable_is_what_settings_say(
    own: str | None, spelled: str, dotenv: str | None, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for name in ("FASTROAI_LEDGER_URL", "fastroai_ledger_url"):
            patch.delenv(name, raising=False)
        Path(".env").unlink(missing_ok=True)
        if own is not None:
            patch.setenv(spelled, own)
        if dotenv is not None:
            Path(".env").write_text(dotenv)
        patch.setattr("fastroai.settings._cached", None)
        said = load_settings().ledger_url
        assert variable("LEDGER_URL") == (said and said.get_secret_value())
