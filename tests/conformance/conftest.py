"""The executors the behaviour suite runs on.

Two more have every step in another process, where their packages are: `dask` and `ray`. What can't
be looked at there has the mark `one_process`, with the reason; all else holds there too.
"""

from __future__ import annotations

import pytest

from fastroai.executors import Executor
from tests.conformance.in_threads import InThreads
from tests.conformance.third_party import OneByOne
from tests.support.remote_runners import MISSING, RUNNERS, all_remote

SAMPLE = {
    ("dask", "test_a_diamond_runs_in_order"),
    ("dask", "test_an_item_is_tried_again_by_itself"),
    ("dask", "test_a_tool_loop_is_neither_sent_nor_executed_again"),
    ("dask", "test_the_pipelines_budget_is_the_total_of_the_run"),
    ("ray", "test_a_diamond_runs_in_order"),
}
"""What `make test` runs in other processes, or says why it can't."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with several cases, the first is one for `make test` under Prefect, where a run
    takes half a second, and of a test of what is no executor's, none; all cases are in
    `make test-long`, and in memory.
    """
    seen: set[str] = set()
    elsewhere: list[pytest.Item] = []
    for item in items:
        kind, name = _executor_of(item), item.nodeid.partition("[")[0]
        is_more = name in seen or item.get_closest_marker("same_under_prefect")
        is_remote, is_sample = kind in RUNNERS, (kind, name.rpartition("::")[2]) in SAMPLE
        is_shown = is_sample or kind not in MISSING
        if is_remote and (item.get_closest_marker("one_process") or not is_shown):
            elsewhere.append(item)
        elif (kind == "prefect" and is_more) or (is_remote and not is_sample):
            item.add_marker(pytest.mark.long)
        if kind == "prefect":
            seen.add(name)
    items[:] = [item for item in items if item not in elsewhere]
    config.hook.pytest_deselected(items=elsewhere)


def _executor_of(item: pytest.Item) -> object:
    case = getattr(item, "callspec", None)
    params = {} if case is None else case.params
    return params.get("executor", params.get("any_executor"))


@pytest.fixture(params=["memory", "prefect", *RUNNERS])
def executor(request: pytest.FixtureRequest) -> Executor | str:
    """Each of our own executors, by name; Prefect's on a real server."""
    return _executor(request)


THIRD_PARTIES = {"third party": OneByOne, "threads": InThreads}


@pytest.fixture(params=["memory", "prefect", *THIRD_PARTIES, *RUNNERS])
def any_executor(request: pytest.FixtureRequest) -> Executor | str:
    """Our own executors, one that knows nothing but the protocol, and one of the parts that are
    public, for what any executor must do.
    """
    third_party = THIRD_PARTIES.get(request.param)
    return third_party() if third_party is not None else _executor(request)


def _executor(request: pytest.FixtureRequest) -> Executor | str:
    name = str(request.param)
    remote = all_remote(name) if name in RUNNERS else None
    if name != "memory":
        request.getfixturevalue("prefect_api")
    return remote or name
