"""Handshakes that never end, are too large, malformed, or come by the thousand; and tokens that were stolen."""

from __future__ import annotations

import random
from itertools import count

import pytest
import trio
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from tests.robustness.quic_peer import SERVER, HostileClient, Stalling, crypto, frame
from tests.robustness.quic_target import Target, attacked_server
from tests.robustness.target import tasks

INVALID_TOKEN = int(QuicErrorCode.INVALID_TOKEN)
CRYPTO_BUFFER_EXCEEDED = 0x0D
RETRY = 0xF0  # the first byte of a Retry packet of version 1, without its low bits


def initials(number: int) -> list[bytes]:
    """First packets of as many clients, of which only the first knows what to do with an answer."""
    made = []
    for _ in range(number):
        client = HostileClient(None)  # type: ignore[arg-type]
        client.connection.connect(SERVER, trio.current_time())
        made += [data for data, _ in client.connection.datagrams_to_send(trio.current_time())]
    return made


def is_retry(data: bytes) -> bool:
    return data[0] & 0xF0 == RETRY


# ---- floods


async def test_flood_from_forged_addresses() -> None:
    """From the 65th on they must prove their address; the others get three times what they sent at most."""
    async with attacked_server(memory=12, patience=15) as target:
        socket = target.network.socket()
        target.log = []
        packets, before = initials(200), tasks()
        for at, data in enumerate(packets):
            socket.send([(data, SERVER)])
            socket.rebind()
            if at % 20 == 19:
                await trio.sleep(0.001)
        await trio.sleep(0.05)
        half_open = tasks() - before
        retries = [data for data, source, _ in target.log if source == SERVER and is_retry(data)]
        assert len(retries) == 200 - 64
        assert half_open <= 2 * 64
        await target.still_serves()
        await trio.sleep(10)
        assert tasks() <= before
        await target.still_serves()
        socket.close()
        for (source, destination), sent in target.carried.items():
            if source == SERVER:
                assert sent <= 3 * target.got_from(destination)


async def hold(target: Target, hosts: int, number: int) -> None:
    """Clients that answer a Retry, and never end their handshakes."""
    for at in range(number):
        socket = target.network.socket((f"10.99.0.{at % hosts + 1}", 1000 + at))
        peer = await target.hostile(socket, kind=Stalling)
        peer.start()
        await trio.sleep(0.005)
        peer.silent = True


async def test_flood_from_one_real_address() -> None:
    """An attacker who answers a Retry may hold some handshakes, but others still get in."""
    async with attacked_server(memory=12, patience=15, max_half_open=4) as target:
        before = tasks()
        await hold(target, 1, 40)
        await trio.sleep(0.05)
        assert tasks() - before <= 40 + 2 * 16
        await target.still_serves()


async def test_flood_from_many_real_addresses() -> None:
    """What so many may hold has a bound too; who comes then gets in when their time is over."""
    async with attacked_server(memory=12, patience=15, max_half_open=4) as target:
        before = tasks()
        await hold(target, 40, 40)
        await trio.sleep(0.05)
        assert tasks() - before <= 40 + 2 * 16
        await trio.sleep(10)
        await target.still_serves()


async def test_retry_for_everybody() -> None:
    async with attacked_server(retry="always") as target:
        target.log = []
        socket = target.network.socket()
        for data in initials(100):
            socket.send([(data, SERVER)])
        await trio.sleep(0.01)
        assert {
            is_retry(data) for data, source, to in target.log if to == socket.local_address
        } == {True}
        assert target.sent_to(socket.local_address) < target.got_from(socket.local_address) / 5
        socket.close()
        await target.still_serves()


async def test_handshakes_in_a_row() -> None:
    """Connections that open and close leave nothing but a bounded memory of their ends."""
    async with attacked_server() as target:
        for _ in range(50):
            peer = await target.shaken()
            peer.leave()
            target.peers.remove(peer)


# ---- handshakes that do not get on


async def gone(target: Target, wanted: int, seconds: float) -> None:
    with trio.fail_after(seconds):
        while tasks() > wanted:
            await trio.sleep(0.1)


