"""What commands show: exact amounts, aligned tables, no escape codes where none are wanted."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from fastroai.cli.rendering.console import console, printable, prose
from fastroai.cli.rendering.progress import ProgressTracer
from fastroai.cli.rendering.tables import Amount, Cell, Column, amounts, percent, print_table

texts = st.text(alphabet=st.sampled_from("ab[/] é漢字📄e\u0301-\x1b\n\u202e"), max_size=40)
money = st.decimals(0, 10**12, places=12) | st.decimals(0, 10**3, places=20) | st.just(Decimal(0))


AMOUNT = re.compile(r"(?<= )[\d,]+\.\d+$")


COLUMNS = [
    Column("key", shortest=16),
    Column("requests", rank=1),
    Column("input tokens", rank=2),
    Column("USD"),
]
Rows = list[tuple[Cell, ...]]


@st.composite
def rows_with_total(draw: st.DrawFn) -> Rows:
    keys = draw(st.lists(texts, min_size=1, max_size=6))
    values = [draw(money) for _ in keys]
    numbers = [draw(st.integers(0, 10**12)) for _ in keys]
    rows: Rows = [
        (key, n, n, Amount(usd)) for key, n, usd in zip(keys, numbers, values, strict=True)
    ]
    count = sum(numbers)
    return [*rows, ("total", count, count, Amount(sum(values, Decimal(0))))]


def lines_of(
    columns: list[Column], rows: Rows, width: int = 10_000, **options: Sequence[Any]
) -> tuple[list[str], tuple[str, ...]]:
    """The lines of a table, and the headings for which there was no room."""
    written = io.StringIO()
    left_out = print_table(Console(file=written, width=width), columns, rows, **options)
    return written.getvalue().splitlines(), left_out


@given(rows_with_total(), st.integers(1, 160), st.booleans())
def test_no_line_is_wider_than_the_terminal_unless_the_amounts_are(
    rows: Rows, width: int, bars: bool
) -> None:
    drawn = [Decimal(1)] * (len(rows) - 1) if bars else ()
    lines, left_out = lines_of(COLUMNS, rows[:-1], width, total=rows[-1], bars=drawn)
    longest = max(len(found[0]) for line in lines if (found := AMOUNT.search(line)))
    assert max(map(cell_len, lines)) <= max(width, 8 + 2 + longest)
    assert {"key", "USD"}.isdisjoint(left_out)


@given(rows_with_total(), st.just(10_000) | st.integers(1, 160))
def test_lines_stay_aligned_and_add_up_whatever_the_script_and_the_width(
    rows: Rows, width: int
) -> None:
    lines, left_out = lines_of(COLUMNS, rows[:-1], width, total=rows[-1])
    shown = {line: found[0] for line in lines if (found := AMOUNT.search(line))}
    assert len({cell_len(line) for line in shown}) == 1
    found = [AMOUNT.search(line) for line in lines]
    *amounts, total = [Decimal(amount[0].replace(",", "")) for amount in found if amount]
    assert len(amounts) == len(rows) - 1
    assert sum(amounts, Decimal(0)) == total
    assert width < 10_000 or left_out == ()


@given(st.lists(money, min_size=1))
def test_amounts_are_shown_exactly_and_with_as_many_places_each(values: list[Decimal]) -> None:
    shown = amounts(values)
    assert [Decimal(text.replace(",", "")) for text in shown] == values
    assert len({len(text.partition(".")[2]) for text in shown}) == 1


def test_the_column_with_the_highest_rank_goes_first() -> None:
    columns = [Column("key", shortest=8), Column("b" * 20, rank=1), Column("c" * 20, rank=2)]
    assert lines_of(columns, [("a", 1, 1)], 46)[1] == ("c" * 20,)
    assert lines_of(columns, [("a", 1, 1)], 20)[1] == ("b" * 20, "c" * 20)


def test_bars_compare_amounts_and_go_when_there_is_no_room() -> None:
    columns = [Column("key", shortest=8), Column("USD")]
    values = [Decimal(2), Decimal(1), Decimal("1e-9"), Decimal(0)]
    rows: Rows = [("bar", Amount(Decimal("0.50")))] * 4
    for width, longest in ((10_000, 20), (40, 20), (23, 0)):
        lines, _ = lines_of(columns, rows, width, bars=values)
        counts = [line.count("█") for line in lines[2:]]
        assert counts == [longest, longest // 2, 0, 0]
        assert lines[4].endswith("▏") == bool(longest)
        assert lines[5].endswith("0.50")
    lines, _ = lines_of(columns, rows, 80, bars=[Decimal(-1), *[Decimal(0)] * 3])
    assert "█" not in "".join(lines)


def test_a_share_that_is_not_everything_never_reads_as_everything() -> None:
    assert (percent(1.0), percent(0.99999), percent(0.5), percent(0.00001)) == (
        "100.0 %",
        "99.9 %",
        "50.0 %",
        "under 0.1 %",
    )


def test_a_name_can_not_steer_the_terminal_and_is_no_markup() -> None:
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    lines, _ = lines_of([Column("[red]key", shortest=8)], [("[bold]\x1b[2J[/]",)])
    assert [lines[0], lines[2]] == ["[red]key", "[bold]\\x1b[2J[/]"]
    written = io.StringIO()
    prose(console(written), "of [bold]x[/bold]: \x1b[2J")
    assert written.getvalue() == "of [bold]x[/bold]: \\x1b[2J\n"


def test_what_the_encoding_lacks_is_replaced_and_bars_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", newline="\n"))
    columns = [Column("key", shortest=8), Column("USD")]
    print_table(console(), columns, [("é", Amount(Decimal(1)))], bars=[Decimal(1)])
    sys.stdout.flush()
    assert raw.getvalue().splitlines()[2:] == [b"?    1.00"]


async def run_steps(tracer: ProgressTracer) -> None:
    with tracer.shown():
        async with tracer.span("pipeline.p"), tracer.span("step.read"):
            pass
        with pytest.raises(ValueError, match="no"):
            async with tracer.span("step.[red]"):
                raise ValueError("no")
        async with tracer.span("step.read"):
            pass


async def test_progress_is_a_line_for_each_start_and_end_where_it_is_no_terminal() -> None:
    written = io.StringIO()
    await run_steps(ProgressTracer(console(written)))
    assert [line.partition(" (")[0] for line in written.getvalue().splitlines()] == [
        "  start   read",
        "  done    read",
        "  start   [red]",
        "  failed  [red]",
        "  start   read, attempt 2",
        "  done    read, attempt 2",
    ]


def on_a_terminal() -> tuple[Console, Callable[[], str]]:
    """A console on a pseudo-terminal, and what was written to it."""
    ours, theirs = pty.openpty()
    out = console(os.fdopen(theirs, "w"))

    def shown() -> str:
        out.file.flush()
        written = b""
        while select.select([ours], [], [], 0.05)[0]:
            written += os.read(ours, 1 << 16)
        return written.decode()

    return out, shown


async def test_on_a_terminal_active_steps_are_live_and_ends_are_coloured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out, shown = on_a_terminal()
    await run_steps(ProgressTracer(out))
    written = shown()
    assert "\x1b[?25l" in written  # the cursor is hidden …
    assert "\x1b[?25h" in written  # … and shown again
    assert "\x1b[32mdone" in written
    assert "[red]" in written


async def test_no_color_means_no_escape_code_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    out, shown = on_a_terminal()
    await run_steps(ProgressTracer(out))
    columns = [Column("key", shortest=8), Column("requests")]
    print_table(out, columns, [("a", 1)], total=("total", 1))
    written = shown()
    assert "start   read" in written
    assert "total" in written
    assert "\x1b" not in written
