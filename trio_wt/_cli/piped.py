"""A WebSocket between standard input and standard output, for scripts."""

from __future__ import annotations

import sys

import trio

from .._errors import ConnectionClosed
from .._websocket.websocket import WebSocket
from .errors import CommandFailed
from .lines import Lines, read_input, write_output
from .text import escape, hexadecimal

__all__ = ["pipe"]


async def pipe(websocket: WebSocket, *, binary: bool, linger: float) -> ConnectionClosed | None:
    """Send standard input, print what is received, until the peer closes or both have come to their end.

    Args:
        websocket: the open connection.
        binary: send all of the input as one binary message, and write what is received as it is; otherwise a line
            is a text message, both ways.
        linger: seconds to go on receiving after the input has ended.

    Returns:
        how the connection ended; None if this side closed it.

    Raises:
        CommandFailed: the input is not UTF-8.
        BrokenPipeError: nobody reads standard output any more.
    """
    end: ConnectionClosed | None = None
    unread: BrokenPipeError | None = None
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            nonlocal end, unread
            raw = binary and not sys.stdout.isatty()
            try:
                while True:
                    messages = await websocket.receive_many()
                    await write_output(b"".join(_encode(message, raw=raw) for message in messages))
            except ConnectionClosed as exc:
                end = exc
            except BrokenPipeError as exc:
                unread = exc
            except trio.ClosedResourceError:
                return  # by the other task, when it had lingered long enough
            nursery.cancel_scope.cancel()

        nursery.start_soon(receive)
        try:
            await (_send_all(websocket) if binary else _send_lines(websocket))
        except (ConnectionClosed, trio.ClosedResourceError):
            await trio.sleep_forever()  # the other task learns how it ended, and cancels this
        await trio.sleep(linger)
        await websocket.close()
    if unread is not None:
        await websocket.close(1001)
        raise unread
    return end


def _encode(message: str | bytes, *, raw: bool) -> bytes:
    if raw:
        return message.encode() if isinstance(message, str) else message
    line = escape(message) if isinstance(message, str) else f"0x{hexadecimal(message)}"
    return f"{line}\n".encode()


async def _send_all(websocket: WebSocket) -> None:
    async with websocket.send_stream(text=False) as message:
        while chunk := await read_input():
            await message.send(chunk)


async def _send_lines(websocket: WebSocket) -> None:
    number = 1
    lines = Lines()
    while chunk := await read_input():
        if complete := lines.feed(chunk):
            await websocket.send_many(_decode(line, number + i) for i, line in enumerate(complete))
            number += len(complete)
    for line in lines.end():
        await websocket.send(_decode(line, number))


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise CommandFailed(
            f"line {number} of standard input is not UTF-8; --binary sends any bytes"
        ) from None
