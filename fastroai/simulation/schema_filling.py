"""Fills a JSON schema: strings with sentences of a text, all else with the plainest valid value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .sentences import frequent_words, ranked

Schema = Mapping[str, Any]

DEEPEST: Final = 6
USUAL_ITEMS: Final = 3
USUAL_WORDS: Final = 5
WORD_LISTS: Final = frozenset({"keywords", "labels", "names", "tags", "terms", "topics"})
"""Lists of these names hold words of the text, not sentences."""
UNDECIDED: Final = frozenset({"unknown", "other", "none", "unclear", "neutral"})
FORMATS: Final = {
    "base64": "",
    "binary": "",
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "duration": "PT0S",
    "email": "unknown@example.com",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "json-string": "null",
    "path": ".",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class SchemaFiller:
    """Fills one schema.

    Args:
        root: The whole schema; `$ref`s are looked up in it.
        text: The text.
        sentences: Of the text.
    """

    def __init__(self, root: Schema, text: str, sentences: Sequence[str]) -> None:
        self._root = root
        self._text = text
        self._sentences = sentences
        self._used: set[str] = set()

    def fill(self) -> object:
        """A value that is valid by the schema.

        Raises:
            ValueError: It has a pattern that no part of the text matches.
        """
        return self._value(self._root, "", 0)

    def _value(self, schema: Schema, name: str, depth: int, number: int = 0) -> object:
        """A value of a schema; `number` counts the items of a list, which should differ."""
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], number)
        variants = schema.get("anyOf") or schema.get("oneOf")
        if variants:
            return self._variant(variants, name, depth, number)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            return self._variant([{**schema, "type": each} for each in kind], name, depth, number)
        if kind == "object":
            return self._object(schema, name, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return number_within(schema, kind == "integer", number)
        if kind == "string":
            return self._string(schema, name, number)
        return False if kind == "boolean" else None

    def _resolved(self, schema: Schema) -> Schema:
        """The schema with its references followed and its `allOf` parts merged."""
        while "$ref" in schema:
            target: Any = self._root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                target = target[step.replace("~1", "/").replace("~0", "~")]
            own = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **own}
        for part in schema.get("allOf", ()):
            schema = {**self._resolved(part), **schema}
        return schema

    def _variant(self, variants: Sequence[Schema], name: str, depth: int, number: int) -> object:
        """The first alternative; None as soon as the value is deep enough."""
        resolved = [self._resolved(variant) for variant in variants]
        values = [variant for variant in resolved if variant.get("type") != "null"]
        if not values or (depth >= DEEPEST and len(values) < len(resolved)):
            return None
        return self._value(values[0], name, depth, number)

    def _object(self, schema: Schema, name: str, depth: int) -> dict[str, object]:
        required = schema.get("required", ())
        filled = {
            key: self._value(inner, key, depth + 1)
            for key, inner in schema.get("properties", {}).items()
            if key in required or depth < DEEPEST
        }
        extra = schema.get("additionalProperties") or {}
        inner = extra if isinstance(extra, Mapping) else {}
        for number in range(len(filled), schema.get("minProperties", 0)):
            filled[f"{name or 'key'}_{number + 1}"] = self._value(inner, name, depth + 1, number)
        return filled

    def _array(self, schema: Schema, name: str, depth: int) -> list[object]:
        if "prefixItems" in schema:
            return [self._value(inner, name, depth + 1) for inner in schema["prefixItems"]]
        items = self._resolved(schema.get("items") or {})
        if "description" not in items and "description" in schema:
            items = {**items, "description": schema["description"]}
        wanted = USUAL_ITEMS
        if name.lower() in WORD_LISTS:
            wanted = USUAL_WORDS
        elif items.get("type") == "string" and not {"format", "pattern", "enum"} & items.keys():
            wanted = min(wanted, len(self._sentences))
        if depth >= DEEPEST:
            wanted = 0
        count = max(min(wanted, schema.get("maxItems", wanted)), schema.get("minItems", 0))
        return [self._value(items, name, depth + 1, number) for number in range(count)]

    def _choice(self, values: Sequence[object], number: int) -> object:
        """The values that the text mentions come first, then the undecided ones."""
        text = self._text.lower()

        def rank(value: object) -> tuple[int, bool]:
            mentions = re.findall(rf"\b{re.escape(str(value).lower())}\b", text)
            return -len(mentions), str(value).lower() not in UNDECIDED

        return sorted(values, key=rank)[number % len(values)]

    def _string(self, schema: Schema, name: str, number: int) -> str:
        if schema.get("format") in FORMATS:
            return FORMATS[schema["format"]]
        if "pattern" in schema:
            return self._matching(schema)
        if name.lower() in WORD_LISTS:
            words = frequent_words(self._sentences, number + 1)
            return within_length(
                words[number] if number < len(words) else f"{name} {number}", schema
            )
        unused = [sentence for sentence in self._sentences if sentence not in self._used]
        if not unused:
            again = next(iter(self._sentences), "")
            return within_length(f"{again} {number}" if number else again, schema)
        about = " ".join((name.replace("_", " "), schema.get("description", "")))
        best = ranked(unused, about)[0]
        self._used.add(best)
        return within_length(best, schema)

    def _matching(self, schema: Schema) -> str:
        pattern = schema["pattern"]
        longest, shortest = schema.get("maxLength", math.inf), schema.get("minLength", 0)
        for match in re.finditer(pattern.removeprefix("^").removesuffix("$"), self._text):
            if shortest <= len(match[0]) <= longest and re.search(pattern, match[0]):
                return match[0]
        raise ValueError(
            f"OfflineModel found no text that matches the pattern {pattern!r}. Use ScriptedModel "
            "for this output."
        )


def within_length(text: str, schema: Schema) -> str:
    """A text within the schema's length limits, cut after a word if possible."""
    shortest = schema.get("minLength", 0)
    longest = schema.get("maxLength", len(text))
    if len(text) > longest:
        cut = text[:longest]
        at_word = cut.rpartition(" ")[0]
        text = at_word if len(at_word) >= max(shortest, longest // 2) else cut
    return text.ljust(shortest, ".")


def number_within(schema: Schema, whole: bool, number: int = 0) -> int | float:
    """A number within the schema's limits; another one for each `number` if possible."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf", 1 if whole else 0)
    value = float(number)
    if low > -math.inf and high < math.inf:
        value = (low + high) / 2 + (number * step if step else 0)
    elif low > -math.inf:
        value = low + 1 + number * (step or 1)
    elif high < math.inf:
        value = high - 1 - number * (step or 1)
    if step:
        value = math.ceil(value / step) * step
    while step and (value > high or value == schema.get("exclusiveMaximum")):
        value -= step
    return int(value) if whole else value
