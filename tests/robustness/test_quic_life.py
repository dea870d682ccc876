"""Keys, packet numbers, connection ids and ends, used in ways that nobody honest would."""

from __future__ import annotations

import gc
import os
import socket
import tracemalloc
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

import trio_wt
from tests.robustness.quic_peer import ALPN, HOST, SERVER, HostileClient, frame, stream
from tests.robustness.quic_target import ask, attacked_server, certificate, echo
from tests.robustness.target import nothing_left

KEY_UPDATE_ERROR = 0x0E
PING = frame(0x01)


# ---- keys


async def test_key_updates_without_end() -> None:
    """With every packet a new key: it may be refused, and costs nothing that stays."""
    async with attacked_server(memory=2) as target:
        peer = await target.shaken()
        peer.silent = True
        for _ in range(300):
            peer.connection._cryptos[Epoch.ONE_RTT]._update_key("test")
            peer.say(PING)
            await trio.sleep(0.001)
            if peer.end is not None:
                break
        assert peer.end is None or peer.end.error_code == KEY_UPDATE_ERROR


async def test_packets_of_the_next_key_phase_that_are_junk() -> None:
    """A flipped bit makes us try the next keys, and no more than that."""
    async with attacked_server() as target:
        peer = await target.shaken()
        for _ in range(300):
            real = peer.packet(PING, bytes(20))
            peer.send_raw(real[:-1] + bytes([real[-1] ^ 1]))
            crypto = peer.connection._cryptos[Epoch.ONE_RTT]
            phase, crypto.send.key_phase = crypto.send.key_phase, 1 - crypto.send.key_phase
            peer.say(PING)
            crypto.send.key_phase = phase
        await peer.echo(0, b"still here")


# ---- packet numbers


def numbered(peer: HostileClient, number: int, payload: bytes) -> bytes:
    """A packet with a packet number of four bytes."""
    connection = peer.connection
    header = b"\x43" + connection._peer_cid.cid + (number & 0xFFFFFFFF).to_bytes(4)
    return connection._cryptos[Epoch.ONE_RTT].encrypt_packet(header, payload, number)


async def test_packet_numbers_that_jump() -> None:
    async with attacked_server(patience=40) as target:
        peer = await target.shaken()
        number = 1000
        for _ in range(40):
            peer.send_raw(numbered(peer, number, PING + bytes(3)))
            number += 2**29
        await trio.sleep(0.1)
        assert target.served[0].closed is None
        peer.connection._packet_number = number
        peer.send_raw(numbered(peer, number, frame(0x30, b"hello")))
        await peer.until(lambda: peer.datagrams == [b"hello"])


async def test_every_second_packet() -> None:
    """Thousands of gaps in what is received: acknowledgements name so many, and no more."""
    async with attacked_server(memory=2) as target:
        peer = await target.shaken()
        peer.connection._packet_number += 1
        for _ in range(1500):
            peer.say(PING)
            peer.connection._packet_number += 1
            if peer.connection._packet_number % 40 < 2:
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert target.served[0].statistics().packets_received > 1000
        # A range or two per acknowledgement would be 3000 bytes each.
        assert target.sent_to(peer.socket.local_address) < 100_000
        await peer.echo(0, b"still here")


# ---- connection ids and addresses


