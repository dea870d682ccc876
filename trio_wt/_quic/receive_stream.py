"""The receiving side of streams.

What was received is held here until it is taken, and taking it is what grants the peer credit, so a stream holds at most
its window. `receive_exactly` and its kin grant credit for what they were asked to collect.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Final

import trio

from .._errors import ConnectionClosed, IncompleteRead, ReadLimitExceeded, StreamReset
from .._util import Wakeup
from .stream_base import StreamBase

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["ReceiveStream"]

_NO_ERROR: Final = 0
# Pieces are put together up to this size.
_SMALL: Final = 4096


class ReceiveStream(StreamBase, trio.abc.ReceiveStream):
    """The receiving side of a stream, an async context manager.

    Leaving its block before the end of the stream tells the peer to stop sending (STOP_SENDING, RFC 9000 section 3.5): with code
    0 normally, otherwise with the ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        super().__init__(carrier, stream_id)
        self._init_receiving()

    def _init_receiving(self) -> None:
        # What has arrived, from when something has; the first ``_head`` bytes of the first chunk were taken already.
        self._chunks: deque[bytes] | None = None
        self._head = 0
        self._buffered = 0
        # How much of what is buffered has been credited to the peer already.
        self._credited = 0
        # b"" for the end of the stream, or why nothing more comes; None while something may.
        self._receive_end: bytes | Exception | type[Exception] | None = None
        self._receive_wakeup: Wakeup | None = None
        self._receiving = False

    @property
    def buffered(self) -> int:
        """How many bytes have arrived and were not received yet."""
        return self._buffered

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived, at least one byte; ``b""`` at the end.

        Cancelled, nothing was received.

        Args:
            max_bytes: at most so many; None for all that is there.

        Raises:
            StreamReset: the peer cut the stream off.
            ConnectionClosed: the connection has ended, and all that had arrived was received.
            ValueError: ``max_bytes`` is less than 1.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: the stream was closed on this side.
        """
        if max_bytes is not None and index(max_bytes) < 1:
            await trio.lowlevel.checkpoint()
            raise ValueError(f"max_bytes must be at least 1, and is {max_bytes}")
        if not await self._gather(1):
            return b""
        return self._take(self._buffered if max_bytes is None else min(max_bytes, self._buffered))

    async def receive_exactly(self, count: int) -> bytes:
        """Exactly so many bytes.

        Cancelled, nothing was received.

        Args:
            count: how many; all of them are held in memory.

        Raises:
            IncompleteRead: the stream ends before; what is there can still be received.
            ValueError: ``count`` is negative.

        Otherwise as `receive_some`.
        """
        if count < 0:
            await trio.lowlevel.checkpoint()
            raise ValueError(f"count must not be negative, and is {count}")
        if not await self._gather(count):
            raise IncompleteRead(self._buffered)
        return self._take(count)

    async def receive_until(self, delimiter: bytes, max_bytes: int = 65536) -> bytes:
        """All bytes up to the first delimiter, and the delimiter itself.

        Cancelled, nothing was received.

        Args:
            delimiter: what to look for.
            max_bytes: the most to return.

        Raises:
            IncompleteRead: the stream ends before; what is there can still be received.
            ReadLimitExceeded: the delimiter does not end within ``max_bytes``; nothing is lost.
            ValueError: the delimiter is empty.

        Otherwise as `receive_some`.
        """
        if not delimiter:
            await trio.lowlevel.checkpoint()
            raise ValueError("a delimiter has at least one byte")
        searched = 0
        while True:
            more = await self._gather(min(searched, max_bytes) + 1)
            front = self._front(max_bytes)
            start = self._head + max(0, searched - len(delimiter) + 1)
            found = front.find(delimiter, start, self._head + max_bytes)
            if found >= 0:
                return self._take(found + len(delimiter) - self._head)
            if self._buffered >= max_bytes:
                raise ReadLimitExceeded(max_bytes)
            if not more:
                raise IncompleteRead(self._buffered)
            searched = self._buffered

    async def receive_all(self, max_bytes: int = 2**20) -> bytes:
        """All bytes up to the end of the stream.

        Cancelled, nothing was received.

        Args:
            max_bytes: the most to hold.

        Raises:
            ReadLimitExceeded: more came; nothing is lost.

        Otherwise as `receive_some`.
        """
        if await self._gather(max_bytes + 1):
            raise ReadLimitExceeded(max_bytes)
        return self._take(self._buffered)

    async def __anext__(self) -> bytes:
        data = await self.receive_some()
        if not data:
            raise StopAsyncIteration
        return data

    def stop(self, code: int) -> None:
        """Tell the peer that no more is wanted: its sends raise `StreamReset` with this code.

        What has arrived is dropped. Without effect at the end of the stream.

        Args:
            code: the application's error code, below 2^62.

        Raises:
            ValueError: the code is out of range.
        """
        self._carrier.check_code(code)
        if self._receive_end is None:
            self._carrier.stop(self._stream_id, code)
        self._close_receiving()

    async def aclose(self) -> None:
        """Receive no more; the peer is told to stop if it had not ended the stream. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    async def _gather(self, count: int) -> bool:
        """Wait until so many bytes are there, or the stream ends: whether they are. A checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiving:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise trio.BusyResourceError("another task is receiving from this stream")
        if self._buffered >= count:
            await trio.lowlevel.cancel_shielded_checkpoint()
            if not self._buffered:
                self._check_receive_end()
            return True
        self._receiving = True
        try:
            while self._buffered < count:
                if self._receive_end is not None:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    self._check_receive_end()
                    return False
                if self._buffered > self._credited and count > 1:
                    # What is asked for may be more than the window: let the rest of it come.
                    self._credit(self._buffered)
                if self._receive_wakeup is None:
                    self._receive_wakeup = Wakeup()
                await self._receive_wakeup.park()
            return True
        finally:
            self._receiving = False

    def _check_receive_end(self) -> None:
        """Raise the end of the stream, unless it is the ordinary one."""
        end = self._receive_end
        if isinstance(end, bytes) or end is None:
            return
        if isinstance(end, ConnectionClosed):
            raise self._carrier.closed_error() from end.__cause__
        if isinstance(end, StreamReset):
            raise end.again()
        raise trio.ClosedResourceError("the stream was closed on this side")

    def _front(self, count: int) -> bytes:
        """The chunk at the front, made to hold the first ``count`` bytes, or all if there are fewer."""
        chunks = self._chunks
        if not chunks:
            return b""
        if len(chunks) > 1 and len(chunks[0]) - self._head < count:
            count = min(count, self._buffered)
            front = self._pop(count)
            self._buffered += count
            if self._head:
                chunks[0] = chunks[0][self._head :]
                self._head = 0
            chunks.appendleft(front)
        return chunks[0]

    def _pop(self, count: int) -> bytes:
        """Take the first ``count`` bytes out of the buffer."""
        chunks = self._chunks
        if chunks is None:
            return b""
        self._buffered -= count
        pieces = []
        while count:
            chunk, head = chunks[0], self._head
            piece = chunk[head : head + count] if head or count < len(chunk) else chunk
            pieces.append(piece)
            count -= len(piece)
            if head + len(piece) == len(chunk):
                chunks.popleft()
                self._head = 0
            else:
                self._head = head + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take(self, count: int) -> bytes:
        data = self._pop(count)
        self._took(count)
        return data

    def _took(self, count: int) -> None:
        """Credit what was taken, as far as that was not done before."""
        taken = count
        if count > self._credited:
            count -= self._credited
            self._credited = 0
            self._carrier.consume(self._stream_id, count)
        else:
            self._credited -= count
        if taken and self._receive_end == b"" and not self._buffered:
            self._ended()

    def _credit(self, total: int) -> None:
        count = total - self._credited
        self._credited = total
        self._carrier.consume(self._stream_id, count)

    def _ended(self) -> None:
        """All was received."""
        self._carrier.settle(self._stream_id)
        self._done()

    def arrived(self, data: bytes, *, fin: bool) -> None:
        """The carrier: bytes, or the end, have come."""
        self._carrier.received(self._stream_id, len(data), fin=fin)
        if self._receive_end is not None:
            if data:
                self._carrier.discard(self._stream_id, len(data))
            if fin:
                self._carrier.settle(self._stream_id)
            return
        if data:
            chunks = self._chunks
            if chunks is None:
                chunks = self._chunks = deque()
            if chunks and len(chunks[-1]) + len(data) <= _SMALL:
                # An object for each of many tiny pieces would cost more memory than the window allows bytes.
                chunks[-1] += data
            else:
                chunks.append(data)
            self._buffered += len(data)
        if fin:
            self._receive_end = b""
            if not self._buffered:
                self._ended()
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def was_reset(self, code: int) -> None:
        """The carrier: the peer has reset the stream; what was not received is dropped (RFC 9000 section 3.2)."""
        uncredited = self._buffered - self._credited
        if uncredited:
            self._carrier.discard(self._stream_id, uncredited)
        self._drop()
        self._carrier.settle(self._stream_id)
        if not self._carrier.puts_off(code, partial(self._reset_by_peer, code)):
            self._reset_by_peer(code)

    def _reset_by_peer(self, code: int) -> None:
        if self._receive_end is None:
            self._receive_end = self._reset_error(code)
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()
        self._done()

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended; what arrived before can still be received."""
        if self._receive_end is None:
            self._receive_end = end
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def orphan(self) -> int:
        """The carrier has ended, and what it stands on goes on: nothing of this stream is credited any more.

        Returns:
            how many bytes that leaves, if the stream's end had come behind them; otherwise that is known when it comes.
        """
        uncredited, self._credited = self._buffered - self._credited, self._buffered
        return uncredited if self._receive_end == b"" else 0

    def _drop(self) -> None:
        self._chunks = None
        self._head = self._buffered = self._credited = 0
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def _close_receiving(self) -> None:
        if self._receive_end is trio.ClosedResourceError:
            return
        uncredited = self._buffered - self._credited
        # Where nothing is left of it, that was settled when the last byte was taken.
        unsettled = self._receive_end == b"" and self._buffered > 0
        self._receive_end = trio.ClosedResourceError
        if uncredited:
            self._carrier.discard(self._stream_id, uncredited)
        self._drop()
        if unsettled:
            self._carrier.settle(self._stream_id)
        self._done()

    def _finish(self) -> None:
        self.stop(_NO_ERROR)

    def _abort(self, code: int) -> None:
        self.stop(code)

    def _is_done(self) -> bool:
        end = self._receive_end
        return end is not None and not (end == b"" and self._buffered)
