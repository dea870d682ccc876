"""Servers, and people on the way to them, that mean our clients no good."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.tls import Epoch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import trio_wt
from tests.certificates import DAY, NOW, make
from tests.robustness.quic_peer import (
    CID_LENGTH,
    HOST,
    PORT,
    SERVER,
    HostileServer,
    crypto,
    frame,
    stream,
)
from tests.robustness.quic_target import (
    ask,
    attacked_client,
    attacked_server,
    certificate,
    echo,
    identity,
    made,
)
from tests.robustness.target import bounded_memory, tasks
from trio_wt.testing import Network, NetworkSocket

V1, V2 = 1, 0x6B3343CF
NEW_CID = 0x18


# ---- on the way: a real server, and somebody who answers faster


class Interloper:
    """Sees what a client sends, and may say something to it before the server does.

    Attributes:
        network: where they all are.
        answer: gets each datagram of the client's; what it returns is sent to the client at once.
        through: whether the client's datagrams reach the server.
    """

    def __init__(self) -> None:
        self.network = Network()
        self.answer: Callable[[bytes], list[bytes]] = lambda data: []
        self.through = True
        self.client: NetworkSocket = self.network.socket()
        self.network.drop = self._see

    def _see(self, data: bytes, source: Any, destination: Any) -> bool:
        if source == self.client.local_address:
            for number, forged in enumerate(self.answer(data)):
                # Half a millisecond: before anything from the server can arrive.
                due = trio.current_time() + 0.0005
                self.client._put(due, -1 - number, forged, SERVER)
            return self.through
        return True


@asynccontextmanager
async def on_the_way(**options: Any) -> AsyncIterator[Interloper]:
    """A real server of ours, and an interloper."""
    between = Interloper()
    before = tasks()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            await trio_wt.serve_quic(
                echo,
                sockets=[between.network.socket(SERVER)],
                alpn=["test"],
                tls=trio_wt.ServerTLS(certificate()),
                task_status=task_status,
                **options,
            )

        await nursery.start(serve)
        with bounded_memory(4):
            yield between
        nursery.cancel_scope.cancel()
    assert tasks() == before


async def connect(between: Interloper, **settings: Any) -> None:
    """Connect, and see whether it works."""
    async with trio_wt.open_quic(
        HOST,
        PORT,
        **{
            "alpn": ["test"],
            "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
            "socket": between.client,
            **settings,
        },
    ) as connection:
        await ask(connection, b"hello")
        await trio.sleep(0.1)
        await ask(connection, b"hello")


def header(data: bytes) -> Any:
    return pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)


def negotiation(data: bytes, *versions: int) -> bytes:
    """Version negotiation in answer to a client's packet."""
    its = header(data)
    return encode_quic_version_negotiation(
        source_cid=its.destination_cid,
        destination_cid=its.source_cid,
        supported_versions=list(versions),
    )


def retry(data: bytes, token: bytes, *, cid: bytes = b"retried!", honest: bool = True) -> bytes:
    """A Retry in answer to a client's packet; the key of its tag is known to everybody."""
    its = header(data)
    made = encode_quic_retry(
        version=its.version,
        source_cid=cid,
        destination_cid=its.source_cid,
        original_destination_cid=its.destination_cid,
        retry_token=token,
    )
    return made if honest else made[:-1] + bytes([made[-1] ^ 1])


def is_initial(data: bytes) -> bool:
    return data[0] & 0xF0 == 0xC0 and data[1:5] == bytes((0, 0, 0, 1))


IGNORED: dict[str, Callable[[bytes], list[bytes]]] = {
    "its own version": lambda data: [negotiation(data, V1)],
    "its own version and others": lambda data: [negotiation(data, 0x1A1A1A1A, V1, V2)],
    "no version": lambda data: [negotiation(data, V1)[:-4]] * 0,
    "version negotiation for somebody else": lambda data: [
        encode_quic_version_negotiation(
            source_cid=bytes(8), destination_cid=b"somebody", supported_versions=[0x1A1A1A1A]
        )
    ],
    "version negotiation that is cut off": lambda data: [negotiation(data, V2)[:-3]],
    "a Retry with a wrong tag": lambda data: [retry(data, b"token", honest=False)],
    "a Retry without a token": lambda data: [retry(data, b"")],
    "a Retry that is cut off": lambda data: [retry(data, b"token" * 10)[:-1]],
    "a Retry to the same connection id": lambda data: [
        retry(data, b"token", cid=header(data).destination_cid)
    ],
    "junk": lambda data: [os.urandom(size) for size in (1, 20, 60, 1200)],
    "an empty datagram": lambda data: [b""],
    "its own packet": lambda data: [data],
    "short packets": lambda data: [b"\x40" + header(data).source_cid + os.urandom(40)],
    "something that looks like a stateless reset": lambda data: [b"\x40" + os.urandom(40)],
    "a Handshake packet": lambda data: [
        b"\xe0\0\0\0\1\x08" + header(data).source_cid + b"\x08serverid\x40\x40" + os.urandom(64)
    ],
    "an Initial packet": lambda data: [
        b"\xc0\0\0\0\1\x08" + header(data).source_cid + b"\x08serverid\0\x40\x40" + os.urandom(64)
    ],
}


