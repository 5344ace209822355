"""Names of models, and who sends the bill."""

from __future__ import annotations

from typing import get_args

import pytest
from genai_prices.data import providers
from pydantic_ai.models import KnownModelName

from fastroai.pricing.endpoints import is_private_endpoint
from fastroai.pricing.model_names import ModelRef, read_model_name, spellings
from fastroai.providers import PROVIDERS, canonical_provider, host_and_port, provider_at


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("gpt-4o", ModelRef(None, "gpt-4o")),
        ("openai:gpt-4o", ModelRef("openai", "gpt-4o")),
        ("openai-chat:gpt-4o", ModelRef("openai", "gpt-4o")),
        ("OpenAI-Responses:GPT-4o", ModelRef("openai", "gpt-4o")),
        ("google-gla:gemini-1.5-pro", ModelRef("google", "gemini-1.5-pro")),
        ("gateway/openai:gpt-4o", ModelRef("openai", "gpt-4o")),
        ("gateway/google-cloud:gemini-1.5-pro", ModelRef("google", "gemini-1.5-pro")),
        (
            "bedrock:us.anthropic.claude-3-5-sonnet-20241022-v2:0",
            ModelRef("aws", "us.anthropic.claude-3-5-sonnet-20241022-v2:0"),
        ),
        (
            "anthropic.claude-3-5-sonnet-20241022-v2:0",
            ModelRef(None, "anthropic.claude-3-5-sonnet-20241022-v2:0"),
        ),
        ("llama3:8b", ModelRef(None, "llama3:8b")),
        ("ollama:llama3:8b", ModelRef("ollama", "llama3:8b")),
        ("openai/gpt-4o:free", ModelRef(None, "openai/gpt-4o:free")),
        ("ft:gpt-4o-2024-08-06:acme::abc", ModelRef(None, "ft:gpt-4o-2024-08-06:acme::abc")),
        (
            "openai:ft:gpt-4o-2024-08-06:acme::abc",
            ModelRef("openai", "ft:gpt-4o-2024-08-06:acme::abc"),
        ),
        ("openai:", ModelRef(None, "openai:")),
    ],
)
def test_only_a_providers_name_is_taken_off_as_a_prefix(name: str, reading: ModelRef) -> None:
    assert read_model_name(name) == (reading,)


def test_an_unknown_prefix_may_be_part_of_the_name() -> None:
    assert read_model_name("acme:gpt-4o") == (
        ModelRef(None, "acme:gpt-4o"),
        ModelRef("acme", "gpt-4o"),
    )


def test_a_given_provider_beats_the_prefix() -> None:
    assert read_model_name("openai:gpt-4o", "azure")[0] == ModelRef("azure", "gpt-4o")
    assert ModelRef("ollama", "mistral:latest") in read_model_name("mistral:latest", "ollama")


def test_every_provider_that_pydantic_ai_names_is_known() -> None:
    prefixes = {
        name.partition(":")[0] for name in get_args(KnownModelName.__value__) if ":" in name
    }

    assert {prefix for prefix in prefixes if canonical_provider(prefix) not in PROVIDERS} == set()


def test_every_provider_of_the_price_list_is_known() -> None:
    assert {p.id for p in providers if canonical_provider(p.id) not in PROVIDERS} == set()


