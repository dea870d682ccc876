"""Tests of a WebTransport application, on a network in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

import trio_wt
from trio_wt.testing import Network, webtransport_pair


async def greeter(session: trio_wt.WebTransportSession) -> None:
    async for stream in session.incoming_streams:
        async with stream:
            name = await stream.receive_all(100)
            await stream.send_all(b"hello " + name)


async def ask(session: trio_wt.WebTransportSession, name: bytes) -> bytes:
    async with session.open_stream() as stream:
        await stream.send_all(name, eof=True)
        return await stream.receive_all()


def run(scene: Callable[[], Awaitable[None]]) -> None:
    trio.run(scene, clock=trio.testing.MockClock(autojump_threshold=0))


def test_greeting() -> None:
    async def scene() -> None:
        async with webtransport_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(greeter, server)
            assert await ask(client, b"ann") == b"hello ann"
            nursery.cancel_scope.cancel()

    run(scene)


def test_greeting_over_a_bad_network() -> None:
    async def scene() -> None:
        network = Network(seed=7, loss=0.2, delay=(0.05, 0.1), reorder=0.1, duplicate=0.1)
        async with (
            webtransport_pair(network=network) as (client, server),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(greeter, server)
            assert await ask(client, b"x" * 50) == b"hello " + b"x" * 50
            nursery.cancel_scope.cancel()

    run(scene)


def test_a_network_that_fails() -> None:
    async def scene() -> None:
        network = Network()
        async with webtransport_pair(network=network, idle_timeout=20) as (client, _):
            network.loss = 1
            with pytest.raises(trio_wt.ConnectionLost):
                await ask(client, b"ann")

    run(scene)


def test_a_server_that_has_enough() -> None:
    async def scene() -> None:
        async with webtransport_pair(path="/greetings") as (client, server):
            assert server.request.path == "/greetings"
            await server.aclose(17, "enough")
            end = await client.wait_closed()
            assert (end.code, end.reason, end.remote) == (17, "enough", True)

    run(scene)
