"""HTTP/3 peers that say what an honest one never would, on the QUIC peers of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pylsqpack
import trio
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamReset

from tests.robustness.quic_peer import HostileClient, HostilePeer, HostileServer, frame, varint

__all__ = [
    "ALPN",
    "AUTHORITY",
    "CLOSE",
    "CONNECT_SETTINGS",
    "DATAGRAM",
    "DRAIN",
    "MAX_DATA",
    "MAX_STREAMS",
    "SETTINGS",
    "Code",
    "H3Client",
    "H3Server",
    "capsule",
    "close_capsule",
    "content",
    "datagram",
    "fields_of",
    "head",
    "prefixed",
    "record",
    "request_fields",
    "section",
    "session_fields",
    "settings_frame",
    "stream_head",
    "to_wire",
    "websocket_fields",
]

ALPN = ["h3"]
AUTHORITY = b"server.test:4433"

# ---- the numbers of the wire

DATA, HEADERS, SETTINGS = 0x00, 0x01, 0x04
CONTROL, ENCODER, DECODER, SESSION_STREAM, SESSION_SIGNAL = 0x00, 0x02, 0x03, 0x54, 0x41
DATAGRAM, CLOSE, DRAIN = 0x00, 0x2843, 0x78AE
MAX_DATA, MAX_STREAMS = 0x190B4D3D, 0x190B4D3F

#: What a client that speaks draft-ietf-webtrans-http3-16 sends, and a server.
CONNECT_SETTINGS: dict[int, int] = {
    0x01: 0,
    0x07: 0,
    0x08: 1,
    0x33: 1,
    0x2C7CF000: 1,
    0x14E9CD29: 1,
    0x2B61: 2**20,
    0x2B64: 128,
    0x2B65: 128,
}


class Code:
    """Error codes (RFC 9114 section 8.1, RFC 9204 section 6, draft-ietf-webtrans-http3-16 section 9.5)."""

    DATAGRAM_ERROR = 0x33
    NO_ERROR = 0x100
    GENERAL_PROTOCOL_ERROR = 0x101
    INTERNAL_ERROR = 0x102
    STREAM_CREATION_ERROR = 0x103
    CLOSED_CRITICAL_STREAM = 0x104
    FRAME_UNEXPECTED = 0x105
    FRAME_ERROR = 0x106
    EXCESSIVE_LOAD = 0x107
    ID_ERROR = 0x108
    SETTINGS_ERROR = 0x109
    MISSING_SETTINGS = 0x10A
    REQUEST_REJECTED = 0x10B
    REQUEST_CANCELLED = 0x10C
    REQUEST_INCOMPLETE = 0x10D
    MESSAGE_ERROR = 0x10E
    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202
    FLOW_CONTROL_ERROR = 0x045D4487
    SESSION_GONE = 0x170D7B68
    BUFFERED_STREAM_REJECTED = 0x3994BD84


def to_wire(code: int) -> int:
    """What an application's code is on the wire (draft-ietf-webtrans-http3-16 section 4.4)."""
    return 0x52E4A40FA8DB + code + code // 0x1E


# ---- frames, fields and capsules

Fields = Iterable[tuple[bytes, bytes]]


