"""The server's side: requests, what becomes of them, and handlers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Any, Final, Literal, TypeAlias, Unpack

import http_sf
import trio

from .._errors import ConnectionClosed, StreamReset
from .._headers import Headers
from .._http.exchange import Application, Exchange, answer, rejection_of
from .._http.h1 import PIECE
from .._http.h3 import Http3
from .._http.h3_transport import Http3Transport
from .._http.policy import OnRequest, check_origins, decide
from .._http.priority import Priority
from .._http.request import Accept, Reject, Request
from .._http.request_stream import BadMessage, RequestStream, fields_of
from .._protocol import handshake
from .._protocol.dialects import TOKENS, dialect_of_request
from .._protocol.handshake import BadRequest, Origins
from .._protocol.http3_codes import Http3Code
from .._protocol.http3_fields import Fields, RequestHead
from .._quic.driver import Driver
from .._quic.server import ServerTLSSource, serve_connections
from .._transport.handlers import contain_errors
from .._transport.services import Services
from .._transport.udp import DatagramSocket
from .._util import safe_text
from .._websocket.connection import Connection as WebSocketConnection
from .._websocket.settings import Settings as WebSocketSettings
from .._websocket.websocket import WebSocket
from .carrier import SessionCarrier
from .connection import WebTransportConnection, check_session_protocols
from .router import Sessions
from .session import SessionBlock, WebTransportSession
from .settings import WebTransportSettings, WebTransportSettingsKwargs
from .upper import ALPN, http3_settings, make_upper

__all__ = ["serve_http3", "serve_webtransport"]

logger = logging.getLogger("trio_wt.server")

SessionHandler: TypeAlias = Callable[[WebTransportSession], Awaitable[object]]
WebSocketHandler: TypeAlias = Callable[[WebSocket], Awaitable[object]]

# For how long a connection whose last session has ended is kept for a client that cannot open another beside it.
_LINGER: Final = 2.0
# How long a connection outlives its last session at the least, if the client does not close it.
_LAST_WORDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Policy:
    """How a server answers requests."""

    handler: SessionHandler | None
    websocket_handler: WebSocketHandler | None
    on_request: OnRequest | None
    subprotocols: Sequence[str]
    origins: Origins
    handshake_timeout: float
    handler_errors: Literal["log", "raise"]
    settings: WebTransportSettings
    websocket_settings: WebSocketSettings
    # Answers all requests itself, instead.
    application: Application | None = None

    def __post_init__(self) -> None:
        if self.application is not None:
            return
        if self.handler is None and self.websocket_handler is None and self.on_request is None:
            raise ValueError("give a handler, a websocket_handler, or on_request")
        check_session_protocols(self.subprotocols)
        check_origins(self.origins)


async def serve_webtransport(
    handler: SessionHandler | None,
    port: int | None = None,
    *,
    tls: ServerTLSSource,
    host: str | bytes | None = None,
    sockets: Sequence[DatagramSocket] | None = None,
    websocket_handler: WebSocketHandler | None = None,
    websocket_settings: WebSocketSettings | None = None,
    on_request: OnRequest | None = None,
    subprotocols: Sequence[str] = (),
    origins: Origins = "same-host",
    retry: Literal["under-load", "always", "never"] = "under-load",
    max_half_open: int = 64,
    reset_key: bytes | None = None,
    handshake_timeout: float = 10,
    shutdown: trio.Event | None = None,
    shutdown_timeout: float = 10,
    handler_errors: Literal["log", "raise"] = "log",
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[DatagramSocket]] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[WebTransportSettingsKwargs],
) -> None:
    """Listen, and run ``handler(session)`` for every WebTransport session, until cancelled or shut down.

    Follows `trio.serve_tcp`. A handler that returns closes its session gracefully with code 0, one that raises at once with
    the ``failed_code``. Other requests of HTTP/3 come to ``on_request`` too, so that one server can serve the page that uses it.

    Args:
        handler: runs in a task of its own per session; None to take no sessions.
        port: the UDP port; 0 takes a free one, which the sockets given to ``task_status`` tell.
        tls: the certificate to show, and what to ask of clients; a function is called for each connection.
        host: the address to listen on; None for all, IPv6 and IPv4.
        sockets: listen on these instead; they are closed in the end.
        websocket_handler: runs for every WebSocket over HTTP/3 (RFC 9220); None to take none.
        websocket_settings: the settings of these.
        on_request: sees every request before it is answered, and may call its ``accept``, ``reject`` or ``respond``; may be
            async. A request for a session that it leaves alone is accepted, any other gets status 404.
        subprotocols: the subprotocols to support, best first.
        origins: which Origins to let in: "same-host" as the request, "any", or a list; a request without one is let in.
        retry, max_half_open, reset_key: as for `serve_quic`.
        handshake_timeout: seconds that a client may take for the handshake, and for what must come before a session.
        shutdown: once set, no connection and no request is accepted any more, sessions are told to drain, and the call returns when
            the handlers have.
        shutdown_timeout: seconds after which sessions are closed, and handlers cancelled, then.
        handler_errors: "log" logs what a handler raises; "raise" lets it go on to the nursery.
        handler_nursery: runs the handlers, instead of a nursery of this call's. Connections that are still there when this
            call ends are lost.
        task_status: gets the list of sockets.
        settings: as in `WebTransportSettings`.

    Raises:
        ValueError: a setting is out of its range, or not exactly one of port and sockets was given.
        OSError: the address cannot be listened on, or a file cannot be read.

    Cancelled, it stops accepting, and all handlers are cancelled; each session is closed with the ``cancelled_code``.
    """
    policy = _Policy(
        handler,
        websocket_handler,
        on_request,
        subprotocols,
        origins,
        handshake_timeout,
        handler_errors,
        WebTransportSettings(**settings),
        websocket_settings or WebSocketSettings(),
    )
    await _serving(policy)(
        port,
        tls=tls,
        host=host,
        sockets=sockets,
        retry=retry,
        max_half_open=max_half_open,
        reset_key=reset_key,
        shutdown=shutdown,
        shutdown_timeout=shutdown_timeout,
        handler_nursery=handler_nursery,
        task_status=task_status,
    )


async def serve_http3(
    application: Application,
    sockets: Sequence[DatagramSocket],
    *,
    tls: ServerTLSSource,
    handshake_timeout: float,
    settings: WebTransportSettings,
    websocket_settings: WebSocketSettings,
    shutdown: trio.Event,
    shutdown_timeout: float,
    handler_errors: Literal["log", "raise"],
    task_status: trio.TaskStatus[list[DatagramSocket]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`serve_webtransport` for an application that answers every request itself, plain ones and those for sessions."""
    policy = _Policy(
        None,
        None,
        None,
        (),
        "any",
        handshake_timeout,
        handler_errors,
        settings,
        websocket_settings,
        application,
    )
    await _serving(policy)(
        None,
        tls=tls,
        host=None,
        sockets=sockets,
        retry="under-load",
        max_half_open=64,
        reset_key=None,
        shutdown=shutdown,
        shutdown_timeout=shutdown_timeout,
        handler_nursery=None,
        task_status=task_status,
    )


