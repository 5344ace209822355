"""Who started a flow run, as its entries say it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from fastroai.executors._prefect.deployments import creator


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, None),
        ({"auto_scheduled": True}, "schedule"),
        ({"created_by": {"type": "SCHEDULE", "display_value": "nightly"}}, "schedule:nightly"),
        ({"created_by": {"type": "USER", "display_value": "anna"}}, "user:anna"),
        ({"created_by": {"type": "AUTOMATION"}}, "automation"),
        ({"created_by": {}, "auto_scheduled": True}, "schedule"),
    ],
)
def test_a_flow_runs_creator_is_named_by_kind(given: dict[str, Any], said: str | None) -> None:
    assert creator(FlowRun(flow_id=uuid4(), **given)) == said
