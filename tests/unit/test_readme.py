"""What README.md and docs/ say is so: their programs run, their commands exist, their tables are
complete.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastroai import errors
from fastroai.cli import app
from fastroai.kit.prefect_file import Deployment, read_deployments
from fastroai.settings import FastroAISettings
from tests.support import forked

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"FASTROAI_EXECUTOR": "memory"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = forked.run([sys.executable, *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@page
def test_every_python_program_runs_in_order(page: Path, tmp_path: Path):
    """In one folder; a program that the text says to save is saved under that name first."""
    text = page.read_text()
    for number, program in enumerate(blocks(page, "python")):
        before = text[: text.index(program)].rsplit("\n\n", 2)
        saved = re.search(r"Save this as `(\S+)`", before[-2] if len(before) > 1 else "")
        name = saved[1] if saved else f"program_{number}.py"
        (tmp_path / name).write_text(program)
        run(tmp_path, name)


def test_the_first_pipeline_runs_by_the_command_the_readme_gives(tmp_path: Path):
    program = blocks(README, "python")[0]
    (tmp_path / "notes.py").write_text(program)
    [command] = re.findall(
        r"^\.venv/bin/fastroai (run notes:.*)$", README.read_text(), re.MULTILINE
    )
    out = run(tmp_path, "-m", "fastroai.cli", *shlex.split(command))
    assert "words: 14" in out
    assert "Prices rose by 4 percent" in out
    assert "nothing was paid" in out


def test_the_first_pipeline_is_short():
    body = blocks(README, "python")[0].split("agent = ")[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 22


@page
def test_every_make_target_that_is_named_exists(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets
    assert page != README or named >= {
        "run",
        "test",
        "lint",
        "bench",
        "server",
        "deploy",
        "worker",
        "clean",
    }


def test_the_makefile_says_which_targets_it_has():
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert phony == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_configuration_table_names_every_setting_and_no_other():
    table = README.read_text().split("## Configuration")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([A-Z0-9_]+)` \|", table, re.MULTILINE)
    settings = [
        str(field.validation_alias or f"FASTROAI_{name.upper()}")
        for name, field in FastroAISettings.model_fields.items()
    ]
    assert listed == settings


@page
def test_every_fastroai_command_is_one(page: Path):
    """It is parsed as a whole, and not run."""
    text = "".join(block for language in ("bash", "console") for block in blocks(page, language))
    written = re.findall(r"(?:^|&& )(?:\$ |\.venv/bin/)?fastroai (.*?)(?:&&|$)", text, re.MULTILINE)
    for command in written:
        app.parse_args(shlex.split(command, comments=True), exit_on_error=False, print_error=False)
    assert page != README or written


@page
def test_every_yaml_and_json_file_can_be_read(page: Path):
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text)
    for text in blocks(page, "json"):
        assert json.loads(text)


@page
def test_every_variable_that_is_named_is_a_setting(page: Path):
    known = {f"FASTROAI_{name.upper()}" for name in FastroAISettings.model_fields}
    assert set(re.findall(r"\bFASTROAI_[A-Z0-9_]*[A-Z0-9]", page.read_text())) <= known


def test_a_deployment_of_the_environments_page_is_a_flow_in_an_environment(tmp_path: Path):
    [text] = blocks(REPOSITORY / "docs" / "how-to" / "environments.md", "yaml")
    (tmp_path / "prefect.yaml").write_text(text)
    entrypoint = "deployments/entrypoints.py:support"
    assert read_deployments(tmp_path) == [Deployment("production", entrypoint, "demo-production")]
    [deployment] = yaml.safe_load(text)["deployments"]
    assert deployment["schedules"] == [{"cron": "0 6 * * 1-5", "timezone": "Europe/Berlin"}]


def test_every_error_in_the_table_exists():
    table = README.read_text().split("## Errors")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert named
    assert all(issubclass(getattr(errors, name), errors.FastroAIError) for name in named)


@page
def test_every_link_and_picture_is_there(page: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_the_picture_is_small_enough_to_load():
    assert (REPOSITORY / "docs" / "cost-artifact.png").stat().st_size < 300_000


def test_a_file_that_a_reader_saves_in_the_clone_is_none_of_the_linters_business(tmp_path: Path):
    def lint() -> int:
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=tmp_path, check=False
        )
        return done.returncode

    (tmp_path / "pyproject.toml").write_text((REPOSITORY / "pyproject.toml").read_text())
    (tmp_path / "notes.py").write_text("print('mine')\n")
    assert lint() == 0
    (tmp_path / "fastroai").mkdir()
    (tmp_path / "fastroai" / "ours.py").write_text("print('ours')\n")
    assert lint() == 1
