"""Receiving on streams: every way to take bytes, what is left when one fails, windows, and endings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_pairs import one_way_pair, settle, stream_pair
from trio_wt import (
    ConnectionClosedError,
    IncompleteRead,
    ReadLimitExceeded,
    ReceiveStream,
    SendStream,
    StreamReset,
)
from trio_wt.testing import Network, quic_pair

Receive = Callable[[ReceiveStream], Awaitable[object]]


# ---- ways to take bytes


async def test_receive_some_gives_what_is_there() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"one")
        await a.send_all(b"two")
        await settle()
        assert b.buffered == 6
        assert await b.receive_some() == b"onetwo"
        await a.send_all(b"three")
        assert await b.receive_some(1) == b"t"
        assert await b.receive_some(3) == b"hre"
        assert await b.receive_some(100) == b"e"
        await a.send_eof()
        for _ in range(2):
            assert await b.receive_some() == b""
            assert await b.receive_some(7) == b""


@pytest.mark.parametrize("max_bytes", [0, -1, "3", 1.5])
async def test_receive_some_takes_one_byte_or_more(max_bytes: object) -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"x")
        with pytest.raises((ValueError, TypeError)):
            await b.receive_some(max_bytes)  # type: ignore[arg-type]
        assert await b.receive_some() == b"x"


async def test_receive_exactly_waits_for_all_of_it() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for number in range(10):
                    await a.send_all(b"%d" % number)
                    await trio.sleep(1)

            assert await b.receive_exactly(0) == b""
            assert await b.receive_exactly(1) == b"0"
            assert await b.receive_exactly(7) == b"1234567"
            assert trio.current_time() == pytest.approx(7, abs=0.1)
        with pytest.raises(ValueError, match="negative"):
            await b.receive_exactly(-1)
        assert await b.receive_exactly(2) == b"89"


async def test_receive_until_returns_the_delimiter_too_and_keeps_the_rest() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"GET /\r\nHost: x\r\n\r\nbody\r\n")
        assert await b.receive_until(b"\r\n") == b"GET /\r\n"
        assert await b.receive_until(b"\r\n\r\n") == b"Host: x\r\n\r\n"
        assert await b.receive_until(b"b") == b"b"
        assert await b.receive_some() == b"ody\r\n"
        with pytest.raises(ValueError, match="delimiter"):
            await b.receive_until(b"")


async def test_a_delimiter_may_arrive_byte_by_byte() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):

        async def send() -> None:
            for byte in b"--bo--bound--boundary--end":
                await a.send_all(bytes([byte]))
                await settle()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await b.receive_until(b"--boundary--") == b"--bo--bound--boundary--"
            assert await b.receive_exactly(3) == b"end"


async def test_receive_until_stops_at_its_limit_and_loses_nothing() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"a" * 10 + b"\n" + b"b" * 10)
        assert await b.receive_until(b"\n", 11) == b"a" * 10 + b"\n"
        await a.send_all(b"\n")
        with pytest.raises(ReadLimitExceeded) as caught:
            await b.receive_until(b"\n", 10)
        assert caught.value.limit == 10
        await settle()
        assert await b.receive_until(b"\n") == b"b" * 10 + b"\n"
        await a.send_all(b"no end of it")
        with pytest.raises(ReadLimitExceeded):
            await b.receive_until(b"\n", 5)
        await a.send_all(b" yet")
        await a.send_eof()
        with pytest.raises(IncompleteRead) as incomplete:
            await b.receive_until(b"\n")
        assert incomplete.value.received == 16
        assert await b.receive_all() == b"no end of it yet"


async def test_the_limit_counts_the_delimiter() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"123\r\n")
        with pytest.raises(ReadLimitExceeded):
            await b.receive_until(b"\r\n", 4)
        assert await b.receive_until(b"\r\n", 5) == b"123\r\n"


async def test_receive_all_waits_for_the_end() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                await a.send_all(b"abc")
                await trio.sleep(3)
                await a.send_all(b"def", eof=True)

            assert await b.receive_all() == b"abcdef"
        assert trio.current_time() == pytest.approx(3, abs=0.1)
        assert await b.receive_all() == b""


async def test_receive_all_has_a_limit_and_loses_nothing() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"x" * 100)
        with pytest.raises(ReadLimitExceeded) as caught:
            await b.receive_all(99)
        assert caught.value.limit == 99
        await a.send_eof()
        assert await b.receive_all(100) == b"x" * 100


async def test_iteration_ends_at_the_end() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for word in (b"to", b"be", b"or"):
                    await a.send_all(word)
                    await trio.sleep(1)
                await a.send_eof()

            assert [data async for data in b] == [b"to", b"be", b"or"]
        assert [data async for data in b] == []


async def test_an_incomplete_read_keeps_what_is_there() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"12345", eof=True)
        with pytest.raises(IncompleteRead) as caught:
            await b.receive_exactly(6)
        assert caught.value.received == 5
        assert isinstance(caught.value, trio.BrokenResourceError)
        with pytest.raises(IncompleteRead):
            await b.receive_until(b"6")
        assert await b.receive_exactly(5) == b"12345"
        with pytest.raises(IncompleteRead, match="after 0 bytes"):
            await b.receive_exactly(1)
        assert await b.receive_some() == b""


@given(
    sizes=st.lists(st.integers(0, 3000), max_size=12),
    delimiter=st.sampled_from([b"\n", b"ab", b"aab"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_way_of_receiving_gives_the_same_bytes(
    sizes: list[int], delimiter: bytes, data: st.DataObject
) -> None:
    """However it was cut by the sender and whatever the receiver calls, the bytes come in order, each once."""
    pieces = [bytes(b"aab\n"[(size + i * i) % 4] for i in range(size)) for size in sizes]
    whole = b"".join(pieces)

    async def send(stream: SendStream) -> None:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.sleep(0.0007)
        await stream.send_eof()

    async def receive(stream: ReceiveStream) -> None:
        got = b""
        while True:
            rest = whole[len(got) :]
            way = data.draw(st.sampled_from(["some", "at most", "exactly", "until", "all"]))
            count = data.draw(st.integers(1, 4000))
            if way == "some":
                taken = await stream.receive_some()
            elif way == "at most":
                taken = await stream.receive_some(count)
                assert len(taken) <= count
            elif way == "exactly":
                try:
                    taken = await stream.receive_exactly(count)
                except IncompleteRead as exc:
                    assert exc.received == len(rest) < count
                    continue
                assert len(taken) == count
            elif way == "until":
                end = rest.find(delimiter) + len(delimiter)
                try:
                    taken = await stream.receive_until(delimiter, count)
                except ReadLimitExceeded:
                    assert not len(delimiter) <= end <= count
                    continue
                except IncompleteRead:
                    assert delimiter not in rest
                    continue
                assert taken == rest[:end]
                assert len(taken) <= count
            else:
                try:
                    taken = await stream.receive_all(count)
                except ReadLimitExceeded:
                    assert len(rest) > count
                    continue
                assert taken == rest
            got += taken
            assert whole.startswith(got)
            if not taken:
                break
        assert got == whole

    async def main() -> None:
        async with quic_pair(stream_window=2000) as (client, server):
            async with client.open_send_stream() as a, trio.open_nursery() as nursery:
                nursery.start_soon(send, a)
                async with await server.incoming_receive_streams.receive() as b:
                    await receive(b)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- one task at a time


async def test_a_second_receiver_is_refused() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.receive_exactly, 5)
            await trio.testing.wait_all_tasks_blocked()
            for use in (
                b.receive_some,
                partial(b.receive_exactly, 1),
                partial(b.receive_until, b"\n"),
                b.receive_all,
                b.__anext__,
            ):
                with pytest.raises(trio.BusyResourceError, match="receiving"):
                    await use()
            await a.send_all(b"12345")
        await a.send_all(b"x")
        assert await b.receive_some() == b"x"


async def test_sending_goes_on_beside_receiving() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.receive_exactly, 5)
            await trio.testing.wait_all_tasks_blocked()
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
            await b.send_all(b"12345")


# ---- cancellation


@pytest.mark.parametrize(
    "receive",
    [
        lambda stream: stream.receive_some(),
        lambda stream: stream.receive_exactly(20_000),
        lambda stream: stream.receive_until(b"\n"),
        lambda stream: stream.receive_all(),
    ],
    ids=["some", "exactly", "until", "all"],
)
async def test_a_cancelled_receive_loses_nothing(receive: Receive) -> None:
    whole = (bytes(range(256)) * 320)[:79_999] + b"\n"
    async with quic_pair(stream_window=10_000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for at in range(0, len(whole), 500):
                    await a.send_all(whole[at : at + 500])
                    await trio.sleep(0.7)
                await a.send_eof()

            got = b""
            while len(got) < len(whole):
                with trio.move_on_after(0.5):
                    got += await receive(b)  # type: ignore[operator]
            assert got == whole


async def test_a_cancelled_receive_of_more_than_the_window_grants_nothing_twice() -> None:
    async with quic_pair(stream_window=1000, max_stream_window=1000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, bytes(30_000))
            with trio.move_on_after(0.01) as scope:
                await b.receive_exactly(30_000)
            assert scope.cancelled_caught
            await settle()
            there = b.buffered
            assert 1000 < there < 25_000
            with trio.CancelScope() as scope:
                scope.cancel()
                await b.receive_exactly(30_000)
            await settle()
            assert b.buffered == there
            # What was granted already is not granted again when it is taken.
            got = len(await b.receive_some(there - 100))
            await settle()
            assert b.buffered <= 1000
            while got < 30_000:
                got += len(await b.receive_some())
                assert b.buffered <= 1000
                await settle()
                assert b.buffered <= 1000


# ---- windows


async def test_what_nobody_reads_is_bounded_by_the_window() -> None:
    async with quic_pair(stream_window=5000, send_buffer=3000) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            with trio.move_on_after(1000, shield=True):
                # A keeper, since nothing else is sent while everything stands still.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(a.send_all, bytes(10**6))
                    for _ in range(90):
                        await client.ping()
                        await trio.sleep(10)
                        # One byte was read before.
                        assert b.buffered == server.statistics().unread_bytes == 4999
                        assert client.statistics().unsent_bytes == 3000
                    nursery.cancel_scope.cancel()


async def test_the_streams_of_a_connection_are_bounded_together() -> None:
    async with quic_pair(connection_window=50_000) as (client, server):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                async with client.open_send_stream() as stream:
                    await stream.send_all(bytes(100_000))

            for _ in range(20):
                nursery.start_soon(send)
            await settle()
            assert server.statistics().unread_bytes == 50_000
            total = 0
            async with trio.open_nursery() as reading:
                for _ in range(20):
                    stream = await server.incoming_receive_streams.receive()

                    @reading.start_soon
                    async def receive(stream: ReceiveStream = stream) -> None:
                        nonlocal total
                        async with stream:
                            async for data in stream:
                                total += len(data)

            assert total == 20 * 100_000


async def test_one_stream_that_nobody_reads_does_not_stop_the_others() -> None:
    async with quic_pair() as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, bytes(10**6))
            await settle()
            assert b.buffered == 2**18 - 1
            async with one_way_pair(client, server) as (c, d):
                nursery.start_soon(partial(c.send_all, bytes(3 * 2**20), eof=True))
                assert len(await d.receive_all(2**23)) == 3 * 2**20
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [1001, 50_000, 400_000])
async def test_receive_exactly_may_be_more_than_all_windows(size: int) -> None:
    windows = {"stream_window": 1000, "max_stream_window": 1000, "connection_window": 2000}
    async with quic_pair(**windows, max_connection_window=2000) as (client, server):  # type: ignore[arg-type]
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            sent = bytes(i % 251 for i in range(size + 5000))
            nursery.start_soon(partial(a.send_all, sent, eof=True))
            await settle()
            assert b.buffered <= 1000
            assert await b.receive_exactly(size) == sent[:size]
            await settle()
            assert b.buffered <= 2000
            assert await b.receive_all() == sent[size:]


async def test_receive_until_and_all_may_be_more_than_the_window_but_not_than_their_limit() -> None:
    async with quic_pair(stream_window=1000, max_stream_window=1000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, b"x" * 30_000 + b"\n" + b"y" * 100_000)
            assert await b.receive_until(b"\n") == b"x" * 30_000 + b"\n"
            for receive in (b.receive_all, partial(b.receive_until, b"\n")):
                with pytest.raises(ReadLimitExceeded):
                    await receive(max_bytes=20_000)
                await settle()
                assert 20_000 <= b.buffered <= 22_000
            nursery.cancel_scope.cancel()


async def test_a_window_grows_while_it_is_what_limits_the_peer() -> None:
    """A long way with a small window: the transfer would take a round trip for each 10,000 bytes otherwise."""
    size = 10**6
    for largest, slowest, fastest in ((10_000, 11, 9), (10**6, 3, 0)):
        async with quic_pair(
            network=Network(delay=0.05), stream_window=10_000, max_stream_window=largest
        ) as (client, server):
            async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
                started = trio.current_time()
                nursery.start_soon(partial(a.send_all, bytes(size), eof=True))
                got = 0
                async for data in b:
                    got += len(data)
                assert got == size
                assert fastest < trio.current_time() - started < slowest


async def test_bytes_after_a_stop_cost_the_connection_nothing() -> None:
    windows = {"stream_window": 2000, "connection_window": 3000}
    async with quic_pair(**windows, send_buffer=1000) as (client, server):  # type: ignore[arg-type]
        for _ in range(20):
            async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send(a: SendStream = a) -> None:
                    with pytest.raises(StreamReset):
                        await a.send_all(bytes(10_000))

                await settle()
                b.stop(3)
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(partial(a.send_all, bytes(20_000), eof=True))
            assert len(await b.receive_all()) == 20_000


async def test_streams_left_in_the_middle_cost_the_connection_nothing() -> None:
    """Their unread bytes give their part of the connection's window back, however they end."""
    async with quic_pair(stream_window=2000, connection_window=3000) as (client, server):
        for ending in ("close", "reset", "fin", "fin unread"):
            for _ in range(5):
                async with client.open_send_stream() as a:
                    await a.send_all(bytes(1500))
                    b = await server.incoming_receive_streams.receive()
                    if ending == "reset":
                        await settle()
                        a.reset(1)
                    elif ending == "fin":
                        await a.send_eof()
                        assert len(await b.receive_all()) == 1500
                    elif ending == "fin unread":
                        await a.send_eof()
                        await settle()
                    else:
                        assert len(await b.receive_some(10)) == 10
                    await settle()
                    await b.aclose()
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(partial(a.send_all, bytes(20_000), eof=True))
            assert len(await b.receive_all()) == 20_000


