"""The heads of streams (RFC 9114 section 6, draft-ietf-webtrans-http3-16 sections 4.2 and 4.3)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.stream_heads import (
    StreamHead,
    StreamHeadReader,
    StreamType,
    session_stream_head,
)

WIRE = {
    0x00: StreamType.CONTROL,
    0x01: StreamType.PUSH,
    0x02: StreamType.QPACK_ENCODER,
    0x03: StreamType.QPACK_DECODER,
    0x54: StreamType.SESSION,
}
SESSIONS = [0, 4, 60, 64, 16380, 16384, 2**30 - 4, 2**30, 2**62 - 4]
UNKNOWN = [0x04, 0x05, 0x21, 0x40, 0x41, 0x53, 0x55, 0x1F * 1000 + 0x21, 2**62 - 1]


def number(value: int, size: int) -> bytes:
    """A number in at least so many bytes."""
    size = max(size, len(varint.encode(value)))
    return (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size)


def read(data: bytes, *, unidirectional: bool) -> StreamHead | None:
    return StreamHeadReader(unidirectional=unidirectional).feed(data)


def byte_by_byte(data: bytes, *, unidirectional: bool) -> tuple[StreamHead | None, int]:
    """The head, and how many bytes it took."""
    reader = StreamHeadReader(unidirectional=unidirectional)
    for count, byte in enumerate(data):
        assert reader.held == count
        head = reader.feed(bytes([byte]))
        if head is not None:
            return head, count + 1
    assert reader.held == len(data)
    return None, len(data)


def test_types_are_those_of_the_registry() -> None:
    assert {kind.value: kind for kind in StreamType if kind >= 0} == WIRE
    assert min(StreamType) < 0


# ---- unidirectional


@pytest.mark.parametrize(("wire", "kind"), [(w, k) for w, k in WIRE.items() if w != 0x54])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_streams_of_the_protocol(wire: int, kind: StreamType, size: int) -> None:
    data = number(wire, size) + b"rest"
    assert read(data, unidirectional=True) == StreamHead(kind, -1, b"rest", size)
    assert byte_by_byte(data, unidirectional=True) == (StreamHead(kind, -1, b"", size), size)


@pytest.mark.parametrize("wire", UNKNOWN)
def test_streams_that_nobody_knows(wire: int) -> None:
    data = varint.encode(wire) + b"\x00\x04rest"
    expected = StreamHead(StreamType.UNKNOWN, -1, b"\x00\x04rest", len(data) - 6)
    assert read(data, unidirectional=True) == expected


@pytest.mark.parametrize("session_id", SESSIONS)
def test_unidirectional_streams_of_sessions(session_id: int) -> None:
    head = session_stream_head(session_id, unidirectional=True)
    assert head == b"\x40\x54" + varint.encode(session_id)
    expected = StreamHead(StreamType.SESSION, session_id, b"", len(head))
    assert read(head, unidirectional=True) == expected
    assert byte_by_byte(head + b"more", unidirectional=True) == (expected, len(head))
    expected.rest = b"rest"
    assert read(head + b"rest", unidirectional=True) == expected


# ---- bidirectional


@pytest.mark.parametrize("session_id", SESSIONS)
def test_bidirectional_streams_of_sessions(session_id: int) -> None:
    head = session_stream_head(session_id, unidirectional=False)
    assert head == b"\x40\x41" + varint.encode(session_id)
    expected = StreamHead(StreamType.SESSION, session_id, b"", len(head))
    assert read(head, unidirectional=False) == expected
    assert byte_by_byte(head, unidirectional=False) == (expected, len(head))
    expected.rest = b"rest"
    assert read(head + b"rest", unidirectional=False) == expected


@pytest.mark.parametrize("wire", [0x00, 0x01, 0x04, 0x21, 0x40, 0x54, 0x42, 2**62 - 1])
def test_anything_else_is_a_request_and_loses_nothing(wire: int) -> None:
    data = varint.encode(wire) + b"\x03abc"
    assert read(data, unidirectional=False) == StreamHead(StreamType.REQUEST, -1, data, 0)
    size = len(varint.encode(wire))
    expected = StreamHead(StreamType.REQUEST, -1, data[:size], 0)
    assert byte_by_byte(data, unidirectional=False) == (expected, size)


def test_ids_that_no_session_has_are_for_others_to_refuse() -> None:
    for session_id in (1, 2, 3, 7, 2**62 - 1):
        for unidirectional in (True, False):
            data = session_stream_head(session_id, unidirectional=unidirectional)
            head = read(data, unidirectional=unidirectional)
            assert head is not None
            assert head.session_id == session_id


# ---- in pieces


@pytest.mark.parametrize("unidirectional", [True, False])
def test_a_head_that_has_not_come_yet(unidirectional: bool) -> None:
    signal = 0x54 if unidirectional else 0x41
    reader = StreamHeadReader(unidirectional=unidirectional)
    assert reader.feed(b"") is None
    data = number(signal, 8) + number(4, 8)
    for end in range(len(data)):
        assert read(data[:end], unidirectional=unidirectional) is None
    assert reader.feed(data[:15]) is None
    assert reader.held == 15
    assert reader.feed(b"") is None
    assert reader.held == 15
    assert reader.feed(data[15:] + b"x") == StreamHead(StreamType.SESSION, 4, b"x", 16)


@given(
    st.booleans(),
    st.one_of(st.sampled_from([*WIRE, 0x41]), st.integers(0, 2**62 - 1)),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**62 - 1),
    st.sampled_from([1, 2, 4, 8]),
    st.binary(max_size=10),
    st.lists(st.integers(0, 26), max_size=8),
)
@settings(deadline=None)
def test_any_chunking_gives_the_same_head(
    unidirectional: bool,
    wire: int,
    size: int,
    session_id: int,
    id_size: int,
    rest: bytes,
    cuts: list[int],
) -> None:
    kind, id_ = number(wire, size), number(session_id, id_size)
    if wire == (0x54 if unidirectional else 0x41):
        expected = StreamHead(StreamType.SESSION, session_id, rest, len(kind + id_))
        data = kind + id_ + rest
    elif unidirectional:
        expected = StreamHead(WIRE.get(wire, StreamType.UNKNOWN), -1, rest, len(kind))
        data = kind + rest
    else:
        data = kind + rest
        expected = StreamHead(StreamType.REQUEST, -1, data, 0)
    assert read(data, unidirectional=unidirectional) == expected
    reader = StreamHeadReader(unidirectional=unidirectional)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    while (head := reader.feed(pieces.pop(0))) is None:
        assert reader.held <= 15
    head.rest += b"".join(pieces)
    assert head == expected


@given(st.binary(max_size=40), st.booleans())
@example(b"\xff" * 16, True)
@example(b"\x40\x41" + b"\xff" * 8, False)
@settings(deadline=None)
def test_any_bytes(data: bytes, unidirectional: bool) -> None:
    head = read(data, unidirectional=unidirectional)
    in_pieces, count = byte_by_byte(data, unidirectional=unidirectional)
    if head is None:
        # There is no head of more than two numbers.
        assert in_pieces is None
        assert len(data) < 16
        return
    assert in_pieces is not None
    in_pieces.rest += data[count:]
    assert head == in_pieces
    assert data[head.size :] == head.rest
    assert 0 <= head.size <= 16
    assert (head.session_id >= 0) == (head.kind is StreamType.SESSION)
