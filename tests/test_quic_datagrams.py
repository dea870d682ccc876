"""Unreliable datagrams: sizes, bounds, what is dropped, and endings."""

from __future__ import annotations

import array
from functools import partial

import pytest
import trio
import trio.testing

from tests.quic_pairs import settle
from trio_wt import ConnectionClosedError, ConnectionClosedOK, Datagrams, DatagramTooLarge
from trio_wt.testing import Network, quic_pair


def received(datagrams: Datagrams) -> list[bytes]:
    """All that are there."""
    got = []
    while datagrams.unread:
        got.append(datagrams.receive_nowait())
    return got


async def test_datagrams_go_both_ways() -> None:
    async with quic_pair() as (client, server):
        for a, b in ((client.datagrams, server.datagrams), (server.datagrams, client.datagrams)):
            await a.send(b"one")
            a.send_nowait(bytearray(b"two"))
            a.send_nowait(memoryview(b"_three_")[1:-1])
            await a.send(b"")
            assert [await b.receive() for _ in range(4)] == [b"one", b"two", b"three", b""]
            with pytest.raises(trio.WouldBlock):
                b.receive_nowait()


async def test_a_buffer_may_be_changed_after_sending() -> None:
    async with quic_pair() as (client, server):
        buffer = bytearray(b"first")
        client.datagrams.send_nowait(b"to be sent first")
        client.datagrams.send_nowait(buffer)
        client.datagrams.send_nowait(memoryview(buffer))
        buffer[:] = b"other"
        buffer += b" and longer"
        await settle()
        assert received(server.datagrams) == [b"to be sent first", b"first", b"first"]


@pytest.mark.parametrize("wrong", ["", "text", 5, None, [1, 2], object()], ids=repr)
async def test_anything_else_is_a_type_error_and_hurts_nobody(wrong: object) -> None:
    async with quic_pair() as (client, server):
        with pytest.raises(TypeError):
            await client.datagrams.send(wrong)  # type: ignore[arg-type]
        await client.datagrams.send(b"fine")
        assert await server.datagrams.receive() == b"fine"


async def test_iteration_is_in_order_and_ends_with_a_clean_close() -> None:
    async with quic_pair() as (client, server):
        for number in range(10):
            await client.datagrams.send(b"%d" % number)
        await settle()
        await client.aclose()
        await settle()
        assert [d async for d in server.datagrams] == [b"%d" % number for number in range(10)]
        with pytest.raises(ConnectionClosedOK):
            await server.datagrams.receive()


# ---- sizes


async def test_what_does_not_fit_a_packet_is_refused_before_it_is_sent() -> None:
    async with quic_pair(max_packet_size=1200) as (client, server):
        largest = client.datagrams.max_size
        assert 1100 < largest < 1200
        await client.datagrams.send(bytes(largest))
        with pytest.raises(DatagramTooLarge) as caught:
            client.datagrams.send_nowait(bytes(largest + 1))
        assert (caught.value.size, caught.value.max_size) == (largest + 1, largest)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(DatagramTooLarge, match=f"at most {largest} fit"):
            await client.datagrams.send(bytes(largest + 1))
        await settle()
        assert received(server.datagrams) == [bytes(largest)]
        assert client.statistics().datagrams_dropped_sending == 0


async def test_the_size_is_counted_in_bytes() -> None:
    numbers = memoryview(array.array("Q", range(200)))
    async with quic_pair(max_packet_size=1200) as (client, server):
        with pytest.raises(DatagramTooLarge) as caught:
            await client.datagrams.send(numbers)
        assert caught.value.size == 1600
        await client.datagrams.send(numbers[:100])
        assert await server.datagrams.receive() == numbers[:100].tobytes()


async def test_the_size_grows_with_the_path_s_packets() -> None:
    async with quic_pair() as (client, server):
        at_first = client.datagrams.max_size
        await trio.sleep(1)
        assert at_first < 1200 < 8000 < client.datagrams.max_size < 8952
        await client.datagrams.send(bytes(client.datagrams.max_size))
        assert await server.datagrams.receive() == bytes(client.datagrams.max_size)


