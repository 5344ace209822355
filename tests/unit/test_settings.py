"""Settings: variables, the `.env` file, and what a bad value says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastroai.errors import FastroAIError, SettingsError
from fastroai.settings import FastroAISettings, load_settings


def test_prefect_is_the_default_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTROAI_EXECUTOR")
    assert load_settings().executor == "prefect"


def test_the_variable_chooses_the_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "memory")
    assert load_settings().executor == "memory"
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    assert load_settings().executor == "prefect"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "")
    monkeypatch.setenv("FASTROAI_S3_CONNECT_TIMEOUT", "")
    assert load_settings() == FastroAISettings(executor="prefect")


def test_a_dotenv_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTROAI_EXECUTOR")
    Path(".env").write_text(
        "FASTROAI_EXECUTOR=memory\nSOMETHING_ELSE=1\nFASTROAI_RESULT_STORAGE=s3://bucket/prefix\n"
    )
    settings = load_settings()
    assert (settings.executor, settings.result_storage) == ("memory", "s3://bucket/prefix")


def test_a_variable_beats_the_dotenv_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("FASTROAI_EXECUTOR=memory\n")
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    assert load_settings().executor == "prefect"


def test_a_changed_dotenv_file_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTROAI_EXECUTOR")
    Path(".env").write_text("FASTROAI_EXECUTOR=memory\n")
    assert load_settings().executor == "memory"
    Path(".env").write_text("FASTROAI_EXECUTOR=prefect\n")
    assert load_settings().executor == "prefect"
    Path(".env").unlink()
    assert load_settings().executor == "prefect"


def test_unchanged_settings_are_not_parsed_again() -> None:
    assert load_settings() is load_settings()


def test_a_bad_value_names_the_variable_the_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "ray")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for part in ("FASTROAI_EXECUTOR", "'ray'", "prefect", "memory"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FastroAIError)


def test_each_bad_value_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_S3_CONNECT_TIMEOUT", "soon")
    monkeypatch.setenv("FASTROAI_ARTIFACT_TIMEOUT", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert any("FASTROAI_S3_CONNECT_TIMEOUT='soon'" in line for line in lines)
    assert any("FASTROAI_ARTIFACT_TIMEOUT='0'" in line for line in lines)


def test_a_bad_value_can_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "ray")
    with pytest.raises(SettingsError):
        load_settings()
    monkeypatch.setenv("FASTROAI_EXECUTOR", "memory")
    assert load_settings().executor == "memory"


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    monkeypatch.setenv("FASTROAI_S3_ACCESS_KEY_ID", "AKIA-hidden")
    monkeypatch.setenv("FASTROAI_S3_SECRET_ACCESS_KEY", "secret-hidden")
    settings = load_settings()
    assert "hidden" not in repr(settings)
    assert "hidden" not in settings.model_dump_json()
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "sk-hidden"


def test_openais_key_has_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_OPENAI_API_KEY", "sk-other")
    assert load_settings().openai_api_key is None


def test_hosts_are_read_as_they_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    value = (
        '{"127.0.0.1:8765": "openai", "Proxy.Example.com.": "bedrock", "[::1]:80": "google-gla"}'
    )
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", value)
    assert load_settings().provider_hosts == {
        "127.0.0.1:8765": "openai",
        "proxy.example.com": "aws",
        "[::1]:80": "google",
    }
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", "")
    assert load_settings().provider_hosts == {}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("127.0.0.1", "is not JSON"),
        ('["127.0.0.1"]', "must be a JSON object"),
        ('{"127.0.0.1": "acme"}', "'acme'"),
        ('{"127.0.0.1": 1}', "1 (host '127.0.0.1')"),
        ('{"127.0.0.1": ""}', "'' (host '127.0.0.1')"),
        ('{"http://127.0.0.1": "openai"}', "not a host"),
        ('{"127.0.0.1/v1": "openai"}', "not a host"),
        ('{"127.0.0.1:99999": "openai"}', "not a host"),
        ('{"*": "openai"}', "not a host"),
        ('{"": "openai"}', "not a host"),
    ],
)
def test_invalid_hosts_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, value: str, complaint: str
) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for part in ("FASTROAI_PROVIDER_HOSTS", repr(value), complaint, '{"127.0.0.1:8765": "openai"}'):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unpriced_requests_are_sent_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().unpriced == "warn"
    monkeypatch.setenv("FASTROAI_UNPRICED", "fail")
    assert load_settings().unpriced == "fail"


@pytest.mark.parametrize("name", FastroAISettings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    description = FastroAISettings.model_fields[name].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize(
    "form",
    ["gs:/x", "s3://", "s3:///prefix", "s3-bucket/", "s3:/bucket", "memory://", "s3_x://y", "   "],
)
def test_a_storage_of_no_known_form_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", form)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"FASTROAI_RESULT_STORAGE={form!r}" in str(caught.value)


@pytest.mark.parametrize(
    "form",
    ["s3://bucket/p", "gs://b", "file:///srv/r", "gcs-bucket/name", "results", "/srv/r", "./s3:x"],
)
def test_a_storage_of_a_known_form_is_taken(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", form)
    assert load_settings().result_storage == form
