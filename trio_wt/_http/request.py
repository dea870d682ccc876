"""A request is a request, whatever version of HTTP carried it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .._headers import Headers, HeadersLike
from .._protocol.handshake import check_extra_headers

if TYPE_CHECKING:
    from .._transport.transport import Address

__all__ = ["Accept", "Reject", "Request", "Response"]


@dataclass(frozen=True, slots=True)
class Accept:
    """The decision to open the session that a request asks for."""

    subprotocol: str | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Reject:
    """The decision to answer a request like a plain HTTP server."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A final response that a client received.

    Attributes:
        status: the status code.
        headers: the header fields.
        body: the body, cut where the receiver set its limit.
    """

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(slots=True, eq=False)
class Request:
    """An HTTP request that asks for a session, or for a plain answer.

    A server's ``on_request`` gets it before anything is answered and may call `accept` or `reject` (or `respond`,
    the same under a friendlier name); if it calls neither, a request for a session is accepted by the server's
    policy, and any other gets status 426.

    Attributes:
        method: such as ``GET``.
        target: the request's target as sent: path and query, percent-encoded.
        headers: all header fields.
        http_version: such as ``1.1``, or ``3``.
        scheme: ``http`` or ``https``.
        host: the authority asked for, host and perhaps port.
        is_websocket: whether it asks for a WebSocket.
        is_webtransport: whether it asks for a WebTransport session.
        subprotocols: the subprotocols the client offers, in its order.
        peer: the client's address, None if unknown.
        local: the server's address, None if unknown.
        tls_peer_certificate: the peer's certificate as DER, None without one.
    """

    method: str
    target: str
    headers: Headers
    http_version: str
    scheme: str
    host: str
    is_websocket: bool = False
    subprotocols: Sequence[str] = ()
    peer: Address = None
    local: Address = None
    tls_peer_certificate: bytes | None = field(default=None, repr=False)
    is_webtransport: bool = False
    _decision: Accept | Reject | None = field(default=None, repr=False)

    @property
    def asks_for_session(self) -> bool:
        """Whether it asks for a WebSocket or a WebTransport session."""
        return self.is_websocket or self.is_webtransport

    @property
    def path(self) -> str:
        """The target's path, percent-decoded as UTF-8."""
        return unquote(self.raw_path)

    @property
    def raw_path(self) -> str:
        """The target's path as sent."""
        return self._origin_form.partition("?")[0]

    @property
    def query(self) -> str:
        """What stands behind the target's first ``?``, as sent; ``urllib.parse.parse_qs`` reads it."""
        return self._origin_form.partition("?")[2]

    @property
    def _origin_form(self) -> str:
        # A client may send the absolute form as well (RFC 9112 section 3.2.2).
        rest = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*", "", self.target)
        return rest if rest.startswith("/") or rest == self.target else f"/{rest}"

    @property
    def origin(self) -> str | None:
        """The Origin header (RFC 6454 section 7), None if absent."""
        return self.headers.get("origin")

    def accept(self, *, subprotocol: str | None = None, headers: HeadersLike = ()) -> None:
        """Decide to open the session.

        Args:
            subprotocol: the subprotocol to use; None for none.
            headers: further response headers.

        Raises:
            RuntimeError: it was decided before, or the request does not ask for a session.
            ValueError: a header is not valid, or the client did not offer the subprotocol.
        """
        self._check_undecided()
        if not self.asks_for_session:
            raise RuntimeError("only a request for a session can be accepted; use respond() here")
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise ValueError(f"the client does not offer subprotocol {subprotocol!r}")
        extra = Headers(headers)
        check_extra_headers(extra)
        self._decision = Accept(subprotocol, extra)

    def reject(self, status: int, headers: HeadersLike = (), body: str | bytes = b"") -> None:
        """Decide to answer with a plain response, after which the connection is closed.

        Args:
            status: a final HTTP status, 200 to 599.
            headers: the response's headers; length, date and a text content type are added where missing.
            body: the body; `str` is sent as UTF-8.

        Raises:
            RuntimeError: it was decided before.
            ValueError: the status is not final, or a header is not valid; or it is 2xx for a session over HTTP/3, which would
                open that (RFC 9220 section 3).
        """
        self._check_undecided()
        if not 200 <= status <= 599:
            raise ValueError(f"the status must be 200 to 599, not {status}")
        if status < 300 and self.asks_for_session and self.method == "CONNECT":
            raise ValueError(
                f"status {status} would open the session that this request asks for: accept() it, "
                "or look at asks_for_session first"
            )
        payload = body.encode() if isinstance(body, str) else bytes(body)
        self._decision = Reject(status, Headers(headers), payload)

    def respond(self, status: int, headers: HeadersLike = (), body: str | bytes = b"") -> None:
        """`reject` under the name that fits a health check: ``request.respond(200, body="ok")``."""
        self.reject(status, headers, body)

    def _check_undecided(self) -> None:
        if self._decision is not None:
            raise RuntimeError("this request has been accepted or rejected already")

    @property
    def decided(self) -> bool:
        """Whether it is known what becomes of it."""
        return self._decision is not None

    def decide(self, default: Callable[[Request], Accept | Reject]) -> Accept | Reject:
        """What was decided, or what ``default`` decides."""
        if self._decision is None:
            self._decision = default(self)
        return self._decision
