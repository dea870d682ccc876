"""Streams as an application and its peer see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from trio_wt import (
    Connection,
    ConnectionClosedError,
    IncompleteRead,
    ReadLimitExceeded,
    ReceiveStream,
    SendStream,
    Stream,
    StreamAbort,
    StreamReset,
)
from trio_wt.testing import Network, quic_pair

BOTH = [pytest.param(False, id="bidirectional"), pytest.param(True, id="unidirectional")]


@asynccontextmanager
async def stream_pair(
    *, network: Network | None = None, **settings: Any
) -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a stream that the client has opened; nothing is in it."""
    async with quic_pair(network=network, **settings) as (client, server):
        async with client.open_stream() as near:
            await near.send_all(b"!")
            async with await server.incoming_streams.receive() as far:
                assert await far.receive_exactly(1) == b"!"
                yield near, far


# ---- what Trio asks of streams


async def check(kind: str, *, clogged: bool) -> None:
    async with AsyncExitStack() as stack:

        async def make() -> tuple[Any, Any]:
            network = Network(delay=0)
            client, server = await stack.enter_async_context(
                quic_pair(network=network, send_buffer=16384, stream_window=16384, idle_timeout=1e6)
            )
            if kind == "one way":
                near: Any = await stack.enter_async_context(client.open_send_stream())
                await near.send_all(b"!")
                far: Any = await server.incoming_receive_streams.receive()
            else:
                near = await stack.enter_async_context(client.open_stream())
                await near.send_all(b"!")
                far = await server.incoming_streams.receive()
            assert await far.receive_some() == b"!"
            return near, far

        async def clog() -> tuple[Any, Any]:
            near, far = await make()
            for stream in (near, far):
                if isinstance(stream, SendStream):
                    with trio.move_on_after(1):
                        while True:
                            await stream.send_all(bytes(1000))
            return near, far

        if kind == "one way":
            await trio.testing.check_one_way_stream(make, clog if clogged else None)
        else:
            await trio.testing.check_half_closeable_stream(make, clog if clogged else None)


@pytest.mark.parametrize("clogged", [False, True])
@pytest.mark.parametrize("kind", ["both ways", "one way"])
async def test_streams_are_what_trio_calls_streams(kind: str, clogged: bool) -> None:
    await check(kind, clogged=clogged)


# ---- receiving


async def test_receive_some_gives_what_there_is_and_no_more_than_asked() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"abcdef", eof=True)
        assert await far.receive_some(2) == b"ab"
        assert await far.receive_some(1) == b"c"
        assert far.buffered == 3
        assert await far.receive_some() == b"def"
        assert await far.receive_some() == b""
        assert await far.receive_some(5) == b""
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                await far.receive_some(bad)


async def test_receive_exactly() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"abc")
        assert await far.receive_exactly(0) == b""
        assert await far.receive_exactly(2) == b"ab"
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def later() -> None:
                await trio.sleep(1)
                await near.send_all(b"def")

            assert await far.receive_exactly(3) == b"cde"
        await near.send_all(b"g", eof=True)
        with pytest.raises(IncompleteRead) as caught:
            await far.receive_exactly(3)
        assert caught.value.received == 2
        assert await far.receive_some() == b"fg"
        with pytest.raises(ValueError, match="negative"):
            await far.receive_exactly(-1)


async def test_more_than_the_window_can_be_received_at_once() -> None:
    async with stream_pair(stream_window=1000, max_stream_window=1000) as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, bytes(50_000))
            assert await far.receive_exactly(50_000) == bytes(50_000)


async def test_receive_until() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"first\r\nsecond\r")
        assert await far.receive_until(b"\r\n") == b"first\r\n"
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def later() -> None:
                await trio.sleep(1)
                await near.send_all(b"\nrest", eof=True)

            assert await far.receive_until(b"\r\n") == b"second\r\n"
        with pytest.raises(IncompleteRead) as caught:
            await far.receive_until(b"\r\n")
        assert caught.value.received == 4
        assert await far.receive_all() == b"rest"
        with pytest.raises(ValueError, match="at least one byte"):
            await far.receive_until(b"")


