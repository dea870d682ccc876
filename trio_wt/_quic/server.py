"""The server's side: clients' first packets, handshakes, handlers, and the end of it all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Unpack

import trio

from .._protocol.packet_router import Accept, PacketRouter, ResetKey
from .._protocol.quic import VERSIONS, Engine, EngineConfig
from .._protocol.route import Route
from .._transport.handlers import contain_errors
from .._transport.services import Services
from .._transport.udp import DatagramSocket, open_udp_sockets
from .connection import Connection
from .driver import Driver
from .endpoint import Endpoint
from .sessions import TicketIssuer
from .settings import QuicSettings, QuicSettingsKwargs, check_alpn, check_port
from .tls import ServerTLS
from .upper import RawStreams, Upper
from .verification import no_certificate

__all__ = ["ServerTLSSource", "serve_connections", "serve_quic"]

#: What a server shows now; as a function, it is asked for each connection, so that certificates can be renewed.
ServerTLSSource: TypeAlias = ServerTLS | Callable[[], ServerTLS]
_Handler: TypeAlias = Callable[[Connection], Awaitable[object]]
#: Runs for each connection whose handshake is complete.
Serve: TypeAlias = Callable[[Driver, Services], Awaitable[object]]

_SHUT_DOWN = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class _Identity:
    """A `ServerTLS` as the engine takes it, made once."""

    tls: ServerTLS
    config: dict[str, Any]

    @classmethod
    def of(cls, tls: ServerTLS) -> _Identity:
        verifier = tls.verifier()

        def verify(certificate: Any, chain: Any) -> None:
            if certificate is not None:
                assert verifier is not None
                verifier.verify(certificate, chain, None)
            elif tls.client_certificates == "require":
                raise no_certificate("client")

        chain = tls.certificate.chain
        return cls(
            tls,
            {
                "certificate": chain[0],
                "chain": chain[1:],
                "private_key": tls.certificate.key,
                "request_certificate": verifier is not None,
                "verify": None if verifier is None else verify,
                "keylog": tls.open_keylog(),
            },
        )


class _Server:
    """The connections of one `serve_quic`."""

    def __init__(
        self,
        serve: Serve,
        tls: ServerTLSSource,
        alpn: Sequence[str],
        router: PacketRouter[Driver],
        settings: QuicSettings,
        upper: Callable[[Driver], Upper],
        *,
        early_data: bool,
        handshake_timeout: float,
        raise_errors: bool,
    ) -> None:
        self.endpoint = Endpoint(router, self._accept)
        self.nursery: trio.Nursery | None = None
        self._serve_driver = serve
        self._upper = upper
        self._tls = tls
        self._identity = _Identity.of(tls() if callable(tls) else tls)
        self._alpn = alpn
        self._settings = settings
        self._early_data = early_data
        self._handshake_timeout = handshake_timeout
        self._raise_errors = raise_errors
        self._tickets = TicketIssuer()
        self._idle = trio.Event()
        self._readers: list[trio.CancelScope] = []
        # Connections whose tasks are not done with them, though they may have ended.
        self._serving: set[Driver] = set()
        self._closing = False

    def _current_identity(self) -> _Identity:
        if callable(self._tls):
            tls = self._tls()
            if tls is not self._identity.tls:
                self._identity = _Identity.of(tls)
        return self._identity

    def _accept(self, accept: Accept, route: Route) -> Driver | None:
        """A client's first packet: a connection for it, or None."""
        if self._closing or self.nursery is None:
            return None
        identity = self._current_identity()
        config = EngineConfig(
            is_client=False,
            alpn=self._alpn,
            early_data=self._early_data,
            reset_token=self.endpoint.router.reset_key.token,
            **identity.config,
            **self._settings.engine_kwargs(),
        )
        resumable = not config.request_certificate
        engine = Engine(
            config,
            original_destination_cid=accept.original_destination_cid,
            retry_source_cid=accept.retry_source_cid,
            # A ticket serves the version and the protocol it came by (RFC 9369 section 5, RFC 8446 section 4.2.10).
            fetch_ticket=(
                lambda ticket: self._tickets.fetch(ticket, (engine.wire_version, engine.alpn))
            )
            if resumable
            else None,
            store_ticket=(
                lambda ticket: self._tickets.store(ticket, (engine.wire_version, engine.alpn))
            )
            if resumable
            else None,
        )
        driver = Driver(engine, self.endpoint, self._settings, self._upper, client=False)
        self.nursery.start_soon(self._serve, driver, name="trio_wt QUIC connection")
        self.endpoint.router.opened(driver, route)
        self.endpoint.add(driver, [accept.destination_cid, *engine.connection_ids])
        self._serving.add(driver)
        return driver

    async def _serve(self, driver: Driver) -> None:
        """One connection, from its first packet to its last."""
        message = "a QUIC handler failed; its connection was closed"
        services = Services(driver.cancel_scope, driver.goodbye, _never)
        try:
            with contain_errors(message, propagate=self._raise_errors):
                async with services:
                    services.start_soon(driver.run_writer, name="trio_wt QUIC writer")
                    if await self._shake_hands(driver):
                        await self._serve_driver(driver, services)
        finally:
            self._serving.discard(driver)
            if self._closing and not self._serving:
                self._idle.set()

    async def _shake_hands(self, driver: Driver) -> bool:
        """Wait until the handler may begin; whether it may."""
        driver.handshake_deadline = trio.current_time() + self._handshake_timeout
        driver.wake()
        while driver.handshake is None and driver.end is None:
            if self._early_data and driver.has_arrivals:
                break
            await driver.wait_changed()
        return driver.end is None

    async def read(self, local: int) -> None:
        """Read a socket, for as long as connections have something to say or to hear, also when the call is cancelled."""
        with trio.CancelScope(shield=True) as scope:
            self._readers.append(scope)
            await self.endpoint.read(local)

    async def shut_down(self, patience: float) -> None:
        """Accept no more, and give handlers some time to end."""
        self._closing = True
        for driver in self._serving:
            driver.upper.shutting_down()
        with trio.move_on_after(patience):
            await self.wait_idle()
        for driver in list(self._serving):
            # First cancelled, so that no handler is woken by the end of its connection; nothing runs in between.
            driver.cancel_scope.cancel()
            driver.upper.give_up(_SHUT_DOWN)
        await self.wait_idle()

    async def wait_idle(self) -> None:
        """Accept no more, and wait until all connections are done with. A checkpoint."""
        self._closing = True
        await trio.lowlevel.checkpoint()
        if self._serving:
            await self._idle.wait()

    def stop_reading(self) -> None:
        """Nothing is to be heard any more."""
        for scope in self._readers:
            scope.cancel()


