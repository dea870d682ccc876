"""The client's side: finding the server, the race of its addresses, and the handshake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, TextIO, Unpack

import idna
import trio

from .._errors import ConnectionClosed, HandshakeFailed
from .._protocol.packet_router import PacketRouter
from .._protocol.quic import VERSIONS, Engine, EngineConfig, SessionTicket
from .._protocol.route import Route, Sockaddr
from .._transport.services import Services
from .._transport.udp import DatagramSocket, UdpSocket, check_route, open_udp_socket
from .connection import Connection
from .driver import Driver
from .endpoint import Endpoint
from .sessions import SessionKey, SessionStore
from .settings import QuicSettings, QuicSettingsKwargs, check_alpn, check_port
from .tls import ClientTLS
from .upper import RawStreams, Upper
from .verification import CertificateRejected, Verifier, no_certificate

__all__ = ["QuicEndpoint", "connect", "open_quic", "open_quic_endpoint"]

# RFC 8305 section 5: the pause before the next address is tried beside those before it.
_ATTEMPT_DELAY: Final = 0.25


class QuicEndpoint:
    """A UDP socket that several client connections share, made by `open_quic_endpoint`."""

    __slots__ = ("_endpoint", "_socket")

    def __init__(self, endpoint: Endpoint, socket: DatagramSocket) -> None:
        self._endpoint = endpoint
        self._socket = socket

    @property
    def local_address(self) -> Sockaddr:
        """The socket's address."""
        return self._socket.local_address


@asynccontextmanager
async def open_quic_endpoint(
    host: str | None = None, port: int = 0, *, socket: DatagramSocket | None = None
) -> AsyncIterator[QuicEndpoint]:
    """A socket for several connections: ``open_quic(..., endpoint=endpoint)``.

    Connections that still are open when the block is left are lost.

    Args:
        host: the local address to bind; None for all.
        port: the local port; 0 for any.
        socket: use this socket instead; it is closed in the end.

    Raises:
        OSError: the address cannot be bound.
    """
    if socket is None:
        socket = await open_udp_socket(host, port)
    endpoint = Endpoint(_client_router())
    local = endpoint.add_socket(socket)

    async def goodbye(_: BaseException | None) -> None:
        endpoint.close()
        await trio.lowlevel.checkpoint()

    async def read(_: trio.CancelScope) -> None:
        await endpoint.read(local)

    services = Services(trio.CancelScope(), goodbye, _never)
    async with services:
        services.start_soon(read, name="trio_wt QUIC reader")
        yield QuicEndpoint(endpoint, socket)


def _client_router() -> PacketRouter[Driver]:
    return PacketRouter(server=False)


