"""The client's side: connecting, proxies, redirects and the handshake."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Unpack

import trio

from .._errors import HandshakeFailed, Rejected
from .._headers import Headers, HeadersLike
from .._http import h1
from .._http.request import Request
from .._protocol import handshake
from .._transport.proxy import open_through_proxy, proxy_for
from .._transport.tcp import transport_of
from .._transport.transport import Transport
from .._version import __version__
from .connection import Connection
from .settings import Settings, SettingsKwargs
from .url import WebSocketURL
from .websocket import WebSocket

__all__ = ["open_websocket", "wrap_client_stream"]

_USER_AGENT: Final = f"trio-wt/{__version__}"
_REDIRECTS: Final = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True)
class _Offer:
    """What the client asks for, whichever server it ends up at."""

    subprotocols: Sequence[str]
    headers: Headers
    settings: Settings

    @classmethod
    def build(
        cls,
        subprotocols: Sequence[str],
        headers: HeadersLike,
        origin: str | None,
        user_agent: str | None,
        settings: Settings,
    ) -> _Offer:
        """Check what the caller gave, before anything is opened."""
        extra = Headers(headers)
        if origin is not None:
            extra = Headers([*extra.without("origin").fields, ("Origin", origin)])
        if user_agent is not None and "user-agent" not in extra:
            extra += [("User-Agent", user_agent)]
        offer = cls(subprotocols, extra, settings)
        # Raises for reserved headers and bad subprotocols.
        handshake.request_headers(
            host="-", key="", subprotocols=subprotocols, extensions=(), extra=extra
        )
        return offer


def _basic(auth: tuple[str, str]) -> str:
    """RFC 7617 section 2.

    Raises:
        ValueError: the user's name has a colon.
    """
    user, password = auth
    if ":" in user:
        raise ValueError("the user's name must not have a colon in it")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def _handshake(
    transport: Transport, url: WebSocketURL, auth: tuple[str, str] | None, offer: _Offer
) -> tuple[Connection, WebSocket]:
    """Ask for a WebSocket over a transport that is connected.

    Raises:
        Rejected: the server gave another answer than 101.
        HandshakeFailed: its answer is not valid, or it left.
    """
    key = handshake.new_key()
    extra = offer.headers
    if auth is not None and "authorization" not in extra:
        extra += [("Authorization", _basic(auth))]
    extensions = offer.settings.all_extensions()
    headers = handshake.request_headers(
        host=url.authority,
        key=key,
        subprotocols=offer.subprotocols,
        extensions=extensions,
        extra=extra,
    )
    try:
        await h1.send_request(transport, url.target, headers)
        response, leading = await h1.read_response(transport)
    except trio.BrokenResourceError as exc:
        raise HandshakeFailed(f"the connection broke in the handshake: {exc}") from exc
    if response.status != 101:
        raise Rejected(response.status, response.headers, response.body)
    try:
        subprotocol, codecs = handshake.check_response(
            response.headers, key=key, subprotocols=offer.subprotocols, extensions=extensions
        )
    except handshake.BadResponse as exc:
        raise HandshakeFailed(str(exc)) from None
    request = Request(
        method="GET",
        target=url.target,
        headers=headers,
        http_version="1.1",
        scheme="https" if url.secure else "http",
        host=url.authority,
        is_websocket=True,
        subprotocols=tuple(offer.subprotocols),
        peer=transport.peer,
        local=transport.local,
        tls_peer_certificate=transport.certificate(),
    )
    connection = Connection(
        transport, client=True, codecs=codecs, settings=offer.settings, leading=leading
    )
    websocket = WebSocket(
        connection, request=request, response_headers=response.headers, subprotocol=subprotocol
    )
    return connection, websocket


def _reason(exc: OSError | UnicodeError) -> str:
    """What the system said; Trio keeps that of every address tried in a group behind its error."""
    attempts = exc.__cause__
    if isinstance(attempts, BaseExceptionGroup):
        said = [
            os.strerror(attempt.errno)
            for attempt in attempts.exceptions
            if isinstance(attempt, OSError) and attempt.errno
        ]
        if said:
            return ", ".join(dict.fromkeys(said))
    return str(exc)


@dataclass(frozen=True, slots=True)
class _Route:
    """How to get to a server."""

    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    proxy: str | None
    proxy_ssl_context: ssl.SSLContext | None

    async def connect(self, url: WebSocketURL) -> Transport:
        """Open TCP or a Unix socket, through a proxy if one is set, and TLS on it.

        Raises:
            HandshakeFailed: with the cause.
        """
        try:
            if url.unix_path is not None:
                stream: trio.abc.Stream = await trio.open_unix_socket(url.unix_path)
            else:
                proxy = proxy_for(url.scheme, url.host, url.port, self.proxy)
                if proxy is None:
                    stream = await trio.open_tcp_stream(url.host, url.port)
                else:
                    stream = await open_through_proxy(
                        proxy, url.host, url.port, ssl_context_for_proxy=self.proxy_ssl_context
                    )
        except (OSError, UnicodeError) as exc:
            raise HandshakeFailed(
                f"cannot connect to {url.unix_path or url.authority}: {_reason(exc)}"
            ) from exc
        if url.secure:
            stream = await self._start_tls(stream, url)
        return transport_of(stream, owned=True)

    async def _start_tls(self, stream: trio.abc.Stream, url: WebSocketURL) -> trio.abc.Stream:
        context = self.ssl_context or ssl.create_default_context()
        tls = trio.SSLStream(
            stream, context, server_hostname=self.server_hostname or url.host, https_compatible=True
        )
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(tls)
            raise HandshakeFailed(
                f"TLS with {url.authority} failed: {exc.__cause__ or exc}"
            ) from exc
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls


async def _open(
    url: WebSocketURL,
    route: _Route,
    auth: tuple[str, str] | None,
    offer: _Offer,
    max_redirects: int,
) -> tuple[Connection, WebSocket]:
    credentials = auth or url.auth
    for left in range(max_redirects, -1, -1):
        transport = await route.connect(url)
        try:
            return await _handshake(transport, url, credentials, offer)
        except Rejected as exc:
            await _abandon(transport)
            if exc.status not in _REDIRECTS or "location" not in exc.headers:
                raise
            if not left:
                raise HandshakeFailed(
                    f"the server redirects more than {max_redirects} times"
                ) from exc
            try:
                target = url.redirected(exc.headers["location"])
            except ValueError as problem:
                raise HandshakeFailed(
                    f"the server redirects to a place that is no good: {problem}"
                ) from exc
            if target.origin != url.origin:
                # What is meant for one server must not reach another.
                credentials = None
                offer = _Offer(
                    offer.subprotocols,
                    offer.headers.without("authorization", "cookie", "host"),
                    offer.settings,
                )
            credentials = target.auth or credentials
            url = target
        except BaseException:
            await _abandon(transport)  # noqa: ASYNC102
            raise
    raise AssertionError("the loop returns or raises")


async def _abandon(transport: Transport) -> None:
    with trio.CancelScope(shield=True):
        await transport.aclose(graceful=False)


@asynccontextmanager
async def open_websocket(
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    auth: tuple[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy: str | Literal["environment"] | None = "environment",
    proxy_ssl_context: ssl.SSLContext | None = None,
    max_redirects: int = 5,
    user_agent: str | None = _USER_AGENT,
    handshake_timeout: float = 10,
    **settings: Unpack[SettingsKwargs],
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket: ``async with open_websocket("wss://example.com/chat") as ws``.

    Connects to the first address that answers (RFC 8305), through a proxy if one is set.

    Args:
        url: ``ws://``, ``wss://``, or ``ws+unix://`` with the socket's path percent-encoded as its host; it may hold
            user and password.
        subprotocols: the subprotocols to offer, best first.
        headers: further request headers; Host, Origin, Cookie, Authorization and User-Agent may be among them.
        origin: the Origin header.
        auth: user and password for basic authentication (RFC 7617), before those of the URL.
        ssl_context: how to do TLS; None verifies the certificate against the system's store.
        server_hostname: the name to verify, and to ask for with SNI, instead of the URL's.
        proxy: a proxy's URL (``http``, ``https``, ``socks4``, ``socks4a``, ``socks5`` or ``socks5h``), "environment" to
            take it from the environment, None to go without.
        proxy_ssl_context: how to do TLS with an ``https`` proxy; None verifies against the system's store.
        max_redirects: how many redirects to follow; never from wss to ws. Authorization and Cookie do not go to
            another origin.
        user_agent: the User-Agent header, None to send none.
        handshake_timeout: seconds for all of it, from the first packet to the server's answer.
        settings: compression, extensions, max_message_size, max_fragments, max_queue_messages, max_queue_bytes,
            write_limit, ping_interval, ping_timeout, close_timeout and cancel_on_close, as in `Settings`.

    Yields:
        the open `WebSocket`. Leaving the block closes it: normally with code 1000, by an exception or by cancelling
        ``ws.cancel_scope`` with 1011, by a cancellation from outside with 1001; within ``close_timeout`` seconds.

    Raises:
        Rejected: the server answered with another status than 101.
        HandshakeFailed: any other failure until the connection is open, a timeout among them.
        ValueError: the URL, a header or a setting is not valid; nothing was sent.
    """
    parsed = WebSocketURL.parse(url)
    offer = _Offer.build(subprotocols, headers, origin, user_agent, Settings(**settings))
    if auth is not None:
        _basic(auth)
    route = _Route(ssl_context, server_hostname, proxy, proxy_ssl_context)
    if parsed.unix_path is None:
        for scheme in ("ws", "wss"):  # a redirect may lead from one to the other
            proxy_for(scheme, parsed.host, parsed.port, proxy)
    try:
        with trio.fail_after(handshake_timeout):
            connection, websocket = await _open(parsed, route, auth, offer, max_redirects)
    except trio.TooSlowError:
        raise HandshakeFailed(
            f"no WebSocket to {parsed.unix_path or parsed.authority} within {handshake_timeout} seconds"
        ) from None
    async with connection:
        yield websocket


