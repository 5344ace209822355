"""What README.md and the site both say is written in README.md."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
PLACE = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put sections of README.md where a page names them: `<!-- README: Errors -->`."""
    return PLACE.sub(lambda place: section(place[1]), markdown)


def section(heading: str) -> str:
    """A section without its heading; its links are to pages, from a folder of docs/."""
    _, found, rest = README.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    if not found:
        raise LookupError(f"README.md has no section {heading!r}.")
    return rest.partition("\n## ")[0].replace("](docs/", "](../")