def _never(exc: Exception) -> None:
    """For services that store their failures themselves."""
    raise exc


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to connect with, whichever address it is that answers."""

    alpn: Sequence[str]
    tls: ClientTLS
    verifier: Verifier
    keylog: TextIO | None
    server_name: str
    settings: QuicSettings
    store: SessionStore | None
    key: SessionKey
    tickets: list[SessionTicket]
    handshake_timeout: float
    upper: Callable[[Driver], Upper]

    @property
    def is_early(self) -> bool:
        """Whether the next connection may send data before its handshake is complete."""
        return bool(self.tickets and self.tickets[-1].max_early_data_size)

    def connect(self, endpoint: Endpoint, route: Route, scope: trio.CancelScope) -> Driver:
        """A connection whose first packet waits to be sent."""
        ticket = self.tickets.pop() if self.tickets else None
        certificate = self.tls.certificate
        config = EngineConfig(
            is_client=True,
            alpn=self.alpn,
            verify=self._verify,
            server_name=self.server_name,
            certificate=None if certificate is None else certificate.chain[0],
            chain=() if certificate is None else certificate.chain[1:],
            private_key=None if certificate is None else certificate.key,
            session_ticket=ticket,
            keylog=self.keylog,
            **self.settings.engine_kwargs(),
        )
        engine = Engine(config, store_ticket=lambda ticket: self._store(ticket, engine))
        driver = Driver(engine, endpoint, self.settings, self.upper, client=True)
        driver.cancel_scope = scope
        driver.handshake_deadline = trio.current_time() + self.handshake_timeout
        engine.start(route, trio.current_time())
        endpoint.add(driver, engine.connection_ids)
        driver.wake()
        return driver

    def _verify(self, certificate: object, chain: object) -> None:
        if certificate is None:
            raise no_certificate("server")
        self.verifier.verify(certificate, chain, self.server_name)  # type: ignore[arg-type]

    def _store(self, ticket: SessionTicket, engine: Engine) -> None:
        if self.store is not None:
            version = next(n for n, wire in VERSIONS.items() if wire == engine.wire_version)
            key = self.key._replace(version=version)
            self.store.put(key, ticket, valid_until=engine.valid_until)


@asynccontextmanager
async def open_quic(
    host: str,
    port: int,
    *,
    alpn: Sequence[str],
    tls: ClientTLS | None = None,
    local_address: tuple[str, int] | None = None,
    socket: DatagramSocket | None = None,
    endpoint: QuicEndpoint | None = None,
    session_store: SessionStore | None = None,
    early_data: bool = False,
    handshake_timeout: float = 10,
    **settings: Unpack[QuicSettingsKwargs],
) -> AsyncIterator[Connection]:
    """Connect to a QUIC server, as an async context manager.

    A host with several addresses is tried at each of them, IPv6 and IPv4 in turns, a quarter of a second apart; the first to
    answer wins (RFC 8305). Through a given socket or endpoint only its first address is tried.

    Args:
        host: a name or an IP address.
        port: the UDP port.
        alpn: the application protocols to offer, best first (RFC 7301).
        tls: which servers to believe, and what to show them; by default those whose certificates the system trusts.
        local_address: the address and port to send from; None for any.
        socket: send through this socket, which is closed in the end.
        endpoint: share this socket with other connections.
        session_store: where to keep session tickets, and to take one from to resume an earlier session.
        early_data: with a session to resume, do not wait for the handshake: what is sent before it is complete may be
            received more than once, if an attacker replays it (RFC 9001 section 9.2), so send only what may be done twice.
            `Connection.wait_handshake` waits, and `Connection.early_data_accepted` tells what came of it.
        handshake_timeout: seconds that connecting may take.
        settings: as in `QuicSettings`.

    Yields:
        the connection.

    Raises:
        CertificateRejected: the server's certificate was not accepted.
        HandshakeFailed: the server did not answer in time, or it offers none of the protocols.
        OSError: the host was not found, or the local address cannot be bound.
        ValueError: a setting is out of its range.

    Leaving the block closes the connection, as `Connection` says.
    """
    async with connect(
        host,
        port,
        alpn=alpn,
        tls=tls,
        local_address=local_address,
        socket=socket,
        endpoint=endpoint,
        session_store=session_store,
        early_data=early_data,
        handshake_timeout=handshake_timeout,
        settings=QuicSettings(**settings),
        upper=RawStreams,
    ) as (driver, services):
        yield Connection(driver, services)


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    alpn: Sequence[str],
    tls: ClientTLS | None,
    local_address: tuple[str, int] | None,
    socket: DatagramSocket | None,
    endpoint: QuicEndpoint | None,
    session_store: SessionStore | None,
    early_data: bool,
    handshake_timeout: float,
    settings: QuicSettings,
    upper: Callable[[Driver], Upper],
) -> AsyncIterator[tuple[Driver, Services]]:
    """`open_quic` for anything that may stand on a connection, which ``upper`` makes."""
    check_alpn(alpn)
    check_port(port)
    if sum(way is not None for way in (local_address, socket, endpoint)) > 1:
        raise ValueError("give at most one of local_address, socket and endpoint")
    if not handshake_timeout > 0:
        raise ValueError(f"handshake_timeout must be greater than 0, and is {handshake_timeout}")
    tls = tls or ClientTLS()
    server_name = _ascii(tls.server_name or host)
    key = SessionKey(server_name, port, tuple(alpn), settings.versions[0], tls.trust())
    plan = _Plan(
        alpn,
        tls,
        tls.verifier(),
        tls.open_keylog(),
        server_name,
        settings,
        session_store,
        key,
        _tickets(session_store, key, early_data=early_data),
        handshake_timeout,
        upper,
    )
    race = _Race(plan, host, port)
    services = Services(race.scope, race.goodbye, _never)
    try:
        async with services:
            driver = await race.run(services, local_address, socket, endpoint, handshake_timeout)
            yield driver, services
    finally:
        race.close()


class _Race:
    """Several attempts at one server, until one of them is the connection."""

    def __init__(self, plan: _Plan, host: str, port: int) -> None:
        self.scope = trio.CancelScope()
        self._plan = plan
        self._host = host
        self._port = port
        self._winner: Driver | None = None
        self._attempts: list[Driver] = []
        self._endpoints: list[Endpoint] = []
        self._failures: list[str] = []
        self._unbound: list[OSError | OverflowError] = []

    async def goodbye(self, exc: BaseException | None) -> None:
        winner = self._winner
        if winner is None:
            await trio.lowlevel.checkpoint()
            return
        deadline = winner.last_moment()
        if exc is None and self._plan.store is not None and winner.may_be_early:
            # The ticket for the next time comes after the handshake.
            with suppress(ConnectionClosed, trio.ClosedResourceError), trio.move_on_at(deadline):
                await winner.ping()
        await winner.goodbye(exc, deadline)

    def close(self) -> None:
        """Close the sockets that are ours."""
        for endpoint in self._endpoints:
            endpoint.close()

    async def run(
        self,
        services: Services,
        local_address: tuple[str, int] | None,
        socket: DatagramSocket | None,
        shared: QuicEndpoint | None,
        handshake_timeout: float,
    ) -> Driver:
        """The first attempt that succeeds."""
        target = f"{self._host} port {self._port}"
        with trio.move_on_after(handshake_timeout) as patience:
            if shared is not None:
                await self._run_one(services, shared._endpoint, shared._socket)
            elif socket is not None:
                await self._run_one(services, self._own(services, socket), socket)
            else:
                await self._run_all(services, local_address)
        if self._winner is None:
            if self._unbound and not self._attempts:
                raise self._unbound[0]
            for attempt in self._attempts:
                if isinstance(attempt.engine.rejection, CertificateRejected):
                    raise attempt.engine.rejection
            reasons = "; ".join(dict.fromkeys(self._failures))
            if patience.cancelled_caught:
                reasons = f"no answer within {handshake_timeout:g} s" + (reasons and f"; {reasons}")
            ends = [attempt.end for attempt in self._attempts if attempt.end is not None]
            cause = ends[-1] if ends else None
            raise HandshakeFailed(f"no QUIC connection to {target}: {reasons}") from cause
        for attempt in self._attempts:
            if attempt is not self._winner:
                await attempt.wait_finished()
                attempt.endpoint.close()
        return self._winner

    async def _run_one(
        self, services: Services, endpoint: Endpoint, socket: DatagramSocket
    ) -> None:
        if isinstance(socket, UdpSocket):
            # An IPv6 socket reaches IPv4 hosts by mapped addresses.
            found = await trio.socket.getaddrinfo(
                self._host,
                self._port,
                family=socket.family,
                type=trio.socket.SOCK_DGRAM,
                flags=trio.socket.AI_V4MAPPED | trio.socket.AI_ALL,
            )
            remote: Sockaddr = found[0][4]
        else:
            remote = (self._host, self._port)
        local = next((n for n, known in endpoint.sockets.items() if known is socket), None)
        if local is None:
            raise trio.ClosedResourceError("the endpoint was closed")
        await self._attempt(services, endpoint, Route(remote, local))

    async def _run_all(self, services: Services, local_address: tuple[str, int] | None) -> None:
        found = await trio.socket.getaddrinfo(self._host, self._port, type=trio.socket.SOCK_DGRAM)
        addresses = _in_turns([(entry[0], entry[4]) for entry in found])
        if self._plan.is_early:
            addresses = addresses[:1]  # early data goes to one server only
        async with trio.open_nursery() as nursery:
            for family, remote in addresses:
                failed = trio.Event()
                nursery.start_soon(
                    self._attempt_from, services, family, local_address, remote, failed, nursery
                )
                with trio.move_on_after(_ATTEMPT_DELAY):
                    await failed.wait()

    async def _attempt_from(
        self,
        services: Services,
        family: int,
        local_address: tuple[str, int] | None,
        remote: Sockaddr,
        failed: trio.Event,
        nursery: trio.Nursery,
    ) -> None:
        try:
            host, port = local_address or (None, 0)
            socket = await open_udp_socket(host, port, family=family)
        except (OSError, OverflowError) as exc:
            self._unbound.append(exc)
        else:
            endpoint = self._own(services, socket)
            try:
                check_route(family, remote)
            except OSError as exc:
                self._failures.append(f"{remote[0]}: {exc.strerror or exc}")
            else:
                await self._attempt(services, endpoint, Route(remote, 0))
        failed.set()
        if self._winner is not None:
            nursery.cancel_scope.cancel()

    def _own(self, services: Services, socket: DatagramSocket) -> Endpoint:
        """An endpoint of this connection's own."""
        endpoint = Endpoint(_client_router())
        local = endpoint.add_socket(socket)
        self._endpoints.append(endpoint)

        async def read(_: trio.CancelScope) -> None:
            await endpoint.read(local)

        services.start_soon(read, name="trio_wt QUIC reader")
        return endpoint

    async def _attempt(self, services: Services, endpoint: Endpoint, route: Route) -> None:
        driver = self._plan.connect(endpoint, route, self.scope)
        driver.can_migrate = endpoint in self._endpoints
        self._attempts.append(driver)
        services.start_soon(driver.run_writer, name="trio_wt QUIC writer")
        try:
            if not driver.may_be_early:
                while driver.handshake is None and driver.end is None:
                    await driver.wait_changed()
            if driver.end is None and self._winner is None:
                self._winner = driver
            elif driver.end is not None:
                self._failures.append(f"{route.remote[0]}: {driver.end}")
        finally:
            if self._winner is not driver:
                driver.shut(0, "", transport=True)


def _ascii(name: str) -> str:
    """A host name as TLS and certificates have it (RFC 5890)."""
    if name.isascii():
        return name
    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as exc:
        raise ValueError(f"{name!r} is not a host name: {exc}") from None


def _tickets(
    store: SessionStore | None, key: SessionKey, *, early_data: bool
) -> list[SessionTicket]:
    """The session to resume, if there is one; each can be resumed once."""
    ticket = None if store is None else store.take(key)
    if ticket is None:
        return []
    if not early_data:
        # Otherwise TLS would offer early data, and the server's answer to that would be about nothing.
        ticket = replace(ticket, max_early_data_size=None)
    return [ticket]


def _in_turns(addresses: Sequence[tuple[int, Sockaddr]]) -> list[tuple[int, Sockaddr]]:
    """The families in turns, the first address's family first (RFC 8305 section 4)."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    ordered = []
    for index in range(max(len(first), len(others))):
        ordered += first[index : index + 1] + others[index : index + 1]
    return ordered
