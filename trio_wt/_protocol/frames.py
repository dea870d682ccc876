"""WebSocket frames and close codes (RFC 6455 sections 5.2, 5.5 and 7.4)."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final

from .masking import apply_mask

__all__ = [
    "CLOSE_REASON_MAX",
    "CONTROL_PAYLOAD_MAX",
    "FIN",
    "RSV",
    "CloseCode",
    "MaskingKeys",
    "Opcode",
    "close_payload",
    "encode_frame",
    "frame_header",
    "is_valid_close_code",
    "parse_close_payload",
]

FIN: Final = 0x80
RSV: Final = 0x70

CONTROL_PAYLOAD_MAX: Final = 125  # RFC 6455 section 5.5
CLOSE_REASON_MAX: Final = 123

# From here on a header and its payload travel as two pieces: a copy would cost more than a second
# element of sendmsg().
_SEPARATE_FROM: Final = 16384


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """RFC 6455 section 7.4.1 and the registry of section 11.7."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


def is_valid_close_code(code: int) -> bool:
    """Whether a Close frame may carry this code (RFC 6455 section 7.4, and 1012-1014 registered since)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class MaskingKeys:
    """Masking keys from the system's entropy (RFC 6455 section 10.3), drawn in bulk."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def next(self) -> bytes:
        at = self._at
        if at >= len(self._pool):
            # 64 keys: one system call for many frames, and little memory per connection.
            self._pool = os.urandom(256)
            at = 0
        self._at = at + 4
        return self._pool[at : at + 4]


_pack_short = struct.Struct("!BB").pack
_pack_medium = struct.Struct("!BBH").pack
_pack_long = struct.Struct("!BBQ").pack


def frame_header(first_byte: int, length: int, mask_bit: int) -> bytes:
    """The first 2, 4 or 10 bytes of a frame; the masking key, if any, follows them."""
    if length < 126:
        return _pack_short(first_byte, mask_bit | length)
    if length < 65536:
        return _pack_medium(first_byte, mask_bit | 126, length)
    return _pack_long(first_byte, mask_bit | 127, length)


def encode_frame(first_byte: int, payload: bytes, keys: MaskingKeys | None) -> list[bytes]:
    """One frame as the pieces to send, in order.

    Args:
        first_byte: FIN, RSV1-3 and the opcode, as on the wire.
        payload: the payload, not masked; it is not copied where that can be avoided.
        keys: where a client takes its masking keys from; None for a server.
    """
    length = len(payload)
    if keys is None:
        header = frame_header(first_byte, length, 0)
    else:
        key = keys.next()
        header = frame_header(first_byte, length, 0x80) + key
        payload = apply_mask(payload, key)
    if length < _SEPARATE_FROM:
        return [header + payload]
    return [header, payload]


def close_payload(code: int, reason: str) -> bytes:
    """The payload of a Close frame.

    Args:
        code: the close code; 1005 ("no status") stands for a frame without one.
        reason: why, for people.

    Raises:
        ValueError: the code must not be on the wire (RFC 6455 section 7.4), or the reason has more than 123
            bytes, has CR or LF, or comes without a code.
    """
    text = reason.encode()
    if code == CloseCode.NO_STATUS and not text:
        return b""
    if not is_valid_close_code(code):
        raise ValueError(f"{code} is not a close code that may be sent: use 1000 or 3000 to 4999")
    if len(text) > CLOSE_REASON_MAX:
        raise ValueError(f"a close reason has at most {CLOSE_REASON_MAX} bytes, not {len(text)}")
    if "\r" in reason or "\n" in reason:
        raise ValueError("a close reason must not have line breaks")
    return code.to_bytes(2, "big") + text


def parse_close_payload(payload: bytes) -> tuple[int, str]:
    """Code and reason of a Close frame.

    Raises:
        ValueError: one byte only, or a code that must not be on the wire (RFC 6455 section 7.4.1).
        UnicodeDecodeError: the reason is not UTF-8 (section 7.1.6).
    """
    if not payload:
        return CloseCode.NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not is_valid_close_code(code):
        raise ValueError("invalid close code")
    return code, payload[2:].decode("utf-8")
