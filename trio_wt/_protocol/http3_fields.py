"""Field sections: QPACK without a dynamic table (RFC 9204), and what makes a message well formed (RFC 9114 sections 4.2 and 4.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pylsqpack

from .http3_codes import Http3Code, Http3Error

__all__ = [
    "CONNECTION_SPECIFIC",
    "DecoderInstructions",
    "EncoderInstructions",
    "Fields",
    "MalformedMessage",
    "Qpack",
    "RequestHead",
    "ResponseHead",
    "TooManyFields",
    "content_length",
    "parse_request",
    "parse_response",
    "parse_trailers",
]

Fields = list[tuple[bytes, bytes]]

# What a line costs beside its name and value (RFC 9114 section 4.2.2).
_LINE_COST: Final = 32
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_TARGET: Final = re.compile(rb"[!-~]+")
#: Fields that HTTP/1.1 has for a connection, and HTTP/3 has not (RFC 9114 section 4.2).
CONNECTION_SPECIFIC: Final = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}


class MalformedMessage(Exception):
    """A message that must not be processed (RFC 9114 section 4.1.2); it costs its stream only.

    Args:
        reason: for people.
        content: what of its content came before that showed.
    """

    def __init__(self, reason: str, content: bytes = b"") -> None:
        super().__init__(reason)
        self.content: bytes = content


class TooManyFields(Exception):
    """A field section that is larger than we want to read."""


# In the second byte of a section: the sign of its base, and the prefix of a base that is larger than the byte.
_SIGN: Final = 0x80
_MORE: Final = 0x7F
# What a Huffman code can make more than 65535 bytes of, which pylsqpack does not take: five bits are a byte at the least.
_LONGEST_CODED: Final = 65535 * 5 // 8
# Without a dynamic table they have no state, and all connections may share them.
_encoder = pylsqpack.Encoder()
_decoder = pylsqpack.Decoder(0, 0)


class Qpack:
    """Encodes and decodes field sections, with no dynamic table on either side.

    Args:
        max_size: the most that a section may have, in bytes as RFC 9114 section 4.2.2 counts them.
        max_fields: how many lines it may have.
    """

    __slots__ = ("_max_fields", "_max_size")

    def __init__(self, max_size: int, max_fields: int) -> None:
        self._max_size = max_size
        self._max_fields = max_fields

    def encode(self, fields: Fields) -> bytes:
        """A field section."""
        _, section = _encoder.encode(0, fields)
        return section

    def decode(self, section: bytes) -> Fields:
        """The lines of a field section.

        Raises:
            TooManyFields: there are too many, or they are too large.
            Http3Error: it is not valid.
        """
        global _decoder
        lines = _count_lines(section, self._max_fields)
        if lines > self._max_fields:
            raise TooManyFields(f"more than {self._max_fields} fields")
        if len(section) > 1 and not section[0] and section[1] & _SIGN:
            # A base below 0 (RFC 9204 section 4.5.1.2).
            raise Http3Error(Http3Code.QPACK_DECOMPRESSION_FAILED, "a base below 0")
        if len(section) == 2 and not section[0] and section[1] < _MORE:
            return []  # which pylsqpack does not take
        try:
            _, fields = _decoder.feed_header(0, section)
        except (pylsqpack.DecompressionFailed, pylsqpack.StreamBlocked) as exc:
            # Whatever it has kept of this one.
            _decoder = pylsqpack.Decoder(0, 0)
            if len(section) > _LONGEST_CODED:
                raise TooManyFields("a value of more than 65535 bytes, perhaps") from None
            raise Http3Error(
                Http3Code.QPACK_DECOMPRESSION_FAILED, "a field section that cannot be read"
            ) from exc
        if sum(len(name) + len(value) + _LINE_COST for name, value in fields) > self._max_size:
            raise TooManyFields(f"fields of more than {self._max_size} bytes")
        return fields


class EncoderInstructions:
    """Reads the peer's encoder stream, which has nothing to say to a decoder without a table (RFC 9204 section 4.3)."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        """Take bytes in.

        Raises:
            Http3Error: they say something.
        """
        # Only "Set Dynamic Table Capacity" to 0 is of no effect.
        if data.strip(_CAPACITY_0):
            raise Http3Error(
                Http3Code.QPACK_ENCODER_STREAM_ERROR, "a dynamic table that was not offered"
            )


class DecoderInstructions:
    """Reads the peer's decoder stream, which may cancel streams, and has nothing else to say (RFC 9204 section 4.4)."""

    __slots__ = ("_cancelling",)

    def __init__(self) -> None:
        # In the middle of a stream's number.
        self._cancelling = False

    def feed(self, data: bytes) -> None:
        """Take bytes in.

        Raises:
            Http3Error: they acknowledge what was never sent.
        """
        for byte in data:
            if self._cancelling:
                self._cancelling = bool(byte & 0x80)
            elif byte & 0xC0 == _CANCELLATION:
                self._cancelling = byte & _CANCELLED == _CANCELLED
            else:
                raise Http3Error(
                    Http3Code.QPACK_DECODER_STREAM_ERROR, "an acknowledgement of nothing"
                )


_CAPACITY_0: Final = b"\x20"
_CANCELLATION: Final = 0x40
_CANCELLED: Final = 0x3F


