"""Streams of both directions.

General theory of operation:

A stream is a thin object between the application's tasks and the connection, its carrier. The carrier puts in what arrived
(`arrived`, `was_reset`, `was_stopped`, `lost`), synchronously; the application's calls change the state first and wait after
that. One task at a time may send, and one may receive. The blocks of streams mean the same on the wire as they do here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .._errors import ConnectionClosed
from .receive_stream import ReceiveStream
from .send_stream import SendStream
from .stream_base import StreamBase

if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["Stream"]


class Stream(SendStream, ReceiveStream, trio.abc.HalfCloseableStream):
    """A stream of both directions, an async context manager.

    Leaving its block ends what it sends, and tells the peer to stop sending if it had not ended the stream. Leaving it by an
    exception or a cancellation resets both directions, with the ``failed_code`` or ``cancelled_code`` of `QuicSettings`, or
    the code of a `StreamAbort`.
    """

    __slots__ = ()

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        StreamBase.__init__(self, carrier, stream_id)
        self._init_sending()
        self._init_receiving()

    async def aclose(self) -> None:
        """End what is sent, which is still delivered, and receive no more. A checkpoint."""
        self._finish()
        await trio.lowlevel.checkpoint()

    def lost(self, end: ConnectionClosed) -> None:
        """The carrier: the connection has ended."""
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
