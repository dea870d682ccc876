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
    "ConnectionLost",
    "DatagramTooLarge",
    "HandshakeFailed",
    "IncompleteRead",
    "InternalError",
    "PeersDoing",
    "ReadLimitExceeded",
    "Rejected",
    "StreamAbort",
    "StreamReset",
    "TransportClosed",
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
        code: for a WebSocket, the close code (RFC 6455 section 7.4): 1005 when the Close frame carried none, 1006 when
            the connection ended without a Close frame. For QUIC, the error code that the application gave (RFC 9000
            section 20.2).
        reason: the close reason, "" if there was none; at most 123 bytes of UTF-8 for a WebSocket, a packet's worth for QUIC.
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

    For a WebSocket: the peer closed with code 1000, 1001 or none, or it answered our own Close, whatever its code. For QUIC:
    the peer closed with code 0.
    """


class ConnectionClosedError(ConnectionClosed, trio.BrokenResourceError):
    """The connection ended any other way, or something was sent after its end."""


class TransportClosed(ConnectionClosedError):
    """QUIC itself ended the connection, not an application; ``code`` is one of RFC 9000 section 20.1."""

    def __str__(self) -> str:
        who = "the peer" if self.remote else "this side"
        because = f": {safe_text(self.reason)}" if self.reason else ""
        return f"{who} closed the connection with the QUIC error {_transport_error(self.code)}{because}"


class ConnectionLost(ConnectionClosedError):
    """The connection ended without a word: nothing was heard for too long, or the peer has forgotten it.

    ``code`` is 0. ``remote`` is False only for a WebTransport session whose connection was closed on this side. ``reason`` says
    what was noticed.
    """

    def __str__(self) -> str:
        return f"the connection was lost: {safe_text(self.reason)}"


_TRANSPORT_ERRORS = (
    "NO_ERROR",
    "INTERNAL_ERROR",
    "CONNECTION_REFUSED",
    "FLOW_CONTROL_ERROR",
    "STREAM_LIMIT_ERROR",
    "STREAM_STATE_ERROR",
    "FINAL_SIZE_ERROR",
    "FRAME_ENCODING_ERROR",
    "TRANSPORT_PARAMETER_ERROR",
    "CONNECTION_ID_LIMIT_ERROR",
    "PROTOCOL_VIOLATION",
    "INVALID_TOKEN",
    "APPLICATION_ERROR",
    "CRYPTO_BUFFER_EXCEEDED",
    "KEY_UPDATE_ERROR",
    "AEAD_LIMIT_REACHED",
    "NO_VIABLE_PATH",
)


def _transport_error(code: int) -> str:
    if code < len(_TRANSPORT_ERRORS):
        return f"{_TRANSPORT_ERRORS[code]} ({code:#x})"
    if 0x100 <= code <= 0x1FF:
        return f"CRYPTO_ERROR, TLS alert {code - 0x100} ({code:#x})"
    return f"{code:#x}"


class StreamReset(TrioWTError, trio.BrokenResourceError):
    """A stream was cut off in one direction.

    Attributes:
        code: the application's error code; 0 for a WebTransport stream that was not reset by an application.
        remote: whether the peer did it: it reset what it sent, or does not want what is sent to it.
        wire_code: the code as QUIC carried it, which for WebTransport is another number.
    """

    def __init__(self, code: int, *, remote: bool, wire_code: int | None = None) -> None:
        super().__init__(code, remote)
        self.code: int = code
        self.remote: bool = remote
        self.wire_code: int = code if wire_code is None else wire_code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_reset, (self.code, self.remote, self.wire_code)

    def __str__(self) -> str:
        who = "the peer" if self.remote else "this side"
        return f"{who} reset the stream with code {self.code}"

    def again(self) -> StreamReset:
        """The same as an exception of its own, for one more who meets it."""
        return StreamReset(self.code, remote=self.remote, wire_code=self.wire_code)


def _rebuild_reset(code: int, remote: bool, wire_code: int) -> StreamReset:
    return StreamReset(code, remote=remote, wire_code=wire_code)


class StreamAbort(TrioWTError):
    """Raise it inside a stream's block to reset the stream with a code of your own; it goes no further.

    Args:
        code: the application's error code, below 2^62, and below 2^32 for WebTransport: a larger one is told as the
            ``failed_code`` there, and the exception goes on.

    Raises:
        ValueError: the code is out of range.
    """

    def __init__(self, code: int) -> None:
        if not 0 <= code < 2**62:
            raise ValueError(f"an error code is at least 0 and less than 2^62, not {code}")
        super().__init__(code)
        self.code = code


class PeersDoing(TrioWTError):
    """What any peer can bring about as often as it likes; a server's log gets a line of it, and no traceback."""


class IncompleteRead(PeersDoing, trio.BrokenResourceError):
    """A stream ended before what was asked for had come; what did come can still be received.

    Attributes:
        received: how many bytes are there.
    """

    def __init__(self, received: int) -> None:
        super().__init__(received)
        self.received = received

    def __str__(self) -> str:
        return f"the stream ended after {self.received} bytes of what was asked for; they can still be received"


class ReadLimitExceeded(PeersDoing):
    """More has come than the caller wanted to hold; it can still be received.

    Attributes:
        limit: the caller's limit, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"more than {self.limit} bytes came; receive them piece by piece, or raise the limit"


class DatagramTooLarge(TrioWTError, ValueError):
    """A datagram does not fit one packet, so it was not sent.

    Attributes:
        size: its size in bytes.
        max_size: what fits now; 0 if the peer takes no datagrams at all.
    """

    def __init__(self, size: int, max_size: int) -> None:
        super().__init__(size, max_size)
        self.size = size
        self.max_size = max_size

    def __str__(self) -> str:
        if not self.max_size:
            return "the peer takes no datagrams"
        return f"the datagram has {self.size} bytes, and at most {self.max_size} fit a packet on this path"


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
