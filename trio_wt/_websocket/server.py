"""The server's side: handshakes, and serving them on listeners."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal, TypeAlias, Unpack

import trio

from .._errors import HandshakeFailed
from .._headers import Headers
from .._http import h1
from .._http.exchange import Application, Exchange, answer, rejection_of
from .._http.policy import OnRequest, check_origins, decide
from .._http.request import Accept, Reject, Request
from .._protocol import handshake
from .._protocol.handshake import BadRequest, Origins
from .._transport.handlers import contain_errors
from .._transport.listen import Listener, accept_forever, open_listeners
from .._transport.tcp import transport_of
from .._transport.transport import Transport
from .._util import safe_text
from .connection import Connection
from .settings import Settings, SettingsKwargs
from .websocket import WebSocket

__all__ = ["OnRequest", "SSLContextSource", "serve_http1", "serve_websocket", "wrap_server_stream"]

#: As a function, it is asked for each connection, so that certificates can be renewed.
SSLContextSource: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]

logger = logging.getLogger("trio_wt.server")

# How long a refused peer may take to read why.
_LINGER = 2.0
_GOODBYE = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a server answers requests."""

    on_request: OnRequest | None
    subprotocols: Sequence[str]
    origins: Origins
    handshake_timeout: float
    settings: Settings
    scheme: str = field(default="http")

    def __post_init__(self) -> None:
        handshake.check_subprotocols(self.subprotocols)
        check_origins(self.origins)
        if not self.handshake_timeout > 0:
            raise ValueError(
                f"handshake_timeout must be greater than 0, and is {self.handshake_timeout}"
            )


class _Refused(Exception):
    """The request got an answer, and no WebSocket."""


@contextmanager
def _contain_refusals() -> Iterator[None]:
    """Whatever becomes of a handshake, it is that client's affair."""
    try:
        yield
    except _Refused as exc:
        logger.debug("no WebSocket opened: %s", exc)
    except trio.BrokenResourceError as exc:
        logger.debug("a connection broke in its handshake: %s", exc)
    except Exception:  # a listener of the application's may give any stream
        logger.exception("a handshake failed")


class _Exchange(Exchange):
    """A request over HTTP/1.1.

    Args:
        transport: where it came from, and the answer goes.
        head: the request.
        policy: times and settings.

    Attributes:
        problem: what is wrong with it; None if nothing is.
        on_open: gets the connection as soon as there is one.
        connection: that connection.
    """

    __slots__ = (
        "_head_only",
        "_key",
        "_leading",
        "_policy",
        "_transport",
        "connection",
        "on_open",
        "problem",
    )

    def __init__(self, transport: Transport, head: h1.RequestHead, policy: Policy) -> None:
        request, self._key, self.problem = _request(head, transport, policy)
        super().__init__(request)
        self._transport = transport
        self._policy = policy
        self._head_only = head.method == "HEAD"
        self._leading = head.leading
        self.on_open: Callable[[Connection], object] | None = None
        self.connection: Connection | None = None

    async def accept(self, accepted: Accept) -> tuple[Connection, WebSocket]:
        request, policy, transport = self.request, self._policy, self._transport
        try:
            headers, codecs = handshake.response_headers(
                request.headers,
                key=self._key,
                subprotocol=accepted.subprotocol,
                extensions=policy.settings.all_extensions(),
                extra=accepted.headers,
            )
        except BadRequest:
            await trio.lowlevel.checkpoint()
            raise
        except Exception:  # an extension of the application's may raise anything
            await trio.lowlevel.checkpoint()
            logger.exception("accepting %s failed", safe_text(request.raw_path))
            raise BadRequest(500, "internal server error") from None
        self.answered = True
        with trio.move_on_after(policy.handshake_timeout) as scope:
            await h1.switch_protocols(transport, headers)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client did not take the response")
        connection = Connection(
            transport,
            client=False,
            codecs=codecs,
            settings=policy.settings,
            leading=self._leading,
        )
        self.connection = connection
        if self.on_open is not None:
            self.on_open(connection)
        websocket = WebSocket(
            connection,
            request=request,
            response_headers=headers,
            subprotocol=accepted.subprotocol,
        )
        return connection, websocket

    async def respond(self, response: Reject) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.answered = True
        with suppress(trio.BrokenResourceError):
            await _respond(self._transport, response, self._policy, head_only=self._head_only)


async def _respond(
    transport: Transport, response: Reject, policy: Policy, *, head_only: bool = False
) -> None:
    patience = policy.handshake_timeout
    with suppress(trio.TooSlowError):
        await h1.send_response(transport, response, patience=patience, head_only=head_only)
    with trio.move_on_after(_LINGER):
        await h1.linger(transport)


