"""trio_wt: a task for each stream on the server, and defaults throughout.

The variant "1200" keeps packets at 1200 bytes, as a path with no more to give would.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_wt import (
    Certificate,
    ClientTLS,
    Connection,
    ConnectionClosedOK,
    ServerTLS,
    Stream,
    open_quic,
    serve_quic,
)

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


def settings(peer: Peer) -> dict[str, Any]:
    chosen: dict[str, Any] = {"alpn": [ALPN]}
    if peer.variant == "1200":
        chosen["max_packet_size"] = 1200
    if peer.many_streams:
        chosen["max_streams"] = MANY_STREAMS
    return chosen


async def handler(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_datagrams, connection)
        async for stream in connection.incoming_streams:
            nursery.start_soon(serve_stream, stream)


async def echo_datagrams(connection: Connection) -> None:
    try:
        while True:
            await connection.datagrams.send(await connection.datagrams.receive())
    except ConnectionClosedOK:
        return


async def serve_stream(stream: Stream) -> None:
    async with stream:
        data = await stream.receive_some(CHUNK)
        if data[:1] == UPLOAD:
            size = 0
            while data:
                size += len(data)
                data = await stream.receive_some(CHUNK)
            await stream.send_all(size.to_bytes(8))
        elif data[:1] == DOWNLOAD:
            for _ in range(int.from_bytes(data[1:9]) // CHUNK):
                await stream.send_all(bytes(CHUNK))
        elif data[:1] == REQUEST[:1]:
            await stream.send_all(data + await stream.receive_all(), eof=True)
        else:
            while data:
                await stream.send_all(data)
                data = await stream.receive_some(CHUNK)


def run_server(peer: Peer, ready: Callable[[], None]) -> None:
    async def main() -> None:
        certificate = Certificate.load(peer.files.chain, peer.files.key)
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(
                    serve_quic,
                    handler,
                    peer.port,
                    host=HOST,
                    tls=ServerTLS(certificate),
                    **settings(peer),
                )
            )
            ready()

    trio.run(main)


class Session:
    def __init__(self, connection: Connection, idle: AsyncExitStack) -> None:
        self._connection = connection
        self._idle = idle

    async def round_trips(self, count: int) -> None:
        async with self._connection.open_stream() as stream:
            for _ in range(count):
                await stream.send_all(MESSAGE)
                check(await stream.receive_exactly(len(MESSAGE)))
            await stream.send_eof()
            await stream.receive_all()

    async def requests(self, count: int) -> None:
        for _ in range(count):
            async with self._connection.open_stream() as stream:
                await stream.send_all(REQUEST, eof=True)
                check(await stream.receive_all(), REQUEST)

    async def datagrams(self, count: int) -> None:
        datagrams = self._connection.datagrams
        for _ in range(count):
            await datagrams.send(MESSAGE)
            check(await datagrams.receive())

    async def upload(self, size: int) -> None:
        chunk = UPLOAD * CHUNK
        async with self._connection.open_stream() as stream:
            for _ in range(size // CHUNK):
                await stream.send_all(chunk)
            await stream.send_eof()
            check_size(int.from_bytes(await stream.receive_all()), size)

    async def download(self, size: int) -> None:
        came = 0
        async with self._connection.open_stream() as stream:
            await stream.send_all(DOWNLOAD + size.to_bytes(8), eof=True)
            while data := await stream.receive_some(CHUNK):
                came += len(data)
        check_size(came, size)

    async def open_idle(self, count: int) -> None:
        streams = [
            await self._idle.enter_async_context(self._connection.open_stream())
            for _ in range(count)
        ]
        for stream in streams:
            await stream.send_all(MESSAGE)
        for stream in streams:
            check(await stream.receive_exactly(len(MESSAGE)))


class Client:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        async with (
            open_quic(
                HOST,
                self._peer.port,
                tls=ClientTLS(ca=Path(self._peer.files.ca), server_name=NAME),
                **settings(self._peer),
            ) as connection,
            AsyncExitStack() as idle,
        ):
            yield Session(connection, idle)

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        trio.run(function)
