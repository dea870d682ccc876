"""What all pairs over QUIC have in common: a certificate, an address, and two blocks that end in a stated order."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Final, Protocol, TypeVar

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .._errors import ConnectionClosed
from .._quic.tls import Certificate

__all__ = ["HOST", "PORT", "join", "pair_certificate"]

HOST: Final = "server.test"
PORT: Final = 4433
_PATIENCE: Final = 5


@cache
def pair_certificate() -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
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


class _End(Protocol):
    async def wait_closed(self) -> ConnectionClosed:
        """Wait for the end."""


EndT = TypeVar("EndT", bound=_End)


@asynccontextmanager
async def join(
    serve: Callable[[Callable[[EndT], Awaitable[None]]], Awaitable[None]],
    client: AbstractAsyncContextManager[EndT],
) -> AsyncIterator[tuple[EndT, EndT]]:
    """The client's end and the server's; the client leaves its block first.

    Args:
        serve: serves with a handler, until cancelled.
        client: what opens the client's end.
    """
    opened: list[EndT] = []
    ready, done = trio.Event(), trio.Event()

    async def handle(end: EndT) -> None:
        opened.append(end)
        ready.set()
        await done.wait()

    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, handle)
        try:
            async with client as end:
                await ready.wait()
                yield end, opened[0]
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
