"""pywebtransport, whose Rust core has a thread of its own, on uvloop as its own benchmarks are.

Settings are the defaults, but for the number of connections: larger packets, other congestion
control and larger windows made no difference here. A client keeps one endpoint for all its
connections, as the library's own client does.

A datagram is handed over when the core has taken the last one. With the variant "bursts" a flood
does not wait so long, as in the library's own benchmark; then the core drops most of it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop
from pywebtransport import (
    ClientConfig,
    ServerConfig,
    WebTransportClient,
    WebTransportServer,
)
from pywebtransport.exceptions import ConnectionError as ConnectionFailed
from pywebtransport.exceptions import SessionError, StreamError

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
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from pywebtransport import WebTransportSession
    from pywebtransport.connection import WebTransportConnection
    from pywebtransport.stream import WebTransportBidirectionalStream

BURST = 100
"""Datagrams that are handed over at a time with the variant "bursts"."""

CONNECTIONS = 4096


class Tasks:
    """Tasks that somebody has to hold on to."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve_connection(connection: WebTransportConnection) -> None:
    tasks = Tasks()
    async for session in connection.incoming_sessions():
        await session.accept()
        tasks.start(serve_session(session))


async def serve_session(session: WebTransportSession) -> None:
    tasks, counter = Tasks(), Counter()
    tasks.start(echo_datagrams(session, counter))
    async for stream in session.incoming_bidirectional_streams():
        tasks.start(serve_stream(stream, counter))


async def echo_datagrams(session: WebTransportSession, counter: Counter) -> None:
    try:
        while True:
            data = await session.read_datagram()
            if data[:1] == FLOOD:
                counter.note(data)
            else:
                await session.send_datagram(data=data)
    except (ConnectionFailed, SessionError):
        return


async def serve_stream(stream: WebTransportBidirectionalStream, counter: Counter) -> None:
    try:
        data = await stream.read(max_size=CHUNK)
        if data[:1] == UPLOAD:
            size = 0
            while data:
                size += len(data)
                data = await stream.read(max_size=CHUNK)
            await stream.write(data=size.to_bytes(8), end_stream=True)
        elif data[:1] == DOWNLOAD:
            for left in range(int.from_bytes(data[1:9]) // CHUNK - 1, -1, -1):
                await stream.write(data=bytes(CHUNK), end_stream=not left)
        elif data[:1] == TALLY:
            await stream.write(data=counter.tally(), end_stream=True)
        elif data[:1] == REQUEST[:1]:
            await stream.write(data=data + await stream.read_all(), end_stream=True)
        else:
            while data:
                await stream.write(data=data)
                data = await stream.read(max_size=CHUNK)
            await stream.write(data=b"", end_stream=True)
    except (ConnectionFailed, SessionError, StreamError):
        return


def run_server(peer: Peer, ready: Callable[[], None]) -> None:
    async def main() -> None:
        config = ServerConfig(
            bind_host=HOST,
            bind_port=peer.port,
            certfile=peer.files.chain,
            keyfile=peer.files.key,
            max_connections=CONNECTIONS,
        )
        tasks = Tasks()
        async with WebTransportServer(config=config) as server:
            await server.listen()
            ready()
            async for connection in server.incoming_connections():
                tasks.start(serve_connection(connection))

    uvloop.run(main())


class Session:
    def __init__(self, session: WebTransportSession, burst: int) -> None:
        self._session = session
        self._burst = burst

    async def round_trips(self, count: int) -> None:
        stream = await self._session.create_bidirectional_stream()
        for _ in range(count):
            await stream.write(data=MESSAGE)
            check(await stream.read(max_size=len(MESSAGE)))
        await stream.write(data=b"", end_stream=True)
        await stream.read_all()

    async def requests(self, count: int) -> None:
        for _ in range(count):
            check(await self._ask(REQUEST), REQUEST)

    async def _ask(self, request: bytes) -> bytes:
        stream = await self._session.create_bidirectional_stream()
        await stream.write(data=request, end_stream=True)
        return await stream.read_all()

    async def datagrams(self, count: int) -> None:
        for _ in range(count):
            await self._session.send_datagram(data=MESSAGE)
            check(await self._session.read_datagram())

    async def flood(self, number: int, seconds: float) -> int:
        sent, data, send = 0, flood_message(number), self._session.send_datagram
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if self._burst == 1:
                await send(data=data)
            else:
                await asyncio.gather(*(send(data=data) for _ in range(self._burst)))
            sent += self._burst
        return sent

    async def tally(self) -> bytes:
        return await self._ask(TALLY)

    async def upload(self, size: int) -> None:
        chunk = UPLOAD * CHUNK
        stream = await self._session.create_bidirectional_stream()
        for left in range(size // CHUNK - 1, -1, -1):
            await stream.write(data=chunk, end_stream=not left)
        check_size(int.from_bytes(await stream.read_all()), size)

    async def download(self, size: int) -> None:
        came = 0
        stream = await self._session.create_bidirectional_stream()
        await stream.write(data=DOWNLOAD + size.to_bytes(8), end_stream=True)
        while data := await stream.read(max_size=CHUNK):
            came += len(data)
        check_size(came, size)


class Client:
    _client: WebTransportClient

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        session = await self._client.connect(url=f"https://{NAME}:{self._peer.port}{PATH}")
        try:
            yield Session(session, BURST if self._peer.variant == "bursts" else 1)
        finally:
            await session.connection.close()

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            config = ClientConfig(ca_certs=self._peer.files.ca, max_connections=CONNECTIONS)
            async with WebTransportClient(config=config) as self._client:
                await function()

        uvloop.run(main())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
