"""The servers under test, each in a process: ``python -m tests.bench.fanout.servers NAME``.

What a client sends to ``/publish`` goes to all clients that are connected to ``/``. The process announces itself, and obeys its
standard input, as those of the echo benchmark do. Compression and keepalive are off everywhere; everything else stays at the
library's defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ..servers import HOST, announce, announce_trio, obey, raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    import picows
    import websockets.asyncio.server
    import websockets.trio.server

    import trio_wt

PUBLISH_PATH = "/publish"

OFF: dict[str, Any] = {"compression": None, "ping_interval": None}
"""How our servers and those of websockets are told; picows has neither."""


def serve_topic() -> None:
    """`Topic`: each subscriber has a queue, which is empty as long as it keeps up."""
    import trio

    from trio_wt import serve_websocket
    from trio_wt.app._topic import Topic

    topic = Topic[str | bytes]()

    async def handle(ws: trio_wt.WebSocket) -> None:
        if ws.request.path == PUBLISH_PATH:
            async for message in ws:
                await topic.publish(message)
        else:
            async with topic.subscribe(ws):
                await ws.wait_closed()

    trio.run(announce_trio, partial(serve_websocket, handle, 0, host=HOST, **OFF))


def serve_broadcast() -> None:
    """`trio_wt.broadcast`: a set of connections, and no queues but their own."""
    import trio

    from trio_wt import broadcast, serve_websocket

    members: set[trio_wt.WebSocket] = set()

    async def handle(ws: trio_wt.WebSocket) -> None:
        if ws.request.path == PUBLISH_PATH:
            async for message in ws:
                await broadcast(members, message)
            return
        members.add(ws)
        try:
            await ws.wait_closed()
        finally:
            members.discard(ws)

    trio.run(announce_trio, partial(serve_websocket, handle, 0, host=HOST, **OFF))


async def _websockets() -> None:
    from websockets.asyncio.server import broadcast, serve

    members: set[websockets.asyncio.server.ServerConnection] = set()

    async def handle(ws: websockets.asyncio.server.ServerConnection) -> None:
        assert ws.request is not None
        if ws.request.path == PUBLISH_PATH:
            async for message in ws:
                broadcast(members, message)
            return
        members.add(ws)
        try:
            await ws.wait_closed()
        finally:
            members.discard(ws)

    async with serve(handle, HOST, 0, **OFF) as server:
        announce(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


def serve_websockets() -> None:
    """websockets' broadcast on asyncio, as its documentation shows it."""
    asyncio.run(_websockets())


def serve_websockets_uvloop() -> None:
    """The same on uvloop."""
    import uvloop

    uvloop.run(_websockets())


def serve_websockets_trio() -> None:
    """websockets' broadcast on Trio, which starts a task for each connection."""
    import trio
    from websockets.trio.server import broadcast, serve

    members: set[websockets.trio.server.ServerConnection] = set()

    async def handle(ws: websockets.trio.server.ServerConnection) -> None:
        assert ws.request is not None
        if ws.request.path == PUBLISH_PATH:
            async for message in ws:
                await broadcast(members, message)
            return
        members.add(ws)
        try:
            await ws.wait_closed()
        finally:
            members.discard(ws)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, handle, 0, host=HOST, **OFF))
            announce(server.listeners[0].socket.getsockname()[1])

    trio.run(main)


def serve_picows() -> None:
    """picows' core interface on uvloop: a loop over transports."""
    import uvloop
    from picows import WSListener, WSMsgType, ws_create_server

    members: set[picows.WSTransport] = set()

    class Member(WSListener):
        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            members.add(transport)

        def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
            members.discard(transport)

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()

    class Publisher(WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
                return
            message = frame.get_payload_as_bytes()
            for member in members:
                member.send(WSMsgType.BINARY, message)

    def listener(request: picows.WSUpgradeRequest) -> WSListener:
        return Publisher() if request.path.decode() == PUBLISH_PATH else Member()

    async def main() -> None:
        server = await ws_create_server(listener, HOST, 0)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


SERVERS: dict[str, Callable[[], None]] = {
    "topic": serve_topic,
    "broadcast": serve_broadcast,
    "websockets": serve_websockets,
    "websockets-uvloop": serve_websockets_uvloop,
    "websockets-trio": serve_websockets_trio,
    "picows": serve_picows,
}
"""By the names used on the command line and in the tables."""


def main() -> None:
    """Run the server named on the command line until standard input ends."""
    parser = argparse.ArgumentParser(description="One server of the fan-out benchmark.")
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
