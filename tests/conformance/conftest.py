"""The executors the behaviour suite runs on."""

from __future__ import annotations

import pytest

from fastroai.executors import Executor
from tests.conformance.third_party import OneByOne


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
