"""The flow control of sessions: how much their streams may carry, and how many there may be."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    CapsuleType,
    Exchange,
    Http3Code,
    RawPeer,
    number_capsule,
    raw_client,
    raw_server,
    settings_of,
)
from tests.webtransport_pairs import (
    Visitors,
    check_credit,
    check_nothing_is_held,
    connect,
    one_way_pair,
    open_loose,
    serving,
    session_pair,
    settle,
    stream_pair,
    visit,
)
from trio_wt import (
    ConnectionClosedError,
    ConnectionLost,
    HandshakeFailed,
    ReceiveStream,
    Rejected,
    SendStream,
    Stream,
    StreamReset,
    WebTransportSession,
)
from trio_wt._protocol.varint import decode, encode
from trio_wt.testing import Network, webtransport_pair

WINDOW = 20_000
FIXED = {"session_window": WINDOW, "max_session_window": WINDOW}
NONE = {
    "WT_INITIAL_MAX_DATA": None,
    "WT_INITIAL_MAX_STREAMS_BIDI": None,
    "WT_INITIAL_MAX_STREAMS_UNI": None,
}


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


# ---- data


@pytest.mark.parametrize("by_client", [True, False])
async def test_the_window_is_that_of_all_streams_together(by_client: bool) -> None:
    async with webtransport_pair(**FIXED, send_buffer=2**20) as pair:  # type: ignore[arg-type]
        a, b = pair if by_client else pair[::-1]
        async with a.open_stream() as one, a.open_send_stream() as two:
            await one.send_all(bytes(15_000))
            assert a.statistics().send_credit == 5_000
            assert await send_until_blocked(two) == 5_000
            assert a.statistics().send_credit == 0
            assert await send_until_blocked(one) == 0
            await settle()
            assert b.statistics().unread_bytes == WINDOW
            # The other direction has a window of its own.
            async with b.open_send_stream() as theirs:
                assert await send_until_blocked(theirs) == WINDOW
            # What is taken may come again.
            async with await b.incoming_streams.receive() as stream:
                await stream.receive_exactly(12_000)
                with trio.fail_after(1):
                    await two.send_all(bytes(12_000))


async def test_a_session_that_is_not_read_does_not_stop_another() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **FIXED), connect(network) as connection:
        async with (
            session_pair(connection, visitors, "/full") as (full, _),
            session_pair(connection, visitors, "/free") as (free, their_free),
        ):
            async with full.open_send_stream() as stream:
                assert await send_until_blocked(stream) == WINDOW
                await check_throughput(free, their_free, 10 * WINDOW)
                check_credit(free, their_free)
                stream.reset(0)


async def test_the_window_grows_while_it_is_what_limits() -> None:
    network = Network(delay=0.05)
    settings = {"session_window": 10_000, "max_session_window": 80_000}
    async with webtransport_pair(network=network, **settings) as (client, server):  # type: ignore[arg-type]
        for size in (100_000, 1_000_000, 1_000_000):
            started = trio.current_time()
            await check_throughput(client, server, size)
            took = trio.current_time() - started
        # 80 kB each round trip of 0.1 s, and not 10 kB.
        assert took == pytest.approx(1.25, rel=0.4)
        async with client.open_send_stream() as stream:
            assert await send_until_blocked(stream) <= 80_000


async def test_heads_do_not_count_and_every_byte_does() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **FIXED):
        for excess in (0, 1):
            async with raw_client(network) as peer:
                exchange = await peer.open_session()
                session = await visitors.next()
                streams: list[SendStream] = [
                    await peer.open_session_stream(exchange.stream_id, bytes(5_000)),
                    await peer.open_session_send_stream(exchange.stream_id, bytes(5_000)),
                    await peer.open_session_send_stream(exchange.stream_id),
                ]
                await streams[2].send_all(bytes(10_000 + excess))
                await settle()
                if not excess:
                    assert session.closed is None
                    continue
                end = await session.wait_closed()
                assert isinstance(end, ConnectionLost)
                assert "WT_FLOW_CONTROL_ERROR" in end.reason
                with pytest.raises(StreamReset) as caught:
                    await exchange.receive_capsule()
                assert caught.value.wire_code == Http3Code.WT_FLOW_CONTROL_ERROR
                with pytest.raises(StreamReset) as caught:
                    await exchange.stream.send_all(b"x")
                assert caught.value.wire_code == Http3Code.WT_FLOW_CONTROL_ERROR
                # It is the session's error, and none of the connection's.
                assert peer.connection.closed is None
                await peer.open_session()


async def test_a_sender_says_once_that_it_is_held_up() -> None:
    heard: list[tuple[int, bytes]] = []

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        for limit in (1500, 2500):
            for _ in range(2):
                capsule = await exchange.receive_capsule()
                assert capsule is not None
                heard.append(capsule)
                if capsule[0] == CapsuleType.DATA_BLOCKED:
                    break
            await trio.sleep(1)
            await exchange.send_data(number_capsule(CapsuleType.MAX_DATA, limit))

    network = Network()
    settings = settings_of(WT_INITIAL_MAX_DATA=1000)
    async with raw_server(network, handler, settings=settings), visit(network) as session:
        assert session.statistics().send_credit == 1000
        async with session.open_send_stream() as one, session.open_send_stream() as two:
            started = trio.current_time()
            await one.send_all(bytes(900))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.send_all, bytes(500))
                nursery.start_soon(two.send_all, bytes(1100))
            assert trio.current_time() - started == pytest.approx(2, abs=0.1)
        assert heard == [
            (CapsuleType.DATA_BLOCKED, encode(1000)),
            (CapsuleType.DATA_BLOCKED, encode(1500)),
        ]


async def test_a_window_of_nothing_opens_later() -> None:
    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        await trio.sleep(3)
        await exchange.send_data(number_capsule(CapsuleType.MAX_DATA, 5))
        number, stream = await peer.next_session_stream()
        assert number == exchange.stream_id
        assert await stream.receive_exactly(5) == b"hello"
        await stream.send_eof()

    network = Network()
    settings = settings_of(WT_INITIAL_MAX_DATA=0)
    async with raw_server(network, handler, settings=settings), visit(network) as session:
        async with session.open_stream() as stream:
            with trio.move_on_after(1) as scope:
                await stream.wait_send_all_might_not_block()
            assert scope.cancelled_caught
            await stream.send_all(b"hello")
            assert trio.current_time() == pytest.approx(3, abs=0.1)
            assert await stream.receive_some() == b""


async def test_an_end_needs_no_credit() -> None:
    async with webtransport_pair(**FIXED) as (client, server):  # type: ignore[arg-type]
        async with client.open_send_stream() as full:
            assert await send_until_blocked(full) == WINDOW
            async with client.open_stream() as stream:
                await stream.send_eof()
                async with await server.incoming_streams.receive() as theirs:
                    assert await theirs.receive_some() == b""


# ---- credit comes back, however a stream ends


async def read_all(stream: ReceiveStream) -> None:
    with contextlib.suppress(StreamReset):
        await stream.receive_all()


async def read_some(stream: ReceiveStream) -> None:
    with contextlib.suppress(StreamReset):
        await stream.receive_some(100)


async def stop(stream: ReceiveStream) -> None:
    stream.stop(4)
    await trio.lowlevel.checkpoint()


async def read_late(stream: ReceiveStream) -> None:
    await trio.sleep(0.5)
    await read_all(stream)


async def leave(stream: ReceiveStream) -> None:
    await trio.lowlevel.checkpoint()


async def cancel_reading(stream: ReceiveStream) -> None:
    stream.cancel_scope.cancel()
    await trio.lowlevel.checkpoint()


async def fill_and_reset(stream: SendStream) -> None:
    with trio.move_on_after(0.2), contextlib.suppress(StreamReset):
        await stream.send_all(bytes(2 * WINDOW))
    stream.reset(3)


async def send_and_end(stream: SendStream) -> None:
    with contextlib.suppress(StreamReset):
        await stream.send_all(bytes(3000), eof=True)


async def send_and_cancel(stream: SendStream) -> None:
    with contextlib.suppress(StreamReset):
        await stream.send_all(bytes(3000))
    stream.cancel_scope.cancel()
    await trio.lowlevel.checkpoint()


async def send_more_than_fits(stream: SendStream) -> None:
    with contextlib.suppress(StreamReset), trio.move_on_after(0.2):
        await stream.send_all(bytes(2 * WINDOW))


Receiving = Callable[[ReceiveStream], Awaitable[None]]
Sending = Callable[[SendStream], Awaitable[None]]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("stream_window", [1000, 2**18])
@pytest.mark.parametrize(
    "receive",
    [read_all, read_some, read_late, stop, leave, cancel_reading],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize(
    "send",
    [fill_and_reset, send_and_end, send_and_cancel, send_more_than_fits],
    ids=lambda f: f.__name__,
)
async def test_credit_is_whole_after_every_kind_of_end(
    send: Sending, receive: Receiving, stream_window: int, bidirectional: bool
) -> None:
    async with webtransport_pair(**FIXED, stream_window=stream_window) as (client, server):  # type: ignore[arg-type]
        for a, b in ((client, server), (server, client)):
            for _ in range(3):
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def take(b: WebTransportSession = b) -> None:
                        stream: ReceiveStream = (
                            await b.incoming_streams.receive()
                            if bidirectional
                            else await b.incoming_receive_streams.receive()
                        )
                        async with stream:
                            await receive(stream)

                    async with a.open_stream() if bidirectional else a.open_send_stream() as stream:
                        assert isinstance(stream, SendStream)
                        await send(stream)
                await settle()
        check_credit(client, server)
        await check_throughput(client, server, 3 * WINDOW)
        await check_throughput(server, client, 3 * WINDOW)
        await settle()
        check_credit(client, server)
        assert client.statistics().open_streams == server.statistics().open_streams == 0


async def test_what_a_reset_drops_is_no_credit_lost() -> None:
    """Most of what was handed over is never sent: the stream's own window is full."""
    async with webtransport_pair(stream_window=5000, **FIXED) as (client, server):  # type: ignore[arg-type]
        for _ in range(5):
            async with client.open_send_stream() as stream:
                with trio.move_on_after(0.1):
                    await stream.send_all(bytes(2 * WINDOW))
                stream.reset(5)
            async with await server.incoming_receive_streams.receive() as theirs:
                with pytest.raises(StreamReset):
                    await theirs.receive_all()
        await settle()
        check_credit(client, server)
        await check_throughput(client, server, 3 * WINDOW)


