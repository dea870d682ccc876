"""A session as its two users see it: what it knows, its endings, drain, datagrams, keys and figures."""

from __future__ import annotations

import gc
import pickle
import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.webtransport_pairs import (
    HOST,
    PORT,
    Visitors,
    ask,
    check_nothing_is_held,
    connect,
    echo,
    one_way_pair,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    DatagramTooLarge,
    Stream,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair

CANCELLED, FAILED = 71, 72
CODES = {"cancelled_code": CANCELLED, "failed_code": FAILED}
MOST = 2**32 - 1


# ---- what it is


async def test_what_both_sides_know_of_each_other() -> None:
    async with webtransport_pair(path="/a%20b?x=1&y=2", subprotocols=["b", "a"]) as (
        client,
        server,
    ):
        assert client.subprotocol == server.subprotocol == "b"
        assert client.session_id == server.session_id == 0
        assert client.peer_address == server.local_address == (HOST, PORT)
        assert server.peer_address == client.local_address
        assert client.connection.peer_certificate is not None
        assert server.connection.peer_certificate is None
        for session in (client, server):
            request = session.request
            assert request.is_webtransport
            assert not request.is_websocket
            assert request.asks_for_session
            assert request.method == "CONNECT"
            assert request.http_version == "3"
            assert request.scheme == "https"
            assert request.host == f"{HOST}:{PORT}"
            assert request.target == "/a%20b?x=1&y=2"
            assert request.path == "/a b"
            assert request.query == "x=1&y=2"
            assert list(request.subprotocols) == ["b", "a"]
            assert request.origin is None
            assert session.response_headers["wt-protocol"] == '"b"'
            assert session.closed is None
            assert not session.draining
            assert session.connection.open_sessions == 1
            assert not session.connection.going_away
        assert repr(client) == (f"<WebTransportSession /a%20b?x=1&y=2 open, peer {(HOST, PORT)}>")
        assert repr(client.connection) == f"<WebTransportConnection open, peer {(HOST, PORT)}>"
        await client.aclose()
        assert repr(client).startswith("<WebTransportSession /a%20b?x=1&y=2 closed, peer ")
    assert repr(client.connection).startswith("<WebTransportConnection closed, peer ")


async def test_without_subprotocols_there_is_none() -> None:
    async with webtransport_pair() as (client, server):
        assert client.subprotocol is server.subprotocol is None
        assert list(server.request.subprotocols) == []
        assert "wt-protocol" not in client.response_headers


# ---- closing


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("graceful", [True, False])
@pytest.mark.parametrize(("code", "reason"), [(0, ""), (0, "fine"), (7, "gründe"), (MOST, "")])
async def test_code_and_reason_reach_the_other_side(
    code: int, reason: str, graceful: bool, by_client: bool
) -> None:
    async with webtransport_pair() as (client, server):
        a, b = (client, server) if by_client else (server, client)
        await a.aclose(code, reason, graceful=graceful)
        theirs = await b.wait_closed()
        ours = await a.wait_closed()
        assert a.closed is ours
        assert b.closed is theirs
        kind = ConnectionClosedError if code else ConnectionClosedOK
        for end, remote in ((ours, False), (theirs, True)):
            assert type(end) is kind
            assert (end.code, end.reason, end.remote) == (code, reason, remote)
            assert pickle.loads(pickle.dumps(end)).args == end.args
        # It was the session that was closed, not what it stands on.
        assert client.connection.closed is None


async def close_with_streams(a: WebTransportSession, b: WebTransportSession) -> None:
    async with a.open_stream() as one, a.open_send_stream() as two, b.open_stream() as three:
        for stream in (one, two, three):
            await stream.send_all(b"x")
        await settle()
        a.close_now(6, "why")


async def close_while_draining(a: WebTransportSession, b: WebTransportSession) -> None:
    a.drain()
    b.drain()
    await settle()
    a.close_now(6, "why")


async def drain_and_close_at_once(a: WebTransportSession, b: WebTransportSession) -> None:
    a.drain()
    a.close_now(6, "why")


async def close_behind_datagrams(a: WebTransportSession, b: WebTransportSession) -> None:
    for _ in range(300):
        a.datagrams.send_nowait(bytes(1000))
    a.close_now(6, "why")


async def close_behind_much(a: WebTransportSession, b: WebTransportSession) -> None:
    """What is queued on streams must not hold up what is said about them."""
    async with a.open_send_stream(priority=9) as stream:
        await stream.send_all(bytes(200_000))
        a.close_now(6, "why")
        with trio.fail_after(0.1):
            await b.wait_closed()


async def close_a_session_without_credit(a: WebTransportSession, b: WebTransportSession) -> None:
    async with a.open_send_stream() as stream:
        with trio.move_on_after(1):
            await stream.send_all(bytes(2**22))
        a.close_now(6, "why")


async def close_a_connection_without_credit(a: WebTransportSession, b: WebTransportSession) -> None:
    """Nobody reads on the other side, and the connection's window is full as well."""
    async with trio.open_nursery() as nursery:

        async def fill() -> None:
            async with a.open_send_stream() as stream:
                await stream.send_all(bytes(2**20))

        for _ in range(8):
            nursery.start_soon(fill)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    a.close_now(6, "why")


Ending = Callable[[WebTransportSession, WebTransportSession], Awaitable[None]]


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize(
    "ending",
    [
        close_with_streams,
        close_while_draining,
        drain_and_close_at_once,
        close_behind_datagrams,
        close_behind_much,
        close_a_session_without_credit,
        close_a_connection_without_credit,
    ],
    ids=lambda ending: ending.__name__,
)
async def test_a_close_arrives_in_every_state(ending: Ending, by_client: bool) -> None:
    async with webtransport_pair() as (client, server):
        a, b = (client, server) if by_client else (server, client)
        await ending(a, b)
        with trio.fail_after(1):
            end = await b.wait_closed()
        assert (end.code, end.reason, end.remote) == (6, "why", True)
        assert a.closed is not None
        assert (a.closed.code, a.closed.remote) == (6, False)


async def test_a_handler_may_close_at_once() -> None:
    async def handler(session: WebTransportSession) -> None:
        session.close_now(8, "not today")

    network = Network()
    async with serving(handler, network), visit(network) as session:
        end = await session.wait_closed()
        assert (end.code, end.reason) == (8, "not today")


async def test_a_client_may_leave_at_once() -> None:
    ends: list[ConnectionClosed] = []

    async def handler(session: WebTransportSession) -> None:
        ends.append(await session.wait_closed())

    network = Network()
    async with serving(handler, network):
        for _ in range(20):
            async with visit(network):
                pass
        await settle()
    assert len(ends) == 20
    assert all(type(end) is ConnectionClosedOK and end.remote for end in ends)


async def test_a_long_reason_is_cut() -> None:
    async with webtransport_pair() as (client, server):
        client.close_now(1, "é" * 1000)
        assert (await server.wait_closed()).reason == "é" * 512
    async with webtransport_pair() as (client, server):
        server.close_now(1, "x" + "é" * 1000)
        assert (await client.wait_closed()).reason == "x" + "é" * 511


@pytest.mark.parametrize("code", [-1, 2**32])
async def test_codes_have_a_range(code: int) -> None:
    async with webtransport_pair() as (client, server):
        async with stream_pair(client, server) as (stream, _):
            for use in (client.close_now, stream.reset, stream.stop):
                with pytest.raises(ValueError, match=r"2\^32"):
                    use(code)
            with pytest.raises(ValueError, match=r"2\^32"):
                await client.aclose(code)
            assert client.closed is None
            await stream.send_all(b"none of it had any effect")


async def test_closing_twice_and_after_the_peer_changes_nothing() -> None:
    async with webtransport_pair() as (client, server):
        await client.aclose(1)
        await client.aclose(2)
        client.close_now(3)
        await settle()
        await server.aclose(4)
        server.close_now(5)
        assert client.closed is not None
        assert server.closed is not None
        assert client.closed.code == server.closed.code == 1


async def test_both_may_close_at_once() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors) as (ours, theirs):
            ours.close_now(1)
            theirs.close_now(2)
            await settle()
            assert ours.closed is not None
            assert theirs.closed is not None
            assert (ours.closed.code, ours.closed.remote) == (1, False)
            assert (theirs.closed.code, theirs.closed.remote) == (2, False)
        # It is no error of the connection's.
        assert connection.closed is None
        async with session_pair(connection, visitors) as (ours, theirs):
            async with stream_pair(ours, theirs):
                pass


