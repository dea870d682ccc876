"""HTTP/1.1 heads over a transport: h11 parses, this checks, bounds and moves the bytes.

A head is collected up to its empty line before h11 sees it: so the limit is exact, what h11 would forgive (obs-fold,
bare LF, bytes outside ASCII) is refused, and bytes behind the head are known to the byte.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import trio

from .._errors import HandshakeFailed
from .._headers import Headers
from .._transport.transport import Pieces, Transport
from .._util import safe_text
from .request import Reject, Response

__all__ = [
    "MAX_BODY",
    "PIECE",
    "BadHead",
    "RequestHead",
    "read_request_head",
    "read_response",
    "send_request",
    "send_response",
    "switch_protocols",
]

MAX_HEAD: Final = 16384
MAX_FIELDS: Final = 100
#: what of a response a client must take at a time
PIECE: Final = 65536
#: how much of a rejection's body is kept
MAX_BODY: Final = 65536

_END: Final = b"\r\n\r\n"
# Controls, bytes outside ASCII, CR without LF, LF without CR, and a line that begins with white space (obs-fold).
_FORBIDDEN: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]|\r(?=[^\n])|(?<!\r)\n|\n[ \t]"
)


class BadHead(Exception):
    """A request head that gets an error status instead of an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RequestHead:
    """A request's first line and headers, and the bytes that came behind them."""

    __slots__ = ("headers", "http_version", "leading", "method", "target")

    def __init__(self, event: h11.Request, leading: bytes) -> None:
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("ascii")
        self.http_version = event.http_version.decode("ascii")
        self.headers = Headers.from_raw(event.headers)
        self.leading = leading


async def _read_head(transport: Transport) -> tuple[bytes, bytes] | None:
    """A head up to its empty line, and what is behind it; None if the peer left before sending anything.

    Raises:
        BadHead: too long, cut off, or with bytes that must not be in it.
        trio.BrokenResourceError: the connection broke.
    """
    buffer = bytearray()
    searched = 0
    begun = False
    while True:
        data = await transport.receive()
        if not data:
            if not begun:
                return None
            raise BadHead(400, "the head is incomplete")
        buffer += data
        if not begun:
            # An empty line before the first is to be ignored (RFC 9112 section 2.2).
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
            if not buffer or buffer == b"\r":
                continue
            begun = True
        end = buffer.find(_END, max(0, searched - 3))
        checked_to = len(buffer) if end < 0 else end + len(_END)
        if _FORBIDDEN.search(buffer, max(0, searched - 2), min(checked_to, MAX_HEAD)):
            raise BadHead(400, "the head has bytes that must not be in it")
        if checked_to > MAX_HEAD:
            raise BadHead(431, f"the head has more than {MAX_HEAD} bytes")
        if end >= 0:
            if buffer.count(b"\n", 0, end) > MAX_FIELDS:
                raise BadHead(431, f"the head has more than {MAX_FIELDS} fields")
            return bytes(buffer[:checked_to]), bytes(buffer[checked_to:])
        searched = len(buffer)


async def read_request_head(transport: Transport) -> RequestHead | None:
    """Read a request's head (RFC 9112 sections 3 and 5).

    Returns:
        the head, or None if the peer left without a word.

    Raises:
        BadHead: with the status to answer.
        trio.BrokenResourceError: the connection broke.
    """
    head = await _read_head(transport)
    if head is None:
        return None
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        connection.receive_data(head[0])
        event = connection.next_event()
    except h11.RemoteProtocolError as exc:
        # h11 hints at 501 for transfer codings it does not know; whatever is wrong here is the client's doing.
        raise BadHead(400, f"malformed request: {safe_text(str(exc))}") from None
    if not isinstance(event, h11.Request):
        raise BadHead(400, "this is not an HTTP request")
    return RequestHead(event, head[1])


async def _send(transport: Transport, data: bytes) -> None:
    pieces: Pieces = [data]
    while pieces:
        await transport.send_some(pieces)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _head(first_line: str, headers: Headers) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers.fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def switch_protocols(transport: Transport, headers: Headers) -> None:
    """Send a 101 response (RFC 9110 section 15.2.2)."""
    await _send(transport, _head("HTTP/1.1 101 Switching Protocols", headers))