async def test_what_a_stop_drops_is_no_credit_lost() -> None:
    async with webtransport_pair(stream_window=5000, **FIXED) as (client, server):  # type: ignore[arg-type]
        for _ in range(5):
            async with client.open_send_stream() as stream:
                with trio.move_on_after(0.1):
                    await stream.send_all(bytes(2 * WINDOW))
                async with await server.incoming_receive_streams.receive() as theirs:
                    theirs.stop(5)
                with pytest.raises(StreamReset):
                    await stream.send_all(bytes(2 * WINDOW))
        await settle()
        check_credit(client, server)
        await check_throughput(client, server, 3 * WINDOW)


async def test_credit_is_whole_over_bad_networks() -> None:
    """Resets that overtake data, data that comes twice, and what never comes."""
    network = Network(seed=5, loss=0.1, reorder=0.2, duplicate=0.1, delay=(0.005, 0.03))
    async with webtransport_pair(
        network=network,
        idle_timeout=300,
        stream_window=3000,
        **FIXED,  # type: ignore[arg-type]
    ) as (client, server):

        async def take(a: WebTransportSession) -> None:
            async for stream in a.incoming_receive_streams:
                async with stream:
                    await read_some(stream)

        async with trio.open_nursery() as nursery:
            for a, b in ((client, server), (server, client)):
                nursery.start_soon(take, b)
                for number in range(30):
                    with trio.move_on_after(10):
                        async with a.open_send_stream() as stream:
                            with contextlib.suppress(StreamReset):
                                with trio.move_on_after(0.02 * (number % 4)):
                                    await stream.send_all(bytes(400 * number))
                                if number % 2:
                                    stream.reset(1)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        check_credit(client, server)
        await check_throughput(client, server, 3 * WINDOW)
        await check_throughput(server, client, 3 * WINDOW)


