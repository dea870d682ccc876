"""The streams that a peer opens, as a Trio channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from .._errors import ConnectionClosed
from .receive_stream import ReceiveStream
from .streams import Stream

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["IncomingStreams"]

StreamT = TypeVar("StreamT", Stream, ReceiveStream)


class IncomingStreams(trio.abc.ReceiveChannel[StreamT], Generic[StreamT]):
    """Streams in the order in which the peer has opened them.

    Those that wait here count towards ``max_streams`` or ``max_receive_streams``, and hold no more data than their windows.
    Several tasks may receive.
    """

    __slots__ = ("_carrier", "_closed", "_streams", "_waiting")

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        # Short: the peer may have as many streams.
        self._streams: list[StreamT] = []
        self._waiting: trio.lowlevel.ParkingLot | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._streams)

    def receive_nowait(self) -> StreamT:
        """A stream that was opened.

        Raises:
            trio.WouldBlock: there is none.
            ConnectionClosed: the connection has ended, and all streams were taken.
            trio.ClosedResourceError: the channel, or the connection, was closed on this side.
        """
        if self._closed:
            raise trio.ClosedResourceError("no more streams are taken on this side")
        if self._streams:
            stream = self._streams.pop(0)
            stream.take()
            return stream
        self._carrier.check_open(iterating=True)
        raise trio.WouldBlock

    async def receive(self) -> StreamT:
        """The next stream. Cancelled, none was taken.

        Raises:
            ConnectionClosed: the connection has ended, and all streams were taken.
            trio.ClosedResourceError: the channel, or the connection, was closed on this side.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                stream = self.receive_nowait()
            except trio.WouldBlock:
                pass
            except BaseException:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                raise
            else:
                break
            # Outside of the except block, which would keep the exception and its frames for as long as this waits.
            if self._waiting is None:
                self._waiting = trio.lowlevel.ParkingLot()
            await self._waiting.park()
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return stream

    async def aclose(self) -> None:
        """Take no more streams: those that wait, and those that come, are refused with the ``cancelled_code``. A checkpoint."""
        self._closed = True
        while self._streams:
            self._refuse(self._streams.pop(0))
        self._wake_all()
        await trio.lowlevel.checkpoint()

    def _refuse(self, stream: StreamT) -> None:
        code = self._carrier.settings.cancelled_code
        if isinstance(stream, Stream):
            stream.reset(code)
        stream.stop(code)
        stream.take()

    def arrived(self, stream: StreamT) -> None:
        """The carrier: the peer has opened a stream."""
        stream.offer()
        if self._closed:
            self._refuse(stream)
            return
        self._streams.append(stream)
        if self._waiting is not None:
            self._waiting.unpark()

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended."""
        self._wake_all()

    def _wake_all(self) -> None:
        if self._waiting is not None:
            self._waiting.unpark_all()
