"""RESET_STREAM_AT: a reset that spares the first bytes of its stream (draft-ietf-quic-reliable-stream-reset)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "RESET_STREAM_AT",
    "RESET_STREAM_AT_CAPACITY",
    "OutgoingReset",
    "ReliableReset",
    "ReliableResets",
]

RESET_STREAM_AT: Final = 0x24
RESET_STREAM_AT_CAPACITY: Final = 1 + 4 * 8


@dataclass(slots=True)
class ReliableReset:
    """A reset of one stream: the bytes before ``reliable_size`` still arrive.

    Attributes:
        code: the application's error code.
        final_size: how many bytes were sent in all.
        reliable_size: how many of them are delivered in any case.
    """

    code: int
    final_size: int
    reliable_size: int

    def fits(self, highest: int, final_size: int | None) -> bool:
        """Whether what was received agrees with it.

        Args:
            highest: the highest offset received.
            final_size: the final size, where a FIN has told it.
        """
        return highest <= self.final_size and final_size in (None, self.final_size)


@dataclass(slots=True)
class OutgoingReset:
    """A reset that this side has decided on.

    Attributes:
        code: the application's error code.
        reliable_size: how many bytes are delivered in any case.
        pending: whether the frame is to be sent, for the first time or again.
        acknowledged: whether the peer has the frame.
    """

    code: int
    reliable_size: int
    pending: bool = True
    acknowledged: bool = False


class ReliableResets:
    """The resets received whose reliable part has not arrived yet, by stream.

    Attributes:
        awaited: those resets.
    """

    __slots__ = ("awaited",)

    def __init__(self) -> None:
        self.awaited: dict[int, ReliableReset] = {}

    def expect(self, stream_id: int, code: int, final_size: int, reliable_size: int) -> bool:
        """Take a frame in; whether it agrees with those before it. The smallest reliable size counts."""
        known = self.awaited.get(stream_id)
        if known is None:
            self.awaited[stream_id] = ReliableReset(code, final_size, reliable_size)
            return True
        known.reliable_size = min(known.reliable_size, reliable_size)
        return (known.code, known.final_size) == (code, final_size)

    def due(self, stream_id: int, delivered: int) -> ReliableReset | None:
        """The stream's reset, taken out, if ``delivered`` bytes are enough for it."""
        known = self.awaited.get(stream_id)
        if known is None or delivered < known.reliable_size:
            return None
        return self.awaited.pop(stream_id)
