"""Frames made by hand, for tests that must send what no library would."""

from __future__ import annotations

import struct

KEY = b"\x11\x22\x33\x44"


def xor(data: bytes, key: bytes = KEY) -> bytes:
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    masked: bool,
    fin: bool = True,
    rsv: int = 0,
    length: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """One frame; ``length`` and ``length_bytes`` lie about its length, or how it is written."""
    if length is None:
        length = len(payload)
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65536 else 8
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv | opcode])
    if length_bytes == 0:
        head += bytes([bit | length])
    elif length_bytes == 2:
        head += bytes([bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", length)
    return head + (KEY + xor(payload) if masked else payload)


def close_frame(code: int, reason: str = "", *, masked: bool) -> bytes:
    return frame(8, struct.pack("!H", code) + reason.encode(), masked=masked)


def parse_frames(data: bytes) -> list[tuple[int, bytes]]:
    """(first byte, unmasked payload) of each whole frame; what is cut off is an error."""
    found = []
    while data:
        first, second = data[0], data[1]
        length, at = second & 0x7F, 2
        if length == 126:
            (length,), at = struct.unpack_from("!H", data, 2), 4
        elif length == 127:
            (length,), at = struct.unpack_from("!Q", data, 2), 10
        key = b"\0\0\0\0"
        if second & 0x80:
            key, at = data[at : at + 4], at + 4
        assert len(data) >= at + length, "a frame is cut off"
        found.append((first, xor(data[at : at + length], key)))
        data = data[at + length :]
    return found
