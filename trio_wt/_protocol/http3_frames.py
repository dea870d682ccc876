"""HTTP/3 frames (RFC 9114 section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final

from .http3_codes import Http3Code, Http3Error
from .records import RecordReader

__all__ = ["FrameReader", "FrameType"]


class FrameType(IntEnum):
    """RFC 9114 section 7.2, RFC 9218 section 7.2, draft-ietf-webtrans-http3-16 section 4.3."""

    DATA = 0x00
    HEADERS = 0x01
    CANCEL_PUSH = 0x03
    SETTINGS = 0x04
    PUSH_PROMISE = 0x05
    GOAWAY = 0x07
    MAX_PUSH_ID = 0x0D
    WT_STREAM = 0x41
    PRIORITY_UPDATE = 0xF0700
    PRIORITY_UPDATE_PUSH = 0xF0701


_KNOWN: Final = set(FrameType)
# HTTP/2 frames that have no place here (RFC 9114 section 7.2.8).
_RESERVED: Final = {0x02, 0x06, 0x08, 0x09}


class FrameReader(RecordReader):
    """Takes the bytes of a stream and gives its frames, the payload of DATA in pieces.

    Args:
        held: the kinds of frames that may be there, and how long each may be; kinds that nobody knows are skipped.
        takes_data: whether DATA may be there too.
    """

    gives_empty: ClassVar[bool] = True

    __slots__ = ()

    def __init__(self, held: Mapping[int, int], *, takes_data: bool) -> None:
        super().__init__(held, streamed=FrameType.DATA if takes_data else None)

    def check(self, kind: int) -> None:
        """Raise `Http3Error` for a frame that must not be there."""
        if kind in _RESERVED:
            raise Http3Error(Http3Code.FRAME_UNEXPECTED, f"a frame of HTTP/2 (type {kind:#x})")
        if kind == FrameType.WT_STREAM:
            raise Http3Error(
                Http3Code.FRAME_ERROR, "WT_STREAM anywhere but at the start of a stream"
            )
        if kind in _KNOWN and kind != self._streamed and kind not in self._held:
            name = FrameType(kind).name
            raise Http3Error(Http3Code.FRAME_UNEXPECTED, f"{name} on a stream of another kind")
