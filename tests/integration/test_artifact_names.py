"""Artifact keys: the same for each run of a step, and never shared with a stranger."""

from __future__ import annotations

import itertools

import pytest

NAMES = [
    *[
        ("a-b", "c"),
        ("a", "b-c"),
        ("a", "b_c"),
        ("a_b", "c"),
        ("a b", "c"),
        ("a", "b"),
        ("a--b", None),
        ("costs", "a"),
    ],
    *[
        ("a", None),
        ("A", None),
        ("日本", None),
        ("中国", None),
        ("a", "日"),
        ("a", "月"),
        ("", "x"),
    ],
]


def test_different_names_have_different_keys_in_the_letters_that_prefect_allows() -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    from fastroai.executors._prefect.artifacts import artifact_key

    keys = [artifact_key(*names) for names in NAMES]
    assert [ArtifactCreate(key=key).key for key in keys] == keys  # refuses other letters
    for (one, key), (other, other_key) in itertools.combinations(zip(NAMES, keys, strict=True), 2):
        assert key != other_key, (one, other)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("licence-review", None), "costs-licence-review"),
        (("licence-review", "open_points"), "costs-licence-review--open-points"),
    ],
)
def test_usual_names_stay_readable(names: tuple[str, str | None], key: str) -> None:
    from fastroai.executors._prefect.artifacts import artifact_key

    assert artifact_key(*names) == key
