"""Sentences of a text, ranked by what they are about."""

from __future__ import annotations

import re
from collections.abc import Collection

_WORD = re.compile(r"[^\W\d_]{4,}")
# Words with the same first letters count as the same: `licence`, `licensing`.
_STEM = 5
# Fewer words than this are a heading or a fragment rather than a sentence.
_USUAL_LENGTH = 5
_CODE_BLOCK = re.compile(r"^\s*(```|~~~).*?^\s*\1\s*$", re.MULTILINE | re.DOTALL)
_TABLE_ROW = re.compile(r"^\s*\|.*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}|[-*+•>]|\d{1,3}[.)])\s+", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|\*\*|`")
_END = re.compile(r"(?<=[.!?…])\s+|\n\s*\n")


def sentences_of(text: str) -> list[str]:
    """In order, without repetitions, without code blocks, tables and the marks of Markdown."""
    for block in (_CODE_BLOCK, _TABLE_ROW, _LINE_MARK):
        text = block.sub("\n\n", text)
    text = _MARKUP.sub("", _LINK.sub(r"\1", text))
    parts = (" ".join(part.split()) for part in _END.split(text))
    return list(dict.fromkeys(filter(_WORD.search, parts)))


def stems_of(text: str) -> frozenset[str]:
    """The beginnings of the words of four letters and more, lower case."""
    return frozenset(word[:_STEM].lower() for word in _WORD.findall(text))


def ranked(sentences: Collection[str], about: str) -> list[str]:
    """Whole sentences first, of them those that share the most words with what is asked about."""
    wanted = stems_of(about)

    def rank(sentence: str) -> tuple[bool, int]:
        return len(sentence.split()) < _USUAL_LENGTH, -len(wanted & stems_of(sentence))

    return sorted(sentences, key=rank)
