"""Cancelling any operation at any of its steps leaves session and connection usable, or closed with a code, and nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from tests.test_quic_cancellation import CancelAtStep, at_every_step
from tests.webtransport_pairs import (
    HOST,
    PORT,
    Visitors,
    ask,
    certificate,
    check_credit,
    check_nothing_is_held,
    connect,
    echo,
    serving,
    settle,
    stream_pair,
    visit,
    ws_echo,
)
from trio_wt import (
    ConnectionClosed,
    HandshakeFailed,
    IncompleteRead,
    ReceiveStream,
    Request,
    ServerTLS,
    Stream,
    WebTransportConnection,
    WebTransportSession,
    serve_webtransport,
)
from trio_wt.testing import Network

# What each end of the stream that operations use gets before them.
CONTENT = bytes(i % 251 for i in range(6000)) + b"\n"
WINDOW, SEND_BUFFER = 4000, 2000
SESSION_WINDOW = 9000


# ---- what one does with a session


@dataclass
class Ends:
    """A session of little room, another on the same connection, and a stream on the first."""

    network: Network
    connection: WebTransportConnection
    client: WebTransportSession
    server: WebTransportSession
    other: WebTransportSession
    their_other: WebTransportSession
    a: Stream
    b: Stream
    # What of the stream's bytes the operation itself has received.
    received: bytearray = field(default_factory=bytearray)


async def on_request(request: Request) -> None:
    if request.path == "/slow":
        await trio.sleep(0.01)
    if not request.asks_for_session:
        request.respond(200, body=bytes(5000))


@asynccontextmanager
async def narrow() -> AsyncIterator[Ends]:
    """Windows and buffers so small that operations wait, and a way that is slow."""
    network, visitors = Network(delay=0.003, rate=10**6), Visitors()
    settings = {
        "stream_window": WINDOW,
        "max_stream_window": WINDOW,
        "session_window": SESSION_WINDOW,
        "max_session_window": SESSION_WINDOW,
    }
    limits = {"max_streams": 3, "max_receive_streams": 3}

    async def handler(session: WebTransportSession) -> None:
        if session.request.path == "/slow":
            await echo(session)
        else:
            await visitors(session)

    async with serving(
        handler,
        network,
        websocket_handler=ws_echo,
        on_request=on_request,
        **settings,
        **limits,
    ):
        async with connect(network, **settings, send_buffer=SEND_BUFFER) as connection:
            async with connection.open_session("/other") as other:
                their_other = await visitors.next()
                async with connection.open_session("/") as client:
                    server = await visitors.next()
                    async with stream_pair(client, server) as (a, b):
                        yield Ends(network, connection, client, server, other, their_other, a, b)
                    await settle()
                    check_credit(client, server)
                    check_credit(other, their_other)
                    their_connection = server.connection
            await settle()
            # Nor is anything left of the sessions.
            check_nothing_is_held(connection)
            check_nothing_is_held(their_connection)


async def open_a_stream(ends: Ends) -> None:
    async with ends.client.open_stream() as stream:
        await stream.send_all(b"opened", eof=True)
        await stream.receive_all()


async def open_past_the_limit(ends: Ends) -> None:
    async with ends.client.open_send_stream() as one, ends.client.open_send_stream() as two:
        async with ends.client.open_send_stream() as three:
            for stream in (one, two, three):
                await stream.send_all(b"opened")
        async with ends.client.open_send_stream() as four:
            await four.send_all(b"opened")


async def send_past_the_window(ends: Ends) -> None:
    """The session's window, which both streams share."""
    async with ends.client.open_send_stream() as one:
        await one.send_all(bytes(SESSION_WINDOW + 4000))


async def take(ends: Ends, data: Awaitable[bytes]) -> None:
    ends.received += await data


async def iterate(ends: Ends) -> None:
    async for data in ends.a:
        ends.received += data


async def take_a_stream(ends: Ends) -> None:
    async with await ends.client.incoming_streams.receive() as stream:
        assert await stream.receive_all() == b"theirs"


async def take_a_receive_stream(ends: Ends) -> None:
    async with await ends.client.incoming_receive_streams.receive() as stream:
        assert await stream.receive_all() == b"theirs"


async def open_a_session(ends: Ends) -> None:
    async with ends.connection.open_session("/slow") as session:
        assert await ask(session, b"x") == b"x"


async def open_a_websocket(ends: Ends) -> None:
    async with ends.connection.open_websocket("/slow") as websocket:
        await websocket.send(bytes(5000))
        assert await websocket.receive() == bytes(5000)


