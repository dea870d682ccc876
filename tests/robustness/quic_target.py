"""A QUIC server to attack on a network in memory, with honest clients beside the attack and a count of what is left."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Any, TypeAlias

import trio

import trio_wt
from tests.certificates import Made, make
from tests.robustness.quic_peer import ALPN, HOST, PORT, SERVER, HostileClient, HostileServer
from tests.robustness.target import MIB, bounded_memory, tasks
from trio_wt._quic.driver import Driver
from trio_wt.testing import Network, NetworkSocket

__all__ = [
    "MIB",
    "Target",
    "Victim",
    "ask",
    "attacked_client",
    "attacked_server",
    "certificate",
    "echo",
    "identity",
    "made",
    "no_answer",
]

Handler: TypeAlias = Callable[[trio_wt.Connection], Awaitable[object]]


@cache
def made() -> Made:
    return make((HOST,))


@cache
def certificate() -> trio_wt.Certificate:
    return trio_wt.Certificate.from_pem(made().pem, made().key_pem)


def identity() -> dict[str, Any]:
    """The certificate, as aioquic takes it."""
    return {"certificate": certificate().chain[0], "private_key": certificate().key}


async def echo(connection: trio_wt.Connection) -> None:
    """Give back what comes on streams and in datagrams."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_echo_datagrams, connection)
        async for stream in connection.incoming_streams:
            nursery.start_soon(_echo_stream, stream)


async def _echo_stream(stream: trio_wt.Stream) -> None:
    with suppress(trio_wt.StreamReset):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def _echo_datagrams(connection: trio_wt.Connection) -> None:
    async for data in connection.datagrams:
        with suppress(trio_wt.DatagramTooLarge):
            await connection.datagrams.send(data)


async def no_answer(connection: trio_wt.Connection) -> None:
    """Take nothing, and stay."""
    await connection.wait_closed()


async def ask(connection: trio_wt.Connection, data: bytes) -> None:
    """An echo."""
    async with connection.open_stream() as stream:
        await stream.send_all(data, eof=True)
        assert await stream.receive_all(len(data)) == data


class Victim:
    """Our end of a connection, watched without being kept alive."""

    def __init__(self, connection: trio_wt.Connection) -> None:
        self._weak = weakref.ref(connection._driver)

    @property
    def is_gone(self) -> bool:
        """Whether nothing holds it any more."""
        return self._weak() is None

    def __getattr__(self, name: str) -> Any:
        driver = self._weak()
        assert driver is not None, "the connection is gone"
        return getattr(trio_wt.Connection(driver, None), name)  # type: ignore[arg-type]


class Target:
    """A running server.

    Attributes:
        network: what it is on.
        served: our ends of the connections, in their order.
        shutdown: ends it gracefully.
        nursery: for the peers.
        carried: bytes that were sent, by sender and receiver.
        log: the datagrams themselves with sender and receiver, once it is a list.
        keep: decides what the network carries.
        finished: whether it has returned.
    """

    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self.network = network
        self.served: list[Victim] = []
        self.finished = False
        self.shutdown = trio.Event()
        self.nursery = nursery
        self.carried: Counter[tuple[object, object]] = Counter()
        self.log: list[tuple[bytes, Any, Any]] | None = None
        self.keep: Callable[[bytes, Any, Any], bool] = lambda data, source, destination: True
        self.peers: list[HostileClient] = []
        network.drop = self._count

    def _count(self, data: bytes, source: object, destination: object) -> bool:
        self.carried[source, destination] += len(data)
        if self.log is not None:
            self.log.append((data, source, destination))
        return self.keep(data, source, destination)

    def sent_to(self, address: object) -> int:
        """Bytes that the server has sent there."""
        return self.carried[SERVER, address]

    def got_from(self, address: object) -> int:
        """Bytes that were sent to the server from there."""
        return self.carried[address, SERVER]

    async def hostile(self, socket: NetworkSocket | None = None, **options: Any) -> HostileClient:
        """A hostile client that has said nothing yet."""
        peer = HostileClient(socket or self.network.socket(), **options)
        self.peers.append(peer)
        await self.nursery.start(peer.run)
        return peer

    async def shaken(self, **options: Any) -> HostileClient:
        """A hostile client after the handshake, and our end of its connection last in ``served``."""
        peer = await self.hostile(**options)
        await peer.shake_hands()
        return peer

    @asynccontextmanager
    async def honest(self, **settings: Any) -> AsyncIterator[trio_wt.Connection]:
        """An honest client."""
        async with trio_wt.open_quic(
            HOST,
            PORT,
            **{
                "alpn": ALPN,
                "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                "socket": self.network.socket(),
                **settings,
            },
        ) as connection:
            yield connection

    async def still_serves(self, **settings: Any) -> None:
        """A new connection opens within a second, and echoes within two."""
        with trio.fail_after(1) as opening:
            async with self.honest(**settings) as connection:
                opening.deadline = trio.current_time() + 2
                await ask(connection, b"still there?")
                opening.deadline = trio.current_time() + 1