@pytest.mark.parametrize("kind", IGNORED)
async def test_forged_answers_that_are_ignored(kind: str) -> None:
    async with on_the_way() as between:
        between.answer = lambda data: IGNORED[kind](data) * 3 if is_initial(data) else []
        with trio.fail_after(2):
            await connect(between)


@pytest.mark.parametrize("kind", ["its own version", "a Retry with a wrong tag", "junk"])
async def test_flood_of_forged_answers(kind: str) -> None:
    async with on_the_way() as between:
        between.answer = lambda data: IGNORED[kind](data) * 500 if is_initial(data) else []
        with trio.fail_after(2):
            await connect(between)


async def test_forged_answers_when_it_is_too_late() -> None:
    """Once the server has said something, neither Retry nor version negotiation counts."""
    first: list[bytes] = []

    def late(data: bytes) -> list[bytes]:
        if is_initial(data) and not first:
            first.append(data)
            return []
        return [negotiation(first[0], 0x1A1A1A1A), retry(first[0], b"token")]

    async with on_the_way() as between:
        between.answer = late
        with trio.fail_after(2):
            await connect(between)


async def test_forged_version_negotiation_to_another_version() -> None:
    """It may not keep the two apart for long: they agree in the end, or the client says that it failed."""
    async with on_the_way() as between:
        between.answer = lambda data: [negotiation(data, V2)] if is_initial(data) else []
        with trio.fail_after(11):
            try:
                await connect(between)
            except trio_wt.HandshakeFailed:
                pass


async def test_forged_version_negotiation_to_nothing() -> None:
    """Somebody on the way can always prevent a handshake; the client says so at once."""
    async with on_the_way() as between:
        between.answer = lambda data: [negotiation(data, 0x1A1A1A1A)] if is_initial(data) else []
        with trio.fail_after(1), pytest.raises(trio_wt.HandshakeFailed, match="version"):
            await connect(between)


@pytest.mark.parametrize("policy", ["under-load", "always"])
async def test_forged_retry(policy: Any) -> None:
    """The real server knows that the token is not its own."""
    async with on_the_way(retry=policy) as between:
        between.answer = lambda data: [retry(data, b"token")] if is_initial(data) else []
        with trio.fail_after(11), pytest.raises(trio_wt.HandshakeFailed):
            await connect(between)


@pytest.mark.parametrize("size", [1000, 1100, 1120, 1130, 1140, 1150, 1160, 1170, 2000, 60_000])
async def test_retry_with_a_large_token(size: int) -> None:
    """When it leaves no room for a packet, connecting takes its time, and fails."""
    async with on_the_way() as between:
        between.answer = lambda data: (
            [retry(data, bytes(size))] if is_initial(data) and not header(data).token else []
        )
        between.through = False
        with pytest.raises(trio_wt.HandshakeFailed):
            await connect(between, handshake_timeout=3)
        assert between.network.statistics.sent < 40


async def test_retry_for_ever() -> None:
    """Only the first counts."""
    async with on_the_way() as between:
        between.answer = lambda data: [retry(data, os.urandom(8), cid=os.urandom(8))]
        between.through = False
        with pytest.raises(trio_wt.HandshakeFailed):
            await connect(between, handshake_timeout=3)
        assert between.network.statistics.sent < 20


async def test_silence() -> None:
    """Questions become rarer, and then there is an end."""
    async with on_the_way() as between:
        between.through = False
        start = trio.current_time()
        with pytest.raises(trio_wt.HandshakeFailed, match="10 s"):
            await connect(between)
        assert 9.9 < trio.current_time() - start < 10.5
        assert between.network.statistics.sent < 20


# ---- hostile servers, after the handshake


async def test_flood_of_closes() -> None:
    """The first one counts, and is not answered."""
    async with attacked_client() as (peer, connection):
        packets = [peer.packet(frame(0x1D, 7, 500, b"r" * 500)) for _ in range(500)]
        await peer.flood(packets, pause=0.0005)
        end = await connection.wait_closed()
        assert (end.code, end.reason, end.remote) == (7, "r" * 500, True)
        with pytest.raises(trio_wt.ConnectionClosedError):
            await connection.ping()


