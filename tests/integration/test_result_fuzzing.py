"""Stored records damaged, forged and swapped: no code runs, no wrong value is taken, the step is
run again.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fastroai import BaseStep, Pipeline, PipelineConfig, StepContext
from fastroai.executors import PrefectExecutor
from fastroai.storage.signing import Signer

pytestmark = pytest.mark.usefixtures("prefect_api")

SECRET = "a secret of 24 characters"

Change = Callable[[bytes, str], bytes]
"""Another record in the place of one, given its name."""


class Invoice(BaseModel):
    step: str
    amount: int
    tags: set[str] = set()


class Pay(BaseStep[Any, Invoice]):
    """Gives an invoice of its own, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    async def execute(self, context: StepContext[Any]) -> Invoice:
        self.runs += 1
        return invoice(context.step_id)


def invoice(step_id: str) -> Invoice:
    return Invoice(step=step_id, amount=123_456, tags={"a", "b"})


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


EXECUTED = "executed"
PLANTED_MODULE = "planted_by_a_record"


def flipped(seed: int) -> Change:
    def change(content: bytes, name: str) -> bytes:
        rng, damaged = random.Random(seed), bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 40])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged) if bytes(damaged) != content else content[:-1]

    return change


def cut(seed: int) -> Change:
    def change(content: bytes, name: str) -> bytes:
        rng = random.Random(seed)
        return (
            content[: rng.randrange(len(content))]
            if seed % 2
            else content[rng.randrange(1, len(content)) :]
        )

    return change


def resealed(alter: Callable[[dict[str, Any]], Any]) -> Change:
    """What one who knows our format, but no secret, can plant: the record is altered and sealed
    again.
    """

    def change(content: bytes, name: str) -> bytes:
        record = json.loads(content)
        del record["seal"]
        altered = alter(record)
        raw = altered if isinstance(altered, bytes) else json.dumps(altered).encode()
        return Signer().close(name, raw) if raw.startswith(b'{"') else raw

    return change


def with_serializer(serializer: dict[str, Any], result: Callable[[str], str]) -> Change:
    def alter(record: dict[str, Any]) -> dict[str, Any]:
        record["metadata"]["serializer"] = serializer
        return record | {"result": result(record["result"])}

    return resealed(alter)


def with_stored(alter: Callable[[dict[str, Any]], Any]) -> Change:
    """Our own serializer, and within it something else."""

    def change_result(record: dict[str, Any]) -> dict[str, Any]:
        altered = alter(json.loads(record["result"]))
        return record | {"result": altered if isinstance(altered, str) else json.dumps(altered)}

    return resealed(change_result)


def with_output(**output: Any) -> Change:
    return with_stored(lambda stored: stored | {"output": stored["output"] | output})


def with_value(**changes: Any) -> Change:
    def alter(stored: dict[str, Any]) -> dict[str, Any]:
        return stored | {
            "output": stored["output"] | {"value": stored["output"]["value"] | changes}
        }

    return with_stored(alter)


def pickled(text: str) -> str:
    return base64.b64encode(pickle.dumps(Evil(EXECUTED))).decode()


def class_named(text: str) -> str:
    return json.dumps({"__class__": f"{PLANTED_MODULE}.Thing", "data": {}})


def deep(open_: str, close: str) -> str:
    return open_ * 50_000 + close * 50_000


