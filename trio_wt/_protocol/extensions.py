"""The interface of WebSocket extensions (RFC 6455 section 9) and their negotiation.

An `Extension` is configuration and serves any number of connections; what it agrees on with a peer is an
`ExtensionCodec`, which lives as long as its connection. `Deflate` is one like any other.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, TypeAlias

__all__ = [
    "Extension",
    "ExtensionCodec",
    "ExtensionError",
    "Parameters",
    "agree_as_client",
    "agree_as_server",
    "format_extension",
    "parse_extensions",
]

#: Parameters in order; repeated names stay, since whether they are an error is the extension's to say.
Parameters: TypeAlias = "Sequence[tuple[str, str | None]]"


class ExtensionError(Exception):
    """Negotiation or decoding failed; the message says why."""


class ExtensionCodec(ABC):
    """What one connection agreed on: it transforms the payloads of data messages.

    Attributes:
        name: the extension's registered token.
        rsv: the reserved bits it uses in the first frame of a message, as on the wire: RSV1 is 0x40, RSV2
            0x20, RSV3 0x10.
        response: the parameters as agreed, the way the response carries them.
    """

    name: ClassVar[str]
    rsv: ClassVar[int]
    response: Parameters

    @abstractmethod
    def encode(
        self, data: bytes, *, first: bool, final: bool, wanted: bool | None
    ) -> tuple[bytes, bool]:
        """Transform one fragment to send.

        Args:
            data: the fragment's payload.
            first: whether it begins a message.
            final: whether it ends one.
            wanted: the application's wish for this message: True, False, or None for the codec's policy.
                It is the same for all fragments of a message.

        Returns:
            the payload to send, and whether this message is transformed at all (which sets `rsv` in its first
            frame); that must be the same for all fragments of a message.
        """

    @abstractmethod
    def decode(self, data: bytes, *, final: bool, max_length: int | None) -> bytes:
        """Transform back a piece of a message whose first frame had `rsv` set.

        Args:
            data: the next piece, cut anywhere; at most 1 KiB as it came, and whatever an extension before this one
                made of that.
            final: whether the message ends with it.
            max_length: how many bytes may come out; None for no limit, also where another extension comes next.

        Returns:
            the bytes that came out; more than ``max_length`` means the message is too big, and the codec is not
            called again.

        Raises:
            ExtensionError: the data are not what a peer may send (close code 1007).
        """


class Extension(ABC):
    """An extension this side is willing to use (RFC 6455 section 9.1).

    Attributes:
        name: the registered token, such as ``permessage-deflate``.
    """

    name: ClassVar[str]

    @abstractmethod
    def offer(self) -> Sequence[Parameters]:
        """The client's offers, best first (usually one)."""

    @abstractmethod
    def confirm(self, response: Parameters) -> ExtensionCodec:
        """The client's codec for the server's response.

        Raises:
            ExtensionError: the response does not fit what was offered; the handshake fails.
        """

    @abstractmethod
    def accept(self, offer: Parameters) -> ExtensionCodec | None:
        """The server's codec for one offer, or None to decline it."""


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rf"\s*;\s*(?P<name>{_TOKEN})(?:\s*=\s*(?:(?P<token>{_TOKEN})|\"(?P<quoted>(?:[^\"\\]|\\.)*)\"))?"
)
_EXTENSION = re.compile(rf"\s*(?P<name>{_TOKEN})")
_SEPARATOR = re.compile(r"\s*(?:,|$)")


def parse_extensions(value: str) -> list[tuple[str, Parameters]]:
    """Parse a Sec-WebSocket-Extensions value (RFC 6455 section 9.1).

    Raises:
        ValueError: the value does not follow the grammar.
    """
    found: list[tuple[str, Parameters]] = []
    at = 0
    while at < len(value):
        if separator := re.compile(r"[\s,]+").match(
            value, at
        ):  # empty list elements (RFC 9110 section 5.6.1)
            at = separator.end()
            continue
        match = _EXTENSION.match(value, at)
        if match is None:
            raise ValueError(f"malformed extension list at {value[at : at + 20]!r}")
        name, at = match["name"], match.end()
        parameters: list[tuple[str, str | None]] = []
        while (match := _PARAMETER.match(value, at)) is not None:
            text = match["token"]
            if match["quoted"] is not None:
                text = re.sub(r"\\(.)", r"\1", match["quoted"])
                if not re.fullmatch(_TOKEN, text):  # section 9.1: it must still be a token
                    raise ValueError(f"malformed value of extension parameter {match['name']}")
            parameters.append((match["name"].lower(), text))
            at = match.end()
        match = _SEPARATOR.match(value, at)
        if match is None:
            raise ValueError(f"malformed extension list at {value[at : at + 20]!r}")
        at = match.end()
        found.append((name.lower(), parameters))
    return found


def format_extension(name: str, parameters: Parameters) -> str:
    """One element of a Sec-WebSocket-Extensions value."""
    return "; ".join(
        [name, *(key if value is None else f"{key}={value}" for key, value in parameters)]
    )


def agree_as_server(value: str, supported: Iterable[Extension]) -> list[ExtensionCodec]:
    """Choose among a client's offers: the first acceptable one per extension, no reserved bit used twice.

    Raises:
        ValueError: the offers do not follow the grammar.
    """
    offers = parse_extensions(value)
    chosen: list[ExtensionCodec] = []
    used = 0
    for extension in supported:
        for name, parameters in offers:
            matches = name == extension.name.lower()
            codec = extension.accept(parameters) if matches else None
            if codec is not None and not codec.rsv & used:
                used |= codec.rsv
                chosen.append(codec)
                break
    return chosen


def agree_as_client(value: str, offered: Sequence[Extension]) -> list[ExtensionCodec]:
    """The codecs for a server's response, in its order.

    Raises:
        ValueError: the response does not follow the grammar.
        ExtensionError: it has an extension that was not offered, or one twice, or does not fit the offer.
    """
    chosen: list[ExtensionCodec] = []
    left = {extension.name.lower(): extension for extension in offered}
    used = 0
    for name, parameters in parse_extensions(value):
        extension = left.pop(name, None)
        if extension is None:
            raise ExtensionError(
                f"the server chose extension {name}, which was not offered or is repeated"
            )
        codec = extension.confirm(parameters)
        if codec.rsv & used:
            raise ExtensionError(
                f"the server chose extension {name}, whose reserved bit is taken already"
            )
        used |= codec.rsv
        chosen.append(codec)
    return chosen
