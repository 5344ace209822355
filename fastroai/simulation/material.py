"""A text as the offline model reads it: sentences, words and `Key: value` lines, and what in them
matters most.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

_STOP_WORDS = frozenset(
    """
    about above after again against all also although among and another any are because been
    before being below between both but can could did does doing down during each either else
    every few for from further had has have having her here hers him his how however into its
    itself just may might more most must neither nor not now off once one only other our out over
    own per same shall she should since some such than that the their them then there these they
    this those though through thus too under until upon use used using very via was well were
    what when where whether which while who whom why will with within without would yet you your
    """.split()  # noqa: SIM905 - a hundred quoted words would take a hundred lines
)
_WORD = re.compile(r"[^\W_][\w+-]*", re.UNICODE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]?[^\sa-z])")
_LINE_MARKS = re.compile(r"^\s*(?:#{1,6}\s+|[-*+•]\s+|>\s+|\d{1,3}[.)]\s+|={3,}$|-{3,}$)+")
_PAIR = re.compile(r"^\s*(?:[-*+•]\s+)?\**([^\W\d][\w /.-]{0,40}?)\**\s*[:=]\**\s+(\S.*?)\s*$")
_TABLE_ROW = re.compile(r"^\s*\|.*\|\s*$")
_PROJECT_URL = re.compile(r"([A-Za-z][\w ]*), (https?://\S+)")
_MARKUP = (
    (re.compile(r"^\s*(```|~~~).*?^\s*\1\s*$", re.MULTILINE | re.DOTALL), ""),
    (re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL), " "),
    (re.compile(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])"), ""),
    (re.compile(r"\[([^\[\]]+)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),
    (re.compile(r"\*\*|__(?=\w)|(?<=\w)__|`"), ""),
)
_SUFFIXES = (
    "ations",
    "ation",
    "ating",
    "ated",
    "ates",
    "ate",
    "ings",
    "ing",
    "ies",
    "ied",
    "ed",
    "es",
    "s",
)


def stem(word: str) -> str:
    """A word without its commonest endings, lower case: enough to match `licensing` with
    `licenses`.
    """
    word = word.lower()
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)].rstrip("e")
    return word.rstrip("e") if len(word) > 4 else word


def keywords_of(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning; `snake_case` and `camelCase` names are taken apart."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ").replace("-", " ")
    return frozenset(stem(word) for word in _WORD.findall(parted) if _carries_meaning(word))


def _carries_meaning(word: str) -> bool:
    return len(word) >= 3 and not word.isdigit() and word.lower() not in _STOP_WORDS


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence, or one line that is none, of a text."""

    text: str
    position: int

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Stems of the words that carry meaning, in order; `hyphenated-words` are taken apart."""
        words = _WORD.findall(self.text.replace("-", " "))
        return tuple(stem(word) for word in words if _carries_meaning(word))

    @cached_property
    def distinct(self) -> frozenset[str]:
        """The same, each once."""
        return frozenset(self.words)


class Material:
    """A text to extract from.

    Args:
        text: The text.
        within: The larger text it is a part of; its word counts then tell what is rare.
    """

    def __init__(self, text: str, within: Material | None = None) -> None:
        self.text = text
        self._within = within

    @cached_property
    def sentences(self) -> tuple[Sentence, ...]:
        """In order, without repetitions."""
        found: dict[str, None] = {}
        for paragraph in re.split(r"\n\s*\n", _without_markup(self.text)):
            for line in _joined_lines(paragraph):
                found.update(
                    dict.fromkeys(s.strip() for s in _SENTENCE_END.split(line) if _WORD.search(s))
                )
        return tuple(Sentence(text, position) for position, text in enumerate(found))

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each stem occurs."""
        return Counter(word for sentence in self.sentences for word in sentence.words)

    @cached_property
    def _words_in_all(self) -> int:
        return sum(self.counts.values()) or 1

    @cached_property
    def pairs(self) -> dict[str, str]:
        """Values of lines such as `License: MIT`, by their lower-case key; the first of a key
        counts.
        """
        pairs: dict[str, str] = {}
        for line in self.text.splitlines():
            if match := _PAIR.match(line):
                pairs.setdefault(re.sub(r"[\s_-]+", " ", match[1]).strip().lower(), match[2])
                if labelled := _PROJECT_URL.fullmatch(match[2]):
                    pairs.setdefault(labelled[1].lower(), labelled[2])
        return pairs

    def ranked(
        self, keywords: Collection[str] = (), leave_out: Collection[str] = ()
    ) -> list[Sentence]:
        """Sentences, the best first: those that share rare words with the keywords, then the most
        informative.

        Args:
            keywords: Stems to look for.
            leave_out: Texts of sentences that are not wanted, unless nothing else is left.
        """
        scored = [(self._score(sentence, keywords), sentence) for sentence in self.sentences]
        scored.sort(key=lambda pair: (pair[1].text in leave_out, -pair[0], pair[1].position))
        return [sentence for _, sentence in scored]

    def matching(self, keywords: Collection[str]) -> list[Sentence]:
        """Sentences that share a word with the keywords, the best first."""
        return [
            sentence
            for sentence in self.ranked(keywords)
            if not sentence.distinct.isdisjoint(keywords)
        ]

    def terms(self, limit: int, near: Collection[str] = ()) -> list[str]:
        """The words that stand out, as written, without repetitions; those in sentences with `near`
        words first.
        """
        weights: defaultdict[str, float] = defaultdict(float)
        spelling: dict[str, str] = {}
        prose = [sentence for sentence in self.sentences if not _PAIR.match(sentence.text)]
        for sentence in prose or self.sentences:
            bonus = 2 if not sentence.distinct.isdisjoint(near) else 1
            for word in _WORD.findall(sentence.text):
                if _carries_meaning(word) and stem(word) not in near:
                    weights[stem(word)] += bonus * (1.5 if word[0].isupper() else 1)
                    spelling.setdefault(stem(word), word)
        best = sorted(weights, key=lambda term: (-weights[term], term))
        return [spelling[term] for term in best[:limit]]

    def occurrences(self, phrase: str) -> int:
        """How often a phrase occurs as whole words, whatever its case."""
        return (
            len(re.findall(rf"(?<![\w]){re.escape(phrase)}(?![\w])", self.text, re.IGNORECASE))
            if phrase
            else 0
        )

    def _score(self, sentence: Sentence, keywords: Collection[str]) -> float:
        counts = self._within.counts if self._within is not None else self.counts
        total = (self._within or self)._words_in_all
        shared = sum(
            1 + math.log(total / (1 + counts[word]))
            for word in sentence.distinct
            if word in keywords
        )
        length = max(len(sentence.words), 1)
        informative = sum(math.log1p(counts[word]) for word in sentence.distinct) / math.sqrt(
            length
        )
        whole = 1.0 if sentence.text[-1:] in ".!?" and 4 <= length <= 40 else 0.3
        prose = 0.5 if _PAIR.match(sentence.text) else 1.0
        return prose * (3 * shared + informative * whole) + 0.5 / (1 + sentence.position)


