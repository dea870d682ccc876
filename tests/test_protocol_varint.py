"""Variable-length integers, byte by byte (RFC 9000 section 16)."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer, encode_uint_var
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint

# The examples of RFC 9000 appendix A.1, in the shortest form and in a longer one.
EXAMPLES = [
    (151288809941952652, "c2197c5eff14e88c"),
    (494878333, "9d7f3e7d"),
    (15293, "7bbd"),
    (37, "25"),
]
EDGES = [
    (0, "00"),
    (0x3F, "3f"),
    (0x40, "4040"),
    (0x3FFF, "7fff"),
    (0x4000, "80004000"),
    (0x3FFF_FFFF, "bfffffff"),
    (0x4000_0000, "c000000040000000"),
    (2**62 - 1, "ffffffffffffffff"),
]
# A number below 2^62, of every size.
numbers = st.integers(1, 62).flatmap(lambda bits: st.integers(0, 2**bits - 1))


def longer(number: int, size: int) -> bytes:
    """A number in so many bytes."""
    return (number | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size)


def test_the_largest() -> None:
    assert varint.MAX_VARINT == 2**62 - 1


@pytest.mark.parametrize(("number", "encoded"), EXAMPLES + EDGES)
def test_both_ways(number: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert varint.encode(number) == data
    assert varint.decode(data) == (number, len(data))


def test_a_number_need_not_be_as_short_as_it_can_be() -> None:
    assert varint.decode(bytes.fromhex("4025")) == (37, 2)
    assert varint.decode(bytes(7)) == (0, 1)
    for size in (1, 2, 4, 8):
        assert varint.decode(longer(37, size)) == (37, size)


@pytest.mark.parametrize("number", [-1, 2**62, 2**64, 2**64 - 1])
def test_what_has_no_encoding_is_not_encoded(number: int) -> None:
    """Else it would be another number to the peer, or another length."""
    with pytest.raises((OverflowError, ValueError)):
        varint.encode(number)


@pytest.mark.parametrize(("number", "encoded"), EXAMPLES + EDGES)
def test_what_is_cut_off_is_no_number_yet(number: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    for end in range(len(data)):
        assert varint.decode(data[:end]) is None
        assert varint.decode(b"\x40" + data[:end], 1) is None


def test_behind_the_end_there_is_nothing() -> None:
    assert varint.decode(b"") is None
    assert varint.decode(b"\x01", 1) is None
    assert varint.decode(b"\x01", 100) is None


@given(numbers, st.sampled_from([bytes, bytearray, memoryview]), st.binary(max_size=9))
@settings(deadline=None)
def test_it_says_the_same_as_aioquic(number: int, kind: type, behind: bytes) -> None:
    encoded = varint.encode(number)
    assert encoded == encode_uint_var(number)
    data = kind(b"\xff\xff\xff" + encoded + behind)
    assert varint.decode(data, 3) == (number, 3 + len(encoded))


@given(st.binary(max_size=20), st.integers(0, 20))
@settings(deadline=None)
def test_any_bytes(data: bytes, at: int) -> None:
    decoded = varint.decode(data, at)
    size = 1 << (data[at] >> 6) if at < len(data) else 1
    if at + size > len(data):
        assert decoded is None
    else:
        assert decoded == (Buffer(data=data[at:]).pull_uint_var(), at + size)


@given(numbers, st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None)
def test_any_number_of_any_size(number: int, size: int) -> None:
    number %= 1 << (8 * size - 2)
    assert varint.decode(longer(number, size)) == (number, size)
    assert len(varint.encode(number)) <= size
