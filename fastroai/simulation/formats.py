"""Strings of a required form: how to find one in a text, and what to say where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, Final


def _always(_: str) -> object:
    return True


@dataclass(frozen=True)
class Format:
    """A string format of JSON Schema."""

    pattern: re.Pattern[str]
    default: str
    parse: Callable[[str], object] = _always

    def accepts(self, text: str) -> bool:
        """Whether what looks right also is: the 31st of February is not."""
        try:
            self.parse(text)
        except ValueError:
            return False
        return True


_DATE = r"\d{4}-\d{2}-\d{2}"
_TIME = r"\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})?"

FORMATS: Final[dict[str, Format]] = {
    "date": Format(re.compile(rf"\b{_DATE}\b"), "1970-01-01", date.fromisoformat),
    "date-time": Format(
        re.compile(rf"\b{_DATE}T{_TIME}"), "1970-01-01T00:00:00Z", datetime.fromisoformat
    ),
    "time": Format(re.compile(rf"\b{_TIME}"), "00:00:00Z", time.fromisoformat),
    "duration": Format(re.compile(r"\bP(?:\d+D)?T(?:\d+H)?\d+M(?:\d+S)?\b"), "PT0S"),
    "email": Format(
        re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b"), "unknown@example.com"
    ),
    "uri": Format(re.compile(r"https?://[^\s<>\"')\]]*[\w/]"), "https://example.com/"),
    "uuid": Format(
        re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I),
        "00000000-0000-4000-8000-000000000000",
    ),
    "ipv4": Format(re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|\b)){4}"), "0.0.0.0"),
    "ipv6": Format(re.compile(r"(?!)"), "::"),
    "binary": Format(re.compile(r"(?!)"), ""),
    "base64": Format(re.compile(r"(?!)"), ""),
    "json-string": Format(re.compile(r"(?!)"), "null"),
    "path": Format(re.compile(r"(?:/[\w.-]+)+"), "."),
}


def minimal_match(pattern: str) -> str:
    """A shortest string that a regular expression matches, for the constructs that schemas use.

    Raises:
        ValueError: The expression needs what this does not build, a look-around for example.
    """
    parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]  # re's own parser has no public name
    text = "".join(_shortest(op, value) for op, value in parsed)
    if re.search(pattern, text) is None:
        raise ValueError(
            f"OfflineModel can't make a string that matches the pattern {pattern!r}. Simplify the "
            "pattern."
        )
    return text


def _shortest(op: Any, value: Any) -> str:
    name = str(op)
    if name == "LITERAL":
        return chr(value)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        fewest, _, inner = value
        return "".join(_shortest(*part) for part in inner) * int(fewest)
    if name == "SUBPATTERN":
        return "".join(_shortest(*part) for part in value[-1])
    if name == "BRANCH":
        branches: list[str] = ["".join(_shortest(*part) for part in branch) for branch in value[1]]
        return min(branches, key=len)
    if name == "IN":
        return _one_of(value)
    if name == "NOT_LITERAL":
        return "a" if value != ord("a") else "b"
    return "a" if name == "ANY" else ""


def _one_of(options: Any) -> str:
    """A character of a set; letters and digits are tried first."""
    candidates = "aA0 -_.,:;/+*#@!?()[]{}<>=&%$\"'\\|~^`\n\t"
    if str(options[0][0]) == "NEGATE":
        return next(
            c for c in candidates if not any(_includes(op, value, c) for op, value in options[1:])
        )
    op, value = options[0]
    if str(op) == "LITERAL":
        return chr(value)
    return (
        chr(value[0])
        if str(op) == "RANGE"
        else next(c for c in candidates if _includes(op, value, c))
    )


def _includes(op: Any, value: Any, character: str) -> bool:
    name = str(op)
    if name == "LITERAL":
        return chr(value) == character
    if name == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    kind = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}[str(value).rsplit("_", 1)[1]]
    return (re.match(kind, character) is not None) != ("NOT" in str(value))