# ---- endings


async def test_a_reset_drops_what_was_not_received() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"x" * 100)
        await settle()
        assert await b.receive_some(10) == b"x" * 10
        a.reset(7)
        await settle()
        assert b.buffered == 0
        for use in (
            b.receive_some,
            partial(b.receive_exactly, 1),
            partial(b.receive_exactly, 0),
            partial(b.receive_until, b"x"),
            b.receive_all,
            b.__anext__,
        ):
            with trio.testing.assert_checkpoints(), pytest.raises(StreamReset) as caught:
                await use()
            assert (caught.value.code, caught.value.remote) == (7, True)
        b.stop(1)
        with pytest.raises(trio.ClosedResourceError):
            await b.receive_some()


async def test_a_reset_wakes_the_receiver() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(StreamReset, match="code 8"):
                    await b.receive_exactly(100)

            await a.send_all(b"some of it")
            await settle()
            a.reset(8)


async def test_a_reset_after_the_end_was_received_changes_nothing() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"whole", eof=True)
        await settle()
        a.reset(8)
        await settle()
        assert await b.receive_all() == b"whole"
        assert await b.receive_some() == b""


async def test_a_stop_ends_receiving_on_this_side() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"never read")
        await settle()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await b.receive_exactly(100)

            await trio.testing.wait_all_tasks_blocked()
            b.stop(9)
        assert b.buffered == 0
        b.stop(10)
        with pytest.raises(trio.ClosedResourceError, match="this side"):
            await b.receive_some()
        await settle()
        with pytest.raises(StreamReset, match="code 9"):
            await a.send_all(b"x")


