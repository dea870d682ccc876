"""A connection that carries WebTransport sessions, and other requests, as an application sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Unpack

import http_sf
import trio

from .._errors import (
    ConnectionClosed,
    ConnectionLost,
    HandshakeFailed,
    Rejected,
    StreamReset,
    TransportClosed,
)
from .._headers import Headers, HeadersLike
from .._http.h3 import Http3
from .._http.h3_transport import Http3Transport
from .._http.priority import Priority
from .._http.request import Request, Response
from .._http.request_stream import BadMessage, RequestStream, fields_of
from .._http.url import ServerURL, parse_https_url
from .._protocol import handshake
from .._protocol.dialects import dialect_of_server
from .._protocol.http3_codes import Http3Code, describe
from .._protocol.http3_fields import Fields, ResponseHead
from .._protocol.http3_settings import Setting
from .._protocol.route import Sockaddr
from .._quic.driver import Driver
from .._quic.migration import migrate
from .._quic.statistics import QuicStatistics, statistics_of
from .._transport.services import Services
from .._transport.udp import DatagramSocket
from .._version import __version__
from .._websocket.connection import Connection as WebSocketConnection
from .._websocket.settings import Settings, SettingsKwargs
from .._websocket.websocket import WebSocket
from .carrier import SessionCarrier
from .ends import describe_end
from .router import Sessions
from .session import SessionBlock, WebTransportSession
from .settings import WebTransportSettings

__all__ = [
    "WebTransportConnection",
    "check_request_headers",
    "check_session_protocols",
    "with_origin",
]

_USER_AGENT: Final = f"trio-wt/{__version__}"
_MAX_BODY: Final = 65536
#: What a caller's headers may not say, since the request itself does.
_RESERVED: Final = handshake.RESERVED | {
    "host",
    "wt-available-protocols",
    "wt-protocol",
    "priority",
}


def check_request_headers(headers: Headers) -> None:
    """Raise `ValueError` for headers that are the request's own."""
    fields_of(headers)
    for name, _ in headers.fields:
        if name.lower() in _RESERVED:
            raise ValueError(f"the header {name} belongs to the request; it cannot be given")


def check_session_protocols(subprotocols: Sequence[str]) -> None:
    """Raise `TypeError` or `ValueError` for what are no subprotocols: strings of printable ASCII, none twice."""
    if isinstance(subprotocols, str):
        raise TypeError("subprotocols must be a sequence of strings, not one string")
    for name in subprotocols:
        if not name or not name.isascii() or not name.isprintable():
            raise ValueError(f"{name!r} is not a valid subprotocol name")
    if len(set(subprotocols)) != len(subprotocols):
        raise ValueError(f"subprotocols are repeated: {list(subprotocols)}")


