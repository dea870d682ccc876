"""trio_wt: a task for each stream on the server, and defaults throughout.

A client has one socket for all its sessions. A flood is sent and received in bursts, with a
checkpoint for each of them instead of each datagram.

The variant "1200" keeps packets at 1200 bytes, as a path with no more to give would.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosedOK,
    QuicEndpoint,
    ServerTLS,
    Stream,
    WebTransportSession,
    open_quic_endpoint,
    open_webtransport,
    serve_webtransport,
)

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


BURST = 16
"""Datagrams that are handed over between two checkpoints of a flood."""


def settings(peer: Peer) -> dict[str, Any]:
    return {"max_packet_size": 1200} if peer.variant == "1200" else {}


async def handler(session: WebTransportSession) -> None:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_datagrams, session, counter)
        async for stream in session.incoming_streams:
            nursery.start_soon(serve_stream, stream, counter)


async def echo_datagrams(session: WebTransportSession, counter: Counter) -> None:
    datagrams = session.datagrams
    try:
        while True:
            data = await datagrams.receive()
            while data[:1] == FLOOD and datagrams.unread:
                counter.note(data)
                data = datagrams.receive_nowait()
            if data[:1] == FLOOD:
                counter.note(data)
            else:
                await datagrams.send(data)
    except ConnectionClosedOK:
        return


async def serve_stream(stream: Stream, counter: Counter) -> None:
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
        elif data[:1] == TALLY:
            await stream.send_all(counter.tally())
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
                    serve_webtransport,
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
    def __init__(self, session: WebTransportSession) -> None:
        self._session = session

    async def round_trips(self, count: int) -> None:
        async with self._session.open_stream() as stream:
            for _ in range(count):
                await stream.send_all(MESSAGE)
                check(await stream.receive_exactly(len(MESSAGE)))
            await stream.send_eof()
            await stream.receive_all()

    async def requests(self, count: int) -> None:
        for _ in range(count):
            check(await self._ask(REQUEST), REQUEST)

    async def _ask(self, request: bytes) -> bytes:
        async with self._session.open_stream() as stream:
            await stream.send_all(request, eof=True)
            return await stream.receive_all()

    async def datagrams(self, count: int) -> None:
        datagrams = self._session.datagrams
        for _ in range(count):
            await datagrams.send(MESSAGE)
            check(await datagrams.receive())

    async def flood(self, number: int, seconds: float) -> int:
        sent, data, send = 0, flood_message(number), self._session.datagrams.send_nowait
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(BURST):
                send(data)
            await trio.lowlevel.checkpoint()
            sent += BURST
        return sent

    async def tally(self) -> bytes:
        return await self._ask(TALLY)

    async def upload(self, size: int) -> None:
        chunk = UPLOAD * CHUNK
        async with self._session.open_stream() as stream:
            for _ in range(size // CHUNK):
                await stream.send_all(chunk)
            await stream.send_eof()
            check_size(int.from_bytes(await stream.receive_all()), size)

    async def download(self, size: int) -> None:
        came = 0
        async with self._session.open_stream() as stream:
            await stream.send_all(DOWNLOAD + size.to_bytes(8), eof=True)
            while data := await stream.receive_some(CHUNK):
                came += len(data)
        check_size(came, size)


class Client:
    _endpoint: QuicEndpoint

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        async with open_webtransport(
            f"https://{HOST}:{self._peer.port}{PATH}",
            tls=ClientTLS(ca=Path(self._peer.files.ca), server_name=NAME),
            endpoint=self._endpoint,
            **settings(self._peer),
        ) as session:
            yield Session(session)

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with open_quic_endpoint(HOST) as self._endpoint:
                await function()

        trio.run(main)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
