"""Proxies: which one to use, and how to get through it.

Which one: a URL the caller gives, or the environment's variables, read as curl and `urllib` read
them. RFC 6455 section 4.1 asks a client without settings of its own for WebSocket to take a SOCKS
proxy first, then the one for HTTPS, then the one for HTTP; `proxy_for` does so.

How: HTTP CONNECT (RFC 9110 section 9.3.6) with h11, over TCP or TLS; SOCKS 4, 4a and 5 (RFC 1928,
RFC 1929) with python-socks, an optional dependency. Whatever a proxy does wrong comes out as
`HandshakeFailed`, and whatever ends the attempt, a cancellation too, closes the socket. There are
no time limits here: the caller bounds the handshake.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

import h11
import idna
import trio

from .._errors import HandshakeFailed
from .._util import safe_text

__all__ = ["Proxy", "open_through_proxy", "proxy_for"]

#: Bounds on everything an HTTP proxy says before the tunnel is open, interim responses included.
MAX_HEAD: Final = 16384
MAX_FIELDS: Final = 100

# The ports of RFC 9110 section 4.2, and the one registered for SOCKS.
_PORTS: Final = {
    "http": 80,
    "https": 443,
    "socks5": 1080,
    "socks5h": 1080,
    "socks4": 1080,
    "socks4a": 1080,
}
# Desktops put `socks://` into the environment and mean SOCKS 5 with names resolved by the proxy.
_ALIASES: Final = {"socks": "socks5h"}
_HOST: Final = re.compile(r"[!-~]{1,255}")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")

# <kind>_proxy, best first; a variable for WebSocket alone is the most specific.
_KINDS: Final = {
    False: ("ws", "socks", "https", "http", "all"),
    True: ("wss", "socks", "https", "all"),
}
# An element of no_proxy that may have a port: [IPv6]:port, name:port. Bare IPv6 has none.
_NO_PROXY: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and how to talk to it.

    Neither ``repr``, nor ``str``, nor any message shows the password.

    Attributes:
        scheme: ``http``, ``https``, ``socks5`` or ``socks4`` (the server's name is resolved here),
            ``socks5h`` or ``socks4a`` (it is resolved by the proxy).
        host: its name in ASCII, or its address without brackets.
        port: its TCP port.
        username: for basic authentication (RFC 7617), SOCKS 5 (RFC 1929), or SOCKS 4's user id;
            None for none.
        password: the password; None only without a user, and for SOCKS 4, which knows none.

    Raises:
        ValueError: a value is not valid, or the scheme cannot carry such credentials.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.scheme not in _PORTS:
            raise ValueError(f"the scheme must be one of {', '.join(_PORTS)}")
        if not _HOST.fullmatch(self.host):
            raise ValueError("the host is missing or has characters that must not be in it")
        if not 0 < self.port < 65536:
            raise ValueError("the port must be a number from 1 to 65535")
        if self.username is None:
            if self.password is not None:
                raise ValueError("there is a password, but no user")
            return
        user, password = self.username, self.password or ""
        if _CONTROLS.search(user + password):
            raise ValueError("the user and the password must not have control characters in them")
        if self.scheme.startswith("http") and ":" in user:
            raise ValueError("the user must not have a colon in it (RFC 7617)")
        if self.scheme.startswith("socks4") and (password or not user.isascii()):
            raise ValueError("SOCKS 4 takes a user id in ASCII, and no password")
        if self.scheme.startswith("socks5") and not all(
            text.isascii() and 0 < len(text) < 256 for text in (user, password)
        ):
            raise ValueError(
                "SOCKS 5 takes a user and a password, each 1 to 255 characters of ASCII (RFC 1929)"
            )

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Parse ``scheme://user:password@host:port``.

        Args:
            url: the URL; user and password are percent-encoded. The port may be left out: 80 for
                http, 443 for https, 1080 for SOCKS. ``socks://`` means ``socks5h://``.

        Raises:
            ValueError: it is not a proxy's URL; the message says why, and hides the credentials.
        """
        try:
            return cls(*_split(url))
        except ValueError as exc:
            shown = re.sub(r"^([^:/@]*://)?.*@", r"\1***@", url, flags=re.DOTALL)
            raise ValueError(f"{shown!r} is not a usable proxy URL: {exc}") from None

    def __str__(self) -> str:
        return f"{self.scheme}://{_authority(self.host, self.port)}"