def _never(exc: Exception) -> None:
    """For services that store their failures themselves."""
    raise exc


async def serve_quic(
    handler: _Handler,
    port: int | None = None,
    *,
    alpn: Sequence[str],
    tls: ServerTLSSource,
    host: str | bytes | None = None,
    sockets: Sequence[DatagramSocket] | None = None,
    retry: Literal["under-load", "always", "never"] = "under-load",
    max_half_open: int = 64,
    early_data: bool = False,
    reset_key: bytes | None = None,
    handshake_timeout: float = 10,
    shutdown: trio.Event | None = None,
    shutdown_timeout: float = 10,
    handler_errors: Literal["log", "raise"] = "log",
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[DatagramSocket]] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[QuicSettingsKwargs],
) -> None:
    """Listen, and run ``handler(connection)`` for every QUIC connection, until cancelled or shut down.

    Follows `trio.serve_tcp`. A handler that returns closes its connection gracefully with code 0, one that raises at once with
    the ``failed_code``.

    Args:
        handler: runs in a task of its own per connection.
        port: the UDP port; 0 takes a free one, which the sockets given to ``task_status`` tell.
        alpn: the application protocols to support, best first (RFC 7301); `Connection.alpn` tells the one agreed on.
        tls: the certificate to show, and what to ask of clients. A function is called for each connection, so that a renewed
            certificate is taken up; it must return the same object while nothing has changed.
        host: the address to listen on; None for all, IPv6 and IPv4.
        sockets: listen on these instead; they are closed in the end.
        retry: when clients must prove their address before they cost anything (RFC 9000 section 8.1.2): "under-load" once
            ``max_half_open`` handshakes are under way, "always", or "never".
        max_half_open: see there.
        early_data: let clients that resume a session send data before the handshake is complete (0-RTT), and start their
            handlers then. A session ticket is good for one connection, with this call only, so a replay is never taken.
        reset_key: a secret that lets a server tell its clients after a restart that their connections are gone (RFC 9000 section
            10.3); None for a new one each time.
        handshake_timeout: seconds that a client may take for the handshake.
        shutdown: once set, no connection is accepted any more, and the call returns when the handlers have.
        shutdown_timeout: seconds after which connections are closed, and handlers cancelled, then.
        handler_errors: "log" logs what a handler raises; "raise" lets it go on to the nursery.
        handler_nursery: runs the handlers, instead of a nursery of this call's. Connections that are still there when this
            call ends are lost.
        task_status: gets the list of sockets.
        settings: as in `QuicSettings`.

    Raises:
        ValueError: a setting is out of its range, or not exactly one of port and sockets was given.
        OSError: the address cannot be listened on, or a file cannot be read.

    Cancelled, it stops accepting, and all handlers are cancelled; each connection is closed with the ``cancelled_code``.
    """
    quic_settings = QuicSettings(**settings)

    async def serve(driver: Driver, services: Services) -> None:
        await handler(Connection(driver, services))

    await serve_connections(
        serve,
        port,
        alpn=alpn,
        tls=tls,
        host=host,
        sockets=sockets,
        retry=retry,
        max_half_open=max_half_open,
        early_data=early_data,
        reset_key=reset_key,
        handshake_timeout=handshake_timeout,
        shutdown=shutdown,
        shutdown_timeout=shutdown_timeout,
        handler_errors=handler_errors,
        handler_nursery=handler_nursery,
        task_status=task_status,
        settings=quic_settings,
        upper=RawStreams,
    )