def _serving(policy: _Policy) -> partial[Coroutine[Any, Any, None]]:
    """Serves connections; what is left to say is where, and until when."""
    ours = http3_settings(policy.settings)

    async def serve(driver: Driver, services: Services) -> None:
        connection = WebTransportConnection(driver, services, policy.settings, None)
        await _Server(policy, driver, connection).serve()

    return partial(
        serve_connections,
        serve,
        alpn=ALPN,
        early_data=False,
        handshake_timeout=policy.handshake_timeout,
        handler_errors=policy.handler_errors,
        settings=policy.settings.for_connection(),
        upper=make_upper(policy.settings, ours, client=False),
    )


class _Server:
    """One connection's requests."""

    def __init__(self, policy: _Policy, driver: Driver, connection: WebTransportConnection) -> None:
        http3 = driver.upper
        assert isinstance(http3, Http3)
        sessions = http3.router
        assert isinstance(sessions, Sessions)
        self._policy = policy
        self._driver = driver
        self._connection = connection
        self._http3 = http3
        self._sessions = sessions
        # Requests that are being served; whether there was a session among them.
        self._served = 0
        self._had_session = False

    async def serve(self) -> None:
        """Take requests until there will be no more, and see to the end of their tasks."""
        try:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    while True:
                        try:
                            stream = await self._http3.next_request()
                        except trio.EndOfChannel:
                            break
                        self._served += 1
                        serve = partial(self._serve_request, stream, scope)
                        nursery.start_soon(serve, name="trio_wt HTTP/3 request")
                        del serve
                        del stream  # and with it all that a session holds
        finally:
            if self._had_session:
                # To browsers, the connection's end overtakes the session's if it comes right behind it.
                with trio.CancelScope(shield=True), trio.move_on_after(_LAST_WORDS):
                    while self._driver.end is None:
                        await self._driver.wait_changed()

    async def _serve_request(self, stream: RequestStream, accepting: trio.CancelScope) -> None:
        try:
            message = "a handler failed; its session was closed"
            with contain_errors(message, propagate=self._policy.handler_errors == "raise"):
                await self._answer(stream)
        finally:
            self._sessions.request_over(stream.stream_id)
            # Only now: a stream counts for the peer as long as somebody works for it, though it was given up.
            stream.take()
            self._served -= 1
        if not self._served and self._is_of_no_more_use():
            with trio.move_on_after(_LINGER):
                while self._driver.end is None and not self._http3.going_away:
                    await self._driver.wait_changed()
            if not self._served:
                accepting.cancel()

    def _is_of_no_more_use(self) -> bool:
        """Whether the client has had its session: browsers leave such connections to their idle timeout."""
        return self._had_session and not self._sessions.have_credit

    # ---- requests

    async def _answer(self, stream: RequestStream) -> None:
        request: Request | None = None
        try:
            request = await self._receive_request(stream)
        except BadRequest as exc:
            refusal = rejection_of(exc)
        except (StreamReset, ConnectionClosed, trio.ClosedResourceError):
            stream.reject(Http3Code.REQUEST_CANCELLED)
            return  # before there was a session, this concerns nobody
        if request is None:
            await self.respond(stream, refusal, head_only=False)
            return
        exchange = _Exchange(self, stream, request)
        application = self._policy.application or self._answer_by_policy
        try:
            await answer(application, exchange)
        except (StreamReset, ConnectionClosed, trio.ClosedResourceError):
            if exchange.answered:
                raise
        finally:
            if not exchange.answered:
                stream.reject(Http3Code.REQUEST_CANCELLED)

    async def _answer_by_policy(self, exchange: Exchange) -> None:
        policy, request = self._policy, exchange.request
        decision = await decide(
            request,
            on_request=policy.on_request,
            origins=policy.origins,
            default=self._default_decision,
        )
        if isinstance(decision, Reject):
            await exchange.respond(decision)
            return
        block, session = await exchange.accept(decision)
        handler = policy.websocket_handler if request.is_websocket else policy.handler
        assert handler is not None
        async with block:
            await handler(session)

    async def _receive_request(self, stream: RequestStream) -> Request:
        """A request that the application may be asked about.

        Raises:
            BadRequest: it is not one.
            StreamReset: the client has thought better of it.
            ConnectionClosed: the connection has ended.
        """
        try:
            head = await stream.wait_head()
        except BadMessage as exc:
            raise BadRequest(exc.failure.status, exc.failure.reason) from None
        assert isinstance(head, RequestHead)
        request = self._request(head)
        await self._check(request, head)
        return request

    def _request(self, head: RequestHead) -> Request:
        peer, local = self._driver.peer_address, self._driver.local_address
        headers = Headers.from_raw(head.fields)
        is_webtransport = head.protocol in TOKENS
        if is_webtransport:
            offered = _offered_protocols(headers)
        elif head.protocol == "websocket":
            offered = handshake.offered_subprotocols(headers)
        else:
            offered = []
        return Request(
            method=head.method,
            target=head.path or head.authority,
            headers=headers,
            http_version="3",
            scheme=head.scheme,
            host=head.authority,
            is_websocket=head.protocol == "websocket",
            is_webtransport=is_webtransport,
            subprotocols=tuple(offered),
            peer=None if peer is None else (peer[0], peer[1]),
            local=None if local is None else (local[0], local[1]),
            tls_peer_certificate=self._connection.peer_certificate,
        )

    async def _check(self, request: Request, head: RequestHead) -> None:
        """What must hold before the application is asked.

        Raises:
            BadRequest: it does not hold.
        """
        policy = self._policy
        if request.method == "CONNECT" and not request.asks_for_session:
            # RFC 9220 section 3
            raise BadRequest(501 if head.protocol else 405, "nothing here takes this CONNECT")
        if request.is_websocket:
            if policy.websocket_handler is None and policy.application is None:
                raise BadRequest(405, "there are no WebSockets here")
            handshake.check_extended_request(request.headers)
        elif request.is_webtransport:
            if policy.handler is None and policy.application is None:
                raise BadRequest(405, "there is no WebTransport here")
            # Its SETTINGS say how to speak to it (draft-ietf-webtrans-http3-16 section 3.1).
            if not self._http3.is_settled:
                with trio.move_on_after(policy.handshake_timeout) as scope:
                    await self._http3.wait_settings()
                if scope.cancelled_caught:
                    raise BadRequest(400, "SETTINGS have not come")
            if len(self._sessions.open) >= self._most_sessions:
                raise BadRequest(429, "too many sessions on this connection")

    @property
    def _most_sessions(self) -> int:
        if not self._sessions.have_credit:
            return 1
        return self._policy.settings.max_sessions

    def _default_decision(self, request: Request) -> Accept | Reject:
        if not request.asks_for_session:
            return Reject(404, Headers(), b"there is nothing here\n")
        supported = self._policy.subprotocols
        return Accept(handshake.choose_subprotocol(request.subprotocols, supported), Headers())

    async def respond(self, stream: RequestStream, response: Reject, *, head_only: bool) -> None:
        """A whole response."""
        headers = response.headers.without("content-length")
        bodiless = head_only or response.status in (204, 304)
        if response.body and "content-type" not in headers:
            headers += [("Content-Type", "text/plain; charset=utf-8")]
        if "date" not in headers:
            headers += [("Date", formatdate(usegmt=True))]
        if response.status not in (204, 304):  # RFC 9110 section 8.6
            headers += [("Content-Length", str(len(response.body)))]
        fields: Fields = [(b":status", b"%d" % response.status), *fields_of(headers)]
        try:
            stream.send_head(fields, end=bodiless or not response.body)
            body = b"" if bodiless else response.body
            for at in range(0, len(body), PIECE):
                with trio.fail_after(self._policy.handshake_timeout):
                    piece = body[at : at + PIECE]
                    await stream.send_content(piece, end=at + PIECE >= len(body))
            await stream.aclose()
        except trio.TooSlowError:
            stream.reject(Http3Code.REQUEST_CANCELLED)
        except (StreamReset, ConnectionClosed, trio.ClosedResourceError):
            pass
        except BaseException:
            stream.reject(Http3Code.REQUEST_CANCELLED)
            raise

    # ---- sessions

    def open_session(
        self, stream: RequestStream, request: Request, accepted: Accept
    ) -> tuple[SessionCarrier, WebTransportSession]:
        policy, http3 = self._policy, self._http3
        if len(self._sessions.open) >= self._most_sessions:
            # Others were let in while the application thought about it.
            raise BadRequest(429, "too many sessions on this connection")
        headers = accepted.headers
        if accepted.subprotocol is not None:
            headers += [("WT-Protocol", http_sf.ser(accepted.subprotocol))]
        stream.send_head([(b":status", b"200"), *fields_of(headers)])
        self._had_session = True
        credit = self._sessions.new_credit()
        carrier = SessionCarrier(
            self._driver, stream, credit, policy.settings, self._sessions.later
        )
        priority = request.headers.get("priority")
        if priority is not None:
            carrier.set_priority(Priority.parse(priority.encode("latin-1")))
        assert isinstance(stream.head, RequestHead)
        assert stream.head.protocol is not None
        dialect = dialect_of_request(http3.protocol.peer_settings or {}, stream.head.protocol)
        session = WebTransportSession(
            carrier,
            self._connection,
            request=request,
            response_headers=headers,
            subprotocol=accepted.subprotocol,
            dialect=dialect.drafts,
        )
        self._sessions.opened(carrier)
        if http3.going_away:
            carrier.drain_both()
        return carrier, session

    def open_websocket(
        self, stream: RequestStream, request: Request, accepted: Accept
    ) -> tuple[WebSocketConnection, WebSocket]:
        policy = self._policy
        try:
            headers, codecs = handshake.agreed_headers(
                request.headers,
                subprotocol=accepted.subprotocol,
                extensions=policy.websocket_settings.all_extensions(),
                extra=accepted.headers,
            )
        except BadRequest:
            raise
        except Exception:  # an extension of the application's may raise anything
            logger.exception("accepting %s failed", safe_text(request.raw_path))
            raise BadRequest(500, "internal server error") from None
        stream.send_head([(b":status", b"200"), *fields_of(headers)])
        transport = Http3Transport(
            stream,
            peer=request.peer,
            local=request.local,
            certificate=request.tls_peer_certificate,
        )
        connection = WebSocketConnection(
            transport, client=False, codecs=codecs, settings=policy.websocket_settings
        )
        self._sessions.websocket_opened(stream.stream_id, connection)
        websocket = WebSocket(
            connection,
            request=request,
            response_headers=headers,
            subprotocol=accepted.subprotocol,
        )
        return connection, websocket


