"""Prices of requests beside what the provider published, worked out by hand.

Each row says in plain numbers how its amount comes about: rates in USD per million tokens as the
provider's page has them, times the tokens of the row. Nothing here is computed by the code under
test. The price list is the package genai-prices, pinned in constraints.txt, so a row stays right
until that pin moves. A row that then fails is a question, not a nuisance: look the rate up at the
row's source. If the provider changed it from a day on, keep the row with its date and add one after
that day; if the list was wrong before, correct the row; if the list is wrong now, keep the row as
it is and keep the pin where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai.usage import RequestUsage

from fastroai.usage import CostCalculator

OPENAI = "developers.openai.com/api/docs/pricing"
ANTHROPIC = "platform.claude.com/docs/en/about-claude/pricing"
GOOGLE = "ai.google.dev/gemini-api/docs/pricing"
DEEPSEEK = "api-docs.deepseek.com/quick_start/pricing"
MISTRAL = "mistral.ai/pricing"
PERPLEXITY = "docs.perplexity.ai/getting-started/pricing"

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One request and its price.

    Attributes:
        model: `provider:model`.
        usd: The exact total.
        sum: How it comes about: rate x tokens / 1e6 for each kind of token, and the fees.
        source: Where the rates are published.
        fees: The part of it that is charged per request or search.
    """

    what: str
    model: str
    usage: dict[str, int]
    usd: str
    sum: str
    source: str
    at: datetime = NOW
    context: dict[str, str] = field(default_factory=dict)
    fees: str = "0"
    url: str | None = None


def tokens(into: int, out: int = 0, **more: int) -> dict[str, int]:
    return {"input_tokens": into, "output_tokens": out, **more}


