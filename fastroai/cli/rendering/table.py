"""Tables for a terminal: aligned in whatever script, with a total, with bars, and never wider than
there is room.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import floor

from ...pricing.money import EXACT

GAP = 2
SHORTEST_BAR, LONGEST_BAR = 6, 30
_NARROWEST = 8
"""To this, texts are shortened where nothing else helps."""
_PROSE = 100
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        heading: Its name.
        cells: One for each line.
        total: The cell below all lines.
        left: Whether text starts at the left; numbers end at the right.
        shortest: The width down to which its texts may be shortened. None: it is shown in full or
            not at all.
        rank: Where room is short, columns with the highest rank are left out first. 0: never.
    """

    heading: str
    cells: Sequence[str]
    total: str = ""
    left: bool = False
    shortest: int | None = None
    rank: int = 0

    @property
    def width(self) -> int:
        """Of its widest text."""
        return max(display_width(text) for text in (self.heading, self.total, *self.cells))

    @property
    def least(self) -> int:
        """What it needs, shortened where that is allowed."""
        return self.width if self.shortest is None else min(self.width, self.shortest)

    @classmethod
    def of_counts(cls, heading: str, values: Sequence[int], total: int, *, rank: int = 0) -> Column:
        """Whole numbers, their thousands set apart."""
        return cls(heading, [f"{value:,}" for value in values], f"{total:,}", rank=rank)

    @classmethod
    def of_amounts(
        cls,
        heading: str,
        values: Sequence[Decimal],
        total: Decimal,
        *,
        places: int | None = None,
        rank: int = 0,
    ) -> Column:
        """Exact amounts, all with as many places: those they need, or as many as a column beside
        this one has.
        """
        *cells, last = amounts([*values, total], places)
        return cls(heading, cells, last, rank=rank)


def table(
    columns: Sequence[Column],
    *,
    width: int | None = None,
    bars: Sequence[float] = (),
    total: bool = True,
) -> tuple[list[str], tuple[str, ...]]:
    """The lines of a table, and the headings of the columns that there was no room for.

    Args:
        columns: At least one.
        width: Columns of the terminal. None: as wide as it must be.
        bars: A length from 0 to 1 for each line, drawn in the room that is left.
        total: Whether there is a line of totals.
    """
    shown = _that_fit(columns, width, for_bars=bool(bars))
    widths = _widths(shown, width, for_bars=bool(bars))
    if width is not None and bars and _overall(widths) + GAP + SHORTEST_BAR > width:
        bars = ()
    room = LONGEST_BAR if width is None else min(LONGEST_BAR, width - _overall(widths) - GAP)
    drawn = [bar(length, room) for length in bars] or [""] * len(shown[0].cells)
    ruler = (" " * GAP).join("-" * width for width in widths)
    lines = [_line([column.heading for column in shown], shown, widths), ruler]
    lines += [
        _line([column.cells[n] for column in shown], shown, widths, bar_)
        for n, bar_ in enumerate(drawn)
    ]
    if total:
        lines += [ruler, _line([column.total for column in shown], shown, widths)]
    return lines, tuple(column.heading for column in columns if column not in shown)


def _that_fit(columns: Sequence[Column], width: int | None, *, for_bars: bool) -> list[Column]:
    shown = list(columns)
    room = None if width is None else width - (GAP + SHORTEST_BAR if for_bars else 0)
    while room is not None and _overall([column.least for column in shown]) > room:
        droppable = [column for column in shown if column.rank]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda column: column.rank))
    return shown


def _widths(columns: Sequence[Column], width: int | None, *, for_bars: bool) -> list[int]:
    """As wide as their texts; in a terminal, as narrow as it takes, and at last without bars."""
    natural = [column.width for column in columns]
    if width is None:
        return natural
    least = [column.least for column in columns]
    last_resort = [
        min(n, _NARROWEST) if column.shortest else n
        for n, column in zip(natural, columns, strict=True)
    ]
    found = natural
    for room, limits in (
        (width - (GAP + SHORTEST_BAR if for_bars else 0), least),
        (width, least),
        (width, last_resort),
    ):
        found = list(natural)
        for number, limit in enumerate(limits):
            found[number] -= max(0, min(found[number] - limit, _overall(found) - room))
        if _overall(found) <= room:
            break
    return found


def _overall(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _line(
    cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], drawn: str = ""
) -> str:
    padded = [
        _padded(cell, width, column.left)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    ]
    return (" " * GAP).join([*padded, drawn]).rstrip()


def _padded(text: str, width: int, left: bool) -> str:
    text = shortened(text, width)
    filling = " " * (width - display_width(text))
    return text + filling if left else filling + text


def bar(length: float, width: int) -> str:
    """A bar of some part of a width; the smallest part of something is visible, nothing is not."""
    eighths = min(8 * width, max(0, round(length * 8 * width)))
    if eighths == 0 and length > 0:
        eighths = 1
    if not _can_show("█▏"):
        return "#" * -(-eighths // 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def lengths(values: Sequence[Decimal]) -> list[float]:
    """Amounts as parts of the largest."""
    largest = max(values, default=Decimal(0))
    return [float(value / largest) if largest > 0 else 0.0 for value in values]


def amounts(values: Iterable[Decimal], places: int | None = None) -> list[str]:
    """Amounts with so many places, or with as many as all of them need to be exact."""
    values = list(values)
    places = places_of(values) if places is None else places
    return [f"{value:,.{places}f}" for value in values]


def places_of(values: Iterable[Decimal]) -> int:
    """How many places it takes to show amounts exactly; two at least."""
    exponents = [value.normalize(EXACT).as_tuple().exponent for value in values]
    return max(
        (-exponent for exponent in exponents if isinstance(exponent, int) and exponent < -2),
        default=2,
    )


def percent(share: float) -> str:
    """A share as a percentage, rounded down: what is not all of it never reads as 100 %."""
    return "under 0.1 %" if 0 < share < 0.001 else f"{floor(share * 1000) / 10:.1f} %"


def printable(text: str) -> str:
    """A text on one line, without what a terminal would take for a command."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters take two, combining ones none."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int) -> str:
    """A text that takes no more than some columns; what it lacks is cut from its middle."""
    if display_width(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = _cut(text, (width - 1) // 2)
    tail = _cut(text[::-1], width - 1 - display_width(head))[::-1]
    return f"{head}…{tail}"


def _cut(text: str, width: int) -> str:
    taken = 0
    for number, character in enumerate(text):
        taken += _width(character)
        if taken > width:
            return text[:number]
    return text


def terminal_width() -> int | None:
    """Columns of the terminal, or as `COLUMNS` says. None: the output is no terminal."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def prose(text: str, width: int | None) -> list[str]:
    """A sentence, on as many lines as it needs; lines after the first are indented."""
    room = max(20, min(width or _PROSE, _PROSE))
    return textwrap.wrap(text, room, subsequent_indent="  ", break_on_hyphens=False)


def show(lines: Iterable[str]) -> None:
    """Write to stdout; what its encoding does not have becomes question marks of the same width."""
    text = "".join(f"{line}\n" for line in lines)
    if not _can_show(text):
        text = "".join(c if _can_show(c) else "?" * _width(c) for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