def test_provider_names_are_themselves_canonical() -> None:
    assert {name for name in PROVIDERS if canonical_provider(name) != name} == set()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o", ["gpt-4o"]),
        ("gpt-4o-2024-08-06", ["gpt-4o-2024-08-06", "gpt-4o"]),
        ("gpt-4-0613", ["gpt-4-0613", "gpt-4"]),
        ("mistral-large-2402", ["mistral-large-2402", "mistral-large"]),
        ("gemini-1.5-pro-002", ["gemini-1.5-pro-002", "gemini-1.5-pro"]),
        ("claude-3-5-sonnet-latest", ["claude-3-5-sonnet-latest", "claude-3-5-sonnet"]),
        ("claude-3-5-sonnet@20240620", ["claude-3-5-sonnet@20240620", "claude-3-5-sonnet"]),
        ("openai/gpt-4o", ["openai/gpt-4o", "gpt-4o"]),
        (
            "us.anthropic.claude-3-5-sonnet-20241022-v2:0",
            [
                "us.anthropic.claude-3-5-sonnet-20241022-v2:0",
                "us.anthropic.claude-3-5-sonnet",
                "claude-3-5-sonnet-20241022-v2:0",
                "claude-3-5-sonnet",
            ],
        ),
        ("deepseek-v3", ["deepseek-v3"]),
        ("gpt-4o-mini", ["gpt-4o-mini"]),
        ("openai/gpt-4o:free", ["openai/gpt-4o:free", "gpt-4o:free"]),
    ],
)
def test_shorter_spellings_of_the_same_model(model: str, expected: list[str]) -> None:
    assert list(spellings(model)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost:11434",
        "localhost:11434/v1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000",
        "http://10.1.2.3/v1",
        "http://192.168.0.7:1234/v1",
        "http://172.16.0.1",
        "http://100.64.0.1",
        "http://169.254.1.1",
        "http://[fe80::1%25eth0]/v1",
        "http://vllm:8000/v1",
        "http://models.internal/v1",
        "http://llm.default.svc.cluster.local/v1",
        "http://HOST.LOCALHOST./v1",
        "http://127.1:8000/v1",
        "http://0x7f.1/v1",
        "http://0177.0.0.1/v1",
        "http://2130706433/v1",
        "http://[::ffff:10.0.0.1]/v1",
        "http://１２７.0.0.1/v1",
        "https://api.openai.com@127.0.0.1/v1",
    ],
)
def test_local_and_private_endpoints(url: str) -> None:
    assert is_private_endpoint(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://8.8.8.8/v1",
        "https://localhost.example.com",
        "https://10.example.com/v1",
        "http://[broken",
        "",
    ],
)
def test_other_endpoints(url: str) -> None:
    assert not is_private_endpoint(url)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://API.Example.com./v1", "api.example.com", None),
        ("http://me:hunter2@127.0.0.1:8000/v1?key=x", "127.0.0.1", 8000),
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("[::1]:8000", "::1", 8000),
        ("http://[fe80::1%25eth0]/v1", "fe80::1", None),
        ("unix:///run/llm.sock", None, None),
        ("http://127.0.0.1 /v1", None, None),
        ("http://127.0.0.1:99999", None, None),
        ("http://\\127.0.0.1/", None, None),
        ("", None, None),
    ],
)
def test_the_host_of_a_url(url: str, host: str | None, port: int | None) -> None:
    assert host_and_port(url) == (host, port)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("http://127.0.0.1:8765/v1", "openai"),
        ("http://me:hunter2@127.0.0.1:8765/v1", "openai"),
        ("127.0.0.1:8765", "openai"),
        ("http://127.0.0.1:8766/v1", None),
        ("http://127.0.0.1/v1", None),
        ("https://proxy.example.com/v1", "groq"),
        ("https://PROXY.example.com:8443/v1", "azure"),
        ("https://x.proxy.example.com/v1", None),
        ("https://secure.example.com/v1", "mistral"),
        ("http://secure.example.com/v1", None),
        ("http://[::1]:9/v1", "cerebras"),
        ("unix:///run/llm.sock", None),
    ],
)
def test_who_bills_for_a_named_host(url: str, provider: str | None) -> None:
    hosts = {
        "127.0.0.1:8765": "openai",
        "proxy.example.com": "groq",
        "proxy.example.com:8443": "azure",
        "secure.example.com:443": "mistral",
        "[::1]:9": "cerebras",
    }
    assert provider_at(url, hosts) == provider
    assert provider_at(url, {}) is None
