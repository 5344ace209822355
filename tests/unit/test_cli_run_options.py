"""`fastroai run`: deps, input files, run keys, tags, JSON."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from fastroai.cli import main
from fastroai.cli.rendering.console import console
from fastroai.cli.rendering.progress import ProgressTracer
from fastroai.usage import Ledger, LedgerEntry
from tests.support.command import Ran

SHOP = """
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from fastroai import FastroAgent, Pipeline, step
from fastroai.testing import ScriptedModel, fixed_prices


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = "none"
    numbers: list[int] = []


@dataclass
class Shop:
    name: str
    is_open: bool = True


closed = []


def plain():
    return Shop("plain")


async def awaited():
    return Shop("awaited")


@contextmanager
def managed():
    yield Shop("managed")
    closed.append("managed")


@asynccontextmanager
async def async_managed():
    yield Shop("async managed")
    closed.append("async managed")


@step
def sells(context):
    shop = context.deps
    return {"by": shop and shop.name, "closed": list(closed), "title": context.get_input("title"),
            "numbers": context.get_input("numbers")}


asked = FastroAgent(model=ScriptedModel("Sold.", repeat=True), cost_calculator=fixed_prices())


@step
async def asks(context):
    return (await context.run(asked, "Sell it.")).output


@step
async def asks_and_fails(context):
    await context.run(asked, "Sell it.")
    raise RuntimeError("sold out")


selling = Pipeline("selling", {"sells": sells}, input_type=Order)
asking = Pipeline("asking", {"asks": asks, "sells": sells}, {"sells": ["asks"]}, input_type=Order)
failing = Pipeline("failing", {"asks_and_fails": asks_and_fails})
nothing = None
"""
FLOWS = "\nflow = selling.to_flow(deps_factory=plain)\nbare = asking.to_flow(retries=1)\n"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """Run the command in this process, in a folder with a module `shop`."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Ran:
        code = main(["run", *arguments])
        return Ran(code, *capsys.readouterr())

    yield run
    for name in [name for name in sys.modules if name.startswith(("shop", "stand"))]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["plain", "awaited", "managed", "async_managed"])
def test_deps_are_what_the_named_function_makes_and_are_closed_after_the_run(run, name: str):
    ran = run("shop:selling", "--deps", f"shop:{name}", "--json")
    assert ran.json["output"]["by"] == name.replace("_", " ")
    assert ran.json["output"]["closed"] == []
    assert sys.modules["shop"].closed == ([ran.json["output"]["by"]] if "managed" in name else [])


def test_a_function_of_the_pipelines_own_module_needs_no_module(run):
    assert run("shop:selling", "--deps", "plain", "--json").json["output"]["by"] == "plain"
    assert run("shop.py:selling", "--deps", "shop.py:plain", "--json").code == 0


def test_a_flow_may_be_named_and_its_factory_makes_the_deps(run, tmp_path: Path):
    (tmp_path / "shop.py").write_text(SHOP + FLOWS)
    for target in ("shop:flow", "shop:selling", "shop.py:flow"):
        assert run(target, "--json").json["output"]["by"] == "plain"
    assert run("shop:flow", "--deps", "awaited", "--json").json["output"]["by"] == "awaited"
    assert run("shop:bare", "--json").json["pipeline"] == "asking"


