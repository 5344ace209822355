"""Values of a declared type as plain JSON; only values that can be read back equal are stored."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from pydantic import TypeAdapter

from .round_trip import Spelling
from .strict_json import is_plain
from .tagged_json import pack, unpack

CodecName = Literal["json", "declared", "python"]


class Encoded(TypedDict):
    """A value as plain JSON, and how it is to be read."""

    codec: str
    value: Any


class NotFaithfulError(TypeError):
    """A value would not come back the same from JSON."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes and decodes the values of one type.

    A value is written as it is when it is plain JSON; through the type's own JSON when it comes
    back the same from that, or from its Python form with each type tagged (a key that is no text, a
    set, bytes that are no UTF-8). Which one is part of the cache keys of whatever is made of it.

    Attributes:
        adapter: Of the type that the code declares; never one that is named in the data. None:
            plain JSON only.
    """

    adapter: TypeAdapter[Any] | None

    def encode(self, value: object) -> Encoded:
        """A value as plain JSON.

        Raises:
            NotFaithfulError: It would not come back the same.
        """
        if is_plain(value):
            return {"codec": "json", "value": value}
        try:
            spelled = Spelling(value)
        except TypeError as error:
            raise NotFaithfulError(f"read back: {error}") from error
        if self.adapter is not None:
            # Not through a type's own JSON, which lists a set in the order of this process.
            codecs = ("python", "declared") if spelled.holds_set else ("declared", "python")
            for codec in codecs:
                # Whatever a type's own serializer or comparison raises: not in this way.
                with suppress(Exception):
                    written = dumped(self.adapter, codec, value)
                    again = loaded(self.adapter, codec, written)
                    if is_plain(written) and Spelling(again) == spelled:
                        return {"codec": codec, "value": written}
        raise NotFaithfulError("read back equal")

    def decode(self, stored: Any) -> Any:
        """A value from plain JSON.

        Raises:
            Exception: The stored value is not one that `encode` makes, as the code is now.
        """
        codec, written = stored["codec"], stored["value"]
        if len(stored) != 2 or not is_plain(written):
            raise TypeError("more or other than a codec and its value")
        if codec == "json":
            return written
        if codec not in ("declared", "python") or self.adapter is None:
            raise TypeError(f"codec {codec!r} is not one of the declared type")
        value = loaded(self.adapter, codec, written)
        # Text for a number, say: pydantic takes it, we never wrote it. What is written the same
        # again was ours, save that the order of a set is the writer's.
        again = dumped(self.adapter, codec, value)
        is_the_same = json.dumps(again) == json.dumps(written)
        if not is_the_same and (codec == "python" or not Spelling(value).holds_set):
            raise ValueError(f"{again!r} was expected instead of {written!r}")
        return value


def dumped(adapter: TypeAdapter[Any], codec: str, value: object) -> Any:
    """A value of the adapter's type as JSON."""
    # Fields by their own names, and without what is computed from others.
    if codec == "python":
        return pack(adapter.dump_python(value, by_alias=False, round_trip=True, warnings="error"))
    return json.loads(adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error"))


def loaded(adapter: TypeAdapter[Any], codec: str, written: Any) -> Any:
    """The value again; that it is what was written is for the caller to see."""
    if codec == "python":
        return adapter.validate_python(unpack(written), by_alias=False, by_name=True)
    return adapter.validate_json(json.dumps(written), by_alias=False, by_name=True)