@pytest.mark.parametrize(
    "reason",
    [b"\x1b[31m\x07\r\n" * 50, b"\xff\xfe\xfd", "\u202e\u0000".encode() * 100, b"x" * 8000],
)
async def test_reason_that_is_no_text(reason: bytes) -> None:
    async with attacked_client() as (peer, connection):
        peer.say(frame(0x1D, 7, len(reason), reason))
        end = await connection.wait_closed()
        assert (end.code, end.remote) == (7, True)
        assert isinstance(end.reason, str)


def reset_token(peer: HostileServer, sequence: int = 0) -> bytes:
    token = peer.connection._host_cids[sequence].stateless_reset_token
    assert token is not None
    return token


async def test_stateless_reset() -> None:
    """From a server that has forgotten the connection (RFC 9000 section 10.3)."""
    async with attacked_client() as (peer, connection):
        token = reset_token(peer)
        peer.silent = peer.deaf = True
        peer.send_raw(b"\x40" + os.urandom(30) + token)
        with trio.fail_after(0.1):
            end = await connection.wait_closed()
        assert isinstance(end, trio_wt.ConnectionLost)
        # Nothing more is sent to a server that knows nothing of it.
        peer.keep = True
        await trio.sleep(1)
        assert peer.received == []


@pytest.mark.parametrize("size", range(16, 21))
async def test_stateless_reset_that_is_too_short(size: int) -> None:
    async with attacked_client() as (peer, connection):
        peer.send_raw((b"\x40" + os.urandom(4))[: size - 16] + reset_token(peer))
        await trio.sleep(0.1)
        assert connection.closed is None


async def test_wrong_stateless_resets() -> None:
    async with attacked_client() as (peer, connection):
        real = reset_token(peer)
        for bit in range(128):
            token = (int.from_bytes(real) ^ 1 << bit).to_bytes(16)
            peer.send_raw(b"\x40" + os.urandom(30) + token)
        for _ in range(200):
            peer.send_raw(b"\x40" + os.urandom(60))
        await trio.sleep(0.1)
        peer.send_raw(b"\x40" + os.urandom(30) + real[1:] + b"\0")
        await trio.sleep(0.1)
        assert connection.closed is None
        await connection.ping()


async def test_stateless_reset_of_a_connection_id_not_in_use() -> None:
    """Its token says nothing (RFC 9000 section 10.3.1)."""
    async with attacked_client() as (peer, connection):
        token, sequence = os.urandom(16), peer.connection._host_cid_seq
        # It retires one, so that there is room among the eight.
        peer.say(frame(NEW_CID, sequence, 2, b"\x08not used", token))
        await trio.sleep(0.05)
        assert connection.closed is None
        peer.send_raw(b"\x40" + os.urandom(30) + token)
        await trio.sleep(0.05)
        assert connection.closed is None


async def test_server_that_sends_from_another_address() -> None:
    """Packets from addresses that the client does not know are dropped (RFC 9000 section 9)."""
    async with attacked_client() as (peer, connection):
        peer.silent = True
        peer.socket.rebind()
        peer.say(stream(1, 0, b"hello"))
        await trio.sleep(0.1)
        assert connection.statistics().open_streams == 0
        peer.socket.rebind(SERVER)
        peer.silent = False
        await connection.ping()


async def test_hostile_server_beside_an_honest_one() -> None:
    """Connections that share a socket share nothing else."""
    async with attacked_server(bystander=False) as target:
        peer = HostileServer(target.network.socket(("hostile.test", 1)), **identity())
        await target.nursery.start(peer.run)
        tls = trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256], server_name=HOST)
        async with trio_wt.open_quic_endpoint(socket=target.network.socket()) as endpoint:
            async with trio_wt.open_quic(
                HOST, PORT, alpn=["honest"], tls=tls, endpoint=endpoint
            ) as good:
                with pytest.raises(trio_wt.TransportClosed):
                    async with trio_wt.open_quic(
                        "hostile.test", 1, alpn=["test"], tls=tls, endpoint=endpoint
                    ) as bad:
                        await peer.shaken()
                        for _ in range(50):
                            peer.send_raw(os.urandom(1000))
                            peer.send_raw(b"\x40" + os.urandom(60))
                        await ask(good, b"one")
                        peer.say(stream(1, 2**61, b"x"))
                        await bad.incoming_streams.receive()
                await ask(good, b"two")
        peer.close()
        del good, bad


# ---- certificates


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
