"""The tutorial's first client."""

from __future__ import annotations

import trio

import trio_wt


async def main() -> None:
    async with trio_wt.open_websocket("ws://127.0.0.1:8765/") as ws:
        await ws.send("hello")
        print(await ws.receive())


if __name__ == "__main__":
    trio.run(main)
