"""What stands at the beginning of a stream and says what it is (RFC 9114 section 6, draft-ietf-webtrans-http3-16 section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from . import varint
from .http3_frames import FrameType

__all__ = ["StreamHead", "StreamHeadReader", "StreamType", "session_stream_head"]

_MAX_HEAD: Final = 16


class StreamType(IntEnum):
    """Kinds of streams: unidirectional ones say so, bidirectional ones are `REQUEST` or `SESSION`."""

    CONTROL = 0x00
    PUSH = 0x01
    QPACK_ENCODER = 0x02
    QPACK_DECODER = 0x03
    SESSION = 0x54
    #: of our own, outside the numbers of the wire
    REQUEST = -1
    UNKNOWN = -2


_WIRE: Final = {kind.value: kind for kind in StreamType if kind >= 0}


@dataclass(slots=True)
class StreamHead:
    """What a stream is.

    Attributes:
        kind: its kind.
        session_id: of a WebTransport session, for its streams; -1 for others.
        rest: bytes that stand behind the head.
        size: how long the head is.
    """

    kind: StreamType
    session_id: int
    rest: bytes
    size: int


class StreamHeadReader:
    """Reads the head of a stream that the peer has opened, in any chunking.

    Args:
        unidirectional: which of the two sorts the stream is of.
    """

    __slots__ = ("_data", "_unidirectional")

    def __init__(self, *, unidirectional: bool) -> None:
        self._unidirectional = unidirectional
        self._data = b""

    @property
    def held(self) -> int:
        """How many bytes have been fed so far."""
        return len(self._data)

    def feed(self, data: bytes) -> StreamHead | None:
        """What the stream is, if that can be said with these bytes."""
        if self._data:
            data = self._data + data
        first = varint.decode(data)
        if first is not None:
            kind, at = first
            if self._unidirectional:
                known = _WIRE.get(kind, StreamType.UNKNOWN)
            elif kind == FrameType.WT_STREAM:
                known = StreamType.SESSION
            else:
                # What stands there is the first frame's type.
                return StreamHead(StreamType.REQUEST, -1, data, 0)
            if known is not StreamType.SESSION:
                return StreamHead(known, -1, data[at:], at)
            session = varint.decode(data, at)
            if session is not None:
                session_id, at = session
                return StreamHead(known, session_id, data[at:], at)
        self._data = data[:_MAX_HEAD]
        return None


def session_stream_head(session_id: int, *, unidirectional: bool) -> bytes:
    """What the side that opens a stream of a session sends first (draft-ietf-webtrans-http3-16 sections 4.2 and 4.3)."""
    kind = StreamType.SESSION if unidirectional else FrameType.WT_STREAM
    return varint.encode(kind) + varint.encode(session_id)
