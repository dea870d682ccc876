"""Datagrams from nowhere: junk, forged addresses, damaged and copied packets. None of it may be answered with more than it is."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import trio
from aioquic.quic.packet import encode_quic_version_negotiation
from aioquic.tls import Epoch

import trio_wt
from tests.robustness.quic_peer import SERVER, HostileClient, Stalling, frame
from tests.robustness.quic_target import Target, attacked_server
from trio_wt.testing import Network, NetworkSocket

UNKNOWN_VERSION = 0x1A2A3A4A


def long_header(
    version: int, size: int, *, cid: bytes = b"12345678", source: bytes = b"abcdefgh", kind: int = 0
) -> bytes:
    """A packet with a long header, filled with zeros."""
    first = 0xC0 | kind << 4
    head = bytes([first]) + version.to_bytes(4) + bytes([len(cid)]) + cid
    return (head + bytes([len(source)]) + source).ljust(size, b"\0")[:size]


def short_header(size: int) -> bytes:
    return (b"\x40" + os.urandom(8)).ljust(size, b"\x07")[:size]


async def answers(target: Target, socket: NetworkSocket, packets: list[bytes]) -> list[bytes]:
    """What the server says to these."""
    await trio.sleep(0.01)
    socket.receive()
    for at, data in enumerate(packets):
        socket.send([(data, SERVER)])
        if at % 60 == 59:
            await trio.sleep(0)
    await trio.sleep(0.01)
    found = []
    while batch := socket.receive():
        found += [data for data, _ in batch]
    return found


# ---- junk


@pytest.mark.parametrize("seed", range(3))
async def test_junk_of_all_sizes(seed: int) -> None:
    chance = random.Random(seed)
    async with attacked_server() as target:
        socket = target.network.socket()
        sizes = [*range(60), *chance.sample(range(60, 1600), 60), 65_507]
        junk = [chance.randbytes(size) for size in sizes]
        junk += [bytes([first]) * 1300 for first in range(0, 256, 5)]
        for data in junk:
            found = await answers(target, socket, [data])
            assert sum(map(len, found)) <= len(data)
            assert len(found) <= 1
        socket.close()


async def test_flood_of_junk() -> None:
    """The server says a thousand things a second to strangers at most."""
    async with attacked_server() as target:
        socket = target.network.socket()
        await trio.sleep(2)
        found = await answers(target, socket, [short_header(100)] * 2000)
        found += await answers(target, socket, [long_header(UNKNOWN_VERSION, 1200)] * 1000)
        assert 900 <= len(found) <= 1050
        await target.still_serves()
        socket.close()


async def test_junk_beside_a_handshake() -> None:
    """Sent to a connection id in use, from its own address and from others."""
    chance = random.Random(5)
    async with attacked_server() as target:
        peer = await target.hostile(kind=Stalling)
        peer.start()
        await peer.until(lambda: peer.connection._peer_cid.sequence_number is not None)
        stranger = target.network.socket()
        for socket in (peer.socket, stranger):
            for kind in range(4):
                for size in (30, 200, 1200):
                    data = long_header(1, size, cid=peer.connection._peer_cid.cid, kind=kind)
                    socket.send([(data, SERVER)])
                    socket.send([(data[:20] + chance.randbytes(size - 20), SERVER)])
        await trio.sleep(0.1)
        assert peer.end is None
        stranger.close()


# ---- first packets


@pytest.mark.parametrize("size", [1199, 600, 50, 26])
async def test_initial_in_a_short_datagram(size: int) -> None:
    """It is not answered at all (RFC 9000 section 14.1)."""
    async with attacked_server() as target:
        peer = HostileClient(target.network.socket())
        peer.connection.connect(SERVER, trio.current_time())
        data = peer.packet(frame(0x01), epoch=Epoch.INITIAL)
        assert await answers(target, peer.socket, [data[:size]]) == []
        peer.close()


async def test_initial_to_a_connection_id_that_is_too_short() -> None:
    async with attacked_server() as target:
        socket = target.network.socket()
        for length in range(8):
            data = long_header(1, 1200, cid=bytes(length))
            assert await answers(target, socket, [data]) == []
        socket.close()


@pytest.mark.parametrize("kind", [1, 2, 3])
async def test_first_packet_of_another_kind(kind: int) -> None:
    """0-RTT, Handshake or Retry, of no connection."""
    async with attacked_server() as target:
        socket = target.network.socket()
        assert await answers(target, socket, [long_header(1, 1300, kind=kind)]) == []
        socket.close()


# ---- version negotiation


async def test_unknown_version() -> None:
    async with attacked_server() as target:
        socket = target.network.socket()
        (found,) = await answers(target, socket, [long_header(UNKNOWN_VERSION, 1200)])
        assert len(found) < 60
        assert found[1:5] == bytes(4)
        assert found[5:23] == b"\x08abcdefgh\x0812345678"
        assert await answers(target, socket, [long_header(UNKNOWN_VERSION, 1199)]) == []
        socket.close()


async def test_unknown_version_with_long_connection_ids() -> None:
    async with attacked_server() as target:
        socket = target.network.socket()
        for length in (0, 20, 21, 255):
            data = long_header(UNKNOWN_VERSION, 1200, cid=bytes(length), source=bytes(length))
            assert sum(map(len, await answers(target, socket, [data]))) < 600
        socket.close()


async def test_version_negotiation_is_never_answered() -> None:
    """Otherwise two servers could be set upon each other."""
    async with attacked_server() as target:
        socket = target.network.socket()
        data = encode_quic_version_negotiation(
            source_cid=bytes(8), destination_cid=bytes(8), supported_versions=[1, 2]
        )
        for packet in (data, data.ljust(1200, b"\0"), data.ljust(1500, b"\x1a")):
            assert await answers(target, socket, [packet]) == []
        socket.close()


# ---- stateless resets


async def test_stateless_resets() -> None:
    """They are smaller than what they answer, and look like any packet (RFC 9000 section 10.3)."""
    async with attacked_server() as target:
        socket = target.network.socket()
        for size in range(1, 60):
            found = await answers(target, socket, [short_header(size)])
            if size < 22:
                assert found == []
            else:
                (reset,) = found
                assert 21 <= len(reset) < size
                assert reset[0] & 0xC0 == 0x40
        (reset,) = await answers(target, socket, [short_header(1500)])
        assert len(reset) < 100
        socket.close()


async def test_resets_do_not_go_to_and_fro() -> None:
    """Two servers that answer each other fall silent."""
    async with attacked_server() as target:
        socket = target.network.socket()
        packets, turns = [short_header(1200)], 0
        while packets:
            packets = await answers(target, socket, packets)
            turns += 1
        assert turns < 30
        socket.close()


async def test_no_reset_for_a_connection_that_lives() -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        cid = peer.connection._peer_cid.cid
        stranger = target.network.socket()
        junk = [b"\x40" + cid + os.urandom(100) for _ in range(50)]
        assert await answers(target, stranger, junk) == []
        await peer.echo(0, b"still here")
        stranger.close()


# ---- after the end


async def ended(target: Target, *, in_handshake: bool) -> bytes:
    """The connection id of a connection that the server has just closed."""
    if in_handshake:
        peer = await target.hostile(kind=Stalling)
        peer.start()
        await peer.until(lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())
        peer.silent = True
        peer.say(frame(0x1E), epoch=Epoch.HANDSHAKE)
    else:
        peer = await target.shaken()
        peer.say(frame(0x1E))
    await peer.closed()
    return peer.connection._peer_cid.cid


@pytest.mark.parametrize("in_handshake", [False, True])
@pytest.mark.parametrize("size", [25, 60, 1200])
async def test_late_packets(in_handshake: bool, size: int) -> None:
    """They are answered now and then, at most threefold, and not for ever (RFC 9000 section 10.2.1)."""
    async with attacked_server() as target:
        cid = await ended(target, in_handshake=in_handshake)
        stranger = target.network.socket()
        late = (b"\x40" + cid).ljust(size, b"\1")
        for number in (1, 1, 1, 100):
            found = await answers(target, stranger, [late] * number)
            assert sum(map(len, found)) <= 3 * size * number
            assert len(found) <= 1 if number == 1 else 7
        await trio.sleep(60)
        found = await answers(target, stranger, [late] * 3)
        assert all(len(data) < 45 for data in found)  # resets
        stranger.close()


# ---- damaged and copied packets


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(3))
async def test_flipped_bits(seed: int) -> None:
    """Packets of the handshake and after it, each with one bit flipped, arrive beside the real ones."""
    chance = random.Random(seed)
    async with attacked_server(patience=15, memory=8) as target:
        peer = await target.hostile()
        peer.keep = True
        peer.start()
        await peer.until(lambda: peer.handshake)
        peer.connection.send_stream_data(0, b"hello")
        peer.go_on()
        for data in list(peer.sent):
            bits = {*range(16), *(chance.randrange(8 * len(data)) for _ in range(24))}
            for bit in bits:
                peer.socket.send([(flipped(data, bit), SERVER)])
            await trio.sleep(0.005)
        peer.keep = False
        await peer.until(lambda: peer.data.get(0) == b"hello")
        await peer.echo(4, b"still here")


@pytest.mark.parametrize("from_elsewhere", [False, True])
async def test_copied_packets(from_elsewhere: bool) -> None:
    """A whole conversation, sent again: nothing of it counts twice, and nothing is answered with much."""
    async with attacked_server(max_packet_size=1200) as target:
        peer = await target.hostile()
        peer.keep = True
        await peer.shake_hands()
        await peer.echo(0, b"hello")
        for number in range(5):
            peer.say(frame(0x30, b"%d" % number))
        await peer.until(lambda: len(peer.datagrams) == 5)
        peer.keep = False
        socket = target.network.socket() if from_elsewhere else peer.socket
        sent = target.sent_to(socket.local_address)
        for data in peer.sent * 10:
            socket.send([(data, SERVER)])
        await trio.sleep(0.1)
        assert len(peer.datagrams) == 5
        assert target.sent_to(socket.local_address) - sent <= 3 * 1200
        await peer.echo(4, b"still here")
        assert target.served[0].peer_address == peer.socket.local_address
        if from_elsewhere:
            socket.close()


# ---- forged addresses on a connection that lives


async def flowing(connection: trio_wt.Connection) -> None:
    """Send without end."""
    async with connection.open_send_stream() as out:
        while True:
            await out.send_all(bytes(65536))


def budget(target: Target, address: Any) -> None:
    assert target.sent_to(address) <= 3 * target.got_from(address), address


async def test_migration_to_a_victim() -> None:
    """A client in the middle of a download claims to be elsewhere: there, three times its packets arrive at most."""
    async with attacked_server(flowing, network=Network(rate=2e6)) as target:
        peer = await target.shaken()
        peer.forgetful = True
        await trio.sleep(0.1)
        own = target.sent_to(peer.socket.local_address)
        assert own > 100_000
        home = peer.socket.local_address
        peer.silent = True
        peer.socket.rebind()
        victim = peer.socket.local_address
        peer.say(frame(0x01))
        await trio.sleep(1)
        budget(target, victim)
        peer.say(frame(0x01), bytes(1000))
        await trio.sleep(1)
        budget(target, victim)
        assert target.sent_to(victim) > 0  # it was asked whether it is there
        peer.socket.rebind(home)


async def test_migration_to_many_victims() -> None:
    async with attacked_server(flowing, network=Network(rate=2e6)) as target:
        peer = await target.shaken()
        peer.forgetful = True
        await trio.sleep(0.1)
        victims = []
        for _ in range(60):
            peer.socket.rebind()
            victims.append(peer.socket.local_address)
            peer.silent = True
            peer.say(frame(0x01))
            await trio.sleep(0.02)
        await trio.sleep(1)
        for victim in victims:
            budget(target, victim)


@pytest.mark.parametrize("count", [1, 40])
async def test_path_challenges_from_forged_addresses(count: int) -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        home = peer.socket.local_address
        victims = []
        for _ in range(20):
            peer.silent = True
            peer.socket.rebind()
            victims.append(peer.socket.local_address)
            peer.say(*(frame(0x1A, os.urandom(8)) for _ in range(count)))
            await trio.sleep(0.01)
        await trio.sleep(0.5)
        for victim in victims:
            budget(target, victim)
        peer.socket.rebind(home)
        peer.silent = False
        await peer.echo(0, b"still here")


@pytest.mark.parametrize("overtakes", [False, True])
async def test_attacker_who_copies_a_client_s_packets(overtakes: bool) -> None:
    """One on the way sends them on from an address of his own; the client gets its download all the same."""
    async with attacked_server(flowing, memory=16, network=Network(rate=2e6)) as target:
        attacker = target.network.socket()
        async with target.honest() as connection, trio.open_nursery() as nursery:
            home = connection.local_address
            incoming = await connection.incoming_receive_streams.receive()

            async def read() -> None:
                async for _ in incoming:
                    pass

            nursery.start_soon(read)
            await trio.sleep(0.05)
            copied, ends = 0, trio.current_time() + 0.5

            def copy(data: bytes, source: object, destination: object) -> bool:
                nonlocal copied
                if source != home or trio.current_time() > ends:
                    return True
                copied += 1
                attacker.send([(data, SERVER)])
                return not overtakes

            target.keep = copy
            await trio.sleep(2)
            assert copied > 5
            budget(target, attacker.local_address)
            before = target.sent_to(home)
            await trio.sleep(0.5)
            assert target.sent_to(home) > before + 100_000
            assert target.served[0].peer_address == home
            nursery.cancel_scope.cancel()
        attacker.close()
