"""An application's server: TCP and UDP on one port number, one shutdown for both."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EADDRINUSE
from functools import partial
from typing import Final, Literal, TypeAlias

import trio

from .._headers import Headers
from .._http.exchange import Exchange
from .._quic.server import ServerTLSSource
from .._quic.tls import ServerTLS
from .._transport.udp import UdpSocket, open_udp_sockets
from .._websocket.server import serve_http1
from .._websocket.settings import Settings
from .._webtransport.server import serve_http3
from .._webtransport.settings import WebTransportSettings
from ._certificates import context_source, lasting

__all__ = ["Answer", "Serving", "check_settings", "serve_application"]

#: Answers a request; the headers are for the answer.
Answer: TypeAlias = Callable[[Exchange, Headers], Awaitable[None]]
_Server: TypeAlias = Callable[..., Awaitable[object]]

# A port that is free for UDP may not be free for TCP.
_TRIES: Final = 16
_ALT_SVC_SECONDS: Final = 86400
_MAX_PORT: Final = 65535
_UNSEEN: Final = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}
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
            path: the path, and perhaps a query.

        Raises:
            ValueError: the path does not begin with /, or nothing here speaks that.
        """
        if scheme not in ("http", "ws", "webtransport"):
            raise ValueError(f'the scheme is "http", "ws" or "webtransport", not {scheme!r}')
        if scheme == "webtransport" and not self.http3:
            raise ValueError("there is no WebTransport here, since HTTP/3 is not served")
        if not path.startswith("/"):
            raise ValueError(f"the path {path!r} must begin with /")
        host, port = self.addresses[0]
        host = _ANY.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        base = "http" if scheme == "webtransport" else scheme
        s = "s" if self.secure or scheme == "webtransport" else ""
        return f"{base}{s}://{shown}:{port}{path}"

    def shut_down(self) -> None:
        """Accept nothing any more, tell the clients, and let `App.serve` return when the handlers are done."""
        self._shutdown.set()


def check_settings(
    port: int,
    *,
    tls: object,
    http3: object,
    handshake_timeout: float,
    shutdown_timeout: float,
    signals: Sequence[int],
    handler_errors: str,
) -> None:
    """Check what `App.serve` was given, before anything is begun.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: a certificate is none.
    """
    if not 0 <= port <= _MAX_PORT:
        raise ValueError(f"a port is from 0 to {_MAX_PORT}, not {port}")
    if not handshake_timeout > 0:
        raise ValueError(f"handshake_timeout must be greater than 0, and is {handshake_timeout}")
    if not shutdown_timeout >= 0:
        raise ValueError(f"shutdown_timeout must be at least 0, and is {shutdown_timeout}")
    for number in signals:
        if number not in signal.valid_signals() or number in _UNSEEN:
            raise ValueError(f"{number} is not a signal that can be listened for")
    if handler_errors not in ("log", "raise"):
        raise ValueError(f'handler_errors is "log" or "raise", not {handler_errors!r}')
    for name, source in (("tls", tls), ("http3", http3)):
        if not (source is None or isinstance(source, bool | ServerTLS) or callable(source)):
            raise TypeError(
                f"{name} is a ServerTLS, or a function that returns one, not {type(source).__name__}"
            )


async def open_sockets(
    host: str | None, port: int, *, udp: bool
) -> tuple[list[trio.SocketListener], list[UdpSocket]]:
    """Listen on a port by TCP and, if it is asked for, on the same one by UDP.

    Raises:
        OSError: the address cannot be listened on; the message says which protocol it is.
    """
    for tries_left in reversed(range(_TRIES)):
        sockets: list[UdpSocket] = []
        try:
            if udp:
                with _saying(f"UDP port {port}"):
                    sockets = await open_udp_sockets(port, host)
            number = sockets[0].local_address[1] if sockets else port
            with _saying(f"TCP port {number}"):
                return await _open_tcp(host, number), sockets
        except BaseException as exc:  # noqa: ASYNC103  # tried again, or raised
            for opened in sockets:
                opened.close()
            in_use = isinstance(exc, OSError) and exc.errno == EADDRINUSE
            if port or not in_use or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


@contextmanager
def _saying(where: str) -> Iterator[None]:
    """Say in an error what it is about."""
    try:
        yield
    except socket.gaierror:
        raise
    except OSError as exc:
        raise type(exc)(exc.errno, f"{exc.strerror or exc} ({where})") from exc


async def _open_tcp(host: str | None, port: int) -> list[trio.SocketListener]:
    listeners = await trio.open_tcp_listeners(port, host=host)
    if port or len(listeners) == 1:
        return listeners
    # Each address has got a port of its own.
    number = listeners[0].socket.getsockname()[1]
    for listener in listeners:
        listener.socket.close()
    return await trio.open_tcp_listeners(number, host=host)


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
    if tls is not None:
        tls = lasting(tls)
    quic = lasting(http3) if not isinstance(http3, bool) else tls if http3 else None
    ssl_context = None if tls is None else context_source(tls)
    listeners, sockets = await open_sockets(host, port, udp=quic is not None)
    addresses = [listener.socket.getsockname()[:2] for listener in listeners]
    stop = trio.Event()
    serving = Serving(addresses, stop, secure=tls is not None, http3=quic is not None)
    announced = Headers()
    if tls is not None and quic is not None:
        # Only a server that is secure may say so (RFC 7838 section 2.1).
        announced = Headers([("Alt-Svc", f'h3=":{serving.port}"; ma={_ALT_SVC_SECONDS}')])
    servers: list[_Server] = [
        partial(
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
    ]
    if quic is not None:
        servers.append(
            partial(
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
        )
    running = _Running(servers)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            try:
                await running.listening.wait()
                by_signal = False
                if running.failure is None:
                    task_status.started(serving)
                    by_signal = await _wait_for_end(stop, shutdown, signals)
            finally:
                stop.set()
            if by_signal:
                await running.wait_finished()
        if running.failure is not None:
            raise running.failure
    finally:
        for opened in sockets:
            opened.close()
        for listener in listeners:
            listener.socket.close()


class _Running:
    """Servers that go on until they are told to stop, also when they are cancelled from outside.

    Attributes:
        listening: all of them have started, or cannot.
        failure: why they cannot.
    """

    def __init__(self, servers: Sequence[_Server]) -> None:
        self.listening = trio.Event()
        self.failure: Exception | None = None
        self._servers = servers
        self._finished = trio.Event()
        self._scope = trio.CancelScope(shield=True)

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                try:
                    # Not by start() from outside of the shield: cancelled there, they would never be told to stop.
                    for server in self._servers:
                        await nursery.start(server)
                except Exception as exc:
                    self.failure = exc
                    nursery.cancel_scope.cancel()
                self.listening.set()
        self._finished.set()

    async def wait_finished(self) -> None:
        """Wait until they have come to their end. Cancelled or interrupted, it is cut short: this was asked for twice."""
        try:
            await self._finished.wait()
        except BaseException:
            self._scope.cancel()
            raise


async def _wait_for_end(
    stop: trio.Event, shutdown: trio.Event | None, signals: Sequence[int]
) -> bool:
    """Wait for the first thing that ends a server; whether it is a signal."""
    by_signal = False
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, stop)
        if shutdown is not None:
            nursery.start_soon(wait, shutdown)
        # Signals come to the main thread only.
        if signals and threading.current_thread() is threading.main_thread():
            with trio.open_signal_receiver(*signals) as arriving:
                await anext(arriving)
                by_signal = True
                nursery.cancel_scope.cancel()
    return by_signal
