"""Sends every message back.

Run it, then `python examples/echo_client.py` or `trio-wt connect ws://127.0.0.1:8765/`.
"""

from __future__ import annotations

from typing import Any

import trio

import trio_wt


async def echo(ws: trio_wt.WebSocket) -> None:
    """Serve one connection: the loop ends when the client closes it."""
    async for message in ws:
        await ws.send(message)


async def main(
    port: int = 8765, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on loopback until cancelled."""
    await trio_wt.serve_websocket(echo, port, host="127.0.0.1", task_status=task_status)


if __name__ == "__main__":
    trio.run(main)
