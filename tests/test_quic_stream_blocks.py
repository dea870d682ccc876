"""Streams as blocks: what leaving one means to the peer, their scopes, and how many there may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.quic_pairs import one_way_pair, settle, stream_pair
from trio_wt import (
    Connection,
    ReceiveStream,
    SendStream,
    Stream,
    StreamAbort,
    StreamReset,
)
from trio_wt.testing import Network, quic_pair

WINDOW, SEND_BUFFER = 20_000, 10_000
CANCELLED, FAILED = 71, 72


# ---- what Trio asks of streams, whoever opens them


@asynccontextmanager
async def makers() -> AsyncIterator[tuple[Connection, Connection, AsyncExitStack]]:
    """Connections whose streams are made in the stack; what is sent is there as soon as all tasks are blocked."""
    settings = {"stream_window": WINDOW, "max_stream_window": WINDOW, "send_buffer": SEND_BUFFER}
    async with quic_pair(network=Network(delay=0), **settings) as (a, b):  # type: ignore[arg-type]
        async with AsyncExitStack() as stack:
            yield a, b, stack


async def clog(*streams: SendStream) -> None:
    for stream in streams:
        with trio.move_on_after(1) as scope:
            while True:
                await stream.send_all(bytes(1000))
        assert scope.cancelled_caught


@pytest.mark.parametrize("opened_by_client", [True, False])
async def test_trio_s_check_of_half_closeable_streams(opened_by_client: bool) -> None:
    async with makers() as (client, server, stack):
        a, b = (client, server) if opened_by_client else (server, client)

        async def make() -> tuple[Stream, Stream]:
            return await stack.enter_async_context(stream_pair(a, b))

        async def make_clogged() -> tuple[Stream, Stream]:
            pair = await make()
            await clog(*pair)
            return pair

        await trio.testing.check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize("opened_by_client", [True, False])
async def test_trio_s_check_of_one_way_streams(opened_by_client: bool) -> None:
    async with makers() as (client, server, stack):
        a, b = (client, server) if opened_by_client else (server, client)

        async def make() -> tuple[SendStream, ReceiveStream]:
            return await stack.enter_async_context(one_way_pair(a, b))

        async def make_clogged() -> tuple[SendStream, ReceiveStream]:
            pair = await make()
            await clog(pair[0])
            return pair

        await trio.testing.check_one_way_stream(make, make_clogged)


# ---- both directions


async def test_the_directions_end_one_by_one() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        await a.send_all(b"question")
        await a.send_eof()
        assert await b.receive_all() == b"question"
        await b.send_all(b"answer")
        assert await a.receive_exactly(6) == b"answer"
        await b.send_eof()
        assert await a.receive_some() == b""


async def test_who_opens_a_stream_shows_in_its_number() -> None:
    async with quic_pair() as (client, server):
        for a, b, bidirectional, unidirectional in ((client, server, 0, 2), (server, client, 1, 3)):
            async with stream_pair(a, b) as both, one_way_pair(a, b) as one_way:
                assert [s.stream_id for s in both] == [bidirectional] * 2
                assert [s.stream_id for s in one_way] == [unidirectional] * 2
                assert [repr(s) for s in (both[0], *one_way)] == [
                    f"<Stream {bidirectional}>",
                    f"<SendStream {unidirectional}>",
                    f"<ReceiveStream {unidirectional}>",
                ]


async def test_a_hundred_streams_at_once_keep_their_own_bytes() -> None:
    async with quic_pair(network=Network(seed=3, loss=0.02)) as (client, server):

        async def echo(stream: Stream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send_all(data)

        async def serve(nursery: trio.Nursery) -> None:
            async for stream in server.incoming_streams:
                nursery.start_soon(echo, stream)

        async def ask(number: int) -> None:
            async with client.open_stream() as stream:
                question = b"%d" % number * number * 10
                await stream.send_all(question)
                await stream.send_eof()
                assert await stream.receive_all() == question

        async with trio.open_nursery() as serving:
            serving.start_soon(serve, serving)
            async with trio.open_nursery() as asking:
                for number in range(100):
                    asking.start_soon(ask, number)
            serving.cancel_scope.cancel()


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
        nursery.start_soon(trio.sleep_forever)
        stream.cancel_scope.cancel()


async def fail_in_a_nursery(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fail, stream)


async def fail_while_cancelled(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def fail_in_cleanup() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise Failure

        nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        stream.cancel_scope.cancel()


async def abort(stream: Stream) -> None:
    raise StreamAbort(99)


async def abort_in_a_nursery(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(abort, stream)


async def abort_while_cancelled(stream: Stream) -> None:
    stream.cancel_scope.cancel()
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        raise StreamAbort(99) from None


async def abort_and_fail_in_a_nursery(stream: Stream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(abort, stream)
        nursery.start_soon(fail, stream)


Ending = Callable[[Stream], Awaitable[None]]
CODES: dict[Ending, int | None] = {
    leave_normally: None,
    fail: FAILED,
    cancel: CANCELLED,
    cancel_in_a_nursery: CANCELLED,
    fail_in_a_nursery: FAILED,
    fail_while_cancelled: FAILED,
    abort: 99,
    abort_in_a_nursery: 99,
    abort_while_cancelled: 99,
    abort_and_fail_in_a_nursery: 99,
}


def is_failure(exc: BaseException) -> bool:
    """Whether it is the one that an ending lets out, alone or in a group, and nothing else with it."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(is_failure, exc.exceptions))
    return isinstance(exc, Failure)


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "accepted"])
@pytest.mark.parametrize("ending", CODES, ids=lambda ending: ending.__name__)
async def test_what_the_peer_sees_of_a_block_s_end(ending: Ending, opened: bool) -> None:
    async with quic_pair(cancelled_code=CANCELLED, failed_code=FAILED) as (client, server):
        ours, theirs = (client, server) if opened else (server, client)
        raised: list[BaseException] = []
        ready = trio.Event()

        async def use() -> None:
            try:
                if opened:
                    async with ours.open_stream() as stream:
                        await stream.send_all(b"said before")
                        await ready.wait()
                        await ending(stream)
                else:
                    async with await ours.incoming_streams.receive() as stream:
                        await stream.send_all(b"said before")
                        await ready.wait()
                        await ending(stream)
            except BaseException as exc:
                raised.append(exc)

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
        assert all(map(is_failure, raised))
        assert bool(raised) == ("fail" in ending.__name__)
        await settle()
        # The connection goes on, and no stream is held any more.
        assert client.statistics().open_streams == server.statistics().open_streams == 0
        assert await client.ping() > 0