class WebTransportConnection:
    """An HTTP/3 connection to a server, or from a client, with the sessions on it.

    Attributes:
        settings: what was set.
    """

    __slots__ = ("_driver", "_http3", "_services", "_sessions", "_url", "settings")

    def __init__(
        self,
        driver: Driver,
        services: Services,
        settings: WebTransportSettings,
        url: ServerURL | None,
    ) -> None:
        http3 = driver.upper
        assert isinstance(http3, Http3)
        sessions = http3.router
        assert isinstance(sessions, Sessions)
        sessions.serve(services)
        self._driver = driver
        self._services = services
        self._http3 = http3
        self._sessions = sessions
        # None on servers.
        self._url = url
        self.settings: WebTransportSettings = settings

    def __repr__(self) -> str:
        state = "open" if self._driver.end is None else "closed"
        return f"<WebTransportConnection {state}, peer {self.peer_address}>"

    # ---- what it is

    @property
    def peer_address(self) -> Sockaddr | None:
        """Where packets go; it may change while the connection lasts (RFC 9000 section 9)."""
        return self._driver.peer_address

    @property
    def local_address(self) -> Sockaddr | None:
        """The address of the socket that packets go through."""
        return self._driver.local_address

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate as DER; None if it showed none, as on a resumed session."""
        return self._driver.engine.peer_certificate

    @property
    def peer_settings(self) -> Mapping[int, int]:
        """The peer's SETTINGS (RFC 9114 section 7.2.4); empty before they came."""
        return dict(self._http3.protocol.peer_settings or {})

    @property
    def open_sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions.open)

    @property
    def going_away(self) -> bool:
        """Whether no new requests are taken any more, by one side or the other (GOAWAY, RFC 9114 section 5.2)."""
        return self._http3.going_away

    def statistics(self) -> QuicStatistics:
        """Figures of the connection at this moment, all sessions taken together."""
        sessions = self._sessions.open.values()
        return statistics_of(
            self._driver,
            unaccepted_streams=sum(
                len(s.incoming_streams) + len(s.incoming_receive_streams) for s in sessions
            ),
            datagrams_unread=sum(s.datagrams.unread for s in sessions),
            datagrams_dropped=sum(s.datagrams.dropped for s in sessions),
        )

    # ---- life

    async def ping(self) -> float:
        """Wait until the peer has acknowledged a packet sent now; how long that took, in seconds.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        return await self._driver.ping()

    async def migrate(
        self,
        *,
        local_address: tuple[str, int] | None = None,
        socket: DatagramSocket | None = None,
        timeout: float = 5,
    ) -> None:
        """Move to another local address, as `Connection.migrate` does; sessions and streams go on."""
        await migrate(self._driver, self._services, local_address, socket, timeout)

    @property
    def closed(self) -> ConnectionClosed | None:
        """How the connection ended; None while it has not."""
        return self._driver.end

    async def wait_closed(self) -> ConnectionClosed:
        """Wait for the end of the connection, whoever ends it; how it ended."""
        await trio.lowlevel.checkpoint()
        while self._driver.end is None:
            await self._driver.wait_changed()
        return self._driver.end

    def leave_within(self, seconds: float) -> None:
        """The end of the connection's block is to come within so many seconds."""
        self._driver.leave_by = trio.current_time() + seconds

    def _explain(self, exc: BaseException) -> str:
        """What went wrong, for people; of a connection that has ended, why."""
        end = self._driver.end
        if end is not None and not isinstance(end, ConnectionLost | TransportClosed):
            return describe_end(end)
        return str(exc) or type(exc).__name__

    # ---- requests

    def _client_url(self) -> ServerURL:
        if self._url is None:
            raise RuntimeError("a server cannot send requests to its clients")
        return self._url

    def _resolve(self, target: str) -> str:
        """A path, or a URL of this server, as the target to ask for."""
        url = self._client_url()
        if "://" in target:
            parsed = parse_https_url(target)
            if (parsed.host, parsed.port) != (url.host, url.port):
                raise ValueError(f"{target!r} is on another server than this connection")
            return parsed.target
        if not target.startswith("/"):
            raise ValueError(f"{target!r} is no path: it must begin with /")
        return parse_https_url(f"https://{url.authority}{target}").target

    def _request_fields(
        self, method: str, target: str, headers: Headers, protocol: str | None = None
    ) -> Fields:
        fields: Fields = [
            (b":method", method.encode("ascii")),
            (b":scheme", b"https"),
            (b":authority", self._client_url().authority.encode("ascii")),
            (b":path", target.encode("ascii")),
        ]
        if protocol is not None:
            fields.append((b":protocol", protocol.encode("ascii")))
        if "user-agent" not in headers:
            fields.append((b"user-agent", _USER_AGENT.encode("ascii")))
        return fields + fields_of(headers)

    def _request(
        self, target: str, headers: Headers, subprotocols: Sequence[str], *, websocket: bool
    ) -> Request:
        return Request(
            method="CONNECT",
            target=target,
            headers=headers,
            http_version="3",
            scheme="https",
            host=self._client_url().authority,
            is_websocket=websocket,
            is_webtransport=not websocket,
            subprotocols=tuple(subprotocols),
            peer=_address(self.peer_address),
            local=_address(self.local_address),
            tls_peer_certificate=self.peer_certificate,
        )

    async def request(self, method: str, target: str, *, headers: HeadersLike = ()) -> Response:
        """Send a plain request without content, and wait for its response.

        Args:
            method: such as ``GET``.
            target: path and query, or a URL of this server.
            headers: the request's headers.

        Returns:
            the response; of its body 64 KiB at most.

        Raises:
            HandshakeFailed: there was no valid response.
            ValueError: the target, the method or a header is not valid.
        """
        await trio.lowlevel.checkpoint()
        checked = Headers(headers)
        check_request_headers(checked)
        if not method.isascii() or not method.isalpha() or method.upper() == "CONNECT":
            raise ValueError(f"{method!r} is not a method for a plain request")
        fields = self._request_fields(method, self._resolve(target), checked)
        try:
            stream = await self._http3.request(fields, head_request=method == "HEAD")
            async with stream:
                stream.send_content_now(b"", end=True)
                try:
                    head = await stream.wait_head()
                except BadMessage as exc:
                    stream.reject(exc.failure.code)
                    raise
                assert isinstance(head, ResponseHead)
                body = await _read_body(stream)
                response = Response(head.status, Headers.from_raw(head.fields), body)
        except (
            BadMessage,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.EndOfChannel,
        ) as exc:
            raise HandshakeFailed(f"there was no response: {self._explain(exc)}") from exc
        return response

    @asynccontextmanager
    async def open_session(
        self,
        target: str = "/",
        *,
        subprotocols: Sequence[str] = (),
        headers: HeadersLike = (),
        origin: str | None = None,
        priority: Priority | None = None,
        handshake_timeout: float = 10,
    ) -> AsyncIterator[WebTransportSession]:
        """Open a session: ``async with connection.open_session("/room") as session:``.

        Args:
            target: path and query, or a URL of this server.
            subprotocols: the subprotocols to offer, best first.
            headers: further request headers.
            origin: the Origin header.
            priority: how urgent the session is (RFC 9218).
            handshake_timeout: seconds that the server may take to answer.

        Raises:
            Rejected: the server answered with another status than 200; redirects are not followed.
            HandshakeFailed: any other failure until the session is open.
            ValueError: the target, a header or a subprotocol is not valid; nothing was sent.

        Leaving the block closes the session, as `WebTransportSession` says.
        """
        await trio.lowlevel.checkpoint()
        extra = with_origin(headers, origin)
        check_session_protocols(subprotocols)
        target = self._resolve(target)
        try:
            with trio.fail_after(handshake_timeout):
                carrier, session = await self._ask_for_session(
                    target, extra, subprotocols, priority
                )
        except trio.TooSlowError:
            raise HandshakeFailed(f"no session within {handshake_timeout:g} s") from None
        try:
            async with SessionBlock(carrier):
                yield session
        finally:
            self._sessions.request_over(carrier.session_id)

    async def _ask_for_session(
        self,
        target: str,
        extra: Headers,
        subprotocols: Sequence[str],
        priority: Priority | None,
    ) -> tuple[SessionCarrier, WebTransportSession]:
        http3 = self._http3
        try:
            settings = await http3.wait_settings()
            dialect = dialect_of_server(settings)
            if dialect is None:
                raise HandshakeFailed("the server does not speak WebTransport")
            headers = extra
            if subprotocols:
                headers += [("WT-Available-Protocols", http_sf.ser(list(subprotocols)))]
            if priority is not None:
                headers += [("Priority", priority.encode())]
            if self._sessions.open and not self._sessions.have_credit:
                raise HandshakeFailed("the server allows one session per connection only")
            fields = self._request_fields("CONNECT", target, headers, dialect.token)
            stream = await http3.request(fields)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel) as exc:
            raise HandshakeFailed(f"the connection has ended: {self._explain(exc)}") from exc
        opened: list[SessionCarrier] = []

        def open_at_once(head: ResponseHead) -> None:
            # Streams may come right behind the response.
            if 200 <= head.status < 300:
                credit = self._sessions.new_credit()
                carrier = SessionCarrier(
                    self._driver, stream, credit, self.settings, self._sessions.later
                )
                if priority is not None:
                    carrier.set_priority(priority)
                opened.append(carrier)
                self._sessions.opened(carrier)

        stream.on_head = open_at_once
        self._sessions.request_opened(stream.stream_id)
        try:
            head = await self._wait_response(stream)
            carrier = opened[0]
        except BaseException:
            for carrier in opened:  # cancelled in the tick in which the answer came
                carrier.shut(self.settings.cancelled_code, "")
            self._sessions.request_over(stream.stream_id)
            raise
        response_headers = Headers.from_raw(head.fields)
        session = WebTransportSession(
            carrier,
            self,
            request=self._request(target, headers, subprotocols, websocket=False),
            response_headers=response_headers,
            subprotocol=_chosen_protocol(response_headers, subprotocols),
            dialect=dialect.drafts,
        )
        return carrier, session

    async def _wait_response(self, stream: RequestStream) -> ResponseHead:
        """The head of a response that accepts; the stream is left open then, and closed otherwise.

        Raises:
            Rejected: it does not.
            HandshakeFailed: it is none.
        """
        accepted = False
        try:
            head = await stream.wait_head()
            assert isinstance(head, ResponseHead)
            accepted = 200 <= head.status < 300
            if not accepted:
                raise Rejected(
                    head.status, Headers.from_raw(head.fields), await _read_some_body(stream)
                )
            return head
        except StreamReset as exc:
            raise HandshakeFailed(f"the server gave no answer: {describe(exc.wire_code)}") from exc
        except (
            BadMessage,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.EndOfChannel,
        ) as exc:
            raise HandshakeFailed(f"the server gave no answer: {self._explain(exc)}") from exc
        finally:
            if not accepted:
                stream.reject(Http3Code.REQUEST_CANCELLED)

    @asynccontextmanager
    async def open_websocket(
        self,
        target: str = "/",
        *,
        subprotocols: Sequence[str] = (),
        headers: HeadersLike = (),
        origin: str | None = None,
        handshake_timeout: float = 10,
        **settings: Unpack[SettingsKwargs],
    ) -> AsyncIterator[WebSocket]:
        """Open a WebSocket on this connection (RFC 9220): the same class as over TCP, on one stream.

        Args:
            target: path and query, or a URL of this server.
            subprotocols: the subprotocols to offer, best first.
            headers: further request headers.
            origin: the Origin header.
            handshake_timeout: seconds that the server may take to answer.
            settings: as for `open_websocket`.

        Raises:
            Rejected: the server answered with another status than 200.
            HandshakeFailed: any other failure until the WebSocket is open.
            ValueError: the target, a header or a setting is not valid; nothing was sent.

        Leaving the block closes the WebSocket, as for `open_websocket`.
        """
        await trio.lowlevel.checkpoint()
        extra = with_origin(headers, origin)
        handshake.check_subprotocols(subprotocols)
        target = self._resolve(target)
        try:
            with trio.fail_after(handshake_timeout):
                connection, websocket = await self._ask_for_websocket(
                    target, extra, subprotocols, Settings(**settings)
                )
        except trio.TooSlowError:
            raise HandshakeFailed(f"no WebSocket within {handshake_timeout:g} s") from None
        async with connection:
            yield websocket

    async def _ask_for_websocket(
        self, target: str, extra: Headers, subprotocols: Sequence[str], settings: Settings
    ) -> tuple[WebSocketConnection, WebSocket]:
        http3, extensions = self._http3, settings.all_extensions()
        headers = handshake.extended_request_headers(
            subprotocols=subprotocols, extensions=extensions, extra=extra
        )
        try:
            peer_settings = await http3.wait_settings()
            if peer_settings.get(Setting.ENABLE_CONNECT_PROTOCOL) != 1:
                raise HandshakeFailed("the server does not take WebSockets over HTTP/3")
            fields = self._request_fields("CONNECT", target, headers, "websocket")
            stream = await http3.request(fields)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel) as exc:
            raise HandshakeFailed(f"the connection has ended: {self._explain(exc)}") from exc
        head = await self._wait_response(stream)
        response_headers = Headers.from_raw(head.fields)
        try:
            subprotocol, codecs = handshake.check_agreed(
                response_headers, subprotocols=subprotocols, extensions=extensions
            )
        except handshake.BadResponse as exc:
            stream.reject(Http3Code.REQUEST_CANCELLED)
            raise HandshakeFailed(str(exc)) from None
        request = self._request(target, headers, subprotocols, websocket=True)
        transport = Http3Transport(
            stream, peer=request.peer, local=request.local, certificate=self.peer_certificate
        )
        connection = WebSocketConnection(transport, client=True, codecs=codecs, settings=settings)
        websocket = WebSocket(
            connection,
            request=request,
            response_headers=response_headers,
            subprotocol=subprotocol,
        )
        return connection, websocket


