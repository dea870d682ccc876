"""How sessions end: closing both ways, gracefully or at once, leaving the block, and who is woken by it."""

from __future__ import annotations

import contextlib
import gc
import pickle
import signal
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.webtransport_pairs import (
    Visitors,
    ask,
    check_nothing_is_held,
    connect,
    echo,
    one_way_pair,
    open_loose,
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
    Stream,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair

CANCELLED, FAILED = 71, 72
CODES = {"cancelled_code": CANCELLED, "failed_code": FAILED}
MOST = 2**32 - 1


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


async def close_what_nobody_reads(a: WebTransportSession, b: WebTransportSession) -> None:
    """All of it has arrived, and waits for an application that does not take it."""
    total = 0
    while credit := a.statistics().send_credit:
        size = min(credit, 2**17)
        await (await open_loose(a)).send_all(bytes(size), eof=True)
        total += size
        await settle()
    assert b.statistics().unread_bytes == total
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
        close_what_nobody_reads,
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


@pytest.mark.parametrize("how", ["return", "raise", "cancel"])
async def test_the_end_of_a_block_is_bounded_as_a_whole(how: str) -> None:
    """Session and connection have one time for it, when they are opened as one."""
    network = Network()
    async with serving(stay, network):
        with contextlib.suppress(ZeroDivisionError), trio.CancelScope() as scope:
            async with visit(network, close_timeout=7) as session:
                async with session.open_send_stream() as stream:
                    await stream.send_all(b"never to arrive")
                network.loss = 1
                started = trio.current_time()
                if how == "raise":
                    raise ZeroDivisionError
                if how == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
        assert trio.current_time() - started <= (8.1 if how == "return" else 1)


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
