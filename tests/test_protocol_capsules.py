"""Capsules (RFC 9297 section 3.2, draft-ietf-webtrans-http3-16 sections 4.7, 5.6 and 6)."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.capsules import (
    MAX_REASON,
    CapsuleType,
    capsule_reader,
    encode_close,
    encode_drain,
    encode_number,
    parse_close,
    parse_number,
)
from trio_wt._protocol.records import OVERSIZE, encode_record, encode_record_head

MEBIBYTE = 2**20
NUMBERS = [
    CapsuleType.MAX_DATA,
    CapsuleType.MAX_STREAM_DATA,
    CapsuleType.MAX_STREAMS_BIDI,
    CapsuleType.MAX_STREAMS_UNI,
    CapsuleType.DATA_BLOCKED,
    CapsuleType.STREAM_DATA_BLOCKED,
    CapsuleType.STREAMS_BLOCKED_BIDI,
    CapsuleType.STREAMS_BLOCKED_UNI,
]
# How long each may be.
LIMITS = {
    CapsuleType.DATAGRAM: 65536,
    CapsuleType.CLOSE_SESSION: 4 + 1024,
    CapsuleType.DRAIN_SESSION: 0,
    **dict.fromkeys(NUMBERS, 8),
}


def read(*pieces: bytes) -> list[tuple[int, bytes]]:
    reader = capsule_reader()
    return [capsule for piece in pieces for capsule in reader.feed(piece)]


# ---- numbers of the draft


def test_types_are_those_of_the_registry() -> None:
    assert {kind.name: kind.value for kind in CapsuleType} == {
        "DATAGRAM": 0x00,
        "CLOSE_SESSION": 0x2843,
        "DRAIN_SESSION": 0x78AE,
        "MAX_DATA": 0x190B4D3D,
        "MAX_STREAM_DATA": 0x190B4D3E,
        "MAX_STREAMS_BIDI": 0x190B4D3F,
        "MAX_STREAMS_UNI": 0x190B4D40,
        "DATA_BLOCKED": 0x190B4D41,
        "STREAM_DATA_BLOCKED": 0x190B4D42,
        "STREAMS_BLOCKED_BIDI": 0x190B4D43,
        "STREAMS_BLOCKED_UNI": 0x190B4D44,
    }
    assert MAX_REASON == 1024


# ---- closing


@pytest.mark.parametrize(
    ("code", "reason", "wire"),
    [
        (0, "", "6843 04 00000000"),
        (7, "bye", "6843 07 00000007 627965"),
        (2**32 - 1, "é", "6843 06 ffffffff c3a9"),
    ],
)
def test_closes_both_ways(code: int, reason: str, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert encode_close(code, reason) == data
    assert read(data) == [(CapsuleType.CLOSE_SESSION, data[3:])]
    assert parse_close(data[3:]) == (code, reason)


@pytest.mark.parametrize(
    ("reason", "length"),
    [
        ("x" * 1024, 1024),
        ("x" * 1025, 1024),
        ("x" * 2**20, 1024),
        ("é" * 512, 1024),
        ("é" * 513, 1024),
        ("x" + "é" * 512, 1023),
        ("€" * 342, 1023),
        ("xx" + "🙂" * 256, 1022),
        ("xxx" + "🙂" * 256, 1023),
    ],
)
def test_a_reason_is_cut_where_a_character_ends(reason: str, length: int) -> None:
    ((kind, payload),) = read(encode_close(1, reason))
    assert kind == CapsuleType.CLOSE_SESSION
    close = parse_close(payload)
    assert close is not None
    assert reason.startswith(close[1])
    assert len(close[1].encode()) == length


def test_a_reason_with_surrogates_is_sent_all_the_same() -> None:
    ((_, payload),) = read(encode_close(1, "a\ud800b"))
    assert parse_close(payload) == (1, "a?b")


@pytest.mark.parametrize("code", [-1, 2**32])
def test_a_code_of_more_than_32_bits(code: int) -> None:
    with pytest.raises(OverflowError):
        encode_close(code, "")


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0"])
def test_a_close_that_is_too_short(payload: bytes) -> None:
    assert parse_close(payload) is None


@pytest.mark.parametrize(
    "reason", [b"\xff", b"abc\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\x80b"]
)
def test_a_reason_that_is_not_utf8(reason: bytes) -> None:
    """draft-ietf-webtrans-http3-16 section 6: the stream is reset with H3_MESSAGE_ERROR, as for one that is too long."""
    assert parse_close(b"\0\0\0\1" + reason) is None


@given(st.integers(0, 2**32 - 1), st.text(max_size=1100))
@settings(deadline=None)
def test_any_close_comes_back(code: int, reason: str) -> None:
    ((kind, payload),) = read(encode_close(code, reason))
    assert kind == CapsuleType.CLOSE_SESSION
    close = parse_close(payload)
    assert close is not None
    whole = reason.encode(errors="replace").decode()
    assert close[0] == code
    assert whole.startswith(close[1])
    assert close[1] == whole or len(close[1].encode()) > 1024 - 4


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_of_a_close(payload: bytes) -> None:
    close = parse_close(payload)
    if close is not None:
        assert encode_close(*close) == encode_record(CapsuleType.CLOSE_SESSION, payload)


# ---- draining, and numbers


def test_a_drain_is_empty() -> None:
    assert encode_drain().hex() == "800078ae00"
    assert read(encode_drain()) == [(CapsuleType.DRAIN_SESSION, b"")]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("number", [0, 63, 64, 2**14, 2**30, 2**60, 2**62 - 1])
def test_numbers_both_ways(kind: CapsuleType, number: int) -> None:
    ((found, payload),) = read(encode_number(kind, number))
    assert found is not None
    assert found == kind
    assert payload == varint.encode(number)
    assert parse_number(payload) == number


def test_a_number_on_the_wire() -> None:
    assert encode_number(CapsuleType.MAX_DATA, 65536).hex() == "990b4d3d" + "04" + "80010000"


@pytest.mark.parametrize(
    "payload", ["", "40", "80ffff", "0000", "2500", "c000000000000000ff", "ff"]
)
def test_what_is_no_number(payload: str) -> None:
    assert parse_number(bytes.fromhex(payload)) is None


@given(st.binary(max_size=10))
@settings(deadline=None)
def test_any_bytes_of_a_number(payload: bytes) -> None:
    number = parse_number(payload)
    decoded = varint.decode(payload)
    whole = decoded is not None and decoded[1] == len(payload)
    assert number == (decoded[0] if decoded is not None and whole else None)


# ---- what is read


@pytest.mark.parametrize(("kind", "limit"), LIMITS.items())
def test_how_long_a_capsule_may_be(kind: CapsuleType, limit: int) -> None:
    behind = encode_drain()
    whole = read(encode_record(kind, bytes(limit)) + behind)
    assert whole == [(kind, bytes(limit)), (CapsuleType.DRAIN_SESSION, b"")]
    whole = read(encode_record(kind, bytes(limit + 1)) + behind)
    assert whole == [(OVERSIZE, b""), (CapsuleType.DRAIN_SESSION, b"")]


def test_every_type_has_a_limit() -> None:
    assert set(LIMITS) == set(CapsuleType)


@pytest.mark.parametrize(
    "kind", [0x17, 0x29 * 0x1234 + 0x17, 0x01, 0x2842, 0x2844, 0x190B4D3C, 0x190B4D45, 2**62 - 1]
)
def test_unknown_capsules_are_skipped(kind: int) -> None:
    """RFC 9297 section 3.2; Chromium sends one of those that are kept free (section 5.4)."""
    unknown = encode_record(kind, b"\x01" * 500)
    assert read(unknown + encode_drain() + unknown) == [(CapsuleType.DRAIN_SESSION, b"")]


@pytest.mark.parametrize("kind", [*CapsuleType, 0x17])
@pytest.mark.parametrize("length", [32 * MEBIBYTE, 2**40, 2**62 - 1])
def test_nothing_is_held_of_a_capsule_that_is_too_long(kind: int, length: int) -> None:
    reader, piece = capsule_reader(), b"x" * MEBIBYTE
    tracemalloc.start()
    try:
        found = list(reader.feed(encode_record_head(kind, length)))
        for _ in range(31):
            for _ in reader.feed(piece):
                raise AssertionError("nothing more is to come of it")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == ([] if kind == 0x17 else [(OVERSIZE, b"")])
    assert reader.held == 0
    assert most < 65536


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([*CapsuleType, 0x17]), st.binary(max_size=20)),
            st.tuples(
                st.sampled_from([CapsuleType.CLOSE_SESSION]), st.integers(1020, 1030).map(bytes)
            ),
        ),
        max_size=6,
    ),
    st.binary(max_size=20),
    st.lists(st.integers(0, 2**13), max_size=20),
)
@settings(deadline=None)
def test_any_capsules_in_any_chunking(
    capsules: list[tuple[int, bytes]], rest: bytes, cuts: list[int]
) -> None:
    data = b"".join(encode_record(*capsule) for capsule in capsules)
    expected = [
        capsule if len(capsule[1]) <= LIMITS[CapsuleType(capsule[0])] else (OVERSIZE, b"")
        for capsule in capsules
        if capsule[0] != 0x17
    ]
    assert read(data) == expected
    # Whatever follows.
    data += rest
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert read(*pieces) == read(data) == read(*(bytes([byte]) for byte in data))
    assert read(data)[: len(expected)] == expected
