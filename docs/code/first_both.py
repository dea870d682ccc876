"""A server and a client of it in one program."""

from __future__ import annotations

from functools import partial

import trio

import trio_wt


async def echo(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(trio_wt.serve_websocket, echo, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/") as ws:
            await ws.send("hello")
            print(await ws.receive())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
