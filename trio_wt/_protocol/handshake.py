"""The rules of the opening handshake over HTTP/1.1 (RFC 6455 section 4), apart from parsing and I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from .._headers import Headers
from .extensions import (
    Extension,
    ExtensionCodec,
    ExtensionError,
    agree_as_client,
    agree_as_server,
    format_extension,
)

__all__ = [
    "BadRequest",
    "BadResponse",
    "Origins",
    "accept_key",
    "agreed_headers",
    "check_agreed",
    "check_extended_request",
    "check_extra_headers",
    "check_request",
    "check_response",
    "check_subprotocols",
    "choose_subprotocol",
    "extended_request_headers",
    "is_upgrade",
    "new_key",
    "origin_allowed",
    "request_headers",
    "response_headers",
]

#: Which Origin headers a server lets in; one that is absent always is.
Origins: TypeAlias = Literal["same-host", "any"] | Sequence[str | re.Pattern[str]]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION: Final = "13"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
#: what a caller's extra headers may not say, since the handshake itself does
RESERVED: Final = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)


class BadRequest(Exception):
    """A request that cannot become a WebSocket, and the answer to it."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = Headers(headers)


class BadResponse(Exception):
    """A response that does not make a WebSocket."""


def new_key() -> str:
    """A fresh Sec-WebSocket-Key (section 4.1, item 7)."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept for a key (section 4.2.2, item 5.4)."""
    return base64.b64encode(
        hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    ).decode()


def check_subprotocols(subprotocols: Sequence[str]) -> None:
    """Check names a caller gave.

    Raises:
        TypeError: a string instead of a sequence of strings.
        ValueError: a name is not a token (section 4.1, item 10), or is repeated.
    """
    if isinstance(subprotocols, str):
        raise TypeError("subprotocols must be a sequence of strings, not one string")
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid subprotocol name")
    if len(set(subprotocols)) != len(subprotocols):
        raise ValueError(f"subprotocols are repeated: {list(subprotocols)}")


def check_extra_headers(headers: Headers) -> None:
    """Check headers a caller gave.

    Raises:
        ValueError: one of them is the handshake's own.
    """
    for name, _ in headers.fields:
        if name.lower() in RESERVED:
            raise ValueError(f"the header {name} belongs to the handshake; it cannot be given")


# ---- the server's side


def is_upgrade(headers: Headers) -> bool:
    """Whether a request wants to become a WebSocket at all (section 4.2.1, items 3 and 4)."""
    return _lists(headers, "upgrade", "websocket") and _lists(headers, "connection", "upgrade")


def _lists(headers: Headers, name: str, token: str) -> bool:
    return any(element.lower() == token for element in headers.tokens(name))


def check_request(method: str, http_version: str, headers: Headers) -> str:
    """Check an upgrade request (section 4.2.1).

    Returns:
        the client's key.

    Raises:
        BadRequest: with the status to answer.
    """
    if method != "GET":
        raise BadRequest(405, "a WebSocket handshake uses GET", [("Allow", "GET")])
    if http_version != "1.1":
        raise BadRequest(400, "a WebSocket handshake needs HTTP/1.1")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise BadRequest(400, "a WebSocket handshake has no body")
    _check_version(headers, [("Upgrade", "websocket")])
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadRequest(400, "Sec-WebSocket-Key must be given once, and be 16 bytes in base64")
    return keys[0]


def check_extended_request(headers: Headers) -> None:
    """Check a request that came as an extended CONNECT (RFC 8441 section 5, RFC 9220 section 3).

    Raises:
        BadRequest: with the status to answer.
    """
    _check_version(headers, [])


def _check_version(headers: Headers, extra: Sequence[tuple[str, str]]) -> None:
    if headers.get_all("sec-websocket-version") != [_VERSION]:  # section 4.4
        raise BadRequest(
            426,
            "only WebSocket version 13 is supported",
            [("Sec-WebSocket-Version", _VERSION), *extra],
        )


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _authority(value: str, default_port: int | None) -> tuple[str, int | None] | None:
    """Host and port of ``host[:port]``, or None if it is malformed."""
    try:
        parts = urlsplit(f"//{value}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or parts.username:
        return None
    return parts.hostname.rstrip("."), port if port is not None else default_port


def origin_allowed(origin: str | None, host: str, origins: Origins) -> bool:
    """Whether a server lets in a request (section 10.2).

    Args:
        origin: the Origin header, None if absent: then no browser sent it, and it is allowed.
        host: the Host header.
        origins: the policy. "same-host" compares host and port with Host; the scheme is not compared, since
            TLS may have ended at a proxy.
    """
    if origin is None or origins == "any":
        return True
    if isinstance(origins, str):
        scheme, separator, authority = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme.lower())
        mine = _authority(host.lower(), port)
        return bool(separator) and mine is not None and _authority(authority.lower(), port) == mine
    return any(
        bool(allowed.fullmatch(origin)) if isinstance(allowed, re.Pattern) else allowed == origin
        for allowed in origins
    )