class _Exchange(Exchange):
    """A request over HTTP/3."""

    __slots__ = ("_server", "_stream")

    def __init__(self, server: _Server, stream: RequestStream, request: Request) -> None:
        super().__init__(request)
        self._server = server
        self._stream = stream

    async def accept(
        self, accepted: Accept
    ) -> tuple[AbstractAsyncContextManager[object], WebTransportSession | WebSocket]:
        stream, server, request = self._stream, self._server, self.request
        await trio.lowlevel.checkpoint()
        try:
            stream.check_unbroken()
            fields_of(accepted.headers)
            if request.is_webtransport:
                carrier, session = server.open_session(stream, request, accepted)
                self.answered = True
                return SessionBlock(carrier), session
            opened = server.open_websocket(stream, request, accepted)
        except ValueError:
            logger.exception("accepting %s failed", safe_text(request.raw_path))
            raise BadRequest(500, "internal server error") from None
        self.answered = True
        return opened

    async def respond(self, response: Reject) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            fields_of(response.headers)
        except ValueError:
            logger.exception("answering %s failed", safe_text(self.request.raw_path))
            response = Reject(500, Headers(), b"internal server error\n")
        self.answered = True
        await self._server.respond(self._stream, response, head_only=self.request.method == "HEAD")


def _offered_protocols(headers: Headers) -> list[str]:
    """What a client offers, in its order; nothing if the field is not valid (draft-ietf-webtrans-http3-16 section 3.3)."""
    value = headers.get("wt-available-protocols")
    if value is None:
        return []
    try:
        members = http_sf.parse(value.encode("latin-1"), tltype="list")
    except ValueError:
        return []
    assert isinstance(members, list)
    names = [member[0] for member in members if isinstance(member, tuple)]
    # A member of any other type makes the whole field void.
    if len(names) != len(members) or any(type(name) is not str for name in names):
        return []
    return [str(name) for name in names]
