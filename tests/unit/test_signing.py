"""Sealed records: whatever was changed, moved, cut, forged or blown up is not read."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.settings import load_settings
from fastroai.storage.signing import BEGINNING, Signer, is_sealed

NAME = "3f0c/key"
RECORD = json.dumps(
    {"metadata": {"serializer": {"type": "fastroai-json"}}, "result": '{"output":{"value":1234}}'}
).encode()
SECRET = b"a secret of 24 characters"

SEALS = [
    Signer(secret=secret, compression=compression)
    for secret in (None, SECRET)
    for compression in ("none", "gzip")  # type: ignore[attr-defined]
]


def opened(seal: Signer, content: bytes, name: str = NAME) -> bytes | None:
    """What is read of a stored record; None where it is refused."""
    try:
        return seal.open(name, content)
    except ValueError:
        return None


@pytest.mark.parametrize("seal", SEALS, ids=str)
def test_a_record_is_read_as_it_was_written(seal: Signer) -> None:
    assert opened(seal, seal.close(NAME, RECORD)) == RECORD


@pytest.mark.parametrize("seal", SEALS, ids=str)
def test_no_flipped_bit_is_read_as_another_record(seal: Signer) -> None:
    stored = seal.close(NAME, RECORD)
    refused = 0
    for position in range(8 * len(stored)):
        damaged = bytearray(stored)
        damaged[position // 8] ^= 1 << position % 8
        found = opened(seal, bytes(damaged))
        # Some bits of gzip's header say nothing of the content.
        assert found is None or (found == RECORD and seal.compression == "gzip")
        refused += found is None
    assert refused >= 8 * (len(stored) - 10)


@pytest.mark.parametrize("seal", SEALS, ids=str)
def test_no_part_of_a_record_is_read(seal: Signer) -> None:
    stored = seal.close(NAME, RECORD)
    for length in range(len(stored)):
        assert opened(seal, stored[:length]) is None
        assert length == 0 or opened(seal, stored[length:]) is None
    for added in (b"\0", b"}", b" ", b"\n", stored):
        assert opened(seal, stored + added) is None
        assert opened(seal, added + stored) is None


@pytest.mark.parametrize("seal", SEALS, ids=str)
def test_a_record_is_not_read_under_another_name(seal: Signer) -> None:
    stored = seal.close(NAME, RECORD)
    for name in ("", "3f0c", "3f0c/key2", "3F0C/key", f"{NAME}\n", "other"):
        assert opened(seal, stored, name) is None


@given(st.binary(max_size=200))
def test_other_content_is_not_read(content: bytes) -> None:
    for seal in SEALS:
        assert opened(seal, content) is None
        assert opened(seal, gzip.compress(content)) is None
        assert opened(seal, b'{"seal":"sha256:' + b"0" * 64 + b'",' + content) is None


def test_with_a_secret_only_its_own_seal_is_read() -> None:
    mine = Signer(secret=SECRET)
    assert opened(mine, Signer(secret=SECRET + b"2").close(NAME, RECORD)) is None
    assert opened(mine, Signer().close(NAME, RECORD)) is None
    assert opened(Signer(), mine.close(NAME, RECORD)) is None
    plain = Signer().close(NAME, RECORD)
    assert opened(mine, plain.replace(b"sha256:", b"hmac-sha256:")) is None
    keyless = hashlib.sha256(SECRET + RECORD).hexdigest().encode()
    assert opened(mine, b'{"seal":"hmac-sha256:' + keyless + b'",' + RECORD[1:]) is None


def test_compressed_or_not_a_record_is_read_under_either_setting() -> None:
    for writer in SEALS:
        for reader in SEALS:
            expected = RECORD if reader.secret == writer.secret else None
            assert opened(reader, writer.close(NAME, RECORD)) == expected


def test_compression_makes_a_long_record_small_and_always_the_same() -> None:
    seal, record = Signer(compression="gzip"), b'{"result":"' + b"word " * 10_000 + b'"}'
    assert len(seal.close(NAME, record)) < len(record) / 50
    assert seal.close(NAME, record) == seal.close(NAME, record)


def test_what_expands_beyond_the_bound_is_refused_before_it_is_expanded() -> None:
    sealed = Signer().close(NAME, b'{"result":"' + b"0" * 50_000_000 + b'"}')
    bomb = gzip.compress(sealed, compresslevel=1)
    assert opened(Signer(), bomb) is not None, "it is a right record otherwise"
    bounded = Signer(largest=1_000_000)
    with pytest.raises(ValueError, match="expands to more than 1000000 bytes"):
        bounded.open(NAME, bomb)


def forged(earlier: bool) -> bytes:
    """A small object that expands to 100 MB under a seal that does not hold."""
    content = b'{"result":"' + b"0" * 100_000_000 + b'"}'
    if earlier:
        return gzip.compress(Signer(secret=b"another").close(NAME, content), compresslevel=1)
    return Signer(secret=b"another", compression="gzip").close(NAME, content)


@pytest.mark.parametrize("earlier", [True, False], ids=["sealed inside", "sealed outside"])
def test_a_forged_record_is_refused_without_holding_what_it_expands_to(earlier: bool) -> None:
    stored = forged(earlier)
    assert len(stored) < 1_000_000
    tracemalloc.start()
    try:
        assert opened(Signer(secret=SECRET), stored) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


def test_a_record_that_was_compressed_after_it_was_sealed_is_read() -> None:
    for signer in (Signer(), Signer(secret=SECRET)):
        earlier = gzip.compress(signer.close(NAME, RECORD), compresslevel=6, mtime=0)
        assert opened(signer, earlier) == RECORD
        assert is_sealed(earlier[:BEGINNING])
        assert opened(signer, earlier, "other") is None


def test_a_record_is_told_by_how_it_begins() -> None:
    for signer in SEALS:
        assert is_sealed(signer.close(NAME, RECORD)[:BEGINNING])
    for other in (b"", b"{}", b'{"seal":"sha256:00",', gzip.compress(b"{}"), b"\x1f\x8b", RECORD):
        assert not is_sealed(other)


def test_a_record_beyond_the_bound_is_written_as_it_is_and_read() -> None:
    rng = random.Random(1)
    record = json.dumps({"result": rng.randbytes(2_000).hex()}).encode()
    seal = Signer(compression="gzip", largest=1_000)
    stored = seal.close(NAME, record)
    assert stored.startswith(b"{")
    assert opened(seal, stored) == record


def test_two_gzip_streams_in_a_row_are_no_record() -> None:
    sealed = Signer().close(NAME, RECORD)
    assert opened(Signer(), gzip.compress(sealed[:20]) + gzip.compress(sealed[20:])) is None
    assert opened(Signer(), zlib.compress(sealed)) is None


def test_only_json_objects_are_sealed() -> None:
    for record in (b"", b"{}", b"[1]", b"\x80\x04."):
        with pytest.raises(ValueError, match="JSON objects"):
            Signer().close(NAME, record)


def test_a_stored_record_stays_json_that_people_can_read() -> None:
    stored = json.loads(Signer().close(NAME, RECORD))
    assert stored.pop("seal").startswith("sha256:")
    assert stored == json.loads(RECORD)


def test_secret_and_compression_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_SECRET", SECRET.decode())
    monkeypatch.setenv("FASTROAI_RESULT_COMPRESSION", "gzip")
    assert Signer.of(load_settings()) == Signer(secret=SECRET, compression="gzip")


def test_the_secret_does_not_show() -> None:
    assert SECRET.decode() not in repr(Signer(secret=SECRET))