@pytest.mark.parametrize("talkative", [True, False])
async def test_handshake_that_never_ends(talkative: bool) -> None:
    """It is dropped after ten seconds, however much its client has to say until then."""
    async with attacked_server() as target:
        before = tasks()
        peer = await target.hostile(kind=Stalling)
        peer.start()
        await trio.sleep(0.1)
        peer.silent = True
        with trio.move_on_after(9.8):
            while talkative:
                await trio.sleep(0.5)
                peer.say(frame(0x01), epoch=Epoch.INITIAL)
            await trio.sleep_forever()
        assert tasks() > before + 1
        peer.close()
        await gone(target, before, 0.5)


async def test_handshake_timeout_of_one_s_own() -> None:
    async with attacked_server(handshake_timeout=0.5) as target:
        before = tasks()
        peer = await target.hostile(kind=Stalling)
        peer.start()
        await trio.sleep(0.01)
        peer.silent = True
        await trio.sleep(0.4)
        assert tasks() > before + 1
        peer.close()
        await gone(target, before, 0.3)


class Unsaid(HostileClient):
    """A client with keys for its Initial packets, which says nothing by itself."""

    def start(self) -> None:
        self.silent = True
        self.connection.connect(SERVER, trio.current_time())

    def hello(self) -> bytes:
        """The ClientHello that it keeps to itself."""
        return bytes(self.connection._crypto_streams[Epoch.INITIAL].sender._buffer)

    def say_hello(self, hello: bytes, piece: int = 1000) -> None:
        for at in range(0, len(hello), piece):
            self.say(crypto(at, hello[at : at + piece]), epoch=Epoch.INITIAL)


async def unsaid(target: Target) -> Unsaid:
    peer = Unsaid(target.network.socket())
    target.peers.append(peer)
    await target.nursery.start(peer.run)
    peer.start()
    return peer


@pytest.mark.parametrize("backwards", [False, True])
async def test_endless_client_hello(backwards: bool) -> None:
    async with attacked_server(memory=2) as target:
        peer = await unsaid(target)
        pieces = [
            crypto(at, (b"\x01\xff\xff\xff" if not at else b"") + bytes(996 if not at else 1000))
            for at in range(0, 70_000, 1000)
        ]
        for piece in reversed(pieces) if backwards else pieces:
            peer.say(piece, epoch=Epoch.INITIAL)
            await trio.sleep(0.001)
        assert await peer.closed() == CRYPTO_BUFFER_EXCEEDED


async def test_client_hello_byte_by_byte() -> None:
    """Slow, but honest."""
    async with attacked_server() as target:
        peer = await unsaid(target)
        peer.say_hello(peer.hello(), 1)
        await peer.until(lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())


async def test_client_hello_in_reverse() -> None:
    async with attacked_server() as target:
        peer = await unsaid(target)
        hello = peer.hello()
        for at in range(len(hello) - 1, -1, -1):
            peer.say(crypto(at, hello[at : at + 1]), epoch=Epoch.INITIAL)
        await peer.until(lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())


@pytest.mark.parametrize("seed", range(4))
async def test_malformed_client_hellos(seed: int) -> None:
    """Each is refused, or not even noticed; none of them costs more than its own connection."""
    chance = random.Random(seed)
    async with attacked_server(memory=8, patience=15) as target:
        for _ in range(15):
            peer = await unsaid(target)
            hello = bytearray(peer.hello())
            if chance.random() < 0.3:
                del hello[chance.randrange(4, len(hello)) :]
            for _ in range(chance.randrange(1, 4)):
                hello[chance.randrange(4, len(hello))] = chance.randrange(256)
            if chance.random() < 0.5:
                hello[1:4] = (len(hello) - 4).to_bytes(3)
            peer.say_hello(bytes(hello))
            await trio.sleep(0.02)
            peer.close()
        assert not target.served