ROWS = [
    # Plain, and cached reads.
    Row("plain", "openai:gpt-4o", tokens(1000, 500), "0.0075", "2.50 x 1000 + 10 x 500", OPENAI),
    Row(
        "plain small",
        "openai:gpt-4o-mini",
        tokens(1, 1),
        "0.00000075",
        "0.15 x 1 + 0.60 x 1",
        OPENAI,
    ),
    Row(
        "half of the input cached",
        "openai:gpt-5-mini",
        tokens(1000, 100, cache_read_tokens=500),
        "0.0003375",
        "0.25 x 500 + 0.025 x 500 + 2 x 100",
        OPENAI,
    ),
    Row(
        "all cached",
        "openai:gpt-4.1",
        tokens(10_000, 0, cache_read_tokens=10_000),
        "0.005",
        "0.50 x 10000",
        OPENAI,
    ),
    # Cache writes: five minutes at 1.25, one hour at 2, reads at 0.1 of the input rate.
    Row(
        "cache write for five minutes",
        "anthropic:claude-haiku-4-5",
        tokens(10_000, 100, cache_write_tokens=4_000),
        "0.0115",
        "1 x 6000 + 1.25 x 4000 + 5 x 100",
        ANTHROPIC,
    ),
    Row(
        "cache write for an hour",
        "anthropic:claude-haiku-4-5",
        tokens(10_000, 100, cache_write_tokens=4_000, cache_write_1h_tokens=4_000),
        "0.0145",
        "1 x 6000 + 2 x 4000 + 5 x 100",
        ANTHROPIC,
    ),
    Row(
        "all cache classes at once",
        "anthropic:claude-opus-4-8",
        tokens(
            10_000,
            1_000,
            cache_read_tokens=2_000,
            cache_write_tokens=3_000,
            cache_write_1h_tokens=1_000,
        ),
        "0.0735",
        "5 x 5000 + 0.50 x 2000 + 6.25 x 2000 + 10 x 1000 + 25 x 1000",
        ANTHROPIC,
    ),
    # Tiers are cliffs: one token more, and all of them cost the higher rate.
    Row(
        "at the edge of a tier",
        "google:gemini-2.5-pro",
        tokens(200_000, 1_000),
        "0.26",
        "1.25 x 200000 + 10 x 1000",
        GOOGLE,
    ),
    Row(
        "one token over the edge",
        "google:gemini-2.5-pro",
        tokens(200_001, 1_000),
        "0.5150025",
        "2.50 x 200001 + 15 x 1000",
        GOOGLE,
    ),
    Row(
        "cached tokens count towards the tier and cost its cached rate",
        "google:gemini-2.5-pro",
        tokens(300_000, 1_000, cache_read_tokens=200_000),
        "0.315",
        "2.50 x 100000 + 0.25 x 200000 + 15 x 1000",
        GOOGLE,
    ),
    Row(
        "three requests below the tier, each",
        "openai:gpt-5.4",
        tokens(100_000, 100),
        "0.2515",
        "2.50 x 100000 + 15 x 100",
        OPENAI,
    ),
    Row(
        "their tokens in one request are above it",
        "openai:gpt-5.4",
        tokens(300_000, 300),
        "1.50675",
        "5 x 300000 + 22.50 x 300",
        OPENAI,
    ),
    # Service tiers.
    Row(
        "flex",
        "openai:gpt-5-mini",
        tokens(1000, 100, cache_read_tokens=500),
        "0.00016875",
        "0.125 x 500 + 0.0125 x 500 + 1 x 100",
        OPENAI,
        context={"service_tier": "flex"},
    ),
    Row(
        "priority",
        "openai:gpt-5-mini",
        tokens(1000, 100, cache_read_tokens=500),
        "0.0006075",
        "0.45 x 500 + 0.045 x 500 + 3.60 x 100",
        OPENAI,
        context={"service_tier": "priority"},
    ),
    Row(
        "default, as the answer names it",
        "openai:gpt-5-mini",
        tokens(1000, 100, cache_read_tokens=500),
        "0.0003375",
        "0.25 x 500 + 0.025 x 500 + 2 x 100",
        OPENAI,
        context={"service_tier": "default"},
    ),
    Row(
        "batch is half",
        "anthropic:claude-haiku-4-5",
        tokens(1000, 100, cache_read_tokens=400),
        "0.00057",
        "0.50 x 600 + 0.05 x 400 + 2.50 x 100",
        ANTHROPIC,
        context={"processing": "batch"},
    ),
    Row(
        "fast mode",
        "anthropic:claude-opus-4-8",
        tokens(1000, 100),
        "0.015",
        "10 x 1000 + 50 x 100",
        ANTHROPIC,
        context={"speed": "fast"},
    ),
    # Dated prices.
    Row(
        "the day before a price was cut",
        "openai:o3",
        tokens(1000, 100),
        "0.014",
        "10 x 1000 + 40 x 100",
        "community.openai.com/t/o3-is-80-cheaper-and-introducing-o3-pro",
        at=datetime(2025, 6, 9, 23, 59, tzinfo=UTC),
    ),
    Row(
        "the day it was cut",
        "openai:o3",
        tokens(1000, 100),
        "0.0028",
        "2 x 1000 + 8 x 100",
        OPENAI,
        at=datetime(2025, 6, 10, tzinfo=UTC),
    ),
    Row(
        "an alias before it moved to another model",
        "mistral:mistral-medium-latest",
        tokens(1000, 100),
        "0.0006",
        "0.40 x 1000 + 2 x 100",
        MISTRAL,
        at=datetime(2026, 6, 15, tzinfo=UTC),
    ),
    Row(
        "and after",
        "mistral:mistral-medium-latest",
        tokens(1000, 100),
        "0.00225",
        "1.50 x 1000 + 7.50 x 100",
        MISTRAL,
        at=datetime(2026, 6, 16, tzinfo=UTC),
    ),
    # Time of day; the list knows hours, not weekends.
    Row(
        "peak, its first minute",
        "deepseek:deepseek-flash",
        tokens(1000, 1000, cache_read_tokens=500),
        "0.001353",
        "0.30 x 500 + 0.006 x 500 + 1.20 x 1000",
        DEEPSEEK,
        at=datetime(2026, 11, 20, 6, 0, tzinfo=UTC),
    ),
    Row(
        "off-peak, the first minute after",
        "deepseek:deepseek-flash",
        tokens(1000, 1000, cache_read_tokens=500),
        "0.0006765",
        "0.15 x 500 + 0.003 x 500 + 0.60 x 1000",
        DEEPSEEK,
        at=datetime(2026, 11, 20, 10, 0, tzinfo=UTC),
    ),
    # One model, several providers.
    Row(
        "by Cerebras",
        "cerebras:gpt-oss-120b",
        tokens(1_000_000, 1_000_000),
        "1.10",
        "0.35 x 1000000 + 0.75 x 1000000",
        "cerebras.ai/pricing",
    ),
    Row(
        "by Groq",
        "groq:openai/gpt-oss-120b",
        tokens(1_000_000, 1_000_000),
        "0.75",
        "0.15 x 1000000 + 0.60 x 1000000",
        "groq.com/pricing",
    ),
    Row(
        "by who answers at the URL, whatever the client is called",
        "openai:gpt-oss-120b",
        tokens(1_000_000, 1_000_000),
        "1.10",
        "0.35 x 1000000 + 0.75 x 1000000",
        "cerebras.ai/pricing",
        url="https://api.cerebras.ai/v1",
    ),
    Row(
        "by Bedrock in any region",
        "bedrock:global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        tokens(10_000, 1_000),
        "0.045",
        "3 x 10000 + 15 x 1000",
        "aws.amazon.com/bedrock/pricing",
    ),
    Row(
        "by Bedrock in a region, a tenth more",
        "bedrock:us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        tokens(10_000, 1_000),
        "0.0495",
        "3.30 x 10000 + 16.50 x 1000",
        "aws.amazon.com/bedrock/pricing",
    ),
    # What is charged by the use.
    Row(
        "three web searches",
        "anthropic:claude-haiku-4-5",
        tokens(1000, 100, web_searches=3),
        "0.0315",
        "1 x 1000 + 5 x 100, and 3 x 10 / 1000 for the searches",
        ANTHROPIC,
        fees="0.03",
    ),
    Row(
        "web and file searches",
        "openai:gpt-4o",
        tokens(1000, 0, web_searches=2, storage_searches=4),
        "0.0325",
        "2.50 x 1000, 2 x 10 / 1000 and 4 x 2.50 / 1000",
        OPENAI,
        fees="0.03",
    ),
    Row(
        "web searches have no batch discount",
        "anthropic:claude-haiku-4-5",
        tokens(1000, 0, web_searches=1),
        "0.0105",
        "0.50 x 1000, and 10 / 1000 for the search",
        ANTHROPIC,
        context={"processing": "batch"},
        fees="0.01",
    ),
    Row(
        "a fee for the request",
        "perplexity:sonar-pro",
        tokens(1000, 100),
        "0.0185",
        "3 x 1000 + 15 x 100, and 14 / 1000 for the request",
        PERPLEXITY,
        fees="0.014",
    ),
    Row(
        "searches, and reasoning at a rate of its own",
        "perplexity:sonar-deep-research",
        tokens(100, 1_000, output_reasoning_tokens=600, web_searches=5),
        "0.0302",
        "2 x 100 + 8 x 400 + 3 x 600, and 5 x 5 / 1000 for the searches",
        PERPLEXITY,
        fees="0.025",
    ),
    # Audio.
    Row(
        "audio costs more than text",
        "google:gemini-2.5-flash",
        tokens(1000, 100, input_audio_tokens=600),
        "0.00097",
        "0.30 x 400 + 1 x 600 + 2.50 x 100",
        GOOGLE,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}: {row.what}")
def test_a_request_costs_what_its_provider_published(row: Row) -> None:
    context: dict[str, Any] = dict(row.context)

    price = CostCalculator().price(
        RequestUsage(**row.usage), row.model, provider_url=row.url, at=row.at, context=context
    )

    assert price.total == Decimal(row.usd), row.sum
    assert price.request_fees == Decimal(row.fees), row.sum


def test_every_row_shows_its_sum_and_its_source() -> None:
    """The sum of a row, worked out from its own text, is its amount."""
    for row in ROWS:
        assert row.source, row.what
        per_million = Decimal(0)
        fees = Decimal(0)
        for term in (
            row.sum.replace(", and ", " + ")
            .replace(", ", " + ")
            .replace(" and ", " + ")
            .split(" + ")
        ):
            numbers = [Decimal(n) for n in term.split(" for ")[0].replace("/", "x").split(" x ")]
            if "/ 1000" in term:
                *factors, thousand = numbers
                fees += Decimal(1) * factors[0] * (factors[1] if len(factors) > 1 else 1) / thousand
            else:
                per_million += numbers[0] * numbers[1]
        assert per_million / 1_000_000 + fees == Decimal(row.usd), row.what
        assert fees == Decimal(row.fees), row.what
