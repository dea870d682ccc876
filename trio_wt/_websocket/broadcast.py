"""One message to many connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import trio

from .._protocol.frames import CloseCode
from .connection import Connection
from .streams import payload_of
from .websocket import Message, WebSocket

__all__ = ["broadcast"]


async def broadcast(
    connections: Iterable[WebSocket],
    message: Message,
    *,
    slow: Literal["drop", "close", "wait"] = "drop",
) -> int:
    """Send a message to many connections; those that keep up never wait for those that do not.

    Server connections share one frame, made once and never compressed (which costs the bytes that compressing once
    per connection would save); clients mask, so theirs are made one by one.

    Args:
        connections: to whom. Those that have ended are passed over.
        message: `str` is sent as text, bytes-like as binary.
        slow: what becomes of connections that have ``write_limit`` bytes unsent, or another task's message under
            way: "drop" leaves this message out for them, "close" closes them with code 1008, "wait" waits until they
            have room, after all others have been served.

    Returns:
        to how many connections the message was queued.

    Raises:
        TypeError: the message is of another type.

    Cancelled while it waits for slow ones, it has served the others and those that had room since.
    """
    if slow not in ("drop", "close", "wait"):
        await trio.lowlevel.checkpoint()
        raise ValueError(f'slow is "drop", "close" or "wait", not {slow!r}')
    await trio.lowlevel.checkpoint()
    payload, text = payload_of(message), isinstance(message, str)
    frame: list[bytes] | None = None
    delivered = 0
    behind: list[Connection] = []
    for websocket in connections:
        connection = websocket._connection
        if connection.send_error() is not None:
            continue
        if connection.turns.must_queue:
            behind.append(connection)
            continue
        frame = connection.send_prepared(payload, text, frame)
        delivered += 1
    if slow == "close":
        for connection in behind:
            connection.fail(CloseCode.POLICY_VIOLATION, "too slow")
    elif slow == "wait" and behind:
        async with trio.open_nursery() as nursery:
            served: list[Connection] = []
            for connection in behind:
                nursery.start_soon(_wait_and_send, connection, payload, text, served)
        delivered += len(served)
    return delivered


async def _wait_and_send(
    connection: Connection, payload: bytes, text: bool, served: list[Connection]
) -> None:
    await connection.turns.wait_turn()
    if connection.send_error() is None:
        connection.send_prepared(payload, text, None)
        served.append(connection)
    connection.turns.pass_on()
