"""Every exception this package raises on purpose.

Each concrete error is also the Trio error that a Trio user already catches, so code written against
`trio.abc` works unchanged: a clean end is a `trio.EndOfChannel`, any other end a
`trio.BrokenResourceError`, and using what we closed ourselves is a plain `trio.ClosedResourceError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._util import safe_text

if TYPE_CHECKING:
    from ._headers import Headers

__all__ = [
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "HandshakeFailed",
    "InternalError",
    "Rejected",
    "TrioWTError",
]


class TrioWTError(Exception):
    """The root of all errors of this package."""


class InternalError(TrioWTError):
    """A background task of this package did something it must never do; please report it.

    What happened is chained as ``__cause__``.
    """


class ConnectionClosed(TrioWTError):
    """The connection has ended; no more messages will come or go.

    Attributes:
        code: the close code (RFC 6455 section 7.4); 1005 when the Close frame carried none, 1006 when
            the connection ended without a Close frame.
        reason: the close reason, at most 123 bytes of UTF-8; "" if there was none.
        remote: whether the peer ended it (True) or this side did (False).
    """

    def __init__(self, code: int, reason: str = "", *, remote: bool) -> None:
        super().__init__(code, reason, remote)
        self.code = code
        self.reason = reason
        self.remote = remote

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.reason, self.remote)

    def __str__(self) -> str:
        who = "the peer" if self.remote else "this side"
        because = f": {safe_text(self.reason)}" if self.reason else ""
        if self.code == 1006:
            return f"the connection was lost without a closing handshake (1006){because}"
        return f"{who} closed the connection with code {self.code}{because}"


def _rebuild(
    kind: type[ConnectionClosed], code: int, reason: str, remote: bool
) -> ConnectionClosed:
    return kind(code, reason, remote=remote)


class ConnectionClosedOK(ConnectionClosed, trio.EndOfChannel):
    """The connection ended cleanly, so iteration just stops.

    The peer closed with code 1000, 1001 or none, or it answered our own Close, whatever its code.
    """


class ConnectionClosedError(ConnectionClosed, trio.BrokenResourceError):
    """The connection ended any other way, or something was sent after its end."""


class HandshakeFailed(TrioWTError):
    """The opening handshake did not succeed; the message says at which step and why."""


class Rejected(HandshakeFailed):
    """The server answered the opening handshake with something other than acceptance.

    Attributes:
        status: the HTTP status code.
        headers: the response's headers.
        body: the response's body, cut after 64 KiB.
    """

    def __init__(self, status: int, headers: Headers, body: bytes = b"") -> None:
        super().__init__(status, headers, body)
        self.status = status
        self.headers = headers
        self.body = body

    def __str__(self) -> str:
        hints = {
            401: "; the server wants credentials, see the `auth` parameter",
            403: "; the server may not allow this Origin",
            404: "; there is nothing at this path",
            426: "; the server wants another protocol or version",
        }
        return f"the server answered with HTTP status {self.status}{hints.get(self.status, '')}"