async def send_response(
    transport: Transport, response: Reject, *, patience: float, head_only: bool = False
) -> None:
    """Send a whole response, after which the connection is to be closed.

    Args:
        transport: where to.
        response: what to send.
        patience: how long the client may take for each 64 KiB, in seconds.
        head_only: leave out the body, as the answer to HEAD must.

    Raises:
        trio.TooSlowError: it takes longer.
        trio.BrokenResourceError: the connection broke.
    """
    headers = response.headers.without("connection", "content-length", "transfer-encoding")
    bodiless = response.status in (204, 304)
    if response.body and "content-type" not in headers:
        headers += [("Content-Type", "text/plain; charset=utf-8")]
    if "date" not in headers:
        headers += [("Date", formatdate(usegmt=True))]
    if not bodiless:
        headers += [("Content-Length", str(len(response.body)))]
    # A header that is for this connection only is named there (RFC 9110 section 7.6.1).
    headers += [("Connection", "close, upgrade" if "upgrade" in headers else "close")]
    head = _head(f"HTTP/1.1 {response.status} {_reason(response.status)}", headers)
    message = head if head_only or bodiless else head + response.body
    for at in range(0, len(message), PIECE):
        with trio.fail_after(patience):
            await _send(transport, message[at : at + PIECE])


async def linger(transport: Transport) -> None:
    """After the last response: let the peer read it before the close.

    Closing a socket with unread bytes resets it, and a reset takes with it what the peer has not read yet
    (RFC 9112 section 9.6). The caller bounds the time.
    """
    await transport.send_eof()
    left = 2**20
    try:
        while left > 0 and (data := await transport.receive()):
            left -= len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def send_request(transport: Transport, target: str, headers: Headers) -> None:
    """Send a GET request without a body.

    Raises:
        ValueError: the target has characters that must not be in it; nothing was sent.
    """
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError(f"{target!r} is not a valid request target")
    await _send(transport, _head(f"GET {target} HTTP/1.1", headers))


async def read_response(transport: Transport) -> tuple[Response, bytes]:
    """Read the response to a request that asks for an upgrade.

    Interim responses but 101 are skipped (RFC 9110 section 15.2). The body of any other response is read to its end or
    64 KiB.

    Returns:
        the response, and the bytes that came behind a 101.

    Raises:
        HandshakeFailed: the server left, or what it sent is no response.
        trio.BrokenResourceError: the connection broke.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    # h11 needs to know what was asked; the bytes themselves were sent by send_request.
    upgrade = [("Host", "-"), ("Connection", "upgrade"), ("Upgrade", "websocket")]
    connection.send(h11.Request(method="GET", target="/", headers=upgrade))
    connection.send(h11.EndOfMessage())
    rest = b""
    for _ in range(MAX_FIELDS):
        head, rest = await _next_head(transport, rest)
        try:
            connection.receive_data(head)
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            problem = safe_text(str(exc))
            raise HandshakeFailed(f"the server's response is not valid HTTP: {problem}") from None
        if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            continue
        if not isinstance(event, h11.InformationalResponse | h11.Response):
            raise HandshakeFailed("the server's response is not valid HTTP")
        headers = Headers.from_raw(event.headers)
        if event.status_code == 101:
            return Response(101, headers), rest
        body = await _read_body(transport, connection, rest)
        return Response(event.status_code, headers, body), b""
    raise HandshakeFailed("the server sent too many interim responses")


async def _next_head(transport: Transport, rest: bytes) -> tuple[bytes, bytes]:
    buffer = bytearray(rest)
    searched = 0
    while (end := buffer.find(_END, max(0, searched - 3))) < 0:
        if len(buffer) > MAX_HEAD:
            raise HandshakeFailed(
                f"the head of the server's response has more than {MAX_HEAD} bytes"
            )
        searched = len(buffer)
        data = await transport.receive()
        if not data:
            raise HandshakeFailed(
                "the server closed the connection "
                + ("in the middle of its response" if buffer else "without a response")
            )
        buffer += data
    end += len(_END)
    if end > MAX_HEAD or buffer.count(b"\n", 0, end) > MAX_FIELDS + 2:
        raise HandshakeFailed(
            f"the head of the server's response has more than {MAX_HEAD} bytes "
            f"or {MAX_FIELDS} fields"
        )
    return bytes(buffer[:end]), bytes(buffer[end:])


async def _read_body(transport: Transport, connection: h11.Connection, rest: bytes) -> bytes:
    body = bytearray()
    try:
        if rest:  # to h11 no bytes are the end
            connection.receive_data(rest)
        while len(body) < MAX_BODY:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await transport.receive())
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
    except (h11.RemoteProtocolError, trio.BrokenResourceError):
        pass  # a body that is cut off is still better than none
    return bytes(body[:MAX_BODY])