async def test_receive_until_has_a_limit_and_loses_nothing() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"0123456789|")
        with pytest.raises(ReadLimitExceeded):
            await far.receive_until(b"|", max_bytes=10)
        assert await far.receive_until(b"|", max_bytes=11) == b"0123456789|"
        await near.send_all(b"a||b")
        assert await far.receive_until(b"||", max_bytes=3) == b"a||"
        assert await far.receive_some() == b"b"


async def test_receive_until_over_many_small_pieces() -> None:
    async with stream_pair(max_packet_size=1200) as (near, far):
        for _ in range(10):
            await near.send_all(b"x" * 1000)
            await trio.sleep(0.01)
        await near.send_all(b"y\n" + b"z" * 9000)
        await trio.sleep(1)
        assert await far.receive_some(31) == b"x" * 31
        assert await far.receive_until(b"\n") == b"x" * 9969 + b"y\n"
        assert await far.receive_exactly(9000) == b"z" * 9000


async def test_receive_all_has_a_limit_and_loses_nothing() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"0123456789", eof=True)
        with pytest.raises(ReadLimitExceeded):
            await far.receive_all(max_bytes=9)
        assert await far.receive_all(max_bytes=10) == b"0123456789"
        assert await far.receive_all() == b""


async def test_iteration_ends_with_the_stream() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"abc", eof=True)
        assert [chunk async for chunk in far] == [b"abc"]


# ---- sending


@pytest.mark.parametrize(
    "data",
    [
        b"abcd" * 10,
        bytearray(b"abcd" * 10),
        memoryview(b"abcd" * 10),
        memoryview(bytearray(b"abcd" * 10)).cast("I"),
        memoryview(b"xabcd" + b"abcd" * 9)[1:],
    ],
    ids=["bytes", "bytearray", "memoryview", "integers", "slice"],
)
async def test_anything_like_bytes_can_be_sent(data: Any) -> None:
    async with stream_pair() as (near, far):
        await near.send_all(data, eof=True)
        assert await far.receive_all() == b"abcd" * 10


async def test_what_was_sent_can_be_changed_afterwards() -> None:
    async with stream_pair() as (near, far):
        data = bytearray(b"before")
        await near.send_all(data)
        await near.send_all(memoryview(data))
        data[:] = b"after!"
        assert await far.receive_exactly(12) == b"before" * 2


async def test_a_sender_waits_for_a_receiver_that_does_not_read() -> None:
    """No more is held than the send buffer on one side, and the window on the other."""
    settings = {"send_buffer": 10_000, "stream_window": 20_000, "max_stream_window": 20_000}
    async with quic_pair(**settings) as (client, server):  # type: ignore[arg-type]
        async with client.open_stream() as near:
            sent = 0
            with trio.move_on_after(10):
                while True:
                    await near.send_all(bytes(500))
                    sent += 500
            assert 30_000 <= sent <= 30_500
            async with await server.incoming_streams.receive() as far:
                assert far.buffered == server.statistics().unread_bytes == 20_000
                assert 10_000 <= client.statistics().unsent_bytes <= 10_500
                await far.receive_exactly(20_000)
                with trio.fail_after(1):
                    await near.send_all(bytes(500))


async def test_one_stream_that_is_not_read_does_not_stop_another() -> None:
    async with quic_pair(connection_window=2**20, stream_window=1000) as (client, server):
        async with client.open_stream() as clogged, client.open_stream() as free:
            with trio.move_on_after(1):
                await clogged.send_all(bytes(10**6))
            await free.send_all(b"through", eof=True)
            await server.incoming_streams.receive()
            far = await server.incoming_streams.receive()
            with trio.fail_after(1):
                assert await far.receive_all() == b"through"