async def test_a_stop_at_the_end_says_nothing() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        await a.send_all(b"whole", eof=True)
        await settle()
        b.stop(9)
        with pytest.raises(trio.ClosedResourceError):
            await b.receive_some()
        await settle()
        # The sender had ended the stream, and hears of nothing.
        await a.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await a.send_all(b"x")


async def test_what_had_arrived_can_be_received_after_the_connection() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"arrived")
        await settle()
        client.close_now(5, "enough")
        await settle()
        assert await b.receive_exactly(3) == b"arr"
        with pytest.raises(ConnectionClosedError):
            await b.receive_exactly(5)
        with pytest.raises(ConnectionClosedError):
            await b.receive_until(b"\n")
        assert await b.receive_some() == b"ived"
        for use in (b.receive_some, b.receive_all, b.__anext__):
            with pytest.raises(ConnectionClosedError) as caught:
                await use()
            assert (caught.value.code, caught.value.reason) == (5, "enough")


async def test_a_stream_that_had_ended_is_whole_after_the_connection() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"whole", eof=True)
        await settle()
        client.close_now(5)
        await settle()
        assert await b.receive_all() == b"whole"
        assert await b.receive_some() == b""


async def test_one_that_had_not_is_cut_off_even_if_the_end_was_clean() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"half")
        await settle()
        await client.aclose()
        await settle()
        with pytest.raises(ConnectionClosedError):
            await b.receive_all()
        assert await b.receive_some() == b"half"
        with pytest.raises(ConnectionClosedError) as caught:
            [data async for data in b]
        assert caught.value.code == 0
