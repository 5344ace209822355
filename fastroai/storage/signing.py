"""Sealed records: what is read is what was written, under that name; with a secret, by someone who
knows it.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Literal

from ..settings import FastroAISettings

Compression = Literal["none", "gzip"]

LARGEST = 256 * 1024 * 1024
"""Bytes of a record that is compressed."""

BEGINNING = 8192
"""Bytes of what is stored that are enough to tell a record by."""

_SEALED = re.compile(rb'\{"seal":"(sha256|hmac-sha256):([0-9a-f]{64})",(?=")')
_GZIP = b"\x1f\x8b"
_AUTO_FORMAT = 16  # zlib's word for gzip's header


@dataclass(frozen=True, slots=True)
class Signer:
    """Seals records and checks the seal before anything of a record is parsed.

    The seal is the first field of the record's JSON: a SHA-256 or, with a secret, an HMAC-SHA-256
    over the record's name and its bytes. So a record that was damaged, or moved from another name,
    is told from one that was written.

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

    @property
    def method(self) -> str:
        """`sha256` or `hmac-sha256`."""
        return "sha256" if self.secret is None else "hmac-sha256"

    def close(self, name: str, record: bytes) -> bytes:
        """What is stored for a record, a JSON object with at least one field."""
        if not record.startswith(b'{"'):
            raise ValueError(f"only JSON objects are sealed, not {record[:20]!r}")
        digest = self._digest(name, record)
        sealed = b'{"seal":"' + f"{self.method}:{digest}".encode() + b'",' + record[1:]
        if self.compression == "gzip" and len(sealed) <= self.largest:
            return gzip.compress(sealed, compresslevel=6, mtime=0)
        return sealed

    def open(self, name: str, stored: bytes) -> bytes:
        """The record that was sealed under this name, compressed or not.

        Raises:
            ValueError: It is none, it was changed or moved, or it was sealed with another secret or
                without one.
        """
        sealed = _expanded(stored, self.largest) if stored.startswith(_GZIP) else stored
        found = _SEALED.match(sealed)
        if found is None:
            raise ValueError(f"{name!r} is no sealed record")
        method, digest = (group.decode() for group in found.groups())
        record = b"{" + sealed[found.end() :]
        if method != self.method or not hmac.compare_digest(digest, self._digest(name, record)):
            raise ValueError(
                f"the {method} seal of {name!r} does not hold; {self.method} is expected"
            )
        return record

    def _digest(self, name: str, record: bytes) -> str:
        message = b"fastroai-record-1\n" + json.dumps(name).encode() + b"\n" + record
        if self.secret is None:
            return hashlib.sha256(message).hexdigest()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()


def beginning_of_sealed(stored: bytes) -> bytes | None:
    """How a record begins, told from how it is stored begins; None where that is no seal.

    Nothing is checked but the form, so it does not take the secret. For who has to tell records
    from other files.
    """
    if stored.startswith(_GZIP):
        try:
            stored = zlib.decompressobj(zlib.MAX_WBITS | _AUTO_FORMAT).decompress(stored, BEGINNING)
        except zlib.error:
            return None
    found = _SEALED.match(stored)
    return None if found is None else b"{" + stored[found.end() :]


def _expanded(stored: bytes, largest: int) -> bytes:
    expander = zlib.decompressobj(zlib.MAX_WBITS | _AUTO_FORMAT)
    try:
        sealed = expander.decompress(stored, largest + 1)
    except zlib.error as error:
        raise ValueError(f"no gzip: {error}") from error
    if len(sealed) > largest:
        raise ValueError(f"it expands to more than {largest} bytes")
    if not expander.eof or expander.unused_data:
        raise ValueError("its gzip is cut off, or something follows it")
    return sealed
