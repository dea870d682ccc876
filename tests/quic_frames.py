"""QUIC frames as bytes, and bytes as frames (RFC 9000 section 19)."""

from __future__ import annotations

from typing import Any

from aioquic.buffer import Buffer


def varint(value: int) -> bytes:
    for bits, size in ((0, 1), (1, 2), (2, 4), (3, 8)):
        if value < 1 << (8 * size - 2):
            return (value | bits << (8 * size - 2)).to_bytes(size)
    raise ValueError(value)


def frame(*fields: int | bytes) -> bytes:
    """A frame of integers and bytes."""
    return b"".join(field if isinstance(field, bytes) else varint(field) for field in fields)


def stream_frame(stream_id: int, offset: int, data: bytes, *, fin: bool = False) -> bytes:
    return frame(0x0E | fin, stream_id, offset, len(data), data)


def ack_frame(largest: int, *, first_range: int = 0) -> bytes:
    return frame(0x02, largest, 0, 0, first_range)


def crypto_frame(offset: int, data: bytes) -> bytes:
    return frame(0x06, offset, len(data), data)


def reset_at_frame(stream_id: int, code: int, final_size: int, reliable_size: int) -> bytes:
    return frame(0x24, stream_id, code, final_size, reliable_size)


# How many integers follow the type of those frames that have nothing else.
_PLAIN_FRAMES = {
    0x01: 0, 0x04: 3, 0x05: 2, 0x10: 1, 0x11: 2, 0x12: 1, 0x13: 1,
    0x14: 1, 0x15: 2, 0x16: 1, 0x17: 1, 0x19: 1, 0x1E: 0, 0x24: 4,
}  # fmt: skip


def parse_frames(payload: bytes) -> list[tuple[Any, ...]]:
    """The frames of a packet: the type and what follows; STREAM is (8, id, offset, data, fin), PADDING is left out."""
    buf = Buffer(data=payload)
    frames: list[tuple[Any, ...]] = []
    pull = buf.pull_uint_var
    while not buf.eof():
        kind = pull()
        if kind == 0:
            continue
        if kind in _PLAIN_FRAMES:
            frames.append((kind, *(pull() for _ in range(_PLAIN_FRAMES[kind]))))
        elif kind in (2, 3):
            largest, _, count, first = pull(), pull(), pull(), pull()
            rest = [(pull(), pull()) for _ in range(count)]
            frames.append((2, largest, first, rest))
        elif 0x08 <= kind <= 0x0F:
            stream_id, offset = pull(), pull() if kind & 4 else 0
            length = pull() if kind & 2 else buf.capacity - buf.tell()
            frames.append((8, stream_id, offset, buf.pull_bytes(length), bool(kind & 1)))
        elif kind == 0x06:
            frames.append((kind, pull(), buf.pull_bytes(pull())))
        elif kind == 0x18:
            sequence, prior = pull(), pull()
            cid = buf.pull_bytes(buf.pull_uint8())
            frames.append((kind, sequence, prior, cid, buf.pull_bytes(16)))
        elif kind in (0x1A, 0x1B):
            frames.append((kind, buf.pull_bytes(8)))
        elif kind == 0x1C:
            frames.append((kind, pull(), pull(), buf.pull_bytes(pull())))
        elif kind == 0x1D:
            frames.append((kind, pull(), buf.pull_bytes(pull())))
        elif kind in (0x30, 0x31):
            length = pull() if kind & 1 else buf.capacity - buf.tell()
            frames.append((0x30, buf.pull_bytes(length)))
        else:
            raise AssertionError(f"frame type {kind:#x}")
    return frames