@pytest.mark.parametrize("length", [0, 1, 20])
async def test_connection_ids_of_other_lengths(length: int) -> None:
    """Those of the client; it must choose eight bytes at least for the server's first one."""

    class Other(QuicConnection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._peer_cid.cid = self._original_destination_connection_id = os.urandom(8)

        def _replenish_connection_ids(self) -> None:
            if length:
                super()._replenish_connection_ids()

    async with attacked_server() as target:
        peer = await target.shaken(kind=Other, connection_id_length=length)
        await peer.echo(0, bytes(5000))


async def test_client_that_never_stays() -> None:
    """From a new address with each packet: nothing of the old ones stays."""
    async with attacked_server(memory=2) as target:
        peer = await target.shaken()
        figures = []
        for number in range(150):
            peer.socket.rebind()
            peer.say(PING)
            await trio.sleep(0.005)
            if number % 50 == 49:
                target.carried.clear()
                gc.collect()
                figures.append(tracemalloc.get_traced_memory()[0])
        assert figures[2] - figures[1] < 64 * 1024, figures
        await peer.echo(0, b"still here", 10)
        assert target.served[0].peer_address == peer.socket.local_address


async def test_client_that_uses_all_its_connection_ids() -> None:
    """Each from an address of its own, and again."""
    async with attacked_server(memory=2) as target:
        peer = await target.shaken()
        for _ in range(30):
            await trio.sleep(0.02)
            peer.connection.change_connection_id()
            peer.socket.rebind()
            peer.connection.send_ping(1)
            peer.go_on()
        await trio.sleep(0.1)
        await peer.echo(0, b"still here", 10)


# ---- ends


async def test_packets_after_one_s_own_close() -> None:
    """The peer has closed: nothing is sent to it any more (RFC 9000 section 10.2.2)."""
    async with attacked_server() as target:
        peer = await target.shaken()
        packets = [peer.packet(PING) for _ in range(300)]
        peer.say(frame(0x1D, 9, 0))
        await trio.sleep(0.01)
        sent = target.sent_to(peer.socket.local_address)
        for data in packets:
            peer.send_raw(data)
        await trio.sleep(0.01)
        assert target.sent_to(peer.socket.local_address) == sent


async def test_packets_after_a_violation() -> None:
    """They are answered now and then (RFC 9000 section 10.2.1)."""
    async with attacked_server() as target:
        peer = await target.shaken()
        packets = [peer.packet(PING) for _ in range(500)]
        peer.silent = True
        peer.say(stream(0, 2**61, b"x"))
        await peer.closed()
        peer.keep = True
        for data in packets:
            peer.send_raw(data)
        await trio.sleep(0.05)
        assert 1 <= len(peer.received) <= 10


async def test_close_in_every_kind_of_packet() -> None:
    """A client that closes in the middle of its handshake."""
    async with attacked_server() as target:
        for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
            peer = await target.hostile()
            peer.start()
            peer.silent = True
            await peer.until(lambda p=peer: p.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())
            peer.say(frame(0x1C, 1, 0, 0), epoch=epoch)
            peer.close()
        await trio.sleep(0.3)
        assert not target.served


@pytest.mark.parametrize(
    "reason", [b"\x1b]0;gotcha\x07\r\n\0", b"\xff\xfe", "\u202eabc".encode(), b"%s%n{0}" * 100]
)
async def test_close_reasons_never_reach_the_log(reason: bytes) -> None:
    """`conftest.py` looks at its lines."""

    async def careless(connection: trio_wt.Connection) -> None:
        async with connection.open_stream() as out:
            await out.send_all(b"hello")
            await out.receive_exactly(100)

    async with attacked_server(careless) as target:
        peer = await target.shaken()
        await trio.sleep(0.05)
        peer.say(frame(0x1D, 7, len(reason), reason))
        await trio.sleep(0.05)


# ---- on real sockets


@pytest.mark.real_clock
async def test_junk_on_a_real_socket() -> None:
    """Junk, floods of Initial packets and senders that are gone; a server on a UDP socket goes on all the same."""
    hello = HostileClient(None, server_name=HOST)  # type: ignore[arg-type]
    hello.connection.connect(SERVER, 0)
    ((first, _),) = hello.connection.datagrams_to_send(0)
    async with nothing_left(), trio.open_nursery() as nursery:
        serve = partial(
            trio_wt.serve_quic,
            echo,
            0,
            host="127.0.0.1",
            alpn=ALPN,
            tls=trio_wt.ServerTLS(certificate()),
            handshake_timeout=0.5,
        )
        (server,) = await nursery.start(serve)
        address = server.local_address
        tls = trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256], server_name=HOST)
        for round_ in range(4):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
                for size in (0, 1, 20, 60, 1200, 1500, 9000, 60_000):
                    with suppress(OSError):
                        junk.sendto(os.urandom(size), address)
                        junk.sendto(b"\x40" + os.urandom(size), address)
                for _ in range(5):
                    forged = bytearray(first)
                    forged[6:14] = os.urandom(8)
                    junk.sendto(forged, address)
            async with trio_wt.open_quic("127.0.0.1", address[1], alpn=ALPN, tls=tls) as connection:
                with trio.fail_after(2):
                    await ask(connection, b"%d" % round_)
        await trio.sleep(0.6)
        nursery.cancel_scope.cancel()
