"""Peers that say in HTTP/3 whatever they are told to: on QUIC as it is, frame by frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pylsqpack
import trio

from tests.quic_pairs import HOST, PORT, start_serving, visit
from trio_wt import Connection, ReceiveStream, SendStream, Stream
from trio_wt._protocol import varint
from trio_wt._protocol.capsules import CapsuleType
from trio_wt._protocol.dialects import session_settings
from trio_wt._protocol.http3_codes import Http3Code, to_http3_code
from trio_wt._protocol.http3_frames import FrameType
from trio_wt._protocol.http3_settings import Setting, encode_settings
from trio_wt._protocol.records import encode_record
from trio_wt._protocol.stream_heads import StreamType, session_stream_head
from trio_wt.testing import Network

__all__ = [
    "ws_fields",
    "ask_raw",
    "CapsuleType",
    "Exchange",
    "FrameType",
    "Http3Code",
    "RawPeer",
    "Setting",
    "close_capsule",
    "number_capsule",
    "raw_client",
    "raw_server",
    "session_stream_head",
    "settings_of",
    "to_http3_code",
]

Fields = list[tuple[bytes, bytes]]
AUTHORITY = f"{HOST}:{PORT}".encode()


def settings_of(**changes: int | None) -> dict[int, int]:
    """SETTINGS of a peer that speaks all of WebTransport, or less: by the names of `Setting`."""
    settings: dict[int, int] = dict(
        session_settings(max_data=2**20, max_streams=100, max_receive_streams=100)
    )
    for name, value in changes.items():
        if value is None:
            settings.pop(Setting[name], None)
        else:
            settings[Setting[name]] = value
    return settings


def close_capsule(code: int, reason: bytes = b"") -> bytes:
    return encode_record(CapsuleType.CLOSE_SESSION, code.to_bytes(4) + reason)


def number_capsule(kind: CapsuleType, number: int) -> bytes:
    return encode_record(kind, varint.encode(number))


class Exchange:
    """A request's stream, frame by frame."""

    def __init__(self, peer: RawPeer, stream: Stream) -> None:
        self.peer = peer
        self.stream = stream
        self._capsules = b""

    @property
    def stream_id(self) -> int:
        return self.stream.stream_id

    async def send_frame(self, kind: int, payload: bytes, *, eof: bool = False) -> None:
        await self.stream.send_all(encode_record(kind, payload), eof=eof)

    async def send_head(self, fields: Fields, *, eof: bool = False) -> None:
        section = self.peer.encode_fields(self.stream_id, fields)
        await self.send_frame(FrameType.HEADERS, section, eof=eof)

    async def send_data(self, data: bytes, *, eof: bool = False) -> None:
        await self.send_frame(FrameType.DATA, data, eof=eof)

    async def _receive_number(self) -> int | None:
        first = await self.stream.receive_some(1)
        if not first:
            return None
        data = first + await self.stream.receive_exactly((1 << (first[0] >> 6)) - 1)
        number = varint.decode(data)
        assert number is not None
        return number[0]

    async def receive_frame(self) -> tuple[int, bytes] | None:
        """The next frame; None at the end of the stream."""
        kind = await self._receive_number()
        if kind is None:
            return None
        length = await self._receive_number()
        assert length is not None
        return kind, await self.stream.receive_exactly(length)

    async def receive_head(self) -> dict[bytes, bytes]:
        frame = await self.receive_frame()
        assert frame is not None
        assert frame[0] == FrameType.HEADERS
        return dict(self.peer.decode_fields(self.stream_id, frame[1]))

    async def receive_body(self) -> bytes:
        body = b""
        while (frame := await self.receive_frame()) is not None:
            assert frame[0] == FrameType.DATA
            body += frame[1]
        return body

    async def receive_capsule(self) -> tuple[int, bytes] | None:
        """The next capsule; None at the end of the stream."""
        while True:
            kind = varint.decode(self._capsules)
            length = None if kind is None else varint.decode(self._capsules, kind[1])
            if kind is not None and length is not None:
                end = length[1] + length[0]
                if end <= len(self._capsules):
                    payload = self._capsules[length[1] : end]
                    self._capsules = self._capsules[end:]
                    return kind[0], payload
            frame = await self.receive_frame()
            if frame is None:
                assert not self._capsules
                return None
            assert frame[0] == FrameType.DATA
            self._capsules += frame[1]


