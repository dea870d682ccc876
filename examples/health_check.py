"""A WebSocket and plain HTTP answers on the same port.

Run it, then `curl http://127.0.0.1:8765/health` and `curl http://127.0.0.1:8765/figures`.
"""

from __future__ import annotations

import json
from typing import Any

import trio

import trio_wt


class Service:
    """An echo service that counts its connections."""

    def __init__(self) -> None:
        self.connections = 0

    def on_request(self, request: trio_wt.Request) -> None:
        """Answer what is not for a WebSocket; upgrades on other paths go on to `echo`."""
        if request.path == "/health":
            request.respond(200, body="ok\n")
        elif request.path == "/figures":
            figures = json.dumps({"connections": self.connections})
            request.respond(200, [("Content-Type", "application/json")], figures)
        elif not request.is_websocket:
            request.respond(404, body="there is nothing here\n")

    async def echo(self, ws: trio_wt.WebSocket) -> None:
        """Serve one connection."""
        self.connections += 1
        try:
            async for message in ws:
                await ws.send(message)
        finally:
            self.connections -= 1


async def main(
    port: int = 8765, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on loopback until cancelled."""
    service = Service()
    await trio_wt.serve_websocket(
        service.echo,
        port,
        host="127.0.0.1",
        on_request=service.on_request,
        task_status=task_status,
    )


if __name__ == "__main__":
    trio.run(main)