async def make_a_request(ends: Ends) -> None:
    response = await ends.connection.request("GET", "/slow")
    assert response.body == bytes(5000)


Operation = Callable[[Ends], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "send_all": lambda ends: ends.a.send_all(b"short"),
    "send_all of much": lambda ends: ends.a.send_all(CONTENT * 3),
    "send_all with eof": lambda ends: ends.a.send_all(CONTENT * 3, eof=True),
    "send_all of a memoryview": lambda ends: ends.a.send_all(memoryview(CONTENT)),
    "send_eof": lambda ends: ends.a.send_eof(),
    "wait_send_all_might_not_block": lambda ends: ends.a.wait_send_all_might_not_block(),
    "receive_some": lambda ends: take(ends, ends.a.receive_some()),
    "receive_exactly": lambda ends: take(ends, ends.a.receive_exactly(len(CONTENT))),
    "receive_until": lambda ends: take(ends, ends.a.receive_until(b"\n")),
    "receive_all": lambda ends: take(ends, ends.a.receive_all()),
    "iteration": iterate,
    "stream.aclose": lambda ends: ends.a.aclose(),
    "open_stream": open_a_stream,
    "open_send_stream": open_past_the_limit,
    "the session's window": send_past_the_window,
    "incoming_streams": take_a_stream,
    "incoming_receive_streams": take_a_receive_stream,
    "incoming_streams.aclose": lambda ends: ends.client.incoming_streams.aclose(),
    "datagrams.send": lambda ends: ends.client.datagrams.send(b"d"),
    "datagrams.receive": lambda ends: ends.client.datagrams.receive(),
    "datagrams.aclose": lambda ends: ends.client.datagrams.aclose(),
    "wait_draining": lambda ends: ends.client.wait_draining(),
    "ping": lambda ends: ends.connection.ping(),
    "migrate": lambda ends: ends.connection.migrate(socket=ends.network.socket()),
    "open_session": open_a_session,
    "open_websocket": open_a_websocket,
    "request": make_a_request,
}


