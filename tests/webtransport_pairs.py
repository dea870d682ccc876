"""Sessions, servers and connections on networks in memory: what every test of WebTransport needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from tests.quic_pairs import (
    HOST,
    PORT,
    ask,
    certificate,
    client_tls,
    echo,
    one_way_pair,
    settle,
    stream_pair,
)
from trio_wt import (
    SendStream,
    ServerTLS,
    WebSocket,
    WebTransportConnection,
    WebTransportSession,
    open_webtransport,
    open_webtransport_connection,
    serve_webtransport,
)
from trio_wt.testing import Network

__all__ = [
    "ws_echo",
    "send_until_blocked",
    "check_throughput",
    "Guests",
    "HOST",
    "PORT",
    "URL",
    "Handler",
    "Visitors",
    "ask",
    "certificate",
    "check_connection_credit",
    "check_credit",
    "check_nothing_is_held",
    "client_tls",
    "connect",
    "echo",
    "one_way_pair",
    "open_loose",
    "serving",
    "session_pair",
    "settle",
    "start_serving",
    "stay",
    "stream_pair",
    "visit",
]

URL = f"https://{HOST}:{PORT}"

Handler = Callable[[WebTransportSession], Awaitable[object]]


async def stay(session: WebTransportSession) -> None:
    """A handler that lets its session be, until the client has had enough."""
    await session.wait_closed()


async def ws_echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def start_serving(
    nursery: trio.Nursery, handler: Handler | None, network: Network, **options: object
) -> trio.CancelScope:
    """Start a server on the network; what cancels it."""
    options = {"tls": ServerTLS(certificate()), **options}
    options.setdefault("sockets", [network.socket((HOST, PORT))])
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        with scope:
            await serve_webtransport(
                handler,
                task_status=task_status,
                **options,  # type: ignore[arg-type]
            )

    await nursery.start(serve)
    return scope


@asynccontextmanager
async def serving(
    handler: Handler | None, network: Network, **options: object
) -> AsyncIterator[None]:
    """A server on the network for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        scope = await start_serving(nursery, handler, network, **options)
        yield
        scope.cancel()


def visit(
    network: Network, path: str = "/", **options: object
) -> AbstractAsyncContextManager[WebTransportSession]:
    """A session with it, on a connection of its own."""
    options = {"tls": client_tls(), **options}
    if not {"endpoint", "socket"} & set(options):
        options["socket"] = network.socket()
    return open_webtransport(URL + path, **options)  # type: ignore[arg-type]


def connect(
    network: Network, **options: object
) -> AbstractAsyncContextManager[WebTransportConnection]:
    """A connection to it, for several sessions."""
    options = {"tls": client_tls(), **options}
    if not {"endpoint", "socket"} & set(options):
        options["socket"] = network.socket()
    return open_webtransport_connection(URL, **options)  # type: ignore[arg-type]


class Visitors:
    """A handler whose sessions the test takes, in the order in which they have come. They stay until the client leaves."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[WebTransportSession](1000)

    async def __call__(self, session: WebTransportSession) -> None:
        self._send.send_nowait(session)
        await session.wait_closed()

    async def next(self) -> WebTransportSession:
        return await self._receive.receive()


class Guests:
    """A handler whose WebSockets the test takes; their blocks last a little longer than they do."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[WebSocket](1000)

    async def __call__(self, websocket: WebSocket) -> None:
        self._send.send_nowait(websocket)
        await websocket.wait_closed()
        await settle()

    async def next(self) -> WebSocket:
        return await self._receive.receive()


@asynccontextmanager
async def session_pair(
    connection: WebTransportConnection, visitors: Visitors, path: str = "/", **options: object
) -> AsyncIterator[tuple[WebTransportSession, WebTransportSession]]:
    """Both ends of one more session on a connection."""
    async with connection.open_session(path, **options) as ours:  # type: ignore[arg-type]
        yield ours, await visitors.next()


async def open_loose(session: WebTransportSession, *, unidirectional: bool = False) -> SendStream:
    """A stream without a block, for tests that want many of them at once."""
    opening = session.open_send_stream() if unidirectional else session.open_stream()
    stream: SendStream = await opening.__aenter__()  # type: ignore[attr-defined]
    stream.cancel_scope.__exit__(None, None, None)
    return stream


async def send_until_blocked(stream: SendStream, piece: int = 500) -> int:
    """How much of a stream is taken before a send has to wait."""
    sent = 0
    with trio.move_on_after(1) as scope:
        while True:
            await stream.send_all(bytes(piece))
            sent += piece
    assert scope.cancelled_caught
    return sent


async def check_throughput(a: WebTransportSession, b: WebTransportSession, size: int) -> None:
    """More than one window's worth still gets through."""
    async with one_way_pair(a, b) as (sender, receiver), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            await sender.send_all(bytes(size), eof=True)

        with trio.fail_after(60):
            assert await receiver.receive_all(size) == bytes(size)


def check_credit(a: WebTransportSession, b: WebTransportSession) -> None:
    """What one side takes for sent, the other has counted, and has given back; both ways."""
    for sender, receiver in ((a, b), (b, a)):
        sending, receiving = sender._carrier._credit, receiver._carrier._credit
        assert sending is not None
        assert receiving is not None
        assert sending._sent == receiving._received
        # The limit is raised in steps.
        assert receiving._window.limit - receiving._received >= receiving._window.size // 2
        assert sending._max_data == receiving._window.limit


def check_nothing_is_held(connection: WebTransportConnection) -> None:
    """No stream but the protocol's own three of each side, and nothing that waits for one."""
    driver = connection._driver
    assert not driver.blocked
    assert not driver.openers
    kinds = {type(sink).__name__ for sink in driver._streams.values()}
    assert kinds <= {"_Critical"}
    sessions = connection._sessions
    assert not sessions.open
    assert not sessions._pending
    assert not sessions._early
    assert not sessions._early_datagrams
    assert not connection._http3.protocol._messages
    assert not connection._http3.protocol._heads_only
    assert not connection._http3._requests
    figures = connection.statistics()
    assert figures.unread_bytes == figures.unsent_bytes == figures.unaccepted_streams == 0
    # The peer's control stream, and ours.
    assert figures.open_streams <= 2
    check_connection_credit(connection)


def check_connection_credit(connection: WebTransportConnection) -> None:
    """All that has come counts as taken, once each, but for what waits for the application."""
    engine = connection._driver.engine
    received = engine._local_max_data.used
    assert received - engine._window.consumed == connection.statistics().unread_bytes
