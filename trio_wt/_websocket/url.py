"""WebSocket URLs (RFC 6455 section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urljoin

from .._http.url import format_authority, split_url, target_of, to_server_url

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
        parts, shown = split_url(url, "a WebSocket", {**_PORTS, "ws+unix": None})
        if parts.scheme == "ws+unix":
            path = unquote(parts.netloc)
            if not path:
                raise ValueError(f"{shown} has no socket path: write ws+unix://%2Frun%2Fapp.sock/")
            return cls("ws+unix", "localhost", 0, target_of(parts), None, path)
        return cls(*to_server_url(parts, shown, _PORTS[parts.scheme]))

    @property
    def secure(self) -> bool:
        """Whether it asks for TLS."""
        return self.scheme == "wss"

    @property
    def authority(self) -> str:
        """What goes into the Host header: the port only where it is not the scheme's own."""
        implied = self.port in (0, _PORTS.get(self.scheme))
        return format_authority(self.host, None if implied else self.port)

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
