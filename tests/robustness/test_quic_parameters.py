"""Transport parameters and TLS extensions that are malicious, on both sides (RFC 9000 section 18.2, RFC 9001 section 8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from aioquic.quic.connection import QuicConnection
from aioquic.tls import ExtensionType

import trio_wt
from tests.robustness.quic_peer import HOST, PORT, SERVER, HostileServer, varint
from tests.robustness.quic_target import (
    attacked_client,
    attacked_server,
    certificate,
    identity,
    no_answer,
)
from tests.robustness.target import tasks
from trio_wt.testing import Network

PARAMETER_ERROR, PROTOCOL_VIOLATION = 0x08, 0x0A
NO_APPLICATION_PROTOCOL, MISSING_EXTENSION = 0x100 + 120, 0x100 + 109

# RFC 9000 section 18.2, RFC 9221 section 3.
ORIGINAL_CID, IDLE, RESET_TOKEN, MAX_PAYLOAD, MAX_DATA = 0x00, 0x01, 0x02, 0x03, 0x04
STREAM_LOCAL, STREAM_REMOTE, STREAM_UNI, STREAMS_BIDI, STREAMS_UNI = 0x05, 0x06, 0x07, 0x08, 0x09
ACK_EXPONENT, ACK_DELAY, PREFERRED, CID_LIMIT = 0x0A, 0x0B, 0x0D, 0x0E
SOURCE_CID, RETRY_CID, MAX_DATAGRAM = 0x0F, 0x10, 0x20
MOST = 2**62 - 1


def raw(number: int, value: bytes) -> bytes:
    return varint(number) + varint(len(value)) + value


def whole(number: int, value: int) -> bytes:
    return raw(number, varint(value))


def saying(change: Callable[[bytes], bytes]) -> type[QuicConnection]:
    """A connection whose transport parameters are changed before they are sent."""

    class Saying(QuicConnection):
        def _serialize_transport_parameters(self) -> bytes:
            return change(super()._serialize_transport_parameters())

    return Saying


def also(*more: bytes) -> Callable[[bytes], bytes]:
    """Parameters that come behind the real ones; the last of a kind is what counts."""
    return lambda real: real + b"".join(more)


def without(number: int) -> Callable[[bytes], bytes]:
    def change(real: bytes) -> bytes:
        kept, at = b"", 0
        while at < len(real):
            start = at
            values = []
            for _ in range(2):
                size = 1 << (real[at] >> 6)
                values.append(int.from_bytes(real[at : at + size]) & (1 << (8 * size - 2)) - 1)
                at += size
            at += values[1]
            if values[0] != number:
                kept += real[start:at]
        return kept

    return change


BAD: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda real: real[:-1],
    "nothing at all": lambda real: b"",
    "junk": lambda real: b"\xff" * 100,
    "a length beyond the end": lambda real: real + varint(0x7777) + varint(MOST),
    "an integer in too many bytes": also(raw(MAX_DATA, bytes(9))),
    "an integer in no bytes": also(raw(MAX_DATA, b"")),
    "no source connection id": without(SOURCE_CID),
    "another source connection id": also(raw(SOURCE_CID, b"another!")),
    "an acknowledgement delay exponent of 21": also(whole(ACK_EXPONENT, 21)),
    "an acknowledgement delay of 2^14": also(whole(ACK_DELAY, 2**14)),
    "one active connection id": also(whole(CID_LIMIT, 1)),
    "no active connection id": also(whole(CID_LIMIT, 0)),
    "packets of 1199 bytes": also(whole(MAX_PAYLOAD, 1199)),
    "packets of no bytes": also(whole(MAX_PAYLOAD, 0)),
    "too many bidirectional streams": also(whole(STREAMS_BIDI, 2**60 + 1)),
    "too many unidirectional streams": also(whole(STREAMS_UNI, MOST)),
}
BAD_FROM_CLIENT = {
    "the original connection id": also(raw(ORIGINAL_CID, bytes(8))),
    "a retry connection id": also(raw(RETRY_CID, bytes(8))),
    "a reset token": also(raw(RESET_TOKEN, bytes(16))),
    "a preferred address": also(raw(PREFERRED, bytes(24) + b"\x08" + bytes(24))),
}
BAD_FROM_SERVER = {
    "no original connection id": without(ORIGINAL_CID),
    "another original connection id": also(raw(ORIGINAL_CID, bytes(8))),
    "a retry connection id without a Retry": also(raw(RETRY_CID, bytes(8))),
    "a preferred address that is cut off": also(raw(PREFERRED, bytes(24))),
}

GOOD: dict[str, Callable[[bytes], bytes]] = {
    "limits without end": also(
        *(
            whole(number, MOST)
            for number in (MAX_DATA, STREAM_LOCAL, STREAM_REMOTE, STREAM_UNI, IDLE, MAX_PAYLOAD)
        ),
        whole(STREAMS_BIDI, 2**60),
        whole(STREAMS_UNI, 2**60),
        whole(CID_LIMIT, MOST),
        whole(MAX_DATAGRAM, MOST),
    ),
    "the slowest acknowledgements": also(whole(ACK_EXPONENT, 20), whole(ACK_DELAY, 2**14 - 1)),
    "datagrams of one byte": also(whole(MAX_DATAGRAM, 1)),
    "no datagrams": also(whole(MAX_DATAGRAM, 0)),
    "parameters nobody knows": also(*(raw(27 + 31 * n, bytes(9)) for n in range(40))),
    "a parameter of 10 KB that nobody knows": also(raw(2**40, bytes(10_000))),
    "the same one a hundred times": also(*[whole(IDLE, 30_000)] * 100),
    "packets of 1200 bytes": also(whole(MAX_PAYLOAD, 1200)),
    "no idle timeout": also(whole(IDLE, 0)),
}
GOOD_FROM_SERVER = {
    "a preferred address of its own machine": also(
        raw(PREFERRED, bytes([127, 0, 0, 1, 1, 1]) + bytes(18) + b"\x08preferre" + bytes(16))
    ),
}
SILENCING: dict[str, Callable[[bytes], bytes]] = {
    "no credit at all": also(
        *(whole(number, 0) for number in (MAX_DATA, STREAM_LOCAL, STREAM_REMOTE, STREAM_UNI)),
        whole(STREAMS_BIDI, 0),
        whole(STREAMS_UNI, 0),
    ),
    "an idle timeout of a millisecond": also(whole(IDLE, 1)),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_FROM_CLIENT])
async def test_client_with_bad_parameters(name: str) -> None:
    async with attacked_server() as target:
        peer = await target.hostile(kind=saying({**BAD, **BAD_FROM_CLIENT}[name]))
        peer.start()
        assert await peer.closed() == PARAMETER_ERROR
        assert not target.served


@pytest.mark.parametrize("name", GOOD)
async def test_client_with_strange_parameters(name: str) -> None:
    async with attacked_server(patience=60) as target:
        peer = await target.shaken(kind=saying(GOOD[name]))
        await peer.echo(0, bytes(20_000))
        peer.connection.send_datagram_frame(b"datagram")
        peer.go_on()
        await trio.sleep(0.1)
        assert peer.end is None
        assert target.served[0].closed is None


@pytest.mark.parametrize("name", SILENCING)
async def test_client_that_leaves_no_room(name: str) -> None:
    async def handler(connection: trio_wt.Connection) -> None:
        async with connection.open_stream() as out:
            await out.send_all(b"hello")

    async with attacked_server(handler, patience=60, idle_timeout=3) as target:
        peer = await target.shaken(kind=saying(SILENCING[name]))
        await trio.sleep(2)
        peer.close()


# ---- servers


async def connect_to(peer_options: dict[str, Any], **settings: Any) -> HostileServer:
    """Let our client try to connect to such a server, which must fail."""
    network = Network()
    before = tasks()
    async with trio.open_nursery() as nursery:
        peer = HostileServer(network.socket(SERVER), **{**identity(), **peer_options})
        await nursery.start(peer.run)
        with trio.fail_after(11), pytest.raises(trio_wt.HandshakeFailed):
            async with trio_wt.open_quic(
                HOST,
                PORT,
                **{
                    "alpn": ["test"],
                    "tls": trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                    "socket": network.socket(),
                    **settings,
                },
            ):
                raise AssertionError("the handshake should fail")
        await trio.sleep(0.01)
        peer.close()
    assert tasks() == before
    return peer


@pytest.mark.parametrize("name", [*BAD, *BAD_FROM_SERVER])
async def test_server_with_bad_parameters(name: str) -> None:
    start = trio.current_time()
    peer = await connect_to({"kind": saying({**BAD, **BAD_FROM_SERVER}[name])})
    assert trio.current_time() - start < 1
    assert await peer.closed() == PARAMETER_ERROR


@pytest.mark.parametrize("name", [*GOOD, *GOOD_FROM_SERVER])
async def test_server_with_strange_parameters(name: str) -> None:
    change = {**GOOD, **GOOD_FROM_SERVER}[name]
    async with attacked_client(hostile={"kind": saying(change)}) as (peer, connection):

        async def send() -> None:
            async with connection.open_send_stream() as out:
                await out.send_all(bytes(20_000))

        await send()
        await peer.until(lambda: peer.got == 20_000)
        if connection.datagrams.max_size:
            await connection.datagrams.send(b"x")
        else:
            with pytest.raises(trio_wt.DatagramTooLarge):
                await connection.datagrams.send(b"x")
        assert await connection.ping() < 20
        assert connection.closed is None


# ---- TLS


class NoParameters(QuicConnection):
    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls.handshake_extensions = []


class OldSession(QuicConnection):
    """A session id of TLS 1.2, which QUIC has no use for (RFC 9001 section 8.4)."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls.legacy_session_id = bytes(32)


