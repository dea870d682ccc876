"""Several tasks on one connection: a clock that sends, a loop that answers, and the task tree.

Run it: it starts the server, connects, asks for the tree, listens to the clock for a while and
leaves.
"""

from __future__ import annotations

from functools import partial

import trio

import trio_wt
from trio_wt.watch import render_task_tree


async def tell_time(ws: trio_wt.WebSocket, interval: float) -> None:
    """Send something now and then, whatever the client says meanwhile."""
    while True:
        await ws.send(f"it is {trio.current_time():.1f}")
        await trio.sleep(interval)


async def session(ws: trio_wt.WebSocket) -> None:
    """Serve one connection: when the client has gone, so has all that was started for it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_time, ws, 0.1)
        async for message in ws:
            answer = render_task_tree() if message == "tree" else "say: tree"
            await ws.send(answer)
        nursery.cancel_scope.cancel()


async def main(port: int = 0, seconds: float = 1) -> None:
    """Start the server on loopback, talk to it for a while, and stop."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio_wt.serve_websocket, session, port, host="127.0.0.1")
        listeners = await nursery.start(serve)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        async with trio_wt.open_websocket(url) as ws:
            await ws.send("tree")
            with trio.move_on_after(seconds):
                async for message in ws:
                    print(message)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
