"""A WebTransport session between standard input and standard output, for scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import trio

from .._errors import ConnectionClosed, DatagramTooLarge
from .._webtransport.session import WebTransportSession
from .errors import CommandFailed
from .lines import Lines, read_input, write_output
from .webtransport_talk import INTERRUPTED, Kind, Screen, Talk, shown

__all__ = ["pipe_session"]

# More at once than may wait to be sent would be dropped.
_BURST: Final = 32


async def pipe_session(
    session: WebTransportSession, kind: Kind, *, binary: bool, linger: float, limit: int | None
) -> ConnectionClosed | None:
    """Send standard input, print what is received, until the peer closes or both have come to their end.

    Args:
        session: the open session.
        kind: what a line goes out as.
        binary: send all of the input as one, and write what is received as it is.
        linger: seconds to go on receiving after the input has ended.
        limit: the longest line to hold; None for any.

    Returns:
        how the session ended; None if this side closed it.

    Raises:
        CommandFailed: something did not fit a datagram, or what was to come as it is did not come whole.
        BrokenPipeError: nobody reads standard output any more.
    """
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        def fail(exc: Exception) -> None:
            failures.append(exc)
            session.close_now(INTERRUPTED)
            nursery.cancel_scope.cancel()

        screen = _Output(limit, fail, raw=binary and not sys.stdout.isatty())
        talk = Talk(session, screen)
        await nursery.start(talk.run)

        async def watch() -> None:
            await talk.finished.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await (_send_all if binary else _send_lines)(session, talk, kind)
        except (ConnectionClosed, trio.ClosedResourceError):
            await trio.sleep_forever()  # `watch` ends this, when everything is printed
        except CommandFailed as exc:
            fail(exc)
        await trio.sleep(linger)
        talk.stop()
    if failures:
        raise failures[0]
    end = session.closed
    await session.aclose()
    return end


class _Output(Screen):
    """Standard output.

    Args:
        limit, raw: see `Screen`.
        fail: called when there is no going on, which cancels whoever is writing.
    """

    def __init__(self, limit: int | None, fail: Callable[[Exception], None], *, raw: bool) -> None:
        super().__init__(limit, raw=raw)
        self._fail = fail
        self._lock = trio.Lock()

    async def show(self, label: str, lines: Sequence[bytes]) -> None:
        if self.raw:
            await self._write(b"".join(lines))
        else:
            await self._write("".join(f"{label}: {shown(line)}\n" for line in lines).encode())

    async def note(self, label: str, event: str, code: int) -> None:
        if self.raw:
            self._fail(CommandFailed(f"{label} was {event} by the peer with code {code}"))
        else:
            await self._write(f"{label}, {event}: code {code}\n".encode())

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            try:
                await write_output(data)
            except BrokenPipeError as exc:
                self._fail(exc)


async def _send_all(session: WebTransportSession, talk: Talk, kind: Kind) -> None:
    if kind != "datagram":
        await talk.send_stream(b"", read_input, answered=kind == "stream")
        return
    data = b""
    while chunk := await read_input():
        data += chunk
        if len(data) > session.datagrams.max_size:
            break
    await _send_datagram(talk, data, "standard input")


async def _send_lines(session: WebTransportSession, talk: Talk, kind: Kind) -> None:
    lines, number = Lines(), 0
    while chunk := await read_input():
        for line in lines.feed(chunk):
            number += 1
            await _send_line(session, talk, kind, line.removesuffix(b"\r"), number)
    for line in lines.end():
        await _send_line(session, talk, kind, line, number + 1)


async def _send_line(
    session: WebTransportSession, talk: Talk, kind: Kind, line: bytes, number: int
) -> None:
    if kind != "datagram":
        await talk.send_stream(line, answered=kind == "stream")
        return
    await _send_datagram(talk, line, f"line {number} of standard input")
    if number % _BURST == 0:
        # Once this is answered, they are on their way.
        await session.connection.ping()


async def _send_datagram(talk: Talk, data: bytes, what: str) -> None:
    try:
        await talk.send_datagram(data)
    except DatagramTooLarge as exc:
        raise CommandFailed(f"{what}: {exc}; --send-as stream takes any size") from None
