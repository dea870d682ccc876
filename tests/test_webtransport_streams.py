"""The streams of sessions, as an application and its peer see them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.http3_peers import raw_client, to_http3_code
from tests.webtransport_pairs import (
    Visitors,
    connect,
    echo,
    one_way_pair,
    serving,
    session_pair,
    settle,
    stream_pair,
    visit,
)
from trio_wt import (
    ReceiveStream,
    SendStream,
    Stream,
    StreamAbort,
    StreamReset,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair

WINDOW, SEND_BUFFER = 20_000, 10_000
CANCELLED, FAILED = 71, 72
CODES_SET = {"cancelled_code": CANCELLED, "failed_code": FAILED}
MOST = 2**32 - 1


# ---- what Trio asks of streams, whoever opens them


@asynccontextmanager
async def makers(
    *, by_client: bool, second_session: bool
) -> AsyncIterator[tuple[WebTransportSession, WebTransportSession, contextlib.AsyncExitStack]]:
    """Sessions whose streams are made in the stack; what is sent is there as soon as all tasks are blocked."""
    network, visitors = Network(delay=0), Visitors()
    settings = {
        "stream_window": WINDOW,
        "max_stream_window": WINDOW,
        "send_buffer": SEND_BUFFER,
        "idle_timeout": 10**6,
    }
    async with serving(visitors, network, **settings), connect(network, **settings) as connection:
        async with contextlib.AsyncExitStack() as outer:
            if second_session:
                await outer.enter_async_context(session_pair(connection, visitors))
            pair = await outer.enter_async_context(session_pair(connection, visitors))
            async with contextlib.AsyncExitStack() as stack:
                yield (*(pair if by_client else pair[::-1]), stack)


async def clog(*streams: SendStream) -> None:
    for stream in streams:
        with trio.move_on_after(1) as scope:
            while True:
                await stream.send_all(bytes(1000))
        assert scope.cancelled_caught


@pytest.mark.parametrize("second_session", [True, False])
@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("clogged", [True, False])
async def test_trio_s_check_of_half_closeable_streams(
    clogged: bool, by_client: bool, second_session: bool
) -> None:
    async with makers(by_client=by_client, second_session=second_session) as (a, b, stack):

        async def make() -> tuple[Stream, Stream]:
            return await stack.enter_async_context(stream_pair(a, b))  # type: ignore[arg-type]

        async def make_clogged() -> tuple[Stream, Stream]:
            pair = await make()
            await clog(*pair)
            return pair

        await trio.testing.check_half_closeable_stream(make, make_clogged if clogged else None)


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("clogged", [True, False])
async def test_trio_s_check_of_one_way_streams(clogged: bool, by_client: bool) -> None:
    async with makers(by_client=by_client, second_session=False) as (a, b, stack):

        async def make() -> tuple[SendStream, ReceiveStream]:
            return await stack.enter_async_context(one_way_pair(a, b))  # type: ignore[arg-type]

        async def make_clogged() -> tuple[SendStream, ReceiveStream]:
            pair = await make()
            await clog(pair[0])
            return pair

        await trio.testing.check_one_way_stream(make, make_clogged if clogged else None)


async def test_a_stream_that_the_session_s_credit_clogs_is_one_of_trio_s_too() -> None:
    """Not the stream's window is full, but the session's."""
    settings = {"session_window": 30_000, "max_session_window": 30_000, "idle_timeout": 10**6}
    async with contextlib.AsyncExitStack() as stack:

        async def make() -> tuple[Stream, Stream]:
            pair = await stack.enter_async_context(
                webtransport_pair(network=Network(delay=0), **settings)  # type: ignore[arg-type]
            )
            return await stack.enter_async_context(stream_pair(*pair))  # type: ignore[arg-type]

        async def make_clogged() -> tuple[Stream, Stream]:
            pair = await make()
            await clog(*pair)
            return pair

        await trio.testing.check_half_closeable_stream(make, make_clogged)


# ---- both ways, both kinds


@pytest.mark.parametrize("by_client", [True, False])
async def test_streams_of_both_kinds_in_both_directions(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        async with a.open_stream() as near:
            await near.send_all(b"question")
            await near.send_eof()
            async with await b.incoming_streams.receive() as far:
                assert near.stream_id == far.stream_id
                assert await far.receive_all() == b"question"
                await far.send_all(b"answer", eof=True)
            assert await near.receive_all() == b"answer"
        async with a.open_send_stream() as sending:
            await sending.send_all(b"one way")
        async with await b.incoming_receive_streams.receive() as receiving:
            assert sending.stream_id == receiving.stream_id
            assert [data async for data in receiving] == [b"one way"]
        kinds = [repr(stream) for stream in (near, sending, receiving)]
        assert [kind.split()[0] for kind in kinds] == ["<Stream", "<SendStream", "<ReceiveStream"]


async def test_the_directions_end_one_by_one() -> None:
    async with webtransport_pair() as (client, server), stream_pair(client, server) as (a, b):
        await a.send_all(b"question")
        await a.send_eof()
        assert await b.receive_all() == b"question"
        await b.send_all(b"answer")
        assert await a.receive_exactly(6) == b"answer"
        await b.send_eof()
        assert await a.receive_some() == b""


async def test_streams_come_in_order_and_iteration_ends_with_the_session() -> None:
    async with webtransport_pair() as (client, server):
        got: list[bytes] = []

        async def take() -> None:
            async for stream in server.incoming_receive_streams:
                async with stream:
                    got.append(await stream.receive_all())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            for number in range(20):
                async with client.open_send_stream() as stream:
                    await stream.send_all(b"%d" % number)
            await client.aclose()
        assert got == [b"%d" % number for number in range(20)]


async def test_a_hundred_streams_of_three_sessions_keep_their_own_bytes() -> None:
    network, visitors = Network(seed=3, loss=0.02), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as one,
            session_pair(connection, visitors) as two,
            session_pair(connection, visitors) as three,
            trio.open_nursery() as serving_nursery,
        ):

            async def echo_one(stream: Stream, prefix: bytes) -> None:
                async with stream:
                    await stream.send_all(prefix)
                    async for data in stream:
                        await stream.send_all(data)

            async def serve(session: WebTransportSession, prefix: bytes) -> None:
                async for stream in session.incoming_streams:
                    serving_nursery.start_soon(echo_one, stream, prefix)

            async def question(session: WebTransportSession, prefix: bytes, number: int) -> None:
                async with session.open_stream() as stream:
                    data = b"%d" % number * number * 10
                    await stream.send_all(data)
                    await stream.send_eof()
                    assert await stream.receive_all() == prefix + data

            async with trio.open_nursery() as asking:
                for prefix, (ours, theirs) in ((b"1", one), (b"2", two), (b"3", three)):
                    serving_nursery.start_soon(serve, theirs, prefix)
                    for number in range(100):
                        asking.start_soon(question, ours, prefix, number)
            serving_nursery.cancel_scope.cancel()


async def test_megabytes_arrive_whole() -> None:
    network = Network(seed=1, loss=0.01, reorder=0.02, delay=(0.005, 0.01))
    data = bytes(range(256)) * 4096 * 3
    async with serving(echo, network), visit(network, idle_timeout=300) as session:
        async with session.open_stream() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stream.send_all(data, eof=True))
            assert await stream.receive_all(2**24) == data


@pytest.mark.parametrize(
    "data",
    [b"abcd" * 10, bytearray(b"abcd" * 10), memoryview(b"xabcd" + b"abcd" * 9)[1:]],
    ids=["bytes", "bytearray", "memoryview"],
)
async def test_anything_like_bytes_can_be_sent(data: bytes) -> None:
    async with webtransport_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(data, eof=True)
        assert await b.receive_all() == b"abcd" * 10


# ---- priority


@pytest.mark.parametrize("by_client", [True, False])
async def test_streams_of_a_higher_priority_come_first(by_client: bool) -> None:
    network = Network(rate=100_000)
    async with webtransport_pair(network=network, send_buffer=2**20, session_window=2**20) as pair:
        a, b = pair if by_client else pair[::-1]
        finished: list[str] = []

        async def read(stream: ReceiveStream) -> None:
            data = await stream.receive_all()
            finished.append(data.strip(b"\0|").decode())

        async with trio.open_nursery() as nursery:
            async with (
                a.open_send_stream() as low,
                a.open_send_stream(priority=5) as high,
                a.open_send_stream() as raised,
            ):
                raised.priority = 3
                assert (low.priority, high.priority, raised.priority) == (0, 5, 3)
                for stream, name in ((low, "low"), (raised, "raised"), (high, "high")):
                    await stream.send_all(bytes(100_000) + name.encode() + b"|", eof=True)
                for _ in range(3):
                    nursery.start_soon(read, await b.incoming_receive_streams.receive())
        assert finished == ["high", "raised", "low"]


# ---- leaving the block


class Failure(Exception):
    pass


async def leave_normally(stream: Stream) -> None:
    await trio.lowlevel.checkpoint()


async def fail(stream: Stream) -> None:
    raise Failure


async def cancel(stream: Stream) -> None:
    stream.cancel_scope.cancel()
    await trio.sleep_forever()


async def cancel_in_a_nursery(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        stream.cancel_scope.cancel()


async def abort(stream: Stream) -> None:
    raise StreamAbort(MOST)


async def abort_in_a_nursery(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise StreamAbort(99)


Ending = Callable[[Stream], Awaitable[None]]
CODES: dict[Ending, int | None] = {
    leave_normally: None,
    fail: FAILED,
    cancel: CANCELLED,
    cancel_in_a_nursery: CANCELLED,
    abort: MOST,
    abort_in_a_nursery: 99,
}


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "accepted"])
@pytest.mark.parametrize("ending", CODES, ids=lambda ending: ending.__name__)
async def test_what_the_peer_sees_of_a_block_s_end(
    ending: Ending, opened: bool, by_client: bool
) -> None:
    async with webtransport_pair(**CODES_SET) as pair:  # type: ignore[arg-type]
        ours, theirs = pair if by_client else pair[::-1]
        ready = trio.Event()

        async def use_one(stream: Stream) -> None:
            await stream.send_all(b"said before")
            await ready.wait()
            await ending(stream)

        async def use() -> None:
            with contextlib.suppress(Failure):
                if opened:
                    async with ours.open_stream() as stream:
                        await use_one(stream)
                else:
                    async with await ours.incoming_streams.receive() as stream:
                        await use_one(stream)

        async def watch(stream: Stream) -> None:
            assert await stream.receive_exactly(4) == b"said"
            ready.set()
            await settle()
            code = CODES[ending]
            if code is None:
                assert await stream.receive_all() == b" before"
            else:
                with pytest.raises(StreamReset) as caught:
                    await stream.receive_some()
                assert (caught.value.code, caught.value.remote) == (code, True)
                assert caught.value.wire_code == to_http3_code(code)
                assert str(caught.value) == f"the peer reset the stream with code {code}"
            with pytest.raises(StreamReset) as caught:
                await stream.send_all(b"more?")
            assert (caught.value.code, caught.value.remote) == (code or 0, True)
            assert isinstance(caught.value, trio.BrokenResourceError)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            if opened:
                async with await theirs.incoming_streams.receive() as stream:
                    await watch(stream)
            else:
                async with theirs.open_stream() as stream:
                    await stream.send_all(b"hello")
                    await watch(stream)
        await settle()
        # The session goes on, and no stream is held any more.
        for session in pair:
            assert session.closed is None
            assert session.statistics().open_streams == 0


@pytest.mark.parametrize("code", [0, 1, 29, 30, 31, 255, 256, 2**31, MOST - 1, MOST])
async def test_codes_arrive_as_they_were(code: int) -> None:
    async with webtransport_pair() as (client, server):
        async with stream_pair(client, server) as (a, b):
            a.reset(code)
            with pytest.raises(StreamReset) as caught:
                await b.receive_some()
            assert (caught.value.code, caught.value.wire_code) == (code, to_http3_code(code))
        async with stream_pair(client, server) as (a, b):
            a.stop(code)
            await settle()
            with pytest.raises(StreamReset) as caught:
                await b.send_all(b"x")
            assert (caught.value.code, caught.value.wire_code) == (code, to_http3_code(code))


@pytest.mark.parametrize("wire_code", [0, 5, 0x10C, 0x52E4A40FA8DA, 0x52E4A40FA8F9, 2**62 - 1])
async def test_codes_of_no_application_are_0(wire_code: int) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        theirs = await peer.open_session_stream(exchange.stream_id, b"x")
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_exactly(1)
            theirs.reset(wire_code)
            theirs.stop(wire_code)
            for use in (stream.receive_some(), stream.send_all(b"x")):
                with pytest.raises(StreamReset) as caught:
                    await use
                await settle()
                assert (caught.value.code, caught.value.wire_code) == (0, wire_code)


@pytest.mark.parametrize("code", [2**32, 2**62 - 1])
async def test_an_abort_with_a_code_that_is_too_large_is_a_mistake_and_no_more(code: int) -> None:
    """It is told, the other side is told something, and all scopes are left in order."""
    async with webtransport_pair(**CODES_SET) as (client, server):  # type: ignore[arg-type]
        with trio.CancelScope() as scope:
            with pytest.raises((ValueError, StreamAbort)):
                async with client.open_stream() as stream:
                    await stream.send_all(b"x")
                    accepted = await server.incoming_streams.receive()
                    raise StreamAbort(code)
        assert not scope.cancelled_caught
        async with accepted:
            with pytest.raises(StreamReset) as caught:
                while True:
                    await accepted.receive_some()
            assert caught.value.code == FAILED
        async with stream_pair(client, server):
            pass


@pytest.mark.parametrize("code", [5, 2**32, 2**62 - 1])
async def test_an_abort_in_no_stream_s_block_ends_the_session(code: int) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        with trio.CancelScope() as scope:
            with pytest.raises((ValueError, StreamAbort)):
                async with visit(network, **CODES_SET):
                    theirs = await visitors.next()
                    raise StreamAbort(code)
        assert not scope.cancelled_caught
        with trio.fail_after(1):
            assert (await theirs.wait_closed()).code == (code if code == 5 else FAILED)


async def test_an_outer_cancellation_crosses_the_wire() -> None:
    async with webtransport_pair(**CODES_SET) as (client, server):  # type: ignore[arg-type]
        with trio.move_on_after(1) as scope:
            async with client.open_stream() as stream, client.open_send_stream() as one_way:
                await stream.send_all(b"x")
                await one_way.send_all(b"x")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        async with await server.incoming_streams.receive() as accepted:
            with pytest.raises(StreamReset) as caught:
                while True:
                    await accepted.receive_some()
            assert caught.value.code == CANCELLED
            assert trio.current_time() == pytest.approx(1, abs=0.1)
        async with await server.incoming_receive_streams.receive() as receive_stream:
            with pytest.raises(StreamReset) as caught:
                while True:
                    await receive_stream.receive_some()
            assert caught.value.code == CANCELLED


@pytest.mark.parametrize("loss", [0, 0.3])
@pytest.mark.parametrize("unidirectional", [True, False])
async def test_a_stream_that_is_reset_at_once_still_arrives_at_its_session(
    unidirectional: bool, loss: float
) -> None:
    """Which session it is of is said reliably, though its bytes are given up."""
    network = Network(seed=4, delay=0.01)
    visitors = Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors),
            session_pair(connection, visitors) as (ours, theirs),
        ):
            network.loss = loss
            for _ in range(10):
                async with ours.open_send_stream() if unidirectional else ours.open_stream() as s:
                    stream_id = s.stream_id
                    raise StreamAbort(33)
                with trio.fail_after(20):
                    accepted: ReceiveStream = await (
                        theirs.incoming_receive_streams.receive()
                        if unidirectional
                        else theirs.incoming_streams.receive()
                    )
                    assert accepted.stream_id == stream_id
                    async with accepted:
                        with pytest.raises(StreamReset) as caught:
                            await accepted.receive_some()
                        assert caught.value.code == 33


async def test_an_exception_comes_out_of_the_block_as_it_was() -> None:
    error = ValueError("mine")
    async with webtransport_pair() as (client, _):
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.open_stream():
                try:
                    raise KeyError
                except KeyError:
                    raise error
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)


# ---- refusing


async def test_refusing_all_further_streams_is_the_session_s_own_affair() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **CODES_SET), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as two,
        ):
            async with one.open_stream() as waiting:
                await waiting.send_all(b"x")
                await settle()
                await their_one.incoming_streams.aclose()
                async with one.open_stream() as later:
                    await later.send_all(b"x")
                    await settle()
                    for stream in (waiting, later):
                        with pytest.raises(StreamReset) as caught:
                            await stream.receive_some()
                        assert caught.value.code == CANCELLED
                        with pytest.raises(StreamReset):
                            await stream.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                await their_one.incoming_streams.receive()
            async with one_way_pair(one, their_one), stream_pair(*two):
                pass
            # Nobody has to take them for others to be opened.
            for _ in range(300):
                async with one.open_stream() as stream:
                    with contextlib.suppress(StreamReset):
                        await stream.send_all(b"x")


# ---- sending and receiving


async def test_a_sender_waits_for_a_receiver_that_does_not_read() -> None:
    settings = {"send_buffer": 10_000, "stream_window": 20_000, "max_stream_window": 20_000}
    async with webtransport_pair(**settings) as (client, server):  # type: ignore[arg-type]
        async with client.open_stream() as near:
            sent = 0
            with trio.move_on_after(10):
                while True:
                    await near.send_all(bytes(500))
                    sent += 500
            assert 29_500 <= sent <= 30_000
            async with await server.incoming_streams.receive() as far:
                # The head is the stream's too, though not the application's.
                assert 20_000 - 16 <= far.buffered <= 20_000
                assert server.statistics().unread_bytes == far.buffered
                assert 9_500 <= client.statistics().unsent_bytes <= 10_500
                await far.receive_exactly(far.buffered)
                with trio.fail_after(1):
                    await near.send_all(bytes(500))
                near.reset(0)


async def test_one_stream_that_is_not_read_does_not_stop_another() -> None:
    async with webtransport_pair(stream_window=1000) as (client, server):
        async with client.open_stream() as clogged, client.open_stream() as free:
            with trio.move_on_after(1):
                await clogged.send_all(bytes(10**5))
            await free.send_all(b"through", eof=True)
            await server.incoming_streams.receive()
            far = await server.incoming_streams.receive()
            with trio.fail_after(1):
                assert await far.receive_all() == b"through"


@pytest.mark.parametrize("action", ["send", "receive"])
async def test_two_tasks_in_one_direction(action: str) -> None:
    async with webtransport_pair(stream_window=1000, send_buffer=1000) as pair:
        async with stream_pair(*pair) as (a, _), trio.open_nursery() as nursery:
            use = (lambda: a.send_all(bytes(10_000))) if action == "send" else a.receive_some
            nursery.start_soon(use)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await use()
            nursery.cancel_scope.cancel()


async def test_every_async_function_is_a_checkpoint() -> None:
    async with webtransport_pair() as (client, server):
        with trio.testing.assert_checkpoints():
            opening = client.open_stream()
            near = await opening.__aenter__()
        with trio.testing.assert_checkpoints():
            await near.send_all(b"abc|")
        await settle()
        with trio.testing.assert_checkpoints():
            far = await server.incoming_streams.receive()
        for use in (
            lambda: far.receive_some(1),
            lambda: far.receive_exactly(1),
            lambda: far.receive_until(b"|"),
            lambda: far.wait_send_all_might_not_block(),
            lambda: far.send_eof(),
            lambda: client.datagrams.send(b"x"),
            lambda: far.aclose(),
        ):
            with trio.testing.assert_checkpoints():
                await use()
        await settle()
        with trio.testing.assert_checkpoints():
            await server.datagrams.receive()
        with trio.testing.assert_checkpoints():
            await opening.__aexit__(None, None, None)
        with trio.testing.assert_checkpoints():
            await client.aclose()
