"""What a step's task hands to Prefect."""

from __future__ import annotations

from typing import Any

from prefect.states import Completed
from prefect.utilities.collections import visit_collection

from fastroai.executors._prefect.results import StoredStep


def test_prefect_does_not_walk_through_what_a_step_stores() -> None:
    stored = StoredStep({"output": {"amounts": ["1.20", "6.00"]}})
    visited: list[Any] = []
    visit_collection([Completed(data=stored)], visited.append)
    assert stored in visited
    assert not any(each in ("output", "amounts", "1.20") for each in visited)
    assert stored.content not in visited
