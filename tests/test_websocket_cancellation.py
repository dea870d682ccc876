"""Cancelling any call at any checkpoint leaves the connection usable, or closed with a code."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_wt import ConnectionClosed, WebSocket, wrap_client_stream, wrap_server_stream

Operation = Callable[[WebSocket], Awaitable[object]]
BIG = b"B" * 300_000
# Fills the server's inbox and its read-ahead, so that what follows has to wait.
FILL = b"Q" * 100_000


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope right after the n-th step of the task that entered it, when it waits at a checkpoint."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@asynccontextmanager
async def slow_pair() -> AsyncIterator[tuple[WebSocket, WebSocket]]:
    """A pair on a stream without any buffer: every send waits until the other side reads."""
    a, b = trio.testing.lockstep_stream_pair()
    servers: list[WebSocket] = []
    ready, done = trio.Event(), trio.Event()

    async def serve() -> None:
        async with wrap_server_stream(b, max_queue_bytes=1000) as websocket:
            servers.append(websocket)
            ready.set()
            await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with wrap_client_stream(
            a, "ws://example.test/", compression=None, write_limit=1000
        ) as ws:
            await ready.wait()
            try:
                yield ws, servers[0]
            finally:
                done.set()


async def fragments() -> AsyncIterator[bytes]:
    for _ in range(3):
        await trio.lowlevel.checkpoint()
        yield b"f" * 2000


async def send_stream(ws: WebSocket) -> None:
    async with ws.send_stream(text=True) as message:
        await message.send("s" * 2000)
        await message.send("s" * 2000)


async def receive_stream(ws: WebSocket) -> None:
    async with ws.receive_stream() as message:
        async for _ in message:
            await trio.lowlevel.checkpoint()


OPERATIONS: dict[str, Operation] = {
    "send": lambda ws: ws.send("text"),
    "send big": lambda ws: ws.send(BIG),
    "send many": lambda ws: ws.send_many([b"1", b"2", b"3" * 5000]),
    "send iterable": lambda ws: ws.send([b"f" * 2000, b"f" * 2000, b"f" * 2000]),
    "send async iterable": lambda ws: ws.send(fragments()),
    "send stream": send_stream,
    "receive": lambda ws: ws.receive(),
    "receive many": lambda ws: ws.receive_many(),
    "receive stream": receive_stream,
    "ping": lambda ws: ws.ping(),
    "pong": lambda ws: ws.pong(b"x"),
    "send_close": lambda ws: ws.send_close(4000, "x"),
    "close": lambda ws: ws.close(4000, "x"),
    "aclose": lambda ws: ws.aclose(),
}
# What the server receives of an operation if it receives anything of it.
WHOLE: dict[str, list[bytes | str]] = {
    "send": ["text"],
    "send big": [BIG],
    "send many": [b"1", b"2", b"3" * 5000],
    "send iterable": [b"f" * 6000],
    "send async iterable": [b"f" * 6000],
    "send stream": ["s" * 4000],
}
# Which operations may leave the connection closed, and with what code.
CODES = {
    "send iterable": 1011,
    "send async iterable": 1011,
    "send stream": 1011,
    "send_close": 4000,
    "close": 4000,
    "aclose": 1000,
}


async def cancelled_at(step: int, name: str) -> bool:
    """Cancel the operation at a step, and check what is left; False if it ended before."""
    instrument = CancelAtStep(step)
    received: list[str | bytes] = []
    codes: list[int | None] = []

    async def server_echoes(server: WebSocket) -> None:
        await trio.sleep(1)
        with contextlib.suppress(ConnectionClosed):
            async for message in server:
                received.append(message)
                await server.send(message)
        codes.append(server.close_code)

    async with slow_pair() as (client, server), trio.open_nursery() as nursery:
        await server.send(b"before")
        nursery.start_soon(server_echoes, server)
        await client.send(FILL)
        instrument.task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(instrument)
        try:
            with instrument.scope:
                if not step:
                    instrument.scope.cancel()
                await OPERATIONS[name](client)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        with trio.fail_after(30):
            try:
                await client.send("still here")
            except trio.ClosedResourceError:
                closed = True
                await client.close()
            else:
                closed = False
                got = [message async for message in until_still_here(client)]
                await client.close()
    if closed:
        # Only what closes may leave it closed, and a message that was cut off, with a code that says so.
        assert name in CODES
        assert codes == [CODES[name]]
    else:
        assert codes == [1000]
        # The connection works both ways, and nothing half sent or out of order has come.
        assert received[0] == FILL
        assert received[-1] == "still here"
        assert got[-1] == "still here"
        assert "receive" in name or got == [b"before", *received]
    if name in WHOLE:
        assert [m for m in received if m not in (FILL, "still here")] in ([], WHOLE[name])
    return instrument.scope.cancelled_caught


async def until_still_here(client: WebSocket) -> AsyncIterator[str | bytes]:
    async for message in client:
        yield message
        if message == "still here":
            return


@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelled_at_every_checkpoint_in_turn(name: str) -> None:
    """With hundreds of steps the last one is reached: the operation then completes uncancelled."""
    cancelled = 0
    for step in range(200):
        clock = trio.testing.MockClock(autojump_threshold=0)
        if not trio.run(cancelled_at, step, name, clock=clock):
            if step > cancelled + 3:
                break
        else:
            cancelled += 1
    else:
        pytest.fail("the operation never completed")
    assert cancelled


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with slow_pair() as (client, server):
        received: list[str | bytes] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for number in range(50):
                    await server.send(str(number))
                    await trio.sleep(0.7)

            while len(received) < 50:
                with trio.move_on_after(0.5):
                    received.append(await client.receive())
        assert received == [str(number) for number in range(50)]


async def test_a_cancelled_send_that_waits_for_room_has_sent_nothing() -> None:
    async with slow_pair() as (client, server):
        await client.send(b"x" * 200_000)
        with trio.move_on_after(1) as scope:
            await client.send(b"never")
        assert scope.cancelled_caught
        assert await server.receive() == b"x" * 200_000
        await client.send(b"next")
        assert await server.receive() == b"next"


async def test_leaving_a_received_stream_early_drops_the_rest_of_its_message() -> None:
    async with slow_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.send, ["a" * 5000, "b" * 5000])
        async with client.receive_stream() as message:
            assert await message.receive_some()
        nursery.start_soon(server.send, "next")
        assert await client.receive() == "next"


async def test_a_message_cut_off_closes_with_1011() -> None:
    async with slow_pair() as (client, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            with pytest.raises(ConnectionClosed) as caught:
                await server.receive()
            assert caught.value.code == 1011
            assert caught.value.reason == "a message was abandoned"

        with pytest.raises(ZeroDivisionError):
            async with client.send_stream(text=False) as message:
                await message.send(b"half")
                raise ZeroDivisionError
        with pytest.raises(trio.ClosedResourceError):
            await client.send(b"more")


async def test_a_message_cut_off_before_its_first_part_costs_nothing() -> None:
    async with slow_pair() as (client, server), trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            async with client.send_stream(text=False):
                raise ZeroDivisionError
        nursery.start_soon(client.send, b"fine")
        assert await server.receive() == b"fine"
