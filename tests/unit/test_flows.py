"""The jobs of flows/: they really read their input, in process, with no key and no Prefect."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastroai import Pipeline, PipelineResult, StepExecutionError
from fastroai.errors import InputValidationError, SettingsError
from fastroai.ledger.entries import total_usd
from fastroai.testing import OfflineModel
from flows.packages import Package, PackageError, collect_packages, family_of
from tests.support import forked

REPOSITORY = Path(__file__).parents[2]
JOBS = ("document_digest", "licence_review")


@pytest.fixture
def job() -> Callable[[str], Pipeline[Any, Any, Any]]:
    """A job's pipeline; imported here, where no key of the machine is set, so that it is
    offline.
    """
    return lambda name: import_module(f"flows.{name}").pipeline


def digest_of(job: Any, **inputs: Any) -> PipelineResult[Any]:
    return asyncio.run(job("document_digest").execute(inputs, None))


@pytest.mark.parametrize("name", [*JOBS, "ticket_triage"])
def test_a_job_is_imported_in_memory_mode_without_prefect(name: str):
    code = f"import flows.{name}, sys; assert 'prefect' not in sys.modules"
    environment = os.environ | {"FASTROAI_EXECUTOR": "memory"}
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True}
    done = forked.run([sys.executable, "-c", code], kind=forked.BARE, **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", JOBS)
def test_a_job_fans_out_and_joins_and_has_a_typed_input(job: Any, name: str):
    pipeline = job(name)
    dependents = pipeline.plan.dependents
    assert any(len(ids) >= 3 for ids in dependents.values())
    assert len(pipeline.plan.steps[pipeline.output_step].dependencies) >= 3
    assert any(node.is_mapped for node in pipeline.plan.steps.values())
    schema = pipeline.input_type.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())


def test_a_digest_depends_on_what_its_documents_say(job: Any, tmp_path: Path):
    mill, harbour = tmp_path / "mill.md", tmp_path / "harbour.md"
    mill.write_text(
        "The mill at Lund grinds 40 tons of rye each week. The miller must repair the wheel before "
        "May."
    )
    harbour.write_text(
        "The harbour of Bergen ships timber to Hull. It is unclear who pays for the new crane."
    )
    first, second = (
        digest_of(job, documents=str(mill)).output,
        digest_of(job, documents=str(harbour)).output,
    )
    assert "mill" in first.documents[0].summary.lower()
    assert "harbour" in second.documents[0].summary.lower()
    assert "harbour" not in first.model_dump_json().lower()
    assert first.overview != second.overview
    assert first.actions != second.actions


def test_a_digest_has_a_summary_of_each_document_and_says_what_it_left_out(
    job: Any, tmp_path: Path
):
    for name in "abc":
        (tmp_path / f"{name}.md").write_text(
            f"Report {name} says that plan {name} must be kept until May."
        )
    result = digest_of(job, documents=str(tmp_path), max_documents=2)
    assert [document.name for document in result.output.documents] == ["a.md", "b.md"]
    assert [document.characters_read for document in result.output.documents] == [49, 49]
    assert result.output.left_out == ["c.md: beyond max_documents=2"]
    assert {e.attribution.step_id for e in result.entries} == {
        "summaries",
        "topics",
        "open_points",
        "digest",
    }
    assert all(entry.simulated for entry in result.entries)
    assert result.usage.total_cost_usd == total_usd(result.entries) > 0


def test_the_readers_question_reaches_the_model(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.md").write_text("One. Two.")
    editor = import_module("flows.document_digest").editor
    model = editor.agent.model
    before = len(model.prompts)
    digest_of(job, documents=str(tmp_path), focus="Who pays?")
    assert all("Who pays?" in prompt for prompt in model.prompts[before:])


def test_a_document_that_cannot_be_read_ends_the_run_before_any_request(job: Any, tmp_path: Path):
    (tmp_path / "scan.txt").write_bytes(b"\xff\xff")
    with pytest.raises(StepExecutionError, match=r"scan\.txt' is not UTF-8") as caught:
        digest_of(job, documents=str(tmp_path))
    assert caught.value.step_id == "read"
    assert isinstance(caught.value.partial_result, PipelineResult)
    assert caught.value.partial_result.entries == ()


def test_an_input_that_does_not_fit_is_refused(job: Any):
    with pytest.raises(InputValidationError, match="max_documents"):
        digest_of(job, max_documents=0)


def test_a_review_reports_the_packages_it_was_asked_for(job: Any):
    review = asyncio.run(
        job("licence_review").execute({"packages": ["pydantic", "boto3"]}, None)
    ).output
    assert [(p.name, p.family, p.allowed) for p in review.packages] == [
        ("boto3", "permissive", True),
        ("pydantic", "permissive", True),
    ]
    assert {name for duties in review.duties for name in duties.packages} == {"boto3", "pydantic"}
    assert any("notice" in point for duties in review.duties for point in duties.must)
    assert review.not_allowed == []


def test_a_review_applies_the_policy_it_is_given(job: Any):
    inputs = {"packages": ["boto3"], "allowed": ["strong copyleft"]}
    review = asyncio.run(job("licence_review").execute(inputs, None)).output
    assert review.allowed == 0
    assert [line.split()[0] for line in review.not_allowed] == ["boto3"]


def test_by_default_the_direct_dependencies_are_reviewed():
    found = {package.name for package in collect_packages([], False, 100).found}
    assert {"prefect", "pydantic-ai", "boto3"} <= found
    assert "logfire" not in found
    assert len(collect_packages([], True, 1000).found) > len(found)


def test_packages_beyond_the_limit_are_listed():
    packages = collect_packages(["pydantic", "boto3"], False, 1)
    assert [p.name for p in packages.found] == ["boto3"]
    assert packages.left_out == ["pydantic: beyond max_packages=1"]


def test_a_package_that_is_not_installed_is_named_with_what_may_be_meant():
    with pytest.raises(PackageError, match=r"'pydantik'.* Did you mean pydantic\?"):
        collect_packages(["pydantik"], False, 10)


@pytest.mark.parametrize(
    ("facts", "family"),
    [
        ({"expression": "MIT"}, "permissive"),
        ({"expression": "LGPL-3.0-or-later"}, "weak copyleft"),
        ({"expression": "GPL-2.0-only"}, "strong copyleft"),
        ({"expression": "AGPL-3.0-only"}, "network copyleft"),
        ({"expression": "GPL-3.0-only OR MIT"}, "permissive"),
        ({"expression": "MIT AND GPL-3.0-only"}, "strong copyleft"),
        ({"expression": "MPL-2.0 AND (Apache-2.0 OR GPL-2.0-only)"}, "weak copyleft"),
        ({"expression": "(GPL-2.0-only OR MPL-2.0) AND MIT"}, "weak copyleft"),
        ({"expression": "GPL-2.0-only WITH Classpath-exception-2.0 OR BSD-3-Clause"}, "permissive"),
        ({"expression": "MIT AND LicenseRef-Ours"}, None),
        ({"expression": "LicenseRef-Ours OR MIT"}, "permissive"),
        ({"licence": "Apache License 2.0"}, "permissive"),
        (
            {"licence": "Dual License", "classifiers": ["BSD License", "Apache Software License"]},
            "permissive",
        ),
        (
            {"classifiers": ["GNU General Public License v3 (GPLv3)", "MIT License"]},
            "strong copyleft",
        ),
        ({"classifiers": ["GNU Lesser General Public License v3 (LGPLv3)"]}, "weak copyleft"),
        ({"licence": "Ours"}, None),
        ({}, None),
    ],
)
def test_a_licence_family_is_read_from_the_metadata(facts: dict[str, Any], family: str | None):
    assert family_of(Package(name="p", version="1", **facts)) == family


class TestChooseModel:
    @pytest.fixture
    def choose(self) -> Callable[[], Any]:
        return import_module("flows.models").choose_model

    def test_without_a_key_it_is_offline(self, choose: Any):
        assert isinstance(choose(), OfflineModel)

    def test_with_a_key_it_is_the_default_model(self, choose: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("OPENAI_API_KEY", "a-key")
        assert choose() == "openai:gpt-5-mini"

    def test_the_setting_wins(self, choose: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("OPENAI_API_KEY", "a-key")
        monkeypatch.setenv("FASTROAI_MODEL", "anthropic:claude-sonnet-4-5")
        assert choose() == "anthropic:claude-sonnet-4-5"
        monkeypatch.setenv("FASTROAI_MODEL", "offline")
        assert isinstance(choose(), OfflineModel)

    def test_a_name_without_a_provider_is_refused(
        self, choose: Any, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("FASTROAI_MODEL", "gpt-5-mini")
        with pytest.raises(SettingsError, match="FASTROAI_MODEL='gpt-5-mini' names no provider"):
            choose()

    @pytest.mark.parametrize("name", ["bogus:claude", ":gpt", "open ai:gpt-5-mini"])
    def test_a_provider_that_does_not_exist_is_refused(
        self, choose: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ):
        monkeypatch.setenv("FASTROAI_MODEL", name)
        with pytest.raises(SettingsError, match=f"FASTROAI_MODEL='{name}'.*is no provider"):
            choose()


@pytest.mark.parametrize(
    ("names", "spdx"),
    [
        (
            ["Apache-2.0", "Apache License 2.0", "Apache License, Version 2.0", "apache 2.0"],
            "Apache-2.0",
        ),
        (["MIT", "MIT License", "The MIT License"], "MIT"),
        (
            ["BSD-3-Clause", "BSD 3-Clause License", "3-Clause BSD License", "new BSD"],
            "BSD-3-Clause",
        ),
        (["MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"], "MPL-2.0"),
    ],
)
def test_one_licence_has_one_name(names: list[str], spdx: str):
    assert {Package(name="p", version="1", licence=name).declared for name in names} == {spdx}
    assert {Package(name="p", version="1", classifiers=[name]).declared for name in names} == {spdx}


@pytest.mark.parametrize(
    "name", ["Apache Software License", "BSD License", "Dual License", "MIT OR Apache-2.0", ""]
)
def test_a_name_that_does_not_tell_which_licence_is_meant_stays(name: str):
    assert Package(name="p", version="1", licence=name).declared == name