class ManyExtensions(QuicConnection):
    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        (parameters,) = self.tls.handshake_extensions
        assert parameters[0] == ExtensionType.QUIC_TRANSPORT_PARAMETERS
        self.tls.handshake_extensions = [
            *((0x7A00 + number, bytes(20)) for number in range(400)),
            parameters,
        ]


@pytest.mark.parametrize(
    ("kind", "code"), [(NoParameters, MISSING_EXTENSION), (OldSession, PROTOCOL_VIOLATION)]
)
async def test_client_with_a_strange_hello(kind: type[QuicConnection], code: int) -> None:
    async with attacked_server() as target:
        peer = await target.hostile(kind=kind)
        peer.start()
        assert await peer.closed() == code
        assert not target.served


@pytest.mark.parametrize("protocols", [None, ["other"], ["x" * 200] * 20])
async def test_client_with_another_protocol(protocols: list[str] | None) -> None:
    async with attacked_server() as target:
        peer = await target.hostile(alpn_protocols=protocols)
        peer.start()
        assert await peer.closed() == NO_APPLICATION_PROTOCOL
        assert not target.served


@pytest.mark.parametrize("number", [500, 4000])
async def test_client_with_thousands_of_protocols(number: int) -> None:
    """As much as there is room for."""
    async with attacked_server(no_answer) as target:
        peer = await target.hostile(
            alpn_protocols=[f"p{n}" for n in range(number)][::-1] + ["test"]
        )
        try:
            peer.start()
        except Exception:
            return  # more than the peer's own TLS can say
        await trio.sleep(1)


async def test_server_without_parameters() -> None:
    peer = await connect_to({"kind": NoParameters})
    assert await peer.closed() == MISSING_EXTENSION


async def test_server_with_hundreds_of_extensions() -> None:
    async with attacked_client(hostile={"kind": ManyExtensions}) as (_, connection):
        await connection.ping()
