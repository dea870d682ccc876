"""Catching the end of a connection behind a nursery."""

from __future__ import annotations

import trio

import trio_wt


async def listen(ws: trio_wt.WebSocket) -> None:
    async for _ in ws:
        pass


async def talk(ws: trio_wt.WebSocket) -> None:
    while True:
        await ws.send("still here")
        await trio.sleep(1)


async def both_ways(ws: trio_wt.WebSocket) -> str:
    result = ""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, ws)
            nursery.start_soon(talk, ws)
    except* trio_wt.ConnectionClosed as group:
        result = str(group.exceptions[0])
    return result
