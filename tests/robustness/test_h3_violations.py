"""What breaks HTTP/3 itself: the connection is closed with the code that says so, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.robustness.h3_peer import (
    CONNECT_SETTINGS,
    Code,
    H3Client,
    H3Server,
    content,
    head,
    record,
    request_fields,
    section,
    session_fields,
    settings_frame,
    stream_head,
)
from tests.robustness.h3_target import attacked_h3_client, attacked_h3_server
from tests.robustness.quic_peer import HostilePeer, frame, varint

DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0, 1, 3, 4, 5, 7, 0x0D
PRIORITY, PRIORITY_PUSH, WT_STREAM, GREASE = 0xF0700, 0xF0701, 0x41, 0x1F * 7 + 0x21
CONTROL, PUSH, ENCODER, DECODER = 0, 1, 2, 3
WHOLE = settings_frame(CONNECT_SETTINGS)
HEAD = head(request_fields())

Say = Callable[[HostilePeer], object]


def uni(kind: int, data: bytes = b"", *, fin: bool = False) -> Say:
    """A unidirectional stream of a type."""

    def say(peer: HostilePeer) -> None:
        assert isinstance(peer, (H3Client, H3Server))
        peer.open(varint(kind) + data, uni=True, fin=fin)

    return say


def control(data: bytes) -> Say:
    """Something behind SETTINGS on the control stream."""
    return uni(CONTROL, WHOLE + data)


def both(*parts: Say) -> Say:
    def say(peer: HostilePeer) -> None:
        for part in parts:
            part(peer)

    return say


def end_control(peer: HostilePeer) -> None:
    uni(CONTROL, WHOLE, fin=True)(peer)


def reset_control(peer: HostilePeer) -> None:
    assert isinstance(peer, (H3Client, H3Server))
    number = peer.next_id(uni=True)
    control(b"")(peer)
    peer.reset(number, 0)


#: From either side, before it has said anything.
ANYBODY: dict[str, tuple[Say, int | set[int]]] = {
    # the control stream (RFC 9114 section 6.2.1)
    "a second control stream": (both(control(b""), control(b"")), Code.STREAM_CREATION_ERROR),
    "control stream ended": (end_control, Code.CLOSED_CRITICAL_STREAM),
    "control stream ended at once": (uni(CONTROL, fin=True), Code.CLOSED_CRITICAL_STREAM),
    "control stream reset": (reset_control, Code.CLOSED_CRITICAL_STREAM),
    "encoder stream ended": (uni(ENCODER, fin=True), Code.CLOSED_CRITICAL_STREAM),
    "decoder stream ended": (uni(DECODER, fin=True), Code.CLOSED_CRITICAL_STREAM),
    "two encoder streams": (both(uni(ENCODER), uni(ENCODER)), Code.STREAM_CREATION_ERROR),
    "two decoder streams": (both(uni(DECODER), uni(DECODER)), Code.STREAM_CREATION_ERROR),
    # SETTINGS (sections 6.2.1 and 7.2.4)
    "no SETTINGS but GOAWAY": (
        uni(CONTROL, record(GOAWAY, b"\0") + WHOLE),
        Code.MISSING_SETTINGS,
    ),
    "no SETTINGS but an unknown frame": (
        uni(CONTROL, record(GREASE) + WHOLE),
        Code.MISSING_SETTINGS,
    ),
    "no SETTINGS but an unknown frame without end": (
        uni(CONTROL, record(GREASE, length=2**61)),
        Code.MISSING_SETTINGS,
    ),
    "no SETTINGS but DATA": (
        uni(CONTROL, content(b"x")),
        {Code.MISSING_SETTINGS, Code.FRAME_UNEXPECTED},
    ),
    "no SETTINGS but HEADERS": (
        uni(CONTROL, HEAD),
        {Code.MISSING_SETTINGS, Code.FRAME_UNEXPECTED},
    ),
    "SETTINGS twice": (control(WHOLE), Code.FRAME_UNEXPECTED),
    "empty SETTINGS twice": (control(settings_frame({})), Code.FRAME_UNEXPECTED),
    "a setting twice": (
        uni(CONTROL, settings_frame([(0x33, 1), (0x33, 1)])),
        Code.SETTINGS_ERROR,
    ),
    "an unknown setting twice": (
        uni(CONTROL, settings_frame([(GREASE, 1), (GREASE, 2)])),
        Code.SETTINGS_ERROR,
    ),
    **{
        f"setting {number:#x} of HTTP/2": (
            uni(CONTROL, settings_frame({number: 1})),
            Code.SETTINGS_ERROR,
        )
        for number in (0x00, 0x02, 0x03, 0x04, 0x05)
    },
    "H3_DATAGRAM of 2": (uni(CONTROL, settings_frame({0x33: 2})), Code.SETTINGS_ERROR),
    "ENABLE_CONNECT_PROTOCOL of 2": (uni(CONTROL, settings_frame({0x08: 2})), Code.SETTINGS_ERROR),
    "half a setting": (uni(CONTROL, record(SETTINGS, b"\x33")), Code.FRAME_ERROR),
    "half a setting's value": (uni(CONTROL, record(SETTINGS, b"\x33\x40")), Code.FRAME_ERROR),
    "SETTINGS of 2^30 bytes": (
        uni(CONTROL, record(SETTINGS, length=2**30)),
        Code.EXCESSIVE_LOAD,
    ),
    "SETTINGS of 2^61 bytes": (
        uni(CONTROL, record(SETTINGS, length=2**61)),
        Code.EXCESSIVE_LOAD,
    ),
    # frames where they must not be (section 7.2)
    **{
        f"frame {kind:#x} on the control stream": (
            control(record(kind, payload)),
            Code.FRAME_UNEXPECTED,
        )
        for kind, payload in {
            DATA: b"x",
            HEADERS: section(request_fields()),
            0x02: b"",
            0x06: b"",
            0x08: b"",
            0x09: b"",
        }.items()
    },
    "WT_STREAM on the control stream": (
        control(varint(WT_STREAM) + varint(0) + b"data"),
        Code.FRAME_ERROR,
    ),
    # control frames that are not whole
    "GOAWAY without a number": (control(record(GOAWAY)), Code.FRAME_ERROR),
    "GOAWAY with half a number": (control(record(GOAWAY, b"\x40")), Code.FRAME_ERROR),
    "GOAWAY with more than a number": (control(record(GOAWAY, b"\0\0")), Code.FRAME_ERROR),
    "GOAWAY of 2^30 bytes": (control(record(GOAWAY, length=2**30)), Code.EXCESSIVE_LOAD),
    "CANCEL_PUSH of 2^30 bytes": (control(record(CANCEL_PUSH, length=2**30)), Code.EXCESSIVE_LOAD),
    "GOAWAY that increases": (
        control(record(GOAWAY, varint(4)) + record(GOAWAY, varint(8))),
        Code.ID_ERROR,
    ),
    "CANCEL_PUSH": (control(record(CANCEL_PUSH, varint(0))), Code.ID_ERROR),
    # streams (sections 6.2.2 and 6.2.3, draft-ietf-webtrans-http3-16 section 4)
    **{
        f"a stream of session {number}, which is no request": (
            uni(0x54, varint(number)),
            Code.ID_ERROR,
        )
        for number in (1, 2, 3, 5, 2**62 - 1)
    },
    # QPACK (RFC 9204)
    "encoder: a capacity": (uni(ENCODER, b"\x3f\xe1\x1f"), Code.QPACK_ENCODER_STREAM_ERROR),
    "encoder: an insertion": (
        uni(ENCODER, b"\x20\xc0\x01x"),
        Code.QPACK_ENCODER_STREAM_ERROR,
    ),
    "encoder: an insertion of 2^40 bytes": (
        uni(ENCODER, b"\x20\x5f" + b"\xff" * 5 + b"\x7f"),
        Code.QPACK_ENCODER_STREAM_ERROR,
    ),
    "encoder: a duplicate": (uni(ENCODER, b"\x00"), Code.QPACK_ENCODER_STREAM_ERROR),
    "decoder: a section acknowledged": (uni(DECODER, b"\x80"), Code.QPACK_DECODER_STREAM_ERROR),
    "decoder: an insertion acknowledged": (uni(DECODER, b"\x01"), Code.QPACK_DECODER_STREAM_ERROR),
    "decoder: an increment of 0": (uni(DECODER, b"\x00"), Code.QPACK_DECODER_STREAM_ERROR),
    # datagrams (RFC 9297 section 2.1)
    "a datagram without a number": (
        lambda peer: peer.say(frame(0x31, 0)),
        Code.DATAGRAM_ERROR,
    ),
    "a datagram with half a number": (
        lambda peer: peer.say(frame(0x31, 1, b"\x40")),
        Code.DATAGRAM_ERROR,
    ),
    "a datagram of a stream beyond all": (
        lambda peer: peer.say(frame(0x31, 8, varint(2**60))),
        Code.DATAGRAM_ERROR,
    ),
}


def request(data: bytes, *, fin: bool = False) -> Say:
    """Something on a stream of its own."""

    def say(peer: HostilePeer) -> None:
        assert isinstance(peer, (H3Client, H3Server))
        control(b"")(peer)
        peer.open(data, fin=fin)

    return say


SESSION = head(session_fields())

#: From a client only.
CLIENTS: dict[str, tuple[Say, int | set[int]]] = {
    "a push": (uni(PUSH, b"\0"), Code.STREAM_CREATION_ERROR),
    "PUSH_PROMISE": (request(record(PUSH_PROMISE, b"\0\0\0")), Code.FRAME_UNEXPECTED),
    "PUSH_PROMISE on the control stream": (
        control(record(PUSH_PROMISE, b"\0\0\0")),
        Code.FRAME_UNEXPECTED,
    ),
    "MAX_PUSH_ID that decreases": (
        control(record(MAX_PUSH_ID, varint(9)) + record(MAX_PUSH_ID, varint(8))),
        Code.ID_ERROR,
    ),
    "MAX_PUSH_ID of two numbers": (control(record(MAX_PUSH_ID, b"\0\0")), Code.FRAME_ERROR),
    "PRIORITY_UPDATE without a number": (control(record(PRIORITY)), Code.FRAME_ERROR),
    "PRIORITY_UPDATE of no request": (control(record(PRIORITY, varint(2) + b"u=1")), Code.ID_ERROR),
    "PRIORITY_UPDATE of a push": (
        control(record(PRIORITY_PUSH, varint(0) + b"u=1")),
        Code.ID_ERROR,
    ),
    "PRIORITY_UPDATE of 2^30 bytes": (
        control(record(PRIORITY, length=2**30)),
        Code.EXCESSIVE_LOAD,
    ),
    # messages (RFC 9114 sections 4.1 and 7.2)
    "DATA first": (request(content(b"x")), Code.FRAME_UNEXPECTED),
    "HEADERS three times": (
        request(HEAD + head([(b"a", b"b")]) + head([(b"a", b"b")])),
        Code.FRAME_UNEXPECTED,
    ),
    "DATA behind trailers": (
        request(HEAD + head([(b"a", b"b")]) + content(b"x")),
        Code.FRAME_UNEXPECTED,
    ),
    "trailers in a session": (request(SESSION + head([(b"a", b"b")])), Code.FRAME_UNEXPECTED),
    **{
        f"frame {kind:#x} of a request": (
            request(HEAD + record(kind, b"\0")),
            Code.FRAME_UNEXPECTED,
        )
        for kind in (CANCEL_PUSH, SETTINGS, GOAWAY, MAX_PUSH_ID, PRIORITY, 0x02, 0x06, 0x08, 0x09)
    },
    **{
        f"frame {kind:#x} before a request": (request(record(kind, b"\0")), Code.FRAME_UNEXPECTED)
        for kind in (SETTINGS, 0x02, 0x06, 0x08, 0x09)
    },
    "WT_STREAM behind HEADERS": (request(HEAD + stream_head(0, uni=False)), Code.FRAME_ERROR),
    "WT_STREAM in a session": (request(SESSION + stream_head(0, uni=False)), Code.FRAME_ERROR),
    "WT_STREAM behind an unknown frame": (
        request(record(GREASE) + stream_head(0, uni=False)),
        Code.FRAME_ERROR,
    ),
    "a stream of a session that is no request": (
        request(stream_head(6, uni=False)),
        Code.ID_ERROR,
    ),
    "HEADERS cut off": (request(HEAD[:-3], fin=True), Code.FRAME_ERROR),
    "HEADERS cut off in its length": (request(HEAD[:1], fin=True), Code.FRAME_ERROR),
    "DATA cut off": (request(HEAD + record(DATA, b"x", length=9), fin=True), Code.FRAME_ERROR),
    "DATA of 2^61 bytes cut off": (
        request(HEAD + record(DATA, b"x", length=2**61), fin=True),
        Code.FRAME_ERROR,
    ),
    "an unknown frame cut off": (
        request(HEAD + record(GREASE, b"x", length=9), fin=True),
        Code.FRAME_ERROR,
    ),
    "DATA of a session cut off": (
        request(SESSION + record(DATA, b"x", length=9), fin=True),
        Code.FRAME_ERROR,
    ),
    # field sections (RFC 9204 section 2.2)
    **{
        f"QPACK: {name}": (request(record(HEADERS, data)), Code.QPACK_DECOMPRESSION_FAILED)
        for name, data in {
            "nothing": b"",
            "half a prefix": b"\0",
            "an insertion count": b"\x02\0" + section(request_fields())[2:],
            "a count without end": b"\xff" * 100,
            "a dynamic line": b"\0\0\x80",
            "a line behind the base": b"\0\0\x10",
            "a dynamic name": b"\0\0\x40\x01x",
            "a name behind the base": b"\0\0\0\x01x",
            "a static line that is none": b"\0\0\xff\x24",
            "an index of 2^70": b"\0\0" + b"\xff" * 11 + b"\x7f",
            "a name of 2^40 bytes": b"\0\0\x27" + b"\xff" * 5 + b"\x7fx",
            "a value of 2^40 bytes": b"\0\0\x51\x7f" + b"\xff" * 5 + b"\x7fx",
            "a value cut off": b"\0\0\x51\x05/ab",
            "Huffman padding of a byte": b"\0\0\x51\x82\x63\xff",
            "Huffman's end of a string": b"\0\0\x51\x84\xff\xff\xff\xff",
        }.items()
    },
}


def is_one_of(code: int, expected: int | set[int]) -> bool:
    return code in expected if isinstance(expected, set) else code == expected


@pytest.mark.parametrize("kind", {**ANYBODY, **CLIENTS})
async def test_client_that_violates_the_protocol(kind: str) -> None:
    """At once, and byte by byte."""
    say, expected = {**ANYBODY, **CLIENTS}[kind]
    async with attacked_h3_server(memory=None, bystander=False) as target:
        for trickles in (False, True):
            peer = await target.shaken()
            peer.trickles = trickles
            say(peer)
            assert is_one_of(code := await peer.closed(1), expected), hex(code)


async def test_sections_that_cannot_be_read_harm_one_client_only() -> None:
    """All connections share a decoder, which may keep nothing of them."""
    async with attacked_h3_server() as target:
        other = await target.introduced()
        for name, (say, expected) in CLIENTS.items():
            if name.startswith("QPACK"):
                peer = await target.shaken()
                say(peer)
                assert await peer.closed(1) == expected
                await other.still_served()


@pytest.mark.parametrize("kind", ANYBODY)
async def test_server_that_violates_the_protocol(kind: str) -> None:
    say, expected = ANYBODY[kind]
    async with attacked_h3_client(memory=None) as (peer, connection):
        say(peer)
        assert is_one_of(code := await peer.closed(1), expected), hex(code)
        end = await connection.wait_closed()
        assert is_one_of(end.code, expected)
        assert not end.remote
