"""Which frames may be where (RFC 9114 section 7)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.http3_codes import Http3Code, Http3Error
from trio_wt._protocol.http3_frames import FrameReader, FrameType
from trio_wt._protocol.records import OVERSIZE, encode_record, encode_record_head

HELD = {FrameType.HEADERS: 100, FrameType.GOAWAY: 8}
# Types that a peer sends to see whether they are skipped (RFC 9114 section 7.2.8), and others that nobody knows.
UNKNOWN = [0x21, 0x40, 0x1F * 1000 + 0x21, 0x0A, 0x0B, 0x0E, 0x42, 0x54, 0x2843, 2**62 - 1]
HTTP2 = {0x02: "PRIORITY", 0x06: "PING", 0x08: "WINDOW_UPDATE", 0x09: "CONTINUATION"}


def reader(*, takes_data: bool = True) -> FrameReader:
    return FrameReader(HELD, takes_data=takes_data)


def refused(frame: bytes, *, takes_data: bool = True) -> Http3Code:
    with pytest.raises(Http3Error) as caught:
        list(reader(takes_data=takes_data).feed(frame))
    return caught.value.code


def test_types_are_those_of_the_registry() -> None:
    assert {kind.name: kind.value for kind in FrameType} == {
        "DATA": 0x00,
        "HEADERS": 0x01,
        "CANCEL_PUSH": 0x03,
        "SETTINGS": 0x04,
        "PUSH_PROMISE": 0x05,
        "GOAWAY": 0x07,
        "MAX_PUSH_ID": 0x0D,
        "WT_STREAM": 0x41,
        "PRIORITY_UPDATE": 0xF0700,
        "PRIORITY_UPDATE_PUSH": 0xF0701,
    }


def test_what_may_be_there_is_given() -> None:
    data = encode_record(FrameType.HEADERS, b"abc") + encode_record(FrameType.DATA, b"def")
    assert list(reader().feed(data)) == [(FrameType.HEADERS, b"abc"), (FrameType.DATA, b"def")]
    data = encode_record(FrameType.HEADERS, bytes(101))
    assert list(reader().feed(data)) == [(OVERSIZE, b"")]


@pytest.mark.parametrize("kind", sorted(set(FrameType) - set(HELD) - {0x00, 0x41}))
def test_known_frames_of_other_places(kind: int) -> None:
    assert refused(encode_record(kind, b"")) == Http3Code.FRAME_UNEXPECTED
    assert refused(encode_record_head(kind, 2**30)) == Http3Code.FRAME_UNEXPECTED


def test_data_of_nothing_is_given_too() -> None:
    """It must not be everywhere, so whoever reads must see it."""
    data = encode_record(FrameType.DATA, b"")
    assert list(reader().feed(data + data)) == [(FrameType.DATA, b"")] * 2


def test_data_where_there_is_none() -> None:
    for payload in (b"", b"abc"):
        data = encode_record(FrameType.DATA, payload)
        assert refused(data, takes_data=False) == Http3Code.FRAME_UNEXPECTED
    data = encode_record(FrameType.HEADERS, b"abc")
    assert list(reader(takes_data=False).feed(data)) == [(FrameType.HEADERS, b"abc")]


@pytest.mark.parametrize("kind", HTTP2, ids=HTTP2.values())
@pytest.mark.parametrize("takes_data", [True, False])
def test_frames_of_http_2(kind: int, takes_data: bool) -> None:
    """RFC 9114 section 7.2.8."""
    assert refused(encode_record(kind, b""), takes_data=takes_data) == Http3Code.FRAME_UNEXPECTED


@pytest.mark.parametrize("takes_data", [True, False])
def test_a_session_s_stream_is_no_frame(takes_data: bool) -> None:
    """draft-ietf-webtrans-http3-16 section 4.3: 0x41 anywhere but at the start of a stream is H3_FRAME_ERROR."""
    for frame in (encode_record(0x41, b""), b"\x40\x41\x00", b"\x80\x00\x00\x41\x04"):
        assert refused(frame, takes_data=takes_data) == Http3Code.FRAME_ERROR


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_frames_are_skipped(kind: int) -> None:
    unknown = encode_record(kind, b"\x01" * 300)
    data = unknown + encode_record(FrameType.HEADERS, b"abc") + unknown
    target = reader()
    assert list(target.feed(data)) == [(FrameType.HEADERS, b"abc")]
    assert target.is_between
    assert target.held == 0


def test_types_need_not_be_as_short_as_they_can_be() -> None:
    data = b"\x40\x01\x40\x03abc" + b"\xc0\0\0\0\0\0\0\x00\x02de"
    assert list(reader().feed(data)) == [(FrameType.HEADERS, b"abc"), (FrameType.DATA, b"de")]
    assert refused(b"\x40\x02\x00") == Http3Code.FRAME_UNEXPECTED


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1), st.booleans())
@settings(deadline=None)
def test_any_type(kind: int, length: int, takes_data: bool) -> None:
    """It is held, given in pieces, skipped, or refused with one of two codes, as soon as its head is there."""
    target = reader(takes_data=takes_data)
    head = encode_record_head(kind, length)
    known = kind in set(FrameType) or kind in HTTP2
    taken = kind in HELD or (kind == FrameType.DATA and takes_data)
    for byte in head[:-1]:
        assert list(target.feed(bytes([byte]))) == []
    if known and not taken:
        code = Http3Code.FRAME_ERROR if kind == 0x41 else Http3Code.FRAME_UNEXPECTED
        with pytest.raises(Http3Error) as caught:
            list(target.feed(head[-1:]))
        assert caught.value.code == code
    else:
        given_out = list(target.feed(head[-1:]))
        assert (given_out == [(OVERSIZE, b"")]) == (kind in HELD and length > HELD[kind])


@given(st.binary(max_size=60), st.booleans(), st.lists(st.integers(0, 60), max_size=10))
@settings(deadline=None)
def test_any_bytes(data: bytes, takes_data: bool, cuts: list[int]) -> None:
    def run(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], Http3Code | None]:
        target = reader(takes_data=takes_data)
        found = []
        code = None
        try:
            for piece in pieces:
                for kind, payload in target.feed(piece):
                    if kind == FrameType.DATA and found and found[-1][0] == kind:
                        payload = found.pop()[1] + payload
                    found.append((kind, payload))
                assert target.held <= 100
        except Http3Error as exc:
            code = exc.code
        return found, code

    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert run(pieces) == run([data]) == run([bytes([byte]) for byte in data])


def test_a_frame_of_every_length_of_head() -> None:
    for size in (1, 2, 4, 8):
        length = (3 | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size)
        target = reader()
        assert list(target.feed(varint.encode(FrameType.HEADERS) + length + b"abc")) == [
            (FrameType.HEADERS, b"abc")
        ]
