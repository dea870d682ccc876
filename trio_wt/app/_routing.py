"""Which route a path takes: patterns with parameters, in a tree of segments.

A static segment goes before one with a parameter, a converter that takes less before one that takes more, and what stands first
in the path decides first. The order in which routes were added does not matter.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from urllib.parse import unquote

__all__ = ["CONVERTERS", "Converter", "Routes"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Converter:
    """What a parameter in a path may be.

    Args:
        pattern: a regular expression that the whole segment, percent-decoded, must match.
        convert: makes the value of it; a `ValueError` means that it is none, and the route does not match.
    """

    pattern: str
    convert: Callable[[str], Any]


#: The converters that every application has: ``{name}`` is ``{name:str}``, one segment; ``{name:path}`` takes the rest of the
#: path, slashes too.
CONVERTERS: Final[Mapping[str, Converter]] = {
    "int": Converter("[0-9]{1,18}", int),
    "float": Converter("[0-9]{1,18}([.][0-9]{1,18})?", float),
    "uuid": Converter("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", uuid.UUID),
    "str": Converter("(?s:.+)", str),
    "path": Converter("(?s:.*)", str),
}

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([A-Za-z_][A-Za-z0-9_]*))?\}")
# More than this in a path matches nothing, so that looking for it stays cheap.
_MAX_SEGMENTS: Final = 64


class _Node(Generic[T]):
    """What may follow on a part of a path."""

    __slots__ = ("converted", "rest", "static", "value")

    def __init__(self) -> None:
        self.static: dict[str, _Node[T]] = {}
        # In the order in which they are tried: the converter's rank and name, and what it is.
        self.converted: list[tuple[int, str, re.Pattern[str], Callable[[str], Any], _Node[T]]] = []
        self.rest: _Node[T] | None = None
        self.value: tuple[tuple[str, ...], T] | None = None


class Routes(Generic[T]):
    """Values by patterns of paths.

    Args:
        converters: further converters, or others for the names in `CONVERTERS`.

    Raises:
        ValueError: one has no name that a path could say, or its pattern is no regular expression.
    """

    def __init__(self, converters: Mapping[str, Converter] | None = None) -> None:
        self._converters = {**CONVERTERS, **(converters or {})}
        self._compiled = {name: _compiled(name, c) for name, c in self._converters.items()}
        own = [name for name in self._converters if name not in CONVERTERS]
        # An application's own go before `str`, which takes everything.
        ranked = ["int", "float", "uuid", *own, "str"]
        self._ranks = {name: rank for rank, name in enumerate(ranked)}
        self._root: _Node[T] = _Node()

    def add(self, pattern: str, make: Callable[[], T]) -> tuple[T, tuple[str, ...]]:
        """The value of a pattern, made if it is not there yet, and the names of the pattern's parameters.

        Raises:
            ValueError: the pattern is not valid, or has other names than an equal one that is there.
        """
        segments, names = self._parse(pattern)
        node = self._root
        for segment in segments:
            if isinstance(segment, str):
                node = node.static.setdefault(segment, _Node())
            elif segment[0] == "path":
                node.rest = node.rest or _Node()
                node = node.rest
            else:
                node = self._converted(node, segment[0])
        if node.value is None:
            node.value = (names, make())
        elif node.value[0] != names:
            raise ValueError(
                f"{pattern!r} has the parameters {', '.join(names)}; the same path is there with "
                f"{', '.join(node.value[0])}"
            )
        return node.value[1], names

    def _converted(self, node: _Node[T], name: str) -> _Node[T]:
        for _, known, _, _, child in node.converted:
            if known == name:
                return child
        child = _Node[T]()
        node.converted.append(
            (self._ranks[name], name, self._compiled[name], self._converters[name].convert, child)
        )
        node.converted.sort(key=lambda entry: entry[0])
        return child

    def _parse(self, pattern: str) -> tuple[list[str | tuple[str]], tuple[str, ...]]:
        """A pattern's segments, a parameter's as its converter's name in a tuple, and the parameters' names."""
        if not pattern.startswith("/"):
            raise ValueError(f"the path {pattern!r} must begin with /")
        segments: list[str | tuple[str]] = []
        names: list[str] = []
        parts = pattern[1:].split("/")
        for number, part in enumerate(parts):
            match = _PARAMETER.fullmatch(part)
            if match is None:
                if "{" in part or "}" in part:
                    raise ValueError(
                        f"the path {pattern!r}: {part!r} is no parameter; write {{name}} or {{name:converter}}, alone "
                        "between slashes"
                    )
                if not part.isprintable() or "?" in part or "#" in part:
                    raise ValueError(f"the path {pattern!r} has characters that no path has")
                segments.append(unquote(part))
                continue
            name, converter = match[1], match[2] or "str"
            if converter not in self._converters:
                known = ", ".join(sorted(self._converters))
                raise ValueError(
                    f"the path {pattern!r}: there is no converter {converter!r}; there are {known}"
                )
            if name in names:
                raise ValueError(f"the path {pattern!r} has the parameter {name} twice")
            if converter == "path" and number != len(parts) - 1:
                raise ValueError(f"the path {pattern!r}: a path parameter must be the last")
            names.append(name)
            segments.append((converter,))
        return segments, tuple(names)

    def match(self, raw_path: str) -> Iterator[tuple[T, dict[str, Any]]]:
        """The values whose patterns match, best first, with the parameters.

        Args:
            raw_path: a request's path as sent, percent-encoded: so a slash that is encoded separates nothing.
        """
        if not raw_path.startswith("/"):
            return
        segments = raw_path[1:].split("/")
        if len(segments) > _MAX_SEGMENTS:
            return
        decoded = [unquote(segment) for segment in segments]
        for node, values in self._walk(self._root, decoded, 0):
            if node.value is not None:
                names, value = node.value
                yield value, dict(zip(names, values, strict=True))

    def _walk(
        self, node: _Node[T], segments: list[str], at: int
    ) -> Iterator[tuple[_Node[T], tuple[Any, ...]]]:
        if at == len(segments):
            yield node, ()
            return
        segment = segments[at]
        child = node.static.get(segment)
        if child is not None:
            yield from self._walk(child, segments, at + 1)
        for _, _, pattern, convert, child in node.converted:
            for value in _values(pattern, convert, segment):
                for found, values in self._walk(child, segments, at + 1):
                    yield found, (value, *values)
        if node.rest is not None:
            convert = self._converters["path"].convert
            for value in _values(self._compiled["path"], convert, "/".join(segments[at:])):
                yield node.rest, (value,)


def _compiled(name: str, converter: Converter) -> re.Pattern[str]:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a converter")
    try:
        return re.compile(converter.pattern)
    except re.error as exc:
        raise ValueError(f"the pattern of the converter {name!r}: {exc}") from None


def _values(pattern: re.Pattern[str], convert: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    """What a parameter is, as the only element; nothing if it cannot be that."""
    if not pattern.fullmatch(text):
        return ()
    try:
        return (convert(text),)
    except ValueError:
        return ()