async def test_an_end_does_not_close_the_connection_for_others() -> None:
    network = Network()
    async with serving(echo, network), connect(network) as connection:
        async with connection.open_session("/one") as one, connection.open_session("/two") as two:
            one.close_now(9)
            assert await ask(two, b"still here") == b"still here"
        async with connection.open_session("/three") as three:
            assert await ask(three, b"and again") == b"and again"
        await settle()
        check_nothing_is_held(connection)


# ---- graceful ends


async def test_a_graceful_end_sees_out_what_was_ended() -> None:
    network = Network(seed=2, loss=0.2, delay=0.02)
    async with webtransport_pair(network=network, close_timeout=60) as (client, server):
        got: list[bytes] = []

        async def receive() -> None:
            async for stream in server.incoming_receive_streams:
                async with stream:
                    got.append(await stream.receive_all())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(3):
                async with client.open_send_stream() as stream:
                    await stream.send_all(bytes(100_000))
            await client.aclose()
            # All of it was acknowledged before the close was sent.
            await trio.sleep(1)
            assert got == [bytes(100_000)] * 3


async def test_a_graceful_end_waits_for_a_reader_but_not_for_streams_that_were_not_ended() -> None:
    async with webtransport_pair(stream_window=1000, close_timeout=60) as (client, server):
        async with client.open_send_stream() as open_one, client.open_send_stream() as ended:
            await open_one.send_all(bytes(10_000))
            await ended.send_all(bytes(10_000), eof=True)

            async def read_slowly() -> None:
                streams = [await server.incoming_receive_streams.receive() for _ in range(2)]
                await trio.sleep(20)
                assert len(await streams[1].receive_all()) == 10_000

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_slowly)
                await client.aclose()
                assert trio.current_time() == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("by_block", [False, True])