@pytest.mark.parametrize("how", ["theirs", "ours", "fin of the block", "violation"])
async def test_a_session_s_end_gives_back_what_it_held_of_the_connection(how: str) -> None:
    """Streams that were not read, datagrams, and streams that nobody has taken."""
    window = 30_000
    network, visitors = Network(), Visitors()
    settings = {"connection_window": window, "max_connection_window": window, "close_timeout": 1}
    async with serving(visitors, network, **settings), connect(network) as connection:
        async with session_pair(connection, visitors, "/stays") as (stays, their_stays):
            for _ in range(4):
                async with session_pair(connection, visitors, "/goes") as (goes, their_goes):
                    async with goes.open_stream() as one, goes.open_send_stream() as two:
                        await one.send_all(bytes(10_000))
                        await two.send_all(bytes(5_000))
                        async with await their_goes.incoming_streams.receive() as taken:
                            await taken.receive_some(100)
                            await settle()
                            if how == "theirs":
                                their_goes.close_now(1)
                            elif how == "ours":
                                goes.close_now(1)
                            elif how == "violation":
                                exchange = goes._carrier._stream
                                exchange.send_content_now(
                                    number_capsule(CapsuleType.MAX_STREAMS_UNI, 0)
                                )
                            await settle()
            await settle()
            await check_throughput(stays, their_stays, 4 * window)
            check_credit(stays, their_stays)
        await settle()
        check_nothing_is_held(connection)
        check_nothing_is_held(their_stays.connection)


