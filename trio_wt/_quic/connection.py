"""A QUIC connection as an application sees it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import trio

from .._errors import ConnectionClosed, HandshakeFailed
from .._protocol.quic import VERSIONS
from .._protocol.route import Sockaddr
from .._transport.services import Services
from .._transport.udp import DatagramSocket
from .datagrams import Datagrams
from .driver import Driver
from .incoming import IncomingStreams
from .migration import migrate
from .opening import OpenStream
from .receive_stream import ReceiveStream
from .send_stream import SendStream
from .statistics import QuicStatistics, statistics_of
from .streams import Stream
from .upper import RawStreams
from .verification import CertificateRejected

__all__ = ["Connection"]


class Connection:
    """A QUIC connection, made by `open_quic` and `serve_quic`.

    Leaving its block normally sees out what was ended, for ``close_timeout`` seconds at most, and closes with code 0. Leaving it
    by an exception or a cancellation closes at once, with the ``failed_code`` or ``cancelled_code`` of `QuicSettings`.

    Attributes:
        datagrams: unreliable datagrams.
        incoming_streams: the bidirectional streams that the peer opens.
        incoming_receive_streams: the unidirectional ones.
    """

    __slots__ = (
        "_driver",
        "_services",
        "datagrams",
        "incoming_receive_streams",
        "incoming_streams",
    )

    def __init__(self, driver: Driver, services: Services) -> None:
        self._driver = driver
        self._services = services
        upper = driver.upper
        assert isinstance(upper, RawStreams)
        self.datagrams: Datagrams = upper.datagrams
        self.incoming_streams: IncomingStreams[Stream] = upper.incoming_streams
        self.incoming_receive_streams: IncomingStreams[ReceiveStream] = (
            upper.incoming_receive_streams
        )

    def __repr__(self) -> str:
        state = "open" if self._driver.end is None else "closed"
        return f"<Connection {state}, peer {self.peer_address}>"

    # ---- streams

    def open_stream(self, *, priority: int = 0) -> AbstractAsyncContextManager[Stream]:
        """Open a bidirectional stream, as an async context manager: ``async with connection.open_stream() as stream:``.

        Entering it waits while the peer's limit on streams is reached. The peer learns of the stream with the first bytes.

        Args:
            priority: streams of a higher priority are sent first.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        return OpenStream(self._driver, Stream, priority)

    def open_send_stream(self, *, priority: int = 0) -> AbstractAsyncContextManager[SendStream]:
        """Open a unidirectional stream; otherwise as `open_stream`."""
        return OpenStream(self._driver, SendStream, priority)

    # ---- what it is

    @property
    def alpn(self) -> str | None:
        """The application protocol agreed on; None before the handshake."""
        handshake = self._driver.handshake
        return None if handshake is None else handshake.alpn_protocol

    @property
    def version(self) -> int:
        """The version of QUIC: 1 or 2."""
        wire = self._driver.engine.wire_version
        return next(number for number, value in VERSIONS.items() if value == wire)

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
    def session_resumed(self) -> bool:
        """Whether an earlier session was resumed."""
        handshake = self._driver.handshake
        return handshake is not None and handshake.session_resumed

    @property
    def early_data_accepted(self) -> bool:
        """Whether the server took 0-RTT data; only the handshake tells."""
        handshake = self._driver.handshake
        return handshake is not None and handshake.early_data_accepted

    @property
    def handshake_complete(self) -> bool:
        """Whether the peer is known to be who it says: before that, data may be a replay (RFC 9001 section 9.2)."""
        return self._driver.handshake is not None

    async def wait_handshake(self) -> None:
        """Wait until the handshake is complete, which only connections with early data must.

        Raises:
            CertificateRejected: the peer's certificate was not accepted.
            HandshakeFailed: it did not succeed.
        """
        await trio.lowlevel.checkpoint()
        driver = self._driver
        while driver.handshake is None:
            if isinstance(driver.engine.rejection, CertificateRejected):
                raise driver.engine.rejection
            if driver.end is not None:
                raise HandshakeFailed(f"the QUIC handshake failed: {driver.end}") from driver.end
            await driver.wait_changed()

    def statistics(self) -> QuicStatistics:
        """Figures of the connection at this moment."""
        return statistics_of(
            self._driver,
            unaccepted_streams=len(self.incoming_streams) + len(self.incoming_receive_streams),
            datagrams_unread=self.datagrams.unread,
            datagrams_dropped=self.datagrams.dropped,
        )

    # ---- life

    async def ping(self) -> float:
        """Wait until the peer has acknowledged a packet sent now.

        Returns:
            how long that took, in seconds.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        return await self._driver.ping()

    def update_keys(self) -> None:
        """Change the packet protection keys now (RFC 9001 section 6), unless the last change is still under way.

        It happens by itself after ``key_update_packets``.
        """
        self._driver.engine.update_keys()
        self._driver.wake()

    async def migrate(
        self,
        *,
        local_address: tuple[str, int] | None = None,
        socket: DatagramSocket | None = None,
        timeout: float = 5,
    ) -> None:
        """Move the client's side of the connection to another local address (RFC 9000 section 9.2).

        The way over it is tried first, while the connection goes on over the old one. Cancelled, the connection stays there.
        What is still under way to the old address is heard for three probe timeouts more.

        Args:
            local_address: where to bind a new socket; None for any port of any address.
            socket: use this socket instead; the connection owns it from now on.
            timeout: how long the peer may take to answer there, in seconds.

        Raises:
            OSError: the address cannot be bound, or the peer does not answer there.
            RuntimeError: this is a server's side, or the connection shares its endpoint.
            trio.BusyResourceError: another task is migrating the connection.
            ConnectionClosed: the connection has ended.
        """
        await migrate(self._driver, self._services, local_address, socket, timeout)

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Covers the connection's block."""
        return self._driver.cancel_scope

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

    def close_now(self, code: int = 0, reason: str = "") -> None:
        """Close at once: what was not delivered yet is lost. Without effect if the connection has ended.

        Args:
            code: the application's error code, below 2^62; the peer sees 0 as a clean end.
            reason: for people; cut to 512 bytes of UTF-8.

        Raises:
            ValueError: the code is out of range.
        """
        self._driver.check_code(code)
        self._driver.shut(code, reason)

    async def aclose(self, code: int = 0, reason: str = "", *, graceful: bool = True) -> None:
        """Close, and wait until that is sent.

        Cancelled, it closes at once.

        Args:
            code: the application's error code, below 2^62; the peer sees 0 as a clean end.
            reason: for people; cut to 512 bytes of UTF-8.
            graceful: first see out the streams that were ended, for ``close_timeout`` seconds at most.

        Raises:
            ValueError: the code is out of range.
        """
        driver = self._driver
        try:
            driver.check_code(code)
        except ValueError:
            await trio.lowlevel.checkpoint()
            raise
        try:
            if graceful and driver.end is None:
                with trio.move_on_after(driver.settings.close_timeout):
                    await driver.drain()
        finally:
            self.close_now(code, reason)
        await driver.wait_finished()