async def test_a_graceful_end_is_bounded(by_block: bool) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, stream_window=1000):
        async with connect(network, close_timeout=7) as connection:
            async with session_pair(connection, visitors) as (client, server):
                async with client.open_send_stream() as stream:
                    await stream.send_all(bytes(10_000), eof=True)
                started = trio.current_time()
                if not by_block:
                    await client.aclose(3, "no more")
            assert trio.current_time() - started == pytest.approx(7, abs=0.1)
            assert (await server.wait_closed()).code == (0 if by_block else 3)


async def test_what_had_arrived_can_be_read_after_a_clean_end() -> None:
    async with webtransport_pair() as (client, server):
        async with client.open_stream() as one, client.open_send_stream() as two:
            await one.send_all(b"one", eof=True)
            await two.send_all(b"two", eof=True)
            await client.datagrams.send(b"three")
            await settle()
        client.close_now()
        await server.wait_closed()
        async with await server.incoming_streams.receive() as stream:
            assert await stream.receive_all() == b"one"
        async with await server.incoming_receive_streams.receive() as receive_stream:
            assert await receive_stream.receive_all() == b"two"
        assert await server.datagrams.receive() == b"three"
        for channel in (server.incoming_streams, server.incoming_receive_streams, server.datagrams):
            with pytest.raises(ConnectionClosedOK):
                await channel.receive()  # type: ignore[attr-defined]