async def test_what_is_still_there_can_be_read_after_the_end_and_is_not_given_back_twice() -> None:
    window = 30_000
    network, visitors = Network(), Visitors()
    settings = {"connection_window": window, "max_connection_window": window}
    async with serving(visitors, network, **settings), connect(network) as connection:
        async with session_pair(connection, visitors, "/stays") as (stays, their_stays):
            async with session_pair(connection, visitors, "/goes") as (goes, their_goes):
                async with goes.open_send_stream() as one, goes.open_send_stream() as two:
                    await one.send_all(bytes(9_000), eof=True)
                    await two.send_all(bytes(9_000))
                    await settle()
                    goes.close_now(3)
                await their_goes.wait_closed()
                async with await their_goes.incoming_receive_streams.receive() as receive_stream:
                    assert await receive_stream.receive_exactly(1000) == bytes(1000)
                    assert len(await receive_stream.receive_all()) == 8_000
                async with await their_goes.incoming_receive_streams.receive() as receive_stream:
                    assert len(await receive_stream.receive_exactly(9000)) == 9_000
                    with pytest.raises(ConnectionClosedError) as caught:
                        await receive_stream.receive_some()
                    assert caught.value.code == 3
            await check_throughput(stays, their_stays, 4 * window)
            async with stays.open_send_stream() as stream:
                assert await send_until_blocked(stream) <= window + 2**18


# ---- streams


async def count_openable(session: WebTransportSession) -> int:
    """How many bidirectional streams can be opened at once. They stay open."""
    count = 0
    with trio.move_on_after(1) as scope:
        while True:
            await (await open_loose(session)).send_all(b"x")
            count += 1
    assert scope.cancelled_caught
    return count


