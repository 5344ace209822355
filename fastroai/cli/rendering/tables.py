"""Tables with exact amounts, a total and bars; on a terminal, as wide as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import floor

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...pricing.money import EXACT
from .console import printable

_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"
_GAP = 2
_NARROWEST = 8
"""To this, texts are folded where leaving out columns is not enough."""
_STYLE = "cyan"
_RULED = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


@dataclass(frozen=True, slots=True)
class Amount:
    """USD, shown exactly with as many places as all of a table need, and a remark behind it."""

    usd: Decimal
    remark: str = ""

    def shown(self, places: int) -> str:
        return f"{self.usd:,.{places}f}{self.remark}"


Cell = str | int | Amount | None
"""None is an unknown number."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        shortest: Width down to which its texts may be folded before others are left out. None: its
            cells are numbers, which end at the right and are never folded.
        rank: Where room is short, columns with the highest rank are left out first. 0: never.
    """

    heading: str
    shortest: int | None = None
    rank: int = 0


def print_table(
    out: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    total: Sequence[Cell] = (),
    bars: Sequence[Decimal] = (),
) -> tuple[str, ...]:
    """Write a table, and return the headings of the columns for which there was no room.

    Args:
        columns: At least one.
        rows: A cell for each column. Control characters in texts are made visible.
        total: The row below a second ruler; none without it.
        bars: An amount for each row, drawn as part of the largest where there is room.
    """
    drawn = drawn_columns(columns, [*rows, total] if total else rows)
    shown = that_fit(drawn, out.width)
    drawn_bars = bars_that_fit(bars, shown, out)
    needed = width_of([part.width for part in shown] + [_BAR] * bool(drawn_bars))
    write = _write_lines if needed <= out.width else _write_folded
    write(out, shown, drawn_bars, has_total=bool(total))
    return tuple(part.column.heading for part in drawn if part not in shown)


def bars_that_fit(bars: Sequence[Decimal], shown: Sequence[_Drawn], out: Console) -> list[str]:
    """The bars where there is room for them beside the columns, and characters to draw them."""
    room = out.width - width_of(part.least for part in shown) - _GAP
    return bars_of(bars) if bars and room >= _BAR and not out.options.ascii_only else []


def _write_lines(
    out: Console, shown: Sequence[_Drawn], bars: Sequence[str], *, has_total: bool
) -> None:
    """Write a table in which nothing is folded: rich takes a millisecond for each line."""
    width = width_of([part.width for part in shown] + [_BAR] * bool(bars))
    heading = "  ".join(part.aligned([printable(part.column.heading)])[0] for part in shown)
    columns = [part.aligned(part.cells) for part in shown]
    *lines, last = map("  ".join, zip(*columns, strict=True))
    if not has_total:
        lines.append(last)
    if bars:
        lines = list(map("  ".join, zip(lines, bars, strict=True)))
    out.print(Text(heading.rstrip(), style=_STYLE), soft_wrap=True)
    out.file.write("\n".join(["-" * width, *(line.rstrip(" ") for line in lines), ""]))
    if has_total:
        out.file.write("-" * width + "\n")
        out.print(Text(last.rstrip(), style=_STYLE), soft_wrap=True)


def _write_folded(
    out: Console, shown: Sequence[_Drawn], bars: Sequence[str], *, has_total: bool
) -> None:
    table = empty_table(shown, out.width)
    table.show_footer = has_total
    for number in range(len(shown[0].cells) - has_total):
        cells = (Text(part.cells[number]) for part in shown)
        table.add_row(*cells, *bars[number : number + 1])
    with out.capture() as captured:
        out.print(table, crop=False)
    out.file.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A column with its cells as they are shown, the total's at the end."""

    column: Column
    cells: list[str]
    width: int

    def aligned(self, texts: Sequence[str]) -> list[str]:
        """Texts with spaces up to the column's width."""
        spaces = [" " * (self.width - cell_len(text)) for text in texts]
        parts = (spaces, texts) if self.is_number else (texts, spaces)
        return list(map(str.__add__, *parts))

    @property
    def least(self) -> int:
        """The width it needs, folded where that is allowed."""
        return self.width if self.is_number else min(self.width, self.column.shortest or 0)

    @property
    def narrowest(self) -> int:
        """The width it needs where leaving out columns is not enough."""
        return self.width if self.is_number else min(self.least, _NARROWEST)

    @property
    def is_number(self) -> bool:
        return self.column.shortest is None

    def add_to(self, table: Table) -> None:
        table.add_column(
            Text(printable(self.column.heading)),
            Text(self.cells[-1]),
            justify="right" if self.is_number else "left",
            min_width=self.width if self.is_number else None,
            no_wrap=self.is_number,
            overflow="fold",
        )


def drawn_columns(columns: Sequence[Column], lines: Sequence[Sequence[Cell]]) -> list[_Drawn]:
    places = places_of(cell.usd for line in lines for cell in line if isinstance(cell, Amount))
    drawn = []
    for number, column in enumerate(columns):
        cells = [shown_cell(line[number], places) for line in lines]
        width = max(map(cell_len, (printable(column.heading), *cells)))
        drawn.append(_Drawn(column, cells, width))
    return drawn


def empty_table(shown: Sequence[_Drawn], width: int) -> Table:
    table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.header_style = table.footer_style = _STYLE
    for part in shown:
        part.add_to(table)
    narrowest = width_of(part.narrowest for part in shown)
    if narrowest > width:
        # The terminal wraps such lines; rich would cut amounts off.
        table.width = narrowest
    return table


def that_fit(drawn: Sequence[_Drawn], width: int) -> list[_Drawn]:
    """The columns for which there is room."""
    shown = list(drawn)
    while width_of(part.least for part in shown) > width:
        dropped = max(shown, key=lambda part: part.column.rank)
        if not dropped.column.rank:
            break
        shown.remove(dropped)
    return shown


def width_of(widths: Iterable[int]) -> int:
    """The width of columns beside each other."""
    return sum(width + _GAP for width in widths) - _GAP


def shown_cell(cell: Cell, places: int) -> str:
    """A cell as it stands in the table."""
    if cell is None:
        return "unknown"
    if isinstance(cell, Amount):
        return cell.shown(places)
    return f"{cell:,}" if isinstance(cell, int) else printable(cell)


def bars_of(amounts: Sequence[Decimal]) -> list[str]:
    """Amounts as parts of the largest; the smallest part of something is visible."""
    largest = max(amounts)
    return [_bar(float(amount / largest)) if amount > 0 else "" for amount in amounts]


def _bar(share: float) -> str:
    full, eighths = divmod(max(1, int(share * _BAR * 8)), 8)
    return "█" * full + _EIGHTHS[eighths]


def amounts(values: Sequence[Decimal]) -> list[str]:
    """Amounts with as many places as all of them need to be exact."""
    places = places_of(values)
    return [Amount(value).shown(places) for value in values]


def places_of(values: Iterable[Decimal]) -> int:
    """How many places it takes to show amounts exactly; two at least."""
    exponents = [value.normalize(EXACT).as_tuple().exponent for value in values]
    return max((-e for e in exponents if isinstance(e, int) and e < -2), default=2)


def exact(usd: Decimal) -> str:
    """An amount in plain digits, without zeros at its end."""
    return f"{usd.normalize(EXACT):f}"


def percent(share: float) -> str:
    """A share as a percentage, rounded down: what is not all of it never reads as 100 %."""
    return "under 0.1 %" if 0 < share < 0.001 else f"{floor(share * 1000) / 10:.1f} %"
