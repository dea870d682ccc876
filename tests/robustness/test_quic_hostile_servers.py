"""Servers that mean our clients no good, once the handshake is done."""

from __future__ import annotations

import os

import pytest
import trio

import trio_wt
from tests.robustness.quic_peer import HOST, PORT, SERVER, HostileServer, frame, stream
from tests.robustness.quic_target import (
    ask,
    attacked_client,
    attacked_server,
    certificate,
    identity,
)

NEW_CID = 0x18


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
