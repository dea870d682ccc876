"""Sending on streams: what is taken, how much of it may wait, who goes first, and how it ends."""

from __future__ import annotations

import array
from functools import partial

import pytest
import trio
import trio.testing

from tests.quic_pairs import one_way_pair, settle, stream_pair
from trio_wt import ConnectionClosedError, ReceiveStream, SendStream, Stream, StreamReset
from trio_wt.testing import Network, quic_pair

# ---- what is taken


@pytest.mark.parametrize("size", [0, 1, 10_000, 600_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_of_every_kind_arrive(kind: type, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                await a.send_all(kind(content))
                await a.send_all(kind(content), eof=True)

            assert await b.receive_all(2 * size + 1) == content * 2


@pytest.mark.parametrize("send_buffer", [7, 2**18])
async def test_memoryviews_of_other_formats_are_their_bytes(send_buffer: int) -> None:
    numbers = array.array("I", range(1000))
    rows = memoryview(bytes(range(24))).cast("B", (4, 6))
    async with quic_pair(send_buffer=send_buffer) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            await a.send_all(memoryview(numbers))
            await a.send_all(rows)
            await a.send_all(memoryview(b"0123456789")[2:5])
            await a.send_all(memoryview(b"").cast("I"))
            await a.send_eof()
            assert await b.receive_all() == numbers.tobytes() + bytes(range(24)) + b"234"


@pytest.mark.parametrize("send_buffer", [7, 2**18])
async def test_other_buffers_are_sent_whole(send_buffer: int) -> None:
    """Such as are no bytes-like by the types, but as far as Python is concerned."""
    numbers = array.array("I", range(1000))
    async with quic_pair(send_buffer=send_buffer) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            await a.send_all(numbers)  # type: ignore[arg-type]
            await a.send_eof()
            assert await b.receive_all() == numbers.tobytes()


@pytest.mark.parametrize("send_buffer", [7, 2**18])
async def test_a_buffer_may_be_changed_and_resized_after_sending(send_buffer: int) -> None:
    async with quic_pair(send_buffer=send_buffer) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            buffer = bytearray(b"first")
            await a.send_all(buffer)
            buffer[:] = b"other"
            await a.send_all(memoryview(buffer)[1:])
            buffer[1:] = b"_____"
            buffer += b"and more"  # no export is left
            await a.send_eof()
            assert await b.receive_all() == b"firstther"


async def test_a_large_buffer_may_be_changed_after_sending() -> None:
    async with quic_pair(network=Network(loss=0.1)) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                buffer = bytearray(300_000)
                for value in range(5):
                    buffer[:] = bytes([value]) * len(buffer)
                    await a.send_all(buffer)
                buffer[:] = b"x" * len(buffer)
                await a.send_eof()

            got = await b.receive_all(2**22)
            assert got == b"".join(bytes([value]) * 300_000 for value in range(5))


@pytest.mark.parametrize("wrong", ["", "text", 5, None, [], [1, 2], object()], ids=repr)
async def test_anything_else_is_a_type_error_and_hurts_nobody(wrong: object) -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        with pytest.raises(TypeError):
            await a.send_all(wrong)  # type: ignore[arg-type]
        await a.send_all(b"fine")
        await a.send_eof()
        assert await b.receive_all() == b"fine"


async def test_an_end_may_come_with_the_last_bytes() -> None:
    async with quic_pair(send_buffer=1000) as (client, server):
        for size in (0, 10, 1000, 50_000):
            async with stream_pair(client, server) as (a, b), trio.open_nursery() as nursery:
                nursery.start_soon(partial(a.send_all, bytes(size), eof=True))
                assert await b.receive_all() == bytes(size)
                with pytest.raises(trio.ClosedResourceError, match="ended on this side"):
                    await a.send_all(b"x")


async def test_an_end_may_come_alone() -> None:
    async with quic_pair() as (client, server):
        async with client.open_send_stream() as a:
            await a.send_eof()
            async with await server.incoming_receive_streams.receive() as b:
                assert await b.receive_all() == b""


# ---- backpressure


@pytest.mark.parametrize("chunk", [100, 1000, 10**6])
async def test_a_sender_stops_at_its_buffer_and_the_window(chunk: int) -> None:
    async with quic_pair(stream_window=50_000, send_buffer=30_000) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            taken = 1  # by the pair
            with trio.move_on_after(1) as scope:
                while True:
                    await a.send_all(bytes(chunk))
                    taken += chunk
            assert scope.cancelled_caught
            assert taken <= 80_000
            assert chunk > 1000 or taken > 80_000 - chunk
            figures = client.statistics()
            assert figures.unsent_bytes == 30_000
            assert figures.bytes_in_flight == 0
            assert server.statistics().unread_bytes == 49_999
            a.reset(0)
            assert client.statistics().unsent_bytes == 0


async def test_the_send_buffer_does_not_count_what_is_under_way() -> None:
    """A buffer smaller than what the path holds must not slow the transfer down to one buffer a round trip."""
    async with quic_pair(network=Network(delay=0.1), send_buffer=5000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            started = trio.current_time()
            nursery.start_soon(partial(a.send_all, bytes(10**6), eof=True))
            assert len(await b.receive_all()) == 10**6
            assert trio.current_time() - started < 4


async def test_waiting_for_room() -> None:
    async with quic_pair(stream_window=50_000, send_buffer=30_000) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            await a.wait_send_all_might_not_block()
            await a.send_all(bytes(79_000))
            await settle()
            await a.wait_send_all_might_not_block()
            await a.send_all(bytes(999))
            async with trio.open_nursery() as nursery:
                woken: list[float] = []

                @nursery.start_soon
                async def wait() -> None:
                    await a.wait_send_all_might_not_block()
                    woken.append(trio.current_time())

                await trio.sleep(5)
                assert not woken
                await b.receive_some()
                await settle()
                assert woken


async def test_waiting_for_room_ends_with_the_stream() -> None:
    for how in ("stop", "reset", "close", "connection", "peer's connection"):
        async with quic_pair(stream_window=1000, send_buffer=1000) as (client, server):
            async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
                nursery.start_soon(a.send_all, bytes(1999))
                await settle()

                @nursery.start_soon
                async def wait() -> None:
                    if how in ("reset", "close"):
                        with pytest.raises(trio.ClosedResourceError):
                            await a.wait_send_all_might_not_block()
                    else:
                        await a.wait_send_all_might_not_block()

                await settle()
                assert len(nursery.child_tasks) == 1
                if how == "stop":
                    b.stop(1)
                elif how == "reset":
                    a.reset(1)
                elif how == "close":
                    await a.aclose()
                else:
                    (client if how == "connection" else server).close_now(1)
                await settle()
                assert not nursery.child_tasks
                # The error of the end comes from sending.
                with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                    await a.send_all(b"x")


# ---- one task at a time


async def test_a_second_sender_is_refused() -> None:
    async with quic_pair(stream_window=1000, send_buffer=1000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, bytes(5000))
            await trio.testing.wait_all_tasks_blocked()
            for use in (
                partial(a.send_all, b"x"),
                partial(a.send_all, b""),
                a.wait_send_all_might_not_block,
                a.send_eof,
            ):
                with pytest.raises(trio.BusyResourceError, match="sending"):
                    await use()
            assert await b.receive_exactly(5000) == bytes(5000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(a.send_all, bytes(1000))
            await trio.testing.wait_all_tasks_blocked()
            await a.send_all(b"")


# ---- cancellation


async def test_a_cancelled_send_has_sent_a_part_from_the_front() -> None:
    content = bytes(i % 251 for i in range(100_000))
    async with quic_pair(stream_window=5000, send_buffer=3000) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            with trio.move_on_after(1) as scope:
                await a.send_all(content)
            assert scope.cancelled_caught
            await a.send_eof()
            got = await b.receive_all()
            assert content.startswith(got)
            assert 3000 <= len(got) <= 8000


async def test_a_send_that_is_cancelled_beforehand_sends_nothing() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        for use in (partial(a.send_all, b"never"), partial(a.send_all, b"never", eof=True)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await use()
            assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.send_eof()
        assert scope.cancelled_caught
        await a.send_all(b"this")
        await a.send_eof()
        assert await b.receive_all() == b"this"


# ---- priorities


async def order_of_ends(
    priorities: list[int], later: dict[int, int] | None = None
) -> tuple[list[int], list[float]]:
    """Send on several streams at once over a narrow way: which end first, and when."""
    network = Network(rate=10**6)
    order: list[int] = []
    times: list[float] = []

    async def receive(stream: ReceiveStream) -> None:
        async with stream:
            await stream.receive_all(2**20)
            order.append(stream.stream_id // 4)
            times.append(trio.current_time())

    async def send(stream: SendStream) -> None:
        async with stream:
            await stream.send_all(bytes(100_000), eof=True)

    async with quic_pair(network=network) as (client, server), trio.open_nursery() as nursery:
        blocks = [client.open_send_stream(priority=priority) for priority in priorities]
        streams = [await block.__aenter__() for block in blocks]
        assert [stream.priority for stream in streams] == priorities
        try:
            async with trio.open_nursery() as sending:
                for stream in streams:
                    sending.start_soon(stream.send_all, bytes(100_000))
            for number, priority in (later or {}).items():
                streams[number].priority = priority
                assert streams[number].priority == priority
            for stream in streams:
                await stream.send_eof()
            for _ in streams:
                nursery.start_soon(receive, await server.incoming_receive_streams.receive())
            await trio.sleep(5)
        finally:
            for block in reversed(blocks):
                await block.__aexit__(None, None, None)
    return order, times


async def test_a_higher_priority_goes_first() -> None:
    order, times = await order_of_ends([0, 5, -3, 9])
    assert order == [3, 1, 0, 2]
    # Each waits for those before it, rather than sharing with them.
    assert times == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.08)


async def test_a_priority_may_be_changed_while_bytes_wait() -> None:
    order, _ = await order_of_ends([0, 0, 0, 0], {3: 2, 1: 1, 0: -1})
    assert order == [3, 1, 2, 0]


async def test_equal_priorities_share() -> None:
    _, times = await order_of_ends([4, 4, 4, 4])
    assert times == pytest.approx([0.4] * 4, abs=0.08)


# ---- endings


async def test_ending_twice_is_no_error() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"x", eof=True)
        await a.send_eof()
        await a.send_eof()
        assert await b.receive_all() == b"x"
        for use in (partial(a.send_all, b"y"), a.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await use()


async def test_a_reset_wakes_the_sender_and_is_told() -> None:
    async with quic_pair(stream_window=1000, send_buffer=1000) as (client, server):
        async with one_way_pair(client, server) as (a, b), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await a.send_all(bytes(5000))

            await settle()
            a.reset(6)
            a.reset(7)
            await settle()
            assert not nursery.child_tasks
            with pytest.raises(StreamReset, match="code 6"):
                await b.receive_some()
            await a.send_eof()
            await a.aclose()


async def test_a_reset_of_what_is_delivered_changes_nothing() -> None:
    async with quic_pair() as (client, server), one_way_pair(client, server) as (a, b):
        await a.send_all(b"x", eof=True)
        assert await b.receive_all() == b"x"
        await settle()
        before = client.statistics().packets_sent
        a.reset(6)
        await settle()
        assert client.statistics().packets_sent == before
        assert await b.receive_some() == b""


async def test_a_reset_of_what_is_under_way_is_sent() -> None:
    network = Network()
    async with quic_pair(network=network) as (client, server):
        async with one_way_pair(client, server) as (a, b):
            network.loss = 1
            await a.send_all(b"x", eof=True)
            await trio.sleep(0.001)
            a.reset(6)
            network.loss = 0
            with pytest.raises(StreamReset, match="code 6"):
                await b.receive_some()


async def test_a_stop_by_the_peer_ends_sending() -> None:
    async with quic_pair(stream_window=1000, send_buffer=1000) as (client, server):
        async with stream_pair(client, server) as (a, b), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(StreamReset) as caught:
                    await a.send_all(bytes(5000))
                assert (caught.value.code, caught.value.remote) == (12, True)

            await settle()
            b.stop(12)
            await settle()
            assert not nursery.child_tasks
            for _ in range(2):
                with pytest.raises(StreamReset, match="code 12"):
                    await a.send_all(b"x")
                with pytest.raises(StreamReset, match="code 12"):
                    await a.send_all(b"")
            await a.wait_send_all_might_not_block()
            # The peer wants no more, and none comes: that is no error.
            await a.send_eof()
            # The other direction goes on.
            await b.send_all(b"still here", eof=True)
            assert await a.receive_all() == b"still here"


async def test_each_of_these_errors_is_an_object_of_its_own() -> None:
    async with quic_pair() as (client, server), stream_pair(client, server) as (a, b):
        b.stop(12)
        await settle()
        caught = []
        for _ in range(2):
            with pytest.raises(StreamReset) as info:
                await a.send_all(b"x")
            caught.append(info.value)
        assert caught[0] is not caught[1]


async def test_after_the_connection_all_of_it_raises() -> None:
    for ours, code in ((True, 0), (True, 5), (False, 0), (False, 5)):
        async with quic_pair() as (client, server), stream_pair(client, server) as (a, _):
            (client if ours else server).close_now(code, "enough")
            await settle()
            for use in (partial(a.send_all, b"x"), partial(a.send_all, b""), a.send_eof):
                with trio.testing.assert_checkpoints():
                    if ours:
                        with pytest.raises(trio.ClosedResourceError):
                            await use()
                    else:
                        with pytest.raises(ConnectionClosedError) as caught:
                            await use()
                        assert (caught.value.code, caught.value.remote) == (code, True)
            a.reset(1)
            a.priority = 5


async def test_bytes_sent_before_the_end_arrive_over_a_bad_way() -> None:
    network = Network(seed=5, loss=0.2, reorder=0.2, duplicate=0.1, delay=(0.01, 0.05))
    content = bytes(i % 251 for i in range(150_000))

    async with quic_pair(network=network) as (client, server), trio.open_nursery() as nursery:

        async def receive(stream: Stream) -> None:
            async with stream:
                assert await stream.receive_all() == content

        async def send() -> None:
            async with client.open_stream() as stream:
                await stream.send_all(content, eof=True)
                await stream.receive_all()

        for _ in range(3):
            nursery.start_soon(send)
        for _ in range(3):
            nursery.start_soon(receive, await server.incoming_streams.receive())