async def test_other_sessions_need_not_be_seen_out() -> None:
    """One that ends gracefully waits for its own streams only."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, stream_window=1000):
        async with connect(network, close_timeout=30) as connection:
            async with session_pair(connection, visitors) as (busy, _):
                async with busy.open_send_stream() as stream:
                    await stream.send_all(bytes(10_000), eof=True)
                started = trio.current_time()
                async with session_pair(connection, visitors):
                    pass
                assert trio.current_time() - started < 1
                busy.close_now()


# ---- leaving the block


async def end_of_the_server(end: str) -> ConnectionClosed:
    """How the server's side ends when the client's block does so."""
    network = Network()
    ends: list[ConnectionClosed] = []

    async def handler(session: WebTransportSession) -> None:
        ends.append(await session.wait_closed())

    async with serving(handler, network):
        try:
            with trio.CancelScope() as outer:
                async with visit(network, **CODES) as client:
                    await client.connection.ping()
                    if end == "raise":
                        raise ZeroDivisionError
                    if end == "raise in a nursery":
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(trio.sleep_forever)
                            raise ZeroDivisionError
                    if end == "outer":
                        outer.cancel()
                        await trio.sleep_forever()
                    if end == "inner":
                        client.cancel_scope.cancel()
                        await trio.sleep_forever()
                    if end == "deadline":
                        client.cancel_scope.deadline = trio.current_time() + 3
                        await trio.sleep_forever()
        except* ZeroDivisionError:
            assert "raise" in end
        await settle()
    (closed,) = ends
    return closed


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return", 0),
        ("raise", FAILED),
        ("raise in a nursery", FAILED),
        ("outer", CANCELLED),
        ("inner", CANCELLED),
        ("deadline", CANCELLED),
    ],
)
async def test_leaving_the_block_says_how(end: str, code: int) -> None:
    closed = await end_of_the_server(end)
    assert (closed.code, closed.reason, closed.remote) == (code, "", True)


async def test_the_block_s_exception_comes_out_as_it_was() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with webtransport_pair():
            try:
                raise KeyError
            except KeyError:
                raise error
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)
    assert error.__cause__ is None


async def test_a_group_comes_out_as_it_was() -> None:
    group = ExceptionGroup("mine", [ValueError(1), KeyError(2)])
    with pytest.raises(ExceptionGroup) as caught:
        async with webtransport_pair():
            raise group
    assert caught.value is group


async def test_the_end_of_the_session_is_an_exception_like_others() -> None:
    with pytest.raises(ConnectionClosedError) as caught:
        async with webtransport_pair() as (client, server):
            server.close_now(5)
            async for _ in client.incoming_streams:
                pass
    assert caught.value.code == 5


async def test_a_block_that_fails_does_not_wait() -> None:
    network = Network()
    with pytest.raises(ZeroDivisionError):
        async with webtransport_pair(network=network) as (client, _):
            async with client.open_send_stream() as stream:
                await stream.send_all(bytes(10_000), eof=True)
                network.loss = 1
                started = trio.current_time()
                raise ZeroDivisionError
    assert trio.current_time() - started < 6


async def test_nothing_is_left_behind() -> None:
    async with webtransport_pair() as (client, server):
        await client.datagrams.send(b"x")
        assert await server.datagrams.receive() == b"x"
    task = trio.lowlevel.current_task()
    assert len(task.child_nurseries) == 0
    assert task.parent_nursery is not None
    assert task.parent_nursery.child_tasks == {task}
    gc.collect()


@pytest.mark.parametrize("in_a_stream", [False, True])
def test_a_keyboard_interrupt_reaches_the_block(in_a_stream: bool) -> None:
    ends: list[ConnectionClosed] = []

    async def handler(session: WebTransportSession) -> None:
        ends.append(await session.wait_closed())

    async def use(network: Network) -> None:
        async with visit(network, **CODES) as client:
            await client.connection.ping()
            if in_a_stream:
                async with client.open_stream() as stream:
                    await stream.send_all(b"x")
                    signal.raise_signal(signal.SIGINT)
                    await trio.sleep_forever()
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    async def main() -> None:
        network = Network()
        async with serving(handler, network):
            with pytest.raises(KeyboardInterrupt):
                await use(network)
            await settle()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [end.code for end in ends] == [FAILED]


# ---- the end wakes everybody


Operation = Callable[[WebTransportSession, Stream], Awaitable[object]]


async def open_a_stream(session: WebTransportSession, _: Stream) -> None:
    async with session.open_stream():
        pytest.fail("the limit is reached")


async def open_a_send_stream(session: WebTransportSession, _: Stream) -> None:
    async with session.open_send_stream():
        pytest.fail("the limit is reached")


WAITING: dict[str, Operation] = {
    "open_stream": open_a_stream,
    "open_send_stream": open_a_send_stream,
    "incoming_streams": lambda s, _: s.incoming_streams.receive(),
    "incoming_receive_streams": lambda s, _: s.incoming_receive_streams.receive(),
    "datagrams": lambda s, _: s.datagrams.receive(),
    "wait_draining": lambda s, _: s.wait_draining(),
    "send_all": lambda _, s: s.send_all(bytes(10_000)),
    "receive_some": lambda _, s: s.receive_some(),
}
# The clean end of what one iterates over; anything else is cut off by it.
ITERATIONS = {"incoming_streams", "incoming_receive_streams", "datagrams", "wait_draining"}
LIMITS = {"stream_window": 1000, "send_buffer": 1000, "max_streams": 1, "max_receive_streams": 0}


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize(
    "how",
    ["close_now", "aclose", "clean", "theirs", "theirs, clean", "lost", "connection closed"],
)
async def test_the_end_wakes_everybody_at_once(how: str, by_client: bool) -> None:
    network = Network()
    async with webtransport_pair(network=network, **LIMITS) as pair:  # type: ignore[arg-type]
        us, them = pair if by_client else pair[::-1]
        async with stream_pair(us, them) as (stream, _), trio.open_nursery() as nursery:
            outcomes: dict[str, BaseException] = {}
            times: set[float] = set()

            async def use(name: str) -> None:
                with pytest.raises((ConnectionClosed, trio.ClosedResourceError)) as caught:
                    await WAITING[name](us, stream)
                outcomes[name] = caught.value
                times.add(trio.current_time())

            for name in WAITING:
                nursery.start_soon(use, name)
            with trio.fail_after(60):
                await trio.testing.wait_all_tasks_blocked()
                if how == "close_now":
                    us.close_now(3)
                elif how == "aclose":
                    await us.aclose(3)
                elif how == "clean":
                    await us.aclose()
                elif how == "theirs":
                    them.close_now(3, "bye")
                elif how == "theirs, clean":
                    them.close_now()
                elif how == "lost":
                    network.loss = 1
                else:
                    them.connection._driver.shut(0x101, "broken")
                end = await us.wait_closed()
                await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
            assert len(outcomes) == len(WAITING)
            assert len(times) == 1
            for name, error in outcomes.items():
                assert error is not end
                if how in ("lost", "connection closed"):
                    assert isinstance(error, ConnectionLost)
                    assert error.reason == end.reason
                    assert error.remote
                elif "theirs" not in how:
                    assert type(error) is trio.ClosedResourceError
                elif how == "theirs, clean" and name in ITERATIONS:
                    assert type(error) is ConnectionClosedOK
                else:
                    assert type(error) is ConnectionClosedError
                    assert error.code == end.code
                    assert error.reason == end.reason


@pytest.mark.parametrize("ours", [True, False])
async def test_operations_after_the_end(ours: bool) -> None:
    async with webtransport_pair() as (client, server), stream_pair(client, server) as pair:
        (client if ours else server).close_now(3)
        await settle()
        kind = trio.ClosedResourceError if ours else ConnectionClosedError
        for operation in WAITING.values():
            with trio.testing.assert_checkpoints(), pytest.raises(kind):
                await operation(client, pair[0])
        with trio.testing.assert_checkpoints(), pytest.raises(kind):
            await client.datagrams.send(b"x")
        with pytest.raises(kind):
            client.datagrams.send_nowait(b"x")
        for use in (client.wait_closed, client.aclose):
            with trio.testing.assert_checkpoints():
                await use()
        client.drain()
        client.statistics()
        client.close_now()
        assert client.closed is not None
        assert client.closed.code == 3


async def test_an_end_is_pickled_and_explained() -> None:
    async with webtransport_pair() as (client, server):
        server.close_now(5, "bad\nluck")
        await client.wait_closed()
        with pytest.raises(ConnectionClosedError) as caught:
            await client.datagrams.send(b"")
        assert "code 5: bad\\nluck" in str(caught.value)


async def test_the_connection_s_end_says_why() -> None:
    async with webtransport_pair() as (client, server):
        server.connection._driver.shut(0x107, "too much of you")
        end = await client.wait_closed()
        assert isinstance(end, ConnectionLost)
        assert "H3_EXCESSIVE_LOAD" in end.reason
        assert "too much of you" in end.reason
        assert "the peer closed it" in end.reason
    async with webtransport_pair() as (client, server):
        client.connection._driver.shut(0x107, "too much of you")
        end = await client.wait_closed()
        assert isinstance(end, ConnectionLost)
        assert not end.remote
        assert "this side closed it" in end.reason


async def test_a_peer_that_falls_silent_is_lost_in_time() -> None:
    network = Network()
    async with webtransport_pair(network=network, idle_timeout=8) as (client, server):
        network.loss = 1
        started = trio.current_time()
        for session in (client, server):
            end = await session.wait_closed()
            assert isinstance(end, ConnectionLost)
            assert end.remote
        assert trio.current_time() - started == pytest.approx(8, abs=0.1)
        assert isinstance(client.connection.closed, ConnectionLost)


async def test_keep_alive_keeps_sessions() -> None:
    async with webtransport_pair(idle_timeout=8, keep_alive=3) as (client, server):
        await trio.sleep(100)
        async with one_way_pair(client, server):
            pass


# ---- scopes


@pytest.mark.parametrize("how", ["theirs", "lost", "ours"])
@pytest.mark.parametrize("cancel_on_close", [True, False])
async def test_cancel_on_close(cancel_on_close: bool, how: str) -> None:
    """Cancelled is who has lost the other side, not who has closed it."""
    network, visitors = Network(), Visitors()
    cancelled = left = False
    async with serving(visitors, network):
        async with visit(network, cancel_on_close=cancel_on_close) as client:
            server = await visitors.next()
            if how == "theirs":
                server.close_now(3)
            elif how == "lost":
                network.loss = 1
            else:
                client.close_now(3)
            try:
                await trio.sleep(100 if how == "lost" else 20)
                left = True
            except trio.Cancelled:
                cancelled = True
                raise
        assert client.closed is not None
        assert cancelled == (cancel_on_close and how != "ours")
        assert left != cancelled
        assert client.cancel_scope.cancelled_caught == cancelled
        if not cancelled or how == "theirs":
            assert client.closed.code == (0 if how == "lost" else 3)


async def test_cancel_on_close_cancels_handlers() -> None:
    cancelled: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(session.request.path)
            raise

    network = Network()
    async with serving(handler, network, cancel_on_close=True), connect(network) as connection:
        async with connection.open_session("/stays"):
            async with connection.open_session("/goes"):
                pass
            await settle()
            assert cancelled == ["/goes"]


# ---- drain


@pytest.mark.parametrize("by_client", [True, False])
async def test_drain_is_a_request_and_no_more(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        times: list[float] = []

        async def wait() -> None:
            await b.wait_draining()
            times.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.sleep(2)
            a.drain()
            a.drain()
        assert times == [pytest.approx(2, abs=0.1)] * 2
        assert b.draining
        assert not a.draining
        await b.wait_draining()
        # All goes on as before.
        async with stream_pair(a, b), stream_pair(b, a), one_way_pair(b, a):
            await b.datagrams.send(b"x")
            assert await a.datagrams.receive() == b"x"
        assert a.closed is b.closed is None


async def test_waiting_for_a_drain_ends_with_the_session() -> None:
    async with webtransport_pair() as (client, server):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(ConnectionClosedOK):
                    await server.wait_draining()

            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()


async def test_one_that_has_drained_before_the_wait_is_known() -> None:
    async with webtransport_pair() as (client, server):
        server.drain()
        await settle()
        assert client.draining
        with trio.testing.assert_checkpoints():
            await client.wait_draining()


# ---- datagrams


@pytest.mark.parametrize("by_client", [True, False])
async def test_datagrams_go_both_ways(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        for data in (b"", b"one", bytearray(b"two"), memoryview(b"xthreex")[1:-1]):
            await a.datagrams.send(data)
            assert await b.datagrams.receive() == bytes(data)
        a.datagrams.send_nowait(b"four")
        with pytest.raises(trio.WouldBlock):
            b.datagrams.receive_nowait()
        await settle()
        assert b.datagrams.receive_nowait() == b"four"


async def test_the_largest_datagram_arrives_and_one_more_byte_is_refused() -> None:
    for settings in ({"max_packet_size": 1200}, {}):
        network = Network(mtu=1400)
        async with webtransport_pair(network=network, **settings) as (client, server):  # type: ignore[arg-type]
            await trio.sleep(5)
            for a, b in ((client, server), (server, client)):
                most = a.datagrams.max_size
                assert 1100 < most < 1400
                await a.datagrams.send(bytes(most))
                assert await b.datagrams.receive() == bytes(most)
                with pytest.raises(DatagramTooLarge) as caught:
                    await a.datagrams.send(bytes(most + 1))
                assert (caught.value.size, caught.value.max_size) == (most + 1, most)
                # It leaves no trace.
                await a.datagrams.send(b"next")
                assert await b.datagrams.receive() == b"next"


async def test_datagrams_of_sessions_with_larger_numbers_are_a_little_smaller() -> None:
    network, visitors = Network(mtu=1300), Visitors()
    async with serving(visitors, network), connect(network, max_packet_size=1200) as connection:
        for _ in range(70):
            async with session_pair(connection, visitors) as (ours, theirs):
                most = ours.datagrams.max_size
                await ours.datagrams.send(bytes(most))
                assert await theirs.datagrams.receive() == bytes(most)
                with pytest.raises(DatagramTooLarge):
                    await ours.datagrams.send(bytes(most + 1))
        assert ours.session_id >= 256


async def test_unread_datagrams_are_bounded_per_session() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_datagram_queue=10), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            for number in range(30):
                await one.datagrams.send(b"%d" % number)
            await two.datagrams.send(b"mine")
            await settle()
            assert [await their_one.datagrams.receive() for _ in range(10)] == [
                b"%d" % number for number in range(20, 30)
            ]
            assert their_one.statistics().datagrams_dropped == 20
            assert their_two.statistics().datagrams_dropped == 0
            assert their_two.statistics().datagrams_unread == 1
            assert await their_two.datagrams.receive() == b"mine"


async def test_without_datagrams_there_are_none() -> None:
    async with webtransport_pair(server_settings={"datagrams": False}) as (client, _):
        assert client.datagrams.max_size == 0
        with pytest.raises(DatagramTooLarge):
            await client.datagrams.send(b"")


async def test_closed_datagrams_are_closed_for_one_session_only() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            await one.datagrams.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await one.datagrams.send(b"x")
            await their_one.datagrams.send(b"nobody listens")
            await their_two.datagrams.send(b"somebody does")
            assert await two.datagrams.receive() == b"somebody does"
            assert one.closed is None


# ---- keys and figures


async def test_both_sides_export_the_same_secrets() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            secrets: set[bytes] = set()
            cases = [(b"a", b"", 32), (b"b", b"", 32), (b"a", b"c", 32), (b"", b"ac", 32)]
            for label, context, length in [*cases, (b"l" * 255, b"c" * 255, 32)]:
                for ours, theirs in ((one, their_one), (two, their_two)):
                    secret = ours.export_keying_material(label, context, length)
                    assert secret == theirs.export_keying_material(label, context, length)
                    assert len(secret) == length
                    secrets.add(secret)
            assert len(secrets) == 10
            assert len(one.export_keying_material(b"x", b"", 8160)) == 8160
            for bad in ((b"l" * 256, b"", 32), (b"", b"c" * 256, 32), (b"", b"", 8161)):
                with pytest.raises(ValueError):
                    one.export_keying_material(*bad)
    async with webtransport_pair() as (other, _):
        assert other.export_keying_material(b"a", b"", 32) not in secrets


async def test_figures_of_a_session() -> None:
    network, visitors = Network(), Visitors()
    settings = {"session_window": 50_000, "max_session_window": 50_000}
    async with serving(visitors, network, **settings), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            assert one.statistics().dialect == "13-14"
            assert one.statistics().send_credit == 50_000
            async with one.open_stream() as stream, one.open_send_stream() as ended:
                await stream.send_all(bytes(1000))
                await ended.send_all(bytes(10), eof=True)
                await one.datagrams.send(b"x")
                await settle()
                ours, theirs = one.statistics(), their_one.statistics()
                assert (ours.open_streams, theirs.open_streams) == (1, 2)
                assert ours.unaccepted_streams == 0
                assert theirs.unaccepted_streams == 2
                assert theirs.unread_bytes == 1010
                assert ours.unsent_bytes == 0
                assert theirs.datagrams_unread == 1
                assert theirs.datagrams_dropped == 0
                assert ours.send_credit == 50_000 - 1010
                with trio.move_on_after(1):
                    await stream.send_all(bytes(10**6))
                assert one.statistics().send_credit == 0
                for session in (two, their_two):
                    figures = session.statistics()
                    assert figures.open_streams == figures.unread_bytes == 0
                whole = their_one.connection.statistics()
                assert whole.unaccepted_streams == 2
                assert whole.unread_bytes == 50_000
                assert whole.datagrams_unread == 1
                assert whole.open_streams >= 4


async def test_the_handler_of_another_session_does_not_hear_of_an_end() -> None:
    network = Network()
    ended: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        await stay(session)
        ended.append(session.request.path)

    async with serving(handler, network), connect(network) as connection:
        async with connection.open_session("/a"), connection.open_session("/b") as b:
            b.close_now(1)
            await settle()
            assert ended == ["/b"]
    assert ended == ["/b", "/a"]