async def test_an_outer_cancellation_crosses_the_wire() -> None:
    async with quic_pair(cancelled_code=CANCELLED) as (client, server):
        with trio.move_on_after(1) as scope:
            async with client.open_stream() as stream:
                await stream.send_all(b"x")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        async with await server.incoming_streams.receive() as accepted:
            with pytest.raises(StreamReset) as caught:
                while True:
                    await accepted.receive_some()
            assert caught.value.code == CANCELLED
            assert trio.current_time() == pytest.approx(1, abs=0.1)


async def test_leaving_after_the_end_of_both_directions_says_nothing() -> None:
    async with quic_pair() as (client, server):
        async with stream_pair(client, server) as (a, b):
            await a.send_all(b"x", eof=True)
            await b.send_all(b"y", eof=True)
            assert await b.receive_all() == b"x"
            assert await a.receive_all() == b"y"
            await settle()
            before = client.statistics().packets_sent, server.statistics().packets_sent
        await settle()
        assert (client.statistics().packets_sent, server.statistics().packets_sent) == before


async def test_what_was_ended_before_a_failure_is_not_lost_to_a_peer_that_has_it() -> None:
    async with quic_pair() as (client, server):
        with pytest.raises(Failure):
            async with client.open_stream() as stream:
                await stream.send_all(b"whole", eof=True)
                await settle()
                raise Failure
        async with await server.incoming_streams.receive() as accepted:
            assert await accepted.receive_all() == b"whole"


async def test_an_exception_comes_out_of_the_block_as_it_was() -> None:
    error = ValueError("mine")
    async with quic_pair() as (client, _):
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.open_stream():
                try:
                    raise KeyError
                except KeyError:
                    raise error
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)


async def test_an_abort_ends_at_the_innermost_block_only() -> None:
    async with quic_pair() as (client, server):
        async with stream_pair(client, server) as (a, b):
            async with stream_pair(client, server) as (c, d):
                raise StreamAbort(5)
            await a.send_all(b"still open")
            assert await b.receive_exactly(10) == b"still open"
        assert c.stream_id == d.stream_id == 4


@pytest.mark.parametrize("code", [-1, 2**62])
async def test_codes_have_a_range(code: int) -> None:
    with pytest.raises(ValueError, match=r"2\^62"):
        StreamAbort(code)
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        for act in (a.reset, a.stop):
            with pytest.raises(ValueError, match=r"2\^62"):
                act(code)
        await a.send_all(b"still open")
        assert await b.receive_exactly(10) == b"still open"


async def test_the_largest_code_arrives() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        a.reset(2**62 - 1)
        with pytest.raises(StreamReset) as caught:
            await b.receive_some()
        assert caught.value.code == 2**62 - 1


# ---- the scope


