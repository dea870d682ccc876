"""The task tree of a program with one connection."""

from __future__ import annotations

from functools import partial

import trio

import trio_wt
from trio_wt.watch import render_task_tree


async def ticker(ws: trio_wt.WebSocket) -> None:
    while True:
        await ws.send("tick")
        await trio.sleep(1)


async def session(ws: trio_wt.WebSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker, ws)
        await ws.receive()
        await ws.send(render_task_tree())
        nursery.cancel_scope.cancel()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(trio_wt.serve_websocket, session, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/") as ws:
            await ws.receive()
            await ws.send("show me")
            print(await ws.receive())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