def _count_lines(section: bytes, most: int) -> int:
    """How many lines a section has, as far as ``most`` and one more; a guess where it is not valid.

    A byte is enough for a line, so a small section would make a thousandfold of objects.
    """
    at = _skip_integer(section, _skip_integer(section, 0, 8), 7)
    count = 0
    while at < len(section) and count <= most:
        first = section[at]
        count += 1
        if first & 0x80:  # indexed
            at = _skip_integer(section, at, 6)
        elif first & 0x40:  # literal with a name of the table
            at = _skip_string(section, _skip_integer(section, at, 4), 7)
        elif first & 0x20:  # literal
            at = _skip_string(section, _skip_string(section, at, 3), 7)
        elif first & 0x10:  # indexed behind the base
            at = _skip_integer(section, at, 4)
        else:  # literal with a name behind the base
            at = _skip_string(section, _skip_integer(section, at, 3), 7)
    return count


def _integer(section: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer with a prefix (RFC 7541 section 5.1), and the offset behind it."""
    if at >= len(section):
        return 0, at
    mask = (1 << bits) - 1
    value = section[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while at < len(section) and shift < 64:
        value += (section[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not section[at - 1] & 0x80:
            break
    return value, at


def _skip_integer(section: bytes, at: int, bits: int) -> int:
    return _integer(section, at, bits)[1]


def _skip_string(section: bytes, at: int, bits: int) -> int:
    length, at = _integer(section, at, bits)
    return at + length


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's control data and its other fields.

    Attributes:
        method, scheme, authority, path: as sent; the last three are "" where they may be absent.
        protocol: what an extended CONNECT asks for (RFC 9220 section 3); None for any other request.
        fields: the fields.
    """

    method: str
    scheme: str
    authority: str
    path: str
    protocol: str | None
    fields: Fields


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's status and its fields."""

    status: int
    fields: Fields


def _split(fields: Fields, allowed: Iterable[bytes]) -> tuple[dict[bytes, bytes], Fields]:
    """Pseudo-header fields and the others.

    Raises:
        MalformedMessage: a line that must not be there.
    """
    pseudo: dict[bytes, bytes] = {}
    others: Fields = []
    for name, value in fields:
        if name.startswith(b":"):
            if others or name in pseudo or name not in allowed:
                raise MalformedMessage("a pseudo-header field that must not be there")
            pseudo[name] = value
        else:
            if not _NAME.fullmatch(name):
                raise MalformedMessage("a field name that is not valid")
            if name in CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
                raise MalformedMessage("a field of HTTP/1.1's connections")
            others.append((name, value))
        if not _VALUE.fullmatch(value):
            raise MalformedMessage("a field value that is not valid")
    return pseudo, others


_REQUEST_PSEUDO: Final = {b":method", b":scheme", b":authority", b":path", b":protocol"}


def parse_request(fields: Fields) -> RequestHead:
    """RFC 9114 section 4.3.1, RFC 9220 section 3.

    Raises:
        MalformedMessage: it is none.
    """
    pseudo, others = _split(fields, _REQUEST_PSEUDO)
    method = pseudo.get(b":method", b"")
    scheme = pseudo.get(b":scheme", b"")
    path = pseudo.get(b":path", b"")
    protocol = pseudo.get(b":protocol")
    hosts = [value for name, value in others if name == b"host"]
    authority = pseudo.get(b":authority")
    if not _NAME.fullmatch(method.lower()):
        raise MalformedMessage("a method that is not valid")
    if protocol is not None and (method != b"CONNECT" or not _TARGET.fullmatch(protocol)):
        raise MalformedMessage("a :protocol that must not be there, or is none")
    if method == b"CONNECT" and protocol is None:
        if b":scheme" in pseudo or b":path" in pseudo or not authority:
            raise MalformedMessage("CONNECT has an authority and nothing else")
    elif not scheme or not (path.startswith(b"/") or (path == b"*" and method == b"OPTIONS")):
        raise MalformedMessage(":scheme and :path must be there")
    if path and not _TARGET.fullmatch(path):
        raise MalformedMessage("a path that is not valid")
    if len(hosts) > 1 or (hosts and authority is not None and hosts[0] != authority):
        raise MalformedMessage("Host and :authority differ")
    if authority is None:
        authority = hosts[0] if hosts else b""
    if not authority or not _TARGET.fullmatch(authority) or b"@" in authority:
        raise MalformedMessage("an authority that is not valid")
    if not _TARGET.fullmatch(scheme or b"-"):
        raise MalformedMessage("a scheme that is not valid")
    return RequestHead(
        method.decode("latin-1"),
        scheme.decode("latin-1"),
        authority.decode("latin-1"),
        path.decode("latin-1"),
        None if protocol is None else protocol.decode("latin-1"),
        others,
    )


def parse_response(fields: Fields) -> ResponseHead:
    """RFC 9114 section 4.3.2.

    Raises:
        MalformedMessage: it is none.
    """
    pseudo, others = _split(fields, (b":status",))
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 599:
        raise MalformedMessage("a status that is not valid")
    if status == b"101":
        raise MalformedMessage("status 101, which HTTP/3 does not have")
    return ResponseHead(int(status), others)


def parse_trailers(fields: Fields) -> Fields:
    """RFC 9114 section 4.3.

    Raises:
        MalformedMessage: they are none.
    """
    return _split(fields, ())[1]


def content_length(fields: Sequence[tuple[bytes, bytes]]) -> int | None:
    """How long a message's content says that it is; None if it does not.

    Raises:
        MalformedMessage: it says several things, or nothing that makes sense.
    """
    values = {value for name, value in fields if name == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit() or len(value) > 18:
        raise MalformedMessage("a Content-Length that is not valid")
    return int(value)
