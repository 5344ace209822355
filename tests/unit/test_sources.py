"""What a run may read by path or URI."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastroai.errors import InputValidationError, SettingsError, SourceRefusedError
from fastroai.settings import FastroAISettings, load_settings
from fastroai.storage.sources import check_readable, input_given_by_others, is_within

INSIDE = [
    ("s3://minutes/2026/may", "s3://minutes/2026"),
    ("s3://minutes/2026", "s3://minutes/2026/"),
    ("s3://minutes/2026/a?b", "s3://minutes"),
    ("s3://minutes", "s3://minutes"),
    ("https://EXAMPLE.com/reports/1", "https://example.com/reports"),
    ("https://example.com:443/reports", "https://example.com/reports"),
    ("gs://minutes/2026", "gs://minutes"),
    ("docs/a.md", "docs"),
    ("./docs/../docs", "docs"),
    ("docs", "."),
    ("file://{here}/docs/a.md", "docs"),
    ("{here}/docs/a.md", "file://{here}/docs"),
]
OUTSIDE = [
    ("s3://minutes/2026-secret", "s3://minutes/2026"),
    ("s3://minutes-secret/2026", "s3://minutes"),
    ("s3://Minutes/2026", "s3://minutes"),
    ("s3://minutes/2026/../secret", "s3://minutes/2026"),
    ("https://example.com/reports/..%2fsecret", "https://example.com/reports"),
    ("https://example.com/reports/%2e%2e/secret", "https://example.com/reports"),
    ("https://example.com/reports/..\\secret", "https://example.com/reports"),
    ("http://example.com/reports", "https://example.com/reports"),
    ("https://example.com:8443/reports", "https://example.com/reports"),
    ("https://example.com.evil.org/reports", "https://example.com"),
    ("https://example.com@evil.org/reports", "https://example.com"),
    ("https://evil.org#https://example.com", "https://example.com"),
    ("https://example.com:port/reports", "https://example.com"),
    ("https://169.254.169.254/latest/meta-data", "https://example.com"),
    ("https:///etc/passwd", "https://example.com"),
    ("/etc/passwd", "docs"),
    ("docs/../../secret", "docs"),
    ("documents", "docs"),
    ("~/.aws/credentials", "."),
    ("file:///etc/passwd", "docs"),
    ("file://evil.org/docs", "docs"),
    ("docs", "https://example.com"),
    ("s3://docs", "docs"),
    ("https://example.com/docs", "docs"),
]


@pytest.fixture(autouse=True)
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


def filled(text: str) -> str:
    return text.replace("{here}", str(Path.cwd()))


@pytest.mark.parametrize(("location", "place"), INSIDE)
def test_what_is_in_a_place_may_be_read(location: str, place: str):
    assert is_within(filled(location), filled(place))


@pytest.mark.parametrize(("location", "place"), OUTSIDE)
def test_what_only_looks_as_if_it_were_in_a_place_may_not_be_read(location: str, place: str):
    assert not is_within(location, place)


def test_of_a_link_what_it_points_to_counts(docs: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (docs / "note.md").symlink_to(tmp_path / "secret")
    assert not is_within("docs/note.md", "docs")


def test_a_run_of_ones_own_reads_anything_and_that_of_a_deployment_its_own_folder(
    monkeypatch: pytest.MonkeyPatch,
):
    settings = FastroAISettings()
    check_readable("/etc/passwd", settings)
    with input_given_by_others():
        check_readable("docs", settings)
        for location in ("/etc/passwd", "s3://minutes", "https://example.com"):
            with pytest.raises(SourceRefusedError, match="FASTROAI_READABLE"):
                check_readable(location, settings)
    check_readable("/etc/passwd", settings)
    monkeypatch.setenv("FASTROAI_READABLE", '["docs", "s3://minutes"]')
    for context in (True, False):
        with input_given_by_others(context):
            check_readable("s3://minutes/2026", load_settings())
            with pytest.raises(InputValidationError, match="'/etc/passwd' is not among"):
                check_readable("/etc/passwd", load_settings())


@pytest.mark.parametrize("value", ["docs", "{}", "[1]", '"docs"'])
def test_what_is_no_list_of_places_is_a_bad_setting(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_READABLE", value)
    with pytest.raises(SettingsError, match=r'FASTROAI_READABLE=.*an example is \["docs"\]'):
        load_settings()


def test_an_empty_list_lets_nothing_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_READABLE", "[]")
    with pytest.raises(SourceRefusedError):
        check_readable("docs", load_settings())
