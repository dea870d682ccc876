"""The application that the page on testing tests."""

from __future__ import annotations

import trio

import trio_wt


async def greeter(ws: trio_wt.WebSocket) -> None:
    with trio.move_on_after(60) as patience:
        name = str(await ws.receive())
    if patience.cancelled_caught:
        await ws.close(4000, "you are very quiet")
        return
    await ws.send(f"hello {name}")
    async for _ in ws:
        await ws.send("I only know how to say hello")
