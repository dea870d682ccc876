"""Stopping as soon as the peer has gone."""

from __future__ import annotations

import trio

import trio_wt


async def measure(url: str) -> int | None:
    async with trio_wt.open_websocket(url, cancel_on_close=True) as ws:
        while True:
            await ws.send("21.5 C")
            await trio.sleep(60)
    return ws.close_code