def offered_subprotocols(headers: Headers) -> list[str]:
    """What a client offers, in its order of preference."""
    return [name for name in headers.tokens("sec-websocket-protocol") if _TOKEN.fullmatch(name)]


def choose_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """The first of the server's that the client offers, or None (section 4.2.2, item 5.5)."""
    return next((name for name in supported if name in offered), None)


def response_headers(
    request: Headers,
    *,
    key: str,
    subprotocol: str | None,
    extensions: Sequence[Extension],
    extra: Headers,
) -> tuple[Headers, list[ExtensionCodec]]:
    """The headers of a 101 response, and the extensions chosen (section 4.2.2, item 5).

    Raises:
        BadRequest: the client's list of extensions is malformed.
        ValueError: the extra headers or the subprotocol are not allowed.
    """
    upgrade = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_key(key)),
    ]
    agreed, codecs = agreed_headers(
        request, subprotocol=subprotocol, extensions=extensions, extra=extra
    )
    return Headers(upgrade) + agreed, codecs


def agreed_headers(
    request: Headers,
    *,
    subprotocol: str | None,
    extensions: Sequence[Extension],
    extra: Headers,
) -> tuple[Headers, list[ExtensionCodec]]:
    """What of them is the same over every version of HTTP (RFC 8441 section 5).

    Raises:
        BadRequest: the client's list of extensions is malformed.
        ValueError: the extra headers or the subprotocol are not allowed.
    """
    check_extra_headers(extra)
    fields = []
    if subprotocol is not None:
        check_subprotocols([subprotocol])
        fields.append(("Sec-WebSocket-Protocol", subprotocol))
    try:
        codecs = agree_as_server(request.get("sec-websocket-extensions", ""), extensions)
    except ValueError as exc:
        raise BadRequest(400, f"Sec-WebSocket-Extensions: {exc}") from None
    if codecs:
        chosen = ", ".join(format_extension(codec.name, codec.response) for codec in codecs)
        fields.append(("Sec-WebSocket-Extensions", chosen))
    return Headers(fields) + extra, codecs


# ---- the client's side


def request_headers(
    *,
    host: str,
    key: str,
    subprotocols: Sequence[str],
    extensions: Sequence[Extension],
    extra: Headers,
) -> Headers:
    """The headers of the client's request (section 4.1).

    Raises:
        ValueError: the extra headers or the subprotocols are not allowed.
    """
    fields = [] if "host" in extra else [("Host", host)]
    fields += [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
    ]
    return Headers(fields) + extended_request_headers(
        subprotocols=subprotocols, extensions=extensions, extra=extra
    )


def extended_request_headers(
    *, subprotocols: Sequence[str], extensions: Sequence[Extension], extra: Headers
) -> Headers:
    """What of them is the same over every version of HTTP (RFC 8441 section 5).

    Raises:
        ValueError: the extra headers or the subprotocols are not allowed.
    """
    check_extra_headers(extra)
    check_subprotocols(subprotocols)
    fields = [("Sec-WebSocket-Version", _VERSION)]
    if subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    offers = [
        format_extension(extension.name, offer)
        for extension in extensions
        for offer in extension.offer()
    ]
    if offers:
        fields.append(("Sec-WebSocket-Extensions", ", ".join(offers)))
    return Headers(fields) + extra


def check_response(
    headers: Headers, *, key: str, subprotocols: Sequence[str], extensions: Sequence[Extension]
) -> tuple[str | None, list[ExtensionCodec]]:
    """Check a 101 response (section 4.1, second list).

    Returns:
        the subprotocol and the extensions the server chose.

    Raises:
        BadResponse: the message says what is wrong.
    """
    if not _lists(headers, "upgrade", "websocket") or not _lists(headers, "connection", "upgrade"):
        raise BadResponse("the server's 101 response does not upgrade to WebSocket")
    if headers.get_all("sec-websocket-accept") != [accept_key(key)]:
        raise BadResponse("the server's Sec-WebSocket-Accept does not belong to our key")
    return check_agreed(headers, subprotocols=subprotocols, extensions=extensions)


def check_agreed(
    headers: Headers, *, subprotocols: Sequence[str], extensions: Sequence[Extension]
) -> tuple[str | None, list[ExtensionCodec]]:
    """Check what of a response is the same over every version of HTTP (RFC 8441 section 5).

    Returns:
        the subprotocol and the extensions the server chose.

    Raises:
        BadResponse: the message says what is wrong.
    """
    chosen = headers.get_all("sec-websocket-protocol")
    if len(chosen) > 1 or (chosen and chosen[0] not in subprotocols):
        raise BadResponse(
            f"the server chose subprotocol {', '.join(chosen)!r}, which was not offered"
        )
    try:
        codecs = agree_as_client(headers.get("sec-websocket-extensions", ""), extensions)
    except (ValueError, ExtensionError) as exc:
        raise BadResponse(f"Sec-WebSocket-Extensions: {exc}") from None
    return (chosen[0] if chosen else None), codecs