@asynccontextmanager
async def wrap_client_stream(
    stream: trio.abc.Stream,
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    auth: tuple[str, str] | None = None,
    user_agent: str | None = _USER_AGENT,
    handshake_timeout: float = 10,
    **settings: Unpack[SettingsKwargs],
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket on a stream that leads to a server: any `trio.abc.Stream`.

    Args:
        stream: the stream; it is closed when the block ends.
        url: what to ask for; its host goes into the Host header, and nothing is connected to.
        subprotocols, headers, origin, auth, user_agent, handshake_timeout, settings: as for `open_websocket`.

    Raises:
        Rejected: the server answered with another status than 101; redirects are not followed.
        HandshakeFailed: any other failure until the connection is open.
        ValueError: the URL, a header or a setting is not valid; nothing was sent.
    """
    parsed = WebSocketURL.parse(url)
    offer = _Offer.build(subprotocols, headers, origin, user_agent, Settings(**settings))
    transport = transport_of(stream, owned=False)
    try:
        with trio.fail_after(handshake_timeout):
            connection, websocket = await _handshake(transport, parsed, auth or parsed.auth, offer)
    except trio.TooSlowError:
        await _abandon(transport)
        raise HandshakeFailed(f"no WebSocket within {handshake_timeout} seconds") from None
    except BaseException:
        await _abandon(transport)  # noqa: ASYNC102
        raise
    async with connection:
        yield websocket
