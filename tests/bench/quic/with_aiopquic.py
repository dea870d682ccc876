"""aiopquic, by events, which are the only way to its raw QUIC; picoquic has a thread of its own.

The server answers from within ``quic_event_received``, without a task. A client has a task that
waits for the future which an event completes; with the variant "callback" it sends the next message
from within the event, and no task is woken at all. Transfers are sent with
``send_stream_data_drained``, which waits for room, all else with ``send_stream_data``. Settings are
the defaults, but for the number of connections, and of streams where idle ones are measured.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiopquic.asyncio import QuicConnectionProtocol, connect, serve
from aiopquic.quic.configuration import QuicConfiguration
from aiopquic.quic.events import DatagramFrameReceived, QuicEvent, StreamDataReceived

from ..client import BenchError
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


def configuration(peer: Peer, *, client: bool) -> QuicConfiguration:
    config = QuicConfiguration(alpn_protocols=[ALPN], is_client=client)
    if client:
        config.server_name = NAME
        config.load_verify_locations(cafile=peer.files.ca)
    else:
        config.load_cert_chain(peer.files.chain, peer.files.key)
        config.max_connections = 4096
    if peer.many_streams:
        config.max_streams_bidi = MANY_STREAMS
        config.max_stream_data = CHUNK  # each stream has a buffer of that size
    return config


class ServerProtocol(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._uploads: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)
        elif isinstance(event, StreamDataReceived):
            stream_id, data = event.stream_id, event.data
            if stream_id in self._uploads or data[:1] == UPLOAD:
                size = self._uploads.get(stream_id, 0) + len(data)
                self._uploads[stream_id] = size
                if event.end_stream:
                    del self._uploads[stream_id]
                    self._quic.send_stream_data(stream_id, size.to_bytes(8), True)
            elif data[:1] == DOWNLOAD:
                task = asyncio.create_task(self._download(stream_id, int.from_bytes(data[1:9])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif data or event.end_stream:
                self._quic.send_stream_data(stream_id, bytes(data), event.end_stream)

    async def _download(self, stream_id: int, size: int) -> None:
        for left in range(size // CHUNK - 1, -1, -1):
            await self._quic.send_stream_data_drained(stream_id, bytes(CHUNK), not left)


def run_server(peer: Peer, ready: Callable[[], None]) -> None:
    async def main() -> None:
        await serve(
            HOST,
            peer.port,
            configuration=configuration(peer, client=False),
            create_protocol=ServerProtocol,
        )
        ready()
        await asyncio.Future()

    asyncio.run(main())


class ClientProtocol(QuicConnectionProtocol):
    """Gives events to a function, or counts bytes and wakes the task that waits for them."""

    step: Callable[[bytes | memoryview], None] | None = None
    _waiter: asyncio.Future[memoryview]
    _due = 0

    def expect(self, size: int) -> asyncio.Future[memoryview]:
        """What is completed, with the last data, when as many bytes have come."""
        self._due = size
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def quic_event_received(self, event: QuicEvent) -> None:
        if not isinstance(event, (StreamDataReceived, DatagramFrameReceived)):
            return
        if self.step is not None:
            self.step(event.data)
        elif event.data:
            self._due -= len(event.data)
            if self._due <= 0:
                self._waiter.set_result(event.data)


class Session:
    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self._quic = protocol._quic

    async def round_trips(self, count: int) -> None:
        stream_id, send = self._quic.get_next_available_stream_id(), self._quic.send_stream_data
        await self._exchange(count, lambda: send(stream_id, MESSAGE), MESSAGE)
        send(stream_id, b"", True)

    async def requests(self, count: int) -> None:
        new_id, send = self._quic.get_next_available_stream_id, self._quic.send_stream_data
        await self._exchange(count, lambda: send(new_id(), REQUEST, True), REQUEST)

    async def datagrams(self, count: int) -> None:
        send = self._quic.send_datagram_frame
        await self._exchange(count, lambda: send(MESSAGE), MESSAGE)

    async def _exchange(self, count: int, send: Callable[[], object], due: bytes) -> None:
        for _ in range(count):
            reply = self._protocol.expect(len(due))
            send()
            check(await reply, due)

    async def upload(self, size: int) -> None:
        stream_id = self._quic.get_next_available_stream_id()
        chunk = UPLOAD * CHUNK
        reply = self._protocol.expect(8)
        for left in range(size // CHUNK - 1, -1, -1):
            await self._quic.send_stream_data_drained(stream_id, chunk, not left)
        check_size(int.from_bytes(await reply), size)

    async def download(self, size: int) -> None:
        done = self._protocol.expect(size)
        stream_id = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream_id, DOWNLOAD + size.to_bytes(8), True)
        await done

    async def open_idle(self, count: int) -> None:
        replies = self._protocol.expect(count * len(MESSAGE))
        for _ in range(count):
            self._quic.send_stream_data(self._quic.get_next_available_stream_id(), MESSAGE)
        await replies


class CallbackSession(Session):
    async def _exchange(self, count: int, send: Callable[[], object], due: bytes) -> None:
        done = asyncio.get_running_loop().create_future()
        left = count

        def step(data: bytes | memoryview) -> None:
            nonlocal left
            if not data:
                return
            left -= 1
            if data != due:
                done.set_exception(BenchError(f"the echo is wrong: {bytes(data)!r}"))
            elif left:
                send()
            else:
                done.set_result(None)

        self._protocol.step = step
        send()
        await done
        self._protocol.step = None


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
            yield (CallbackSession if self._peer.variant == "callback" else Session)(protocol)

    def run(self, function: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(function())
