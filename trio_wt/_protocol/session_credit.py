"""The flow control of a WebTransport session (draft-ietf-webtrans-http3-16 section 5): what its streams may carry in all, and how
many there may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .capsules import CapsuleType, encode_number
from .http3_settings import Setting
from .quic.credit import ReceiveWindow

__all__ = ["MAX_STREAMS", "CreditViolation", "Growth", "SessionCredit"]

MAX_STREAMS: Final = 2**60
_MAX_STREAMS_CAPSULE: Final = (CapsuleType.MAX_STREAMS_BIDI, CapsuleType.MAX_STREAMS_UNI)
_BLOCKED_CAPSULE: Final = (CapsuleType.STREAMS_BLOCKED_BIDI, CapsuleType.STREAMS_BLOCKED_UNI)
_STREAMS_SETTING: Final = (
    Setting.WT_INITIAL_MAX_STREAMS_BIDI,
    Setting.WT_INITIAL_MAX_STREAMS_UNI,
)


class CreditViolation(Exception):
    """The peer has sent, opened or allowed what it must not; the session ends by it."""


class Growth:
    """What the windows of a connection's sessions may grow by, all of them together.

    The connection's own window is kept ahead of them, so that it has room for the others however much of some is left
    unread.

    Args:
        window: the connection's window to begin with, which has room for all sessions as they begin.
        most: what it may become.
        widen: gets what it is to be.
    """

    __slots__ = ("_most", "_widen", "_window")

    def __init__(self, window: int, most: int, widen: Callable[[int], None]) -> None:
        self._window = window
        self._most = most
        self._widen = widen

    def take(self, count: int) -> int:
        """As much of ``count`` bytes as there is."""
        count = min(count, self._most - self._window)
        if count:
            self._window += count
            self._widen(self._window)
        return count

    def give_back(self, count: int) -> None:
        """A session has ended that had taken so much."""
        self._window -= count


class _SessionWindow(ReceiveWindow):
    __slots__ = ("_growth", "taken")

    def __init__(self, size: int, maximum: int, growth: Growth) -> None:
        super().__init__(size, maximum)
        self._growth = growth
        self.taken = 0

    def grown(self, size: int) -> int:
        taken = self._growth.take(size - self.size)
        self.taken += taken
        return self.size + taken


class SessionCredit:
    """Both sides' limits. Streams are counted by kind: 0 for bidirectional ones, 1 for unidirectional.

    Args:
        ours: the settings that we have sent.
        theirs: the peer's.
        max_window: what the window for data may grow to, in bytes.
        growth: what all sessions of the connection take for that.
    """

    def __init__(
        self, ours: Mapping[int, int], theirs: Mapping[int, int], max_window: int, growth: Growth
    ) -> None:
        self._max_data = theirs.get(Setting.WT_INITIAL_MAX_DATA, 0)
        self._sent = 0
        self._max_streams = [theirs.get(setting, 0) for setting in _STREAMS_SETTING]
        self._opened = [0, 0]
        window = ours[Setting.WT_INITIAL_MAX_DATA]
        self._growth = growth
        self._window = _SessionWindow(window, max(window, max_window), growth)
        self._received = 0
        # How many streams the peer may have at once, may open in all, has opened, and how many of them are done with.
        self._streams_window = [ours[setting] for setting in _STREAMS_SETTING]
        self._granted = list(self._streams_window)
        self._theirs = [0, 0]
        self._released = [0, 0]
        # The limits of which the peer was told that they hold us back.
        self._told_data = -1
        self._told_streams = [-1, -1]

    # ---- sending

    @property
    def room(self) -> int:
        """How many bytes may still be sent."""
        return self._max_data - self._sent

    def sent(self, count: int) -> None:
        """So many bytes go out."""
        self._sent += count

    def may_open(self, kind: int) -> bool:
        """Whether one more stream may be opened."""
        return self._opened[kind] < self._max_streams[kind]

    def opened(self, kind: int, count: int = 1) -> None:
        """One was, or, with a ``count`` of -1, was not after all."""
        self._opened[kind] += count

    def data_blocked(self) -> bytes:
        """What tells the peer that its limit on data is in the way; nothing if it knows."""
        if self._told_data == self._max_data:
            return b""
        self._told_data = self._max_data
        return encode_number(CapsuleType.DATA_BLOCKED, self._max_data)

    def streams_blocked(self, kind: int) -> bytes:
        """The same for its limit on streams."""
        limit = self._max_streams[kind]
        if self._told_streams[kind] == limit:
            return b""
        self._told_streams[kind] = limit
        return encode_number(_BLOCKED_CAPSULE[kind], limit)

    def max_data(self, limit: int) -> None:
        """The peer allows so many bytes in all.

        Raises:
            CreditViolation: it does not grow (draft-ietf-webtrans-http3-16 section 5.6.4).
        """
        if limit <= self._max_data:
            raise CreditViolation("WT_MAX_DATA must grow")
        self._max_data = limit

    def max_streams(self, kind: int, limit: int) -> None:
        """The peer allows so many streams in all.

        Raises:
            CreditViolation: they do not become more, or too many (draft-ietf-webtrans-http3-16 section 5.6.2).
        """
        if limit > MAX_STREAMS:
            raise CreditViolation("WT_MAX_STREAMS of more than 2^60")
        if limit <= self._max_streams[kind]:
            raise CreditViolation("WT_MAX_STREAMS must grow")
        self._max_streams[kind] = limit

    # ---- receiving

    @property
    def window(self) -> int:
        """How far the peer may be ahead of the application, in bytes."""
        return self._window.size

    def received(self, count: int) -> None:
        """So many bytes have come.

        Raises:
            CreditViolation: more than we allow.
        """
        self._received += count
        if self._received > self._window.limit:
            raise CreditViolation("more data than the session allows")

    def consumed(self, count: int, now: float, rtt: float) -> bytes:
        """The application has taken so many bytes, or will never see them: what to tell the peer, if anything."""
        if not self._window.consume(count, now, rtt):
            return b""
        return encode_number(CapsuleType.MAX_DATA, self._window.limit)

    def over(self) -> None:
        """The session has ended: what its window had grown by is for others."""
        self._growth.give_back(self._window.taken)
        self._window.taken = 0

    def peer_opened(self, kind: int) -> None:
        """The peer has opened a stream.

        Raises:
            CreditViolation: one too many.
        """
        self._theirs[kind] += 1
        if self._theirs[kind] > self._granted[kind]:
            raise CreditViolation("more streams than the session allows")

    def released(self, kind: int) -> bytes:
        """The application is done with one of them: what to tell the peer, if anything."""
        self._released[kind] += 1
        limit = self._released[kind] + self._streams_window[kind]
        # In steps, so that not every stream costs a capsule.
        if limit - self._granted[kind] < max(1, self._streams_window[kind] // 2):
            return b""
        self._granted[kind] = limit
        return encode_number(_MAX_STREAMS_CAPSULE[kind], limit)
