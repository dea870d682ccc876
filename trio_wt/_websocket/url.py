"""WebSocket URLs (RFC 6455 section 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit

import idna

__all__ = ["WebSocketURL"]

_PORTS: Final = {"ws": 80, "wss": 443}
_HTTP: Final = {"http": "ws", "https": "wss"}


@dataclass(frozen=True, slots=True)
class WebSocketURL:
    """What a WebSocket URL says.

    Attributes:
        scheme: ``ws``, ``wss`` or ``ws+unix``.
        host: the host's name in ASCII or its address without brackets; "localhost" for a Unix socket.
        port: the port; 0 for a Unix socket.
        target: path and query, percent-encoded.
        auth: user and password, if the URL has them.
        unix_path: the path of the Unix socket, for ``ws+unix://%2Frun%2Fapp.sock/target``.
    """

    scheme: str
    host: str
    port: int
    target: str
    auth: tuple[str, str] | None = field(default=None, repr=False)
    unix_path: str | None = None

    @classmethod
    def parse(cls, url: str) -> WebSocketURL:
        """Parse a URL.

        Raises:
            ValueError: it is not a WebSocket URL; the message says why.
        """
        if not isinstance(url, str):
            raise TypeError(f"a URL is a str, not {type(url).__name__}")
        shown = repr(re.sub(r"//[^/?#]*@", "//", url))  # without a password
        if re.search(r"[\x00-\x20\x7f]", url):
            raise ValueError(f"{shown} has white space or control characters in it")
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise ValueError(f"{shown} is not a valid URL: {exc}") from None
        if parts.scheme not in ("ws", "wss", "ws+unix"):
            raise ValueError(
                f"{shown} is not a WebSocket URL: it must begin with ws://, wss:// or ws+unix://"
            )
        if parts.fragment or url.endswith("#"):
            raise ValueError(f"{shown} has a fragment, which a WebSocket URL must not have")
        target = _encode(parts.path or "/", "/") + (
            f"?{_encode(parts.query, '?/')}" if parts.query else ""
        )
        if parts.scheme == "ws+unix":
            path = unquote(parts.netloc)
            if not path:
                raise ValueError(f"{shown} has no socket path: write ws+unix://%2Frun%2Fapp.sock/")
            return cls("ws+unix", "localhost", 0, target, None, path)
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
        return cls(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target, auth)

    @property
    def secure(self) -> bool:
        """Whether it asks for TLS."""
        return self.scheme == "wss"

    @property
    def authority(self) -> str:
        """What goes into the Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (0, _PORTS.get(self.scheme)) else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int, str | None]:
        """What must be the same for credentials to be sent again."""
        return self.scheme, self.host, self.port, self.unix_path

    def redirected(self, location: str) -> WebSocketURL:
        """The URL that a Location header points to, relative to this one (RFC 9110 section 10.2.2).

        Raises:
            ValueError: it is no WebSocket URL, or would leave TLS.
        """
        base = f"{'https' if self.secure else 'http'}://{self.authority}{self.target}"
        absolute = urljoin(base, location.partition("#")[0])
        scheme, separator, rest = absolute.partition("://")
        scheme = scheme.lower()
        target = WebSocketURL.parse(_HTTP.get(scheme, scheme) + separator + rest)
        if self.secure and not target.secure:
            raise ValueError(f"a redirect from wss to {target.scheme} is not followed")
        if self.unix_path is not None and target.origin == ("ws", self.host, _PORTS["ws"], None):
            return WebSocketURL("ws+unix", self.host, 0, target.target, None, self.unix_path)
        if target.unix_path is not None:
            raise ValueError("a redirect to a Unix socket is not followed")
        return target


def _encode(text: str, safe: str) -> str:
    return quote(text, safe=safe + "%:@!$&'()*+,;=~-._")


def _ascii_host(host: str, shown: str) -> str:
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
