"""``trio-wt demo``: a server and clients on loopback, and what happens between them."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import click
import trio

from .._errors import ConnectionClosed
from .._version import __version__
from .._websocket.broadcast import broadcast
from .._websocket.client import open_websocket
from .._websocket.server import serve_websocket
from .._websocket.websocket import WebSocket
from ..watch import render_task_tree
from .errors import CommandFailed, run_trio
from .webtransport_demo import show_webtransport

__all__ = ["demo"]

_LIMIT: Final = 10.0
_ROUND_TRIPS: Final = 200
_LISTENERS: Final = 5
_TEXT: Final = "Grüße, 世界 👋"


@click.command()
def demo() -> None:
    """Run a server on loopback and clients through it, and print what happens.

    The exit code is 0 if everything was as it must be.
    """

    async def main() -> None:
        with trio.move_on_after(_LIMIT) as scope:
            await _show()
        if scope.cancelled_caught:
            raise CommandFailed(f"the demonstration took more than {_LIMIT:g} seconds")

    run_trio(main)


class _Server:
    """Echoes; whoever connects to /room gets broadcasts instead, and /watched tells how its connections end."""

    def __init__(self) -> None:
        self.room: set[WebSocket] = set()
        self._ends_send, self.ends = trio.open_memory_channel[ConnectionClosed](1)

    async def handle(self, websocket: WebSocket) -> None:
        """Serve one connection."""
        if websocket.request.path == "/room":
            self.room.add(websocket)
            await websocket.send("welcome")
            await websocket.wait_closed()
            self.room.discard(websocket)
            return
        try:
            while True:
                await websocket.send(await websocket.receive())
        except ConnectionClosed as exc:
            if websocket.request.path == "/watched":
                await self._ends_send.send(exc)


async def _show() -> None:
    server = _Server()
    stop = trio.Event()
    listen = partial(
        serve_websocket,
        server.handle,
        0,
        host="127.0.0.1",
        subprotocols=["demo"],
        shutdown=stop,
    )
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(listen)
        assert isinstance(listeners[0], trio.SocketListener)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        _tell("server", f"trio-wt {__version__} listens on {url}/")
        async with open_websocket(f"{url}/", subprotocols=["demo"], proxy=None) as websocket:
            for show in (_handshake, _messages, _compression, _round_trips):
                await show(websocket)
            await _broadcast(server, url)
            await _cancellation(server, url)
            _tell("task tree", "")
            for line in render_task_tree().splitlines():
                click.echo(f"    {line}")
        _check(websocket.close_code == 1000, f"closed with code {websocket.close_code}, not 1000")
        _tell("goodbye", "the client left its block: closed with code 1000")
        stop.set()
    click.echo()
    await show_webtransport(_tell, _check)
    _tell("server", "shut down; everything was as it must be")


def _tell(subject: str, text: str) -> None:
    click.echo(f"{subject:<13}{text}".rstrip())


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise CommandFailed(otherwise)


async def _handshake(websocket: WebSocket) -> None:
    await trio.lowlevel.checkpoint()
    extensions = ", ".join(websocket.extensions)
    _check(websocket.subprotocol == "demo", "the subprotocol was not agreed on")
    _check(extensions == "permessage-deflate", "compression was not agreed on")
    _tell("handshake", f"HTTP 101, subprotocol {websocket.subprotocol}, {extensions}")


async def _messages(websocket: WebSocket) -> None:
    await websocket.send(_TEXT)
    _check(await websocket.receive() == _TEXT, "the text came back changed")
    _tell("text", f"{_TEXT} came back, {len(_TEXT.encode())} bytes")
    data = bytes(range(256)) * 256
    await websocket.send(data)
    _check(await websocket.receive() == data, "the bytes came back changed")
    _tell("binary", f"{len(data)} bytes came back")
    parts = ["one ", "message ", "in ", "five ", "fragments"]
    async with websocket.send_stream(text=True) as message:
        for part in parts:
            await message.send(part)
    _check(await websocket.receive() == "".join(parts), "the fragments came back changed")
    _tell("fragments", f"{''.join(parts)} came back whole")


async def _compression(websocket: WebSocket) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 2000
    before = websocket.statistics()
    await websocket.send(text)
    _check(await websocket.receive() == text, "the compressed text came back changed")
    after = websocket.statistics()
    sent = after.bytes_sent - before.bytes_sent
    received = after.bytes_received - before.bytes_received
    _check(max(sent, received) < len(text) // 10, "nothing was compressed")
    _tell("compression", f"{len(text)} bytes of text went as {sent} and came back as {received}")


async def _round_trips(websocket: WebSocket) -> None:
    async def echo() -> None:
        await websocket.send("ping")
        await websocket.receive()

    _tell("ping", await _times(websocket.ping))
    _tell("echo", await _times(echo))


async def _times(call: Callable[[], Awaitable[object]]) -> str:
    times = []
    for _ in range(_ROUND_TRIPS):
        begin = trio.current_time()
        await call()
        times.append((trio.current_time() - begin) * 1e6)
    return (
        f"{_ROUND_TRIPS} round trips: min {min(times):.0f}, median {statistics.median(times):.0f}, "
        f"max {max(times):.0f} µs"
    )


async def _broadcast(server: _Server, url: str) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_websocket(f"{url}/room", proxy=None))
            for _ in range(_LISTENERS)
        ]
        for client in clients:
            _check(await client.receive() == "welcome", "a client was not welcomed")
        delivered = await broadcast(server.room, "to all")
        heard = [await client.receive() for client in clients]
    _check(delivered == _LISTENERS and set(heard) == {"to all"}, "a broadcast did not reach all")
    _tell("broadcast", f"one message reached {delivered} clients")


async def _cancellation(server: _Server, url: str) -> None:
    with trio.move_on_after(0.05) as scope:
        async with open_websocket(f"{url}/watched", proxy=None) as websocket:
            await websocket.receive()
    _check(scope.cancelled_caught, "the cancelled block was not cancelled")
    end = await server.ends.receive()
    _check(end.code == 1001 and end.remote, f"after a cancellation the server saw: {end}")
    _tell("cancelled", f"a block was cancelled; the server saw: {end}")