async def serve_connections(
    serve: Serve,
    port: int | None,
    *,
    alpn: Sequence[str],
    tls: ServerTLSSource,
    host: str | bytes | None,
    sockets: Sequence[DatagramSocket] | None,
    retry: Literal["under-load", "always", "never"],
    max_half_open: int,
    early_data: bool,
    reset_key: bytes | None,
    handshake_timeout: float,
    shutdown: trio.Event | None,
    shutdown_timeout: float,
    handler_errors: Literal["log", "raise"],
    handler_nursery: trio.Nursery | None,
    task_status: trio.TaskStatus[list[DatagramSocket]],
    settings: QuicSettings,
    upper: Callable[[Driver], Upper],
) -> None:
    """`serve_quic` for anything that may stand on a connection, which ``upper`` makes."""
    check_alpn(alpn)
    if (port is None) == (sockets is None):
        raise ValueError("give exactly one of port and sockets")
    if handler_errors not in ("log", "raise"):
        raise ValueError(f'handler_errors is "log" or "raise", not {handler_errors!r}')
    if retry not in ("under-load", "always", "never"):
        raise ValueError(f'retry is "under-load", "always" or "never", not {retry!r}')
    if not handshake_timeout > 0:
        raise ValueError(f"handshake_timeout must be greater than 0, and is {handshake_timeout}")
    if max_half_open < 1:
        raise ValueError(f"max_half_open must be at least 1, and is {max_half_open}")
    router: PacketRouter[Driver] = PacketRouter(
        server=True,
        versions=[VERSIONS[number] for number in settings.versions],
        reset_key=ResetKey(reset_key),
        retry=retry,
        max_half_open=max_half_open,
    )
    server = _Server(
        serve,
        tls,
        alpn,
        router,
        settings,
        upper,
        early_data=early_data,
        handshake_timeout=handshake_timeout,
        raise_errors=handler_errors == "raise",
    )
    if sockets is None:
        assert port is not None
        check_port(port)
        sockets = await open_udp_sockets(port, host)
    try:
        async with trio.open_nursery() as nursery:
            server.nursery = handler_nursery or nursery
            for socket in sockets:
                nursery.start_soon(server.read, server.endpoint.add_socket(socket))
            task_status.started(list(sockets))
            try:
                if shutdown is None:
                    await trio.sleep_forever()
                else:
                    await shutdown.wait()
                    await server.shut_down(shutdown_timeout)
            finally:
                if handler_nursery is None:
                    with trio.CancelScope(shield=True):
                        await server.wait_idle()
                server.stop_reading()
    finally:
        server.nursery = None
        server.endpoint.close()
