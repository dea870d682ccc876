"""Ordinary 1-RTT packets, taken apart and put together: in C where it was built, in Python elsewhere.

There is no state here, and there are no keys: those come as functions. What is out of the ordinary gets None, and the
caller's general way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aioquic.buffer import Buffer, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.packet import decode_packet_number

__all__ = [
    "open_packet",
    "open_packet_python",
    "read_frames",
    "read_frames_python",
    "seal_packet",
    "seal_packet_python",
]

#: Gives the mask of header protection for a sample (RFC 9001 section 5.4.1), of which five bytes count.
Mask: TypeAlias = Callable[[bytes], bytes]
#: Encrypts or decrypts: gets the nonce, the payload and the header.
Crypt: TypeAlias = Callable[[bytes, bytes, bytes], bytes]
#: Its type first, and where its body begins; then for STREAM its id, offset and data, for ACK of one range the smallest
#: and the largest number and the delay as on the wire, and for DATAGRAM the size of its body and its data.
Frame: TypeAlias = tuple[Any, ...]
#: Bytes as they are, a DATAGRAM's data, or of a STREAM its id, offset, FIN, and its data as a range of a buffer.
Outgoing: TypeAlias = bytes | tuple[bytes] | tuple[int, int, bool, bytes | bytearray, int, int]

_PROTECTED: Final = 0x1F  # bits of the first byte of a short header
# The sample of header protection begins four bytes after the packet number does (RFC 9001 section 5.4.2).
_SAMPLE_AT: Final = 4
_SAMPLE: Final = 16
_NUMBER: Final = 2  # bytes of a packet number that is sent
_PADDING: Final = 0x00
_PING: Final = 0x01
_ACK: Final = 0x02
_STREAM: Final = range(0x08, 0x10)
_FIN: Final = 0x01
_LENGTH: Final = 0x02
_OFFSET: Final = 0x04
_DATAGRAM: Final = 0x30
_DATAGRAM_WITH_LENGTH: Final = 0x31
_MAX_STREAM_DATA: Final = 0x3FFF


def open_packet_python(
    data: bytes,
    cid_length: int,
    key_phase: int,
    expected: int,
    mask: Mask,
    decrypt: Crypt,
    iv: bytes,
) -> tuple[int, int, bytes] | None:
    """Open a packet with a short header (RFC 9001 section 5.4).

    Args:
        data: the packet.
        cid_length: how long its connection id is.
        key_phase: what ``decrypt`` is for.
        expected: the packet number to expect (RFC 9000 appendix A.3).
        mask: of header protection.
        decrypt: of packet protection.
        iv: 12 bytes, which make a nonce with the packet number.

    Returns:
        the first byte, the packet number and the payload; None if it is too short, or of the other key phase.

    Raises:
        Exception: what ``decrypt`` raises for what is damaged.
    """
    start = 1 + cid_length
    sample = data[start + _SAMPLE_AT : start + _SAMPLE_AT + _SAMPLE]
    if len(sample) < _SAMPLE:
        return None
    bits = mask(sample)
    first = data[0] ^ bits[0] & _PROTECTED
    if (first >> 2 & 1) != key_phase:
        return None
    length = (first & 3) + 1
    end = start + length
    truncated = int.from_bytes(data[start:end]) ^ int.from_bytes(bits[1 : 1 + length])
    number = decode_packet_number(truncated, 8 * length, expected)
    header = bytes((first,)) + data[1:start] + truncated.to_bytes(length)
    return first, number, decrypt(_nonce(iv, number), data[end:], header)


def seal_packet_python(
    first: int,
    cid: bytes,
    number: int,
    frames: tuple[Outgoing, ...],
    mask: Mask,
    encrypt: Crypt,
    iv: bytes,
) -> bytes:
    """A protected packet with a short header, padded where it is too short for a sample.

    Args:
        first: the first byte, unprotected.
        cid: the peer's connection id.
        number: the packet number, of which two bytes are sent.
        frames: what is in it.
        mask: of header protection.
        encrypt: of packet protection.
        iv: 12 bytes, which make a nonce with the packet number.

    Raises:
        ValueError: a number, or a range, is out of range.
    """
    payload = b"".join(map(_encode, frames)).ljust(_SAMPLE_AT - _NUMBER, b"\0")
    truncated = number & 0xFFFF
    sealed = encrypt(
        _nonce(iv, number), payload, bytes((first,)) + cid + truncated.to_bytes(_NUMBER)
    )
    at = _SAMPLE_AT - _NUMBER
    bits = mask(sealed[at : at + _SAMPLE])
    masked = truncated ^ (bits[1] << 8 | bits[2])
    return bytes((first ^ bits[0] & _PROTECTED,)) + cid + masked.to_bytes(_NUMBER) + sealed


def _nonce(iv: bytes, number: int) -> bytes:
    return (int.from_bytes(iv) ^ number).to_bytes(len(iv))


def _encode(frame: Outgoing) -> bytes:
    if isinstance(frame, bytes):
        return frame
    if len(frame) == 1:
        (data,) = frame
        buf = Buffer(capacity=1 + size_uint_var(len(data)) + len(data))
        buf.push_uint_var(_DATAGRAM_WITH_LENGTH)
        buf.push_uint_var(len(data))
        buf.push_bytes(data)
        return buf.data
    stream_id, offset, fin, buffer, start, stop = frame
    length = stop - start
    if not (0 <= start <= stop <= len(buffer) and length <= _MAX_STREAM_DATA):
        raise ValueError("the data of a STREAM frame is out of range")
    buf = Buffer(capacity=19 + length)
    buf.push_uint_var(_STREAM.start | _LENGTH | bool(offset) << 2 | fin)
    buf.push_uint_var(stream_id)
    if offset:
        buf.push_uint_var(offset)
    buf.push_uint16(length | 0x4000)
    buf.push_bytes(bytes(memoryview(buffer)[start:stop]))
    return buf.data


def read_frames_python(payload: bytes) -> tuple[list[Frame], bool] | None:
    """The frames of a packet, less PADDING and PING, and whether it asks for an acknowledgement.

    None if one of them is not ordinary, or not whole, or if there is none at all.
    """
    frames: list[Frame] = []
    eliciting = False
    if not payload:
        return None
    buf = Buffer(data=payload)
    try:
        while not buf.eof():
            kind = buf.pull_uint8()
            at = buf.tell()
            if kind in _STREAM:
                stream_id = buf.pull_uint_var()
                offset = buf.pull_uint_var() if kind & _OFFSET else 0
                data = _take(buf, has_length=bool(kind & _LENGTH))
                frames.append((kind, at, stream_id, offset, data))
            elif kind == _ACK:
                largest, delay, ranges, first = (buf.pull_uint_var() for _ in range(4))
                if ranges or first > largest:
                    return None
                frames.append((kind, at, largest - first, largest, delay))
            elif kind in (_DATAGRAM, _DATAGRAM_WITH_LENGTH):
                data = _take(buf, has_length=kind == _DATAGRAM_WITH_LENGTH)
                frames.append((kind, at, buf.tell() - at, data))
            elif kind not in (_PADDING, _PING):
                return None
            eliciting = eliciting or kind not in (_PADDING, _ACK)
    except ValueError:  # BufferReadError, that is
        return None
    return frames, eliciting


def _take(buf: Buffer, *, has_length: bool) -> bytes:
    length = buf.pull_uint_var() if has_length else buf.capacity - buf.tell()
    data: bytes = buf.pull_bytes(length)
    return data


try:
    from ._packets import open_packet, read_frames, seal_packet
except ImportError:  # the extension is optional: no compiler on the machine that built us
    open_packet = open_packet_python
    read_frames = read_frames_python
    seal_packet = seal_packet_python
