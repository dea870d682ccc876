"""aioquic with the asyncio client and server that come with it, driven as its documentation does.

Streams are asyncio's readers and writers, from ``create_stream`` and for the ``stream_handler``.
Datagrams, which those do not know, are taken in ``quic_event_received``, given to
``send_datagram_frame`` and sent by ``transmit``. Settings are the defaults, but for datagrams, which
are off by default; the variant "large" has packets of 8952 bytes, which loopback carries, and cubic.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived, QuicEvent

from .wire import (
    ALPN,
    CHUNK,
    DOWNLOAD,
    HOST,
    MANY_STREAMS,
    MESSAGE,
    NAME,
    REQUEST,
    UPLOAD,
    Peer,
    check,
    check_size,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aioquic.quic.connection import QuicConnection


def configuration(peer: Peer, *, client: bool) -> QuicConfiguration:
    config = QuicConfiguration(
        alpn_protocols=[ALPN], is_client=client, max_datagram_frame_size=65536
    )
    if client:
        config.server_name = NAME
        config.load_verify_locations(cafile=peer.files.ca)
    else:
        config.load_cert_chain(peer.files.chain, peer.files.key)
    if peer.variant == "large":
        config.max_datagram_size = 8952
        config.congestion_control_algorithm = "cubic"
    return config


class EchoProtocol(QuicConnectionProtocol):
    """The server's: sends datagrams back, and leaves streams to `serve_stream`."""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)
            self.transmit()
        else:
            super().quic_event_received(event)


class ManyStreamsProtocol(EchoProtocol):
    """Lets clients keep more than 128 streams open, for which there is no setting."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None) -> None:
        super().__init__(quic, stream_handler)
        quic._local_max_streams_bidi.value = quic._local_max_streams_bidi.sent = MANY_STREAMS


tasks: set[asyncio.Task[None]] = set()


def stream_handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.create_task(serve_stream(reader, writer))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.read(CHUNK)
    if data[:1] == UPLOAD:
        size = 0
        while data:
            size += len(data)
            data = await reader.read(CHUNK)
        writer.write(size.to_bytes(8))
    elif data[:1] == DOWNLOAD:
        for _ in range(int.from_bytes(data[1:9]) // CHUNK):
            writer.write(bytes(CHUNK))
            await writer.drain()
    elif data[:1] == REQUEST[:1]:
        writer.write(data + await reader.read())
    else:
        while data:
            writer.write(data)
            data = await reader.read(CHUNK)
    writer.write_eof()


def run_server(peer: Peer, ready: Callable[[], None]) -> None:
    async def main() -> None:
        await serve(
            HOST,
            peer.port,
            configuration=configuration(peer, client=False),
            create_protocol=ManyStreamsProtocol if peer.many_streams else EchoProtocol,
            stream_handler=stream_handler,
        )
        ready()
        await asyncio.Future()

    asyncio.run(main())


class ClientProtocol(QuicConnectionProtocol):
    """Hands a datagram to the task that waits for it."""

    waiter: asyncio.Future[bytes]

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self.waiter.set_result(event.data)
        else:
            super().quic_event_received(event)


class Session:
    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def round_trips(self, count: int) -> None:
        reader, writer = await self._protocol.create_stream()
        for _ in range(count):
            writer.write(MESSAGE)
            check(await reader.readexactly(len(MESSAGE)))
        writer.write_eof()
        await reader.read()

    async def requests(self, count: int) -> None:
        for _ in range(count):
            reader, writer = await self._protocol.create_stream()
            writer.write(REQUEST)
            writer.write_eof()
            check(await reader.read(), REQUEST)

    async def datagrams(self, count: int) -> None:
        loop, protocol = asyncio.get_running_loop(), self._protocol
        for _ in range(count):
            protocol.waiter = loop.create_future()
            protocol._quic.send_datagram_frame(MESSAGE)
            protocol.transmit()
            check(await protocol.waiter)

    async def upload(self, size: int) -> None:
        reader, writer = await self._protocol.create_stream()
        chunk = UPLOAD * CHUNK
        for _ in range(size // CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
        check_size(int.from_bytes(await reader.read()), size)

    async def download(self, size: int) -> None:
        reader, writer = await self._protocol.create_stream()
        writer.write(DOWNLOAD + size.to_bytes(8))
        writer.write_eof()
        came = 0
        while data := await reader.read(CHUNK):
            came += len(data)
        check_size(came, size)

    async def open_idle(self, count: int) -> None:
        for _ in range(count):
            reader, writer = await self._protocol.create_stream()
            writer.write(MESSAGE)  # only this takes the stream's number
            self._idle.append((reader, writer))
        for reader, _ in self._idle[-count:]:
            check(await reader.readexactly(len(MESSAGE)))


class Client:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        async with connect(
            HOST,
            self._peer.port,
            configuration=configuration(self._peer, client=True),
            create_protocol=ClientProtocol,
        ) as protocol:
            yield Session(protocol)

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(function())
