"""The server's side: its handlers and how they end, shutting down, and clients that leave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.certificates import make
from tests.http3_peers import (
    CapsuleType,
    Http3Code,
    close_capsule,
    raw_client,
    settings_of,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    Handler,
    Visitors,
    ask,
    certificate,
    connect,
    echo,
    serving,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    Request,
    ServerTLS,
    StreamReset,
    WebTransportSession,
    serve_webtransport,
)
from trio_wt.testing import Network

CANCELLED, FAILED = 71, 72
CODES = {"cancelled_code": CANCELLED, "failed_code": FAILED}


# ---- handlers


async def test_how_a_handler_ends_decides_the_code(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: WebTransportSession) -> None:
        how = session.request.path
        if how == "/raise":
            raise ZeroDivisionError
        if how == "/cancel":
            session.cancel_scope.cancel()
            await trio.sleep_forever()
        if how == "/close":
            await session.aclose(5, "mine")
        if how == "/group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ZeroDivisionError
        if how == "/stay":
            await session.wait_closed()

    network = Network()
    async with serving(handler, network, **CODES), connect(network) as connection:
        async with connection.open_session("/stay") as other:
            for how, code, reason in (
                ("/return", 0, ""),
                ("/raise", FAILED, ""),
                ("/group", FAILED, ""),
                ("/cancel", CANCELLED, ""),
                ("/close", 5, "mine"),
            ):
                async with connection.open_session(how) as session:
                    end = await session.wait_closed()
                    assert (end.code, end.reason, end.remote) == (code, reason, True)
                    kind = ConnectionClosedError if code else ConnectionClosedOK
                    assert type(end) is kind
            # Neither their connection, nor another session on it.
            assert other.closed is connection.closed is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "a handler failed; its session was closed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_that_returns_sees_out_what_it_has_sent() -> None:
    async def handler(session: WebTransportSession) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(bytes(100_000))

    network = Network(seed=1, loss=0.1)
    async with serving(handler, network, close_timeout=60), visit(network) as session:
        async with await session.incoming_receive_streams.receive() as stream:
            assert await stream.receive_all() == bytes(100_000)
        assert type(await session.wait_closed()) is ConnectionClosedOK


async def test_running_into_the_end_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: WebTransportSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.datagrams.receive)
            async for stream in session.incoming_streams:
                await stream.receive_some()
                await stream.receive_some()

    network = Network()
    async with serving(handler, network, idle_timeout=5):
        for how in ("clean", "code", "gone"):
            async with visit(network) as session, session.open_stream() as stream:
                await stream.send_all(b"x")
                await settle()
                if how == "code":
                    session.close_now(5)
                elif how == "gone":
                    network.blackhole(20)
                    await trio.sleep(10)
        await trio.sleep(20)
    assert not caplog.records


async def test_handler_errors_may_go_on_to_the_nursery() -> None:
    async def handler(session: WebTransportSession) -> None:
        await session.incoming_streams.receive()
        raise ZeroDivisionError

    network = Network()
    ends: list[ConnectionClosed] = []

    async def visitor(*, fails: bool) -> None:
        async with visit(network) as session:
            if fails:
                await trio.sleep(1)
                # To open one is enough: it has a head.
                async with session.open_stream():
                    await session.wait_closed()
            ends.append(await session.wait_closed())

    async with trio.open_nursery() as nursery:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with serving(handler, network, handler_errors="raise", **CODES):
                nursery.start_soon(partial(visitor, fails=True))
                nursery.start_soon(partial(visitor, fails=False))
                await trio.sleep_forever()
    assert sorted(end.code for end in ends) == [CANCELLED, FAILED]


async def test_handlers_run_under_the_nursery_that_was_given() -> None:
    ancestors: list[set[object]] = []

    async def handler(session: WebTransportSession) -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        found: set[object] = set()
        while nursery is not None:
            found.add(nursery)
            nursery = nursery.parent_task.parent_nursery
        ancestors.append(found)
        await echo(session)

    network = Network()
    async with trio.open_nursery() as handlers:
        async with serving(handler, network, handler_nursery=handlers):
            async with visit(network) as session:
                assert await ask(session, b"x") == b"x"
            await settle()
            assert len(ancestors) == 1
            assert handlers in ancestors[0]
            async with visit(network) as session:
                assert await ask(session, b"x") == b"x"
                lost = session
        await settle()
        assert not handlers.child_tasks
        assert lost.closed is not None


async def test_a_client_that_leaves_at_once_leaves_nothing() -> None:
    network, visitors = Network(), Visitors()
    async with shutting_down(visitors, network) as (shutdown, returned):
        for _ in range(20):
            async with visit(network):
                pass
        await settle()
        # Nobody is there to wait for.
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


async def test_what_was_sent_before_leaving_is_handled() -> None:
    """Connect, say one thing, leave: fifty times."""
    got: list[bytes] = []

    async def handler(session: WebTransportSession) -> None:
        async for stream in session.incoming_receive_streams:
            async with stream:
                got.append(await stream.receive_all())

    network = Network()
    async with serving(handler, network):
        for number in range(50):
            async with visit(network) as session:
                async with session.open_send_stream() as stream:
                    await stream.send_all(b"%d" % number)
        await settle()
    assert got == [b"%d" % number for number in range(50)]


async def test_handlers_of_one_connection_run_at_once_and_end_alone() -> None:
    running: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        running.append(session.request.path)
        try:
            async for stream in session.incoming_streams:
                async with stream:
                    if await stream.receive_all() == b"fail":
                        raise ZeroDivisionError
                    await stream.send_all(session.request.path.encode())
        finally:
            running.remove(session.request.path)

    network = Network()
    async with serving(handler, network), connect(network) as connection:
        async with connection.open_session("/a") as a, connection.open_session("/b") as b:
            for session in (a, b, a):
                assert await ask(session, b"x") == session.request.path.encode()
            assert sorted(running) == ["/a", "/b"]
            with pytest.raises((ConnectionClosedError, StreamReset)):
                await ask(a, b"fail")
            assert (await a.wait_closed()).code == 2
            assert running == ["/b"]
            assert await ask(b, b"x") == b"/b"
    assert not running


async def test_a_cancelled_server_closes_its_sessions() -> None:
    network = Network()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[object]) -> None:
            with scope:
                await serve_webtransport(
                    stay,
                    tls=ServerTLS(certificate()),
                    sockets=[network.socket((HOST, PORT))],
                    task_status=task_status,
                    cancelled_code=CANCELLED,
                )

        await nursery.start(serve)
        async with visit(network) as one, connect(network) as connection:
            async with connection.open_session() as two, connection.open_session() as three:
                scope.cancel()
                started = trio.current_time()
                for session in (one, two, three):
                    end = await session.wait_closed()
                    assert (end.code, end.remote) == (CANCELLED, True)
                assert trio.current_time() - started < 1
                end = await connection.wait_closed()
                assert end.code == Http3Code.NO_ERROR
    network.socket((HOST, PORT)).close()  # it is free again


async def test_a_handler_is_needed_or_something_else() -> None:
    with pytest.raises(ValueError, match="give a handler"):
        await serve_webtransport(None, 0, tls=ServerTLS(certificate()))
    with pytest.raises(ValueError, match="exactly one of port and sockets"):
        await serve_webtransport(stay, tls=ServerTLS(certificate()))
    with pytest.raises(ValueError, match="origins"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), origins="same")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not one string"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), subprotocols="chat")
    with pytest.raises(ValueError, match="repeated"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), subprotocols=["a", "a"])
    with pytest.raises(ValueError, match="handler_errors"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), handler_errors="no")  # type: ignore[arg-type]


async def test_certificates_may_be_renewed() -> None:
    made = make((HOST,))
    new = Certificate.from_pem(made.pem, made.key_pem)
    current = [ServerTLS(certificate())]
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, tls=lambda: current[0]):
        async with visit(network) as session:
            assert session.connection.closed is None
            current[0] = ServerTLS(new)
            async with visit(network, tls=ClientTLS(server_certificate_hashes=[new.sha256])):
                pass


# ---- shutting down


@asynccontextmanager
async def shutting_down(
    handler: Handler, network: Network, **options: object
) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    """A server with an event that shuts it down, and one that is set when it has returned."""
    shutdown, returned = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        await serve_webtransport(
            handler,
            tls=ServerTLS(certificate()),
            sockets=[network.socket((HOST, PORT))],
            shutdown=shutdown,
            task_status=task_status,
            **options,  # type: ignore[arg-type]
        )
        returned.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield shutdown, returned
        nursery.cancel_scope.cancel()


async def test_a_shutdown_drains_sessions_and_accepts_nobody() -> None:
    network = Network()
    async with shutting_down(echo, network, shutdown_timeout=100) as (shutdown, returned):
        async with connect(network) as connection:
            async with connection.open_session() as one, connection.open_session() as two:
                assert await ask(one, b"x") == b"x"
                shutdown.set()
                for session in (one, two):
                    await session.wait_draining()
                    assert session.draining
                assert trio.current_time() < 1
                assert connection.going_away
                # What is there goes on.
                await trio.sleep(20)
                assert not returned.is_set()
                assert await ask(one, b"y") == b"y"
                with pytest.raises(HandshakeFailed, match="GOAWAY"):
                    async with connection.open_session():
                        pytest.fail("it is shutting down")
                with pytest.raises(HandshakeFailed):
                    async with visit(network, handshake_timeout=3):
                        pytest.fail("it is shutting down")
                two.close_now()
                await settle()
                assert not returned.is_set()
            await settle()
        await settle()
        assert returned.is_set()
        network.socket((HOST, PORT)).close()  # it is free again


async def test_a_connection_without_sessions_does_not_hold_up_a_shutdown() -> None:
    """Its client is told by GOAWAY, and its connection closed."""
    network = Network()
    async with shutting_down(echo, network, shutdown_timeout=100) as (shutdown, returned):
        async with connect(network) as connection:
            async with connection.open_session() as session:
                assert await ask(session, b"x") == b"x"
            await settle()
            shutdown.set()
            with trio.fail_after(10):
                end = await connection.wait_closed()
            assert type(end) is ConnectionClosedOK
            await settle()
            assert returned.is_set()


async def test_a_peer_is_told_by_goaway_and_drain() -> None:
    network = Network()
    async with shutting_down(stay, network, shutdown_timeout=20) as (shutdown, returned):
        async with raw_client(network) as peer:
            for _ in range(3):
                exchange = await peer.open_session()
            await settle()
            before = len(peer.control_heard)
            shutdown.set()
            assert await exchange.receive_capsule() == (CapsuleType.DRAIN_SESSION, b"")
            await settle()
            # Requests 0, 4 and 8 are served still.
            assert peer.control_heard[before:] == b"\x07\x01\x0c"
            late = await peer.request(peer.session_fields())
            with pytest.raises(StreamReset) as caught:
                await late.receive_head()
            assert caught.value.wire_code == Http3Code.REQUEST_REJECTED
            assert not returned.is_set()


async def test_a_session_that_is_accepted_late_is_drained_at_once() -> None:
    async def on_request(_: Request) -> None:
        await trio.sleep(2)

    network = Network()
    async with shutting_down(stay, network, on_request=on_request) as (shutdown, returned):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def shut_down() -> None:
                await trio.sleep(1)
                shutdown.set()

            async with visit(network) as session:
                assert trio.current_time() > 2
                with trio.fail_after(1):
                    await session.wait_draining()
        await settle()
        assert returned.is_set()


async def test_a_shutdown_is_bounded_and_sessions_are_told() -> None:
    cancelled = 0

    async def handler(_: WebTransportSession) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1

    network = Network()
    async with shutting_down(handler, network, shutdown_timeout=7, cancelled_code=CANCELLED) as (
        shutdown,
        returned,
    ):
        async with visit(network) as one, connect(network) as connection:
            async with connection.open_session() as two, connection.open_session() as three:
                await connection.ping()
                started = trio.current_time()
                shutdown.set()
                for session in (one, two, three):
                    end = await session.wait_closed()
                    # A close of the session's own, as a browser can understand it.
                    assert type(end) is ConnectionClosedError
                    assert (end.code, end.remote) == (CANCELLED, True)
                    assert trio.current_time() - started == pytest.approx(7, abs=0.2)
                end = await connection.wait_closed()
                assert end.code == Http3Code.NO_ERROR
                await settle()
        assert returned.is_set()
        assert cancelled == 3


async def test_handlers_may_end_sessions_that_drain() -> None:
    """What a handler does about a shutdown itself: it sees nothing but its own session, and the client leaves."""
    network = Network()
    async with shutting_down(stay, network, shutdown_timeout=100) as (shutdown, returned):
        async with visit(network) as session, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def leave() -> None:
                await session.wait_draining()
                await session.aclose(3, "as you wish")

            await trio.sleep(1)
            shutdown.set()
        await settle()
        assert returned.is_set()
        assert trio.current_time() < 5


async def test_a_shutdown_without_connections_is_immediate() -> None:
    network = Network()
    async with shutting_down(echo, network) as (shutdown, returned):
        async with visit(network) as session:
            assert await ask(session, b"x") == b"x"
        await settle()
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


# ---- clients that leave their connections


async def test_a_connection_that_can_have_no_more_sessions_is_closed() -> None:
    """As of browsers, which leave them to idle otherwise; those that can have more are kept."""
    none = {
        "WT_INITIAL_MAX_DATA": None,
        "WT_INITIAL_MAX_STREAMS_BIDI": None,
        "WT_INITIAL_MAX_STREAMS_UNI": None,
    }
    for changes, closes in ((none, True), ({}, False)):
        network = Network()
        async with serving(stay, network):
            async with raw_client(network, settings=settings_of(**changes)) as peer:
                exchange = await peer.open_session()
                await exchange.send_data(close_capsule(0), eof=True)
                started = trio.current_time()
                with trio.move_on_after(10):
                    end = await peer.connection.wait_closed()
                    assert end.code == Http3Code.NO_ERROR
                assert (peer.connection.closed is not None) == closes
                if closes:
                    assert trio.current_time() - started == pytest.approx(2, abs=0.5)


async def test_nor_is_one_closed_on_which_a_session_follows_in_time() -> None:
    none = {
        "WT_INITIAL_MAX_DATA": None,
        "WT_INITIAL_MAX_STREAMS_BIDI": None,
        "WT_INITIAL_MAX_STREAMS_UNI": None,
    }
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        async with raw_client(network, settings=settings_of(**none)) as peer:
            for _ in range(3):
                exchange = await peer.open_session()
                session = await visitors.next()
                await trio.sleep(5)
                assert session.closed is None
                await exchange.send_data(close_capsule(0), eof=True)
                await trio.sleep(1)
            assert peer.connection.closed is None


async def test_many_clients_at_once() -> None:
    network = Network(seed=1, loss=0.02, delay=(0.005, 0.02))
    answers: list[bytes] = []

    async def client(number: int) -> None:
        async with visit(network, f"/{number}", idle_timeout=100) as session:
            for _ in range(3):
                answers.append(await ask(session, b"%d" % number))

    async with serving(echo, network, idle_timeout=100, retry="always"):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(client, number)
    assert sorted(answers) == sorted(b"%d" % number for number in range(40) for _ in range(3))


async def test_a_server_cannot_ask() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), visit(network) as session:
        theirs = await visitors.next()
        connection = theirs.connection
        with pytest.raises(RuntimeError, match="server"):
            async with connection.open_session():
                pytest.fail("it is the server")
        with pytest.raises(RuntimeError, match="server"):
            await connection.request("GET", "/")
        assert await connection.ping() > 0
        async with stream_pair(session, theirs):
            pass


async def test_a_handler_learns_that_its_server_shuts_down() -> None:
    network, shutdown = Network(), trio.Event()
    seen: list[bool] = []

    async def handler(session: WebTransportSession) -> None:
        seen.append(session.draining)
        await session.wait_draining()
        seen.append(session.draining)

    async with serving(handler, network, shutdown=shutdown), visit(network) as session:
        await settle()
        shutdown.set()
        end = await session.wait_closed()
        assert (type(end), end.code) == (ConnectionClosedOK, 0)
        assert session.draining
    assert seen == [False, True]