async def test_a_scope_may_be_set_up_before_the_block() -> None:
    async with quic_pair(cancelled_code=CANCELLED) as (client, server), client.open_stream() as a:
        await a.send_all(b"x")
        b = await server.incoming_streams.receive()
        b.cancel_scope.deadline = trio.current_time() + 5
        async with b:
            await trio.sleep_forever()
        assert b.cancel_scope.cancelled_caught
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        with pytest.raises(StreamReset, match=f"code {CANCELLED}"):
            await a.receive_some()


async def test_a_scope_that_is_cancelled_before_the_block_cancels_it() -> None:
    async with quic_pair(cancelled_code=CANCELLED) as (client, server), client.open_stream() as a:
        await a.send_all(b"x")
        b = await server.incoming_streams.receive()
        b.cancel_scope.cancel()
        async with b:
            await b.receive_some()
            pytest.fail("receive_some() is a checkpoint")
        with pytest.raises(StreamReset, match=f"code {CANCELLED}"):
            await a.receive_some()


@pytest.mark.parametrize(
    "operation",
    [
        lambda stream: stream.receive_some(),
        lambda stream: stream.receive_exactly(10),
        lambda stream: stream.send_all(bytes(3000)),
    ],
    ids=["receive_some", "receive_exactly", "send_all"],
)
async def test_a_scope_s_cancellation_wakes_a_task_that_waits(operation: Ending) -> None:
    async with quic_pair(send_buffer=1000, stream_window=1000) as (client, _):
        async with trio.open_nursery() as nursery:
            async with client.open_stream() as stream:

                @nursery.start_soon
                async def cancel_later() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    stream.cancel_scope.cancel()

                await operation(stream)
                pytest.fail("it was cancelled")
            assert stream.cancel_scope.cancelled_caught


# ---- closing


async def test_closing_is_for_good_and_may_be_done_again() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        await a.send_all(b"last")
        await a.aclose()
        await a.aclose()
        for use in (
            partial(a.send_all, b"x"),
            a.wait_send_all_might_not_block,
            a.receive_some,
            partial(a.receive_exactly, 1),
            partial(a.receive_until, b"\n"),
            a.receive_all,
        ):
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await use()
        await a.send_eof()
        a.reset(1)
        a.stop(1)
        # What was sent before is delivered all the same.
        assert await b.receive_all() == b"last"
        with pytest.raises(StreamReset, match="code 0"):
            while True:
                await b.send_all(b"x")
                await settle()


async def test_closing_wakes_the_tasks_that_use_the_stream() -> None:
    async with quic_pair(send_buffer=1000, stream_window=1000) as (client, server):
        async with stream_pair(client, server) as (a, _), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await a.send_all(bytes(5000))

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await a.receive_some()

            await settle()
            await a.aclose()


async def test_closing_a_stream_that_is_cancelled_closes_it() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.aclose()
        assert scope.cancelled_caught
        assert await b.receive_all() == b""


async def test_a_stream_without_a_block_is_closed_by_hand() -> None:
    async with quic_pair() as (client, server), client.open_stream() as a:
        await a.send_all(b"x", eof=True)
        b = await server.incoming_streams.receive()
        assert await b.receive_all() == b"x"
        await b.send_all(b"y")
        await b.aclose()
        assert await a.receive_all() == b"y"
        await settle()
        assert server.statistics().open_streams == 0


# ---- how many there may be


async def test_who_opens_past_the_limit_waits_and_is_served_in_turn() -> None:
    async with quic_pair(max_streams=2, max_receive_streams=1) as (client, server):
        opened: list[int] = []

        async def open_one(number: int) -> None:
            async with client.open_stream() as stream:
                opened.append(number)
                await stream.send_all(b"x", eof=True)
                await stream.receive_all()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(open_one, number)
                await trio.testing.wait_all_tasks_blocked()
            await settle()
            assert opened == [0, 1]
            for count in range(3, 11):
                async with await server.incoming_streams.receive() as stream:
                    await stream.receive_all()
                    await settle()
                    assert len(opened) == count - 1
                await settle()
                assert opened == list(range(count))
            for _ in range(2):
                await (await server.incoming_streams.receive()).aclose()


async def test_the_kinds_are_counted_apart() -> None:
    async with quic_pair(max_streams=1, max_receive_streams=1) as (client, server):
        for a, b in ((client, server), (server, client)):
            async with stream_pair(a, b), one_way_pair(a, b):
                for open_one in (a.open_stream, a.open_send_stream):
                    with trio.move_on_after(5) as scope:
                        async with open_one():
                            pytest.fail("the limit was passed")
                    assert scope.cancelled_caught


