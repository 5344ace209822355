"""Which executor runs a pipeline: the pipeline's own, else the router's word, else the variable."""

from __future__ import annotations

from typing import Any

import pytest

from fastroai import BasePipeline, FastroAIError, Pipeline
from fastroai.errors import ExecutorUnavailableError, SettingsError
from fastroai.executors import Executor, InMemoryExecutor, get_executor
from tests.conformance.third_party import OneByOne
from tests.support.steps import Give


class Router(BasePipeline[Any, Any, Any]):
    async def route(self, input_data: Any, deps: Any) -> str:
        return str(input_data["to"])


def test_all_executors_fit_the_protocol() -> None:
    from fastroai.executors import PrefectExecutor

    assert all(isinstance(e, Executor) for e in (InMemoryExecutor(), PrefectExecutor(), OneByOne()))


def test_a_name_stands_for_an_executor() -> None:
    from fastroai.executors import PrefectExecutor

    assert isinstance(get_executor("memory"), InMemoryExecutor)
    assert isinstance(get_executor("prefect"), PrefectExecutor)
    mine = OneByOne()
    assert get_executor(mine) is mine


def test_the_variable_chooses_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastroai.executors import PrefectExecutor

    monkeypatch.setenv("FASTROAI_EXECUTOR", "memory")
    assert isinstance(get_executor(), InMemoryExecutor)
    monkeypatch.delenv("FASTROAI_EXECUTOR")
    assert isinstance(get_executor(), PrefectExecutor)


async def test_the_pipelines_executor_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    mine = OneByOne()
    assert (await Pipeline("mine", {"a": Give(1)}, executor=mine).execute({}, None)).output == 1
    assert mine.names == ["mine"]
    assert (
        await Pipeline("memory", {"a": Give(2)}, executor="memory").execute({}, None)
    ).output == 2


async def test_one_executor_serves_many_pipelines() -> None:
    mine = OneByOne()
    for name in ("first", "second"):
        await Pipeline(name, {"a": Give()}, executor=mine).execute({}, None)
    assert mine.names == ["first", "second"]


async def test_a_routers_executor_runs_whatever_it_chooses() -> None:
    mine = OneByOne()
    router = Router("router", executor=mine)
    router.register_pipeline("a", Pipeline("pa", {"s": Give("A")}))
    assert (await router.execute({"to": "a"}, None)).output == "A"
    assert mine.names == ["pa"]


async def test_a_router_without_one_leaves_each_pipeline_its_own() -> None:
    mine = OneByOne()
    router = Router("router")
    router.register_pipeline("a", Pipeline("pa", {"s": Give("A")}, executor=mine))
    router.register_pipeline("b", Pipeline("pb", {"s": Give("B")}))
    assert [(await router.execute({"to": to}, None)).output for to in "ab"] == ["A", "B"]
    assert mine.names == ["pa"]


@pytest.mark.parametrize("choice", ["ray", "", 7, object()])
async def test_what_is_no_executor_is_refused_before_any_step(choice: Any) -> None:
    probe = Give()
    with pytest.raises(FastroAIError) as caught:
        await Pipeline("p", {"a": probe}, executor=choice).execute({}, None)
    assert probe.runs == 0
    assert repr(choice) in str(caught.value)
    assert "memory" in str(caught.value)
    assert "prefect" in str(caught.value)


async def test_a_bad_variable_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_EXECUTOR", "ray")
    probe = Give()
    with pytest.raises(SettingsError, match="FASTROAI_EXECUTOR='ray'"):
        await Pipeline("p", {"a": probe}).execute({}, None)
    assert probe.runs == 0


async def test_a_server_that_does_not_answer_is_an_error_before_any_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    probe = Give()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ExecutorUnavailableError) as caught,
    ):
        await Pipeline("p", {"a": probe}, executor="prefect").execute({}, None)
    assert probe.runs == 0
    assert "http://127.0.0.1:9/api" in str(caught.value)
    assert "FASTROAI_EXECUTOR=memory" in str(caught.value)
