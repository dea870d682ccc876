"""The tutorial's first server."""

from __future__ import annotations

import trio

import trio_wt


async def echo(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def main() -> None:
    await trio_wt.serve_websocket(echo, 8765, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(main)
