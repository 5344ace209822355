"""The reference of the site: every public name is in it, once, and each page is reached
from the navigation.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fastroai import errors
from tests.contract.test_public_names import PUBLISHED

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [
    *PUBLISHED,
    "fastroai.budgets",
    "fastroai.executors",
    "fastroai.executors.stored_results",
    "fastroai.pipelines.executor",
    "fastroai.testing",
]


def documented() -> list[str]:
    """Paths of the names that have a place in the reference."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


def found(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str):
    paths = documented()
    # Classes and functions count under whichever of their public paths; of constants, which may
    # be equal by chance, only their own counts.
    described = {id(found(path)) for path in paths if hasattr(found(path), "__qualname__")}
    imported: ModuleType = import_module(module)
    missing = [
        name
        for name in imported.__all__
        if name != "__version__"
        and f"{module}.{name}" not in paths
        and id(getattr(imported, name)) not in described
    ]
    assert missing == []


def test_every_error_is_in_the_reference():
    own = {name for name, value in vars(errors).items() if isinstance(value, type)}
    own = {name for name in own if getattr(errors, name).__module__ == errors.__name__}
    assert {f"fastroai.errors.{name}" for name in own if name[0] != "_"} <= set(documented())


def test_a_name_is_described_once():
    paths = documented()
    assert sorted(paths) == sorted(set(paths))


def test_the_navigation_names_every_page_and_no_other():
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [page for one in inner for page in pages(one)]

    listed = pages(yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(str(one.relative_to(DOCS)) for one in DOCS.rglob("*.md"))
