"""An application's server: TCP and UDP on one port number, one shutdown for both."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from errno import EADDRINUSE
from functools import partial
from typing import Final, Literal, TypeAlias

import trio

from .._headers import Headers
from .._http.exchange import Exchange
from .._quic.server import ServerTLSSource
from .._transport.udp import UdpSocket, open_udp_sockets
from .._websocket.server import serve_http1
from .._websocket.settings import Settings
from .._webtransport.server import serve_http3
from .._webtransport.settings import WebTransportSettings
from ._certificates import context_source

__all__ = ["Answer", "Serving", "serve_application"]

#: Answers a request; the headers are for the answer.
Answer: TypeAlias = Callable[[Exchange, Headers], Awaitable[None]]

# A port that is free for UDP may not be free for TCP.
_TRIES: Final = 16
_ALT_SVC_SECONDS: Final = 86400
# Addresses that stand for all of a machine's, and one to go to instead.
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Serving:
    """An application that listens: what ``await nursery.start(app.serve, ...)`` gives.

    Attributes:
        port: the port, of TCP and UDP.
        addresses: the hosts and ports that it listens on by TCP.
        secure: whether TCP is encrypted.
        http3: whether it listens on UDP too.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        shutdown: trio.Event,
        *,
        secure: bool,
        http3: bool,
    ) -> None:
        self.addresses: Sequence[tuple[str, int]] = addresses
        self.port: int = addresses[0][1]
        self.secure: bool = secure
        self.http3: bool = http3
        self._shutdown = shutdown

    def __repr__(self) -> str:
        return f"<Serving {self.url('http')}{' and HTTP/3' if self.http3 else ''}>"

    def url(self, scheme: Literal["http", "ws", "webtransport"] = "http", path: str = "/") -> str:
        """A URL of the server, from the same machine.

        Args:
            scheme: what to open: ``http`` or ``ws``, which become ``https`` and ``wss`` with TLS, or ``webtransport``, which is
                always ``https``.
            path: the path.
        """
        host, port = self.addresses[0]
        host = _ANY.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        base = "http" if scheme == "webtransport" else scheme
        s = "s" if self.secure or scheme == "webtransport" else ""
        return f"{base}{s}://{shown}:{port}{path}"

    def shut_down(self) -> None:
        """Accept nothing any more, tell the clients, and let `App.serve` return when the handlers are done."""
        self._shutdown.set()


async def open_sockets(
    host: str | None, port: int, *, udp: bool
) -> tuple[list[trio.SocketListener], list[UdpSocket]]:
    """Listen on a port by TCP and, if it is asked for, on the same one by UDP.

    Raises:
        OSError: the address cannot be listened on; the message says which protocol it is.
    """
    if not udp:
        return await _open_tcp(host, port), []
    for tries_left in reversed(range(_TRIES)):
        try:
            sockets = await open_udp_sockets(port, host)
        except socket.gaierror:
            raise
        except OSError as exc:
            raise type(exc)(exc.errno, f"{exc.strerror or exc} (UDP port {port})") from exc
        try:
            return await _open_tcp(host, sockets[0].local_address[1]), sockets
        except BaseException as exc:  # noqa: ASYNC103  # tried again, or raised
            for opened in sockets:
                opened.close()
            in_use = isinstance(exc, OSError) and exc.errno == EADDRINUSE
            if port or not in_use or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


async def _open_tcp(host: str | None, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except socket.gaierror:
        raise
    except OSError as exc:
        raise type(exc)(exc.errno, f"{exc.strerror or exc} (TCP port {port})") from exc


async def serve_application(
    answer: Answer,
    host: str | None,
    port: int,
    *,
    tls: ServerTLSSource | None,
    http3: bool | ServerTLSSource,
    websocket_settings: Settings,
    webtransport_settings: WebTransportSettings,
    handshake_timeout: float,
    signals: Sequence[int],
    shutdown: trio.Event | None,
    shutdown_timeout: float,
    handler_errors: Literal["log", "raise"],
    task_status: trio.TaskStatus[Serving],
) -> None:
    """`App.serve`, without the lifespan."""
    quic = http3 if not isinstance(http3, bool) else tls if http3 else None
    ssl_context = None if tls is None else context_source(tls)
    listeners, sockets = await open_sockets(host, port, udp=quic is not None)
    addresses = [listener.socket.getsockname()[:2] for listener in listeners]
    stop = trio.Event()
    serving = Serving(addresses, stop, secure=tls is not None, http3=quic is not None)
    announced = Headers()
    if tls is not None and quic is not None:
        # Only a server that is secure may say so (RFC 7838 section 2.1).
        announced = Headers([("Alt-Svc", f'h3=":{serving.port}"; ma={_ALT_SVC_SECONDS}')])
    over_tcp = partial(
        serve_http1,
        lambda exchange: answer(exchange, announced),
        listeners,
        ssl_context=ssl_context,
        handshake_timeout=handshake_timeout,
        settings=websocket_settings,
        shutdown=stop,
        shutdown_timeout=shutdown_timeout,
        handler_errors=handler_errors,
    )
    over_udp = None
    if quic is not None:
        over_udp = partial(
            serve_http3,
            lambda exchange: answer(exchange, Headers()),
            sockets,
            tls=quic,
            handshake_timeout=handshake_timeout,
            settings=webtransport_settings,
            websocket_settings=websocket_settings,
            shutdown=stop,
            shutdown_timeout=shutdown_timeout,
            handler_errors=handler_errors,
        )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_shielded, [over_tcp] if over_udp is None else [over_tcp, over_udp])
            try:
                task_status.started(serving)
                await _wait_for_end(stop, shutdown, signals)
            finally:
                stop.set()
    finally:
        for opened in sockets:
            opened.close()
        with trio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()


async def _shielded(
    servers: Sequence[Callable[..., Awaitable[object]]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run servers: a cancellation from outside is told to them as a shutdown, which is bounded."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            for server in servers:
                await nursery.start(server)
            task_status.started()


async def _wait_for_end(
    stop: trio.Event, shutdown: trio.Event | None, signals: Sequence[int]
) -> None:
    """Wait for the first thing that ends a server."""
    async with trio.open_nursery() as nursery:

        async def wait(until: Callable[[], Awaitable[object]]) -> None:
            await until()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, stop.wait)
        if shutdown is not None:
            nursery.start_soon(wait, shutdown.wait)
        # Signals come to the main thread only.
        if signals and threading.current_thread() is threading.main_thread():
            with trio.open_signal_receiver(*signals) as arriving:
                await wait(arriving.__anext__)