async def test_streams_of_a_higher_priority_come_first() -> None:
    network = Network(rate=100_000)
    async with quic_pair(network=network, send_buffer=2**20) as (client, server):
        async with trio.open_nursery() as nursery:
            async with (
                client.open_send_stream() as low,
                client.open_send_stream(priority=5) as high,
                client.open_send_stream() as raised,
            ):
                raised.priority = 3
                assert (low.priority, high.priority, raised.priority) == (0, 5, 3)
                for stream, name in ((low, "low"), (raised, "raised"), (high, "high")):
                    await stream.send_all(bytes(100_000) + name.encode() + b"|", eof=True)
                finished = []

                async def read(stream: ReceiveStream) -> None:
                    data = await stream.receive_all()
                    finished.append(data.strip(b"\0|").decode())

                for _ in range(3):
                    nursery.start_soon(read, await server.incoming_receive_streams.receive())
        assert finished == ["high", "raised", "low"]


# ---- ends


@pytest.mark.parametrize("unidirectional", BOTH)
async def test_leaving_the_block_ends_the_stream(unidirectional: bool) -> None:
    async with quic_pair() as (client, server):
        opening = client.open_send_stream() if unidirectional else client.open_stream()
        async with opening as near:
            await near.send_all(b"all of it")
        far: Any = await (
            server.incoming_receive_streams if unidirectional else server.incoming_streams
        ).receive()
        assert await far.receive_all() == b"all of it"


class Failed(Exception):
    pass


def fail(_: Any) -> None:
    raise Failed


def abort(_: Any) -> None:
    raise StreamAbort(77)


def abort_in_a_group(_: Any) -> None:
    raise ExceptionGroup("", [StreamAbort(78)])


def cancel_around(scopes: Any) -> None:
    scopes[0].cancel()


def cancel_own(scopes: Any) -> None:
    scopes[1].cancel()


@pytest.mark.parametrize(
    ("ending", "code", "raised"),
    [
        (fail, 2, Failed),
        (abort, 77, None),
        (abort_in_a_group, 78, None),
        (cancel_around, 1, None),
        (cancel_own, 1, None),
    ],
)
async def test_a_block_that_fails_resets_both_ways(
    ending: Callable[[Any], None], code: int, raised: type[Exception] | None
) -> None:
    async with quic_pair() as (client, server):

        async def near_end() -> None:
            with trio.CancelScope() as scope:
                async with client.open_stream() as near:
                    await near.send_all(b"!")
                    opened.set()
                    await trio.sleep(0.1)
                    ending((scope, near.cancel_scope))
                    await trio.sleep(1)

        opened = trio.Event()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def run() -> None:
                if raised is None:
                    await near_end()
                else:
                    with pytest.raises(raised):
                        await near_end()

            await opened.wait()
            far = await server.incoming_streams.receive()
            assert await far.receive_some() == b"!"
            with pytest.raises(StreamReset) as caught:
                await far.receive_some()
            assert (caught.value.code, caught.value.remote) == (code, True)
            with pytest.raises(StreamReset) as caught:
                while True:
                    await far.send_all(b"x")
                    await trio.sleep(0.01)
            assert caught.value.code == code
            await far.aclose()
        # The connection has not suffered.
        async with client.open_stream() as again:
            await again.send_all(b"?", eof=True)
            assert await (await server.incoming_streams.receive()).receive_all() == b"?"


async def test_codes_can_be_chosen() -> None:
    async with quic_pair(client_settings={"cancelled_code": 41, "failed_code": 42}) as (
        client,
        server,
    ):
        for code, ending in ((42, fail), (41, cancel_own)):
            try:
                async with client.open_stream() as near:
                    await near.send_all(b"!")
                    await trio.sleep(0.1)
                    ending((None, near.cancel_scope))
                    await trio.sleep(1)
            except Failed:
                pass
            far = await server.incoming_streams.receive()
            with pytest.raises(StreamReset) as caught:
                await far.receive_all()
            assert caught.value.code == code