class RawPeer:
    """One side of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What the other side says on its control stream.
        self.control_heard = b""
        self._encoder, self._decoder = pylsqpack.Encoder(), pylsqpack.Decoder(0, 0)
        self._control: SendStream | None = None
        # Unidirectional streams of sessions that the other side has opened, with the session's number.
        self._sessions_streams = trio.open_memory_channel[tuple[int, ReceiveStream]](1000)

    def encode_fields(self, stream_id: int, fields: Fields) -> bytes:
        return self._encoder.encode(stream_id, fields)[1]

    def decode_fields(self, stream_id: int, section: bytes) -> Fields:
        return self._decoder.feed_header(stream_id, section)[1]

    # ---- streams of any kind, that stay open: no blocks

    async def open_stream(self) -> Stream:
        stream = await self.connection.open_stream().__aenter__()
        stream.cancel_scope.__exit__(None, None, None)
        return stream

    async def open_send_stream(self) -> SendStream:
        stream = await self.connection.open_send_stream().__aenter__()
        stream.cancel_scope.__exit__(None, None, None)
        return stream

    # ---- the control stream

    async def open_control(self, settings: Mapping[int, int]) -> None:
        stream = self._control = await self.open_send_stream()
        frame = encode_record(FrameType.SETTINGS, encode_settings(settings))
        await stream.send_all(varint.encode(StreamType.CONTROL) + frame)

    async def send_control(self, kind: int, payload: bytes) -> None:
        assert self._control is not None
        await self._control.send_all(encode_record(kind, payload))

    async def listen(self) -> None:
        """Sort the other side's unidirectional streams."""
        async with trio.open_nursery() as nursery:
            async for stream in self.connection.incoming_receive_streams:
                nursery.start_soon(self._sort, stream)

    async def _sort(self, stream: ReceiveStream) -> None:
        first = await stream.receive_exactly(1)
        if first == b"\x00":
            async for data in stream:
                self.control_heard += data
        elif first == b"\x40":
            assert await stream.receive_exactly(1) == b"\x54"
            session_id = await self.receive_number(stream)
            self._sessions_streams[0].send_nowait((session_id, stream))

    @staticmethod
    async def receive_number(stream: ReceiveStream) -> int:
        first = await stream.receive_exactly(1)
        data = first + await stream.receive_exactly((1 << (first[0] >> 6)) - 1)
        number = varint.decode(data)
        assert number is not None
        return number[0]

    # ---- requests

    async def request(self, fields: Fields, *, eof: bool = False) -> Exchange:
        exchange = Exchange(self, await self.open_stream())
        await exchange.send_head(fields, eof=eof)
        return exchange

    def session_fields(
        self, path: bytes = b"/", *more: tuple[bytes, bytes], token: bytes = b"webtransport"
    ) -> Fields:
        return [
            (b":method", b"CONNECT"),
            (b":scheme", b"https"),
            (b":authority", AUTHORITY),
            (b":path", path),
            (b":protocol", token),
            *more,
        ]

    def plain_fields(
        self, method: bytes = b"GET", path: bytes = b"/", *more: tuple[bytes, bytes]
    ) -> Fields:
        return [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", AUTHORITY),
            (b":path", path),
            *more,
        ]

    async def open_session(self, path: bytes = b"/", *more: tuple[bytes, bytes]) -> Exchange:
        """Ask for a session, and get it."""
        exchange = await self.request(self.session_fields(path, *more))
        head = await exchange.receive_head()
        assert head[b":status"] == b"200"
        return exchange

    async def next_request(self) -> tuple[Exchange, dict[bytes, bytes]]:
        """A server's: the next request, and its head."""
        exchange = Exchange(self, await self.connection.incoming_streams.receive())
        return exchange, await exchange.receive_head()

    async def accept_session(self, *more: tuple[bytes, bytes]) -> Exchange:
        """The next request, which asks for a session, and gets it."""
        exchange, head = await self.next_request()
        assert head[b":method"] == b"CONNECT"
        await exchange.send_head([(b":status", b"200"), *more])
        return exchange

    # ---- of sessions

    async def open_session_stream(self, session_id: int, data: bytes = b"") -> Stream:
        stream = await self.open_stream()
        await stream.send_all(session_stream_head(session_id, unidirectional=False) + data)
        return stream

    async def open_session_send_stream(self, session_id: int, data: bytes = b"") -> SendStream:
        stream = await self.open_send_stream()
        await stream.send_all(session_stream_head(session_id, unidirectional=True) + data)
        return stream

    async def next_session_receive_stream(self) -> tuple[int, ReceiveStream]:
        return await self._sessions_streams[1].receive()

    async def next_session_stream(self) -> tuple[int, Stream]:
        stream = await self.connection.incoming_streams.receive()
        assert await stream.receive_exactly(2) == b"\x40\x41"
        return await self.receive_number(stream), stream

    def send_datagram(self, session_id: int, data: bytes) -> None:
        self.connection.datagrams.send_nowait(varint.encode(session_id // 4) + data)


async def ask_raw(
    peer: RawPeer, fields: Fields, body: bytes = b""
) -> tuple[dict[bytes, bytes], bytes]:
    """A whole exchange."""
    exchange = await peer.request(fields, eof=not body)
    if body:
        await exchange.send_data(body, eof=True)
    head = await exchange.receive_head()
    return head, await exchange.receive_body()


def ws_fields(peer: RawPeer, *more: tuple[bytes, bytes]) -> Fields:
    fields = peer.session_fields(b"/chat", token=b"websocket")
    if not any(name == b"sec-websocket-version" for name, _ in more):
        fields.append((b"sec-websocket-version", b"13"))
    return [*fields, *(pair for pair in more if pair[1])]


@asynccontextmanager
async def _peer(
    connection: Connection, settings: Mapping[int, int] | None
) -> AsyncIterator[RawPeer]:
    peer = RawPeer(connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen_quietly, peer)
        if settings is not None:
            await peer.open_control(settings)
        yield peer
        connection.close_now(Http3Code.NO_ERROR)
        nursery.cancel_scope.cancel()


async def _listen_quietly(peer: RawPeer) -> None:
    try:
        await peer.listen()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


_DEFAULT = settings_of()


@asynccontextmanager
async def raw_client(
    network: Network, *, settings: Mapping[int, int] | None = _DEFAULT, **options: object
) -> AsyncIterator[RawPeer]:
    """A client of whatever server there is on the network.

    Args:
        network: the network.
        settings: its SETTINGS; None to open no control stream by itself.
        options: as for `visit` of QUIC.
    """
    async with visit(network, alpn=["h3"], **options) as connection:
        async with _peer(connection, settings) as peer:
            yield peer


@asynccontextmanager
async def raw_server(
    network: Network,
    handler: Callable[[RawPeer], Awaitable[object]],
    *,
    settings: Mapping[int, int] | None = _DEFAULT,
    **options: object,
) -> AsyncIterator[None]:
    """A server on the network, for clients that are to be tested."""

    async def handle(connection: Connection) -> None:
        async with _peer(connection, settings) as peer:
            await handler(peer)
            await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        scope = await start_serving(nursery, handle, network, alpn=["h3"], **options)
        yield
        scope.cancel()
