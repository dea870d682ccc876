"""Receive windows: credit is granted as the application consumes, never as data arrives (RFC 9000 section 4.1)."""

from __future__ import annotations

from aioquic.quic.connection import Limit

__all__ = ["ReceiveWindow", "StreamsLimit"]


class ReceiveWindow:
    """How far the peer may send, on one stream or on the whole connection.

    The window doubles when half of it is consumed within two round trips: then the window, not the application, is
    what limits the peer.

    Args:
        size: the window to start with, in bytes.
        maximum: what it may grow to.

    Attributes:
        consumed: bytes that the application has taken, or that will never be delivered to it.
        limit: the offset up to which the peer may send.
        size: the window as it is now.
    """

    __slots__ = ("_granted_at", "_maximum", "consumed", "limit", "size")

    def __init__(self, size: int, maximum: int) -> None:
        self.size: int = size
        self.consumed: int = 0
        self.limit: int = size
        self._maximum = maximum
        self._granted_at: float | None = None

    def consume(self, count: int, now: float, rtt: float) -> bool:
        """Take note of ``count`` consumed bytes; whether the limit was raised, which the peer should be told."""
        self.consumed += count
        if self.limit - self.consumed > self.size // 2:
            return False
        if self._granted_at is not None and now - self._granted_at < 2 * rtt:
            self.size = self.grown(min(2 * self.size, self._maximum))
        self._granted_at = now
        self.limit = self.consumed + self.size
        return True

    def grown(self, size: int) -> int:
        """What the window becomes when it might grow to ``size``."""
        return size

    def widen(self, size: int) -> None:
        """Let the window be at least so large, from now on."""
        if size > self.size:
            self.size = size
            self.limit = self.consumed + size


class StreamsLimit(Limit):
    """MAX_STREAMS of one kind: raised when both the transport and the application are done with a stream.

    aioquic raises ``value`` by one when it discards a stream, which alone would let a peer open streams faster than the
    application gets rid of them.

    Attributes:
        released: streams that the application is done with.
        granted: the same as ``value``, and quicker to read.
    """

    def __init__(self, frame_type: int, name: str, value: int) -> None:
        self._released = self._discarded = 0
        self._base = self.granted = value
        super().__init__(frame_type, name, value)

    @property
    def released(self) -> int:
        return self._released

    @released.setter
    def released(self, released: int) -> None:
        self._released = released
        self.granted = self._base + min(released, self._discarded)

    @property
    def value(self) -> int:
        return self.granted

    @value.setter
    def value(self, value: int) -> None:
        # The one assignment but the first is `value += 1`.
        self._discarded += value - self.granted
        self.granted = self._base + min(self._released, self._discarded)