async def serve_all(ends: Ends, questions: list[bytes], echoed: bytearray) -> None:
    """The server's side: what every operation of the client's waits for, after a while."""
    server, b = ends.server, ends.b

    async def echo_stream(stream: Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                questions.append(await stream.receive_all())
                await stream.send_all(questions[-1])

    async def send_theirs() -> None:
        async with server.open_stream() as stream, server.open_send_stream() as one_way:
            await stream.send_all(b"theirs", eof=True)
            await one_way.send_all(b"theirs", eof=True)
            await server.datagrams.send(b"theirs")
            server.drain()
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_all()

    async def send_content() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for at in range(0, len(CONTENT), 700):
                await b.send_all(CONTENT[at : at + 700])
                await trio.sleep(0.002)
            await b.send_eof()

    async def receive_content() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in b:
                echoed.extend(data)

    async def read(stream: ReceiveStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_all()

    async def take_one_way() -> None:
        async for stream in server.incoming_receive_streams:
            nursery.start_soon(read, stream)

    await trio.sleep(0.01)
    async with trio.open_nursery() as nursery:
        for task in (send_theirs, send_content, receive_content, take_one_way):
            nursery.start_soon(task)
        async for stream in server.incoming_streams:
            nursery.start_soon(echo_stream, stream)


async def cancelled_at(step: int, name: str) -> bool:
    """Cancel the operation at a step, and look at what is left; whether it was cancelled."""
    instrument = CancelAtStep(step)
    questions: list[bytes] = []
    echoed = bytearray()
    sent = {
        "send_all": b"short",
        "send_all of much": CONTENT * 3,
        "send_all with eof": CONTENT * 3,
        "send_all of a memoryview": CONTENT,
    }.get(name, b"")
    async with narrow() as ends, trio.open_nursery() as nursery:
        nursery.start_soon(serve_all, ends, questions, echoed)
        if name == "wait_send_all_might_not_block":
            # Less the stream's head, and the byte that was sent on it before.
            sent = bytes(WINDOW + SEND_BUFFER - 10)
            await ends.a.send_all(sent)
        async with instrument.applied():
            await OPERATIONS[name](ends)
        cancelled = instrument.scope.cancelled_caught
        with trio.fail_after(60):
            # The session is as good as before, both ways and of every kind.
            assert ends.client.closed is ends.server.closed is ends.connection.closed is None
            assert await ends.connection.ping() > 0
            if name != "datagrams.aclose":
                await ends.client.datagrams.send(b"mine")
                while await ends.server.datagrams.receive() != b"mine":
                    pass
                if not (name == "datagrams.receive" and not cancelled):
                    assert await ends.client.datagrams.receive() == b"theirs"
            assert await ask(ends.client, b"still there?") == b"still there?"
            assert questions[-1] == b"still there?"
            # What was received is the beginning of it, each byte once, and the rest is still there.
            if name != "stream.aclose":
                while len(ends.received) < len(CONTENT):
                    ends.received += await ends.a.receive_some()
                assert ends.received == CONTENT
                assert await ends.a.receive_some() == b""
            # What was sent too, though it may have been cut off.
            await ends.a.send_eof()
            await settle()
            assert sent.startswith(echoed)
            assert cancelled or echoed == sent
            if name == "incoming_streams.aclose":
                with pytest.raises(trio.ClosedResourceError):
                    ends.client.incoming_streams.receive_nowait()
            else:
                await check_their_streams(ends, name, cancelled=cancelled)
            # The other session is none the worse.
            async with (
                stream_pair(ends.other, ends.their_other),
                stream_pair(ends.their_other, ends.other),
            ):
                pass
        await settle()
        nursery.cancel_scope.cancel()
        # Nothing waits any more, and no more streams are held than the pair's.
        assert not ends.client._carrier.blocked
        assert not any(ends.client._carrier._openers)
        assert not ends.connection._driver.openers
        assert not ends.connection._driver._pings
        assert ends.connection.open_sessions == ends.server.connection.open_sessions == 2
        assert ends.connection.statistics().unsent_bytes == 0
        assert ends.client.statistics().open_streams <= 1
        assert len(ends.client._carrier._counted) <= 1
        if name == "migrate":
            await trio.sleep(1)  # for so long a path that was left may be heard
        assert len(ends.connection._driver.endpoint.sockets) == 1
        if name == "incoming_streams.aclose":
            await settle()
    return cancelled


async def check_their_streams(ends: Ends, name: str, *, cancelled: bool) -> None:
    """The streams that the server has opened are there, unless the operation was to take them."""
    for channel, taken_by in (
        (ends.client.incoming_streams, "incoming_streams"),
        (ends.client.incoming_receive_streams, "incoming_receive_streams"),
    ):
        if name == taken_by:
            # Cancelled between its taking and its end, its block was left, and has reset it.
            if not cancelled:
                assert not len(channel)  # type: ignore[arg-type]
            while len(channel):  # type: ignore[arg-type]
                await (await channel.receive()).aclose()  # type: ignore[attr-defined]
            continue
        async with await channel.receive() as stream:  # type: ignore[attr-defined]
            assert await stream.receive_all() == b"theirs"


@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_every_checkpoint_in_turn(name: str) -> None:
    """With enough steps the last one is reached: the operation then completes uncancelled."""

    async def check(step: int) -> bool:
        return await cancelled_at(step, name)

    at_every_step(check)


# ---- closing


@pytest.mark.parametrize("graceful", [True, False])
def test_a_cancelled_close_has_closed(graceful: bool) -> None:
    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        network, visitors = Network(delay=0.003, rate=10**6), Visitors()
        window = {"stream_window": WINDOW, "max_stream_window": WINDOW}
        async with serving(visitors, network, **window), connect(network) as connection:
            async with connection.open_session() as client:
                server = await visitors.next()
                async with stream_pair(client, server) as (a, b):
                    await a.send_all(CONTENT[: WINDOW + 1000], eof=True)
                    async with trio.open_nursery() as nursery:

                        @nursery.start_soon
                        async def read() -> None:
                            await trio.sleep(0.02)
                            with contextlib.suppress(trio.BrokenResourceError):
                                await b.receive_all()

                        async with instrument.applied():
                            await client.aclose(9, "bye", graceful=graceful)
                    assert client.closed is not None
                    assert client.closed.code == 9
                    with trio.fail_after(1):
                        assert (await server.wait_closed()).code == 9
                    # Again, and it is none.
                    await client.aclose(10)
                    assert client.closed.code == 9
            await settle()
            check_nothing_is_held(connection)
            check_nothing_is_held(server.connection)
        return instrument.scope.cancelled_caught

    at_every_step(check)


def test_a_cancelled_wait_for_the_end_ends_nothing() -> None:
    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        network, visitors = Network(delay=0.003), Visitors()
        async with serving(visitors, network), visit(network) as client:
            server = await visitors.next()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def close() -> None:
                    await trio.sleep(0.05)
                    await server.aclose(6)

                async with instrument.applied():
                    assert (await client.wait_closed()).code == 6
                if instrument.scope.cancelled_caught:
                    assert client.closed is None
                assert (await client.wait_closed()).code == 6
        return instrument.scope.cancelled_caught

    at_every_step(check)


# ---- opening and serving


CLIENT = ("client.test", 1)


class Host:
    """A server, and a look at what is left of it and its clients."""

    def __init__(self) -> None:
        self.network = Network(delay=0.003)
        self.handling = 0
        self.connections: set[WebTransportConnection] = set()

    async def __call__(self, session: WebTransportSession) -> None:
        self.handling += 1
        self.connections.add(session.connection)
        try:
            await echo(session)
        finally:
            self.handling -= 1

    async def serve(
        self, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED, **options: object
    ) -> None:
        await serve_webtransport(
            self,
            tls=ServerTLS(certificate()),
            sockets=[self.network.socket((HOST, PORT))],
            websocket_handler=ws_echo,
            idle_timeout=20,
            task_status=task_status,
            **options,  # type: ignore[arg-type]
        )

    def assert_free(self, *addresses: tuple[str, int]) -> None:
        """These addresses' sockets are closed: they can be used again."""
        for address in addresses:
            self.network.socket(address).close()


async def open_alone(host: Host) -> None:
    async with visit(host.network, socket=host.network.socket(CLIENT), idle_timeout=20) as session:
        assert await ask(session, b"x") == b"x"


async def open_several(host: Host) -> None:
    socket = host.network.socket(CLIENT)
    async with connect(host.network, socket=socket, idle_timeout=20) as connection:
        async with connection.open_session() as one, connection.open_session() as two:
            for session in (one, two):
                assert await ask(session, b"x") == b"x"


async def open_in_vain(host: Host) -> None:
    with pytest.raises(HandshakeFailed):
        async with visit(host.network, socket=host.network.socket(CLIENT), origin="https://x.y"):
            pytest.fail("that Origin is not allowed")


async def fail_inside(host: Host) -> None:
    try:
        async with visit(host.network, socket=host.network.socket(CLIENT)) as session:
            await session.connection.ping()
            raise ZeroDivisionError
    except ZeroDivisionError:
        await trio.lowlevel.checkpoint()


async def speak_websocket(host: Host) -> None:
    async with connect(host.network, socket=host.network.socket(CLIENT)) as connection:
        async with connection.open_websocket("/") as websocket:
            await websocket.send("x")
            assert await websocket.receive() == "x"


@pytest.mark.parametrize(
    "operation",
    [open_alone, open_several, open_in_vain, fail_inside, speak_websocket],
    ids=lambda f: f.__name__,
)
def test_a_cancelled_client_leaves_nothing(operation: Callable[[Host], Awaitable[None]]) -> None:
    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        host = Host()
        task = trio.lowlevel.current_task()
        async with trio.open_nursery() as nursery:
            await nursery.start(host.serve)
            async with instrument.applied():
                await operation(host)
            assert len(task.child_nurseries) == 1
            host.assert_free(CLIENT)
            # The server is rid of it too: it was told, or at least gives up.
            await trio.sleep(31)
            assert host.handling == 0
            for connection in host.connections:
                assert connection.closed is not None
                check_nothing_is_held(connection)
            # The next one is none the worse.
            async with visit(host.network) as session:
                assert await ask(session, b"next") == b"next"
            nursery.cancel_scope.cancel()
        host.assert_free((HOST, PORT))
        return instrument.scope.cancelled_caught

    at_every_step(check)


def test_a_cancelled_block_has_told_the_server() -> None:
    """From the step on at which the block was entered, the server is told at once, with the code."""
    codes: list[int] = []

    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        network = Network(delay=0.003)
        entered = handled = False

        async def handler(session: WebTransportSession) -> None:
            nonlocal handled
            handled = True
            end = await session.wait_closed()
            if entered:
                codes.append(end.code)
            assert end.remote
            assert trio.current_time() < 1

        async with serving(handler, network):
            async with instrument.applied():
                async with visit(network, cancelled_code=44) as session:
                    entered = True
                    for _ in range(3):
                        await session.connection.ping()
            await settle()
            assert handled or not entered or instrument.scope.cancelled_caught
        return instrument.scope.cancelled_caught

    at_every_step(check)
    assert set(codes) == {0, 44}


@pytest.mark.parametrize("how", ["cancelled", "too slow"])
async def test_an_opening_that_is_cancelled_as_the_answer_comes_leaves_nothing(how: str) -> None:
    """In the very tick: the session is there already, with the streams that came right behind the answer."""
    network = Network(delay=0.01)

    async def handler(session: WebTransportSession) -> None:
        session.datagrams.send_nowait(b"x")
        async with session.open_send_stream() as one, session.open_stream() as two:
            await one.send_all(bytes(3000))
            await two.send_all(b"x")
            await session.wait_closed()

    opened = given_up = 0
    servers: set[WebTransportConnection] = set()

    async def handle(session: WebTransportSession) -> None:
        servers.add(session.connection)
        with contextlib.suppress(ConnectionClosed):
            await handler(session)

    async with serving(handle, network, max_sessions=100), connect(network) as connection:
        started = trio.current_time()
        async with connection.open_session():
            pass
        await trio.sleep(1)
        # From the second one on nothing but the round trip counts.
        started = trio.current_time()
        async with connection.open_session():
            took = trio.current_time() - started
        for _ in range(60):
            await trio.sleep(1)
            options = {"handshake_timeout": took} if how == "too slow" else {}
            with trio.move_on_after(took if how == "cancelled" else 10):
                try:
                    async with connection.open_session(**options):  # type: ignore[arg-type]
                        opened += 1
                except HandshakeFailed:
                    given_up += 1
                    continue
        await trio.sleep(1)
        (server,) = servers
        check_nothing_is_held(connection)
        check_nothing_is_held(server)
        assert server.open_sessions == 0
        assert connection.closed is None
        # Either happens, as the tasks run; otherwise this shows nothing.
        assert 0 < opened < 60
        assert (given_up > 0) == (how == "too slow")


@pytest.mark.parametrize("shut_down", [False, True])
def test_a_cancelled_server_leaves_nothing(shut_down: bool) -> None:
    """Its own task is cancelled at each of its steps, while clients come, stay and go."""

    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        host = Host()
        shutdown = trio.Event()
        clients_ended = 0

        async def client(pause: float) -> None:
            nonlocal clients_ended
            await trio.sleep(pause)
            with contextlib.suppress(HandshakeFailed, ConnectionClosed, IncompleteRead):
                async with visit(host.network, handshake_timeout=3, idle_timeout=20) as session:
                    for _ in range(3):
                        assert await ask(session, b"x") == b"x"
                        await trio.sleep(0.01)
            clients_ended += 1

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def serve() -> None:
                async with instrument.applied():
                    await host.serve(shutdown=shutdown)

            for pause in (0.001, 0.02, 0.1):
                nursery.start_soon(client, pause)
            await trio.sleep(0.12)
            if shut_down:
                shutdown.set()
            await trio.sleep(50)
            if not (shut_down or instrument.scope.cancel_called):
                instrument.scope.cancel()
                await settle()
                instrument.scope = trio.CancelScope()
        assert clients_ended == 3
        assert host.handling == 0
        host.assert_free((HOST, PORT))
        return instrument.scope.cancelled_caught

    at_every_step(check)


def test_handlers_that_are_cancelled_at_any_step_end_their_sessions_alone() -> None:
    async def check(step: int) -> bool:
        instrument = CancelAtStep(step)
        network = Network(delay=0.003)

        async def handler(session: WebTransportSession) -> None:
            async for stream in session.incoming_streams:
                question = await stream.receive_all()
                if question == b"cancel me":
                    # From here on the session's own scope is cancelled at some step.
                    instrument.scope = session.cancel_scope
                    instrument.task = trio.lowlevel.current_task()
                    trio.lowlevel.add_instrument(instrument)
                    if not step:
                        session.cancel_scope.cancel()
                async with stream:
                    await stream.send_all(question)

        async with serving(handler, network), connect(network) as connection:
            async with connection.open_session() as other:
                async with connection.open_session() as session:
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await ask(session, b"cancel me") == b"cancel me"
                        await session.aclose()
                    await settle()
                    trio.lowlevel.remove_instrument(instrument)
                    end = session.closed
                    assert end is not None
                    # It was cancelled, or had come to its end on its own.
                    assert end.code == end.remote
                assert await ask(other, b"x") == b"x"
                assert connection.open_sessions == 1
            await settle()
            check_nothing_is_held(connection)
        return instrument.scope.cancelled_caught

    at_every_step(check)