CHANGES: dict[str, Change] = {
    **{f"bits flipped {n}": flipped(n) for n in range(24)},
    **{f"cut {n}": cut(n) for n in range(8)},
    "a digit changed": lambda content, name: content.replace(b"123456", b"923456"),
    "emptied": lambda content, name: b"",
    "an HTML page": lambda content, name: b"<html>Access denied</html>",
    "no seal": lambda content, name: b"{" + content[content.index(b',"') + 1 :],
    "gzip of something else": lambda content, name: gzip.compress(b"{}"),
    "gzip cut off": lambda content, name: gzip.compress(content)[:-3],
    "a pickle alone": lambda content, name: pickle.dumps(Evil(EXECUTED)),
    "a pickle record": with_serializer({"type": "pickle", "picklelib": "pickle"}, pickled),
    "a cloudpickle record": with_serializer({"type": "pickle"}, pickled),
    "a compressed pickle": with_serializer(
        {"type": "compressed/pickle", "compressionlib": "gzip"},
        lambda text: base64.b64encode(gzip.compress(pickled(text).encode())).decode(),
    ),
    "Prefect's json with a class": with_serializer({"type": "json"}, class_named),
    "a serializer with options": with_serializer(
        {"type": "fastroai-json", "object_decoder": "os.mkdir"}, str
    ),
    "an unknown serializer": with_serializer({"type": "nobody/knows"}, str),
    "a class in our JSON": with_stored(lambda stored: class_named("")),
    "a class in the record": with_stored(
        lambda stored: stored | {"__class__": f"{PLANTED_MODULE}.Thing"}
    ),
    "a class in the output": with_value(__class__=f"{PLANTED_MODULE}.Thing"),
    "pydantic's private names": with_value(
        __pydantic_private__={"x": 1}, __pydantic_fields_set__=["step"]
    ),
    "a reduce in the value": with_value(__reduce__=["os.mkdir", [EXECUTED]]),
    "a tag that names code": with_output(value={"$": "os.mkdir", "value": EXECUTED}),
    "a codec that names code": with_output(codec="pickle"),
    "deep lists": with_stored(lambda stored: deep("[", "]")),
    "deep objects": with_stored(lambda stored: '{"a":' * 50_000 + "1" + "}" * 50_000),
    "deep value": with_output(value=json.loads("[" * 150 + "]" * 150)),
    "deep record": resealed(lambda record: b'{"result":' + deep("[", "]").encode() + b"}"),
    "NaN": with_stored(lambda stored: json.dumps(stored).replace("123456", "NaN")),
    "infinity": with_stored(lambda stored: json.dumps(stored).replace("123456", "1e999")),
    "a key twice": with_stored(lambda stored: json.dumps(stored)[:-1] + ',"step_id":"other"}'),
    "a number as text": with_value(amount="123456"),
    "a number as a float": with_value(amount=123456.0),
    "a boolean for a number": with_value(amount=True),
    "null for a text": with_value(step=None),
    "a field too many": with_value(other=1),
    "attempts as text": with_stored(lambda stored: stored | {"attempts": "1"}),
    "another format": with_stored(lambda stored: stored | {"format": 2}),
    "a list": with_stored(lambda stored: [stored]),
    "an unstorable": with_stored(
        lambda stored: {"format": 1, "step_id": stored["step_id"], "unstorable": "x"}
    ),
    "an error": with_stored(lambda stored: {"error": "ValueError: no"}),
    "result no text": resealed(lambda record: record | {"result": 7}),
    "no metadata": resealed(lambda record: {"result": record["result"]}),
    "metadata null": resealed(lambda record: record | {"metadata": None}),
    "the old form": resealed(
        lambda record: {"data": pickled(""), "serializer": {"type": "pickle"}}
    ),
    "of another step": with_stored(lambda stored: stored | {"step_id": "somebody else"}),
    "sealed with a secret": lambda content, name: Signer(secret=b"x" * 16).close(
        name, b"{" + content[content.index(b',"') + 1 :]
    ),
}


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a record's code would make."""
    (tmp_path / f"{PLANTED_MODULE}.py").write_text(
        f"import os\nos.mkdir({EXECUTED!r})\nclass Thing: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / EXECUTED


def ran(executed: Path) -> bool:
    """Whether code from a record ran."""
    return executed.exists()


def made_of(steps: dict[str, Pay], folder: Path) -> Pipeline[Any, Any, Any]:
    return Pipeline(
        "fuzzed",
        dict(steps),
        output_step=next(iter(steps)),
        config=PipelineConfig(cache_policy="inputs", on_error="continue", max_concurrency=16),
        executor=PrefectExecutor(result_storage=folder),
    )


def records(folder: Path) -> dict[str, Path]:
    """The stored records by step id."""
    return {
        json.loads(json.loads(p.read_bytes())["result"])["step_id"]: p for p in folder.iterdir()
    }


async def test_whatever_is_done_to_a_record_its_step_is_run_again(tmp_path: Path, executed: Path):
    steps, folder = {name: Pay() for name in CHANGES}, tmp_path / "r"
    pipeline = made_of(steps, folder)
    await pipeline.execute({}, None)
    for name, path in records(folder).items():
        before = path.read_bytes()
        after = CHANGES[name](before, path.name)
        assert after != before, name
        path.write_bytes(after)
    for expected in (2, 2):  # the second time the damage is mended
        result = await pipeline.execute({}, None)
        assert result.errors == {}
        assert not ran(executed), "code from a record ran"
        assert result.step_outputs == {name: invoice(name) for name in CHANGES}
        assert {name: step.runs for name, step in steps.items() if step.runs != expected} == {}


@pytest.mark.parametrize("secret", [None, SECRET], ids=["checksum", "signed"])
async def test_right_records_in_the_place_of_others_are_not_taken(
    secret: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if secret is not None:
        monkeypatch.setenv("FASTROAI_RESULT_SECRET", secret)
    steps = {f"step {n}": Pay() for n in range(6)}
    pipeline = made_of(steps, tmp_path / "r")
    await pipeline.execute({}, None)
    stored = records(tmp_path / "r")
    contents = [path.read_bytes() for path in stored.values()]
    for path, content in zip(stored.values(), contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    result = await pipeline.execute({}, None)
    assert result.step_outputs == {name: invoice(name) for name in steps}
    assert {step.runs for step in steps.values()} == {2}


async def test_with_a_secret_nobody_without_it_can_plant_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: Path
):
    """Each forgery here would be taken without a secret: it has our format, a right checksum,
    another amount.
    """
    monkeypatch.setenv("FASTROAI_RESULT_SECRET", SECRET)
    forgers = {
        "with a checksum": Signer(),
        "with another secret": Signer(secret=b"another secret of 32 characters."),
        "with an empty secret": Signer(secret=b""),
        "compressed": Signer(compression="gzip"),
    }
    steps = {name: Pay() for name in forgers}
    pipeline = made_of(steps, tmp_path / "r")
    await pipeline.execute({}, None)
    for name, path in records(tmp_path / "r").items():
        content = path.read_bytes().replace(b"123456", b"999999")
        path.write_bytes(forgers[name].close(path.name, b"{" + content[content.index(b',"') + 1 :]))
    result = await pipeline.execute({}, None)
    assert result.step_outputs == {name: invoice(name) for name in forgers}
    assert {step.runs for step in steps.values()} == {2}
    assert not ran(executed)