@asynccontextmanager
async def attacked_server(
    handler: Handler = echo,
    *,
    memory: float | None = 4,
    patience: float = 3,
    network: Network | None = None,
    bystander: bool = True,
    **options: Any,
) -> AsyncIterator[Target]:
    """A server that is attacked while the block runs.

    A bystander echoes all the time. Afterwards a new connection must open, the attacked ones must be gone, and the server
    must shut down and return; nothing may be left of it all.

    Args:
        handler: of the connections that are attacked, and ``echo`` for honest ones, which are told apart by their ALPN.
        memory: how much more may be allocated at any time in the block, in MiB; None for no such check.
        patience: seconds until the attacked connections are gone, after their peers are.
        network: the network, instead of a good one.
        bystander: whether there is one.
        options: of the server.
    """
    network = network or Network()
    with _set_aside():
        before = tasks()
        async with trio.open_nursery() as nursery:
            target = Target(network, nursery)

            async def serve(connection: trio_wt.Connection) -> None:
                if connection.alpn == "honest":
                    await echo(connection)
                else:
                    target.served.append(Victim(connection))
                    await handler(connection)

            async def run(*, task_status: trio.TaskStatus[Any]) -> None:
                await trio_wt.serve_quic(
                    serve,
                    sockets=[network.socket(SERVER)],
                    alpn=["honest", *ALPN],
                    tls=trio_wt.ServerTLS(certificate()),
                    shutdown=target.shutdown,
                    task_status=task_status,
                    **options,
                )
                target.finished = True

            await nursery.start(run)
            if bystander:
                scope = await nursery.start(_stand_by, target)
            quiet = tasks(), _connections()
            if memory is None:
                yield target
            else:
                with bounded_memory(memory):
                    yield target
            for peer in target.peers:
                peer.leave()
            if not target.finished:
                await _settled(tasks, quiet[0], patience)
                await _settled(_connections, quiet[1], 1)
                await target.still_serves(alpn=["honest"])
            if bystander:
                scope.cancel()
            target.shutdown.set()
        assert tasks() == before
        await trio.sleep(0)
        assert _connections() == 0
        network.socket(SERVER).close()  # the address is free again


@asynccontextmanager
async def attacked_client(
    *, memory: float | None = 4, hostile: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[HostileServer, Victim]]:
    """A client of ours and a hostile server, after the handshake; nothing may be left of it.

    Args:
        memory: how much more may be allocated at any time in the block, in MiB; None for no such check.
        hostile: options of the server.
        settings: of the client.
    """
    network = Network()
    with _set_aside():
        before = tasks()
        async with trio.open_nursery() as nursery:
            peer = HostileServer(network.socket(SERVER), **{**identity(), **(hostile or {})})
            await nursery.start(peer.run)
            async with trio_wt.open_quic(
                HOST,
                PORT,
                **{
                    "alpn": ALPN,
                    "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                    "socket": network.socket(),
                    **settings,
                },
            ) as connection:
                victim = Victim(connection)
                del connection
                await peer.shaken()
                if memory is None:
                    yield peer, victim
                else:
                    with bounded_memory(memory):
                        yield peer, victim
            peer.close()
        assert tasks() == before
        await trio.sleep(0)
        assert _connections(client=True) == 0


async def _stand_by(target: Target, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Echo all the time; an answer may take two seconds."""
    with trio.CancelScope() as scope:
        async with target.honest(alpn=["honest"]) as connection:
            await ask(connection, b"are you there?")
            task_status.started(scope)
            while True:
                with trio.fail_after(2):
                    await ask(connection, b"are you there?")
                await trio.sleep(0.5)


@contextmanager
def _set_aside() -> Iterator[None]:
    """What was there before the block is neither looked at nor counted in it: looking takes longer than most tests."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _settled(figure: Callable[[], int], wanted: int, seconds: float) -> None:
    """Wait until a figure is down to what it was."""
    with trio.move_on_after(seconds):
        while figure() > wanted:
            await trio.sleep(0.2)
    assert figure() <= wanted, f"{figure.__name__}: {figure()} instead of {wanted}"


def _connections(*, client: bool = False) -> int:
    """How many servers' ends, or clients', are held in memory."""
    gc.collect()
    return sum(
        isinstance(thing, Driver) and thing.is_client == client for thing in gc.get_objects()
    )
