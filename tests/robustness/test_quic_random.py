"""Random frames, random payloads and random datagrams from peers that hold the keys: no internal error, and nothing left."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from aioquic.tls import Epoch

import trio_wt
from tests.robustness.quic_peer import HostilePeer, Stalling, crypto, frame, stream, varint
from tests.robustness.quic_target import Victim, attacked_client, attacked_server, echo

INTERNAL_ERROR = 0x01
#: Where all streams of those who keep to the rules end.
FINAL = 100
EDGES = (0, 1, 2, 63, 64, 1000, 2**14, 2**18 - 1, 2**18, 2**20, 2**30, 2**60, 2**62 - 1)


class Chance:
    """Makes frames that are mostly right.

    Args:
        seed: of it all.
        peer: who says them.
        boldness: how often a value is any at all instead of one that makes sense.
    """

    def __init__(self, seed: int, peer: HostilePeer, boldness: float) -> None:
        self.random = random.Random(seed)
        self.peer = peer
        self.boldness = boldness

    def number(self, sensible: int) -> int:
        if self.random.random() < self.boldness:
            return self.random.choice(EDGES)
        return sensible

    def below(self, most: int) -> int:
        return self.number(self.random.randrange(most))

    def stream_to_send(self) -> int:
        """A stream of its own, or one in both directions that the other side has opened."""
        opened = self.peer.connection._local_max_streams_bidi.used
        if opened and self.random.random() < 0.2:
            return self.number(self.peer.other(self.random.randrange(opened)))
        uni = self.random.random() < 0.4
        return self.number(self.peer.own(self.random.randrange(12), uni=uni))

    def stream_to_receive(self) -> int:
        opened = self.peer.connection._local_max_streams_bidi.used
        if opened and self.random.random() < 0.3:
            return self.number(self.peer.other(self.random.randrange(opened)))
        return self.number(self.peer.own(self.random.randrange(12)))

    def data(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def frame(self) -> bytes:
        kind = self.random.randrange(24)
        if kind < 6:
            return stream(self.stream_to_send(), self.below(70), self.data(30))
        if kind < 8:
            data = self.data(30)
            return stream(self.stream_to_send(), self.number(FINAL - len(data)), data, fin=True)
        if kind == 8:
            return frame(0x04, self.stream_to_send(), self.below(9), self.number(FINAL))
        if kind == 9:
            one = self.stream_to_send()
            return frame(0x24, one, self.number(5), self.number(FINAL), self.below(FINAL + 1))
        if kind == 10:
            return frame(0x05, self.stream_to_receive(), self.below(9))
        if kind == 11:
            return frame(self.random.choice((0x10, 0x12, 0x13)), self.below(10**6))
        if kind == 12:
            return frame(0x11, self.stream_to_receive(), self.below(10**6))
        if kind == 13:
            return frame(self.random.choice((0x14, 0x16, 0x17)), self.below(200))
        if kind == 14:
            return frame(0x15, self.stream_to_send(), self.below(200))
        if kind == 15:
            known = self.random.choice(self.peer.connection._host_cids)
            token = known.stateless_reset_token or bytes(16)
            sequence = self.number(known.sequence_number)
            return frame(0x18, sequence, self.number(0), bytes([8]), known.cid, token)
        if kind == 16:
            current = self.peer.connection._peer_cid.sequence_number
            others = [sequence for sequence in range(1, 8) if sequence != current]
            return frame(0x19, self.number(self.random.choice(others)))
        if kind == 17:
            return frame(self.random.choice((0x1A, 0x1B)), self.random.randbytes(8))
        if kind in (18, 19):
            data = self.data(100)
            return frame(0x31, len(data), data)
        if kind == 20:
            space = self.peer.connection._spaces[Epoch.ONE_RTT]
            largest = max(0, space.largest_received_packet - self.random.randrange(3))
            first = self.random.randrange(largest + 1)
            return frame(0x02, self.number(largest), self.below(1000), 0, self.number(first))
        if kind == 21:
            return bytes(self.random.randrange(1, 9))
        return crypto(self.below(50)) if kind == 22 else frame(0x01)


async def busy(connection: trio_wt.Connection) -> None:
    """Do a bit of everything, whatever the peer does to it."""

    async def open_some() -> None:
        for number in range(6):
            with suppress(trio_wt.StreamReset):
                async with connection.open_stream() as out:
                    await out.send_all(bytes(3000))
                    if number % 2:
                        raise trio_wt.StreamAbort(number)
                    with trio.move_on_after(0.5):
                        await out.receive_some()

    async def drop() -> None:
        async for taken in connection.incoming_receive_streams:
            await trio.sleep(0.01)
            taken.stop(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_some)
        nursery.start_soon(drop)
        nursery.start_soon(echo, connection)


async def speak(peer: HostilePeer, victim: Victim, seed: int, boldness: float) -> None:
    """Say a lot of frames, in packets that now and then come twice, late, or from another address."""
    chance = Chance(seed, peer, boldness)
    # It answers STOP_SENDING with nothing, as its own ends are those above.
    handlers = peer.connection._QuicConnection__frame_handlers  # type: ignore[attr-defined]
    handlers[0x05] = (lambda *args: [args[2].pull_uint_var() for _ in range(2)], handlers[0x05][1])
    held: list[bytes] = []
    for _ in range(80):
        data = peer.packet(*(chance.frame() for _ in range(chance.random.randrange(1, 9))))
        fate = chance.random.random()
        if fate < 0.1:
            held.append(data)
            continue
        peer.send_raw(data)
        if fate < 0.2:
            peer.send_raw(data)
        if fate < 0.3 and held:
            peer.send_raw(held.pop(0))
        if fate > 0.98 and peer.connection._is_client:
            peer.socket.rebind()
        await trio.sleep(chance.random.choice((0, 0.001, 0.03)))
        if peer.end is not None:
            break
    await trio.sleep(0.2)
    if not victim.is_gone and isinstance(victim.closed, trio_wt.TransportClosed):
        assert victim.closed.code != INTERNAL_ERROR, (victim.closed, peer.end)


@pytest.mark.parametrize("boldness", [0, 0.003, 0.05])
@pytest.mark.parametrize("seed", range(8))
async def test_random_frames_from_a_client(seed: int, boldness: float) -> None:
    async with attacked_server(busy, memory=6, patience=45, bystander=seed == 0) as target:
        peer = await target.shaken()
        peer.claim(40)
        peer.connection._local_active_connection_id_limit = 2**30
        await speak(peer, target.served[0], seed, boldness)
        if not boldness:
            assert target.served[0].closed is None, target.served[0].closed
            await peer.echo(peer.own(40), b"still here")


@pytest.mark.parametrize("boldness", [0, 0.01])
@pytest.mark.parametrize("seed", range(6))
async def test_random_frames_from_a_server(seed: int, boldness: float) -> None:
    async with attacked_client(memory=6) as (peer, connection):
        peer.claim(40)
        peer.connection._local_active_connection_id_limit = 2**30
        with suppress(trio_wt.ConnectionClosed, ExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_busy, connection)
                await speak(peer, connection, seed, boldness)
                assert boldness or connection.closed is None, connection.closed
                nursery.cancel_scope.cancel()


async def _busy(connection: Victim) -> None:
    with suppress(trio_wt.ConnectionClosed, trio.ClosedResourceError, ExceptionGroup):
        await busy(connection)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
async def test_random_payloads(seed: int) -> None:
    """Not even frames, in packets that are well sealed."""
    chance = random.Random(seed)
    async with attacked_server(memory=6, patience=45, bystander=False) as target:
        for _ in range(8):
            peer = await target.shaken()
            peer.claim(10)
            victim = target.served[-1]
            for _ in range(10):
                kind = bytes([chance.choice(range(0x32))])
                peer.say(kind + chance.randbytes(chance.randrange(1, 60)))
            await trio.sleep(0.01)
            if not victim.is_gone and isinstance(victim.closed, trio_wt.TransportClosed):
                assert victim.closed.code != INTERNAL_ERROR, victim.closed
            peer.leave()


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.HANDSHAKE])
@pytest.mark.parametrize("seed", range(3))
async def test_random_payloads_in_the_handshake(seed: int, epoch: Epoch) -> None:
    chance = random.Random(seed)
    async with attacked_server(memory=6, patience=45, bystander=False) as target:
        for _ in range(6):
            peer = await target.hostile(kind=Stalling)
            peer.start()
            await peer.until(lambda p=peer: p.connection._cryptos[Epoch.HANDSHAKE].send.is_valid())
            peer.silent = True
            kind = bytes([chance.choice((0x01, 0x02, 0x06, 0x1C, 0x03, 0x1E, 0x08))])
            peer.say(kind + chance.randbytes(chance.randrange(4, 200)), epoch=epoch)
            peer.say(crypto(chance.randrange(3), chance.randbytes(100)), epoch=epoch)
            await trio.sleep(0.01)
            assert peer.end is None or peer.end.error_code != INTERNAL_ERROR, peer.end
            peer.close()


@pytest.mark.parametrize("seed", range(3))
async def test_random_datagrams_for_a_connection(seed: int) -> None:
    """Junk to the connection ids in use, with all kinds of first bytes."""
    chance = random.Random(seed)
    async with attacked_server() as target:
        peer = await target.shaken()
        cids = [
            cid.cid for cid in (peer.connection._peer_cid, *peer.connection._peer_cid_available)
        ]
        for _ in range(300):
            first, cid = chance.randrange(256), chance.choice(cids)
            size = chance.choice((0, 3, 20, 21, 60, 1200))
            if first & 0x80:
                head = bytes([first]) + chance.choice((1, 0x6B3343CF, 0, 7)).to_bytes(4)
                head += b"\x08" + cid + b"\x08" + chance.randbytes(8)
                head += varint(chance.choice((0, 5, size, 2**30)))
            else:
                head = bytes([first]) + cid
            peer.send_raw(head + chance.randbytes(size))
            if chance.random() < 0.1:
                await trio.sleep(0.001)
        await peer.echo(0, b"still here")