def test_a_file_in_a_folder_may_import_what_lies_here(run, tmp_path: Path):
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "stand.py").write_text(
        "from shop import plain, selling\n\nflow = selling.to_flow(deps_factory=plain)\n"
    )
    assert run("entries/stand.py:flow", "--json").json["output"]["by"] == "plain"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--deps", "shop:absent"], "'absent' is not there"),
        (["--deps", "shop:nothing"], "'nothing' is nothing that can be called"),
        (["--deps", "nowhere:plain"], "No module named 'nowhere'"),
        (["--tag", "team"], "--tag 'team'"),
        (["--input", "absent.json"], "--input 'absent.json': can't be read"),
        (["--input", "broken.json"], "--input 'broken.json': is not JSON"),
        (["--input", "broken.yaml"], "--input 'broken.yaml': is not YAML"),
        (["--input", "list.json"], "expected an object of fields, not list"),
        (["--input", "typo.json"], "has no input 'titel'. Did you mean 'title'?"),
        (["--input", "bad.json"], "numbers.0"),
    ],
)
def test_what_can_not_be_used_is_wrong_usage_and_starts_nothing(
    run, tmp_path: Path, arguments: list[str], said: str
):
    for name, text in {
        "broken.json": "{",
        "broken.yaml": "a: [",
        "list.json": "[1]",
        "typo.json": '{"titel": "x"}',
        "bad.json": '{"numbers": ["many"]}',
    }.items():
        (tmp_path / name).write_text(text)
    ran = run("shop:selling", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Running" not in ran.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("order.json", '{"title": "Rye", "numbers": [1, 2]}'),
        ("order.yaml", "title: Rye\nnumbers: [1, 2]\n"),
        ("-", '{"title": "Rye", "numbers": [1, 2]}'),
    ],
)
def test_fields_come_from_a_file_and_those_on_the_command_line_win(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
):
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    else:
        (tmp_path / name).write_text(text)
    output = run("shop:selling", "--input", name, "title=Oats", "--json").json["output"]
    assert (output["title"], output["numbers"]) == ("Oats", [1, 2])


def test_a_run_key_and_tags_are_booked_with_what_the_run_sent(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    options = ["--run-key", "order-7", "--tag", "team=search", "--tag", "customer=acme=7"]
    ran = run("shop:asking", *options, "--json")
    [entry] = asyncio.run(_booked(url))
    assert entry.attribution.run_id == ran.json["run_id"]
    assert entry.attribution.run_key == "order-7"
    assert dict(entry.attribution.tags) == {"team": "search", "customer": "acme=7"}


async def _booked(url: str) -> tuple[LedgerEntry, ...]:
    async with Ledger.open(url) as ledger:
        return tuple(await ledger.entries())


def test_json_holds_the_output_and_exact_costs_by_step(run):
    found = run("shop:asking", "title=Rye", "--json").json
    assert found["state"] == "completed"
    assert found["output"]["title"] == "Rye"
    asks, sells = found["steps"]
    assert (asks["step"], asks["requests"], asks["models"]) == ("asks", 1, ["gpt-5-mini"])
    assert (sells["step"], sells["requests"], sells["cost_usd"]) == ("sells", 0, "0")
    assert found["cost_usd"] == asks["cost_usd"]
    assert float(found["cost_usd"]) > 0


def test_json_of_a_failed_run_says_why_and_what_was_spent(run):
    ran = run("shop:failing", "--json")
    assert ran.code == 1
    assert ran.json["state"] == "failed"
    assert ran.json["errors"] == {"asks_and_fails": "sold out"}
    assert ran.json["output"] is None
    assert float(ran.json["cost_usd"]) > 0
    assert "sold out" in ran.err


def test_what_the_run_cost_so_far_stands_behind_each_step_that_ended():
    written = io.StringIO()
    spent = iter([Decimal(0), Decimal("0.00120")])
    tracer = ProgressTracer(console(written), lambda: next(spent))

    async def two_steps() -> None:
        for name in ("step.first", "step.second"):
            async with tracer.span(name):
                pass

    asyncio.run(two_steps())
    first, second = (line for line in written.getvalue().splitlines() if "done" in line)
    assert first.endswith("s)")
    assert second.endswith("s)  0.0012 USD so far")


@pytest.mark.parametrize(
    ("argv", "meant"), [(["rum"], "run"), (["cost"], "costs"), (["runs", "resum"], "resume")]
)
def test_a_command_that_is_nearly_right_is_guessed(
    argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]
):
    assert main(argv) == 2
    assert f'Did you mean "{meant}"?' in capsys.readouterr().err


def test_the_package_is_a_program(capsys: pytest.CaptureFixture[str]):
    import runpy
    from unittest.mock import patch

    with patch.object(sys, "argv", ["fastroai", "--version"]), pytest.raises(SystemExit) as ended:
        runpy.run_module("fastroai", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("fastroai ")
