"""Secrets are masked in text that leaves the process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.redaction import redact
from fastroai.settings import load_settings, secret_values

KEY = "Zq7-not/a+known=form"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MISTRAL_API_KEY", KEY),
        ("GITHUB_TOKEN", KEY),
        ("AWS_SECRET_ACCESS_KEY", KEY),
        ("AWS_SESSION_TOKEN", KEY),
        ("CLIENT_SECRET_OF_MINE", KEY),
        ("PGPASSWORD", KEY),
        ("PREFECT_API_AUTH_STRING", KEY),
        ("OPENAI_API_KEY", KEY),
        ("FASTROAI_RESULT_SECRET", KEY),
        ("FASTROAI_S3_SECRET_ACCESS_KEY", KEY),
    ],
)
def test_a_credential_of_the_environment_is_masked(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    text = f"400: you sent {value}, quoted {json.dumps(value)} and {value!r}"
    assert redact(text) == "400: you sent ***, quoted \"***\" and '***'"


def test_a_secret_of_the_dotenv_file_is_masked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    monkeypatch.chdir(tmp_path)
    assert redact(f"key {KEY} is wrong") == "key *** is wrong"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://fastroai:{}@db.example/ledger",
        "postgresql://db.example/ledger?user=fastroai&password={}",
    ],
)
@pytest.mark.parametrize("name", ["FASTROAI_LEDGER_URL", "DATABASE_URL"])
def test_only_the_password_of_a_url_is_a_secret(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str
) -> None:
    monkeypatch.setenv(name, url.format("s3cr3t%40pw"))
    assert redact("no password s3cr3t@pw for fastroai") == "no password *** for fastroai"
    assert redact(f"can't open {url.format('s3cr3t%40pw')}") == f"can't open {url.format('***')}"
    assert not any("db.example" in value for value in secret_values())


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: ***"),
        (
            "{'authorization': 'Bearer abc', 'accept': '*/*'}",
            "{'authorization': '***', 'accept': '*/*'}",
        ),
        (
            "[(b'authorization', b'Bearer abc'), (b'a', b'b')]",
            "[(b'authorization', b'***'), (b'a', b'b')]",
        ),
        ('{"headers": {"x-api-key": "abc", "n": 1}}', '{"headers": {"x-api-key": "***", "n": 1}}'),
        (r'"{\"api-key\": \"abc\", \"n\": 1}"', r'"{\"api-key\": \"***\", \"n\": 1}"'),
        ("x-goog-api-key: abc\nhost: h", "x-goog-api-key: ***\nhost: h"),
        ("sent Bearer abcdefgh1234.x-y_z now", "sent Bearer *** now"),
        ("https://h/v1?key=abc&alt=sse", "https://h/v1?key=***&alt=sse"),
        (
            "https://b.s3/x?X-Amz-Signature=0af&X-Amz-Date=1",
            "https://b.s3/x?X-Amz-Signature=***&X-Amz-Date=***",
        ),
        ("postgresql://me:pw@h/db", "postgresql://me:***@h/db"),
        ("redis://:p@w@h:1/0", "redis://:***@h:1/0"),
        ("host=h password=pw dbname=d", "host=h password=*** dbname=d"),
        ('{"client_secret": "abc"}', '{"client_secret": "***"}'),
        ('{"password": "correct horse", "n": 1}', '{"password": "***", "n": 1}'),
        (r'"{\"password\": \"correct horse\", \"n\": 1}"', r'"{\"password\": \"***\", \"n\": 1}"'),
        ("{'password': 'it is \"so\"', 'n': 1}", "{'password': '***', 'n': 1}"),
        ("host=h password='correct horse' dbname=d", "host=h password='***' dbname=d"),
        ('password: "correct horse", user: me', 'password: "***", user: me'),
        ("Server=h;Password=correct horse;Database=d", "Server=h;Password=***;Database=d"),
        (
            "DefaultEndpointsProtocol=https;AccountKey=aB/c+d==;EndpointSuffix=core",
            "DefaultEndpointsProtocol=https;AccountKey=***;EndpointSuffix=core",
        ),
        ("Endpoint=sb://h/;SharedAccessKey=aB/c+d=", "Endpoint=sb://h/;SharedAccessKey=***"),
        ("DB_PASSWORD=hunter2", "DB_PASSWORD=***"),
        (
            "postgresql://h/d?options=-cpassword%3Dhunter2&sslmode=require",
            "postgresql://h/d?options=-cpassword%3D***&sslmode=require",
        ),
        ("postgresql://h/d?options=-cpassword=hunter2", "postgresql://h/d?options=-cpassword=***"),
        (
            "Incorrect API key provided: sk-proj-Ab3d****9xYz. See",
            "Incorrect API key provided: ***. See",
        ),
        ("AKIAIOSFODNN7EXAMPLE is unknown", "*** is unknown"),
        ("AIzaSyD-abcdefghijklmnopqrstuvwxyz012345", "***"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "***"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert redact(text) == masked
    assert redact(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rate limit reached for gpt-5-mini in organization org-1 on tokens per min: 200000",
        'password authentication failed for user "fastroai"',
        "Bearer authentication required",
        "risk-assessment-2026 and sk-learn are no keys",
        "sqlite:////home/me/.fastroai/ledger.db is locked",
        "status_code: 400, model_name: m, body: {'message': 'max_tokens: 4096 is too large'}",
        "http://127.0.0.1:4200/api?limit=200",
        "dispatch_key=abc, cache_key: 0f0f",
        "Did you forget the password? It's 'required'.",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_a_short_secret_is_no_reason_to_mask_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("FASTROAI_LEDGER_URL", "postgresql://u:postgres@h/db")
    assert redact("it is true of postgresql://h/db") == "it is true of postgresql://h/db"
    assert redact("the password postgres is wrong") == "the password *** is wrong"


def test_a_secret_that_only_the_caller_knows_is_masked() -> None:
    assert redact("you sent 0123456789", "0123456789") == "you sent ***"


def test_a_setting_that_can_not_be_read_is_no_reason_to_show_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "threads")
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    with pytest.raises(Exception, match="threads"):
        load_settings()
    assert redact(f"you sent {KEY}") == "you sent ***"


@given(st.text(), st.text(min_size=16).filter(lambda text: len(text.strip()) >= 16))
def test_a_secret_is_nowhere_in_the_text_and_masking_again_changes_nothing(
    around: str, secret: str
) -> None:
    masked = redact(f"{around}{secret}{around}", secret)
    assert secret.strip() not in masked or secret.strip() in "***"
    assert redact(masked, secret) == masked


@pytest.mark.parametrize(
    "part",
    [
        "a-",
        "://",
        "x://a:",
        "sk-a-",
        "bearer a",
        "authorization: a ",
        "eyJaaaaaaaaaaa.",
        "?key=",
        "password=",
        "password=a ",
        "password='",
        "'password': 'a ",
        "pwd%3D",
    ],
)
def test_a_long_text_takes_no_quadratic_time(part: str) -> None:
    begun = time.process_time()
    redact(part * (200_000 // len(part)))
    assert time.process_time() - begun < 3
