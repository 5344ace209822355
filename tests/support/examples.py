"""How many examples a property is tried with: a sample of them in `make test`, all in
`make test-long`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

WHOLE = 100
"""Examples of a test that names no number, in the profile `whole`; the others keep this ratio."""

settings.register_profile("whole", deadline=None, max_examples=WHOLE)  # busy is no failure
settings.register_profile("sample", settings.get_profile("whole"), max_examples=20)


def examples(number: int, **options: Any) -> settings:
    """Settings for so many examples, or as large a share of them as the profile takes, at least
    five.
    """
    share = settings.default.max_examples / WHOLE
    return settings(max_examples=max(5, round(share * number)), **options)
