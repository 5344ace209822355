"""How far mapped steps are: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

from ...pipelines.item_outputs import MappedResults
from ...pipelines.map_state import MapProgress
from ...pipelines.schemas import PipelineResult
from .console import printable

SECONDS = 10.0
"""After which there is another line; after a long time, after a twentieth of it."""
SHARE = 0.1
"""Of the items that ended since the last line, for which there is another one."""

NAMED = 10
"""How many items of a step that failed are named in text."""

ProgressOf = Callable[[str], MapProgress | None]
"""The progress of a step; None of one that is not mapped, or has not begun."""


def items_in_words(progress: MapProgress, now: float) -> str:
    """How far a mapped step is, and how long the rest will take."""
    left = progress.left_in_words(now)
    return progress.in_words() + (f", {left}" if left else "")


def failed_items(result: PipelineResult[Any]) -> dict[str, Mapping[str, BaseException]]:
    """By step and key, what items raised whose failure the step allows."""
    return {
        step_id: output.errors
        for step_id, output in result.step_outputs.items()
        if isinstance(output, MappedResults) and output.errors
    }


def lines_of_failed_items(result: PipelineResult[Any]) -> Iterator[str]:
    """How many items of each step failed, and which ones; the first of very many."""
    for step_id, errors in failed_items(result).items():
        yield f"{len(errors):,} item(s) of {printable(step_id)!r} failed:"
        for key, error in islice(errors.items(), NAMED):
            yield f"  {printable(key)}: {printable(f'{type(error).__name__}: {error}')}"
        if len(errors) > NAMED:
            yield f"  … and {len(errors) - NAMED:,} more"


@dataclass
class LinesOfMap:
    """Says when there is something new to tell of a mapped step.

    Attributes:
        at: When something was told last, by `time.monotonic`.
        share: The share of its items that had ended then.
    """

    at: float
    share: float = 0.0

    def is_due(self, progress: MapProgress, now: float) -> bool:
        """Whether to write a line now, which is then taken for written."""
        share = progress.share or 0.0
        quiet = max(SECONDS, (now - progress.began) / 20)
        has_moved = share - self.share > SHARE - 1e-9 or now - self.at >= quiet
        if progress.has_ended or share == 1 or not has_moved:
            return False
        self.at, self.share = now, share
        return True


class ItemsBar(BarColumn):
    """The bar of a mapped step; of others, nothing."""

    def __init__(self, progress_of: ProgressOf) -> None:
        super().__init__()
        self._progress_of = progress_of

    def render(self, task: Task) -> ProgressBar:
        """See `BarColumn.render`."""
        progress = self._progress_of(task.fields["step_id"])
        if progress is None:
            return ProgressBar(width=0)
        ended = progress.done + progress.failed
        return ProgressBar(progress.total, ended, width=20, animation_time=task.get_time())


class ItemsText(ProgressColumn):
    """How far a mapped step is, in words; of others, nothing."""

    def __init__(self, progress_of: ProgressOf) -> None:
        super().__init__()
        self._progress_of = progress_of

    def render(self, task: Task) -> RenderableType:
        """See `ProgressColumn.render`."""
        progress = self._progress_of(task.fields["step_id"])
        return Text("" if progress is None else items_in_words(progress, time.monotonic()))
