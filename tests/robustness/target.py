"""Servers and connections to attack, with an honest bystander and a count of what is left afterwards."""

from __future__ import annotations

import gc
import math
import os
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeAlias

import trio
import trio.testing

import trio_wt
from tests.robustness.peer import RawPeer

__all__ = [
    "Connect",
    "MemoryListener",
    "Server",
    "Side",
    "attacked",
    "bounded_memory",
    "echo",
    "memory_server",
    "nothing_left",
    "open_fds",
    "reset",
    "socket_server",
    "tasks",
]

Connect: TypeAlias = Callable[[], Awaitable[RawPeer]]
Side: TypeAlias = Literal["client", "server"]
MIB = 2**20


async def echo(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


# ---- one connection in memory


@asynccontextmanager
async def attacked(
    side: Side, *extra: str, behind: bytes = b"", **settings: Any
) -> AsyncIterator[tuple[RawPeer, trio_wt.WebSocket]]:
    """A peer that can break rules, and our end of its connection, after the handshake.

    Args:
        side: which end is ours.
        extra: header lines of the peer's half of the handshake.
        behind: bytes the peer sends in one piece with the handshake.
        settings: those of our end.
    """
    theirs, ours = trio.testing.memory_stream_pair()
    peer = RawPeer(theirs, client=side == "server")
    if side == "server":
        wrapped = trio_wt.wrap_server_stream(ours, **settings)
    else:
        wrapped = trio_wt.wrap_client_stream(ours, "ws://localhost/", **settings)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        shaken = trio.Event()

        async def handshake() -> None:
            await (peer.upgrade if side == "server" else peer.accept)(*extra, behind=behind)
            shaken.set()

        nursery.start_soon(handshake)
        try:
            async with wrapped as ws:
                await shaken.wait()
                try:
                    yield peer, ws
                finally:
                    await peer.aclose()
        except Exception as exc:
            failure = exc
    if failure is not None:
        raise failure


# ---- servers


class Server:
    """A running server.

    Attributes:
        connect: opens a connection that has said nothing yet.
        port: the TCP port, 0 in memory.
        shutdown: ends the server gracefully.
        nursery: runs the server.
    """

    def __init__(self, connect: Connect, port: int, nursery: trio.Nursery) -> None:
        self.connect = connect
        self.port = port
        self.shutdown = trio.Event()
        self.nursery = nursery

    async def opened(self, *extra: str, behind: bytes = b"") -> RawPeer:
        """A connection after the handshake."""
        peer = await self.connect()
        await peer.upgrade(*extra, behind=behind)
        return peer

    async def still_serves(self) -> None:
        """A new connection opens within a second and echoes within two."""
        with trio.fail_after(1):
            peer = await self.opened("X-Purpose: check")
        with trio.fail_after(2):
            await peer.echo("still there")
        await peer.aclose()


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts streams that were made in memory."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[trio.abc.Stream](math.inf)

    def connect(self) -> trio.abc.HalfCloseableStream:
        client, server = trio.testing.memory_stream_pair()
        self._sender.send_nowait(server)
        return client

    async def accept(self) -> trio.abc.Stream:
        return await self._receiver.receive()

    async def aclose(self) -> None:
        await self._receiver.aclose()


@asynccontextmanager
async def memory_server(
    handler: Callable[[trio_wt.WebSocket], Awaitable[object]] = echo, **options: Any
) -> AsyncIterator[Server]:
    """A server whose connections are made in memory; at the end it shuts down and must return."""
    listener = MemoryListener()

    async def connect() -> RawPeer:
        await trio.lowlevel.checkpoint()
        return RawPeer(listener.connect())

    async with _running(connect, handler, {"listeners": [listener], **options}) as server:
        yield server


@asynccontextmanager
async def socket_server(
    handler: Callable[[trio_wt.WebSocket], Awaitable[object]] = echo,
    *,
    bystander: bool = True,
    **options: Any,
) -> AsyncIterator[Server]:
    """A server on a loopback socket.

    A bystander echoes while the block runs. Afterwards all peers are closed; then a new connection must open, nothing of
    the others may be left, and the server must return.
    """
    port = 0
    peers: list[RawPeer] = []

    async def connect() -> RawPeer:
        peers.append(RawPeer(await trio.open_tcp_stream("127.0.0.1", port)))
        return peers[-1]

    with trio.fail_after(60):
        async with (
            nothing_left(),
            _running(connect, handler, {"port": 0, "host": "127.0.0.1", **options}) as server,
        ):
            port = server.port
            before = tasks()
            async with trio.open_nursery() as nursery:
                if bystander:
                    await nursery.start(_stand_by, server)
                try:
                    yield server
                finally:
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        for peer in peers:
                            await peer.aclose()
            await server.still_serves()
            await settled(tasks, before)


@asynccontextmanager
async def _running(
    connect: Connect,
    handler: Callable[[trio_wt.WebSocket], Awaitable[object]],
    options: dict[str, Any],
) -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        server = Server(connect, 0, nursery)

        async def run(task_status: trio.TaskStatus[list[Any]]) -> None:
            await trio_wt.serve_websocket(
                handler, task_status=task_status, shutdown=server.shutdown, **options
            )

        (listener,) = await nursery.start(run)
        if isinstance(listener, trio.SocketListener):
            server.port = listener.socket.getsockname()[1]
        yield server
        server.shutdown.set()


async def _stand_by(server: Server, task_status: trio.TaskStatus[None]) -> None:
    """Echo all the time; an answer may take two seconds."""
    peer = await server.opened("X-Purpose: bystander")
    try:
        task_status.started()
        while True:
            with trio.fail_after(2):
                await peer.echo("are you there?")
            await trio.sleep(0.01)
    finally:
        await peer.aclose()


def reset(peer: RawPeer) -> None:
    """Close a socket so that the other end gets RST."""
    assert isinstance(peer.stream, trio.SocketStream)
    sock = peer.stream.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- what is left


def open_fds() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/dev/fd"))


def tasks() -> int:
    """How many tasks run, Trio's own included."""
    count, waiting = 0, [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        assert task is not None
        count += 1
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
    return count


async def settled(figure: Callable[[], int], wanted: int, seconds: float = 3) -> None:
    """Wait until a figure is down to what it was."""
    with trio.move_on_after(seconds):
        while figure() > wanted:
            await trio.sleep(0.01)
    assert figure() <= wanted, f"{figure.__name__}: {figure()} instead of {wanted}"


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """After the block there are as many tasks and file descriptors as before it."""
    before = tasks(), open_fds()
    yield
    await settled(tasks, before[0])
    await settled(open_fds, before[1])


@contextmanager
def bounded_memory(limit: float) -> Iterator[None]:
    """What the block allocates at any moment, on top of what there was, is below ``limit`` MiB."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit * MIB, f"{(peak - before) / MIB:.1f} MiB instead of {limit}"
