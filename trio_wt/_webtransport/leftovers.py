"""Streams that nobody takes, or takes any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._errors import ConnectionClosed
from .._protocol.http3_codes import Http3Code
from .._protocol.stream_heads import StreamHead, StreamType
from .._quic.driver import Driver

if TYPE_CHECKING:
    from .carrier import SessionCarrier

__all__ = ["Remainder", "refuse_stream"]


class Remainder:
    """What still comes of a stream that the application is done with."""

    __slots__ = ("_carrier", "_stream_id")

    def __init__(self, carrier: SessionCarrier, stream_id: int) -> None:
        self._carrier = carrier
        self._stream_id = stream_id

    def arrived(self, data: bytes, *, fin: bool) -> None:
        self._carrier.received(self._stream_id, len(data), fin=fin)
        self._carrier.discard(self._stream_id, len(data))
        if fin:
            self._over()

    def was_reset(self, code: int) -> None:
        self._over()

    def _over(self) -> None:
        carrier = self._carrier
        if carrier.end is None:
            carrier.settle(self._stream_id)
        else:
            carrier.driver.settle(self._stream_id)
        carrier.driver.forget(self._stream_id)

    def was_stopped(self, code: int) -> None:
        self._carrier.abandoned(self._stream_id)

    def lost(self, end: ConnectionClosed) -> None:
        """Nobody waits for it."""


def refuse_stream(
    driver: Driver, stream_id: int, head: StreamHead, code: Http3Code, *, fin: bool
) -> None:
    """The peer has opened a stream that belongs to no session of this side's."""
    driver.release(stream_id)
    if not fin:
        driver.stop(stream_id, code)
    if head.kind is StreamType.SESSION and not stream_id & 2:
        driver.reset(stream_id, code)
    if head.rest:
        driver.discard(stream_id, len(head.rest))
    if fin:
        driver.settle(stream_id)
