"""Signed records: detects changed or moved content; with a secret, also forged content."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..settings import FastroAISettings

Compression = Literal["none", "gzip"]

LARGEST = 256 * 1024 * 1024
"""Bytes of a record that is compressed."""

BEGINNING = 256
"""Bytes of what is stored that are enough to tell a record by."""

# Bytes that are expanded at a time while a seal is checked.
_PIECE = 64 * 1024

# Of plain records the seal is the first field. Before compressed ones it is a line of its own.
_SEALED = re.compile(
    rb'\{"seal":"(?P<seal>(?:hmac-)?sha256:[0-9a-f]{64})"(?:,"gzip":true\}\n|,(?="))'
)
_LINE_END = b"\n"
_GZIP = b"\x1f\x8b"
_AUTO_FORMAT = 16  # zlib's word for gzip's header

_PLAIN_DOMAIN, _GZIP_DOMAIN = b"fastroai-record-1\n", b"fastroai-gzip-record-1\n"
"""What a digest begins with, so that none of one form holds for the other."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Seals records and checks the seal before anything of a record is expanded or parsed.

    The seal is a SHA-256 or, with a secret, an HMAC-SHA-256 over the record's name and its bytes as
    they are stored. A record that was damaged, or moved from another name, is told from one that
    was written. Records that were compressed by earlier versions hold their seal inside.

    Attributes:
        secret: Key of the HMAC. With one, only records that were sealed with it are read; without,
            only those that were sealed without.
        compression: How records are written; they are read in either form.
        largest: Bytes of a record up to which it is compressed; what expands to more is not read.
    """

    secret: bytes | None = field(default=None, repr=False)
    compression: Compression = "none"
    largest: int = LARGEST

    @classmethod
    def of(cls, settings: FastroAISettings) -> Signer:
        """As the settings say."""
        secret = settings.result_secret
        return cls(
            secret.get_secret_value().encode() if secret else None, settings.result_compression
        )

    def close(self, name: str, record: bytes) -> bytes:
        """What is stored for a record, a JSON object with at least one field."""
        if not record.startswith(b'{"'):
            raise ValueError(f"only JSON objects are sealed, not {record[:20]!r}")
        if self.compression == "gzip" and len(record) <= self.largest:
            packed = gzip.compress(record, compresslevel=6, mtime=0)
            seal = self._seal(_GZIP_DOMAIN, name, [packed])
            return b'{"seal":"%b","gzip":true}\n' % seal + packed
        seal = self._seal(_PLAIN_DOMAIN, name, [record])
        return b'{"seal":"%b",' % seal + record[1:]

    def open(self, name: str, stored: bytes) -> bytes:
        """The record that was sealed under this name, compressed or not.

        Raises:
            ValueError: It is none, it was changed or moved, or it was sealed with another secret or
                without one.
        """
        # Without a secret anybody can make a seal that holds, so all that expands is bounded, too.
        if stored.startswith(_GZIP):
            return self._open_sealed_inside(name, stored)
        found = self._seal_of(name, stored)
        body = memoryview(stored)[found.end() :]
        if not found[0].endswith(_LINE_END):
            self._check(name, found, _PLAIN_DOMAIN, [b"{", body])
            return b"".join((b"{", body))
        self._check(name, found, _GZIP_DOMAIN, [body])
        return b"".join(_expanded(body, self.largest))

    def _open_sealed_inside(self, name: str, stored: bytes) -> bytes:
        """A record of an earlier version, which was sealed and then compressed.

        It is expanded twice: at first piece by piece, to check the seal without holding the whole.
        """
        pieces = _expanded(stored, self.largest)
        first = next(pieces, b"")
        found = self._seal_of(name, first)
        rest = first[found.end() :]
        self._check(name, found, _PLAIN_DOMAIN, itertools.chain((b"{", rest), pieces))
        return b"{" + b"".join(_expanded(stored, self.largest))[found.end() :]

    def _seal_of(self, name: str, stored: bytes) -> re.Match[bytes]:
        found = _SEALED.match(stored)
        if found is None:
            raise ValueError(f"{name!r} is not a sealed record")
        return found

    def _check(
        self,
        name: str,
        found: re.Match[bytes],
        domain: bytes,
        content: Iterable[bytes | memoryview],
    ) -> None:
        expected = self._seal(domain, name, content)
        if not hmac.compare_digest(found["seal"], expected):
            method = found["seal"].partition(b":")[0].decode()
            expected_method = expected.partition(b":")[0].decode()
            raise ValueError(
                f"the {method} seal of {name!r} does not hold; {expected_method} is expected"
            )

    def _seal(self, domain: bytes, name: str, content: Iterable[bytes | memoryview]) -> bytes:
        method = b"sha256"
        digest: hashlib._Hash | hmac.HMAC = hashlib.sha256()
        if self.secret is not None:
            method = b"hmac-sha256"
            digest = hmac.new(self.secret, digestmod=hashlib.sha256)
        # The name is quoted: no end of it can be taken for a beginning of the content.
        digest.update(domain + json.dumps(name).encode() + b"\n")
        for part in content:
            digest.update(part)
        return b"%b:%b" % (method, digest.hexdigest().encode())


def is_sealed(beginning: bytes) -> bool:
    """Whether what is stored begins as a record of ours does.

    Only the form is looked at, so it takes no secret.
    """
    if beginning.startswith(_GZIP):
        try:
            expander = zlib.decompressobj(zlib.MAX_WBITS | _AUTO_FORMAT)
            beginning = expander.decompress(beginning, BEGINNING)
        except zlib.error:
            return False
    return _SEALED.match(beginning) is not None


def _expanded(stored: bytes | memoryview, largest: int) -> Iterator[bytes]:
    """The content of one gzip stream in pieces.

    Raises:
        ValueError: It is none, it is cut off, something follows it, or it expands to more than
            `largest` bytes.
    """
    expander = zlib.decompressobj(zlib.MAX_WBITS | _AUTO_FORMAT)
    size = consumed = 0
    while not expander.eof:
        # Given in pieces, too: zlib copies what it leaves of each.
        left = expander.unconsumed_tail or bytes(stored[consumed : consumed + _PIECE])
        if not expander.unconsumed_tail:
            consumed += len(left)
        try:
            piece = expander.decompress(left, _PIECE)
        except zlib.error as error:
            raise ValueError(f"not gzip: {error}") from error
        if not (left or piece or expander.eof):
            raise ValueError("its gzip is cut off")
        size += len(piece)
        if size > largest:
            raise ValueError(f"it expands to more than {largest} bytes")
        yield piece
    if expander.unused_data or consumed < len(stored):
        raise ValueError("something follows its gzip")