async def _receive(transport: Transport, policy: Policy, deadline: float) -> _Exchange:
    """A request that an application may be asked about; any other is answered here.

    Raises:
        _Refused: it was.
        trio.BrokenResourceError: the connection broke.
    """
    refusal: Reject | None = None
    try:
        with trio.fail_at(deadline):
            head = await h1.read_request_head(transport)
    except trio.TooSlowError:
        refusal = Reject(408, Headers(), b"the request took too long\n")
    except h1.BadHead as exc:
        refusal = Reject(exc.status, Headers(), f"{exc.message}\n".encode())
    # Outside of the except blocks, which would keep what was read for as long as this takes.
    if refusal is not None:
        await _respond(transport, refusal, policy)
        raise _Refused(f"answered with status {refusal.status}")
    if head is None:
        raise _Refused("no request")
    exchange = _Exchange(transport, head, policy)
    if exchange.problem is not None:
        await exchange.respond(rejection_of(exchange.problem))
        raise _Refused(f"answered with status {exchange.problem.status}")
    return exchange


def _request(
    head: h1.RequestHead, transport: Transport, policy: Policy
) -> tuple[Request, str, BadRequest | None]:
    """The request for the application; for an upgrade also the key, or what is wrong with it."""
    headers = head.headers
    key, problem = "", None
    upgrade = handshake.is_upgrade(headers)
    hosts = headers.get_all("host")
    if upgrade:
        try:
            key = handshake.check_request(head.method, head.http_version, headers)
            if len(hosts) != 1 or not hosts[0]:
                raise BadRequest(400, "the Host header must be given once")
        except BadRequest as exc:
            problem = exc
    request = Request(
        method=head.method,
        target=head.target,
        headers=headers,
        http_version=head.http_version,
        scheme=policy.scheme,
        host=_authority(head.target) or (hosts[0] if hosts else ""),
        is_websocket=upgrade and problem is None,
        subprotocols=(upgrade and handshake.offered_subprotocols(headers)) or (),
        peer=transport.peer,
        local=transport.local,
        tls_peer_certificate=transport.certificate(),
    )
    return request, key, problem


def _authority(target: str) -> str:
    """The authority of a target in absolute form, which goes before Host (RFC 9112 section 3.2.2)."""
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)", target)
    return match[1] if match else ""


async def _admit(exchange: _Exchange, policy: Policy) -> tuple[Connection, WebSocket]:
    """Answer a request as the policy says.

    Raises:
        _Refused: no WebSocket came of it; the message tells the status.
        trio.BrokenResourceError: the connection broke.
    """
    try:
        decision = await decide(
            exchange.request,
            on_request=policy.on_request,
            origins=policy.origins,
            default=lambda request: _default_decision(request, policy),
        )
        if isinstance(decision, Accept):
            return await exchange.accept(decision)
    except BadRequest as exc:
        decision = rejection_of(exc)
    await exchange.respond(decision)
    raise _Refused(f"answered with status {decision.status}")


def _default_decision(request: Request, policy: Policy) -> Accept | Reject:
    if request.is_websocket:
        chosen = handshake.choose_subprotocol(request.subprotocols, policy.subprotocols)
        return Accept(chosen, Headers())
    # RFC 9110 section 15.5.22
    return Reject(
        426,
        Headers([("Upgrade", "websocket"), ("Connection", "Upgrade")]),
        b"this is a WebSocket server\n",
    )


@asynccontextmanager
async def wrap_server_stream(
    stream: trio.abc.Stream,
    *,
    on_request: OnRequest | None = None,
    subprotocols: Sequence[str] = (),
    origins: Origins = "same-host",
    handshake_timeout: float = 10,
    **settings: Unpack[SettingsKwargs],
) -> AsyncIterator[WebSocket]:
    """Serve one WebSocket on a stream: any `trio.abc.Stream`, on which a client will send its request.

    Args:
        stream: the stream; it is closed when the block ends.
        on_request: sees the request before it is answered, as for `serve_websocket`.
        subprotocols: the subprotocols to support, best first.
        origins: which Origins to allow, as for `serve_websocket`.
        handshake_timeout: seconds the client may take for its request.
        settings: the connection's settings; `serve_websocket` lists them.

    Raises:
        HandshakeFailed: the request was not one for a WebSocket, or was rejected; it has been answered.
        ValueError: a setting is out of its range.
    """
    policy = Policy(on_request, subprotocols, origins, handshake_timeout, Settings(**settings))
    transport = transport_of(stream, owned=False)
    try:
        try:
            deadline = trio.current_time() + handshake_timeout
            exchange = await _receive(transport, policy, deadline)
            connection, websocket = await _admit(exchange, policy)
        except (_Refused, trio.BrokenResourceError) as exc:
            raise HandshakeFailed(f"no WebSocket was opened: {exc}") from None
        async with connection:
            yield websocket
    finally:
        with trio.CancelScope(shield=True):
            await transport.aclose(graceful=False)