@pytest.mark.parametrize("mtu", [1200, 1400, 1500, 5000])
async def test_the_largest_always_fits_the_way(mtu: int) -> None:
    network = Network(mtu=mtu)
    async with quic_pair(network=network) as (client, server):
        for _ in range(20):
            await client.datagrams.send(bytes(client.datagrams.max_size))
            assert len(await server.datagrams.receive()) > 1100
            await trio.sleep(0.2)
        assert mtu * 0.8 < client.datagrams.max_size < mtu


async def test_the_size_falls_when_large_packets_vanish() -> None:
    network = Network()
    async with quic_pair(network=network) as (client, server):
        await trio.sleep(1)
        network.mtu = 1200
        for _ in range(10):
            client.datagrams.send_nowait(bytes(5000) if client.datagrams.max_size > 5000 else b"")
            await trio.sleep(1)
        assert client.datagrams.max_size < 1200
        await client.datagrams.send(bytes(client.datagrams.max_size))
        await settle()
        assert bytes(client.datagrams.max_size) in received(server.datagrams)


async def test_a_peer_that_takes_none() -> None:
    for client_takes, server_takes in ((True, False), (False, True), (False, False)):
        async with quic_pair(
            client_settings={"datagrams": client_takes}, server_settings={"datagrams": server_takes}
        ) as (client, server):
            for side, peer_takes in ((client, server_takes), (server, client_takes)):
                if peer_takes:
                    await side.datagrams.send(b"x")
                    continue
                assert side.datagrams.max_size == 0
                for data in (b"x", bytes(10_000)):
                    with pytest.raises(DatagramTooLarge, match="the peer takes no datagrams"):
                        await side.datagrams.send(data)
            await settle()
            assert await client.ping() > 0
            assert client.datagrams.unread == client_takes
            assert server.datagrams.unread == server_takes


async def test_an_empty_datagram_is_refused_where_none_are_taken() -> None:
    async with quic_pair(datagrams=False) as (client, _):
        with pytest.raises(DatagramTooLarge):
            await client.datagrams.send(b"")
        assert await client.ping() > 0


# ---- bounds


async def test_of_those_that_nobody_receives_the_oldest_are_dropped_and_counted() -> None:
    async with quic_pair(max_datagram_queue=10) as (client, server):
        for number in range(25):
            await client.datagrams.send(b"%d" % number)
            await settle()
        assert server.datagrams.unread == server.statistics().datagrams_unread == 10
        assert server.datagrams.dropped == 15
        assert server.statistics().datagrams_dropped_receiving == 15
        assert client.statistics().datagrams_dropped_sending == 0
        assert received(server.datagrams) == [b"%d" % number for number in range(15, 25)]


async def test_of_those_that_cannot_be_sent_the_oldest_are_dropped_and_counted() -> None:
    network = Network(rate=100_000)
    async with quic_pair(network=network, max_datagram_queue=10) as (client, server):
        await trio.sleep(1)
        for number in range(100):
            await client.datagrams.send(b"%03d" % number + bytes(1000))
        figures = client.statistics()
        assert figures.datagrams_unsent == 10
        assert 60 < figures.datagrams_dropped_sending < 90
        await trio.sleep(5)
        got = [int(data[:3]) for data in received(server.datagrams)]
        lost = server.datagrams.dropped
        assert len(got) + lost + client.statistics().datagrams_dropped_sending == 100
        # The newest have come, in order.
        assert got == sorted(got)
        assert got[-10:] == list(range(90, 100))
        assert client.statistics().datagrams_unsent == 0


async def test_sending_never_waits_for_the_peer() -> None:
    network = Network()
    async with quic_pair(network=network) as (client, _):
        network.loss = 1
        started = trio.current_time()
        for _ in range(1000):
            await client.datagrams.send(bytes(1000))
        assert trio.current_time() == started
        assert client.statistics().datagrams_unsent <= 256


async def test_large_ones_that_nobody_receives_are_bounded_by_their_bytes_too() -> None:
    """UDP carries 64 KiB, so a peer may send datagrams far larger than we would."""
    async with quic_pair() as (client, server):
        await trio.sleep(1)
        size = client.datagrams.max_size
        for _ in range(300):
            await client.datagrams.send(bytes(size))
            await trio.sleep(0.01)
        assert server.datagrams.unread * size <= 2**22
        assert server.datagrams.unread + server.datagrams.dropped == 300