@pytest.mark.parametrize("by_client", [True, False])
async def test_each_session_may_have_so_many_streams(by_client: bool) -> None:
    network, visitors = Network(), Visitors()
    limits = {"max_streams": 3}
    async with serving(visitors, network, **limits), connect(network, **limits) as connection:
        async with session_pair(connection, visitors) as one:
            session = one[not by_client]
            assert await count_openable(session) == 3
            session.close_now()
        await settle()
        async with session_pair(connection, visitors) as two:
            session = two[not by_client]
            assert await count_openable(session) == 3
            session.close_now()


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("unidirectional", [True, False])
async def test_streams_wait_for_others_to_end_and_come_in_turn(
    unidirectional: bool, by_client: bool
) -> None:
    async with webtransport_pair(max_streams=2, max_receive_streams=2) as pair:
        a, b = pair if by_client else pair[::-1]
        order: list[int] = []
        incoming = b.incoming_receive_streams if unidirectional else b.incoming_streams

        async def use(number: int) -> None:
            async with a.open_send_stream() if unidirectional else a.open_stream() as stream:
                order.append(number)
                await stream.send_all(b"%d" % number)
                # One at a time: tasks that are woken together run in any order.
                await trio.sleep(1 + number * 7 % 10 * 0.043)

        async with trio.open_nursery() as taking:

            @taking.start_soon
            async def take() -> None:
                async for stream in incoming:  # type: ignore[attr-defined]
                    async with stream:
                        await stream.receive_all()

            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(use, number)
                    await trio.testing.wait_all_tasks_blocked()
                await settle()
                assert order == [0, 1]
            assert order == list(range(10))
            taking.cancel_scope.cancel()
        await settle()
        assert a.statistics().open_streams == b.statistics().open_streams == 0


