"""Stored results of runs under Prefect: reading them, and deleting old ones."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..settings import load_settings
from ..storage.retention import Pruned, cutoff, prune

if TYPE_CHECKING:
    from ..pipelines.pipeline import Pipeline
    from ._prefect.inspection import StoredResult
    from ._prefect.misses import MissExplanation

__all__ = ["Pruned", "cutoff", "explain_miss", "prune_results", "read_stored_result"]


async def read_stored_result(
    run: str,
    step_id: str,
    *,
    storage: object = None,
    pipeline: Pipeline[Any, Any, Any] | None = None,
    item: str | None = None,
) -> StoredResult:
    """Find and read the result that a step of a run stored; of a mapped step, its items.

    With `cache_policy="inputs"` these are all that the run could use, those that others have left
    included.

    Args:
        run: Id or name of the flow run.
        step_id: The step.
        storage: Where it is, as `FASTROAI_RESULT_STORAGE`. None: as the settings say; a local
            record is found anyway.
        pipeline: Decodes the output by the type that its step declares.
        item: Key of the one item that is read.

    Raises:
        ResultStorageError: No such run or step, nothing stored, or a record that is not valid.
            Says which.
    """
    from ._prefect.inspection import read_stored_result

    return await read_stored_result(
        run, step_id, settings=load_settings(), storage=storage, pipeline=pipeline, item=item
    )


async def explain_miss(run: str, step_id: str, *, storage: object = None) -> MissExplanation:
    """Say why a step of a run was executed although results of it are stored.

    Args: as of `read_stored_result`.

    Raises:
        ResultStorageError: No such run or step, or it stored no result that could be compared.
    """
    from ._prefect.misses import explain_miss

    return await explain_miss(run, step_id, settings=load_settings(), storage=storage)


async def prune_results(
    *,
    older_than: timedelta,
    storage: object = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Pruned:
    """Delete results and recorded requests that were last written long ago; see
    `fastroai.storage.retention.prune`.

    Args:
        storage: Where, as `FASTROAI_RESULT_STORAGE`. None: as the settings say.
    """
    from ._prefect.blocks import open_storage_choice

    settings = load_settings()
    choice = storage if storage is not None else settings.result_storage
    objects, described = await open_storage_choice(choice, settings)
    return await prune(objects, described, older_than=older_than, dry_run=dry_run, now=now)