@pytest.mark.parametrize(
    "hello",
    [
        b"\x01\x00\x00\x00",
        b"\x01\x00\x00\x02\x03\x03",
        b"\x02\x00\x00\x04abcd",
        b"\x01\x00\x00\x26\x03\x03" + bytes(36),
        b"\xff" * 200,
        b"\x01\x00\x00\x2c\x03\x03" + bytes(32) + b"\xff" + bytes(9),
    ],
)
async def test_nonsense_for_a_client_hello(hello: bytes) -> None:
    async with attacked_server(patience=12) as target:
        peer = await unsaid(target)
        peer.say_hello(hello)
        if hello[1] == 0:
            assert await peer.closed() & 0xFF00 == 0x100  # an alert of TLS


# ---- Retry tokens


async def with_token(target: Target) -> HostileClient:
    """A client that was sent away with a token, and has not come back yet."""
    peer = await target.hostile(kind=Returning)
    peer.start()
    await peer.until(lambda: peer.connection._retry_count)
    peer.silent = True
    return peer


class Returning(QuicConnection):
    """Sends nothing more once it has a token."""

    def _write_handshake(self, *args: object) -> None:
        if not self._peer_token:
            super()._write_handshake(*args)  # type: ignore[arg-type]


def come_back(peer: HostileClient) -> None:
    hello = peer.connection._crypto_streams[Epoch.INITIAL].sender._buffer
    for at in range(0, len(hello), 900):
        peer.say(crypto(at, bytes(hello[at : at + 900])), epoch=Epoch.INITIAL)


async def test_token_of_one_s_own() -> None:
    async with attacked_server(retry="always", patience=15) as target:
        peer = await with_token(target)
        await trio.sleep(29)
        come_back(peer)
        await peer.until(lambda: peer.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())
        assert peer.end is None


async def test_token_from_another_address() -> None:
    async with attacked_server(retry="always") as target:
        peer = await with_token(target)
        peer.socket.rebind()
        come_back(peer)
        assert await peer.closed() == INVALID_TOKEN


async def test_token_from_another_port() -> None:
    async with attacked_server(retry="always") as target:
        peer = await with_token(target)
        host, port = peer.socket.local_address
        peer.socket.rebind((host, port + 1))
        come_back(peer)
        assert await peer.closed() == INVALID_TOKEN


async def test_token_that_is_too_old() -> None:
    async with attacked_server(retry="always") as target:
        peer = await with_token(target)
        await trio.sleep(31)
        come_back(peer)
        assert await peer.closed() == INVALID_TOKEN


async def test_token_of_another_server() -> None:
    async with attacked_server(retry="always") as target:
        peer = await with_token(target)
        token = bytearray(peer.connection._peer_token)
        token[-1] ^= 1
        peer.connection._peer_token = bytes(token)
        come_back(peer)
        assert await peer.closed() == INVALID_TOKEN


async def test_token_for_another_connection() -> None:
    async with attacked_server(retry="always") as target:
        peer = await with_token(target)
        other = await with_token(target)
        peer.connection._peer_token = other.connection._peer_token
        come_back(peer)
        assert await peer.closed() == INVALID_TOKEN


async def test_replayed_token_is_no_second_connection() -> None:
    """The same first packets again belong to the connection that they have made."""
    async with attacked_server(retry="always", patience=15) as target:
        peer = await with_token(target)
        before = tasks()
        for _ in range(50):
            come_back(peer)
        await trio.sleep(0.1)
        assert tasks() <= before + 2


@pytest.mark.parametrize("size", [1, 8, 28, 60, 600])
async def test_flood_of_made_up_tokens(size: int) -> None:
    """They cost little, and are answered with less than they are."""
    async with attacked_server(memory=2) as target:
        peer = await unsaid(target)
        numbers = count()
        for _ in range(20):
            for _ in range(10):
                peer.connection._peer_token = b"trio" + next(numbers).to_bytes(2) + bytes(size)
                peer.say(frame(0x01), epoch=Epoch.INITIAL)
            await trio.sleep(0.001)
        assert await peer.closed() == INVALID_TOKEN
        assert target.sent_to(peer.socket.local_address) < 200 * 1200 / 10
