"""The echo servers under test, each in a process: ``python -m tests.bench.servers NAME``.

The process prints ``port N`` once it listens on loopback, or ``absent WHY`` when its library
cannot be imported, and then obeys the lines on its standard input: ``gc`` collects garbage and
answers ``collected``; the end of the input ends the process, so that none outlives the benchmark.

Each server runs the loop that its own documentation shows. Compression is off everywhere, limits
on message sizes are above the largest message sent, and everything else stays at the library's
defaults, keepalive included, but where a comment says otherwise. Libraries are imported by the
server that needs them, so that no process carries the weight of another's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import picows
    import trio
    import trio_websocket
    import websockets.asyncio.server
    import websockets.trio.server

    import trio_wt

HOST = "127.0.0.1"

MAX_MESSAGE_SIZE = 4 * 2**20
"""Bytes; four times the largest message that the client sends."""

MANY_PATH = "/many"
"""The path on which our server takes all that has arrived at once; the others ignore the path."""


def announce(port: int) -> None:
    """Tell the benchmark where we listen."""
    print("port", port, flush=True)


async def announce_trio(start_listening: Callable[..., Awaitable[object]]) -> None:
    """Run a Trio server for ever, on a port of the kernel's choice."""
    import trio

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(start_listening)
        announce(listeners[0].socket.getsockname()[1])


def serve_tcp() -> None:
    """Bare Trio: what comes in goes out, without frames. The bound for whatever runs on Trio."""
    import trio

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    trio.run(announce_trio, partial(trio.serve_tcp, echo, 0, host=HOST))


def serve_trio_wt() -> None:
    """Ours: one message at a time, or on MANY_PATH all that has arrived."""
    import trio

    from trio_wt import ConnectionClosedOK, serve_websocket

    async def echo(ws: trio_wt.WebSocket) -> None:
        if ws.request.path == MANY_PATH:
            try:
                while True:
                    await ws.send_many(await ws.receive_many())
            except ConnectionClosedOK:
                return
        async for message in ws:
            await ws.send(message)

    trio.run(
        announce_trio,
        partial(
            serve_websocket,
            echo,
            0,
            host=HOST,
            compression=None,
            max_message_size=MAX_MESSAGE_SIZE,
        ),
    )


def serve_trio_websocket() -> None:
    """trio-websocket, which knows no compression and no keepalive."""
    import trio
    from trio_websocket import ConnectionClosed, serve_websocket

    async def echo(request: trio_websocket.WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            while True:
                await ws.send_message(await ws.get_message())
        except ConnectionClosed:
            return

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                partial(
                    serve_websocket,
                    echo,
                    HOST,
                    0,
                    None,
                    max_message_size=MAX_MESSAGE_SIZE,
                    # Trio's choice of 64 KiB in place of 4 KiB: several times the throughput.
                    receive_buffer_size=None,
                )
            )
            announce(server.port)

    trio.run(main)


def serve_websockets_asyncio() -> None:
    """websockets on asyncio's own event loop."""
    from websockets.asyncio.server import serve

    async def echo(ws: websockets.asyncio.server.ServerConnection) -> None:
        async for message in ws:
            await ws.send(message)

    async def main() -> None:
        async with serve(echo, HOST, 0, compression=None, max_size=MAX_MESSAGE_SIZE) as server:
            announce(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    asyncio.run(main())


def serve_websockets_trio() -> None:
    """websockets on Trio."""
    import trio
    from websockets.trio.server import serve

    async def echo(ws: websockets.trio.server.ServerConnection) -> None:
        async for message in ws:
            await ws.send(message)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                partial(serve, echo, 0, host=HOST, compression=None, max_size=MAX_MESSAGE_SIZE)
            )
            announce(server.listeners[0].socket.getsockname()[1])

    trio.run(main)


def serve_picows() -> None:
    """picows' core interface on uvloop, with no coroutine between a message and its echo."""
    import uvloop
    from picows import WSListener, WSMsgType, ws_create_server

    class Echo(WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_memoryview())

    async def main() -> None:
        server = await ws_create_server(
            lambda request: Echo(), HOST, 0, max_frame_size=MAX_MESSAGE_SIZE
        )
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


SERVERS: dict[str, Callable[[], None]] = {
    "tcp": serve_tcp,
    "trio_wt": serve_trio_wt,
    "trio-websocket": serve_trio_websocket,
    "websockets-asyncio": serve_websockets_asyncio,
    "websockets-trio": serve_websockets_trio,
    "picows": serve_picows,
}
"""By the names used on the command line and in the tables."""


def obey() -> None:
    """Follow the lines of standard input, in a thread; end the process with them."""
    for line in sys.stdin:
        if line == "gc\n":
            gc.collect()
            print("collected", flush=True)
    os._exit(0)


def raise_file_limit() -> int:
    """Lift the limit on open files as far as allowed; returns what it is now."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    """Run the server named on the command line until standard input ends."""
    parser = argparse.ArgumentParser(description="One echo server of the benchmark.")
    parser.add_argument("name", choices=SERVERS)
    arguments = parser.parse_args()
    raise_file_limit()
    threading.Thread(target=obey, daemon=True).start()
    try:
        SERVERS[arguments.name]()
    except ImportError as error:
        print("absent", error, flush=True)


if __name__ == "__main__":
    main()
