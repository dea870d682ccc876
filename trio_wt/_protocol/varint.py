"""QUIC's variable-length integers (RFC 9000 section 16)."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_VARINT", "decode", "encode"]

MAX_VARINT: Final = 2**62 - 1


def encode(value: int) -> bytes:
    """The shortest encoding of a number below 2^62."""
    if value < 0x40:
        return value.to_bytes(1)
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2)
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4)
    if value > MAX_VARINT:
        raise OverflowError(f"{value} is not below 2^62")
    return (value | 0xC000_0000_0000_0000).to_bytes(8)


def decode(data: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int] | None:
    """The number at an offset, and the offset behind it; None if it is not all there."""
    if at >= len(data):
        return None
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        return None
    return int.from_bytes(data[at:end]) & ((1 << (8 * size - 2)) - 1), end
