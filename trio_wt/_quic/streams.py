"""Streams: byte streams of one direction or both, whose blocks mean the same on the wire as they do here.

General theory of operation:

A stream is a thin object between the application's tasks and the connection's driver. The driver puts in what arrived
(`arrived`, `was_reset`, `was_stopped`, `lost`), synchronously; the application's calls change the state first and wait after
that. One task at a time may send, and one may receive.

What was received is held here until it is taken, and taking it is what grants the peer credit, so a stream holds at most
its window. `receive_exactly` and its kin grant credit for what they were asked to collect.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from .._errors import ConnectionClosed, IncompleteRead, ReadLimitExceeded, StreamAbort, StreamReset
from .._util import Wakeup

if TYPE_CHECKING:
    from .driver import Driver

__all__ = ["ReceiveStream", "SendStream", "Stream"]

_NO_ERROR: Final = 0
_MAX_CODE: Final = 2**62 - 1


class _Base(trio.abc.AsyncResource):
    """What streams of both directions share, and the place for all their attributes."""

    __slots__ = (
        "_buffered",
        "_cancel_scope",
        "_chunks",
        "_credited",
        "_driver",
        "_finished",
        "_priority",
        "_receive_end",
        "_receive_wakeup",
        "_receiving",
        "_send_end",
        "_send_wakeup",
        "_sending",
        "_stream_id",
    )

    def __init__(self, driver: Driver, stream_id: int) -> None:
        self._driver = driver
        self._stream_id = stream_id
        self._cancel_scope: trio.CancelScope | None = None
        self._finished = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream_id}>"

    @property
    def stream_id(self) -> int:
        """The stream's number on its connection (RFC 9000 section 2.1)."""
        return self._stream_id

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Covers the stream's block; cancelling it resets the stream."""
        if self._cancel_scope is None:
            self._cancel_scope = trio.CancelScope()
        return self._cancel_scope

    async def __aenter__(self) -> Self:
        self.cancel_scope.__enter__()
        return self

    async def __aexit__(  # type: ignore[override]  # its blocks swallow StreamAbort
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        settings = self._driver.settings
        if exc is None:
            self._finish()
        elif isinstance(exc, StreamAbort):
            self._abort(exc.code)
        elif isinstance(exc, trio.Cancelled):
            self._abort(settings.cancelled_code)
        else:
            self._abort(settings.failed_code)
        swallowed = self.cancel_scope.__exit__(exc_type, exc, traceback)
        if exc is None:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return swallowed or isinstance(exc, StreamAbort)

    def _finish(self) -> None:
        """The block is over, and all went well."""
        raise TypeError("a stream has a direction")

    def _abort(self, code: int) -> None:
        """The block failed, or was cancelled."""
        raise TypeError("a stream has a direction")

    def _done(self) -> None:
        """Tell the driver once when neither direction is of use to the application any more."""
        if not self._finished and self._is_done():
            self._finished = True
            self._driver.release(self._stream_id)

    def _is_done(self) -> bool:
        raise TypeError("a stream has a direction")


class SendStream(_Base, trio.abc.SendStream):
    """The sending side of a stream, an async context manager.

    Leaving its block ends the stream; leaving it by an exception or a cancellation resets it (RFC 9000 section 3.1), with the
    ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, driver: Driver, stream_id: int) -> None:
        super().__init__(driver, stream_id)
        self._init_sending()

    def _init_sending(self) -> None:
        self._priority = 0
        # Why nothing more can be sent: an error to raise, or the class of one; None while something can.
        self._send_end: Exception | type[Exception] | None = None
        self._send_wakeup: Wakeup | None = None
        self._sending = False

    @property
    def priority(self) -> int:
        """Streams of a higher priority are sent first; 0 to begin with."""
        return self._priority

    @priority.setter
    def priority(self, priority: int) -> None:
        self._priority = priority
        self._driver.engine.prioritise(self._stream_id, priority)

    async def send_all(self, data: bytes | bytearray | memoryview, *, eof: bool = False) -> None:
        """Send bytes; returns when they fit the send buffer.

        Cancelled, an unknown part has been sent, as with every `trio.abc.SendStream`. Leave the stream's block then,
        which resets it.

        Args:
            data: the bytes.
            eof: end the stream with them, which saves a packet over `send_eof`.

        Raises:
            StreamReset: the peer does not want them (STOP_SENDING, RFC 9000 section 3.5).
            ConnectionClosed: the connection has ended.
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the stream was ended or reset on this side.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._send_end is not None:
            self._raise_send_end()
        driver, stream_id = self._driver, self._stream_id
        limit = driver.settings.send_buffer
        room = limit - driver.engine.unsent(stream_id)
        if len(data) <= room and not isinstance(data, memoryview):
            driver.engine.send(stream_id, data, fin=eof)
            driver.push()
            if eof:
                self._close_sending()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        view = memoryview(data).cast("B")
        self._sending = True
        try:
            while True:
                room = limit - driver.engine.unsent(stream_id)
                if room > 0:
                    driver.engine.send(stream_id, view[:room])
                    driver.wake()
                    view = view[room:]
                if not view:
                    break
                await self._wait_room()
                if self._send_end is not None:
                    self._raise_send_end()
        finally:
            self._sending = False
        if eof:
            self._end_sending()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the send buffer, or the stream has ended.

        Raises:
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the stream was ended or reset on this side.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        if self._send_end is trio.ClosedResourceError:
            self._raise_send_end()
        limit = self._driver.settings.send_buffer
        self._sending = True
        try:
            while self._send_end is None and self._driver.engine.unsent(self._stream_id) >= limit:
                await self._wait_room()
            if self._send_end is trio.ClosedResourceError:
                self._raise_send_end()
        finally:
            self._sending = False

    async def _wait_room(self) -> None:
        if self._send_wakeup is None:
            self._send_wakeup = Wakeup()
        self._driver.blocked.add(self)
        try:
            await self._send_wakeup.park()
        finally:
            self._driver.blocked.discard(self)

    def _raise_send_end(self) -> None:
        end = self._send_end
        if isinstance(end, StreamReset):
            raise StreamReset(end.code, remote=end.remote)
        if isinstance(end, ConnectionClosed):
            raise self._driver.closed_error() from end.__cause__
        raise trio.ClosedResourceError("the stream was ended on this side")

    async def send_eof(self) -> None:
        """Say that nothing more will be sent (FIN).

        Doing it twice is no error, nor is doing it for a peer that wants no more (STOP_SENDING).

        Raises:
            ConnectionClosed: the connection has ended.
            trio.BusyResourceError: another task is sending.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(self._send_end, ConnectionClosed):
            self._raise_send_end()
        self._end_sending()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def reset(self, code: int) -> None:
        """Give up what was not delivered yet: the peer's receive raises `StreamReset` with this code.

        Without effect if the stream was ended and all of it delivered, or reset before.

        Args:
            code: the application's error code, below 2^62.

        Raises:
            ValueError: the code is out of range.
        """
        _check_code(code)
        self._driver.engine.reset(self._stream_id, code)
        self._driver.wake()
        self._close_sending()

    async def aclose(self) -> None:
        """End the stream: what was sent is still delivered. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    def _end_sending(self) -> None:
        if self._send_end is None:
            self._driver.engine.send(self._stream_id, b"", fin=True)
            self._driver.push()
        self._close_sending()

    def _close_sending(self) -> None:
        if self._send_end is None:
            self._send_end = trio.ClosedResourceError
        self._wake_sender()
        self._done()

    def _wake_sender(self) -> None:
        if self._send_wakeup is not None:
            self._send_wakeup.wake()

    def room_changed(self) -> None:
        """The driver: some of it was sent."""
        if self._driver.engine.unsent(self._stream_id) < self._driver.settings.send_buffer:
            self._wake_sender()

    def was_stopped(self, code: int) -> None:
        """The driver: the peer does not want more."""
        if self._send_end is None:
            self._send_end = StreamReset(code, remote=True)
        self._wake_sender()
        self._done()

    def _finish(self) -> None:
        self._end_sending()

    def _abort(self, code: int) -> None:
        self.reset(code)

    def _is_done(self) -> bool:
        return self._send_end is not None

    def lost(self, end: ConnectionClosed) -> None:
        """The driver: the connection has ended."""
        if self._send_end is None:
            self._send_end = end
        self._wake_sender()


class ReceiveStream(_Base, trio.abc.ReceiveStream):
    """The receiving side of a stream, an async context manager.

    Leaving its block before the end of the stream tells the peer to stop sending (STOP_SENDING, RFC 9000 section 3.5): with code
    0 normally, otherwise with the ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, driver: Driver, stream_id: int) -> None:
        super().__init__(driver, stream_id)
        self._init_receiving()

    def _init_receiving(self) -> None:
        self._chunks: deque[bytes] = deque()
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
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, and is {max_bytes}")
        if not await self._gather(1):
            return b""
        chunks = self._chunks
        if len(chunks) == 1 and (max_bytes is None or len(chunks[0]) <= max_bytes):
            data = chunks.popleft()
            self._buffered = 0
            self._took(len(data))
            return data
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
            raise ValueError("a delimiter has at least one byte")
        searched = 0
        while True:
            more = await self._gather(min(searched, max_bytes) + 1)
            found = self._joined().find(delimiter, max(0, searched - len(delimiter) + 1))
            if found >= 0 and found + len(delimiter) <= max_bytes:
                return self._take(found + len(delimiter))
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
        _check_code(code)
        if self._receive_end is None:
            self._driver.engine.stop(self._stream_id, code)
        self._close_receiving()

    async def aclose(self) -> None:
        """Receive no more; the peer is told to stop if it had not ended the stream. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    async def _gather(self, count: int) -> bool:
        """Wait until so many bytes are there, or the stream ends: whether they are. A checkpoint."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._buffered >= count:
            if not self._buffered:
                self._check_receive_end()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return True
        self._receiving = True
        try:
            while self._buffered < count:
                if self._receive_end is not None:
                    self._check_receive_end()
                    await trio.lowlevel.cancel_shielded_checkpoint()
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
            raise self._driver.closed_error() from end.__cause__
        if isinstance(end, StreamReset):
            raise StreamReset(end.code, remote=end.remote)
        raise trio.ClosedResourceError("the stream was closed on this side")

    def _joined(self) -> bytes:
        if len(self._chunks) > 1:
            joined = b"".join(self._chunks)
            self._chunks.clear()
            self._chunks.append(joined)
        return self._chunks[0] if self._chunks else b""

    def _take(self, count: int) -> bytes:
        data = self._joined()
        rest = data[count:]
        self._chunks.clear()
        if rest:
            self._chunks.append(rest)
        self._buffered = len(rest)
        self._took(count)
        return data[:count]

    def _took(self, count: int) -> None:
        """Credit what was taken, as far as that was not done before."""
        if count > self._credited:
            count -= self._credited
            self._credited = 0
            if self._driver.engine.consume(self._stream_id, count):
                self._driver.wake()
        else:
            self._credited -= count
        if self._receive_end == b"" and not self._buffered:
            self._ended()

    def _credit(self, total: int) -> None:
        count = total - self._credited
        self._credited = total
        if self._driver.engine.consume(self._stream_id, count):
            self._driver.wake()

    def _ended(self) -> None:
        """All was received."""
        self._driver.settle(self._stream_id)
        self._done()

    def arrived(self, data: bytes, *, fin: bool) -> None:
        """The driver: bytes, or the end, have come."""
        if self._receive_end is not None:
            if data:
                self._driver.engine.discard(self._stream_id, len(data))
            if fin:
                self._driver.settle(self._stream_id)
            return
        if data:
            self._chunks.append(data)
            self._buffered += len(data)
        if fin:
            self._receive_end = b""
            if not self._buffered:
                self._ended()
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def was_reset(self, code: int) -> None:
        """The driver: the peer has reset the stream; what was not received is dropped (RFC 9000 section 3.2)."""
        if self._receive_end is None:
            self._receive_end = StreamReset(code, remote=True)
        self._drop()
        self._driver.settle(self._stream_id)
        self._done()

    def lost(self, end: ConnectionClosed) -> None:
        """The driver: the connection has ended; what arrived before can still be received."""
        if self._receive_end is None:
            self._receive_end = end
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def _drop(self) -> None:
        self._chunks.clear()
        self._buffered = self._credited = 0
        if self._receive_wakeup is not None:
            self._receive_wakeup.wake()

    def _close_receiving(self) -> None:
        if self._receive_end is trio.ClosedResourceError:
            return
        uncredited = self._buffered - self._credited
        ended = self._receive_end == b""
        self._receive_end = trio.ClosedResourceError
        if uncredited and self._driver.engine.discard(self._stream_id, uncredited):
            self._driver.wake()
        self._drop()
        if ended:
            self._driver.settle(self._stream_id)
        self._driver.wake()
        self._done()

    def _finish(self) -> None:
        self.stop(_NO_ERROR)

    def _abort(self, code: int) -> None:
        self.stop(code)

    def _is_done(self) -> bool:
        end = self._receive_end
        return end is not None and not (end == b"" and self._buffered)


class Stream(SendStream, ReceiveStream, trio.abc.HalfCloseableStream):
    """A stream of both directions, an async context manager.

    Leaving its block ends what it sends, and tells the peer to stop sending if it had not ended the stream. Leaving it by an
    exception or a cancellation resets both directions, with the ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or
    the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, driver: Driver, stream_id: int) -> None:
        _Base.__init__(self, driver, stream_id)
        self._init_sending()
        self._init_receiving()

    async def aclose(self) -> None:
        """End what is sent, which is still delivered, and receive no more. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    def lost(self, end: ConnectionClosed) -> None:
        """The driver: the connection has ended."""
        SendStream.lost(self, end)
        ReceiveStream.lost(self, end)

    def _finish(self) -> None:
        SendStream._finish(self)
        ReceiveStream._finish(self)

    def _abort(self, code: int) -> None:
        SendStream._abort(self, code)
        ReceiveStream._abort(self, code)

    def _is_done(self) -> bool:
        return SendStream._is_done(self) and ReceiveStream._is_done(self)


def _check_code(code: int) -> None:
    if not 0 <= code <= _MAX_CODE:
        raise ValueError(f"an error code is at least 0 and less than 2^62, not {code}")
