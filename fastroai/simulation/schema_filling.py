"""Fills a JSON schema: strings with sentences of a text, all else with the plainest valid value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .sentences import ranked

Schema = Mapping[str, Any]

DEEPEST: Final = 6
USUAL_ITEMS: Final = 3
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a value something stands.

    Attributes:
        name: Of the field, or of the list that it is in.
        depth: How many objects and lists are around it.
        number: Of the item in its list; items should differ.
    """

    name: str = ""
    depth: int = 0
    number: int = 0

    def inside(self, name: str, number: int = 0) -> Place:
        """A field or an item of what stands here."""
        return Place(name, self.depth + 1, number)

    @property
    def is_deep(self) -> bool:
        """Whether a value should come to its end, which a schema need not have."""
        return self.depth >= DEEPEST


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
        self._unused = list(sentences)

    def fill(self) -> object:
        """A value that is valid by the schema.

        Raises:
            ValueError: It has a pattern that no part of the text matches.
        """
        return self.value(self._root, Place())

    def value(self, schema: Schema, at: Place) -> object:
        """A value of a schema within the whole one."""
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], at.number)
        if variants := variants_of(schema):
            return self._variant(variants, at)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        return _BY_TYPE[kind](self, schema, at)

    def _resolved(self, schema: Schema) -> Schema:
        """The schema with its references followed and its `allOf` parts merged."""
        while "$ref" in schema:
            target: Any = self._root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                target = target[step.replace("~1", "/").replace("~0", "~")]
            # What stands beside a reference counts more than what it refers to.
            own = dict(schema)
            del own["$ref"]
            schema = {**target, **own}
        for part in schema.get("allOf", ()):
            schema = {**self._resolved(part), **schema}
        return schema

    def _variant(self, variants: Sequence[Schema], at: Place) -> object:
        """The first alternative; None as soon as the value is deep enough."""
        # A schema may hold itself, but then it says how the chain may end.
        resolved = list(map(self._resolved, variants))
        values = [variant for variant in resolved if variant.get("type") != "null"]
        may_be_none = len(values) < len(resolved)
        if not values or (at.is_deep and may_be_none):
            return None
        return self.value(values[0], at)

    def filled_object(self, schema: Schema, at: Place) -> dict[str, Any]:
        """An object with all its fields; deep down, with those it needs."""
        properties = dict(schema.get("properties", {}))
        if at.is_deep:
            properties = {key: properties[key] for key in schema.get("required", ())}
        filled = {key: self.value(inner, at.inside(key)) for key, inner in properties.items()}
        extra = schema.get("additionalProperties")
        inner = extra if isinstance(extra, Mapping) else {}
        for number in range(len(filled), schema.get("minProperties", 0)):
            filled[f"{at.name or 'key'}_{number + 1}"] = self.value(
                inner, at.inside(at.name, number)
            )
        return filled

    def filled_array(self, schema: Schema, at: Place) -> list[Any]:
        """A list of as many items as there is something to say."""
        if "prefixItems" in schema:
            return [self.value(inner, at.inside(at.name)) for inner in schema["prefixItems"]]
        items = self._resolved(schema.get("items") or {})
        if "description" in schema:
            items = {"description": schema["description"], **items}
        wanted = 0 if at.is_deep else min(USUAL_ITEMS, len(self._sentences))
        count = max(min(wanted, schema.get("maxItems", wanted)), schema.get("minItems", 0))
        return [self.value(items, at.inside(at.name, number)) for number in range(count)]

    def _choice(self, values: Sequence[object], number: int) -> object:
        """The values that the text mentions most come first."""
        text = self._text.lower()

        def mentions(value: object) -> int:
            return len(re.findall(rf"\b{re.escape(str(value).lower())}\b", text))

        return sorted(values, key=mentions, reverse=True)[number % len(values)]

    def filled_text(self, schema: Schema, at: Place) -> str:
        """A text of the format or pattern that is asked for, else a sentence."""
        if schema.get("format") in FORMATS:
            return FORMATS[schema["format"]]
        if "pattern" in schema:
            return self._matching(schema)
        about = f"{at.name.replace('_', ' ')} {schema.get('description', '')}"
        return within_length(self._sentence(about, at.number), schema)

    def _sentence(self, about: str, number: int) -> str:
        """The best one that was not used yet."""
        if self._unused:
            best = ranked(self._unused, about)[0]
            self._unused.remove(best)
            return best
        again = self._sentences[0] if self._sentences else ""
        return f"{again} {number}" if number else again

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


_BY_TYPE: Mapping[str, Callable[[SchemaFiller, Schema, Place], object]] = {
    "object": SchemaFiller.filled_object,
    "array": SchemaFiller.filled_array,
    "string": SchemaFiller.filled_text,
    "integer": lambda _, schema, at: number_within(schema, True, at.number),
    "number": lambda _, schema, at: number_within(schema, False, at.number),
    "boolean": lambda *_: False,
    "null": lambda *_: None,
}


def within_length(text: str, schema: Schema) -> str:
    """A text within the schema's length limits, cut after a word if possible."""
    shortest = schema.get("minLength", 0)
    longest = schema.get("maxLength", len(text))
    if len(text) > longest:
        cut = text[:longest]
        at_word = cut.rpartition(" ")[0]
        text = at_word if len(at_word) >= max(shortest, longest // 2) else cut
    return text.ljust(shortest, ".")


def variants_of(schema: Schema) -> Sequence[Schema]:
    """The schemas of which a value has to fit one; empty where there is no choice."""
    variants: Sequence[Schema] = schema.get("anyOf") or schema.get("oneOf") or ()
    kinds = schema.get("type")
    if not variants and isinstance(kinds, list):
        return [{**schema, "type": kind} for kind in kinds]
    return variants


def number_within(schema: Schema, whole: bool, number: int = 0) -> int | float:
    """A number within the schema's limits; another one for each `number` if possible."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    step = schema.get("multipleOf", 1 if whole else 0)
    value = number_between(low, high, number, step)
    if step:
        value = math.ceil(value / step) * step
        # Rounded up, it may be past the limit.
        excluded = schema.get("exclusiveMaximum")
        while value > high or value == excluded:
            value -= step
    return int(value) if whole else value


def number_between(low: float, high: float, number: int, step: float) -> float:
    beyond = 1 + number * (step or 1)
    match math.isinf(low), math.isinf(high):
        case True, True:
            return float(number)
        case False, True:
            return low + beyond
        case True, False:
            return high - beyond
    return (low + high) / 2 + number * step
