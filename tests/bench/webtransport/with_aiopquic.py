"""aiopquic, by its sessions' own methods and events, on uvloop; picoquic has a thread of its own.

The server has a task for each stream, as `receive_stream_data` wants it, and one for the session's
events. A client shares one transport, and so one thread, among all its sessions, as its
documentation offers. Transfers are sent with ``send_stream_data_drained``, which waits for room,
all else with ``send_stream_data``. Settings are those of `QuicConfiguration`, but for the number
of connections.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop
from aiopquic._binding._transport import TransportContext
from aiopquic.asyncio.webtransport import (
    WebTransportClient,
    WebTransportDatagramReceived,
    WebTransportNewStream,
    WebTransportSession,
    WebTransportStreamDataReceived,
    connect_webtransport,
    serve_webtransport,
)
from aiopquic.quic.configuration import QuicConfiguration

from ..client import BenchError
from ..quic.wire import (
    CHUNK,
    DOWNLOAD,
    HOST,
    MESSAGE,
    NAME,
    REQUEST,
    UPLOAD,
    Peer,
    check,
    check_size,
)
from .wire import FLOOD, PATH, TALLY, Counter, flood_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

CONNECTIONS = 4096


async def handler(session: WebTransportSession) -> None:
    counter = Counter()
    async with asyncio.TaskGroup() as tasks:
        async for event in session.events():
            if isinstance(event, WebTransportNewStream):
                tasks.create_task(serve_stream(session, event.stream_id, counter))
            elif isinstance(event, WebTransportDatagramReceived):
                if event.data[:1] == FLOOD:
                    counter.note(event.data)
                else:
                    session.send_datagram_frame(bytes(event.data))


async def serve_stream(session: WebTransportSession, stream_id: int, counter: Counter) -> None:
    size, send = 0, session.send_stream_data
    async for event in session.receive_stream_data(stream_id):
        if not isinstance(event, WebTransportStreamDataReceived):
            return
        data, end = event.data, event.end_stream
        if size or data[:1] == UPLOAD:
            size += len(data)
            if end:
                send(stream_id, size.to_bytes(8), True)
        elif data[:1] == DOWNLOAD:
            for left in range(int.from_bytes(data[1:9]) // CHUNK - 1, -1, -1):
                await session.send_stream_data_drained(stream_id, bytes(CHUNK), not left)
        elif data[:1] == TALLY:
            send(stream_id, counter.tally(), True)
        elif data or end:
            send(stream_id, bytes(data), end)


def run_server(peer: Peer, ready: Callable[[], None]) -> None:
    async def main() -> None:
        await serve_webtransport(
            HOST,
            peer.port,
            PATH,
            handler=handler,
            cert_file=peer.files.chain,
            key_file=peer.files.key,
            configuration=QuicConfiguration(is_client=False, max_connections=CONNECTIONS),
        )
        ready()
        await asyncio.Future()

    uvloop.run(main())


class Session:
    def __init__(self, session: WebTransportClient) -> None:
        self._session = session
        self._events = session.events()

    async def round_trips(self, count: int) -> None:
        send = self._session.send_stream_data
        stream_id = await self._session.create_stream()
        replies = self._session.receive_stream_data(stream_id)
        for _ in range(count):
            send(stream_id, MESSAGE)
            check((await anext(replies)).data)
        send(stream_id, b"", True)
        async for _ in replies:
            pass

    async def requests(self, count: int) -> None:
        for _ in range(count):
            check(await self._ask(REQUEST), REQUEST)

    async def _ask(self, request: bytes) -> bytes:
        stream_id = await self._session.create_stream()
        self._session.send_stream_data(stream_id, request, True)
        reply = b""
        async for event in self._session.receive_stream_data(stream_id):
            reply += event.data
        return reply

    async def datagrams(self, count: int) -> None:
        for _ in range(count):
            self._session.send_datagram_frame(MESSAGE)
            event = await anext(self._events)
            if not isinstance(event, WebTransportDatagramReceived):
                raise BenchError(f"the session had {event!r}")
            check(event.data)

    async def flood(self, number: int, seconds: float) -> int:
        sent, data, send = 0, flood_message(number), self._session.send_datagram_frame
        room = self._session.get_datagram_tx_drain_event()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if send(data):
                sent += 1
            else:
                await room.wait()
        return sent

    async def tally(self) -> bytes:
        return await self._ask(TALLY)

    async def upload(self, size: int) -> None:
        chunk = UPLOAD * CHUNK
        stream_id = await self._session.create_stream()
        for left in range(size // CHUNK - 1, -1, -1):
            await self._session.send_stream_data_drained(stream_id, chunk, not left)
        reply = b""
        async for event in self._session.receive_stream_data(stream_id):
            reply += event.data
        check_size(int.from_bytes(reply), size)

    async def download(self, size: int) -> None:
        came = 0
        stream_id = await self._session.create_stream()
        self._session.send_stream_data(stream_id, DOWNLOAD + size.to_bytes(8), True)
        async for event in self._session.receive_stream_data(stream_id):
            came += len(event.data)
        check_size(came, size)


class Client:
    _transport: TransportContext

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        async with connect_webtransport(
            HOST, self._peer.port, PATH, sni=NAME, transport=self._transport
        ) as session:
            yield Session(session)

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await function()

        config = QuicConfiguration(max_connections=CONNECTIONS)
        self._transport = TransportContext()
        self._transport.start(**options(config), ca_file=self._peer.files.ca)
        try:
            uvloop.run(main())
        finally:
            self._transport.stop()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def options(config: QuicConfiguration) -> dict[str, Any]:
    """What `connect_webtransport` makes of a configuration when the transport is its own."""
    return {
        "is_client": True,
        "alpn": "h3",
        "verify_peer": True,
        "max_datagram_frame_size": config.max_datagram_frame_size,
        "rx_data_ring_cap": config.max_stream_data,
        "initial_max_data": config.max_data,
        "initial_max_streams_uni": config.max_streams_uni,
        "initial_max_streams_bidi": config.max_streams_bidi,
        "idle_timeout_ms": int(config.idle_timeout * 1000),
        "congestion_control_algorithm": config.congestion_control_algorithm,
        "max_connections": config.max_connections,
        "pmtud_policy": config.pmtud,
    }
