"""Fills a JSON schema from a text, so that the value always fits the schema."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .formats import FORMATS, minimal_match
from .material import Material, keywords_of

Schema = Mapping[str, Any]

_DEEPEST: Final = 6
_SHORT_TEXT: Final = 60
_USUAL_ITEMS: Final = 3
_USUAL_TERMS: Final = 5
_NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d,]*(?:\.\d+)?(?![\w-]|\.\d)")
_NEGATION = re.compile(
    r"\b(?:no|not|never|without|neither|nor|non|isn't|doesn't|don't|cannot|can't|lacks?)\b", re.I
)
_COUNTING = frozenset({"count", "number", "num", "many"})
_TERM_LISTS = frozenset(
    keywords_of("tags keywords terms topics names words labels themes entities")
)
_OVERVIEW = frozenset(
    keywords_of("summary abstract overview description digest synopsis explanation reasoning text")
)
_HEADLINE = frozenset(keywords_of("title name heading headline subject"))
_NEUTRAL = (
    "unknown",
    "other",
    "none",
    "neutral",
    "n/a",
    "unclear",
    "undetermined",
    "medium",
    "moderate",
)
_EMPTY_KEYWORDS = frozenset(
    keywords_of("value field list item string number whether true response")
)


@dataclass
class SchemaFiller:
    """Fills one schema from one text.

    Args:
        root: The whole schema; `$ref`s are looked up in its `$defs`.
        material: The text.
    """

    root: Schema
    material: Material
    _used: set[str] = field(default_factory=set)

    def fill(self) -> Any:
        """A value that fits the schema, drawn from the text wherever the text has something to
        say.
        """
        return self._value(self.root, "", self.material, 0)

    def _value(self, schema: Schema, name: str, text: Material, depth: int) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], schema, name, text)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._variant(schema, schema[key], name, text, depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            return self._variant(
                schema, [{**schema, "type": each} for each in kind], name, text, depth
            )
        if kind == "object":
            return self._object(schema, name, text, depth)
        if kind == "array":
            return self._array(schema, name, text, depth)
        if kind == "boolean":
            return self._truth(schema, name, text)
        if kind in ("integer", "number"):
            return self._number(schema, name, text, whole=kind == "integer")
        return None if kind == "null" else self._string(schema, name, text)

    def _resolved(self, schema: Schema) -> Schema:
        """The schema with its references followed and its `allOf` parts merged."""
        while "$ref" in schema:
            target: Any = self.root
            for step in schema["$ref"].removeprefix("#/").split("/"):
                target = target[step.replace("~1", "/").replace("~0", "~")]
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        if "allOf" in schema:
            merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
            for part in map(self._resolved, schema["allOf"]):
                properties = {**part.get("properties", {}), **merged.get("properties", {})}
                merged = {**part, **merged, **({"properties": properties} if properties else {})}
            schema = merged
        return schema

    # objects, lists and alternatives

    def _object(self, schema: Schema, name: str, text: Material, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = schema.get("required", ())
        filled = {
            key: self._value(inner, key, text, depth + 1)
            for key, inner in properties.items()
            if key in required or depth < _DEEPEST
        }
        extra = schema.get("additionalProperties")
        if isinstance(extra, Mapping) and not properties:
            fewest, most = schema.get("minProperties", 0), schema.get("maxProperties", _USUAL_ITEMS)
            wanted = max(fewest, 0 if depth >= _DEEPEST else min(most, _USUAL_ITEMS))
            keys = text.terms(wanted, keywords_of(name))
            keys += [f"{name or 'key'}_{i}" for i in range(len(keys), fewest)]
            filled = {key: self._value(extra, key, text, depth + 1) for key in keys}
        return filled

    def _array(self, schema: Schema, name: str, text: Material, depth: int) -> list[Any]:
        fixed = schema.get("prefixItems")
        if fixed:
            return [self._value(inner, name, text, depth + 1) for inner in fixed]
        items = self._resolved(schema.get("items") or {"type": "string"})
        fewest, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        wanted = int(max(fewest, 0 if depth >= _DEEPEST else min(most, max(fewest, _USUAL_ITEMS))))
        values = self._items(items, schema, name, text, depth, wanted)
        if schema.get("uniqueItems"):
            values = _distinct(values)
        return values + self._more_items(
            items, name, text, depth, fewest - len(values), taken=values
        )

    def _items(
        self, items: Schema, schema: Schema, name: str, text: Material, depth: int, wanted: int
    ) -> list[Any]:
        keywords = self._keywords(schema, name) | keywords_of(str(items.get("description", "")))
        if "enum" in items:
            hints = {value: self._mentions(value, items, text) for value in items["enum"]}
            return [value for value in sorted(hints, key=lambda v: -hints[v]) if hints[value]][
                :wanted
            ]
        if items.get("type") == "string" and not items.keys() & {"format", "pattern"}:
            short = items.get("maxLength", math.inf) <= _SHORT_TEXT or not _TERM_LISTS.isdisjoint(
                keywords_of(name)
            )
            if short:
                wanted = int(
                    min(
                        schema.get("maxItems", math.inf), max(wanted, _USUAL_TERMS if wanted else 0)
                    )
                )
                found = text.terms(wanted, keywords - _TERM_LISTS)
            else:
                chosen = text.ranked(keywords, leave_out=self._used)[:wanted]
                self._used.update(sentence.text for sentence in chosen)
                found = [sentence.text for sentence in sorted(chosen, key=lambda s: s.position)]
            return _distinct([_fitted(value, items) for value in found])
        if items.get("type") in ("integer", "number"):
            return [
                _clamped(n, items, items["type"] == "integer") for n in _numbers(text.text)[:wanted]
            ]
        return [
            self._value(items, name, Material(sentence.text, within=text), depth + 1)
            for sentence in sorted(text.ranked(keywords)[:wanted], key=lambda s: s.position)
        ]

    def _more_items(
        self, items: Schema, name: str, text: Material, depth: int, missing: int, taken: list[Any]
    ) -> list[Any]:
        """What fills a list up to its shortest length when the text has too little for it."""
        more: list[Any] = []
        for _ in range(missing):
            if "enum" in items:
                choices = items["enum"]
                value = next(
                    (choice for choice in choices if choice not in [*taken, *more]), choices[0]
                )
            else:
                value = self._value(items, name, text, depth + 1)
                variants = (
                    _varied(value, number, items) for number in range(1, len(taken) + missing + 1)
                )
                value = next(
                    (each for each in (value, *variants) if each not in [*taken, *more]), value
                )
            more.append(value)
        return more

    def _variant(
        self, schema: Schema, variants: Sequence[Schema], name: str, text: Material, depth: int
    ) -> Any:
        resolved = [self._resolved(variant) for variant in variants]
        shared = {key: schema[key] for key in ("title", "description") if key in schema}
        candidates = [
            {**shared, **variant} for variant in resolved if variant.get("type") != "null"
        ]
        nullable = len(candidates) < len(resolved)
        if not candidates:
            return None
        if nullable and (depth >= _DEEPEST or not self._is_evident(candidates[0], name, text)):
            return None
        best = max(candidates, key=lambda c: (self._affinity(c, text), -candidates.index(c)))
        return self._value(best, name, text, depth)

    def _is_evident(self, schema: Schema, name: str, text: Material) -> bool:
        """Whether the text says anything about an optional field."""
        if (form := FORMATS.get(schema.get("format", ""))) is not None:
            return any(form.accepts(found[0]) for found in form.pattern.finditer(text.text))
        if "enum" in schema:
            return any(self._mentions(value, schema, text) for value in schema["enum"])
        return self._pair(name, text) is not None or bool(
            text.matching(self._keywords(schema, name))
        )

    def _affinity(self, schema: Schema, text: Material) -> int:
        """How well an alternative fits the text, by its title and the constants and names in it."""
        words = set(keywords_of(str(schema.get("title", ""))))
        for key, inner in schema.get("properties", {}).items():
            words |= keywords_of(key) | keywords_of(str(self._resolved(inner).get("const", "")))
        return sum(text.counts[word] for word in words)

    # single values

    def _string(self, schema: Schema, name: str, text: Material) -> str:
        if (form := FORMATS.get(schema.get("format", ""))) is not None:
            found = (
                match[0] for match in form.pattern.finditer(text.text) if form.accepts(match[0])
            )
            return next(found, form.default)
        if pattern := schema.get("pattern"):
            return _matching_pattern(pattern, schema, text)
        return _fitted(self._best_text(schema, name, text), schema)

    def _best_text(self, schema: Schema, name: str, text: Material) -> str:
        if (value := self._pair(name, text)) is not None:
            return value
        own, sentences = keywords_of(name), text.sentences
        if not sentences:
            return ""
        if own and own <= _HEADLINE:
            return sentences[0].text
        if not own.isdisjoint(_OVERVIEW):
            chosen = text.ranked(self._keywords(schema, name) - _OVERVIEW)[:2]
            return " ".join(sentence.text for sentence in sorted(chosen, key=lambda s: s.position))
        best = text.ranked(self._keywords(schema, name), leave_out=self._used)[0].text
        self._used.add(best)
        return best

    def _choice(self, values: Sequence[Any], schema: Schema, name: str, text: Material) -> Any:
        pair = self._pair(name, text)
        for value in values:
            if pair is not None and isinstance(value, str) and value.lower() in pair.lower():
                return value
        mentions = [self._mentions(value, schema, text) for value in values]
        if any(mentions):
            return values[mentions.index(max(mentions))]
        return next((value for value in values if str(value).lower() in _NEUTRAL), values[0])

    def _mentions(self, value: Any, schema: Schema, text: Material) -> int:
        """How often a choice is mentioned, also by the words its description lists: `permissive
        (MIT, BSD), …`.
        """
        spoken = str(value).replace("_", " ")
        listed = re.search(
            rf"\b{re.escape(str(value))}\b\s*[:(=]\s*([^);:.\n]+)",
            str(schema.get("description", "")),
        )
        words = [word.strip() for word in re.split(r",|\bor\b|/", listed[1])] if listed else []
        return text.occurrences(spoken) + sum(text.occurrences(word) for word in words if word)

    def _truth(self, schema: Schema, name: str, text: Material) -> bool:
        if (pair := self._pair(name, text)) is not None:
            return pair.strip().lower() in ("true", "yes", "y", "1", "on")
        wanted = keywords_of(name) or self._keywords(schema, name)
        for sentence in text.matching(wanted):
            if wanted <= sentence.distinct or len(wanted & sentence.distinct) >= 2:
                return not _NEGATION.search(sentence.text)
        return False

    def _number(self, schema: Schema, name: str, text: Material, *, whole: bool) -> int | float:
        return _clamped(self._evident_number(schema, name, text), schema, whole)

    def _evident_number(self, schema: Schema, name: str, text: Material) -> float:
        """From a `Key: 12` line, a number beside the field's words, a count of those words, or a
        share of sentences.
        """
        if found := _numbers(self._pair(name, text) or ""):
            return found[0]
        keywords = self._keywords(schema, name)
        matching = text.matching(keywords)
        for sentence in matching:
            if (number := _number_of(keywords, sentence.text)) is not None:
                return number
        if keywords_of(name).isdisjoint(_COUNTING) and not name.endswith("s"):
            for sentence in matching:
                if found := _numbers(sentence.text):
                    return found[0]
        topic = keywords - _COUNTING
        if schema.get("maximum", math.inf) <= 1:
            share = len(text.matching(topic)) / max(len(text.sentences), 1)
            return round(share, 2) or 0.5
        return sum(text.counts[word] for word in topic)

    def _pair(self, name: str, text: Material) -> str | None:
        """The value of a `Key: value` line whose key is the field's name, or contains it."""
        spoken = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower().strip()
        if not spoken:
            return None
        if spoken in text.pairs:
            return text.pairs[spoken]
        wanted = keywords_of(name)
        return next(
            (value for key, value in text.pairs.items() if wanted and wanted <= keywords_of(key)),
            None,
        )

    def _keywords(self, schema: Schema, name: str) -> frozenset[str]:
        described = keywords_of(f"{name} {schema.get('title', '')} {schema.get('description', '')}")
        return described - _EMPTY_KEYWORDS