async def test_who_is_cancelled_while_waiting_takes_nobody_s_turn() -> None:
    async with webtransport_pair(max_streams=1) as (client, server):
        opened: list[str] = []
        scopes: dict[str, trio.CancelScope] = {}

        async def use(name: str) -> None:
            with trio.CancelScope() as scopes[name]:
                async with client.open_stream() as stream:
                    opened.append(name)
                    await stream.send_all(b"x", eof=True)
                    await stream.receive_all()

        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(use, name)
                await trio.testing.wait_all_tasks_blocked()
            scopes["b"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                async with await server.incoming_streams.receive() as stream:
                    await stream.receive_all()
                    # Together with the turn that it would be given.
                    if opened == ["a"]:
                        scopes["c"].cancel()
                await settle()
                if opened == ["a", "d"]:
                    break
            async with await server.incoming_streams.receive() as stream:
                await stream.receive_all()
        assert opened == ["a", "d"]
        check_credit(client, server)


async def test_streams_that_are_opened_and_never_used_count_and_are_freed() -> None:
    async with webtransport_pair(max_streams=4, max_receive_streams=4) as (client, server):
        for _ in range(20):
            async with client.open_stream():
                pass
            async with client.open_send_stream() as stream:
                stream.reset(1)
            async with await server.incoming_streams.receive() as theirs:
                assert await theirs.receive_some() == b""
            async with await server.incoming_receive_streams.receive() as receive_stream:
                with pytest.raises(StreamReset):
                    await receive_stream.receive_some()


async def test_one_stream_too_many_is_the_session_s_end() -> None:
    for unidirectional in (True, False):
        network, visitors = Network(), Visitors()
        async with serving(visitors, network, max_streams=3, max_receive_streams=3):
            async with raw_client(network) as peer:
                other = await peer.open_session(b"/other")
                their_other = await visitors.next()
                exchange = await peer.open_session()
                session = await visitors.next()
                for number in range(4):
                    assert session.closed is None
                    if unidirectional:
                        await peer.open_session_send_stream(exchange.stream_id, b"%d" % number)
                    else:
                        await peer.open_session_stream(exchange.stream_id, b"%d" % number)
                    await settle()
                assert session.closed is not None
                assert "WT_FLOW_CONTROL_ERROR" in session.closed.reason
                assert their_other.closed is None
                await peer.open_session_stream(other.stream_id, b"x")
                await their_other.incoming_streams.receive()


async def test_a_client_says_that_it_waits_for_streams_and_hears_of_more() -> None:
    heard: list[tuple[int, bytes]] = []

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        for kind in (CapsuleType.MAX_STREAMS_BIDI, CapsuleType.MAX_STREAMS_UNI):
            capsule = await exchange.receive_capsule()
            assert capsule is not None
            heard.append(capsule)
            await trio.sleep(1)
            await exchange.send_data(number_capsule(kind, 2))

    network = Network()
    settings = settings_of(WT_INITIAL_MAX_STREAMS_BIDI=1, WT_INITIAL_MAX_STREAMS_UNI=0)
    async with raw_server(network, handler, settings=settings), visit(network) as session:
        async with session.open_stream(), session.open_stream():
            assert trio.current_time() == pytest.approx(1, abs=0.1)
            async with session.open_send_stream(), session.open_send_stream():
                assert trio.current_time() == pytest.approx(2, abs=0.1)
        assert heard == [
            (CapsuleType.STREAMS_BLOCKED_BIDI, encode(1)),
            (CapsuleType.STREAMS_BLOCKED_UNI, encode(0)),
        ]
        session.close_now()


async def test_a_server_gives_more_streams_in_steps() -> None:
    """Neither a capsule for every stream, nor so late that a peer waits without need."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_streams=8), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        limits: list[int] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def hear() -> None:
                with contextlib.suppress(StreamReset):
                    while (capsule := await exchange.receive_capsule()) is not None:
                        if capsule[0] == CapsuleType.MAX_STREAMS_BIDI:
                            limits.append(capsule[1][0] & 0x3F)

            for _ in range(20):
                stream = await peer.open_session_stream(exchange.stream_id, b"x")
                await stream.send_eof()
                async with await session.incoming_streams.receive() as theirs:
                    await theirs.receive_all()
                await settle()
            nursery.cancel_scope.cancel()
        assert limits == [12, 16, 20, 24, 28]


# ---- capsules that must not be


@pytest.mark.parametrize(
    "capsules",
    [
        [(CapsuleType.MAX_DATA, 5)],
        [(CapsuleType.MAX_DATA, 2**30), (CapsuleType.MAX_DATA, 2**30 - 1)],
        [(CapsuleType.MAX_STREAMS_BIDI, 5)],
        [(CapsuleType.MAX_STREAMS_UNI, 5)],
        [(CapsuleType.MAX_STREAMS_UNI, 2**60 + 1)],
        [(CapsuleType.MAX_STREAMS_BIDI, 2**60 + 1)],
        [(CapsuleType.MAX_STREAM_DATA, 2**30)],
        [(CapsuleType.STREAM_DATA_BLOCKED, 2**30)],
    ],
    ids=lambda capsules: f"{capsules[-1][0].name} {capsules[-1][1]}",
)
async def test_limits_that_must_not_be_end_the_session(
    capsules: list[tuple[CapsuleType, int]],
) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        async with session.open_stream() as stream:
            for capsule in capsules:
                assert session.closed is None
                await exchange.send_data(number_capsule(*capsule))
                await settle()
            assert isinstance(session.closed, ConnectionLost)
            with pytest.raises(StreamReset) as caught:
                await exchange.receive_capsule()
            assert caught.value.wire_code == Http3Code.WT_FLOW_CONTROL_ERROR
            with pytest.raises(ConnectionClosedError):
                await stream.send_all(b"x")
        assert peer.connection.closed is None


async def test_capsules_that_only_inform_change_nothing() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        for kind in (
            CapsuleType.DATA_BLOCKED,
            CapsuleType.STREAMS_BLOCKED_BIDI,
            CapsuleType.STREAMS_BLOCKED_UNI,
        ):
            for number in (0, 5, 2**60, 0):
                await exchange.send_data(number_capsule(kind, number))
        for capsule in (
            (CapsuleType.MAX_DATA, 2**62 - 1),
            (CapsuleType.MAX_STREAMS_UNI, 2**60),
            (CapsuleType.MAX_STREAMS_BIDI, 2**60),
        ):
            await exchange.send_data(number_capsule(*capsule))
            await exchange.send_data(number_capsule(*capsule))
        await settle()
        assert session.closed is None
        assert session.statistics().send_credit == 2**62 - 1


# ---- where it is off


async def test_without_it_there_is_one_session_and_no_limit_but_the_connection_s() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_streams=3, **FIXED):
        async with raw_client(network, settings=settings_of(**NONE)) as peer:
            exchange = await peer.open_session()
            session = await visitors.next()
            assert session.statistics().send_credit is None
            # No limit of the session's: the connection has more than three.
            for _ in range(8):
                await peer.open_session_stream(exchange.stream_id, bytes(5000))
            # Nor do its capsules mean anything.
            for capsule in (
                (CapsuleType.MAX_DATA, 0),
                (CapsuleType.MAX_STREAM_DATA, 5),
                (CapsuleType.MAX_STREAMS_UNI, 2**61),
            ):
                await exchange.send_data(number_capsule(*capsule))
            await settle()
            assert session.closed is None
            assert session.statistics().unaccepted_streams == 8
            second = await peer.request(peer.session_fields())
            assert (await second.receive_head())[b":status"] == b"429"
            # Nothing was said about credit.
            exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
            await settle()
            assert exchange.stream.buffered == 0
            await session.wait_closed()
            # Another one may follow.
            await peer.open_session()
            await visitors.next()


async def test_a_client_without_it_opens_one_session_at_a_time() -> None:
    async def handler(peer: RawPeer) -> None:
        for _ in range(2):
            exchange = await peer.accept_session()
            assert await exchange.receive_capsule() is not None
            await exchange.stream.send_eof()

    network = Network()
    async with raw_server(network, handler, settings=settings_of(**NONE)):
        async with connect(network) as connection:
            async with connection.open_session() as session:
                assert session.statistics().send_credit is None
                with pytest.raises(HandshakeFailed, match="one session per connection"):
                    async with connection.open_session():
                        pytest.fail("there must not be two")
                assert session.closed is None
            await settle()
            async with connection.open_session() as session:
                session.close_now()


# ---- how many sessions


async def test_only_so_many_sessions() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_sessions=2), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as one,
            session_pair(connection, visitors) as (two, _),
        ):
            with pytest.raises(Rejected) as caught:
                async with connection.open_session():
                    pytest.fail("there are two already")
            assert caught.value.status == 429
            assert one[0].closed is two.closed is None
            two.close_now()
            await settle()
            async with session_pair(connection, visitors) as three:
                async with stream_pair(*three), stream_pair(*one):
                    pass
        # Another connection has a limit of its own.
        async with connect(network) as another, another.open_session():
            pass


async def test_sessions_that_are_asked_for_at_once_keep_to_the_limit() -> None:
    """Also where the application takes its time over the requests."""

    async def on_request(request: object) -> None:
        await trio.sleep(1)

    network, visitors = Network(), Visitors()
    statuses: list[int] = []
    async with serving(visitors, network, max_sessions=3, on_request=on_request):
        async with connect(network) as connection, trio.open_nursery() as nursery:

            async def open_one() -> None:
                try:
                    async with connection.open_session():
                        statuses.append(200)
                        await trio.sleep(5)
                except Rejected as exc:
                    statuses.append(exc.status)

            for _ in range(8):
                nursery.start_soon(open_one)
    assert sorted(statuses) == [200] * 3 + [429] * 5


async def test_a_flood_of_sessions_leaves_nothing() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_sessions=2), connect(network) as connection:
        async with session_pair(connection, visitors) as (_, theirs):

            async def knock() -> None:
                with contextlib.suppress(Rejected):
                    async with connection.open_session():
                        await trio.sleep(0.01)

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(knock)
            server = theirs.connection
        await settle()
        check_nothing_is_held(connection)
        check_nothing_is_held(server)


async def test_a_raw_peer_s_exchange_is_what_these_tests_say() -> None:
    """Capsules in pieces of any size are the same capsules."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **FIXED), raw_client(network) as peer:
        exchange: Exchange = await peer.open_session()
        session = await visitors.next()
        for byte in number_capsule(CapsuleType.MAX_DATA, 2**30):
            await exchange.send_data(bytes([byte]))
        await settle()
        assert session.statistics().send_credit == 2**30
        stream: Stream = await peer.open_session_stream(exchange.stream_id, bytes(WINDOW))
        async with await session.incoming_streams.receive() as theirs:
            assert len(await theirs.receive_exactly(WINDOW)) == WINDOW
            kind, payload = await exchange.receive_capsule() or (0, b"")
            assert kind == CapsuleType.MAX_DATA
            limit = decode(payload)
            assert limit is not None
            assert WINDOW < limit[0] <= 2 * WINDOW
            await stream.send_all(bytes(WINDOW // 2), eof=True)
            assert len(await theirs.receive_all()) == WINDOW // 2
