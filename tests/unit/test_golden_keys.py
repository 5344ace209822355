"""Keys written down: the same steps have the same keys in every process, on every machine and
Python version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

FINGERPRINTS = {
    "read": "b4995eff7edf66df040fc314268d5c2f3a4d0216987a43a360ffe6063a265735",
    "count": "c3b0884cf74c264081c6c736e6268bf605ae180336242696a144ed02f665109d",
    "longest": "05d32036fa9afef3ed01a6aed2396c18c5ce0577e69a0efa80ac3a18998e3804",
    "ask": "0efd6cfafb2adacbe4a405b4beda4785b58094e781b93cb882a4dd3e15df29f0",
}

KEYS = {
    "read None": "7da7d21621ffc11c21c5b4576a66f19b1f26aec12d5031adac497cf75916d62f",
    "read run-1": "ac135857c5044e8e5ef029759ac246ac2a9e0a3d59b83b4b8acee200559aafe2",
    "count None": "16e24e4b6ed5de15337b75b40ec9e5d2f99afc4c57a30711b6ba3dd998415367",
    "count run-1": "a502ad1ee77d9c6032f9911401dd166866a8548badfb477bdc6adcac49aaa513",
}

PROGRAM = """
import json
from fastroai.executors._prefect.caching import CacheKey, StepIdentity
from fastroai.serialization.canonical_json import digest
from fastroai.fingerprint.steps import fingerprint
from tests.support.golden_steps import STEPS

inputs = digest({"text": "alpha", "amount": 0.0, "tags": {"a", "b", "c"}})
found = {name: fingerprint(step) for name, step in STEPS.items()}
identities = {
    name: StepIdentity("golden", name, found[name], inputs, {"up": digest([1, 2.5])}, scope)
    for name, scope in {"read": None, "count": "tenant"}.items()
}
keys = {
    f"{name} {run}": CacheKey(vars(identity), run).digest()
    for name, identity in identities.items()
    for run in (None, "run-1")
}
print(json.dumps([found, keys]))
"""

PURE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("source", "fastroai/fingerprint/functions.py")
source = importlib.util.module_from_spec(spec)
sys.modules["source"] = source
spec.loader.exec_module(source)
path = "tests/support/golden_steps.py"
codes = source.nested_codes(compile(open(path).read(), path, "exec", dont_inherit=True))
names = ("shorten", "lookup", "_counts", "longest", "<lambda>")
functions = [code for code in codes if code.co_name in names]
found = [[code.co_name, source.source_of(code, {})] for code in functions]
print(json.dumps([[name, s.identity, s.globals, sorted(s.references)] for name, s in found]))
"""

SOURCES = [
    ["shorten", "406a90eef71989f7b7173a8b569cda0c0c3ca82afe478d0eba03211582a37b7f"],
    ["lookup", "34b7d09b96dd8c9639c5478b190e6ceeca6ff453f31fffbe1496d1f4f35c45bc"],
    ["_counts", "81cd0f2e749ef79024c7e2e0ef801319937134671a689dbd45543dc10d73d2c8"],
    ["longest", "b35249330bebd316f58481ae7db4caddeb9a138d5262e3acdad18905f01ba8f2"],
    ["<lambda>", "e00361ea89f84a58417193aa6bb7c43b460d0e58c6f41eb54fc535d4b4afdc3c"],
    ["<lambda>", "33d2afd876b932a04f00768c06c180910e43ec094ee0cfc0851c7facc278a8aa"],
]


def run(python: str, program: str, seed: str, folder: Path = REPOSITORY) -> str:
    environment = os.environ | {
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [python, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [pytest.param("0", marks=pytest.mark.long), "2026"])
def test_a_process_with_any_hash_seed_finds_the_same_keys(seed: str):
    assert json.loads(run(sys.executable, PROGRAM, seed)) == [FINGERPRINTS, KEYS]


def test_another_folder_finds_the_same_keys(tmp_path: Path):
    """As on another machine: nothing of where the code stands is in a key."""
    shutil.copytree(REPOSITORY / "fastroai", tmp_path / "fastroai")
    (tmp_path / "tests" / "support").mkdir(parents=True)
    for name in ("__init__.py", "support/__init__.py", "support/golden_steps.py"):
        shutil.copy(REPOSITORY / "tests" / name, tmp_path / "tests" / name)
    assert json.loads(run(sys.executable, PROGRAM, "7", tmp_path)) == [FINGERPRINTS, KEYS]


def other_pythons() -> list[str]:
    names = [f"python3.{minor}" for minor in range(11, 16)]
    return [name for name in names if shutil.which(name) and _starts(name)]


def _starts(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


@pytest.mark.parametrize("python", [sys.executable, *other_pythons()])
def test_another_python_reads_the_same_of_the_source(python: str):
    found = json.loads(run(python, PURE, "3"))
    assert [[name, identity] for name, identity, _, _ in found] == SOURCES
    assert {name: read for name, _, read, _ in found if name != "<lambda>"} == {
        "shorten": ["LIMITS"],
        "lookup": ["shorten"],
        "_counts": ["WORDS", "len"],
        "longest": ["max"],
    }
