"""A connected pair of QUIC connections on an in-memory network."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Final, Unpack

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .._quic.client import open_quic
from .._quic.connection import Connection
from .._quic.server import ServerTLSSource, serve_quic
from .._quic.settings import QuicSettingsKwargs
from .._quic.tls import Certificate, ClientTLS, ServerTLS
from ._network import Network

__all__ = ["quic_pair"]

_HOST: Final = "server.test"
_PORT: Final = 4433
_PATIENCE: Final = 5


@cache
def _certificate() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _HOST)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate.from_pem(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


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
    certificate = _certificate()
    client_tls = client_tls or ClientTLS(server_certificate_hashes=[certificate.sha256])
    server_kwargs: QuicSettingsKwargs = {**settings, **(server_settings or {})}
    client_kwargs: QuicSettingsKwargs = {**settings, **(client_settings or {})}
    opened: list[Connection] = []
    ready, done = trio.Event(), trio.Event()

    async def handle(connection: Connection) -> None:
        opened.append(connection)
        ready.set()
        await done.wait()

    socket = network.socket((_HOST, _PORT))

    async def serve() -> None:
        await serve_quic(
            handle,
            alpn=alpn,
            tls=server_tls or ServerTLS(certificate),
            sockets=[socket],
            **server_kwargs,
        )

    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            async with open_quic(
                _HOST,
                _PORT,
                alpn=alpn,
                tls=client_tls,
                socket=network.socket(),
                **client_kwargs,
            ) as connection:
                await ready.wait()
                yield connection, opened[0]
            # The server is to see what the client's end was.
            with trio.move_on_after(_PATIENCE):
                await opened[0].wait_closed()
        except BaseException as exc:  # noqa: ASYNC103
            # Kept out of the nursery's sight, which would wrap it.
            failure = exc
        done.set()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
