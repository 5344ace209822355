"""Cost tables that the server does not take at once: tried again, and named if they are lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from fastroai.executors._prefect.artifacts import ArtifactWriter, step_rows
from tests.support.prefect_proxy import ArtifactProxy
from tests.support.prefect_server import prefect_settings


@pytest.fixture
def proxy(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ArtifactProxy]:
    with (
        ArtifactProxy(prefect_server) as running,
        prefect_settings(running.url, tmp_path / "results", monkeypatch),
    ):
        yield running


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What fastroai warns of; its logger may not pass it on under Prefect's configuration."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fastroai.executors").addHandler(handler)
    yield messages
    logging.getLogger("fastroai.executors").removeHandler(handler)


async def write(timeout: float, *keys: str) -> None:
    async with ArtifactWriter(timeout) as artifacts:
        for key in keys:
            artifacts.add(key, step_rows([]), "a table", flow_run_id=None)


async def stored(key: str) -> int:
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        )
    return len(found)


async def test_a_table_that_the_server_refused_for_a_while_is_written_before_the_run_ends(
    proxy: ArtifactProxy, warnings: list[str]
) -> None:
    proxy.refusals = 3
    await write(15, "costs-late--a", "costs-late--b")
    assert proxy.refusals < 0
    assert await stored("costs-late--a") == await stored("costs-late--b") == 1
    assert warnings == []


async def test_a_server_that_takes_no_tables_ends_the_wait_and_the_missing_ones_are_named_once(
    proxy: ArtifactProxy, warnings: list[str]
) -> None:
    proxy.opened.clear()
    await write(0.3, "costs-lost--a", "costs-lost--b")
    [warning] = warnings
    for part in ("costs-lost--a", "costs-lost--b", "FASTROAI_ARTIFACT_TIMEOUT"):
        assert part in warning
    assert proxy.passed == 0


async def test_of_very_many_missing_tables_only_some_are_named(
    proxy: ArtifactProxy, warnings: list[str]
) -> None:
    proxy.opened.clear()
    await write(0.3, *(f"costs-many--{number}" for number in range(30)))
    [warning] = warnings
    assert "costs-many--0," in warning
    assert "and 20 more" in warning


async def test_a_table_that_can_never_be_written_is_not_tried_again(
    proxy: ArtifactProxy, warnings: list[str]
) -> None:
    proxy.refusals, proxy.status = 5, 400
    await write(15, "costs-invalid")
    assert proxy.refusals == 4
    assert "costs-invalid" in warnings[0]
