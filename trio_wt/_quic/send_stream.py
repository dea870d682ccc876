"""The sending side of streams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from .._errors import ConnectionClosed, StreamReset
from .._util import Wakeup
from .stream_base import StreamBase

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["SendStream"]


class SendStream(StreamBase, trio.abc.SendStream):
    """The sending side of a stream, an async context manager.

    Leaving its block ends the stream; leaving it by an exception or a cancellation resets it (RFC 9000 section 3.1), with the
    ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        super().__init__(carrier, stream_id)
        self._init_sending()

    def _init_sending(self) -> None:
        self._priority = 0
        # Why nothing more can be sent: an error to raise, or the class of one; None while something can.
        self._send_end: Exception | type[Exception] | None = None
        self._send_wakeup: Wakeup | None = None
        self._sending = False
        # A cancelled send_all has sent a part of its bytes.
        self._cut = False

    @property
    def priority(self) -> int:
        """Streams of a higher priority are sent first; 0 to begin with."""
        return self._priority

    @priority.setter
    def priority(self, priority: int) -> None:
        self._priority = priority
        self._carrier.prioritise(self._stream_id, priority)

    async def send_all(self, data: bytes | bytearray | memoryview, *, eof: bool = False) -> None:
        """Send bytes; returns when they fit the send buffer.

        Cancelled, an unknown part may have been sent, as with every `trio.abc.SendStream`; then leaving the stream's block,
        or `aclose`, resets the stream with the ``cancelled_code``, unless `send_eof` has ended it.

        Args:
            data: the bytes.
            eof: end the stream with them, which saves a packet over `send_eof`.

        Raises:
            StreamReset: the peer does not want them (STOP_SENDING, RFC 9000 section 3.5).
            ConnectionClosed: the connection has ended.
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: the stream was ended or reset on this side.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending or self._send_end is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._check_idle()
            self._raise_send_end()
        if not isinstance(data, (bytes, bytearray)):
            data = memoryview(data).cast("B")
        carrier, stream_id = self._carrier, self._stream_id
        if len(data) <= carrier.room(stream_id) and not isinstance(data, memoryview):
            carrier.send(stream_id, data, fin=eof)
            carrier.push()
            if eof:
                self._close_sending()
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        view = memoryview(data)
        whole = len(view)
        self._sending = True
        try:
            while True:
                room = carrier.room(stream_id)
                if room > 0:
                    carrier.send(stream_id, view[:room])
                    carrier.wake()
                    view = view[room:]
                if not view:
                    break
                await self._wait_room()
                if self._send_end is not None:
                    self._raise_send_end()
        except BaseException:
            # What goes on from here would not be what was meant to be sent.
            self._cut = self._cut or len(view) < whole
            raise
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
            await trio.lowlevel.checkpoint()
            self._check_idle()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            while self._send_end is None and self._carrier.room(self._stream_id) <= 0:
                await self._wait_room()
        finally:
            self._sending = False
        if self._send_end is trio.ClosedResourceError:
            self._raise_send_end()

    def _check_idle(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")

    async def _wait_room(self) -> None:
        if self._send_wakeup is None:
            self._send_wakeup = Wakeup()
        self._carrier.blocked.add(self)
        try:
            await self._send_wakeup.park()
        finally:
            self._carrier.blocked.discard(self)

    def _raise_send_end(self) -> None:
        end = self._send_end
        if isinstance(end, StreamReset):
            raise end.again()
        if isinstance(end, ConnectionClosed):
            raise self._carrier.closed_error() from end.__cause__
        raise trio.ClosedResourceError("the stream was ended on this side")

    async def send_eof(self) -> None:
        """Say that nothing more will be sent (FIN).

        Doing it twice is no error, nor is doing it for a peer that wants no more (STOP_SENDING).

        Raises:
            ConnectionClosed: the connection has ended.
            trio.BusyResourceError: another task is sending.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending or isinstance(self._send_end, ConnectionClosed):
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._check_idle()
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
        self._carrier.check_code(code)
        self._carrier.reset(self._stream_id, code)
        self._carrier.abandoned(self._stream_id)
        self._close_sending()

    async def aclose(self) -> None:
        """End the stream: what was sent is still delivered. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    def _end_sending(self) -> None:
        if self._send_end is None:
            self._carrier.send(self._stream_id, b"", fin=True)
            self._carrier.push()
        self._close_sending()

    def _close_sending(self) -> None:
        self._send_end = trio.ClosedResourceError
        self._wake_sender()
        self._done()

    def _wake_sender(self) -> None:
        if self._send_wakeup is not None:
            self._send_wakeup.wake()

    def room_changed(self) -> None:
        """The carrier: some of it was sent."""
        if self._carrier.room(self._stream_id) > 0:
            self._wake_sender()

    def was_stopped(self, code: int) -> None:
        """The carrier: the peer does not want more."""
        self._carrier.abandoned(self._stream_id)
        if not self._carrier.puts_off(code, partial(self._stopped_by_peer, code)):
            self._stopped_by_peer(code)

    def _stopped_by_peer(self, code: int) -> None:
        if self._send_end is None:
            self._send_end = self._reset_error(code)
        self._wake_sender()
        self._done()

    def _finish(self) -> None:
        if (self._cut or self._sending) and self._send_end is None:
            # To end it would say that all was sent.
            self.reset(self._carrier.settings.cancelled_code)
        else:
            self._end_sending()

    def _abort(self, code: int) -> None:
        self.reset(code)

    def _is_done(self) -> bool:
        return self._send_end is not None

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended."""
        if self._send_end is None:
            self._send_end = end
        self._wake_sender()
