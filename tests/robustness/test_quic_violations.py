"""What RFC 9000 forbids once the handshake is done: each is answered with its code, on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import trio
from aioquic.tls import Epoch

import trio_wt
from tests.robustness.quic_peer import HostilePeer, Stalling, ack, crypto, frame, stream, varint
from tests.robustness.quic_target import attacked_client, attacked_server

FLOW_CONTROL, STREAM_LIMIT, STREAM_STATE, FINAL_SIZE = 0x03, 0x04, 0x05, 0x06
ENCODING, CID_LIMIT, PROTOCOL, CRYPTO_BUFFER = 0x07, 0x09, 0x0A, 0x0D
UNEXPECTED_MESSAGE = 0x100 + 10

PING, RESET, STOP, NEW_TOKEN, MAX_STREAM_DATA, MAX_STREAMS = 0x01, 0x04, 0x05, 0x07, 0x11, 0x12
STREAM_BLOCKED, STREAMS_BLOCKED, NEW_CID, RETIRE_CID, DONE = 0x15, 0x16, 0x18, 0x19, 0x1E
RESET_AT = 0x24

WINDOW = 2**18
LIMIT = 128
Violation: TypeAlias = Callable[[HostilePeer], list[bytes]]


def new_cid(sequence: int, prior: int = 0, *, length: int = 8, cid: bytes = b"") -> bytes:
    cid = cid or sequence.to_bytes(length)
    return frame(NEW_CID, sequence, prior, bytes([len(cid)]), cid, bytes(16))


BOTH: dict[str, tuple[int, Violation]] = {
    # ---- what cannot be read
    "a frame type that does not exist": (ENCODING, lambda p: [frame(0x21)]),
    "a frame type of eight bytes that does not exist": (ENCODING, lambda p: [frame(2**61)]),
    "a frame type that is cut off": (ENCODING, lambda p: [frame(PING), b"\x40"]),
    "a frame that is cut off": (ENCODING, lambda p: [frame(RESET, p.own(), 1)]),
    "a STREAM frame longer than its packet": (
        ENCODING,
        lambda p: [stream(p.own(), 0, b"abc", length=4)],
    ),
    "a STREAM frame of 2^62 - 1 bytes": (
        ENCODING,
        lambda p: [stream(p.own(), 0, b"abc", length=2**62 - 1)],
    ),
    "a DATAGRAM frame longer than its packet": (ENCODING, lambda p: [frame(0x31, 9, b"abc")]),
    "a close reason longer than its packet": (ENCODING, lambda p: [frame(0x1D, 1, 2**40, b"a")]),
    "an ACK of negative packets": (ENCODING, lambda p: [ack(0, first_range=1)]),
    "an ACK whose gap leads below zero": (
        ENCODING,
        lambda p: [frame(0x02, 3, 0, 1, 1, 5, 0)],
    ),
    "an ACK of 2^62 - 1 ranges": (ENCODING, lambda p: [frame(0x02, 1, 0, 2**62 - 1, 0)]),
    # ---- acknowledgements
    "an ACK of a packet never sent": (PROTOCOL, lambda p: [ack(10_000)]),
    "an ACK of all packets there can be": (
        PROTOCOL,
        lambda p: [ack(2**62 - 1, first_range=2**62 - 1)],
    ),
    # ---- data where there is no room for it
    "a byte beyond the stream's window": (
        FLOW_CONTROL,
        lambda p: [stream(p.own(), WINDOW, b"x")],
    ),
    "a byte at a huge offset": (FLOW_CONTROL, lambda p: [stream(p.own(), 2**61, b"x")]),
    "a FIN beyond the window": (
        FLOW_CONTROL,
        lambda p: [stream(p.own(), WINDOW + 1, fin=True)],
    ),
    "bytes at the edges of five windows": (
        FLOW_CONTROL,
        lambda p: [stream(p.own(n), WINDOW - 1, b"x") for n in range(5)],
    ),
    "a reset with a final size beyond the window": (
        FLOW_CONTROL,
        lambda p: [frame(RESET, p.own(), 7, WINDOW + 1)],
    ),
    "resets with final sizes beyond the connection's window": (
        FLOW_CONTROL,
        lambda p: [frame(RESET, p.own(n), 7, WINDOW) for n in range(5)],
    ),
    "a RESET_STREAM_AT with a final size beyond the window": (
        FLOW_CONTROL,
        lambda p: [frame(RESET_AT, p.own(), 7, WINDOW + 1, 0)],
    ),
    "an offset that leads beyond 2^62": (
        ENCODING,
        lambda p: [stream(p.own(), 2**62 - 1, b"xy")],
    ),
    "more than a thousand gaps": (
        FLOW_CONTROL,
        lambda p: [stream(p.own(), 2 * n + 1, b"x") for n in range(1001)],
    ),
    # ---- streams that may not be
    "one bidirectional stream too many": (
        STREAM_LIMIT,
        lambda p: [stream(p.own(LIMIT), 0, b"x")],
    ),
    "one unidirectional stream too many": (
        STREAM_LIMIT,
        lambda p: [stream(p.own(LIMIT, uni=True), 0, b"x")],
    ),
    "the last stream there can be": (
        STREAM_LIMIT,
        lambda p: [stream(p.own(2**60 - 1), 0, b"x")],
    ),
    "a reset of one stream too many": (
        STREAM_LIMIT,
        lambda p: [frame(RESET, p.own(LIMIT), 1, 0)],
    ),
    "STOP_SENDING for one stream too many": (
        STREAM_LIMIT,
        lambda p: [frame(STOP, p.own(LIMIT), 1)],
    ),
    "data on a stream the other side has not opened": (
        STREAM_STATE,
        lambda p: [stream(p.other(50), 0, b"x")],
    ),
    "data on a stream that goes the other way": (
        STREAM_STATE,
        lambda p: [stream(p.other(uni=True), 0, b"x")],
    ),
    "a reset of a stream that goes the other way": (
        STREAM_STATE,
        lambda p: [frame(RESET, p.other(uni=True), 1, 0)],
    ),
    "a reset of a stream the other side has not opened": (
        STREAM_STATE,
        lambda p: [frame(RESET, p.other(50), 1, 0)],
    ),
    "a RESET_STREAM_AT of a stream the other side has not opened": (
        STREAM_STATE,
        lambda p: [frame(RESET_AT, p.other(50), 1, 0, 0)],
    ),
    "STOP_SENDING for a stream that only receives": (
        STREAM_STATE,
        lambda p: [frame(STOP, p.own(uni=True), 1)],
    ),
    "STOP_SENDING for a stream not opened": (
        STREAM_STATE,
        lambda p: [frame(STOP, p.other(50, uni=True), 1)],
    ),
    "MAX_STREAM_DATA for a stream that only receives": (
        STREAM_STATE,
        lambda p: [frame(MAX_STREAM_DATA, p.own(uni=True), 9)],
    ),
    "MAX_STREAM_DATA for a stream not opened": (
        STREAM_STATE,
        lambda p: [frame(MAX_STREAM_DATA, p.other(50), 9)],
    ),
    "STREAM_DATA_BLOCKED for a stream that only sends": (
        STREAM_STATE,
        lambda p: [frame(STREAM_BLOCKED, p.other(uni=True), 9)],
    ),
    "MAX_STREAMS beyond 2^60": (ENCODING, lambda p: [frame(MAX_STREAMS, 2**60 + 1)]),
    "MAX_STREAMS of the other kind beyond 2^60": (
        ENCODING,
        lambda p: [frame(MAX_STREAMS + 1, 2**60 + 1)],
    ),
    "STREAMS_BLOCKED beyond 2^60": (ENCODING, lambda p: [frame(STREAMS_BLOCKED, 2**60 + 1)]),
    # ---- ends that change
    "data behind the end": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 0, b"abc", fin=True), stream(p.own(), 3, b"d")],
    ),
    "another end": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 5, b"abc", fin=True), stream(p.own(), 4, fin=True)],
    ),
    "an end before what was sent": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 0, b"abc"), stream(p.own(), 1, fin=True)],
    ),
    "a reset before what was sent": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 0, b"abc"), frame(RESET, p.own(), 1, 2)],
    ),
    "a reset with another end": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 5, b"abc", fin=True), frame(RESET, p.own(), 1, 9)],
    ),
    "a RESET_STREAM_AT with another end": (
        FINAL_SIZE,
        lambda p: [stream(p.own(), 5, b"abc", fin=True), frame(RESET_AT, p.own(), 1, 9, 0)],
    ),
    "a RESET_STREAM_AT that promises more than there is": (
        ENCODING,
        lambda p: [frame(RESET_AT, p.own(), 1, 5, 6)],
    ),
    # ---- TLS
    "CRYPTO data at a huge offset": (CRYPTO_BUFFER, lambda p: [crypto(2**30, b"x")]),
    "CRYPTO data just beyond the buffer": (CRYPTO_BUFFER, lambda p: [crypto(2**16, b"x")]),
    "a TLS message that is out of place": (
        UNEXPECTED_MESSAGE,
        lambda p: [crypto(0, b"\x01\x00\x00\x02hi")],
    ),
    "a key update of TLS": (UNEXPECTED_MESSAGE, lambda p: [crypto(0, b"\x18\x00\x00\x01\x00")]),
    # ---- connection ids
    "a connection id without bytes": (
        ENCODING,
        lambda p: [frame(NEW_CID, 9, 0, b"\0", bytes(16))],
    ),
    "a connection id of 21 bytes": (ENCODING, lambda p: [new_cid(9, length=21)]),
    "a connection id that retires later ones": (ENCODING, lambda p: [new_cid(9, 10)]),
    "more connection ids than asked for": (
        CID_LIMIT,
        lambda p: [new_cid(n) for n in range(100, 110)],
    ),
    "connection ids that come and go": (
        CID_LIMIT,
        lambda p: [new_cid(n, n, cid=p.connection.host_cid) for n in range(100, 200)],
    ),
    "retirement of a connection id not given out": (
        PROTOCOL,
        lambda p: [frame(RETIRE_CID, 2**20)],
    ),
    "retirement of the connection id in use": (PROTOCOL, lambda p: [frame(RETIRE_CID, 0)]),
}

SERVER_ONLY: dict[str, tuple[int, Violation]] = {
    "NEW_TOKEN from a client": (PROTOCOL, lambda p: [frame(NEW_TOKEN, 3, b"abc")]),
    "HANDSHAKE_DONE from a client": (PROTOCOL, lambda p: [frame(DONE)]),
}


async def expect(peer: HostilePeer, victim: object, code: int) -> None:
    """The peer gets this code, and our side knows it too."""
    assert await peer.closed() == code, peer.end
    assert peer.end is not None
    # A transport error, and no application's.
    assert peer.end.frame_type is not None
    end = await victim.wait_closed()  # type: ignore[attr-defined]
    assert isinstance(end, trio_wt.TransportClosed)
    assert (end.code, end.remote) == (code, False)


@pytest.mark.parametrize("name", [*BOTH, *SERVER_ONLY])
async def test_client_that_breaks_a_rule(name: str) -> None:
    code, violation = {**BOTH, **SERVER_ONLY}[name]
    async with attacked_server() as target:
        peer = await target.shaken()
        peer.say(*violation(peer))
        await expect(peer, target.served[0], code)


@pytest.mark.parametrize("name", list(BOTH))
async def test_server_that_breaks_a_rule(name: str) -> None:
    code, violation = BOTH[name]
    async with attacked_client() as (peer, connection):
        peer.say(*violation(peer))
        await expect(peer, connection, code)


async def test_datagrams_that_were_not_asked_for() -> None:
    async with attacked_server(datagrams=False) as target:
        peer = await target.shaken()
        peer.say(frame(0x31, 3, b"abc"))
        await expect(peer, target.served[0], PROTOCOL)


def sealed(peer: HostilePeer, payload: bytes, *, first: int = 0x43) -> bytes:
    """A packet with a packet number of four bytes, so that its payload may be empty."""
    connection = peer.connection
    number = connection._packet_number
    connection._packet_number += 1
    header = bytes([first]) + connection._peer_cid.cid + number.to_bytes(4)
    return connection._cryptos[Epoch.ONE_RTT].encrypt_packet(header, payload, number)


async def test_packet_without_frames() -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        peer.send_raw(sealed(peer, b""))
        await expect(peer, target.served[0], PROTOCOL)


async def test_reserved_bits() -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        peer.send_raw(sealed(peer, frame(PING), first=0x43 | 0x18))
        await expect(peer, target.served[0], PROTOCOL)


# ---- before the handshake is done


EARLY: dict[str, tuple[int, Epoch, list[bytes]]] = {
    "HANDSHAKE_DONE in an Initial packet": (PROTOCOL, Epoch.INITIAL, [frame(DONE)]),
    "stream data in an Initial packet": (PROTOCOL, Epoch.INITIAL, [stream(0, 0, b"x")]),
    "stream data in a Handshake packet": (PROTOCOL, Epoch.HANDSHAKE, [stream(0, 0, b"x")]),
    "an application's close in a Handshake packet": (
        PROTOCOL,
        Epoch.HANDSHAKE,
        [frame(0x1D, 1, 0)],
    ),
    "an ACK of an Initial packet never sent": (PROTOCOL, Epoch.INITIAL, [ack(1000)]),
    "an ACK of a Handshake packet never sent": (PROTOCOL, Epoch.HANDSHAKE, [ack(1000)]),
    "CRYPTO data at a huge offset in an Initial packet": (
        CRYPTO_BUFFER,
        Epoch.INITIAL,
        [crypto(2**40, b"x")],
    ),
    "CRYPTO data at a huge offset in a Handshake packet": (
        CRYPTO_BUFFER,
        Epoch.HANDSHAKE,
        [crypto(2**40, b"x")],
    ),
    "a ClientHello for a Finished": (
        UNEXPECTED_MESSAGE,
        Epoch.HANDSHAKE,
        [crypto(0, b"\x01\x00\x00\x02hi")],
    ),
    "a Finished that is wrong": (
        0x100 + 51,
        Epoch.HANDSHAKE,
        [crypto(0, b"\x14\x00\x00\x30" + bytes(48))],
    ),
    "a frame type that does not exist": (ENCODING, Epoch.HANDSHAKE, [varint(0x3F)]),
}


@pytest.mark.parametrize("name", list(EARLY))
async def test_handshake_that_breaks_a_rule(name: str) -> None:
    code, epoch, frames = EARLY[name]
    async with attacked_server() as target:
        peer = await target.hostile(kind=Stalling)
        peer.start()
        await peer.until(lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())
        await trio.sleep(0.01)
        peer.silent = True
        peer.say(*frames, epoch=epoch)
        assert await peer.closed() == code, peer.end
        assert not target.served
