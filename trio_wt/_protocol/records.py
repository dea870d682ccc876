"""Records of a type, a length and a payload, as HTTP/3's frames and capsules are: in any chunking, in linear time, and without
holding more than is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

from . import varint

__all__ = ["OVERSIZE", "RecordReader", "encode_record", "encode_record_head"]

#: The type given for a record that is longer than its reader wants to hold.
OVERSIZE: Final = -1
# A type and a length.
_MAX_HEAD: Final = 16


def encode_record_head(kind: int, length: int) -> bytes:
    """What precedes a record's payload."""
    return varint.encode(kind) + varint.encode(length)


def encode_record(kind: int, payload: bytes) -> bytes:
    """A whole record."""
    return encode_record_head(kind, len(payload)) + payload


class RecordReader:
    """Takes the bytes of a stream and gives its records.

    Args:
        held: the types that are wanted whole, and how long each may be. A longer one is given as `OVERSIZE`, once, and
            skipped, as are all types that nobody wants.
        streamed: the type whose payload is given in pieces as it comes; None for no such type.

    Attributes:
        unread: how many of the bytes fed stand behind the record that was given last.
    """

    #: whether a record of the streamed type that has no payload is given too
    gives_empty: ClassVar[bool] = False

    __slots__ = ("_head", "_held", "_kind", "_left", "_payload", "_streamed", "unread")

    def __init__(self, held: Mapping[int, int], *, streamed: int | None = None) -> None:
        self._held = held
        self._streamed = streamed
        self._head = b""
        self._kind: int | None = None
        self._left = 0
        self._payload: bytearray | None = None
        self.unread: int = 0

    @property
    def is_between(self) -> bool:
        """Whether no record has been begun."""
        return self._kind is None and not self._head

    @property
    def held(self) -> int:
        """How many bytes wait for the rest of their record."""
        return len(self._head) + (0 if self._payload is None else len(self._payload))

    def check(self, kind: int) -> None:
        """Whether a record of this type may be there; subclasses raise what they like if not."""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The records, or pieces of the streamed type, that these bytes complete."""
        at = 0
        while True:
            if self._kind is None:
                begun = self._begin(data, at)
                if begun is None:
                    return
                at = begun
                if self._kind == OVERSIZE:
                    yield OVERSIZE, b""
            kind = self._kind
            assert kind is not None
            end = min(len(data), at + self._left)
            piece = data if not at and end == len(data) else data[at:end]
            self._left -= end - at
            at = end
            self.unread = len(data) - at
            whole = not self._left
            if whole:
                self._kind = None
            if self._payload is not None:
                self._payload += piece
                if whole:
                    payload, self._payload = bytes(self._payload), None
                    yield kind, payload
            elif kind == self._streamed and (piece or (whole and self.gives_empty)):
                yield kind, piece
            if not whole:
                return

    def _begin(self, data: bytes, at: int) -> int | None:
        """Read a record's type and length; where its payload begins, or None if they are not all there."""
        known = len(self._head)
        head = self._head + data[at : at + _MAX_HEAD - known]
        kind = varint.decode(head)
        length = None if kind is None else varint.decode(head, kind[1])
        if kind is None or length is None:
            self._head = head
            return None
        self._head = b""
        self.check(kind[0])
        self._kind, self._left = kind[0], length[0]
        limit = self._held.get(kind[0])
        if limit is not None:
            if length[0] > limit:
                self._kind = OVERSIZE
            else:
                self._payload = bytearray()
        return at + length[1] - known
