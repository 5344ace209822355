"""Tables on a terminal: aligned, exact, and never wider than there is room."""

from __future__ import annotations

import io
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.cli.rendering.table import (
    Column,
    amounts,
    bar,
    display_width,
    lengths,
    percent,
    printable,
    shortened,
    show,
    table,
)

texts = st.text(alphabet=st.sampled_from("ab /é漢字📄e\u0301-\x1b\n\u202e"), max_size=40)
money = st.decimals(0, 10**12, places=12) | st.decimals(0, 10**3, places=20) | st.just(Decimal(0))


@st.composite
def tables(draw: st.DrawFn) -> list[Column]:
    keys = draw(st.lists(texts.map(printable), min_size=1, max_size=6))
    values = [draw(money) for _ in keys]
    numbers = [draw(st.integers(0, 10**12)) for _ in keys]
    return [
        Column("key", keys, "total", left=True, shortest=16),
        Column.of_counts("requests", numbers, sum(numbers), rank=1),
        Column.of_counts("input tokens", numbers, sum(numbers), rank=2),
        Column.of_amounts("USD", values, sum(values, Decimal(0))),
    ]


@given(tables(), st.integers(1, 160), st.booleans())
def test_no_line_is_wider_than_the_terminal_unless_the_amounts_are(
    columns: list[Column], width: int, bars: bool
) -> None:
    drawn = [1.0] * len(columns[0].cells) if bars else ()
    lines, left_out = table(columns, width=width, bars=drawn)
    needed = columns[-1].width + 2 + min(8, columns[0].width)
    assert max(map(display_width, lines)) <= max(width, needed)
    assert {"key", "USD"}.isdisjoint(left_out)


@given(tables(), st.none() | st.integers(60, 160))
def test_columns_stay_aligned_whatever_the_script(columns: list[Column], width: int | None) -> None:
    lines, left_out = table(columns, width=width)
    assert len({display_width(line) for line in lines}) == 1
    assert width is not None or left_out == ()


@given(tables(), st.none() | st.integers(60, 160))
def test_the_amounts_that_are_shown_add_up_to_the_total_that_is_shown(
    columns: list[Column], width: int | None
) -> None:
    lines, _ = table(columns, width=width)
    *shown, total = [
        Decimal(line.split()[-1].replace(",", "")) for line in [*lines[2:-2], lines[-1]]
    ]
    assert sum(shown, Decimal(0)) == total


@given(st.lists(money, min_size=1))
def test_amounts_are_shown_exactly_and_with_as_many_places_each(values: list[Decimal]) -> None:
    shown = amounts(values)
    assert [Decimal(text.replace(",", "")) for text in shown] == values
    assert len({len(text.partition(".")[2]) for text in shown}) == 1


def test_the_column_with_the_highest_rank_goes_first() -> None:
    columns = [
        Column("key", ["a"], left=True),
        Column("b" * 20, ["1"], rank=1),
        Column("c" * 20, ["1"], rank=2),
    ]
    assert table(columns, width=46)[1] == ("c" * 20,)
    assert table(columns, width=20)[1] == ("b" * 20, "c" * 20)


def test_bars_take_the_room_there_is_and_go_when_there_is_none() -> None:
    columns = [Column("key", ["long", "short"], left=True), Column("USD", ["2.00", "1.00"])]
    for width, longest in ((None, 30), (200, 30), (23, 10), (12, 0)):
        lines, _ = table(columns, width=width, bars=[1.0, 0.5], total=False)
        assert (lines[2].count("█"), lines[3].count("█")) == (longest, longest // 2)


def test_a_bar_of_something_is_visible_and_a_bar_of_nothing_is_not() -> None:
    assert (bar(0.0, 10), bar(0.0001, 10), bar(1.0, 10), bar(0.5, 3)) == ("", "▏", "█" * 10, "█▌")
    assert lengths([Decimal(0), Decimal(2), Decimal(1), Decimal(-1)])[1:] == [1.0, 0.5, -0.5]
    assert bar(-0.5, 10) == ""
    assert lengths([Decimal(0)]) == [0.0]


def test_a_share_that_is_not_everything_never_reads_as_everything() -> None:
    assert (percent(1.0), percent(0.99999), percent(0.5), percent(0.00001)) == (
        "100.0 %",
        "99.9 %",
        "50.0 %",
        "under 0.1 %",
    )


def test_long_texts_lose_their_middle() -> None:
    assert shortened("pipeline/a/long/step", 11) == "pipel…/step"
    assert shortened("漢字漢字漢字", 7) == "漢…漢字"
    assert shortened("short", 5) == "short"


def test_a_name_can_not_steer_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"


def test_what_the_encoding_lacks_is_replaced_by_something_as_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", newline="\n"))
    show(["漢é|", "ab |", bar(1.0, 4)])
    assert raw.getvalue() == b"???|\nab |\n####\n"