def _split(url: str) -> tuple[str, str, int, str | None, str | None]:
    if _CONTROLS.search(url) or " " in url:
        raise ValueError("it has white space or control characters in it")
    scheme, separator, _ = url.partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if not separator or scheme not in _PORTS:
        raise ValueError(f"it must begin with one of {'://, '.join(_PORTS)}://")
    # What urlsplit says itself may quote the credentials.
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("its host cannot be parsed") from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 1 to 65535") from None
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("a path, query or fragment means nothing for a proxy")
    host = parts.hostname or ""
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError as exc:
            raise ValueError(f"its host is no valid name: {exc}") from None
    username = password = None
    if parts.username or parts.password:
        try:
            username = unquote(parts.username or "", errors="strict")
            password = unquote(parts.password or "", errors="strict")
        except UnicodeDecodeError:
            raise ValueError("its user or password is not percent-encoded UTF-8") from None
        if scheme.startswith("socks4"):
            password = password or None
    return scheme, host, _PORTS[scheme] if port is None else port, username, password


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_for(
    url_scheme: str,
    host: str,
    port: int,
    setting: str | None,
    environ: Mapping[str, str] = os.environ,
) -> Proxy | None:
    """The proxy to reach a server through.

    From the environment, the first of these that is set (RFC 6455 section 4.1): for ``wss`` the
    variables ``wss_proxy``, ``socks_proxy``, ``https_proxy`` and ``all_proxy``; for ``ws`` the
    variables ``ws_proxy``, ``socks_proxy``, ``https_proxy``, ``http_proxy`` and ``all_proxy``. A
    name in lower case goes before the same in upper case, and set to nothing hides it.
    ``HTTP_PROXY`` does not count where ``REQUEST_METHOD`` is set: in a CGI script it is a header
    that a client sent. A value without a scheme means ``http://``, in ``socks_proxy``
    ``socks5h://``.

    ``no_proxy`` is a list, with commas or spaces between, of servers to reach directly: ``*`` for
    all, a name for itself and everything below it (``.example.com`` and ``*.example.com`` are the
    same), an IP address, or a network such as ``10.0.0.0/8``; each may have a port,
    ``example.com:8080``.

    Args:
        url_scheme: of the server's URL: ``ws`` or ``wss``, or as well ``http`` or ``https``.
        host: the server's name in ASCII, or its IP address without brackets.
        port: the server's port.
        setting: a proxy's URL, "environment", or None to go without.
        environ: the environment's variables.

    Raises:
        ValueError: the URL is no proxy's; the message names the variable that has it.
    """
    if setting is None:
        return None
    if setting != "environment":
        return Proxy.parse(setting)
    for kind in _KINDS[url_scheme in ("wss", "https")]:
        name, url = _variable(kind, environ)
        if url:
            break
    else:
        return None
    if _bypassed(host, port, _variable("no", environ)[1]):
        return None
    if "://" not in url:
        url = f"{'socks5h' if kind == 'socks' else 'http'}://{url}"
    try:
        return Proxy.parse(url)
    except ValueError as exc:
        raise ValueError(f"the environment variable {name}: {exc}") from None


