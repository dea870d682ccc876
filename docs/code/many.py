"""One message for many connections."""

from __future__ import annotations

import trio_wt


class Feed:
    def __init__(self) -> None:
        self.subscribers: set[trio_wt.WebSocket] = set()

    async def subscribe(self, ws: trio_wt.WebSocket) -> None:
        self.subscribers.add(ws)
        try:
            await ws.wait_closed()
        finally:
            self.subscribers.discard(ws)

    async def publish(self, news: str) -> int:
        return await trio_wt.broadcast(self.subscribers, news, slow="close")
