"""`FASTROAI_RATE_LIMITS`: as JSON or as a text, and one clear error where it is neither."""

from __future__ import annotations

import pytest

from fastroai.errors import SettingsError
from fastroai.provider_limits import ProviderLimit
from fastroai.settings import load_settings

OPENAI = ProviderLimit(requests_per_minute=500, tokens_per_minute=200_000)
MINI = ProviderLimit(concurrency=20)


@pytest.mark.parametrize(
    "value",
    [
        '{"openai": {"requests_per_minute": 500, "tokens_per_minute": 200000}, '
        '"openai:gpt-5-mini": {"concurrency": 20}}',
        '{"openai-chat": {"RPM": "500", "tpm": "200k"}, '
        '"openai-responses:gpt-5-mini": {"concurrent_requests": 20}}',
        "openai rpm=500 tpm=200k; openai:gpt-5-mini concurrency=20",
        "openai  rpm=500, tpm=0.2M ;openai:gpt-5-mini max_concurrency=20;",
    ],
)
def test_json_and_a_short_text_say_the_same(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", value)
    assert load_settings().rate_limits == {"openai": OPENAI, "openai:gpt-5-mini": MINI}


def test_input_and_output_may_be_limited_apart_and_providers_of_ones_own_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", "anthropic itpm=50k otpm=10k; acme:large:v2 rpm=5")
    limits = load_settings().rate_limits
    assert limits == {
        "anthropic": ProviderLimit(input_tokens_per_minute=50e3, output_tokens_per_minute=10e3),
        "acme:large:v2": ProviderLimit(requests_per_minute=5),
    }
    assert str(limits["anthropic"]) == "50000 input tokens a minute, 10000 output tokens a minute"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("{openai: 5}", "is not JSON"),
        ('["openai"]', "must be limits by provider"),
        ('{"openai": 500}', "500 (for 'openai') is no limit"),
        ('{"openai": {}}', "{} (for 'openai') is no limit"),
        ("openai", "'openai' is no limit"),
        ("openai 500", "is no limit"),
        ("openai rps=5", "'rps' (for 'openai') is no limit; there are requests_per_minute"),
        ("openai rpm=0", "requests_per_minute='0' (for 'openai') must be a number above 0"),
        ("openai rpm=-5", "must be a number above 0"),
        ("openai rpm=many", "must be a number above 0"),
        ("openai concurrency=1.5", "must be a whole number above 0"),
        ('{"openai": {"rpm": true}}', "must be a number above 0"),
        ("opanai rpm=5", "did you mean 'openai'?"),
        ("openai: rpm=5", "'openai:' is no provider and no provider:model"),
        ("openai rpm=5; openai-chat rpm=6", "'openai-chat' is limited twice"),
    ],
)
def test_an_invalid_limit_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, value: str, complaint: str
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for part in ("FASTROAI_RATE_LIMITS", repr(value), complaint):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
