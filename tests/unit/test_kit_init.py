"""`fastroai init`: what it writes runs, passes its tests, and overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastroai.cli import main
from fastroai.kit.found_pipelines import find_pipelines
from fastroai.kit.prefect_file import read_deployments
from fastroai.kit.scaffold import new_project
from tests.support import forked

ROOT = Path(__file__).parents[2]
JOBS = """
import fastroai as f
from fastroai import Pipeline, step

@step
def one(context):
    return context.get_input("data")

pipeline: Pipeline[None, dict, int] = Pipeline[None, dict, int]("first-job", {"one": one})
other = f.Pipeline(name="second job", steps={"one": one})
not_one = list("Pipeline")
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project."""
    folder = tmp_path_factory.mktemp("projects") / "demo"
    assert main(["init", str(folder)]) == 0
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a folder."""
    return forked.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_a_new_project_passes_its_own_tests(demo: Path):
    done = python(demo, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_new_project_runs_by_the_command_line_with_the_deps_of_its_factory(demo: Path):
    question = "question=When do parcels arrive?"
    by_factory = ["flows.support:pipeline", "--deps", "flows.deps:make_deps"]
    for target in (by_factory, ["deployments.entrypoints:support"]):
        done = python(demo, "-m", "fastroai", "run", *target, question, "--json")
        assert done.returncode == 0, done.stderr
        assert '"simulated": true' in done.stdout


def test_a_new_project_is_written_as_ruff_wants_it(demo: Path):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=demo, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_each_environment_deploys_the_flow_with_inputs_that_fit(demo: Path):
    content = yaml.safe_load((demo / "prefect.yaml").read_text())
    deployments: list[dict[str, Any]] = content["deployments"]
    assert [one["name"] for one in deployments] == ["dev", "staging", "production"]
    assert len({one["work_pool"]["name"] for one in deployments}) == 3
    assert {one["entrypoint"] for one in deployments} == {"deployments/entrypoints.py:support"}
    assert (demo / "prefect.yaml").read_text().count("entrypoint:") == 1
    assert content["pull"][0].popitem()[1] == {"directory": "{{ $PWD }}"}
    inputs = deployments[0]["parameters"]["inputs"]
    done = python(
        demo,
        "-c",
        f"from flows.support import pipeline; pipeline.validate_input({inputs!r})",
    )
    assert done.returncode == 0, done.stderr


def test_every_file_of_the_template_is_written_with_no_placeholder_left(tmp_path: Path):
    made = new_project(tmp_path / "demo").made
    template = Path(str(files("fastroai.kit") / "template"))
    names = [path.name.removesuffix(".template") for path in template.rglob("*.template")]
    assert sorted(Path(one).name for one in made) == sorted(n.removeprefix("dot") for n in names)
    assert len((tmp_path / "demo" / "README.md").read_text().splitlines()) <= 20
    for one in made:
        assert "$name" not in (tmp_path / "demo" / one).read_text(), one


@pytest.mark.parametrize("name", ["Demo", "a b", "-x", "démo"])
def test_a_name_that_can_not_be_used_is_refused(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["init", "--", name]) == 2
    assert "fastroai: " in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    assert main(["init", "demo"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]


def test_what_an_existing_project_lacks_is_added_and_no_file_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mills.py").write_text(JOBS)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "Dockerfile").write_text("FROM mine\n")
    assert main(["init", "--existing"]) == 0
    said = capsys.readouterr().out
    assert "kept  Dockerfile" in said
    assert (tmp_path / "Dockerfile").read_text() == "FROM mine\n"
    assert not (tmp_path / "flows").exists()
    deployments = read_deployments(tmp_path) or []
    assert {one.flow for one in deployments} == {"mills", "other"}
    assert len(deployments) == 6
    program = "from deployments.entrypoints import mills, other; print(mills.name, other.name)"
    done = python(tmp_path, "-c", program)
    assert done.stdout == "first-job second job\n", done.stderr

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["init", "--existing"]) == 0
    assert "made" not in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before


def test_without_a_pipeline_there_is_nothing_to_add_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arguments in (["--existing"], ["nowhere", "--existing"]):
        assert main(["init", *arguments]) == 2
        assert "No pipeline was found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pipelines_of_one_name_in_two_modules_are_told_apart(tmp_path: Path):
    for folder in ("sales", "stock"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "daily.py").write_text('pipeline = Pipeline("daily", {})\n')
    found = find_pipelines(tmp_path)
    assert [one.module for one in found] == ["sales.daily", "stock.daily"]
    assert len({one.identifier for one in found}) == 2
