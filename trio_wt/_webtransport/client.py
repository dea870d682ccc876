"""The client's side: connecting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from .._headers import HeadersLike
from .._http.priority import Priority
from .._http.url import parse_https_url
from .._quic.client import QuicEndpoint, connect
from .._quic.sessions import SessionStore
from .._quic.tls import ClientTLS
from .._transport.udp import DatagramSocket
from .connection import WebTransportConnection, check_session_protocols, with_origin
from .session import WebTransportSession
from .settings import WebTransportSettings, WebTransportSettingsKwargs
from .upper import ALPN, http3_settings, make_upper

__all__ = ["open_webtransport", "open_webtransport_connection"]


@asynccontextmanager
async def open_webtransport_connection(
    url: str,
    *,
    tls: ClientTLS | None = None,
    local_address: tuple[str, int] | None = None,
    socket: DatagramSocket | None = None,
    endpoint: QuicEndpoint | None = None,
    session_store: SessionStore | None = None,
    handshake_timeout: float = 10,
    **settings: Unpack[WebTransportSettingsKwargs],
) -> AsyncIterator[WebTransportConnection]:
    """Connect to an HTTP/3 server, for several sessions: ``async with open_webtransport_connection("https://host") as connection:``.

    Args:
        url: the server, ``https://host`` or ``https://host:port``; a path is left out of account.
        tls: which servers to believe, and what to show them; by default those whose certificates the system trusts.
        local_address: the address and port to send from; None for any.
        socket: send through this socket, which is closed in the end.
        endpoint: share this socket with other connections.
        session_store: where to keep session tickets, and to take one from to resume an earlier session; requests are never sent
            as early data (draft-ietf-webtrans-http3-16 section 3.1).
        handshake_timeout: seconds that connecting may take.
        settings: as in `WebTransportSettings`.

    Yields:
        the connection.

    Raises:
        CertificateRejected: the server's certificate was not accepted.
        HandshakeFailed: the server did not answer in time, or does not speak HTTP/3.
        OSError: the host was not found, or the local address cannot be bound.
        ValueError: the URL or a setting is not valid.

    Leaving the block closes the connection without an error, once the last words of its sessions are delivered.
    """
    parsed = parse_https_url(url)
    wanted = WebTransportSettings(**settings)
    ours = http3_settings(wanted)
    async with connect(
        parsed.host,
        parsed.port,
        alpn=ALPN,
        tls=tls,
        local_address=local_address,
        socket=socket,
        endpoint=endpoint,
        session_store=session_store,
        early_data=False,
        handshake_timeout=handshake_timeout,
        settings=wanted.for_connection(),
        upper=make_upper(wanted, ours, client=True),
    ) as (driver, services):
        yield WebTransportConnection(driver, services, wanted, parsed)


@asynccontextmanager
async def open_webtransport(
    url: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: HeadersLike = (),
    origin: str | None = None,
    priority: Priority | None = None,
    tls: ClientTLS | None = None,
    local_address: tuple[str, int] | None = None,
    socket: DatagramSocket | None = None,
    endpoint: QuicEndpoint | None = None,
    session_store: SessionStore | None = None,
    handshake_timeout: float = 10,
    **settings: Unpack[WebTransportSettingsKwargs],
) -> AsyncIterator[WebTransportSession]:
    """Open a WebTransport session on a connection of its own: ``async with open_webtransport("https://host:4433/room") as session:``.

    Args:
        url: an ``https`` URL.
        subprotocols: the subprotocols to offer, best first.
        headers: further request headers.
        origin: the Origin header.
        priority: how urgent the session is (RFC 9218).
        tls, local_address, socket, endpoint, session_store: as for `open_webtransport_connection`.
        handshake_timeout: seconds that connecting may take, and the server's answer again.
        settings: as in `WebTransportSettings`.

    Yields:
        the session.

    Raises:
        CertificateRejected: the server's certificate was not accepted.
        Rejected: the server answered with another status than 200; redirects are not followed.
        HandshakeFailed: any other failure until the session is open.
        OSError: the host was not found, or the local address cannot be bound.
        ValueError: the URL, a header or a setting is not valid.

    Leaving the block closes the session, as `WebTransportSession` says, and its connection.
    """
    target = parse_https_url(url).target
    extra = with_origin(headers, origin)
    check_session_protocols(subprotocols)
    async with (
        open_webtransport_connection(
            url,
            tls=tls,
            local_address=local_address,
            socket=socket,
            endpoint=endpoint,
            session_store=session_store,
            handshake_timeout=handshake_timeout,
            **settings,
        ) as connection,
        connection.open_session(
            target,
            subprotocols=subprotocols,
            headers=extra,
            priority=priority,
            handshake_timeout=handshake_timeout,
        ) as session,
    ):
        try:
            yield session
        finally:
            # The ends of both take no longer than that of one.
            connection.leave_within(connection.settings.close_timeout)
