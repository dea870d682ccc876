"""The streams that a peer opens, as a channel."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.quic_pairs import settle
from trio_wt import (
    Connection,
    ConnectionClosedError,
    ConnectionClosedOK,
    IncomingStreams,
    ReceiveStream,
    Stream,
    StreamReset,
)
from trio_wt.testing import quic_pair


async def open_streams(connection: Connection, count: int, *, both_ways: bool = True) -> None:
    """Streams that end after their number."""
    for number in range(count):
        opener = connection.open_stream if both_ways else connection.open_send_stream
        async with opener() as stream:  # type: ignore[attr-defined]
            await stream.send_all(b"%d" % number)


@pytest.mark.parametrize("both_ways", [True, False])
async def test_streams_come_in_the_order_of_their_opening(both_ways: bool) -> None:
    async with quic_pair() as (client, server):
        for opener, taker in ((client, server), (server, client)):
            await open_streams(opener, 20, both_ways=both_ways)
            channel: IncomingStreams[Stream] | IncomingStreams[ReceiveStream] = (
                taker.incoming_streams if both_ways else taker.incoming_receive_streams
            )
            await settle()
            assert len(channel) == taker.statistics().unaccepted_streams == 20
            for number in range(20):
                stream = await channel.receive()
                assert isinstance(stream, Stream) == both_ways
                assert await stream.receive_all() == b"%d" % number
                await stream.aclose()
            assert len(channel) == 0
            with pytest.raises(trio.WouldBlock):
                channel.receive_nowait()


async def test_each_goes_to_one_of_several_receivers() -> None:
    async with quic_pair() as (client, server):
        got: list[bytes] = []

        async def receive() -> None:
            async for stream in server.incoming_streams:
                async with stream:
                    got.append(await stream.receive_all())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receive)
            await open_streams(client, 30)
            await settle()
            nursery.cancel_scope.cancel()
        assert sorted(map(int, got)) == list(range(30))


async def test_a_cancelled_receive_loses_no_stream() -> None:
    async with quic_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for _ in range(40):
                async with client.open_send_stream() as stream:
                    await stream.send_all(b"x")
                await trio.sleep(0.7)

        numbers = []
        while len(numbers) < 40:
            with trio.move_on_after(0.5):
                stream = await server.incoming_receive_streams.receive()
                numbers.append(stream.stream_id)
                await stream.aclose()
        assert numbers == [4 * n + 2 for n in range(40)]


async def test_streams_that_nobody_takes_are_bounded() -> None:
    async with quic_pair(max_streams=10, stream_window=1000) as (client, server):
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                async with client.open_stream() as stream:
                    await stream.send_all(bytes(5000))

            for _ in range(100):
                nursery.start_soon(flood)
            await settle()
            figures = server.statistics()
            assert figures.unaccepted_streams == 10
            assert figures.unread_bytes == 10_000
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("both_ways", [True, False])
async def test_streams_that_are_over_before_they_are_taken_are_bounded(both_ways: bool) -> None:
    """As a peer does that opens streams and resets them at once."""
    async with quic_pair(max_streams=5, max_receive_streams=5) as (client, server):
        opened = 0
        with trio.move_on_after(5) as scope:
            while True:
                opener = client.open_stream if both_ways else client.open_send_stream
                async with opener() as stream:  # type: ignore[attr-defined]
                    stream.reset(1)
                    opened += 1
        assert scope.cancelled_caught
        assert opened == server.statistics().unaccepted_streams == 5
        channel = server.incoming_streams if both_ways else server.incoming_receive_streams
        for _ in range(5):
            async with await channel.receive() as stream:  # type: ignore[attr-defined]
                with pytest.raises(StreamReset, match="code 1"):
                    await stream.receive_some()
        # Now there is room for five others.
        await trio.sleep(1)
        await open_streams(client, 5, both_ways=both_ways)


async def test_what_comes_after_closing_is_refused() -> None:
    async with quic_pair(cancelled_code=44) as (client, server):
        async with client.open_stream() as waiting, trio.open_nursery() as nursery:
            await waiting.send_all(b"x")
            await settle()

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await server.incoming_receive_streams.receive()

            await trio.testing.wait_all_tasks_blocked()
            await server.incoming_streams.aclose()
            await server.incoming_streams.aclose()
            await server.incoming_receive_streams.aclose()
            async with client.open_stream() as late, client.open_send_stream() as one_way:
                await late.send_all(b"x")
                await one_way.send_all(b"x")
                await settle()
                for stream in (waiting, late):
                    with pytest.raises(StreamReset, match="code 44"):
                        await stream.receive_some()
                for sending in (waiting, late, one_way):
                    with pytest.raises(StreamReset, match="code 44"):
                        await sending.send_all(b"x")
        for channel in (server.incoming_streams, server.incoming_receive_streams):
            assert len(channel) == 0  # type: ignore[arg-type]
            with pytest.raises(trio.ClosedResourceError):
                channel.receive_nowait()  # type: ignore[attr-defined]
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await channel.receive()  # type: ignore[attr-defined]
        # They cost the peer nothing of its limit.
        await open_streams(client, 300)
        # The other way is as open as before.
        async with server.open_stream() as ours:
            await ours.send_all(b"x", eof=True)
            async with await client.incoming_streams.receive() as theirs:
                assert await theirs.receive_all() == b"x"


async def test_streams_that_had_come_can_be_taken_after_a_clean_end() -> None:
    async with quic_pair() as (client, server):
        await open_streams(client, 3)
        await client.aclose()
        await settle()
        got = []
        async for stream in server.incoming_streams:
            async with stream:
                got.append(await stream.receive_all())
        assert got == [b"0", b"1", b"2"]
        with pytest.raises(ConnectionClosedOK):
            await server.incoming_streams.receive()


@pytest.mark.parametrize("code", [0, 7])
async def test_the_end_wakes_the_receivers(code: int) -> None:
    async with quic_pair() as (client, server), trio.open_nursery() as nursery:
        kind = ConnectionClosedError if code else ConnectionClosedOK

        async def receive_theirs(channel: IncomingStreams[Stream]) -> None:
            with pytest.raises(kind) as caught:
                await channel.receive()
            assert (caught.value.code, caught.value.remote) == (code, True)

        async def receive_ours(channel: IncomingStreams[Stream]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await channel.receive()

        for _ in range(2):
            nursery.start_soon(receive_theirs, server.incoming_streams)
            nursery.start_soon(receive_theirs, server.incoming_receive_streams)
            nursery.start_soon(receive_ours, client.incoming_streams)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose(code)


async def test_every_async_method_is_a_checkpoint() -> None:
    async with quic_pair() as (client, server):
        await open_streams(client, 1)
        await settle()
        with trio.testing.assert_checkpoints():
            await server.incoming_streams.receive()
        with trio.testing.assert_checkpoints():
            await server.incoming_streams.aclose()
        await client.aclose()
        await settle()
        for channel in (server.incoming_receive_streams, client.incoming_streams):
            with trio.testing.assert_checkpoints():
                with pytest.raises((ConnectionClosedOK, trio.ClosedResourceError)):
                    await channel.receive()  # type: ignore[attr-defined]
