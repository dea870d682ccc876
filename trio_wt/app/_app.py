"""Applications: routes to handlers, what surrounds them, and how a request is answered."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar
from urllib.parse import unquote

import trio

from .._headers import Headers
from .._http.exchange import Exchange
from .._http.policy import check_origins
from .._http.request import Reject, Request
from .._protocol.handshake import Origins, check_subprotocols
from .._quic.server import ServerTLSSource
from .._util import safe_text
from .._websocket.settings import Settings
from .._webtransport.settings import WebTransportSettings
from ._answering import (
    ClientGone,
    Finish,
    kind_of,
    no_route,
    refuse,
    respond,
    run_page,
    run_session,
    sole,
    surround,
)
from ._context import Context, HTTPError, Kind, Middleware, State
from ._endpoints import (
    Candidate,
    Endpoint,
    Leaf,
    Mount,
    check_manager,
    checked_middleware,
    takes_context_of,
)
from ._figures import AppStatistics, Figures, is_failure
from ._routing import Converter, Routes
from ._serving import Serving, check_settings, serve_application

__all__ = ["App", "Lifespan"]

logger = logging.getLogger("trio_wt.app")

SessionT = TypeVar("SessionT", bound=Callable[..., Awaitable[object]])
PageT = TypeVar("PageT", bound=Callable[..., object])
#: Surrounds the life of an application: entered before it listens, left when the last handler is done.
Lifespan: TypeAlias = Callable[["App"], AbstractAsyncContextManager[object]]

_METHOD: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ-")


class App:
    """Routes, middleware and handlers for WebSockets, WebTransport sessions and plain requests: one server for all of them.

    ::

        app = App()

        @app.session("/echo/{room}")
        async def echo(session: WebSocket | WebTransportSession, room: str) -> None: ...

        trio.run(app.serve, "localhost", 4433)

    Args:
        middleware: surrounds every request, the first one outermost, also those that no route takes.
        lifespan: surrounds the life of the application; it may set ``state``.
        origins: which Origins sessions are opened for, if their route does not say otherwise: "same-host" as the request, "any",
            or a list; a request without one is let in.
        converters: further converters for parameters in paths.

    Attributes:
        state: for what the lifespan makes.
        origins: see there.

    Raises:
        ValueError: ``origins`` says nothing about Origins, or a converter's name or pattern is not valid.
        TypeError: a middleware or the lifespan gives no async context manager.
    """

    def __init__(
        self,
        *,
        middleware: Sequence[Middleware] = (),
        lifespan: Lifespan | None = None,
        origins: Origins = "same-host",
        converters: Mapping[str, Converter] | None = None,
    ) -> None:
        check_origins(origins)
        if lifespan is not None:
            check_manager("a lifespan", lifespan)
        self.state: State = State()
        self._middleware = checked_middleware(middleware)
        self._lifespan = lifespan
        self.origins: Origins = origins
        self._converters = dict(converters or {})
        self._routes: Routes[Leaf] = Routes(self._converters)
        self._mounts: list[Mount] = []
        self._figures = Figures()
        self._is_alive = False

    # ---- routes

    def websocket(
        self,
        path: str,
        *,
        subprotocols: Sequence[str] = (),
        origins: Origins | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[SessionT], SessionT]:
        """A handler for WebSockets: ``@app.websocket("/chat/{room}")`` over ``async def chat(ws, room)``.

        It runs in a task of its own for each WebSocket, over TCP or HTTP/3. When it returns, the WebSocket is closed with code
        1000; when it raises, with 1011.

        Args:
            path: the route's path; ``{name}`` is a segment, ``{name:int}``, ``float``, ``uuid`` one that is converted, ``{name:path}``
                the rest of the path. The handler gets them by name.
            subprotocols: the subprotocols to support, best first.
            origins: which Origins to let in, where not what the application says.
            middleware: surrounds the handler, inside of the application's.

        Raises:
            ValueError: the path is not valid, or it has such a handler already.
            TypeError: the handler does not take the path's parameters, or a middleware gives no async context manager.
        """
        return self._adds_session(path, ("websocket",), subprotocols, origins, middleware)

    def webtransport(
        self,
        path: str,
        *,
        subprotocols: Sequence[str] = (),
        origins: Origins | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[SessionT], SessionT]:
        """A handler for WebTransport sessions; as `websocket`. When it raises, the session is closed with the ``failed_code``."""
        return self._adds_session(path, ("webtransport",), subprotocols, origins, middleware)

    def session(
        self,
        path: str,
        *,
        subprotocols: Sequence[str] = (),
        origins: Origins | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[SessionT], SessionT]:
        """A handler for both kinds of session: `websocket` and `webtransport` in one."""
        kinds: tuple[Kind, ...] = ("websocket", "webtransport")
        return self._adds_session(path, kinds, subprotocols, origins, middleware)

    def http(
        self,
        path: str,
        *,
        methods: Sequence[str] = ("GET",),
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[PageT], PageT]:
        """A handler for plain requests, such as pages and health checks: ``@app.http("/health")`` over ``def health(request)``.

        It may be async, and returns a `Response`, text, bytes, or None for status 204. What a request carries as content is not
        read. HEAD is answered where GET is, and OPTIONS everywhere.

        Args:
            path: as for `websocket`.
            methods: which methods it answers.
            middleware: surrounds the handler, inside of the application's.

        Raises:
            ValueError: the path or a method is not valid, or has a handler already.
            TypeError: the handler does not take the path's parameters, or a middleware gives no async context manager.
        """
        if isinstance(methods, str):
            raise TypeError(f"methods must be a sequence, such as [{methods!r}]")
        wanted = dict.fromkeys(method.upper() for method in methods)
        if not wanted:
            raise ValueError("give at least one method")
        around = checked_middleware(middleware)
        for method in wanted:
            if not method or not _METHOD.issuperset(method) or method == "CONNECT":
                raise ValueError(f"{method!r} is not a method for plain requests")

        def add(handler: PageT) -> PageT:
            endpoint = self._endpoint(path, handler, around)
            leaf, _ = self._routes.add(path, Leaf)
            for method in wanted:
                if method in leaf.methods:
                    raise ValueError(f"{path!r} has a handler for {method} already")
            leaf.methods.update(dict.fromkeys(wanted, endpoint))
            return handler

        return add

    def _adds_session(
        self,
        path: str,
        kinds: tuple[Kind, ...],
        subprotocols: Sequence[str],
        origins: Origins | None,
        middleware: Sequence[Middleware],
    ) -> Callable[[SessionT], SessionT]:
        check_subprotocols(subprotocols)
        if origins is not None:
            check_origins(origins)
        around = checked_middleware(middleware)

        def add(handler: SessionT) -> SessionT:
            endpoint = self._endpoint(path, handler, around, tuple(subprotocols), origins)
            leaf, _ = self._routes.add(path, Leaf)
            for kind in kinds:
                if kind in leaf.sessions:
                    raise ValueError(f"{path!r} has a handler for {kind} already")
            leaf.sessions.update(dict.fromkeys(kinds, endpoint))
            return handler

        return add

    def _endpoint(
        self,
        path: str,
        handler: Callable[..., object],
        middleware: tuple[Middleware, ...],
        subprotocols: tuple[str, ...] = (),
        origins: Origins | None = None,
    ) -> Endpoint:
        """A handler, checked against its path before anything is changed."""
        _, names = Routes[Leaf](self._converters).add(path, Leaf)
        takes_context = takes_context_of(handler, names)
        return Endpoint(self, path, handler, takes_context, middleware, subprotocols, origins)

    def mount(self, prefix: str, app: App) -> None:
        """Serve another application's routes behind a prefix, inside of this one's middleware.

        Its own middleware surrounds its routes only, and it keeps its own state, Origins and lifespan; that is entered after this
        one's. Routes of this application go first.

        Args:
            prefix: a path without parameters, such as ``/admin``.
            app: the other one.

        Raises:
            ValueError: the prefix is not valid or taken, or the application would be mounted on itself.
        """
        if app is self or any(inner is self for inner in app._applications()):
            raise ValueError("an application cannot be mounted on itself")
        inner = prefix.strip("/")
        if not prefix.startswith("/") or not inner or any(c in prefix for c in "{}?#"):
            raise ValueError(
                f"{prefix!r} is no prefix: write a path without parameters, such as /admin"
            )
        segments = tuple(unquote(part) for part in inner.split("/"))
        if any(mount.segments == segments for mount in self._mounts):
            raise ValueError(f"there is an application at {prefix!r} already")
        self._mounts.append(Mount(f"/{inner}", segments, app))
        self._mounts.sort(key=lambda mount: -len(mount.segments))

    def _applications(self) -> Iterator[App]:
        yield self
        for mount in self._mounts:
            yield from mount.app._applications()

    # ---- serving

    async def serve(
        self,
        host: str | None,
        port: int,
        *,
        tls: ServerTLSSource | None = None,
        http3: bool | ServerTLSSource = True,
        websocket_settings: Settings | None = None,
        webtransport_settings: WebTransportSettings | None = None,
        handshake_timeout: float = 10,
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
        shutdown: trio.Event | None = None,
        shutdown_timeout: float = 10,
        handler_errors: Literal["log", "raise"] = "log",
        task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve HTTP/1.1 with WebSockets over TCP and, with TLS, HTTP/3 with WebTransport over UDP, on one port number.

        What goes over TCP announces HTTP/3 (Alt-Svc, RFC 7838).

        Args:
            host: the name or address to listen on; None for all.
            port: the port for both; 0 takes one that is free for both, which the `Serving` given to ``task_status`` tells.
            tls: the certificate for both, and what to ask of clients. A function is asked for each connection, so that a renewed
                certificate is taken up, and sessions go on: `ReloadingTLS` does that for files. None serves plain HTTP, for
                development, or behind something that ends TLS.
            http3: whether to serve HTTP/3; or with which certificate, where TCP is served without one.
            websocket_settings: of WebSockets.
            webtransport_settings: of HTTP/3 connections and their sessions.
            handshake_timeout: seconds that a client may take for TLS and its request.
            signals: which signals end it, as ``shutdown`` does; a second one then acts as it would without this. None are listened for
                outside of the main thread.
            shutdown: once set, nothing is accepted any more, clients are told (GOAWAY, drain, code 1001), and the call returns when the
                handlers have.
            shutdown_timeout: seconds after which handlers are cancelled, then.
            handler_errors: "log" logs what a handler raises; "raise" lets it go on to the caller.
            task_status: gets the `Serving` once it listens.

        Raises:
            ValueError: a setting is out of its range.
            TypeError: ``tls`` or ``http3`` is something else.
            OSError: the address cannot be listened on, or a file cannot be read.
            RuntimeError: the application, or one that it has mounted, has a lifespan and is being served already.

        Cancelled, it shuts down in the same way, within ``shutdown_timeout`` and the sessions' ``close_timeout``.
        """
        await trio.lowlevel.checkpoint()
        check_settings(
            port,
            tls=tls,
            http3=http3,
            handshake_timeout=handshake_timeout,
            shutdown_timeout=shutdown_timeout,
            signals=signals,
            handler_errors=handler_errors,
        )
        async with AsyncExitStack() as stack:
            # One that is mounted twice lives once.
            for app in dict.fromkeys(self._applications()):
                await app._enter_lifespan(stack)
            await serve_application(
                partial(self._answer, raise_errors=handler_errors == "raise"),
                host,
                port,
                tls=tls,
                http3=http3,
                websocket_settings=websocket_settings or Settings(),
                webtransport_settings=webtransport_settings or WebTransportSettings(),
                handshake_timeout=handshake_timeout,
                signals=signals,
                shutdown=shutdown,
                shutdown_timeout=shutdown_timeout,
                handler_errors=handler_errors,
                task_status=task_status,
            )

    async def _enter_lifespan(self, stack: AsyncExitStack) -> None:
        if self._lifespan is None:
            return
        if self._is_alive:
            raise RuntimeError(
                "this application is being served already, and its lifespan can only be entered once at a time"
            )
        self._is_alive = True
        stack.callback(setattr, self, "_is_alive", False)
        await stack.enter_async_context(self._lifespan(self))

    def statistics(self) -> AppStatistics:
        """How many requests and sessions there were, and are; of the application that is served, those it has mounted included."""
        return self._figures.statistics()

    # ---- answering

    def _candidates(self, raw_path: str) -> Iterator[Candidate]:
        """What there is at a path, best first."""
        for leaf, params in self._routes.match(raw_path):
            yield Candidate(leaf, params, "", ())
        for mount in self._mounts:
            rest = mount.rest(raw_path)
            if rest is not None:
                for inner in mount.app._candidates(rest):
                    yield Candidate(
                        inner.leaf,
                        inner.params,
                        mount.prefix + inner.prefix,
                        (*mount.app._middleware, *inner.middleware),
                    )

    def _find(self, request: Request) -> tuple[Candidate, Kind, Endpoint] | HTTPError:
        """The handler for a request, or why there is none."""
        wanted = kind_of(request)
        found: list[Leaf] = []
        for candidate in self._candidates(request.raw_path):
            leaf = candidate.leaf
            found.append(leaf)
            endpoint = leaf.sessions.get(wanted)
            if endpoint is not None:
                return candidate, wanted, endpoint
            # A request for another protocol may be answered in this one (RFC 9110 section 7.8).
            if wanted == "http" or (wanted == "websocket" and request.method != "CONNECT"):
                endpoint = leaf.methods.get(request.method)
                if endpoint is None and request.method == "HEAD":
                    endpoint = leaf.methods.get("GET")
                if endpoint is not None:
                    return candidate, "http", endpoint
        return no_route(request, found)

    async def _answer(
        self, exchange: Exchange, headers: Headers, *, raise_errors: bool = False
    ) -> None:
        """Answer a request.

        Args:
            exchange: the request.
            headers: headers for the answer.
            raise_errors: whether a failure that was answered is raised, rather than logged.
        """
        request = exchange.request
        context = Context(request, kind_of(request), self, None, {})
        context.headers = headers
        gone: BaseException | None = None
        with self._figures.counting(context):
            try:
                await self._handle(exchange, context)
                if not exchange.answered:
                    raise RuntimeError("a middleware has swallowed what there was to be answered")
            except Exception as exc:
                cause = sole(exc)
                if isinstance(cause, ClientGone):
                    gone = cause.__cause__
                elif exchange.answered:
                    # That a session has ended is nobody's failure, also where failures go on to the caller.
                    if is_failure(exc):
                        raise
                else:
                    if not raise_errors:
                        self._figures.failed()
                        logger.exception("answering %s failed", safe_text(request.raw_path))
                    error = Reject(500, Headers(), b"internal server error\n")
                    await respond(exchange, context, error)
                    if raise_errors:
                        raise
        if gone is not None and not exchange.answered:
            raise gone

    async def _handle(self, exchange: Exchange, context: Context) -> None:
        """Find what there is to do for a request, and do it inside of the middlewares."""
        inner: tuple[Middleware, ...] = ()
        match self._find(exchange.request):
            case HTTPError() as refusal:
                finish: Finish = partial(refuse, refusal)
            case candidate, kind, endpoint:
                context.kind, context.app = kind, endpoint.app
                context.route = candidate.prefix + endpoint.pattern
                context.params = candidate.params
                inner = (*candidate.middleware, *endpoint.middleware)
                finish = (
                    partial(run_page, endpoint, context, exchange)
                    if kind == "http"
                    else partial(run_session, endpoint, context, exchange, self._figures)
                )
        await surround((*self._middleware, *inner), context, exchange, finish)