def record(kind: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame or a capsule; ``length`` lies about its length."""
    return frame(kind, len(payload) if length is None else length, payload)


capsule = record


def content(data: bytes) -> bytes:
    """A DATA frame."""
    return record(DATA, data)


def settings_frame(settings: Mapping[int, int] | Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame; pairs may repeat an identifier."""
    pairs = settings.items() if isinstance(settings, Mapping) else settings
    return record(SETTINGS, b"".join(varint(key) + varint(value) for key, value in pairs))


def close_capsule(code: int = 0, reason: bytes = b"") -> bytes:
    return capsule(CLOSE, code.to_bytes(4) + reason)


def prefixed(first: int, bits: int, value: int) -> bytes:
    """An integer of QPACK's (RFC 7541 section 5.1) in the last bits of a byte."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out = [first | most]
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def section(fields: Fields, *, prefix: bytes = b"\0\0") -> bytes:
    """A field section of literals only, which says exactly what it is given, valid or not."""
    lines = [
        prefixed(0x20, 3, len(name)) + name + prefixed(0x00, 7, len(value)) + value
        for name, value in fields
    ]
    return prefix + b"".join(lines)


def head(fields: Fields) -> bytes:
    """A HEADERS frame of such a section."""
    return record(HEADERS, section(fields))


def fields_of(payload: bytes) -> list[tuple[bytes, bytes]]:
    """The lines of a field section."""
    _, fields = pylsqpack.Decoder(0, 0).feed_header(0, payload)
    return fields


def request_fields(
    *extra: tuple[bytes, bytes],
    method: bytes = b"GET",
    path: bytes = b"/",
    authority: bytes = AUTHORITY,
) -> list[tuple[bytes, bytes]]:
    """A plain request."""
    return [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", authority),
        (b":path", path),
        *extra,
    ]


def session_fields(
    *extra: tuple[bytes, bytes], path: bytes = b"/", protocol: bytes = b"webtransport-h3"
) -> list[tuple[bytes, bytes]]:
    """A request for a session."""
    return request_fields((b":protocol", protocol), *extra, method=b"CONNECT", path=path)


def websocket_fields(*extra: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """A request for a WebSocket (RFC 9220)."""
    return session_fields((b"sec-websocket-version", b"13"), *extra, protocol=b"websocket")


def stream_head(session_id: int, *, uni: bool) -> bytes:
    """What a session's stream begins with."""
    return varint(SESSION_STREAM if uni else SESSION_SIGNAL) + varint(session_id)


def datagram(session_id: int, data: bytes = b"") -> bytes:
    """A DATAGRAM frame of QUIC with an HTTP Datagram."""
    payload = varint(session_id // 4) + data
    return frame(0x31, len(payload), payload)


def records(data: bytes) -> list[tuple[int, bytes]]:
    """The whole frames or capsules in some bytes."""
    found, at = [], 0
    while at < len(data):
        begun = at
        numbers = []
        for _ in range(2):
            if at >= len(data) or at + (size := 1 << (data[at] >> 6)) > len(data):
                return found
            numbers.append(int.from_bytes(data[at : at + size]) & ((1 << (8 * size - 2)) - 1))
            at += size
        if at + numbers[1] > len(data):
            return found
        assert at > begun
        found.append((numbers[0], data[at : at + numbers[1]]))
        at += numbers[1]
    return found


# ---- peers


class _H3Peer(HostilePeer):
    """HTTP/3 by hand.

    Attributes:
        resets: the streams that were reset, with their codes.
        stops: those that are not wanted any more, likewise.
        trickles: each byte goes into a packet of its own.
    """

    resets: dict[int, int]
    stops: dict[int, int]
    trickles = False

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, StopSendingReceived):
            self.stops[event.stream_id] = event.error_code
        super()._on_event(event)

    # ---- saying

    def tell(self, stream_id: int, data: bytes = b"", *, fin: bool = False) -> None:
        """Send on a stream, within the limits of the other side and until it arrives."""
        if self.trickles:
            for at in range(len(data) - 1):
                self.connection.send_stream_data(stream_id, data[at : at + 1])
                self.go_on()
            data = data[-1:]
        self.connection.send_stream_data(stream_id, data, end_stream=fin)
        self.go_on()

    def next_id(self, *, uni: bool = False) -> int:
        """The id of the stream that it opens next."""
        return self.connection.get_next_available_stream_id(is_unidirectional=uni)

    def open(self, data: bytes = b"", *, uni: bool = False, fin: bool = False) -> int:
        """Open a stream, and say this on it; its id."""
        stream_id = self.next_id(uni=uni)
        self.tell(stream_id, data, fin=fin)
        return stream_id

    def open_control(self, settings: Mapping[int, int] = CONNECT_SETTINGS) -> int:
        """Open the control stream; its id."""
        return self.open(varint(CONTROL) + settings_frame(settings), uni=True)

    def open_session_stream(
        self, session_id: int, data: bytes = b"", *, uni: bool = False, fin: bool = False
    ) -> int:
        """Open a stream of a session; its id."""
        return self.open(stream_head(session_id, uni=uni) + data, uni=uni, fin=fin)

    def reset(self, stream_id: int, code: int = Code.REQUEST_CANCELLED) -> None:
        """Give up sending on a stream."""
        self.connection.reset_stream(stream_id, code)
        self.go_on()

    def stop(self, stream_id: int, code: int = Code.REQUEST_CANCELLED) -> None:
        """Take no more of a stream."""
        self.connection.stop_stream(stream_id, code)
        self.go_on()

    # ---- hearing

    def frames(self, stream_id: int) -> list[tuple[int, bytes]]:
        """The whole frames that have come on a stream of requests."""
        return records(bytes(self.data.get(stream_id, b"")))

    def content(self, stream_id: int) -> bytes:
        """The content that has come on it."""
        return b"".join(payload for kind, payload in self.frames(stream_id) if kind == DATA)

    def capsules(self, stream_id: int) -> list[tuple[int, bytes]]:
        """The capsules that have come on it."""
        return records(self.content(stream_id))

    def heads(self, stream_id: int) -> list[dict[bytes, bytes]]:
        """The field sections that have come on it."""
        return [
            dict(fields_of(payload)) for kind, payload in self.frames(stream_id) if kind == HEADERS
        ]

    def status(self, stream_id: int) -> int:
        """The status of the response on it; 0 before it has come."""
        heads = self.heads(stream_id)
        return int(heads[0][b":status"]) if heads else 0

    async def answered(self, stream_id: int, seconds: float = 5) -> int:
        """Wait for a response: its status, or less than 0 for an error that the stream was reset with."""
        await self.until(lambda: self.status(stream_id) or stream_id in self.resets, seconds)
        return self.status(stream_id) or -self.resets[stream_id]

    async def over(self, stream_id: int, seconds: float = 5) -> int | None:
        """Wait until nothing more comes on a stream: the code that it was reset with, or None."""
        await self.until(lambda: stream_id in self.ended or stream_id in self.resets, seconds)
        return self.resets.get(stream_id)


class H3Client(_H3Peer, HostileClient):
    """A client of our server. After `HostileClient.shake_hands` it has said nothing about HTTP/3 yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"alpn_protocols": ALPN, **kwargs})
        self.resets, self.stops = {}, {}

    async def introduce(self, settings: Mapping[int, int] = CONNECT_SETTINGS) -> None:
        """Open the control stream, and wait for the server's SETTINGS."""
        self.open_control(settings)
        await self.until(lambda: 3 in self.data)

    def request(self, fields: Fields, data: bytes = b"", *, fin: bool = True) -> int:
        """Send a request; the id of its stream."""
        return self.open(head(fields) + data, fin=fin)

    async def open_session(self, *extra: tuple[bytes, bytes], path: bytes = b"/") -> int:
        """Open a session; its id."""
        session_id = self.request(session_fields(*extra, path=path), fin=False)
        assert await self.answered(session_id) == 200
        return session_id

    async def echo(self, stream_id: int, data: bytes, seconds: float = 5) -> None:
        """Send something on a stream of a session, and get it back."""
        self.tell(stream_id, data, fin=True)
        await self.until(lambda: stream_id in self.ended, seconds)
        assert self.data[stream_id] == data

    async def still_served(self) -> None:
        """A plain request is answered on this connection."""
        assert await self.answered(self.request(request_fields(path=b"/ok")), 2) == 200


class H3Server(_H3Peer, HostileServer):
    """A server for our client; it takes one connection.

    Attributes:
        fields: the heads of the requests that have come, by their streams.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"alpn_protocols": ALPN, **kwargs})
        self.resets, self.stops = {}, {}

    @property
    def fields(self) -> dict[int, dict[bytes, bytes]]:
        return {number: self.heads(number)[0] for number in self.data if not number % 4}

    async def requested(self, number: int = 0, seconds: float = 5) -> int:
        """Wait for a request, the first or a later one; its stream."""
        stream_id = 4 * number
        await self.until(lambda: self.heads(stream_id), seconds)
        return stream_id

    async def accept(self, *extra: tuple[bytes, bytes], number: int = 0) -> int:
        """Answer a request with 200; its stream."""
        stream_id = await self.requested(number)
        self.tell(stream_id, head([(b":status", b"200"), *extra]))
        return stream_id


async def pump(
    peer: HostilePeer, make: Callable[[int], bytes], packets: int, *, each: int = 40, start: int = 0
) -> int:
    """Send as many packets of some QUIC frames made by number each; the next number."""
    number = start
    for at in range(packets):
        peer.say(*(make(n) for n in range(number, number + each)))
        number += each
        await trio.sleep(0.001 if at % 10 == 9 else 0)
    await trio.sleep(0.2)
    return number
