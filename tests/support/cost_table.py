"""Reads back the cost table that `fastroai run` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class CostTable:
    """The numbers of each line, in the table's columns, and those of its total."""

    lines: dict[str, tuple[Decimal, ...]]
    total: tuple[Decimal, ...]

    def adds_up(self) -> bool:
        """Whether every column's lines sum to its total, exactly."""
        return tuple(map(sum, zip(*self.lines.values(), strict=True))) == self.total

    @property
    def usd(self) -> Decimal:
        return self.total[-1]


def read_cost_table(output: str) -> CostTable:
    """Find the table in a command's output."""
    _, body, rest = re.split(r"\n-[- ]+\n", output, maxsplit=2)
    lines: dict[str, tuple[Decimal, ...]] = {}
    for line in body.splitlines():
        step_id, model, *numbers = _known(line).split()
        lines[f"{step_id} {model}"] = _decimals(numbers)
    return CostTable(lines, _decimals(_known(rest.splitlines()[0]).split()[1:]))


def _known(line: str) -> str:
    """A line with the known part of its cost."""
    return re.sub(
        r" \+ \d+ unknown$| unknown$", lambda found: " 0" if found[0] == " unknown" else "", line
    )


def _decimals(cells: list[str]) -> tuple[Decimal, ...]:
    return tuple(Decimal(cell.replace(",", "")) for cell in cells)
