"""Chat rooms: the path names the room, and what one member says goes to all others.

Run it, then in two terminals `trio-wt connect "ws://127.0.0.1:8765/rooms/tea?name=ann"`, and the
same with another name. A member whose network is slow misses messages; it never holds up the room.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import trio

import trio_wt

PREFIX = "/rooms/"


class Rooms:
    """Who is in which room."""

    def __init__(self) -> None:
        self._members: defaultdict[str, set[trio_wt.WebSocket]] = defaultdict(set)

    async def attend(self, ws: trio_wt.WebSocket) -> None:
        """Serve one member from entering to leaving."""
        room = ws.request.path.removeprefix(PREFIX)
        name = parse_qs(ws.request.query).get("name", ["somebody"])[0]
        members = self._members[room]
        members.add(ws)
        try:
            await trio_wt.broadcast(members, f"* {name} has come")
            with suppress(trio_wt.ConnectionClosedError):  # a lost network is a way to leave, too
                async for message in ws:
                    await trio_wt.broadcast(members - {ws}, f"{name}: {message!s}")
        finally:
            members.discard(ws)
            if not members:
                self._members.pop(room, None)
        await trio_wt.broadcast(members, f"* {name} has gone")


def check(request: trio_wt.Request) -> None:
    """Only rooms are served."""
    if not request.path.startswith(PREFIX) or request.path == PREFIX:
        request.reject(404, body=f"rooms are at {PREFIX}NAME\n")


async def main(
    port: int = 8765, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on loopback until cancelled."""
    await trio_wt.serve_websocket(
        Rooms().attend,
        port,
        host="127.0.0.1",
        on_request=check,
        max_message_size=4096,
        task_status=task_status,
    )


if __name__ == "__main__":
    trio.run(main)