class _Server:
    """The connections of one `serve_websocket`, and how they end together.

    Args:
        policy: how requests are answered.
        ssl_context: for TLS; a function is asked for each connection.
        handler: gets the WebSockets that the policy admits.
        application: answers all requests itself, instead.
        raise_errors: whether failures of these come out.
    """

    def __init__(
        self,
        policy: Policy,
        ssl_context: SSLContextSource | None,
        *,
        handler: Callable[[WebSocket], Awaitable[object]] | None = None,
        application: Application | None = None,
        raise_errors: bool,
    ) -> None:
        self._handler = handler
        self._application = application
        self._policy = policy
        self._ssl_context = ssl_context
        self._raise_errors = raise_errors
        # Requests that are being answered, and connections; both until their tasks are done with them.
        self._requests: set[trio.CancelScope] = set()
        self._connections: set[Connection] = set()
        self._closing = False
        self._idle = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection from its first byte to its last."""
        opened = await self._answer(stream)
        if opened is None:
            return
        connection, websocket = opened
        message = "a WebSocket handler failed; its connection got code 1011"
        assert self._handler is not None
        try:
            with contain_errors(message, propagate=self._raise_errors):
                async with connection:
                    del opened, stream  # an idle connection lives in this frame
                    await self._handler(websocket)
        finally:
            self._connections.discard(connection)
            self._check_idle()

    async def _answer(self, stream: trio.abc.Stream) -> tuple[Connection, WebSocket] | None:
        """TLS, and a request: a WebSocket for the handler, or None, when all has been done that is to be done."""
        opened: tuple[Connection, WebSocket] | None = None
        transport: Transport | None = None
        exchange: _Exchange | None = None
        with trio.CancelScope() as scope:
            self._requests.add(scope)
            try:
                with _contain_refusals():
                    deadline = trio.current_time() + self._policy.handshake_timeout
                    if self._ssl_context is not None:
                        stream = await self._start_tls(stream, deadline)
                    transport = transport_of(stream, owned=True)
                    exchange = await _receive(transport, self._policy, deadline)
                    exchange.on_open = self._opened
                    if self._application is None:
                        opened = await _admit(exchange, self._policy)
                if exchange is not None and self._application is not None:
                    await self._apply(self._application, exchange)
            finally:
                if opened is None and transport is not None:
                    with trio.CancelScope(shield=True):
                        await transport.aclose(graceful=False)
                self._requests.discard(scope)
                self._check_idle()
        return opened

    async def _apply(self, application: Application, exchange: _Exchange) -> None:
        message = f"answering {safe_text(exchange.request.raw_path)} failed"
        try:
            with contain_errors(message, propagate=self._raise_errors):
                await answer(application, exchange)
        finally:
            if exchange.connection is not None:
                self._connections.discard(exchange.connection)

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._closing:
            connection.go_away(_GOODBYE)

    def _check_idle(self) -> None:
        if self._closing and not self._requests and not self._connections:
            self._idle.set()

    async def _start_tls(
        self, stream: trio.abc.Stream, deadline: float
    ) -> trio.SSLStream[trio.abc.Stream]:
        source = self._ssl_context
        assert source is not None
        ssl_context = source if isinstance(source, ssl.SSLContext) else source()
        tls = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
        try:
            with trio.fail_at(deadline):
                await tls.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as exc:
            await trio.aclose_forcefully(tls)
            raise _Refused(f"the TLS handshake failed: {exc.__cause__ or exc}") from None
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls

    async def shut_down(self, timeout: float) -> None:
        """Close all connections with 1001, and end what is left after ``timeout`` seconds."""
        self._closing = True
        for connection in list(self._connections):
            connection.go_away(_GOODBYE)
        self._check_idle()
        with trio.move_on_after(timeout):
            await self._idle.wait()
        for scope in [*self._requests, *(c.cancel_scope for c in self._connections)]:
            scope.cancel()
        await self._idle.wait()


async def serve_websocket(
    handler: Callable[[WebSocket], Awaitable[object]],
    port: int | None = None,
    *,
    host: str | bytes | None = None,
    unix_path: str | PathLike[str] | None = None,
    listeners: Sequence[Listener] | None = None,
    backlog: int | None = None,
    ssl_context: ssl.SSLContext | None = None,
    on_request: OnRequest | None = None,
    subprotocols: Sequence[str] = (),
    origins: Origins = "same-host",
    handshake_timeout: float = 10,
    shutdown: trio.Event | None = None,
    shutdown_timeout: float = 10,
    handler_errors: Literal["log", "raise"] = "log",
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[SettingsKwargs],
) -> None:
    """Listen, and run ``handler(websocket)`` for every WebSocket that is opened, until cancelled or shut down.

    Follows `trio.serve_tcp`. A handler that returns closes its connection with code 1000, one that raises with 1011.

    Args:
        handler: runs in a task of its own per connection.
        port: the TCP port; 0 takes a free one, which the listeners given to ``task_status`` tell.
        host: the address to listen on; None for all.
        unix_path: listen on a Unix socket instead.
        listeners: listen on these instead; they are closed at the end.
        backlog: how many connections the system may hold before they are accepted; None for its most.
        ssl_context: serve TLS with this context.
        on_request: sees each `Request`, plain ones too, and may accept or reject it; may be async. What it raises
            is logged and answered with 500.
        subprotocols: the subprotocols to support, best first, where ``on_request`` does not choose.
        origins: which Origins to allow: "same-host", "any", or strings and compiled patterns to match in
            full. A request without Origin is allowed; any other is answered with 403.
        handshake_timeout: seconds a client may take for TLS, and for its request; then 408.
        shutdown: once set, no connection is accepted any more, all get Close with code 1001, and the call returns when
            the handlers have.
        shutdown_timeout: seconds after which handlers are cancelled then.
        handler_errors: "log" logs what a handler raises; "raise" lets it go on to the nursery.
        handler_nursery: runs the handlers, instead of a nursery of this call's.
        task_status: gets the list of listeners.
        settings: compression, extensions, max_message_size, max_fragments, max_queue_messages, max_queue_bytes,
            write_limit, ping_interval, ping_timeout, close_timeout and cancel_on_close, as in `Settings`.

    Raises:
        ValueError: a setting is out of its range, or not exactly one of port, unix_path and listeners was given.
        OSError: the address cannot be listened on.

    Cancelled, it stops accepting, and all handlers are cancelled; each connection gets Close with code 1001.
    """
    server = _Server(
        Policy(
            on_request,
            subprotocols,
            origins,
            handshake_timeout,
            Settings(**settings),
            "http" if ssl_context is None else "https",
        ),
        ssl_context,
        handler=handler,
        raise_errors=_raises(handler_errors),
    )
    opened = await open_listeners(
        port=port, host=host, unix_path=unix_path, listeners=listeners, backlog=backlog
    )
    try:
        await _serve(server, opened, shutdown, shutdown_timeout, handler_nursery, task_status)
    finally:
        if unix_path is not None:
            with suppress(FileNotFoundError):
                os.unlink(unix_path)


async def serve_http1(
    application: Application,
    listeners: Sequence[Listener],
    *,
    ssl_context: SSLContextSource | None,
    handshake_timeout: float,
    settings: Settings,
    shutdown: trio.Event,
    shutdown_timeout: float,
    handler_errors: Literal["log", "raise"],
    task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`serve_websocket` for an application that answers every request itself, plain ones and those for WebSockets."""
    policy = Policy(
        None, (), "any", handshake_timeout, settings, "http" if ssl_context is None else "https"
    )
    server = _Server(
        policy, ssl_context, application=application, raise_errors=_raises(handler_errors)
    )
    await _serve(server, listeners, shutdown, shutdown_timeout, None, task_status)


def _raises(handler_errors: str) -> bool:
    if handler_errors not in ("log", "raise"):
        raise ValueError(f'handler_errors is "log" or "raise", not {handler_errors!r}')
    return handler_errors == "raise"


async def _serve(
    server: _Server,
    listeners: Sequence[Listener],
    shutdown: trio.Event | None,
    shutdown_timeout: float,
    handler_nursery: trio.Nursery | None,
    task_status: trio.TaskStatus[list[Listener]],
) -> None:
    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(
                        accept_forever, listener, server.serve, handler_nursery or nursery
                    )
                task_status.started(list(listeners))
                if shutdown is not None:
                    await shutdown.wait()
                    accepting.cancel_scope.cancel()
            await _close_all(listeners)
            await server.shut_down(shutdown_timeout)
    finally:
        await _close_all(listeners)  # noqa: ASYNC102


async def _close_all(listeners: Sequence[Listener]) -> None:
    with trio.CancelScope(shield=True):
        for listener in listeners:
            await listener.aclose()