def _variable(kind: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The name and value of a variable, an empty value if it is not set."""
    name = f"{kind}_proxy"
    if name not in environ:
        name = name.upper()
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
            return name, ""
    return name, environ.get(name, "").strip()


def _bypassed(host: str, port: int, no_proxy: str) -> bool:
    host = host.lower().rstrip(".")
    return any(_covers(entry, host, port) for entry in re.split(r"[\s,]+", no_proxy.lower()))


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether an element of no_proxy names a server."""
    if entry == "*":
        return True
    if match := _NO_PROXY.fullmatch(entry):
        if match["port"] and int(match["port"]) != port:
            return False
        entry = match["v6"] or match["name"]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        suffix = entry.removeprefix("*").strip(".")
        return bool(suffix) and (host == suffix or host.endswith(f".{suffix}"))
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


async def open_through_proxy(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    ssl_context_for_proxy: ssl.SSLContext | None = None,
) -> trio.abc.Stream:
    """Open a connection to a server through a proxy.

    Args:
        proxy: the proxy.
        host: the server's name in ASCII, or its IP address without brackets.
        port: the server's port.
        ssl_context_for_proxy: how to do TLS with an ``https`` proxy; None verifies its certificate
            against the system's store.

    Returns:
        a stream of bytes to the server: a `trio.SocketStream` where nothing is between it and the
        socket, that is, without TLS to the proxy and unless bytes from the server came in one piece
        with the proxy's answer.

    Raises:
        HandshakeFailed: the proxy cannot be reached, refuses, leaves, or answers nonsense; the
            cause is chained.
        ValueError: the server's name or port is not valid; nothing was sent.

    Cancelled at any checkpoint, it closes the socket.
    """
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a valid host")
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a valid port")
    if proxy.scheme.startswith("socks"):
        return await _open_socks(proxy, host, port)
    try:
        # What cannot be encoded as a name (RFC 5890) is a UnicodeError.
        stream: trio.abc.Stream = await trio.open_tcp_stream(proxy.host, proxy.port)
    except (OSError, UnicodeError) as exc:
        raise HandshakeFailed(f"cannot connect to the proxy {proxy}: {exc}") from exc
    try:
        if proxy.scheme == "https":
            stream = await _start_tls(stream, proxy, ssl_context_for_proxy)
        return await _connect(stream, proxy, _authority(host, port))
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        why = exc.__cause__ or exc
        raise HandshakeFailed(f"the connection to the proxy {proxy} broke: {why}") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _start_tls(
    stream: trio.abc.Stream, proxy: Proxy, context: ssl.SSLContext | None
) -> trio.SSLStream[trio.abc.Stream]:
    if context is None:
        context = ssl.create_default_context()
    try:
        tls = trio.SSLStream(stream, context, server_hostname=proxy.host, https_compatible=True)
        await tls.do_handshake()
    except (trio.BrokenResourceError, ValueError) as exc:
        # A host that cannot be a name for TLS is a ValueError.
        why = exc.__cause__ or exc
        raise HandshakeFailed(f"TLS with the proxy {proxy} failed: {why}") from exc
    return tls


async def _connect(stream: trio.abc.Stream, proxy: Proxy, authority: str) -> trio.abc.Stream:
    """Ask an HTTP proxy for a tunnel.

    Raises:
        HandshakeFailed: there is none.
        trio.BrokenResourceError: the connection broke.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = [("Host", authority)]
    if proxy.username is not None:
        pair = f"{proxy.username}:{proxy.password or ''}".encode()
        headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(pair).decode()}"))
    head = connection.send(h11.Request(method="CONNECT", target=authority, headers=headers))
    connection.send(h11.EndOfMessage())
    await stream.send_all(head or b"")
    received = fields = 0
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise HandshakeFailed(
                f"the answer of the proxy {proxy} is not valid HTTP: {safe_text(str(exc))}"
            ) from exc
        if event is h11.NEED_DATA:
            # Never asking for more than is left keeps the bound exact.
            if received == MAX_HEAD:
                raise HandshakeFailed(
                    f"the answer of the proxy {proxy} has more than {MAX_HEAD} bytes"
                )
            data = await stream.receive_some(MAX_HEAD - received)
            if not data:
                when = "in the middle of its answer" if received else "without an answer"
                raise HandshakeFailed(f"the proxy {proxy} closed the connection {when}")
            received += len(data)
            connection.receive_data(bytes(data))
            continue
        if not isinstance(event, h11.InformationalResponse | h11.Response):
            raise HandshakeFailed(f"the answer of the proxy {proxy} is not valid HTTP")
        fields += len(event.headers)
        if fields > MAX_FIELDS:
            raise HandshakeFailed(
                f"the answer of the proxy {proxy} has more than {MAX_FIELDS} fields"
            )
        if isinstance(event, h11.Response):
            break
    if not 200 <= event.status_code < 300:
        raise HandshakeFailed(_refusal(proxy, authority, event))
    # With any 2xx the tunnel begins right behind the head, whatever it says about a body.
    leading, _ = connection.trailing_data
    return _LeadingStream(leading, stream) if leading else stream


def _refusal(proxy: Proxy, authority: str, response: h11.Response) -> str:
    hint = ""
    if response.status_code == 407:
        hint = (
            "; it wants credentials: put them into its URL, http://user:password@host:port"
            if proxy.username is None
            else "; it does not take these credentials"
        )
    status = f"{response.status_code} {safe_text(response.reason.decode('latin-1'))}".strip()
    return f"the proxy {proxy} did not connect to {authority}: HTTP status {status}{hint}"


class _LeadingStream(trio.abc.Stream):
    """A stream with bytes to receive before its own: what came along with the proxy's answer."""

    def __init__(self, leading: bytes, stream: trio.abc.Stream) -> None:
        self._leading = leading
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._leading or (max_bytes is not None and max_bytes < 1):
            return await self._stream.receive_some(max_bytes)
        data = self._leading[:max_bytes]
        self._leading = self._leading[len(data) :]
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._leading = b""
        await self._stream.aclose()


async def _open_socks(proxy: Proxy, host: str, port: int) -> trio.abc.Stream:
    await trio.lowlevel.checkpoint()
    try:
        from python_socks import ProxyConnectionError, ProxyType
        from python_socks.async_.trio.v2 import Proxy as SocksProxy
    except ImportError as exc:
        raise HandshakeFailed(
            f"the proxy {proxy} needs a package that is missing: "
            'pip install "trio-wt[socks]" installs python-socks'
        ) from exc
    authority = _authority(host, port)
    if proxy.scheme == "socks4" and ":" in host:
        raise HandshakeFailed(f"SOCKS 4 has no way to reach {authority}: use a socks5 proxy")
    client = SocksProxy(
        ProxyType.SOCKS4 if proxy.scheme.startswith("socks4") else ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.username,
        proxy.password,
        rdns=proxy.scheme in ("socks4a", "socks5h"),
    )
    try:
        stream = await client.connect(host, port, timeout=math.inf)
    except ProxyConnectionError as exc:
        raise HandshakeFailed(
            f"cannot connect to the proxy {proxy}: {exc.__cause__ or exc}"
        ) from exc
    except Exception as exc:
        # Unexpected replies, names it cannot encode: it lets exceptions of many kinds out.
        raise HandshakeFailed(f"the proxy {proxy} did not connect to {authority}: {exc}") from exc
    return stream.trio_stream
