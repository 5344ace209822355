"""The executors the behaviour suite runs on."""

from __future__ import annotations

import pytest

from fastroai.executors import Executor
from tests.conformance.third_party import OneByOne


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with several cases, the first is one for `make test` under Prefect, where a run
    takes half a second, and of a test of what is no executor's, none; all cases are in
    `make test-long`, and in memory.
    """
    seen: set[str] = set()
    for item in items:
        case = getattr(item, "callspec", None)
        if case is not None and "prefect" in map(case.params.get, ("executor", "any_executor")):
            name = item.nodeid.partition("[")[0]
            if name in seen or item.get_closest_marker("same_under_prefect"):
                item.add_marker(pytest.mark.long)
            seen.add(name)


@pytest.fixture(params=["memory", "prefect"])
def executor(request: pytest.FixtureRequest) -> str:
    """Each of our own executors, by name; Prefect's on a real server."""
    if request.param == "prefect":
        request.getfixturevalue("prefect_api")
    return str(request.param)


@pytest.fixture(params=["memory", "prefect", "third party"])
def any_executor(request: pytest.FixtureRequest) -> Executor | str:
    """Our own executors and one that knows nothing but the protocol, for what any executor
    must do.
    """
    if request.param == "third party":
        return OneByOne()
    if request.param == "prefect":
        request.getfixturevalue("prefect_api")
    return str(request.param)