async def test_a_stream_counts_while_it_waits_is_held_and_is_unread() -> None:
    async with quic_pair(max_streams=1) as (client, server):
        async with client.open_stream() as first:
            await first.send_all(b"x", eof=True)
            first.stop(0)
        await settle()
        # It has ended on the wire, but nobody has taken it, and nobody has read it.
        for step in ("waiting", "taken", "closed"):
            with trio.move_on_after(1) as scope:
                async with client.open_stream() as second:
                    await second.send_all(b"y")
            assert scope.cancelled_caught == (step != "closed")
            if step == "waiting":
                accepted = await server.incoming_streams.receive()
            elif step == "taken":
                assert await accepted.receive_all() == b"x"
                await accepted.aclose()


async def test_a_peer_that_takes_no_streams_is_waited_for() -> None:
    async with quic_pair(max_streams=0, max_receive_streams=0) as (client, _):
        for open_one in (client.open_stream, client.open_send_stream):
            with trio.move_on_after(5) as scope:
                async with open_one():
                    pytest.fail("there is no room for it")
            assert scope.cancelled_caught


async def test_a_cancelled_wait_gives_its_turn_to_the_next() -> None:
    async with quic_pair(max_streams=1) as (client, server):
        opened: list[int] = []
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(3)]

            async def open_one(number: int) -> None:
                with scopes[number]:
                    async with client.open_stream() as stream:
                        opened.append(number)
                        await stream.send_all(b"x")
                        await stream.receive_all()

            for number in range(3):
                nursery.start_soon(open_one, number)
                await trio.testing.wait_all_tasks_blocked()
            await settle()
            scopes[1].cancel()
            await settle()
            await (await server.incoming_streams.receive()).aclose()
            await settle()
            assert opened == [0, 2]
            await (await server.incoming_streams.receive()).aclose()


async def test_the_limit_is_passed_on_to_as_many_as_it_is_good_for() -> None:
    async with quic_pair(max_streams=3) as (client, server):
        most = now = 0

        async def use() -> None:
            nonlocal most, now
            async with client.open_stream() as stream:
                now += 1
                most = max(most, now)
                await stream.send_all(b"x", eof=True)
                await stream.receive_all()
                now -= 1

        async def serve() -> None:
            async for stream in server.incoming_streams:
                async with stream:
                    await stream.receive_all()

        async with trio.open_nursery() as serving:
            for _ in range(3):
                serving.start_soon(serve)
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(use)
            serving.cancel_scope.cancel()
        assert most == 3


async def test_lower_numbers_open_with_a_higher_one() -> None:
    async with quic_pair() as (client, server), AsyncExitStack() as stack:
        for kind in (client.open_stream, client.open_send_stream):
            streams: list[SendStream] = [
                await stack.enter_async_context(kind())  # type: ignore[arg-type]
                for _ in range(4)
            ]
            await streams[2].send_all(b"the third is the first to say something")
            await settle()
            channel = (
                server.incoming_streams
                if kind == client.open_stream
                else server.incoming_receive_streams
            )
            accepted = [await channel.receive() for _ in range(3)]
            assert [s.stream_id for s in accepted] == [s.stream_id for s in streams[:3]]
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()
            await streams[0].send_all(b"late")
            assert await accepted[0].receive_some() == b"late"
            for stream in accepted:
                await stream.aclose()


# ---- checkpoints


async def test_every_async_method_is_a_checkpoint() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        await b.send_all(b"some" * 4 + b"\n")
        await settle()
        with trio.testing.assert_checkpoints():
            await a.send_all(b"x")
        with trio.testing.assert_checkpoints():
            await a.send_all(b"")
        with trio.testing.assert_checkpoints():
            await a.wait_send_all_might_not_block()
        with trio.testing.assert_checkpoints():
            await a.receive_some(1)
        with trio.testing.assert_checkpoints():
            await a.receive_exactly(0)
        with trio.testing.assert_checkpoints():
            await a.receive_exactly(1)
        with trio.testing.assert_checkpoints():
            await a.receive_until(b"s")
        with trio.testing.assert_checkpoints():
            await a.__anext__()
        await b.send_eof()
        await settle()
        for at_the_end in (a.receive_some, a.receive_all, partial(a.receive_exactly, 0)):
            with trio.testing.assert_checkpoints():
                assert await at_the_end() == b""
        with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await a.__anext__()
        with trio.testing.assert_checkpoints():
            await a.send_eof()
        with trio.testing.assert_checkpoints():
            await a.send_eof()
        with trio.testing.assert_checkpoints():
            await a.aclose()
        with trio.testing.assert_checkpoints():
            await a.aclose()
        for opener in (client.open_stream, client.open_send_stream):
            with trio.testing.assert_checkpoints():
                async with opener():
                    pass
