"""Tests of a QUIC application, on a network in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

import trio_wt
from trio_wt.testing import Network, quic_pair


async def greeter(connection: trio_wt.Connection) -> None:
    async for stream in connection.incoming_streams:
        async with stream:
            name = await stream.receive_all(100)
            await stream.send_all(b"hello " + name)


async def ask(connection: trio_wt.Connection, name: bytes) -> bytes:
    async with connection.open_stream() as stream:
        await stream.send_all(name, eof=True)
        return await stream.receive_all()


def run(scene: Callable[[], Awaitable[None]]) -> None:
    trio.run(scene, clock=trio.testing.MockClock(autojump_threshold=0))


def test_greeting() -> None:
    async def scene() -> None:
        async with quic_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(greeter, server)
            assert await ask(client, b"ann") == b"hello ann"
            nursery.cancel_scope.cancel()

    run(scene)


def test_greeting_over_a_bad_network() -> None:
    async def scene() -> None:
        network = Network(seed=7, loss=0.2, delay=(0.05, 0.1), reorder=0.1, duplicate=0.1)
        async with (
            quic_pair(network=network) as (client, server),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(greeter, server)
            assert await ask(client, b"x" * 50) == b"hello " + b"x" * 50
            nursery.cancel_scope.cancel()

    run(scene)


def test_a_network_that_fails() -> None:
    async def scene() -> None:
        network = Network()
        async with quic_pair(network=network, idle_timeout=20) as (client, _):
            network.loss = 1
            started = trio.current_time()
            with pytest.raises(trio_wt.ConnectionLost):
                await ask(client, b"ann")
            assert 20 <= trio.current_time() - started < 21

    run(scene)


def test_a_client_that_changes_its_address() -> None:
    async def scene() -> None:
        network = Network()
        certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
        socket = network.socket()
        served = []

        async def handler(connection: trio_wt.Connection) -> None:
            served.append(connection)
            await greeter(connection)

        async with trio.open_nursery() as nursery:
            serve = partial(
                trio_wt.serve_quic,
                handler,
                sockets=[network.socket(("server.test", 4433))],
                alpn=["greetings"],
                tls=trio_wt.ServerTLS(certificate),
            )
            await nursery.start(serve)
            async with trio_wt.open_quic(
                "server.test",
                4433,
                alpn=["greetings"],
                tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate.sha256]),
                socket=socket,
            ) as client:
                assert await ask(client, b"ann") == b"hello ann"
                assert served[0].peer_address == socket.local_address
                socket.rebind()  # as by a router that has forgotten the client
                assert await ask(client, b"bob") == b"hello bob"
                assert served[0].peer_address == socket.local_address
            nursery.cancel_scope.cancel()

    run(scene)
