"""Servers whose certificates are wrong, or endless."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import trio_wt
from tests.certificates import DAY, NOW, make
from tests.robustness.quic_peer import HOST, PORT, SERVER, HostileServer, crypto
from tests.robustness.quic_target import certificate, identity, made
from tests.robustness.target import bounded_memory, tasks
from trio_wt.testing import Network


class Roomy(QuicConnection):
    """A server whose own buffers have room for long chains."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._crypto_buffers[Epoch.HANDSHAKE] = Buffer(capacity=2**17)


class Raw:
    """A certificate as a peer sends it, whatever it is."""

    def __init__(self, der: bytes) -> None:
        self.der = der

    def public_bytes(self, encoding: Encoding) -> bytes:
        return self.der


def version_4(certificate: x509.Certificate) -> Raw:
    der = bytearray(certificate.public_bytes(Encoding.DER))
    at = der.index(b"\xa0\x03\x02\x01\x02")
    der[at + 4] = 3
    return Raw(bytes(der))


def large(size: int) -> x509.Certificate:
    names = [f"{number:04}.{'x' * 50}.test" for number in range(size // 60)]
    return make([HOST, *names], key=made().key).certificate


CERTIFICATES: dict[str, tuple[int | None, Callable[[], list[Any]]]] = {
    # the alert, or None for whichever
    "version 4": (None, lambda: [version_4(made().certificate)]),
    "version 4 in the chain": (None, lambda: [made().certificate, version_4(made().certificate)]),
    "junk": (42, lambda: [Raw(os.urandom(500))]),
    "nothing": (None, lambda: [Raw(b"")]),
    "a cut one": (42, lambda: [Raw(made().certificate.public_bytes(Encoding.DER)[:-5])]),
    "a thousand zeros": (42, lambda: [Raw(bytes(1000))]),
    "a nest of sequences": (42, lambda: [Raw(b"\x30\x80" * 5000)]),
    "of another key": (51, lambda: [make((HOST,)).certificate]),
    "hash unknown": (None, lambda: [make((HOST,), key=made().key, ends=NOW + 5 * DAY).certificate]),
    "expired": (
        45,
        lambda: [make((HOST,), key=made().key, begins=NOW - 9 * DAY, ends=NOW - DAY).certificate],
    ),
    "with 30 KB of names": (None, lambda: [large(30_000)]),
    "a chain of fifty": (None, lambda: [make((HOST,), key=made().key).certificate] * 50),
}


@pytest.mark.parametrize("verifying", ["hashes", "ca"])
@pytest.mark.parametrize("kind", CERTIFICATES)
async def test_bad_certificate(kind: str, verifying: str) -> None:
    alert, chain = CERTIFICATES[kind]
    leaf, *rest = chain()
    tls = (
        trio_wt.ClientTLS(server_certificate_hashes=[bytes(32)])
        if verifying == "hashes"
        else trio_wt.ClientTLS(ca=make(("ca.test",), ca=True).pem)
    )
    peer = await failing_server(tls, certificate=leaf, certificate_chain=rest)
    assert peer.end is not None
    code = peer.end.error_code
    assert code == 1 or 0x100 <= code < 0x200, peer.end
    if alert is not None and (kind != "expired" or verifying == "ca"):
        assert code == 0x100 + alert or kind == "expired", peer.end


async def failing_server(tls: trio_wt.ClientTLS, **options: Any) -> HostileServer:
    network = Network()
    before = tasks()
    async with trio.open_nursery() as nursery:
        peer = HostileServer(network.socket(SERVER), **{**identity(), "kind": Roomy, **options})
        await nursery.start(peer.run)
        with bounded_memory(4), trio.fail_after(2), pytest.raises(trio_wt.HandshakeFailed):
            async with trio_wt.open_quic(
                HOST, PORT, alpn=["test"], tls=tls, socket=network.socket()
            ):
                raise AssertionError("the handshake should fail")
        await trio.sleep(0.01)
        peer.close()
    assert tasks() == before
    return peer


async def test_chain_that_is_too_long() -> None:
    """More than 64 KiB of a handshake are not held."""
    one = make((HOST,), key=made().key).certificate
    size = len(one.public_bytes(Encoding.DER))
    peer = await failing_server(
        trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
        certificate_chain=[one] * (70_000 // size),
    )
    assert await peer.closed() == 0x0D


async def test_endless_handshake() -> None:
    """A server whose certificate message never ends."""
    network = Network()
    async with trio.open_nursery() as nursery:
        peer = HostileServer(network.socket(SERVER), **identity())
        await nursery.start(peer.run)
        with bounded_memory(3), trio.fail_after(2), pytest.raises(trio_wt.HandshakeFailed):
            async with trio.open_nursery() as inner:

                async def drone() -> None:
                    await peer.until(lambda: peer.started)
                    peer.silent = True
                    await peer.until(
                        lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid()
                    )
                    for at in range(0, 100_000, 1000):
                        said = (b"\x0b\xff\xff\xff" if not at else b"") + bytes(
                            996 if not at else 1000
                        )
                        peer.say(crypto(at, said), epoch=Epoch.HANDSHAKE)
                        await trio.sleep(0.001)

                inner.start_soon(drone)
                try:
                    async with trio_wt.open_quic(
                        HOST,
                        PORT,
                        alpn=["test"],
                        tls=trio_wt.ClientTLS(verify=False),
                        socket=network.socket(),
                    ):
                        raise AssertionError("the handshake should fail")
                except trio_wt.HandshakeFailed as exc:
                    failure = exc
                inner.cancel_scope.cancel()
            raise failure
        peer.close()
