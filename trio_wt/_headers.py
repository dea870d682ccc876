"""HTTP header fields: an immutable, case-insensitive multi-mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

__all__ = ["Headers", "HeadersLike"]

HeadersLike: TypeAlias = "Headers | Mapping[str, str] | Iterable[tuple[str, str]]"

# RFC 9110 section 5.6.2 (token) and 5.5 (field values: no controls but HTAB, no CR, LF, NUL).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?")
_SHORT = 32
# Not sys.intern: some versions of Python never free what a peer has made them intern.
_shared: dict[str, str] = {}
_MAX_SHARED = 1024


def _share(text: str) -> str:
    """The same object for equal short texts, as far as there is room."""
    if len(text) > _SHORT:
        return text
    if len(_shared) < _MAX_SHARED:
        return _shared.setdefault(text, text)
    return _shared.get(text, text)


class Headers(Mapping[str, str]):
    """Header fields in the order of the message; names compare without case.

    As a mapping it gives, per name, all values joined with ", " (RFC 9110 section 5.3). Iterating over
    `fields` gives every line as it stood. Values are Latin-1 text: one character a byte on the wire.

    Args:
        fields: another `Headers`, a mapping, or pairs of name and value.

    Raises:
        ValueError: a name that is no token, or a value with control characters (CR, LF, NUL) or
            characters outside Latin-1; so nothing that a caller passes can split a message.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: HeadersLike = ()) -> None:
        if isinstance(fields, Headers):
            self._fields: tuple[tuple[str, str], ...] = fields._fields
            return
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        checked = []
        for pair in pairs:
            name, value = pair
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid header name")
            if not _FIELD_VALUE.fullmatch(value):
                raise ValueError(
                    f"the value of header {name} has control characters, outer white space or "
                    f"characters outside Latin-1: {value!r}"
                )
            checked.append(pair if isinstance(pair, tuple) else (name, value))
        self._fields = tuple(checked)

    @classmethod
    def from_raw(cls, fields: Iterable[tuple[bytes, bytes]]) -> Headers:
        """From what an HTTP parser that already checked them gives: pairs of bytes."""
        headers = cls()
        # Thousands of idle connections have the same names and short values.
        headers._fields = tuple(
            (_share(n.decode("latin-1")), _share(text))
            for n, v in fields
            for text in (v.decode("latin-1"),)
        )
        return headers

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Every field line as (name, value), in order, repeated ones included."""
        return self._fields

    def get_all(self, name: str) -> list[str]:
        """All values of one name, in order; an empty list if there are none."""
        name = name.lower()
        return [value for key, value in self._fields if key.lower() == name]

    def tokens(self, name: str) -> list[str]:
        """The comma-separated elements of all lines of one name (RFC 9110 section 5.6.1), stripped."""
        elements = ",".join(self.get_all(name)).split(",")
        return [stripped for element in elements if (stripped := element.strip(" \t"))]

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self._fields))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._fields})

    def __add__(self, other: HeadersLike) -> Headers:
        """Both one after the other."""
        added = Headers()
        added._fields = self._fields + Headers(other)._fields
        return added

    def without(self, *names: str) -> Headers:
        """The same fields, less those with one of the names."""
        dropped = {name.lower() for name in names}
        left = Headers()
        left._fields = tuple(field for field in self._fields if field[0].lower() not in dropped)
        return left

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return [(n.lower(), v) for n, v in self._fields] == [
            (n.lower(), v) for n, v in other._fields
        ]

    def __hash__(self) -> int:
        return hash(tuple((n.lower(), v) for n, v in self._fields))

    def __repr__(self) -> str:
        return f"Headers({list(self._fields)!r})"
