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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.results import ResultStore as PrefectStore
from pydantic import BaseModel

from fastroai import BaseStep, Pipeline, PipelineConfig, StepContext, step
from fastroai.errors import ResultStorageError
from fastroai.executors import PrefectExecutor, StepRecord
from fastroai.executors._prefect.results import (
    StepResultSerializer,
    StoredStep,
    decode_record,
    encode_record,
)
from fastroai.executors._prefect.run_storage import StepStorage, open_store
from fastroai.executors.step_codec import StepCodec
from fastroai.settings import load_settings
from fastroai.storage.signing import Signer

SECRET = "a secret of 24 characters"

Change = Callable[[bytes, str], bytes]
"""Another record in the place of one, given its name."""


class Invoice(BaseModel):
    step: str
    amount: int
    tags: set[str] = set()


def invoice(step_id: str) -> Invoice:
    return Invoice(step=step_id, amount=123_456, tags={"a", "b"})


@step
def pay(context: StepContext[Any]) -> Invoice:
    """Gives an invoice of its own."""
    return invoice(context.step_id)


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


KEY = "ab" * 32


@dataclass
class Kept:
    """The record of one step in a folder, as Prefect writes and reads it."""

    step_id: str
    folder: Path
    key: str = KEY

    @property
    def path(self) -> Path:
        return self.folder / self.key

    async def write(self) -> None:
        output = invoice(self.step_id)
        record = StepRecord(step_id=self.step_id, output=output)
        content = encode_record(record, self._codec, {})
        await (await self._store()).awrite(obj=StoredStep(content), key=self.key)

    async def read(self) -> Any:
        """The output, by the code that a run decides with whether to run the step again."""
        found = await (await self._store()).aread(self.key)
        return decode_record(found.result, self._codec).output

    @property
    def _codec(self) -> StepCodec:
        return StepCodec.of(self.step_id, pay)

    async def _store(self) -> PrefectStore:
        store = await open_store(self.folder, load_settings())
        storage = StepStorage(store=store, step_id=self.step_id)
        return PrefectStore(result_storage=storage, serializer=StepResultSerializer())


@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_is_done_to_a_record_it_is_not_read(
    change: str, tmp_path: Path, executed: Path
):
    kept = Kept(change, tmp_path / "r")
    await kept.write()
    assert await kept.read() == invoice(change)
    before = kept.path.read_bytes()
    after = CHANGES[change](before, KEY)
    assert after != before
    kept.path.write_bytes(after)
    with pytest.raises((ValueError, KeyError, TypeError, ResultStorageError)):
        await kept.read()
    assert not ran(executed), "code from a record ran"


@pytest.mark.usefixtures("prefect_api")
async def test_a_step_whose_record_is_not_read_runs_again_and_its_record_is_mended(
    tmp_path: Path, executed: Path
):
    folder, names = tmp_path / "r", ["a digit changed", "a pickle record", "another format"]
    runs: Counter[str] = Counter()

    class Pay(BaseStep[Any, Invoice]):
        async def execute(self, context: StepContext[Any]) -> Invoice:
            runs[context.step_id] += 1
            return invoice(context.step_id)

    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        "fuzzed",
        {name: Pay() for name in names},
        output_step=names[0],
        config=PipelineConfig(cache_policy="inputs"),
        executor=PrefectExecutor(result_storage=folder),
    )
    await pipeline.execute({}, None)
    for path in list(folder.iterdir()):
        before = path.read_bytes()
        name = json.loads(json.loads(before)["result"])["step_id"]
        path.write_bytes(CHANGES[name](before, path.name))
    for _ in range(2):  # the second time the damage is mended
        result = await pipeline.execute({}, None)
        assert result.step_outputs == {name: invoice(name) for name in names}
        assert runs == dict.fromkeys(names, 2)
    assert not ran(executed), "code from a record ran"


@pytest.mark.parametrize("secret", [None, SECRET], ids=["checksum", "signed"])
async def test_a_right_record_in_the_place_of_another_is_not_taken(
    secret: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if secret is not None:
        monkeypatch.setenv("FASTROAI_RESULT_SECRET", secret)
    mine, other = Kept("step", tmp_path / "r"), Kept("step", tmp_path / "r", "cd" * 32)
    for kept in (mine, other):
        await kept.write()
    mine.path.write_bytes(other.path.read_bytes())
    with pytest.raises(ValueError, match="seal"):
        await mine.read()
    assert await other.read() == invoice("step")


FORGERS = {
    "with a checksum": Signer(),
    "with another secret": Signer(secret=b"another secret of 32 characters."),
    "with an empty secret": Signer(secret=b""),
    "compressed": Signer(compression="gzip"),
}


@pytest.mark.parametrize("forger", FORGERS)
async def test_with_a_secret_nobody_without_it_can_plant_a_record(
    forger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each forgery here would be taken without a secret: it has our format, a right checksum,
    another amount.
    """
    monkeypatch.setenv("FASTROAI_RESULT_SECRET", SECRET)
    kept = Kept("step", tmp_path / "r")
    await kept.write()
    content = kept.path.read_bytes().replace(b"123456", b"999999")
    planted = b"{" + content[content.index(b',"') + 1 :]
    kept.path.write_bytes(FORGERS[forger].close(KEY, planted))
    with pytest.raises(ValueError, match="seal"):
        await kept.read()
