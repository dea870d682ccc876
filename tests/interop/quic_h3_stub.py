"""As much of HTTP/3 as ngtcp2's client needs to fetch something: RFC 9114 for those who ask nicely.

Requests are answered with as many bytes as their path says: ``/1000`` gets a thousand.
"""

from __future__ import annotations

import hashlib

import trio
from aioquic.buffer import Buffer, encode_uint_var
from pylsqpack import Decoder, Encoder

from trio_wt import Connection, ConnectionClosed, ReceiveStream, Stream, StreamReset

_DATA, _HEADERS, _SETTINGS = 0x00, 0x01, 0x04
_CONTROL = 0x00
_CHUNK = 2**16
_MAX_REQUEST = 2**25


def content(size: int) -> bytes:
    """The same bytes for the same size, and others for another."""
    seed = hashlib.sha256(b"%d" % size).digest()
    return (seed * (size // len(seed) + 1))[:size]


def frame(kind: int, payload: bytes) -> bytes:
    return encode_uint_var(kind) + encode_uint_var(len(payload)) + payload


def first_frame(data: bytes) -> tuple[int, bytes]:
    buf = Buffer(data=data)
    kind, length = buf.pull_uint_var(), buf.pull_uint_var()
    return kind, buf.pull_bytes(length)


class Answerer:
    """What happened on the connections that were answered.

    Attributes:
        resumed: for each connection, whether it resumed a session.
        early: for each connection, whether its handler began before the handshake was complete.
        peers: the addresses that requests came from.
    """

    def __init__(self) -> None:
        self.resumed: list[bool] = []
        self.early: list[bool] = []
        self.peers: list[object] = []

    async def handle(self, connection: Connection) -> None:
        self.early.append(not connection.handshake_complete)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ignore_all, connection)
                async with connection.open_send_stream() as control:
                    await control.send_all(bytes([_CONTROL]) + frame(_SETTINGS, b""))
                    async for stream in connection.incoming_streams:
                        nursery.start_soon(self._answer, connection, stream)
        except* ConnectionClosed:
            pass  # with HTTP/3's code for no error
        finally:
            self.resumed.append(connection.session_resumed)

    async def _ignore_all(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in connection.incoming_receive_streams:
                nursery.start_soon(self._ignore, stream)

    async def _ignore(self, stream: ReceiveStream) -> None:
        try:
            async with stream:
                async for _ in stream:
                    pass
        except (StreamReset, trio.BrokenResourceError):
            return

    async def _answer(self, connection: Connection, stream: Stream) -> None:
        try:
            async with stream:
                kind, payload = first_frame(await stream.receive_all(_MAX_REQUEST))
                assert kind == _HEADERS
                _, fields = Decoder(0, 0).feed_header(stream.stream_id, payload)
                size = int(dict(fields)[b":path"].strip(b"/"))
                self.peers.append(connection.peer_address)
                _, head = Encoder().encode(
                    stream.stream_id, [(b":status", b"200"), (b"content-length", b"%d" % size)]
                )
                body = memoryview(frame(_DATA, content(size)))
                await stream.send_all(frame(_HEADERS, head))
                for start in range(0, len(body), _CHUNK):
                    await stream.send_all(body[start : start + _CHUNK])
        except (StreamReset, trio.BrokenResourceError):
            return
