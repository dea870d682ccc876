"""Unreliable datagrams (RFC 9221) as a Trio channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from .._errors import ConnectionClosed, DatagramTooLarge
from .._util import Wakeup

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["Datagrams"]

# In a path's packets they never come to this, but UDP carries larger ones.
_MAX_RECEIVED_BYTES: Final = 2**20


class Datagrams(trio.abc.Channel[bytes]):
    """A connection's datagrams: each arrives whole or not at all, in any order.

    Both ways a bounded number may wait, ``max_datagram_queue`` of `QuicSettings`, and of received ones 1 MiB at most; past it the
    oldest is dropped and counted in the connection's statistics. So sending never waits for the peer.
    """

    __slots__ = (
        "_carrier",
        "_closed",
        "_received",
        "_received_bytes",
        "_waiting",
        "_wakeup",
        "dropped",
    )

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._received: list[bytes] = []
        self._received_bytes = 0
        # Where one task waits to receive, and all others.
        self._wakeup = Wakeup()
        self._waiting: trio.lowlevel.ParkingLot | None = None
        self._closed = False
        #: received datagrams that were dropped because too many waited
        self.dropped: int = 0

    @property
    def max_size(self) -> int:
        """The most bytes that a datagram may have now; 0 if the peer takes none.

        It grows as larger packets are found to get through, and falls when they no longer do.
        """
        return self._carrier.max_datagram

    @property
    def unread(self) -> int:
        """How many datagrams wait to be received."""
        return len(self._received)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> None:
        """Send a datagram.

        Raises:
            DatagramTooLarge: it does not fit a packet; nothing was sent.
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: the channel, or the connection, was closed on this side.
        """
        carrier = self._carrier
        self._check_open()
        carrier.check_open()
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        max_size = carrier.max_datagram
        if len(data) > max_size or not max_size:
            raise DatagramTooLarge(len(data), max_size)
        carrier.queue_datagram(data)
        carrier.push()

    async def send(self, value: bytes | bytearray | memoryview) -> None:
        """`send_nowait`, as a checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.send_nowait(value)
        finally:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def receive_nowait(self) -> bytes:
        """A datagram that has arrived.

        Raises:
            trio.WouldBlock: there is none.
            ConnectionClosed: the connection has ended, and all datagrams were received.
            trio.ClosedResourceError: the channel, or the connection, was closed on this side.
        """
        self._check_receivable()
        if not self._received:
            raise trio.WouldBlock
        data = self._received.pop(0)
        self._received_bytes -= len(data)
        return data

    async def receive(self) -> bytes:
        """The next datagram. Cancelled, none was received.

        Raises:
            ConnectionClosed: the connection has ended, and all datagrams were received.
            trio.ClosedResourceError: the channel, or the connection, was closed on this side.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._check_receivable()
        except BaseException:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        if self._received:
            data = self.receive_nowait()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return data
        while not self._received:
            if self._wakeup.parked or self._waiting:
                if self._waiting is None:
                    self._waiting = trio.lowlevel.ParkingLot()
                await self._waiting.park()
            else:
                # The one task that waits as a rule, and for less.
                await self._wakeup.park()
            self._check_receivable()
        return self.receive_nowait()

    def _check_receivable(self) -> None:
        self._check_open()
        if not self._received:
            self._carrier.check_open(iterating=True)

    async def aclose(self) -> None:
        """Neither send nor receive datagrams any more; those that come are dropped. The connection goes on. A checkpoint."""
        self._closed = True
        self._received.clear()
        self._received_bytes = 0
        self._wake_all()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the datagrams were closed on this side")

    def arrived(self, data: bytes) -> None:
        """The carrier: a datagram has come."""
        if self._closed:
            return
        self._received.append(data)
        self._received_bytes += len(data)
        while (
            len(self._received) > self._carrier.settings.max_datagram_queue
            or self._received_bytes > _MAX_RECEIVED_BYTES
        ):
            self._received_bytes -= len(self._received.pop(0))
            self.dropped += 1
        # Whoever waits in the lot came later.
        if self._wakeup.parked:
            self._wakeup.wake()
        elif self._waiting is not None:
            self._waiting.unpark()

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended."""
        self._wake_all()

    def _wake_all(self) -> None:
        self._wakeup.wake()
        if self._waiting is not None:
            self._waiting.unpark_all()
