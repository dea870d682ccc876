"""Messages in a stream of bytes: each is its length, 4 bytes in network byte order, and then so many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_LENGTH", "FrameReader", "Oversized", "frame"]

_HEAD: Final = 4
#: what such a length can tell
MAX_LENGTH: Final = 2 ** (8 * _HEAD) - 1


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return len(message).to_bytes(_HEAD) + message


@dataclass(frozen=True, slots=True)
class Oversized:
    """In place of a message that is too large; it is dropped as it comes.

    Attributes:
        size: its length in bytes.
    """

    size: int


class FrameReader:
    """Finds the messages in what arrives.

    It holds one message at most, and the rest of what came with it.

    Args:
        max_size: the most bytes that a message may have.
    """

    __slots__ = ("_buffer", "_dropped", "_max_size", "_skip")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        # Of a message that is too large: what is still to come, and what has come.
        self._skip = 0
        self._dropped = 0

    @property
    def buffered(self) -> int:
        """How many bytes are held."""
        return len(self._buffer)

    @property
    def incomplete(self) -> int:
        """Once `take` has given all messages: how many bytes of another have come."""
        return self._dropped if self._skip else len(self._buffer)

    def feed(self, data: bytes | bytearray) -> None:
        """Bytes have come."""
        if self._skip:
            count = min(self._skip, len(data))
            self._skip -= count
            self._dropped += count
            data = data[count:]
        self._buffer += data

    def take(self) -> bytes | Oversized | None:
        """The next message; None if it has not come yet. That one is too large is told when its length has come."""
        buffer = self._buffer
        if len(buffer) < _HEAD:
            return None
        size = int.from_bytes(buffer[:_HEAD])
        end = _HEAD + size
        if size > self._max_size:
            self._dropped = min(end, len(buffer))
            self._skip = end - self._dropped
            del buffer[: self._dropped]
            return Oversized(size)
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view, view[_HEAD:end] as part:
            message = bytes(part)
        del buffer[:end]
        return message
