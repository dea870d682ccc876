"""XOR masking of payloads (RFC 6455 section 5.3): C where it was built, Python elsewhere."""

from __future__ import annotations

__all__ = ["apply_mask", "apply_mask_python"]

# Above this, translate() on the four lanes beats one big-integer XOR.
_LANES_FROM = 32768


def apply_mask_python(
    data: bytes | bytearray | memoryview,
    key: bytes,
    start: int = 0,
    stop: int = -1,
    phase: int = 0,
) -> bytes:
    """``data[start:stop]`` XORed with the 4-byte ``key``, beginning at ``key[phase % 4]``."""
    if stop < 0:
        stop = len(data)
    if len(key) != 4 or not 0 <= start <= stop <= len(data) or phase < 0:
        raise ValueError("apply_mask: key is not 4 bytes long, or range outside data")
    phase %= 4
    key = key[phase:] + key[:phase]
    length = stop - start
    if length >= _LANES_FROM:
        piece = bytearray(data[start:stop])
        for lane in range(4):
            table = bytes(byte ^ key[lane] for byte in range(256))
            piece[lane::4] = piece[lane::4].translate(table)
        return bytes(piece)
    mask = (key * (length // 4 + 1))[:length]
    number = int.from_bytes(data[start:stop], "little") ^ int.from_bytes(mask, "little")
    return number.to_bytes(length, "little")


try:
    from ._speedups import apply_mask
except ImportError:  # the extension is optional: no compiler on the machine that built us
    apply_mask = apply_mask_python  # type: ignore[assignment]
