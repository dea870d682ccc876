"""Links that lose, damage, delay, reorder, duplicate, go dark, move and shrink: bytes arrive whole, in bounded time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

import trio_wt
from tests.robustness.quic_peer import ALPN, HOST, PORT, SERVER
from tests.robustness.quic_target import certificate, echo
from tests.robustness.target import tasks
from trio_wt.testing import Network, NetworkSocket

SIZE = 60_000
SEEDS = range(3)


@pytest.fixture(autouse=True)
def determined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same test: Trio, too, shuffles its tasks by chance."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(0)


@dataclass
class Link:
    """A client and a server with a bad network between them.

    Attributes:
        network: that network.
        client: the client's end; `served` the server's.
        socket: the client's.
        said: how many datagrams the client has sent, and how many `echoes` came back.
    """

    network: Network
    client: trio_wt.Connection
    socket: NetworkSocket
    served: list[trio_wt.Connection] = field(default_factory=list)
    echoes: int = 0
    said: int = 0


Scene = Callable[[Link], Awaitable[None]]


async def over(
    network: Network,
    scene: Scene,
    *,
    handshake_timeout: float = 10,
    **settings: Any,
) -> None:
    """Let a scene happen between two ends of ours."""
    before, served = tasks(), list[trio_wt.Connection]()

    async def handler(connection: trio_wt.Connection) -> None:
        served.append(connection)
        await echo(connection)

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            await trio_wt.serve_quic(
                handler,
                sockets=[network.socket(SERVER)],
                alpn=ALPN,
                tls=trio_wt.ServerTLS(certificate()),
                handshake_timeout=handshake_timeout,
                task_status=task_status,
                **settings,
            )

        await nursery.start(serve)
        socket = network.socket()
        async with trio_wt.open_quic(
            HOST,
            PORT,
            alpn=ALPN,
            tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
            socket=socket,
            handshake_timeout=handshake_timeout,
            **settings,
        ) as client:
            await scene(Link(network, client, socket, served))
        nursery.cancel_scope.cancel()
    assert tasks() == before


async def transfer(link: Link, *, size: int = SIZE, streams: int = 3, seconds: float) -> None:
    """Echo on several streams at once, and datagrams beside them."""
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_datagrams, link)
            async with trio.open_nursery() as inner:
                for number in range(streams):
                    inner.start_soon(
                        _round_trip, link.client, random.Random(number).randbytes(size)
                    )
            nursery.cancel_scope.cancel()


async def _round_trip(connection: trio_wt.Connection, data: bytes) -> None:
    async with connection.open_stream() as both, trio.open_nursery() as nursery:

        async def send() -> None:
            await both.send_all(data)
            await both.send_eof()

        nursery.start_soon(send)
        assert await both.receive_all(len(data)) == data


async def _datagrams(link: Link) -> None:
    """Say something every 50 ms, and count what comes back; it comes back as it was."""

    async def count() -> None:
        async for data in link.client.datagrams:
            number, rest = int(data[:6]), data[6:]
            assert number < link.said
            assert rest == b"x" * 50
            link.echoes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        while True:
            await link.client.datagrams.send(b"%06d" % link.said + b"x" * 50)
            link.said += 1
            await trio.sleep(0.05)


async def no_event(link: Link) -> None:
    pass


async def dark(link: Link) -> None:
    await trio.sleep(0.1)
    link.network.blackhole(5)


async def dark_again_and_again(link: Link) -> None:
    for _ in range(3):
        await trio.sleep(2)
        link.network.blackhole(5)
        await trio.sleep(10)


async def other_ports(link: Link) -> None:
    """A NAT that forgets every now and then."""
    host, port = link.socket.local_address
    for number in range(1, 6):
        await trio.sleep(0.04)
        link.socket.rebind((host, port + number))


async def other_addresses(link: Link) -> None:
    for _ in range(4):
        await trio.sleep(0.07)
        link.socket.rebind()


async def shrinking(link: Link) -> None:
    """The path carries large packets first, then smaller and smaller ones."""
    await trio.sleep(0.05)
    for mtu in (4100, 1460, 1250):
        link.network.mtu = mtu
        await trio.sleep(1)


async def shrinking_at_once(link: Link) -> None:
    await trio.sleep(0.05)
    link.network.mtu = 1200


async def shrinking_and_growing(link: Link) -> None:
    for mtu in (1200, 9000, 1300, 9000):
        await trio.sleep(0.1)
        link.network.mtu = mtu


async def everything(link: Link) -> None:
    await trio.sleep(0.3)
    link.network.mtu = 1250
    await trio.sleep(0.5)
    link.network.blackhole(2)
    await trio.sleep(2.5)
    link.socket.rebind()
    await trio.sleep(0.5)
    link.network.blackhole(1)
    link.socket.rebind()


#: The network, what happens to it, and within how many seconds a transfer both ways is done.
LINKS: dict[str, tuple[dict[str, Any], Scene, float]] = {
    "good": ({}, no_event, 1),
    "2 % loss": ({"loss": 0.02}, no_event, 5),
    "10 % loss": ({"loss": 0.1}, no_event, 20),
    "corruption": ({"corrupt": 0.05}, no_event, 15),
    "reordering": ({"reorder": 0.3, "delay": (0.005, 0.02)}, no_event, 20),
    "duplication": ({"duplicate": 0.5}, no_event, 3),
    "jitter": ({"delay": (0.001, 0.1)}, no_event, 60),
    "750 ms": ({"delay": 0.375}, no_event, 30),
    "750 ms and 2 % loss": ({"delay": 0.375, "loss": 0.02}, no_event, 90),
    "a narrow road with a short queue": (
        {"rate": 50_000, "queue": 8000, "delay": 0.02},
        no_event,
        60,
    ),
    "5 s of darkness": ({"delay": 0.02}, dark, 20),
    "darkness again and again": ({"delay": 0.02, "rate": 30_000}, dark_again_and_again, 60),
    "new ports": ({"delay": 0.02}, other_ports, 15),
    "new addresses": ({"delay": 0.02}, other_addresses, 15),
    "new addresses and 2 % loss": ({"delay": 0.02, "loss": 0.02}, other_addresses, 30),
    "an MTU that shrinks": ({"delay": 0.02, "mtu": 9000}, shrinking, 40),
    "an MTU that shrinks at once": ({"delay": 0.02, "mtu": 9000}, shrinking_at_once, 30),
    "an MTU that comes and goes": ({"delay": 0.02, "mtu": 9000}, shrinking_and_growing, 40),
    "everything": (
        {
            "loss": 0.02,
            "corrupt": 0.01,
            "reorder": 0.1,
            "duplicate": 0.1,
            "delay": (0.02, 0.05),
            "mtu": 1500,
        },
        everything,
        60,
    ),
}


#: What shows in the network's statistics that it was as bad as it should be.
SIGNS = {"loss": "lost", "corrupt": "corrupted", "duplicate": "duplicated", "queue": "overflowed"}
MOVING = {other_ports, other_addresses, everything}
SHRINKING = {shrinking, shrinking_at_once, shrinking_and_growing, everything}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", LINKS)
async def test_transfer(kind: str, seed: int) -> None:
    options, event, seconds = LINKS[kind]
    network = Network(seed, **options)

    async def scene(link: Link) -> None:
        home, start = link.socket.local_address, trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event, link)
            await transfer(link, seconds=seconds)
            nursery.cancel_scope.cancel()
        assert link.echoes <= link.said
        if event in {dark, dark_again_and_again}:
            assert trio.current_time() - start > 5
        if event in MOVING:
            assert link.socket.local_address != home
            await link.client.ping()
            assert link.served[0].peer_address == link.socket.local_address
        if event in SHRINKING:
            assert network.statistics.too_large

    await over(network, scene)
    for name, sign in SIGNS.items():
        assert name not in options or getattr(network.statistics, sign)


@pytest.mark.parametrize("seed", range(8))
async def test_handshake_with_30_percent_loss(seed: int) -> None:
    network = Network(seed, loss=0.3, delay=0.02)

    async def scene(link: Link) -> None:
        link.network.loss = 0.02
        await transfer(link, seconds=10)

    start = trio.current_time()
    await over(network, scene, handshake_timeout=30)
    assert trio.current_time() - start < 35


@pytest.mark.parametrize("seed", range(6))
async def test_handshake_over_a_very_bad_link(seed: int) -> None:
    network = Network(seed, loss=0.2, corrupt=0.1, reorder=0.3, duplicate=0.3, delay=(0.1, 0.375))

    async def scene(link: Link) -> None:
        await link.client.ping()

    await over(network, scene, handshake_timeout=60)


@pytest.mark.parametrize("seed", SEEDS)
async def test_handshake_with_retry_and_loss(seed: int) -> None:
    async def scene(link: Link) -> None:
        await link.client.ping()

    await over_with_retry(Network(seed, loss=0.3, delay=0.02), scene)


async def over_with_retry(network: Network, scene: Scene) -> None:
    serve = trio_wt.serve_quic
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            await serve(
                echo,
                sockets=[network.socket(SERVER)],
                alpn=ALPN,
                tls=trio_wt.ServerTLS(certificate()),
                retry="always",
                handshake_timeout=60,
                task_status=task_status,
            )

        await nursery.start(run)
        socket = network.socket()
        async with trio_wt.open_quic(
            HOST,
            PORT,
            alpn=ALPN,
            tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
            socket=socket,
            handshake_timeout=60,
        ) as client:
            await scene(Link(network, client, socket))
        nursery.cancel_scope.cancel()


# ---- datagrams


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"loss": 0.02}, 0.9),
        ({"loss": 0.3}, 0.3),
        ({"corrupt": 0.1}, 0.6),
        ({"delay": 0.375}, 0.9),
        ({"reorder": 0.5, "duplicate": 0.5, "delay": (0.001, 0.1)}, 0.9),
    ],
    ids=["2 % loss", "30 % loss", "corruption", "750 ms", "reordering"],
)
async def test_datagrams_keep_flowing(options: dict[str, Any], least: float, seed: int) -> None:
    """Each arrives once or not at all, and as many as the link lets through."""
    network = Network(seed, delay=0.02)

    async def scene(link: Link) -> None:
        for name, value in options.items():
            setattr(network, name, value)
        with trio.move_on_after(10):
            await _datagrams(link)
        assert least * link.said <= link.echoes <= link.said

    await over(network, scene)


@pytest.mark.parametrize("seed", SEEDS)
async def test_datagrams_while_the_client_moves(seed: int) -> None:
    network = Network(seed, delay=0.02)

    async def scene(link: Link) -> None:
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_datagrams, link)
                for _ in range(5):
                    await trio.sleep(0.9)
                    link.socket.rebind()
        assert 0.8 * link.said <= link.echoes <= link.said

    await over(network, scene)


@pytest.mark.parametrize("seed", SEEDS)
async def test_datagrams_through_the_dark(seed: int) -> None:
    """They go on when there is light again."""
    network = Network(seed, delay=0.02)

    async def scene(link: Link) -> None:
        with trio.move_on_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_datagrams, link)
                await trio.sleep(2)
                network.blackhole(5)
                await trio.sleep(8)
                link.echoes, link.said = 0, link.said
                said = link.said
                await trio.sleep(4)
                assert link.echoes > 0.8 * (link.said - said)
                nursery.cancel_scope.cancel()

    await over(network, scene)


# ---- limits


async def test_darkness_longer_than_the_idle_timeout() -> None:
    """Then both know that it is over, and when."""
    network = Network(0, delay=0.02)

    async def scene(link: Link) -> None:
        await link.client.ping()
        network.loss = 1
        start = trio.current_time()
        with pytest.raises(trio_wt.ConnectionLost):
            await link.client.ping()
        assert 8 <= trio.current_time() - start < 11
        end = await link.served[0].wait_closed()
        assert isinstance(end, trio_wt.ConnectionLost)
        assert trio.current_time() - start < 11

    await over(network, scene, idle_timeout=8)


async def test_path_that_carries_nothing_large() -> None:
    """Packets of 1200 bytes are all that it takes; the search for more costs little."""
    network = Network(0, delay=0.02, mtu=1200)

    async def scene(link: Link) -> None:
        await transfer(link, seconds=5)
        assert link.client.statistics().packet_size == 1200
        assert network.statistics.too_large < 40

    await over(network, scene)


async def test_path_that_carries_large_packets() -> None:
    network = Network(0, delay=0.02, mtu=9000)

    async def scene(link: Link) -> None:
        await transfer(link, seconds=5)
        await link.client.ping()
        assert link.client.statistics().packet_size == 8952

    await over(network, scene)
