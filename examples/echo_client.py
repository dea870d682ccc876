"""Sends a few messages to `echo_server.py` and prints what comes back, with the round-trip time."""

from __future__ import annotations

import trio

import trio_wt


async def main(url: str = "ws://127.0.0.1:8765/") -> None:
    """Talk to the server, then close: leaving the block does it."""
    async with trio_wt.open_websocket(url) as ws:
        for message in ("hello", b"\x00\x01\x02", "goodbye"):
            await ws.send(message)
            print(repr(await ws.receive()))
        print(f"a ping takes {await ws.ping() * 1000:.2f} ms")


if __name__ == "__main__":
    trio.run(main)