async def test_a_stream_that_was_not_read_to_its_end_is_stopped() -> None:
    async with quic_pair() as (client, server):
        async with client.open_send_stream() as near:
            await near.send_all(b"more than is wanted")
            async with await server.incoming_receive_streams.receive() as far:
                await far.receive_exactly(4)
            with pytest.raises(StreamReset) as caught:
                while True:
                    await near.send_all(b"more")
                    await trio.sleep(0.01)
            assert (caught.value.code, caught.value.remote) == (0, True)


async def test_reset_and_stop_by_hand() -> None:
    async with stream_pair() as (near, far):
        near.reset(11)
        with pytest.raises(StreamReset) as caught:
            await far.receive_some()
        assert caught.value.code == 11
        near.stop(12)
        with pytest.raises(StreamReset) as caught:
            while True:
                await far.send_all(b"x")
                await trio.sleep(0.01)
        assert caught.value.code == 12
        near.reset(13)  # again has no effect
        near.stop(14)
        for use in (near.send_all(b"x"), near.receive_some()):
            with pytest.raises(trio.ClosedResourceError):
                await use
        for code in (-1, 2**62):
            with pytest.raises(ValueError, match="2\\^62"):
                near.reset(code)
            with pytest.raises(ValueError, match="2\\^62"):
                near.stop(code)
            with pytest.raises(ValueError, match="2\\^62"):
                StreamAbort(code)


async def test_a_reset_wakes_who_waits_on_this_side() -> None:
    async with stream_pair(send_buffer=1000, stream_window=1000) as (near, _):
        async with trio.open_nursery() as nursery:

            async def expect_closed(use: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await use()

            nursery.start_soon(expect_closed, near.receive_some)
            nursery.start_soon(expect_closed, lambda: near.send_all(bytes(100_000)))
            await trio.testing.wait_all_tasks_blocked()
            near.reset(1)
            near.stop(1)


async def test_send_eof() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"x")
        await near.send_eof()
        await near.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"y")
        assert await far.receive_all() == b"x"
        await far.send_all(b"still open", eof=True)
        assert await near.receive_all() == b"still open"


async def test_ending_a_stream_that_nobody_wants_is_no_error() -> None:
    async with stream_pair() as (near, far):
        far.stop(5)
        await trio.sleep(1)
        await near.send_eof()


@pytest.mark.parametrize("action", ["send_all", "wait_send_all_might_not_block", "receive_some"])
async def test_two_tasks_in_one_direction(action: str) -> None:
    async with stream_pair(send_buffer=100, stream_window=100) as (near, _):
        arguments = (bytes(1000),) if action == "send_all" else ()
        if action != "receive_some":
            with trio.move_on_after(1):
                await near.send_all(bytes(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(near, action), *arguments)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await getattr(near, action)(*arguments)
            if action != "receive_some":
                with pytest.raises(trio.BusyResourceError):
                    await near.send_eof()
            nursery.cancel_scope.cancel()


async def test_every_async_function_is_a_checkpoint() -> None:
    async with stream_pair() as (near, far):
        for use in (
            lambda: near.send_all(b""),
            lambda: near.send_all(b"abcdef\n" * 3),
            lambda: near.send_all(memoryview(b"abcdef")),
            near.wait_send_all_might_not_block,
            near.send_eof,
        ):
            with trio.testing.assert_checkpoints():
                await use()
        await trio.sleep(1)
        for use_ in (
            lambda: far.receive_some(1),
            lambda: far.receive_exactly(2),
            lambda: far.receive_until(b"\n"),
            far.receive_all,
            far.receive_some,
            far.aclose,
            far.aclose,
            near.aclose,
        ):
            with trio.testing.assert_checkpoints():
                await use_()


async def test_cancelled_receives_lose_nothing() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"abc")
        await trio.sleep(1)
        for use in (
            lambda: far.receive_exactly(4),
            lambda: far.receive_until(b"|"),
            far.receive_all,
        ):
            with trio.move_on_after(1) as scope:
                await use()
            assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await far.receive_some()
        assert scope.cancelled_caught
        await near.send_all(b"d|")
        assert await far.receive_until(b"|") == b"abcd|"


# ---- how many