def _numbers(text: str) -> list[float]:
    return [float(match.replace(",", "")) for match in _NUMBER.findall(text)]


def _number_of(keywords: Collection[str], text: str) -> float | None:
    """The number right before one of the words, as in `12 workers` or `12 busy workers`."""
    for match in _NUMBER.finditer(text):
        if not keywords_of(" ".join(text[match.end() :].split()[:2])).isdisjoint(keywords):
            return _numbers(match[0])[0]
    return None


def _clamped(value: float, schema: Schema, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1 if whole else 0)
    nudge = step or 1e-6
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    highest = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    lowest += nudge if "exclusiveMinimum" in schema and schema["exclusiveMinimum"] >= lowest else 0
    highest -= (
        nudge if "exclusiveMaximum" in schema and schema["exclusiveMaximum"] <= highest else 0
    )
    value = min(max(value, lowest), highest)
    if step:
        value = round(value / step) * step
        value += step if value < lowest else -step if value > highest else 0
    return int(value) if whole else float(value)


def _fitted(text: str, schema: Schema) -> str:
    """A text within the schema's length limits, cut after a word where it can be."""
    longest, shortest = schema.get("maxLength"), schema.get("minLength", 0)
    if longest is not None and len(text) > longest:
        cut = text[:longest]
        at_word = cut.rsplit(" ", 1)[0].rstrip(" ,;:")
        text = at_word if len(at_word) >= max(shortest, longest // 2) else cut
    return text.ljust(shortest, ".")


def _matching_pattern(pattern: str, schema: Schema, text: Material) -> str:
    loose = pattern.removeprefix("^").removesuffix("$")
    longest, shortest = schema.get("maxLength", math.inf), schema.get("minLength", 0)
    for match in re.finditer(loose, text.text):
        if shortest <= len(match[0]) <= longest and re.search(pattern, match[0]):
            return match[0]
    return minimal_match(pattern)


def _distinct(values: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _varied(value: Any, number: int, schema: Schema) -> Any:
    """Another value of the same kind, for lists that must be longer than the text allows."""
    if isinstance(value, str) and not schema.keys() & {"format", "pattern"}:
        mark = f" ({number})"
        longest = schema.get("maxLength")
        return (value if longest is None else value[: max(0, longest - len(mark))]) + mark
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _clamped(value + number, schema, isinstance(value, int))
    return value
