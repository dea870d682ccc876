"""The network in memory: what it does to datagrams, when, and the same way each time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from trio_wt.testing import Network, NetworkSocket

A, B = ("a.test", 1), ("b.test", 2)


def two(network: Network) -> tuple[NetworkSocket, NetworkSocket]:
    return network.socket(A), network.socket(B)


async def arrivals(sock: NetworkSocket, seconds: float = 100) -> list[tuple[float, bytes]]:
    """What arrives within a time, and when."""
    got = []
    with trio.move_on_after(seconds):
        while True:
            await sock.wait_readable()
            got += [(trio.current_time(), data) for data, _ in sock.receive()]
    return got


def numbered(count: int, size: int = 4) -> list[tuple[bytes, Any]]:
    return [(n.to_bytes(4) + bytes(size - 4), B) for n in range(count)]


def numbers(got: list[tuple[float, bytes]]) -> list[int]:
    return [int.from_bytes(data[:4]) for _, data in got]


async def test_datagrams_take_a_millisecond_and_tell_their_sender() -> None:
    a, b = two(Network())
    assert a.send([(b"one", B), (b"two", B)]) == 2
    assert b.receive() == []
    started = trio.current_time()
    await b.wait_readable()
    assert trio.current_time() == started + 0.001
    assert b.receive() == [(b"one", A), (b"two", A)]
    assert b.receive() == []


async def test_the_delay_may_be_chosen_and_changed() -> None:
    network = Network(delay=2.0)
    a, b = two(network)
    a.send(numbered(1))
    network.delay = 0.5
    a.send([(b"fast", B)])
    assert await arrivals(b, 10) == [(0.5, b"fast"), (2.0, bytes(4))]


async def test_a_delay_between_two_bounds() -> None:
    a, b = two(Network(delay=(1.0, 3.0)))
    a.send(numbered(200))
    times = [time for time, _ in await arrivals(b)]
    assert len(times) == 200
    assert 1.0 <= min(times) < 1.1
    assert 2.9 < max(times) <= 3.0


async def run_bad(seed: int) -> tuple[list[tuple[float, bytes]], Any]:
    network = Network(
        seed, loss=0.2, delay=(0.1, 0.2), reorder=0.2, duplicate=0.2, corrupt=0.2, mtu=100
    )
    a, b = two(network)
    started = trio.current_time()
    a.send(numbered(500, 100))
    a.send([(bytes(101), B)])
    got = await arrivals(b)
    return [(round(time - started, 9), data) for time, data in got], network.statistics


async def test_the_same_seed_makes_the_same_network() -> None:
    first, second, other = await run_bad(1), await run_bad(1), await run_bad(2)
    assert first == second != other


async def test_bad_networks_do_what_they_are_told_as_often_as_they_are_told() -> None:
    got, figures = await run_bad(3)
    assert figures.sent == 501
    assert figures.too_large == 1
    assert 70 < figures.lost < 130
    arrived = 500 - figures.lost
    assert arrived * 0.1 < figures.duplicated < arrived * 0.3
    assert figures.delivered == len(got) == arrived + figures.duplicated
    assert len(got) * 0.1 < figures.corrupted < len(got) * 0.3
    damaged = [data for _, data in got if data[4:] != bytes(96)]
    assert 0 < len(damaged) <= figures.corrupted
    assert all(sum(byte.bit_count() for byte in data[4:]) == 1 for data in damaged)


async def test_without_reordering_a_fixed_delay_keeps_the_order() -> None:
    a, b = two(Network(delay=1))
    a.send(numbered(300))
    assert numbers(await arrivals(b)) == list(range(300))


async def test_reordering_lets_later_ones_overtake() -> None:
    a, b = two(Network(delay=1, reorder=0.1))
    a.send(numbered(300))
    got = await arrivals(b)
    assert sorted(numbers(got)) == list(range(300)) != numbers(got)
    assert {time for time, _ in got} == {1.0, 2.0}


async def test_loss_can_be_switched_on_and_off() -> None:
    network = Network(loss=1)
    a, b = two(network)
    a.send(numbered(5))
    network.loss = 0
    a.send([(b"x", B)])
    assert [data for _, data in await arrivals(b)] == [b"x"]
    assert network.statistics.lost == 5


async def test_a_black_hole_lasts_as_long_as_it_was_told_to() -> None:
    network = Network()
    a, b = two(network)
    a.send([(b"before", B)])
    network.blackhole(5)
    a.send([(b"in", B)])
    await trio.sleep(4.99)
    a.send([(b"still in", B)])
    await trio.sleep(0.01)
    a.send([(b"after", B)])
    assert [data for _, data in await arrivals(b)] == [b"before", b"after"]


async def test_a_filter_decides() -> None:
    seen = []

    def drop(data: bytes, source: Any, destination: Any) -> bool:
        seen.append((source, destination))
        return data != b"bad"

    a, b = two(Network(drop=drop))
    a.send([(b"bad", B), (b"good", B)])
    assert [data for _, data in await arrivals(b)] == [b"good"]
    assert seen == [(A, B), (A, B)]


async def test_a_bottleneck_spreads_datagrams_out_and_drops_what_does_not_fit_its_queue() -> None:
    network = Network(delay=0, rate=1000, queue=500)
    a, b = two(network)
    a.send(numbered(10, 100))
    got = await arrivals(b)
    assert numbers(got) == [0, 1, 2, 3, 4]
    assert [round(time, 6) for time, _ in got] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert network.statistics.overflowed == 5


async def test_each_direction_has_a_bottleneck_of_its_own() -> None:
    network = Network(delay=0, rate=1000)
    a, b = two(network)
    a.send([(bytes(100), B)])
    b.send([(bytes(100), A)])
    started = trio.current_time()
    await a.wait_readable()
    await b.wait_readable()
    assert trio.current_time() == pytest.approx(started + 0.1)


async def test_who_is_not_there_gets_nothing() -> None:
    network = Network()
    a = network.socket(A)
    a.send([(b"x", B)])
    b = network.socket(B)
    assert await arrivals(b, 1) == []
    assert network.statistics.unreachable == 1


async def test_a_rebound_socket_sends_from_its_new_address_and_only_hears_there() -> None:
    network = Network()
    a, b = two(network)
    a.rebind(("nat.test", 9))
    assert a.local_address == ("nat.test", 9)
    a.send([(b"from the new one", B)])
    await b.wait_readable()
    assert b.receive() == [(b"from the new one", ("nat.test", 9))]
    b.send([(b"to the old one", A), (b"to the new one", ("nat.test", 9))])
    assert [data for _, data in await arrivals(a, 1)] == [b"to the new one"]
    network.socket(A).close()  # it is free
    before = a.local_address
    a.rebind()
    assert a.local_address != before


async def test_addresses_are_unique() -> None:
    network = Network()
    network.socket(A)
    with pytest.raises(OSError, match="in use"):
        network.socket(A)
    with pytest.raises(OSError, match="in use"):
        network.socket(B).rebind(A)
    assert len({network.socket().local_address for _ in range(300)}) == 300


async def test_queues_are_bounded_in_number_and_in_bytes() -> None:
    network = Network()
    a, b = two(network)
    a.send(numbered(5000))
    assert network.statistics.overflowed == 5000 - 4096
    assert len(await arrivals(b, 1)) == 4096
    a.send(numbered(100, 60000))
    assert len(await arrivals(b, 1)) == 4 * 2**20 // 60000


async def test_a_batch_has_64_datagrams_at_most() -> None:
    a, b = two(Network())
    a.send(numbered(100))
    await b.wait_readable()
    assert len(b.receive()) == 64
    await b.wait_readable()
    assert len(b.receive()) == 36


async def test_an_earlier_datagram_wakes_who_waits_for_a_later_one() -> None:
    network = Network(delay=10)
    a, b = two(network)
    a.send([(b"slow", B)])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            await b.wait_readable()
            assert trio.current_time() == 1.5
            assert b.receive() == [(b"fast", A)]

        await trio.sleep(1)
        network.delay = 0.5
        a.send([(b"fast", B)])


async def test_closing() -> None:
    network = Network()
    a, b = two(network)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await b.wait_readable()

        await trio.testing.wait_all_tasks_blocked()
        b.close()
    b.close()
    for use in (b.receive, lambda: b.send([(b"x", A)])):
        with pytest.raises(trio.ClosedResourceError):
            use()
    for wait_ in (b.wait_readable, b.wait_writable):
        with pytest.raises(trio.ClosedResourceError), trio.testing.assert_checkpoints():
            await wait_()
    a.send([(b"x", B)])
    assert network.statistics.unreachable == 1
    network.socket(B)


async def test_waiting_is_a_checkpoint() -> None:
    a, b = two(Network(delay=0))
    a.send([(b"x", B)])
    with trio.testing.assert_checkpoints():
        await b.wait_readable()
    with trio.testing.assert_checkpoints():
        await b.wait_writable()