async def test_opening_waits_for_the_peer_s_limit_first_come_first_served() -> None:
    async with quic_pair(max_streams=3) as (client, server):
        served = []
        async with trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                async with client.open_stream() as stream:
                    await stream.send_all(b"%d" % number, eof=True)
                    await stream.receive_all()

            for number in range(10):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1)
            assert client.statistics().open_streams == 3
            for _ in range(10):
                async with await server.incoming_streams.receive() as stream:
                    served.append(int(await stream.receive_all()))
        assert served == list(range(10))


async def test_a_stream_counts_until_the_application_is_done_with_it() -> None:
    async with quic_pair(max_receive_streams=2) as (client, server):
        for _ in range(2):
            async with client.open_send_stream() as stream:
                await stream.send_all(b"done")
        await trio.sleep(1)
        with trio.move_on_after(1) as scope:
            async with client.open_send_stream():
                pass
        assert scope.cancelled_caught
        first = await server.incoming_receive_streams.receive()
        assert await first.receive_all() == b"done"
        with trio.fail_after(1):
            async with client.open_send_stream() as stream:
                await stream.send_all(b"now")


async def test_streams_that_were_not_taken_count_whatever_became_of_them() -> None:
    async with quic_pair(max_receive_streams=4) as (client, server):
        with trio.move_on_after(5):
            while True:
                async with client.open_send_stream() as stream:
                    stream.reset(1)
        assert server.statistics().unaccepted_streams == 4


async def test_streams_come_in_the_order_in_which_they_were_opened() -> None:
    async with quic_pair() as (client, server):
        async with client.open_stream() as first, client.open_stream() as second:
            await second.send_all(b"second")
            one = await server.incoming_streams.receive()
            two = await server.incoming_streams.receive()
            assert (one.stream_id, two.stream_id) == (first.stream_id, second.stream_id)
            assert await two.receive_some() == b"second"
            await first.send_all(b"first")
            assert await one.receive_some() == b"first"


async def test_refusing_all_further_streams() -> None:
    async with quic_pair() as (client, server):
        async with client.open_stream() as waiting:
            await waiting.send_all(b"x")
            await trio.sleep(1)
            await server.incoming_streams.aclose()
            with pytest.raises(StreamReset) as caught:
                await waiting.receive_some()
            assert caught.value.code == 1
            async with client.open_stream() as late:
                await late.send_all(b"x")
                with pytest.raises(StreamReset):
                    await late.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await server.incoming_streams.receive()


async def test_both_sides_open_streams() -> None:
    async with quic_pair() as (client, server):
        for here, there in ((client, server), (server, client)):
            async with here.open_stream() as near:
                await near.send_all(b"hello", eof=True)
                async with await there.incoming_streams.receive() as far:
                    assert await far.receive_all() == b"hello"
                    await far.send_all(b"back")
                assert await near.receive_all() == b"back"


# ---- with the connection


async def ended(client: Connection, server: Connection, streams: list[Any]) -> None:
    async with client.open_stream() as near:
        streams.append(near)
        await near.send_all(b"last words")
        streams.append(await server.incoming_streams.receive())
        await trio.sleep(0.1)
        client.close_now(9, "over")
        await trio.sleep(0.1)


async def test_what_arrived_before_the_end_can_still_be_received() -> None:
    async with quic_pair() as (client, server):
        streams: list[Any] = []
        await ended(client, server, streams)
        near, far = streams
        assert await far.receive_some() == b"last words"
        with pytest.raises(ConnectionClosedError) as caught:
            await far.receive_some()
        assert (caught.value.code, caught.value.reason) == (9, "over")
        with pytest.raises(ConnectionClosedError):
            await far.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


async def test_a_stream_tells_its_number() -> None:
    async with quic_pair() as (client, server):
        async with client.open_stream() as a, client.open_send_stream() as b:
            async with server.open_stream() as c, server.open_send_stream() as d:
                assert [s.stream_id for s in (a, b, c, d)] == [0, 2, 1, 3]
                assert repr(a) == "<Stream 0>"
