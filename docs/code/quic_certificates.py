"""Certificates for QUIC: whom to believe, and what to show."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import trio

import trio_wt


def of_the_company() -> trio_wt.ClientTLS:
    return trio_wt.ClientTLS(ca="company-ca.pem")


def by_hash(digest: str) -> trio_wt.ClientTLS:
    return trio_wt.ClientTLS(server_certificate_hashes=[bytes.fromhex(digest)])


def at_an_address(name: str) -> trio_wt.ClientTLS:
    return trio_wt.ClientTLS(ca="company-ca.pem", server_name=name)


def with_a_certificate() -> trio_wt.ClientTLS:
    ours = trio_wt.Certificate.load("client.pem", "client-key.pem")
    return trio_wt.ClientTLS(ca="company-ca.pem", certificate=ours)


def ask_clients() -> trio_wt.ServerTLS:
    certificate = trio_wt.Certificate.load("server.pem", "server-key.pem")
    return trio_wt.ServerTLS(certificate, client_ca="company-ca.pem")


def renewable(certfile: str, keyfile: str) -> Callable[[], trio_wt.ServerTLS]:
    @lru_cache(maxsize=1)
    def load(changed_at: float) -> trio_wt.ServerTLS:
        return trio_wt.ServerTLS(trio_wt.Certificate.load(certfile, keyfile))

    return lambda: load(Path(certfile).stat().st_mtime)


async def connect(host: str, port: int, tls: trio_wt.ClientTLS) -> str:
    try:
        async with trio_wt.open_quic(host, port, alpn=["echo"], tls=tls) as connection:
            await connection.ping()
            return "connected"
    except trio_wt.HandshakeFailed as exc:
        return f"the server cannot be believed: {exc}"
    except trio_wt.TransportClosed as exc:
        return f"the server does not believe us: {exc}"


async def greet(connection: trio_wt.Connection) -> None:
    assert connection.peer_certificate is not None
    print(f"a client, with {len(connection.peer_certificate)} bytes of certificate")
    await trio.sleep_forever()