def _without_markup(text: str) -> str:
    """Plain text: without HTML tags, images, code blocks, link targets, emphasis, lines that are
    mostly drawing.

    Without tables, too, where there is anything else: their rows are no sentences.
    """
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    lines = [line for line in text.splitlines() if not line.strip() or _is_mostly_words(line)]
    prose = [line for line in lines if not _TABLE_ROW.match(line)]
    return "\n".join(prose if any(_WORD.search(line) for line in prose) else lines)


def _is_mostly_words(line: str) -> bool:
    visible = [character for character in line if not character.isspace()]
    return 2 * sum(character.isalnum() for character in visible) > len(visible)


def _joined_lines(paragraph: str) -> Iterable[str]:
    """Lines of a paragraph; one that is wrapped in the middle of a sentence is joined with its
    next.
    """
    joined = ""
    for raw in paragraph.splitlines():
        starts_anew = bool(_LINE_MARKS.match(raw) or _PAIR.match(raw))
        line = _LINE_MARKS.sub("", raw).strip().strip("|").strip()
        if joined and (starts_anew or not _goes_on(joined, line)):
            yield joined
            joined = ""
        joined = f"{joined} {line}".strip()
    if joined:
        yield joined


def _goes_on(before: str, line: str) -> bool:
    return bool(line) and (line[0].islower() or len(before) > 60) and before[-1] not in ".!?:"
