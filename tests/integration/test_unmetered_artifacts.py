"""Under Prefect, result and artifacts say what a step sent past all meters."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from fastroai import Pipeline, StepContext, step
from tests.integration.read_back import read_run

pytestmark = pytest.mark.usefixtures("prefect_api")


async def test_requests_that_are_not_in_the_books_are_named_in_the_result_and_artifacts() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={}, request=request)

    @step
    async def past(ctx: StepContext[None]) -> str:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            await http.post("https://api.openai.com/v1/responses", json={})
        return "x"

    result = await Pipeline("past", {"past": past}, executor="prefect").execute({}, None)
    assert result.unmetered == {"past": {"api.openai.com": 1}}
    run = await read_run(result.run_id, tasks=1)
    said = "**not in the books**: 1 request to api.openai.com"
    assert said in str(run.artifact("past").description)
    assert said in str(run.artifact().description)