def with_origin(headers: HeadersLike, origin: str | None) -> Headers:
    """A caller's headers, checked, with an Origin.

    Raises:
        ValueError: one of them is not valid, or belongs to the request.
    """
    extra = Headers(headers)
    check_request_headers(extra)
    if origin is not None:
        extra = Headers([*extra.without("origin").fields, ("Origin", origin)])
    return extra


def _chosen_protocol(headers: Headers, offered: Sequence[str]) -> str | None:
    """What the server has chosen; nothing if it says nothing that makes sense (draft-ietf-webtrans-http3-16 section 3.3)."""
    value = headers.get("wt-protocol")
    if value is None:
        return None
    try:
        parsed = http_sf.parse(value.encode("latin-1"), tltype="item")
    except ValueError:
        return None
    chosen = parsed[0] if isinstance(parsed, tuple) else None
    return chosen if type(chosen) is str and chosen in offered else None


async def _read_body(stream: RequestStream, body: bytearray | None = None) -> bytes:
    """A body, of which 64 KiB at most are kept."""
    body = bytearray() if body is None else body
    async for data in stream:
        body += data
        if len(body) >= _MAX_BODY:
            break
    return bytes(body[:_MAX_BODY])


async def _read_some_body(stream: RequestStream) -> bytes:
    """What there is of one: if it is cut off, that is still better than nothing."""
    body = bytearray()
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await _read_body(stream, body)
    return bytes(body[:_MAX_BODY])


def _address(address: Sockaddr | None) -> tuple[str, int] | None:
    return None if address is None else (address[0], address[1])
