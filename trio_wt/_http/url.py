"""What the URLs of all schemes that lead to an HTTP server have in common (RFC 3986, RFC 9110 section 4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

import idna

__all__ = [
    "ServerURL",
    "format_authority",
    "parse_https_url",
    "split_url",
    "target_of",
    "to_server_url",
]


class ServerURL(NamedTuple):
    """A URL that names a server.

    Attributes:
        scheme: the scheme.
        host: the host's name in ASCII, or its address without brackets.
        port: the port.
        target: path and query, percent-encoded.
        auth: user and password, if the URL has them.
    """

    scheme: str
    host: str
    port: int
    target: str
    auth: tuple[str, str] | None

    @property
    def authority(self) -> str:
        """Host and port, the port only where it is not that of https."""
        return format_authority(self.host, None if self.port == _HTTPS_PORT else self.port)


_HTTPS_PORT: Final = 443


def format_authority(host: str, port: int | None) -> str:
    """A host and perhaps a port, with brackets around an IPv6 address."""
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def split_url(url: str, noun: str, schemes: Mapping[str, int | None]) -> tuple[SplitResult, str]:
    """A URL in its parts, and how to show it in a message: without a password.

    Args:
        url: the URL.
        noun: what it should be, with an article.
        schemes: the schemes that it may have.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    shown = repr(re.sub(r"//[^/?#]*@", "//", url))
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"{shown} has white space or control characters in it")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ValueError(f"{shown} is not a valid URL: {exc}") from None
    if parts.scheme not in schemes:
        *others, last = (f"{scheme}://" for scheme in schemes)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{shown} is not {noun} URL: it must begin with {listed}")
    if parts.fragment or url.endswith("#"):
        raise ValueError(f"{shown} has a fragment, which {noun} URL must not have")
    return parts, shown


def target_of(parts: SplitResult) -> str:
    """Path and query, percent-encoded."""
    path = _encode(parts.path or "/", "/")
    return f"{path}?{_encode(parts.query, '?/')}" if parts.query else path


def to_server_url(parts: SplitResult, shown: str, default_port: int) -> ServerURL:
    """What a URL says of its server.

    Raises:
        ValueError: a part of it is not valid.
    """
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{shown} has a port that is not a number from 0 to 65535") from None
    if not parts.hostname:
        raise ValueError(f"{shown} has no host")
    host = _ascii_host(parts.hostname, shown)
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
        if ":" in auth[0]:  # RFC 7617 section 2
            raise ValueError(f"{shown} has a user's name with a colon in it")
    return ServerURL(
        parts.scheme, host, default_port if port is None else port, target_of(parts), auth
    )


def parse_https_url(url: str) -> ServerURL:
    """An https URL, without user and password.

    Raises:
        ValueError: it is none; the message says why.
    """
    parts, shown = split_url(url, "a WebTransport", {"https": _HTTPS_PORT})
    parsed = to_server_url(parts, shown, _HTTPS_PORT)
    if parsed.auth is not None:
        raise ValueError(f"{shown} has a user's name, which browsers refuse too: use headers")
    return parsed


def _encode(text: str, safe: str) -> str:
    return quote(text, safe=safe + "%:@!$&'()*+,;=~-._")


def _ascii_host(host: str, shown: str) -> str:
    if ":" in host:
        # What stands in brackets (RFC 3986 section 3.2.2); a stray one may hide in what comes before the host.
        try:
            IPv6Address(host)
        except ValueError:
            raise ValueError(f"{shown} has a host that is no IPv6 address") from None
        return host
    if host.isascii():
        if not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=%:-]+", host):
            raise ValueError(f"{shown} has a host with characters that must not be in it")
        if not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
            raise ValueError(
                f"{shown} has a host that is no valid name: its labels have 1 to 63 characters"
            )
        return host
    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError as exc:
        raise ValueError(f"{shown} has a host that is no valid name: {exc}") from None