async def test_lost_datagrams_are_not_sent_again() -> None:
    network = Network(seed=1)
    async with quic_pair(network=network) as (client, server):
        network.loss = 0.3
        for number in range(100):
            await client.datagrams.send(b"%d" % number)
            await trio.sleep(0.01)
        network.loss = 0
        await trio.sleep(10)
        got = [int(data) for data in received(server.datagrams)]
        assert got == sorted(set(got))
        assert 40 < len(got) < 95


# ---- several tasks


async def test_each_goes_to_one_of_several_receivers() -> None:
    async with quic_pair() as (client, server):
        got: list[bytes] = []

        async def receive() -> None:
            async for data in server.datagrams:
                got.append(data)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receive)
            for number in range(30):
                await client.datagrams.send(b"%d" % number)
            await settle()
            nursery.cancel_scope.cancel()
        assert sorted(map(int, got)) == list(range(30))


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with quic_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for number in range(50):
                await client.datagrams.send(b"%d" % number)
                await trio.sleep(0.7)

        got: list[bytes] = []
        while len(got) < 50:
            with trio.move_on_after(0.5):
                got.append(await server.datagrams.receive())
        assert got == [b"%d" % number for number in range(50)]


# ---- endings


async def test_receivers_are_served_in_the_order_in_which_they_came() -> None:
    async with quic_pair() as (client, server):
        got: list[tuple[str, bytes]] = []
        impatient = trio.CancelScope()

        async def receive(name: str, scope: trio.CancelScope) -> None:
            with scope:
                got.append((name, await server.datagrams.receive()))

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                scope = impatient if name == "a" else trio.CancelScope()
                nursery.start_soon(receive, name, scope)
                await trio.testing.wait_all_tasks_blocked()
            impatient.cancel()
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(receive, "d", trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            for number in (b"1", b"2", b"3"):
                await client.datagrams.send(number)
                await settle()
        assert got == [("b", b"1"), ("c", b"2"), ("d", b"3")]


async def test_closing_them_closes_nothing_else() -> None:
    async with quic_pair() as (client, server):
        await client.datagrams.send(b"unread")
        await settle()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                assert await server.datagrams.receive() == b"unread"
                with pytest.raises(trio.ClosedResourceError):
                    await server.datagrams.receive()

            await trio.testing.wait_all_tasks_blocked()
            await server.datagrams.aclose()
        await server.datagrams.aclose()
        for use in (server.datagrams.receive, partial(server.datagrams.send, b"x")):
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await use()
        for use_now in (
            server.datagrams.receive_nowait,
            partial(server.datagrams.send_nowait, b"x"),
        ):
            with pytest.raises(trio.ClosedResourceError):
                use_now()
        await client.datagrams.send(b"dropped")
        await settle()
        assert server.datagrams.unread == 0
        assert await server.ping() > 0


async def test_the_end_of_the_connection() -> None:
    for code in (0, 5):
        async with quic_pair() as (client, server):
            await client.datagrams.send(b"arrived")
            await settle()
            client.close_now(code)
            await settle()
            for use in (
                client.datagrams.receive_nowait,
                partial(client.datagrams.send_nowait, b"x"),
            ):
                with pytest.raises(trio.ClosedResourceError):
                    use()
            assert await server.datagrams.receive() == b"arrived"
            kind = ConnectionClosedError if code else ConnectionClosedOK
            with pytest.raises(kind) as caught:
                await server.datagrams.receive()
            assert caught.value.code == code
            with pytest.raises(ConnectionClosedError):
                await server.datagrams.send(b"x")


async def test_every_async_method_is_a_checkpoint() -> None:
    async with quic_pair() as (client, server):
        await client.datagrams.send(b"x")
        await settle()
        with trio.testing.assert_checkpoints():
            await server.datagrams.receive()
        with trio.testing.assert_checkpoints():
            await server.datagrams.send(b"x")
        with trio.testing.assert_checkpoints(), pytest.raises(DatagramTooLarge):
            await server.datagrams.send(bytes(20_000))
        with trio.testing.assert_checkpoints():
            await server.datagrams.aclose()
