"""The flow control of sessions: how much their streams may carry, and that no credit is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    CapsuleType,
    Http3Code,
    RawPeer,
    number_capsule,
    raw_client,
    raw_server,
    settings_of,
)
from tests.webtransport_pairs import (
    Visitors,
    check_connection_credit,
    check_credit,
    check_nothing_is_held,
    check_throughput,
    connect,
    open_loose,
    send_until_blocked,
    serving,
    session_pair,
    settle,
    visit,
    ws_echo,
)
from trio_wt import (
    ConnectionClosedError,
    ConnectionLost,
    ReceiveStream,
    SendStream,
    StreamReset,
    WebTransportSession,
)
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network, webtransport_pair

WINDOW = 20_000
FIXED = {"session_window": WINDOW, "max_session_window": WINDOW}


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


async def fill(session: WebTransportSession) -> None:
    """Use up its credit, with streams that stay."""
    for _ in range(8):
        stream = await open_loose(session)
        with trio.move_on_after(1):
            await stream.send_all(bytes(2**18))


@pytest.mark.parametrize("by_client", [True, False])
async def test_with_default_settings_a_session_that_is_not_read_stops_nobody(
    by_client: bool,
) -> None:
    """Neither another session, nor a request, a WebSocket, or what comes after them."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, websocket_handler=ws_echo):
        async with connect(network) as connection:
            async with (
                session_pair(connection, visitors, "/full") as full,
                session_pair(connection, visitors, "/free") as free,
            ):
                await fill(full[not by_client])
                assert full[not by_client].statistics().send_credit == 0
                with trio.fail_after(10):
                    await check_throughput(*free, 2**21)
                    await check_throughput(*free[::-1], 2**21)
                    assert (await connection.request("GET", "/")).status == 404
                    async with connection.open_websocket("/") as websocket:
                        await websocket.send("x")
                        assert await websocket.receive() == "x"
                    async with session_pair(connection, visitors, "/new") as new:
                        await check_throughput(*new, 2**16)
                full[0].close_now()


async def test_nor_does_one_whose_window_has_grown() -> None:
    """It was read fast, as fast as windows let it, and then no more."""
    network, visitors = Network(delay=0.02), Visitors()
    # As the defaults are to each other, but smaller.
    windows = {"session_window": 2**14, "connection_window": 2**16}
    most = {"max_session_window": 2**20, "max_connection_window": 2**20, "stream_window": 2**20}
    async with serving(visitors, network, **windows, **most), connect(network) as connection:
        async with (
            session_pair(connection, visitors, "/full") as full,
            session_pair(connection, visitors, "/free") as free,
        ):
            await check_throughput(*full, 8 * 2**20)
            await settle()
            credit = full[0].statistics().send_credit
            assert credit is not None
            assert credit > 2**18
            await fill(full[0])
            with trio.fail_after(10):
                await check_throughput(*free, 2**16)
                assert (await connection.request("GET", "/")).status == 404
            full[0].close_now()


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
    window = 45_000
    network, visitors = Network(), Visitors()
    # Hardly more than two sessions of this size need.
    settings = {
        "max_sessions": 2,
        "session_window": 20_000,
        "max_session_window": 20_000,
        "connection_window": 5_000,
        "max_connection_window": window,
        "close_timeout": 1,
    }
    async with serving(visitors, network, **settings), connect(network) as connection:
        async with session_pair(connection, visitors, "/stays") as (stays, their_stays):
            for _ in range(8):
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
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
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
            await check_throughput(stays, their_stays, 2**22)
            await settle()
            check_connection_credit(their_stays.connection)
