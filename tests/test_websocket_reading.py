"""Who reads a socket: in a conversation the task that waits, otherwise the reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.frames import frame
from tests.test_websocket_connection import HANDSHAKE
from trio_wt import ConnectionClosedError, ConnectionClosedOK, WebSocket, serve_websocket

pytestmark = pytest.mark.real_clock


@asynccontextmanager
async def conversation(**settings: object) -> AsyncIterator[tuple[trio.SocketStream, WebSocket]]:
    """A server's WebSocket that has had a few messages, so that whoever waits reads, and its peer."""
    opened: list[WebSocket] = []
    ready, done = trio.Event(), trio.Event()

    async def handler(websocket: WebSocket) -> None:
        for _ in range(3):
            await websocket.send(await websocket.receive())
        opened.append(websocket)
        ready.set()
        await done.wait()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: serve_websocket(
                handler,
                0,
                host="127.0.0.1",
                task_status=task_status,
                **settings,  # type: ignore[arg-type]
            )
        )
        port = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(HANDSHAKE.replace(b"example.test", b"127.0.0.1"))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            for _ in range(3):
                await stream.send_all(frame(2, b"hello", masked=True))
                assert await stream.receive_some() == frame(2, b"hello", masked=False)
            await ready.wait()
            assert opened[0]._connection._readership.lent
            yield stream, opened[0]
        done.set()
        nursery.cancel_scope.cancel()


async def test_an_application_that_stays_away_delays_no_ping() -> None:
    async with conversation() as (stream, _):
        await stream.send_all(frame(9, b"?", masked=True))
        with trio.fail_after(1):
            assert await stream.receive_some() == frame(10, b"?", masked=False)


async def test_pings_are_answered_while_the_application_waits() -> None:
    async with conversation() as (stream, websocket), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.receive)
        await trio.sleep(0.1)
        await stream.send_all(frame(9, b"?", masked=True))
        with trio.fail_after(1):
            assert await stream.receive_some() == frame(10, b"?", masked=False)
        await stream.send_all(frame(2, b"done", masked=True))


async def test_close_by_another_task_wakes_the_task_that_reads() -> None:
    async with conversation(close_timeout=0.1) as (_, websocket), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await websocket.receive()

        await trio.sleep(0.05)
        with trio.fail_after(2):
            await websocket.close()


async def test_the_peers_close_and_its_loss_reach_the_task_that_reads() -> None:
    async with conversation() as (stream, websocket), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(ConnectionClosedOK):
                await websocket.receive()

        await trio.sleep(0.05)
        await stream.send_all(frame(8, b"\x03\xe8", masked=True))
    async with conversation() as (stream, websocket), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive_again() -> None:
            with pytest.raises(ConnectionClosedError):
                await websocket.receive()

        await trio.sleep(0.05)
        await stream.aclose()


async def test_our_own_ping_gets_its_pong_from_the_reader_at_once() -> None:
    async with conversation() as (stream, websocket), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            ping = await stream.receive_some()
            await stream.send_all(frame(10, ping[2:], masked=True))

        with trio.fail_after(1):
            await websocket.ping()


async def test_keepalive_ends_the_task_that_reads() -> None:
    async with conversation(ping_interval=0.1, ping_timeout=0.1) as (_, websocket):
        with trio.fail_after(2), pytest.raises(ConnectionClosedError) as caught:
            await websocket.receive()
        assert caught.value.code == 1011


async def test_a_cancelled_wait_loses_nothing_and_gives_the_transport_back() -> None:
    async with conversation() as (stream, websocket):
        for number in range(20):
            with trio.move_on_after(0.005 if number % 2 else 0.03):
                await websocket.receive()
            await stream.send_all(frame(2, b"%d" % number, masked=True))
            assert await websocket.receive() == b"%d" % number


async def test_one_task_at_a_time() -> None:
    async with conversation() as (stream, websocket), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.receive)
        await trio.sleep(0.05)
        with pytest.raises(trio.BusyResourceError):
            await websocket.receive()
        with pytest.raises(trio.BusyResourceError):
            websocket.receive_nowait()
        await stream.send_all(frame(2, b"done", masked=True))
