"""A connected pair of WebTransport sessions on an in-memory network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from .._quic.server import ServerTLSSource
from .._quic.tls import ClientTLS, ServerTLS
from .._webtransport.client import open_webtransport
from .._webtransport.server import serve_webtransport
from .._webtransport.session import WebTransportSession
from .._webtransport.settings import WebTransportSettings, WebTransportSettingsKwargs
from ._network import Network
from ._pair import HOST, PORT, join, pair_certificate

__all__ = ["webtransport_pair"]


@asynccontextmanager
async def webtransport_pair(
    *,
    network: Network | None = None,
    path: str = "/",
    subprotocols: Sequence[str] = (),
    client_tls: ClientTLS | None = None,
    server_tls: ServerTLSSource | None = None,
    client_settings: WebTransportSettingsKwargs | None = None,
    server_settings: WebTransportSettingsKwargs | None = None,
    **settings: Unpack[WebTransportSettingsKwargs],
) -> AsyncIterator[tuple[WebTransportSession, WebTransportSession]]:
    """Two ends of a WebTransport session, after real handshakes, on a network in memory.

    Args:
        network: what carries the packets; None for one without loss, with a delay of a millisecond.
        path: what the client asks for.
        subprotocols: what the client offers, and the server supports.
        client_tls: what the client believes; by default the server's certificate.
        server_tls: what the server shows; by default a certificate made for it.
        client_settings: the client's settings, where they differ from both sides'.
        server_settings: the server's, likewise.
        settings: the settings of both sides, as in `WebTransportSettings`.

    Yields:
        the client's end and the server's. The client leaves its block first.

    Raises:
        HandshakeFailed: as for `open_webtransport`.
    """
    network = network or Network()
    certificate = pair_certificate()
    server_kwargs: WebTransportSettingsKwargs = {**settings, **(server_settings or {})}
    client_kwargs: WebTransportSettingsKwargs = {**settings, **(client_settings or {})}
    for kwargs in (server_kwargs, client_kwargs):
        WebTransportSettings(**kwargs)  # mistakes are to be told here
    socket = network.socket((HOST, PORT))

    async def serve(handle: Callable[[WebTransportSession], Awaitable[None]]) -> None:
        await serve_webtransport(
            handle,
            tls=server_tls or ServerTLS(certificate),
            sockets=[socket],
            subprotocols=subprotocols,
            **server_kwargs,
        )

    client = open_webtransport(
        f"https://{HOST}:{PORT}{path}",
        tls=client_tls or ClientTLS(server_certificate_hashes=[certificate.sha256]),
        socket=network.socket(),
        subprotocols=subprotocols,
        **client_kwargs,
    )
    async with join(serve, client) as ends:
        yield ends
