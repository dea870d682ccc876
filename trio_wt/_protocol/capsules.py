"""Capsules (RFC 9297 section 3.2): what a session says on its own stream."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from . import varint
from .records import RecordReader, encode_record

__all__ = [
    "MAX_REASON",
    "CapsuleType",
    "capsule_reader",
    "encode_close",
    "encode_drain",
    "encode_number",
    "parse_close",
    "parse_number",
]

#: The longest reason of a close, in bytes of UTF-8.
MAX_REASON: Final = 1024
_MAX_DATAGRAM: Final = 65536
_MAX_NUMBER: Final = 8
_CODE: Final = 4


class CapsuleType(IntEnum):
    """RFC 9297 section 3.5, draft-ietf-webtrans-http3-16 sections 5.6 and 6."""

    DATAGRAM = 0x00
    CLOSE_SESSION = 0x2843
    DRAIN_SESSION = 0x78AE
    MAX_DATA = 0x190B4D3D
    MAX_STREAM_DATA = 0x190B4D3E
    MAX_STREAMS_BIDI = 0x190B4D3F
    MAX_STREAMS_UNI = 0x190B4D40
    DATA_BLOCKED = 0x190B4D41
    STREAM_DATA_BLOCKED = 0x190B4D42
    STREAMS_BLOCKED_BIDI = 0x190B4D43
    STREAMS_BLOCKED_UNI = 0x190B4D44


_HELD: Final[dict[int, int]] = {
    **dict.fromkeys(CapsuleType, _MAX_NUMBER),
    CapsuleType.DATAGRAM: _MAX_DATAGRAM,
    CapsuleType.CLOSE_SESSION: _CODE + MAX_REASON,
    CapsuleType.DRAIN_SESSION: 0,
}


def capsule_reader() -> RecordReader:
    """A reader of the capsules that have a meaning here, all others skipped."""
    return RecordReader(_HELD)


def encode_close(code: int, reason: str) -> bytes:
    """CLOSE_SESSION; the reason is cut to 1024 bytes of UTF-8."""
    cut = reason.encode(errors="replace")[:MAX_REASON].decode(errors="ignore").encode()
    return encode_record(CapsuleType.CLOSE_SESSION, code.to_bytes(_CODE) + cut)


def parse_close(payload: bytes) -> tuple[int, str] | None:
    """A close's code and reason; None if it is too short, or the reason is not UTF-8."""
    if len(payload) < _CODE:
        return None
    try:
        return int.from_bytes(payload[:_CODE]), payload[_CODE:].decode()
    except UnicodeDecodeError:
        return None


def encode_drain() -> bytes:
    """DRAIN_SESSION."""
    return encode_record(CapsuleType.DRAIN_SESSION, b"")


def encode_number(kind: CapsuleType, number: int) -> bytes:
    """One of the capsules that consist of a number."""
    return encode_record(kind, varint.encode(number))


def parse_number(payload: bytes) -> int | None:
    """The number of such a capsule; None if it is no number."""
    number = varint.decode(payload)
    return number[0] if number is not None and number[1] == len(payload) else None
