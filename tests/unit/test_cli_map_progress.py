"""What `fastroai run` shows of mapped steps: how far they are, what failed, and their outputs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.progress import Progress

from fastroai import Pipeline, PipelineResult, StepContext, step
from fastroai.cli import main
from fastroai.cli.rendering import progress as progress_module
from fastroai.cli.rendering.console import console
from fastroai.cli.rendering.map_progress import ItemsBar, ItemsText, LinesOfMap
from fastroai.cli.rendering.progress import ProgressTracer
from fastroai.pipelines.map_state import MapProgress
from tests.support.command import Ran


@step
async def odd(context: StepContext[Any]) -> str:
    if context.item == 3:
        raise ValueError("three is odd")
    return f"item {context.item}"


def pipeline(items: int, max_failures: int) -> Pipeline[Any, Any, Any]:
    each = odd.map(over="xs", key=str, max_concurrency=1, max_failures=max_failures)
    return Pipeline(f"of-{items}", {"each": each}, executor="memory")


class TestLines:
    async def shown(self, tracer: ProgressTracer, written: io.StringIO) -> list[str]:
        with tracer.shown():
            await pipeline(20, 1).execute({"xs": list(range(20))}, None, tracer)
        return written.getvalue().splitlines()

    async def test_there_is_one_at_the_start_for_each_tenth_and_at_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress_module, "LOOK_SECONDS", 0)
        written = io.StringIO()
        first, *between, last = await self.shown(ProgressTracer(console(written)), written)
        assert first == "  start   each"
        assert [line.split(" of ")[0] for line in between] == [
            f"  items   each: {done}" for done in (2, 3, 5, 7, 9, 11, 13, 15, 17)
        ]
        assert "of 20 items done (1 failed" in between[-1]
        assert last.startswith("  done    each (")
        assert last.endswith(" s): 19 of 20 items done (1 failed)")

    async def test_a_map_that_ends_soon_has_none_in_between(self) -> None:
        written = io.StringIO()
        assert len(await self.shown(ProgressTracer(console(written)), written)) == 2

    def test_without_a_tenth_there_is_one_every_ten_seconds_and_fewer_in_a_long_run(self) -> None:
        progress = MapProgress("each", total=1000, done=1, began=0.0)
        lines = LinesOfMap(0.0)
        assert [now for now in range(31) if lines.is_due(progress, now)] == [10, 20, 30]
        lines = LinesOfMap(36_000.0)
        due = [now for now in range(36_000, 39_600) if lines.is_due(progress, now)]
        assert len(due) == 1

    def test_of_a_stream_whose_length_nobody_knows_they_come_by_time(self) -> None:
        progress = MapProgress("each", done=500, started=510, began=0.0)
        lines = LinesOfMap(0.0)
        assert [now for now in range(25) if lines.is_due(progress, now)] == [10, 20]


class TestBars:
    def shown(self, progress: MapProgress | None, width: int = 120) -> str:
        out = Console(file=io.StringIO(), width=width, force_terminal=True)
        columns = ItemsBar(lambda _: progress), ItemsText(lambda _: progress)
        live = Progress(*columns, console=out)
        live.add_task("each", total=None, step_id="each")
        with out.capture() as captured:
            out.print(live.get_renderable())
        return captured.get()

    def test_a_mapped_step_has_a_bar_and_says_what_became_of_its_items(self) -> None:
        progress = MapProgress("each", total=8, started=7, done=4, replayed=1, failed=1)
        written = self.shown(progress)
        assert "━" in written
        assert "4 of 8 items done (1 replayed, 1 failed, 2 running), about " in written
        assert written.rstrip().endswith("left")

    def test_of_a_stream_the_bar_pulses(self) -> None:
        written = self.shown(MapProgress("each", started=3, done=2))
        assert "━" in written
        assert "2 items done (1 running)" in written

    def test_another_step_has_none(self) -> None:
        assert not self.shown(None).strip()


def test_the_time_left_is_told_in_a_unit_that_fits() -> None:
    progress = MapProgress("each", total=3000, done=1000, began=0.0)
    told = [progress.left_in_words(now) for now in (1.0, 100.0, 7200.0)]
    assert told == ["about 2 s left", "about 3 min left", "about 4.0 h left"]
    assert MapProgress("each", total=3).left_in_words(1.0) == ""


MAPPED = """
from fastroai import Pipeline, step

@step
def odd(context):
    if context.item in (3, 4):
        raise ValueError(f"{context.item} is odd\\33[2J")
    return {"number": context.item}

each = odd.map(over="xs", key=str)
some = odd.map(over="xs", key=str, max_failures=2)
all_of_them = Pipeline("all", {"each": each})
most_of_them = Pipeline("most", {"some": some})
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """Run the command in this process, in a folder with a module `mapped_odd`."""
    (tmp_path / "mapped_odd.py").write_text(MAPPED)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Ran:
        code = main(["run", *arguments, "--executor", "memory"])
        return Ran(code, *capsys.readouterr())

    yield run
    sys.modules.pop("mapped_odd", None)


class TestOutputs:
    def test_a_mapped_step_is_shown_as_a_list(self, run: Callable[..., Ran]) -> None:
        ran = run("mapped_odd:all_of_them", "xs=[1, 2]")
        assert ran.code == 0
        assert "\n- number: 1\n- number: 2\n" in ran.out
        found = run("mapped_odd:all_of_them", "xs=[1, 2]", "--json").json
        assert found["output"] == [{"number": 1}, {"number": 2}]

    def test_what_failed_is_named_beside_what_there_is(self, run: Callable[..., Ran]) -> None:
        ran = run("mapped_odd:most_of_them", "xs=[1, 3, 4]")
        assert ran.code == 0
        assert "\n1:\n  number: 1\n" in ran.out
        assert "2 item(s) of 'some' failed:\n  3: ValueError: 3 is odd\\x1b[2J\n  4: " in ran.out
        found = run("mapped_odd:most_of_them", "xs=[1, 3, 4]", "--json").json
        assert found["output"] == {"1": {"number": 1}}
        assert found["item_errors"] == {"some": {"3": "3 is odd\33[2J", "4": "4 is odd\33[2J"}}

    async def test_pydantic_writes_them_wherever_it_meets_them(self) -> None:
        class Holder(BaseModel):
            held: Any

        result = await pipeline(5, 1).execute({"xs": [1, 3, 5]})
        expected = {"1": "item 1", "5": "item 5"}
        assert to_jsonable_python({"nested": result.output}, fallback=repr) == {"nested": expected}
        assert Holder(held=result.output).model_dump(mode="json") == {"held": expected}
        read = PipelineResult.model_validate_json(result.model_dump_json(include={"output"}))
        assert read.output == expected
