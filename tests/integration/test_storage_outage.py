"""S3 that dies at any request of a run: what its store says then, and what it says that is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fastroai.errors import ResultStorageError
from fastroai.settings import load_settings
from fastroai.storage.location import open_object_store
from fastroai.storage.result_store import ResultStore
from fastroai.storage.signing import Signer
from tests.support.fragile_s3 import MOMENTS, FragileS3, Moment, fragile_s3

__all__ = ["fragile_s3"]

PROBE = ["PUT", "GET", "DELETE", "GET"]
"""The last is of what is not there."""

ONE_STEP = ["GET", "PUT", "PUT"]
"""Is there a result; the answer to the request within it; the result."""

BOTH, LAST = {"a", "b"}, {"b"}
LOST: list[tuple[int, Moment, set[str]]] = [
    (6, "during", BOTH),  # what a was answered is written
    (7, "after", LAST),  # a is written
    (10, "after", set()),  # b is written
]
# Of b, what is asked as of a; and what is no other request for being gone a moment sooner.
LOST_AGAIN: list[tuple[int, Moment, set[str]]] = [
    *[(5, moment, BOTH) for moment in MOMENTS],  # a is looked for
    (7, "before", BOTH),
    (7, "during", BOTH),
    (10, "before", LAST),
    *[(8, moment, LAST) for moment in MOMENTS],  # b is looked for
    (9, "during", LAST),
    (10, "during", LAST),
]


def store() -> ResultStore:
    """On a clock that runs fast, so that it gives up soon."""
    settings = load_settings()
    return ResultStore(
        open_object_store("s3://results/p", settings),
        Signer(),
        retry_seconds=2.0,
        described="'s3://results/p'",
        clock=lambda: 10 * time.monotonic(),
    )


async def two_steps(results: ResultStore) -> dict[str, str]:
    """As a run of two steps with a request each uses its storage; what is lost of it."""
    await results.probe()
    for step, key in (("a", "aa" * 32), ("b", "bb" * 32)):
        # A record that can't be read is not used.
        with pytest.raises(Exception):  # noqa: B017, PT011  # of boto3, or that there is none
            await results.read(key)
        await results.write(f"requests/{key}-1", b'{"answer":1}', None)
        await results.write(key, b'{"output":1}', step)
    return await results.flush(wait=True)


def _named(value: Any) -> str:
    return "+".join(sorted(value)) or "none" if isinstance(value, set) else str(value)


async def test_what_a_run_asks_of_a_storage_that_works(fragile_s3: FragileS3):
    assert await two_steps(store()) == {}
    assert [r.method for r in fragile_s3.requests] == PROBE + ONE_STEP + ONE_STEP


@pytest.mark.parametrize(
    ("number", "moment", "lost"),
    [*LOST, *(pytest.param(*case, marks=pytest.mark.long) for case in LOST_AGAIN)],
    ids=_named,
)
async def test_killed_before_during_or_after_a_step_all_that_is_lost_is_named(
    fragile_s3: FragileS3, number: int, moment: Moment, lost: set[str]
):
    fragile_s3.die_at(number, moment)
    assert set(await two_steps(store())) == lost


@pytest.mark.parametrize(
    "number", [1, 4, *(pytest.param(number, marks=pytest.mark.long) for number in (2, 3))]
)
async def test_killed_while_it_is_probed_it_is_named(fragile_s3: FragileS3, number: int):
    fragile_s3.die_at(number, "during" if number == 1 else "before")
    with pytest.raises(ResultStorageError, match="s3://results/p"):
        await store().probe()
