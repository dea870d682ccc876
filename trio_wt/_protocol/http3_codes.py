"""Error codes of HTTP/3, QPACK and WebTransport, and how an application's codes become HTTP/3's."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "MAX_APPLICATION_CODE",
    "Http3Code",
    "Http3Error",
    "describe",
    "from_http3_code",
    "to_http3_code",
]


class Http3Code(IntEnum):
    """RFC 9114 section 8.1, RFC 9297 section 2.1, RFC 9204 section 6, draft-ietf-webtrans-http3-16 section 9.5."""

    DATAGRAM_ERROR = 0x33
    NO_ERROR = 0x100
    GENERAL_PROTOCOL_ERROR = 0x101
    INTERNAL_ERROR = 0x102
    STREAM_CREATION_ERROR = 0x103
    CLOSED_CRITICAL_STREAM = 0x104
    FRAME_UNEXPECTED = 0x105
    FRAME_ERROR = 0x106
    EXCESSIVE_LOAD = 0x107
    ID_ERROR = 0x108
    SETTINGS_ERROR = 0x109
    MISSING_SETTINGS = 0x10A
    REQUEST_REJECTED = 0x10B
    REQUEST_CANCELLED = 0x10C
    REQUEST_INCOMPLETE = 0x10D
    MESSAGE_ERROR = 0x10E
    CONNECT_ERROR = 0x10F
    VERSION_FALLBACK = 0x110
    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202
    WT_FLOW_CONTROL_ERROR = 0x045D4487
    WT_ALPN_ERROR = 0x0817B3DD
    WT_SESSION_GONE = 0x170D7B68
    WT_REQUIREMENTS_NOT_MET = 0x212C0D48
    WT_BUFFERED_STREAM_REJECTED = 0x3994BD84


class Http3Error(Exception):
    """The peer has violated HTTP/3.

    Args:
        code: the error code.
        reason: for people.

    Attributes:
        code, reason: as given.
    """

    def __init__(self, code: Http3Code, reason: str) -> None:
        super().__init__(code, reason)
        self.code: Http3Code = code
        self.reason: str = reason

    def __str__(self) -> str:
        return f"{self.reason} ({describe(self.code)})"


def describe(code: int) -> str:
    """A code by its name, as far as it has one."""
    try:
        known = Http3Code(code)
    except ValueError:
        return f"HTTP/3 error {code:#x}"
    name = known.name if known.name.startswith(("WT_", "QPACK_")) else f"H3_{known.name}"
    return f"{name} ({code:#x})"


# draft-ietf-webtrans-http3-16 section 4.4: applications have 32 bits, in a range of HTTP/3's codes that leaves out those
# reserved for GREASE, every 31st.
_FIRST: Final = 0x52E4A40FA8DB
_LAST: Final = 0x52E5AC983162
_GREASE_EVERY: Final = 0x1F
_GREASE_OFFSET: Final = 0x21
MAX_APPLICATION_CODE: Final = 2**32 - 1


def to_http3_code(code: int) -> int:
    """What an application's code, below 2^32, is in HTTP/3."""
    return _FIRST + code + code // (_GREASE_EVERY - 1)


def from_http3_code(code: int) -> int | None:
    """The application's code; None for a code that is HTTP/3's own."""
    if not _FIRST <= code <= _LAST or (code - _GREASE_OFFSET) % _GREASE_EVERY == 0:
        return None
    shifted = code - _FIRST
    return shifted - shifted // _GREASE_EVERY
