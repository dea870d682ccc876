"""A connected pair of QUIC connections on an in-memory network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from .._quic.client import open_quic
from .._quic.connection import Connection
from .._quic.server import ServerTLSSource, serve_quic
from .._quic.settings import QuicSettings, QuicSettingsKwargs
from .._quic.tls import ClientTLS, ServerTLS
from ._network import Network
from ._pair import HOST, PORT, join, pair_certificate

__all__ = ["quic_pair"]


@asynccontextmanager
async def quic_pair(
    *,
    network: Network | None = None,
    alpn: Sequence[str] = ("test",),
    client_tls: ClientTLS | None = None,
    server_tls: ServerTLSSource | None = None,
    client_settings: QuicSettingsKwargs | None = None,
    server_settings: QuicSettingsKwargs | None = None,
    **settings: Unpack[QuicSettingsKwargs],
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two ends of a QUIC connection, after a real handshake, on a network in memory.

    Args:
        network: what carries the packets; None for one without loss, with a delay of a millisecond.
        alpn: the application protocols of both.
        client_tls: what the client believes; by default the server's certificate.
        server_tls: what the server shows; by default a certificate made for it.
        client_settings: the client's settings, where they differ from both sides'.
        server_settings: the server's, likewise.
        settings: the settings of both sides, as in `QuicSettings`.

    Yields:
        the client's end and the server's. The client leaves its block first.

    Raises:
        HandshakeFailed: as for `open_quic`.
    """
    network = network or Network()
    certificate = pair_certificate()
    server_kwargs: QuicSettingsKwargs = {**settings, **(server_settings or {})}
    client_kwargs: QuicSettingsKwargs = {**settings, **(client_settings or {})}
    for kwargs in (server_kwargs, client_kwargs):
        QuicSettings(**kwargs)  # mistakes are to be told here
    socket = network.socket((HOST, PORT))

    async def serve(handle: Callable[[Connection], Awaitable[None]]) -> None:
        await serve_quic(
            handle,
            alpn=alpn,
            tls=server_tls or ServerTLS(certificate),
            sockets=[socket],
            **server_kwargs,
        )

    client = open_quic(
        HOST,
        PORT,
        alpn=alpn,
        tls=client_tls or ClientTLS(server_certificate_hashes=[certificate.sha256]),
        socket=network.socket(),
        **client_kwargs,
    )
    async with join(serve, client) as ends:
        yield ends
