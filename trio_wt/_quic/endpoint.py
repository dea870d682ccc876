"""Sockets that many connections share: what arrives is sorted by connection id, and never waits for an application."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from .._protocol.packet_router import Accept, PacketRouter, Reply
from .._protocol.quic import Datagram
from .._protocol.route import Route, Sockaddr
from .._transport.udp import DatagramSocket
from .driver import Driver

__all__ = ["Endpoint"]

logger = logging.getLogger("trio_wt.server")

# A reset must not be told from an ordinary packet, and ordinary packets are not shorter (RFC 9000 section 10.3).
_MIN_RESET = 21
# So many datagrams at once mean that more may be there already.
_FULL_BATCH = 32


class Endpoint:
    """A set of sockets and the connections on them.

    Each socket has a reader task, `read`, which its owner starts. Whoever has something to send does it by himself: a UDP
    socket takes whole datagrams.

    Args:
        router: sorts what arrives.
        accept: makes a connection for a client's first packet; None on clients. It may return None to refuse.
    """

    def __init__(
        self,
        router: PacketRouter[Driver],
        accept: Callable[[Accept, Route], Driver | None] | None = None,
    ) -> None:
        self.router: PacketRouter[Driver] = router
        self.sockets: dict[int, DatagramSocket] = {}
        self.drivers: set[Driver] = set()
        self._accept = accept
        self._next_local = 0

    def add_socket(self, socket: DatagramSocket) -> int:
        """Take a socket over; the number by which routes name it."""
        local = self._next_local
        self._next_local += 1
        self.sockets[local] = socket
        return local

    def close_socket(self, local: int) -> None:
        """Close one; its reader ends."""
        socket = self.sockets.pop(local, None)
        if socket is not None:
            socket.close()

    def close(self) -> None:
        """Close all sockets; connections that are still there are lost."""
        for local in list(self.sockets):
            self.close_socket(local)
        for driver in list(self.drivers):
            driver.failed(trio.ClosedResourceError("the endpoint was closed"))

    # ---- receiving

    async def read(self, local: int) -> None:
        """Read one socket until it is closed.

        Raises:
            Exception: on servers, what the socket raised, after all connections have ended by it.
        """
        socket = self.sockets.get(local)
        try:
            while socket is not None:
                batch = socket.receive()
                if not batch:
                    await socket.wait_readable()
                    continue
                self._sort(batch, local)
                full = len(batch) >= _FULL_BATCH
                batch = []  # not to be kept while this waits
                if not full:
                    await socket.wait_readable()
                else:
                    await trio.lowlevel.checkpoint()
        except trio.ClosedResourceError:
            return
        except Exception as exc:  # a socket of the application's
            for driver in list(self.drivers):
                driver.failed(exc)
            if self._accept is not None:
                raise

    def _sort(self, batch: Sequence[tuple[bytes, Sockaddr]], local: int) -> None:
        now = trio.current_time()
        fed: dict[Driver, None] = {}
        route = Route((), local)
        for data, remote in batch:
            if remote != route.remote:
                route = Route(remote, local)
            target = self.router.route(data, route, now)
            if isinstance(target, Driver):
                target.feed(data, route, now)
                fed[target] = None
            elif isinstance(target, Reply):
                self.send([(target.data, route)])
            elif isinstance(target, Accept):
                driver = self._make_connection(target, route)
                if driver is not None:
                    driver.feed(data, route, now)
                    fed[driver] = None
            elif self._accept is None and len(data) >= _MIN_RESET:
                self._check_reset(data, fed)
        for driver in fed:
            try:
                driver.process()
            except Exception as exc:
                logger.exception("a QUIC connection failed; please report this as a bug")
                driver.failed(exc)

    def _make_connection(self, accept: Accept, route: Route) -> Driver | None:
        try:
            return None if self._accept is None else self._accept(accept, route)
        except Exception:
            logger.exception("a QUIC connection could not be accepted")
            return None

    def _check_reset(self, data: bytes, fed: dict[Driver, None]) -> None:
        for driver in self.drivers:
            if driver.engine.is_stateless_reset(data):
                driver.engine.lose("the peer has forgotten it (stateless reset)")
                fed[driver] = None

    # ---- sending

    def send(self, datagrams: Sequence[Datagram]) -> int:
        """Hand datagrams to their sockets: how many of them went, from the front; fewer than all if one would have to wait."""
        sent = 0
        while sent < len(datagrams):
            local = datagrams[sent][1].local
            run = []
            for data, route in datagrams[sent:] if sent else datagrams:
                if route.local != local:
                    break
                run.append((data, route.remote))
            socket = self.sockets.get(local)
            done = len(run) if socket is None else socket.send(run)
            sent += done
            if done < len(run):
                break
        return sent

    async def wait_writable(self, route: Route) -> None:
        """Wait until a route's socket takes more. A checkpoint."""
        socket = self.sockets.get(route.local)
        if socket is None:
            await trio.lowlevel.checkpoint()
        else:
            await socket.wait_writable()

    # ---- connections

    def add(self, driver: Driver, ids: Sequence[bytes]) -> None:
        """A connection that is reached by these ids."""
        self.drivers.add(driver)
        for connection_id in ids:
            self.router.add(connection_id, driver)

    def add_id(self, connection_id: bytes, driver: Driver) -> None:
        """One more id of a connection."""
        self.router.add(connection_id, driver)

    def remove_id(self, connection_id: bytes) -> None:
        """The peer will not use an id any more."""
        self.router.remove(connection_id)

    def established(self, driver: Driver) -> None:
        """A connection's handshake is complete."""
        self.router.established(driver)

    def retire(self, driver: Driver) -> None:
        """A connection has ended; late packets are answered for a while."""
        if driver in self.drivers:
            self.drivers.discard(driver)
            engine = driver.engine
            until = trio.current_time() + engine.close_period
            self.router.retire(driver, engine.close_datagrams, until)
