"""Peers that take nothing, acknowledge nothing, or are gone: what waits for them has a bound, and comes to an end."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from aioquic.quic.connection import QuicConnection

import trio_wt
from tests.robustness.quic_peer import HostileClient, frame, stream
from tests.robustness.quic_target import attacked_client, attacked_server, no_answer
from tests.robustness.target import MIB

WINDOW, CONNECTION_WINDOW = 2**18, 2**20


# ---- we do not read


async def fill(peer: HostileClient, stream_id: int, number: int, piece: int) -> None:
    """Send ``number`` bytes on a stream in pieces."""
    pieces = max(1, 8000 // (piece + 8))
    for at in range(0, number, piece * pieces):
        end = min(number, at + piece * pieces)
        peer.say(*(stream(stream_id, i, bytes(min(piece, end - i))) for i in range(at, end, piece)))
        await trio.sleep(0.0005)
    await trio.sleep(0.01)


async def test_unread_streams() -> None:
    """A peer may fill the connection's window, and not a byte more."""
    async with attacked_server(no_answer, memory=3) as target:
        peer = await target.shaken()
        for number in range(4):
            await fill(peer, peer.own(number), WINDOW, 1100)
        victim = target.served[0]
        assert victim.statistics().unread_bytes == CONNECTION_WINDOW
        assert victim.closed is None
        assert peer.connection._remote_max_data == CONNECTION_WINDOW
        peer.say(stream(peer.own(4), 0, b"x"))
        assert await peer.closed() == 0x03


@pytest.mark.parametrize("piece", [1, 2, 3, 17, 100])
async def test_unread_bytes_in_tiny_pieces(piece: int) -> None:
    """Only bytes cost memory, however they come."""
    async with attacked_server(no_answer, memory=1, stream_window=2**15) as target:
        peer = await target.shaken()
        await fill(peer, 0, 2**15, piece)
        assert target.served[0].statistics().unread_bytes == 2**15


async def test_unread_bytes_in_two_orders() -> None:
    """Every second byte first, then those between."""
    async with attacked_server(no_answer, memory=1, max_streams=1) as target:
        peer = await target.shaken()
        for start in (1, 0):
            for at in range(start, 1800, 600):
                peer.say(*(stream(0, i, b"x") for i in range(at, at + 600, 2)))
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert target.served[0].statistics().unread_bytes == 1800


@pytest.mark.parametrize("size", [0, 1, 1100, 60_000])
async def test_unread_datagrams(size: int) -> None:
    """The newest 256 are kept, and the others counted; large ones count for more."""
    async with attacked_server(no_answer, memory=4) as target:
        peer = await target.shaken()
        for number in range(400):
            peer.say(frame(0x31, size, bytes(size)))
            if number % 10 == 9:
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        figures = target.served[0].statistics()
        assert 0 < figures.datagrams_unread <= 256
        assert figures.datagrams_unread + figures.datagrams_dropped_receiving == 400
        assert figures.datagrams_unread == 256 or size == 60_000
        assert figures.datagrams_unread * size <= 2 * MIB


async def test_reader_that_is_slow() -> None:
    """It grants what it has taken, and nothing more."""

    async def sip(connection: trio_wt.Connection) -> None:
        async with await connection.incoming_streams.receive() as taken:
            while await taken.receive_some(1000):
                await trio.sleep(0.1)

    async with attacked_server(sip, memory=8, patience=40) as target:
        peer = await target.shaken()
        peer.connection.send_stream_data(0, bytes(2 * MIB), end_stream=True)
        peer.go_on()
        for _ in range(100):
            await trio.sleep(0.1)
            assert target.served[0].statistics().unread_bytes <= WINDOW


# ---- they do not read


class NeverReading(QuicConnection):
    """Grants no credit beyond that of its handshake."""

    def _write_connection_limits(self, **kwargs: Any) -> None:
        pass

    def _write_stream_limits(self, **kwargs: Any) -> None:
        pass


async def send_for_ever(connection: trio_wt.Connection) -> None:
    async with connection.open_stream() as out:
        while True:
            await out.send_all(bytes(10_000))


async def test_peer_that_never_reads() -> None:
    async with attacked_server(send_for_ever, memory=2) as target:
        peer = await target.shaken(kind=NeverReading, max_data=100_000, max_stream_data=50_000)
        peer.forgetful = True
        await trio.sleep(5)
        figures = target.served[0].statistics()
        assert peer.got == 50_000
        assert WINDOW - 10_000 <= figures.unsent_bytes <= WINDOW
        # Alive, and still of use.
        assert target.served[0].closed is None
        peer.connection.send_datagram_frame(b"hello")


async def test_peer_that_never_acknowledges_data() -> None:
    """No more than a first window is under way, and the connection ends."""
    lost: list[type] = []

    async def handler(connection: trio_wt.Connection) -> None:
        try:
            await send_for_ever(connection)
        except BaseException as exc:
            lost.append(type(exc))
            raise

    async with attacked_server(handler, memory=2, patience=1) as target:
        peer = await target.shaken()
        peer.silent = peer.deaf = True
        await trio.sleep(5)
        figures = target.served[0].statistics()
        assert figures.unsent_bytes <= WINDOW
        assert target.sent_to(peer.socket.local_address) < 60_000
        await trio.sleep(40)
        assert lost == [trio_wt.ConnectionLost]


async def test_peer_that_pings_and_never_acknowledges() -> None:
    """The connection stays, as long as it is heard; what it costs has a bound."""
    async with attacked_server(send_for_ever, memory=3) as target:
        peer = await target.shaken()
        await trio.sleep(0.01)
        peer.silent = True
        for _ in range(100):
            peer.say(frame(0x01))
            await trio.sleep(1)
        assert target.served[0].statistics().unsent_bytes <= WINDOW
        # Probes become rarer and rarer.
        assert target.sent_to(peer.socket.local_address) < 1_500_000


async def test_peer_that_acknowledges_what_it_never_got() -> None:
    """An optimistic one: it does no more than it could by telling the truth."""
    async with attacked_server(send_for_ever, memory=4) as target:
        peer = await target.shaken(kind=NeverReading, max_data=2**40, max_stream_data=2**40)
        peer.deaf = peer.silent = True
        acknowledged = 0
        for _ in range(8):
            engine = target.served[0]._driver.engine
            number = engine._packet_number - 1
            if number > acknowledged:
                peer.say(frame(0x02, number, 0, 0, number))
                acknowledged = number
            await trio.sleep(0.002)
        assert target.served[0].closed is None
        assert target.served[0].statistics().unsent_bytes <= WINDOW


async def test_datagrams_to_a_peer_that_acknowledges_nothing() -> None:
    """The oldest make room."""

    async def handler(connection: trio_wt.Connection) -> None:
        for _ in range(2000):
            await connection.datagrams.send(bytes(1000))
        await connection.wait_closed()

    async with attacked_server(handler, memory=2) as target:
        peer = await target.hostile()
        peer.start()
        await peer.until(lambda: peer.handshake)
        peer.silent = True
        await trio.sleep(3)
        figures = target.served[0].statistics()
        assert figures.datagrams_unsent <= 256
        assert figures.datagrams_dropped_sending > 1500


async def test_peer_that_grants_everything_and_opens_everything() -> None:
    """Its limits are no reason to hold more than ours."""
    async with attacked_server(memory=8) as target:
        peer = await target.shaken(kind=NeverReading, max_data=2**62 - 1, max_stream_data=2**62 - 1)
        peer.claim(128)
        peer.silent = True
        for number in range(128):
            peer.say(stream(peer.own(number), 0, bytes(2000)))
            await trio.sleep(0.001)
        await trio.sleep(1)
        assert target.served[0].closed is None


# ---- they are gone


@pytest.mark.parametrize(
    "handler", [no_answer, send_for_ever], ids=["while we wait", "while we send"]
)
async def test_peer_that_vanishes(
    handler: Callable[[trio_wt.Connection], Awaitable[None]],
) -> None:
    """After the idle timeout nothing of it is left."""
    async with attacked_server(handler, memory=4) as target:
        peer = await target.shaken()
        peer.forgetful = True
        await trio.sleep(0.02)
        victim = target.served[0]
        peer.close()
        await trio.sleep(25)
        assert victim.closed is None
        await trio.sleep(15)
        gc.collect()
        assert victim.is_gone


async def test_many_peers_that_vanish() -> None:
    async with attacked_server(memory=8, idle_timeout=3, patience=6) as target:
        for _ in range(30):
            peer = await target.shaken()
            peer.say(stream(0, 0, b"half of a"))
            await trio.sleep(0.001)
            peer.close()
        assert len(target.served) == 30


async def stay_until_gone(connection: trio_wt.Connection) -> None:
    """Send, and leave the connection's block with what is not delivered yet."""
    async with connection.open_stream() as out:
        await out.send_all(bytes(100_000))


async def test_goodbye_to_a_peer_that_is_gone() -> None:
    """It is bounded by the close timeout."""
    async with attacked_server(stay_until_gone, memory=4, close_timeout=2, patience=5) as target:
        peer = await target.hostile()
        peer.start()
        await peer.until(lambda: peer.handshake)
        peer.close()


async def test_shutdown_beside_peers_that_are_gone() -> None:
    """It ends in its time, however silent they are."""
    async with attacked_server(
        send_for_ever, memory=None, shutdown_timeout=1, bystander=False
    ) as target:
        for _ in range(5):
            peer = await target.shaken()
            peer.forgetful = True
            peer.close()
        start = trio.current_time()
        target.shutdown.set()
        with trio.fail_after(5):
            while not target.finished:
                await trio.sleep(0.1)
        assert 1 <= trio.current_time() - start < 3


async def test_server_that_vanishes_from_our_client() -> None:
    """Sends, streams and datagrams all end with the connection's loss."""
    async with attacked_client(idle_timeout=5) as (peer, connection):
        peer.close()
        start = trio.current_time()
        with pytest.raises(trio_wt.ConnectionLost):
            await connection.ping()
        assert trio.current_time() - start < 10
        with pytest.raises(trio_wt.ConnectionLost):
            await connection.datagrams.receive()


async def test_server_that_never_reads_from_our_client() -> None:
    async with attacked_client(
        memory=2, hostile={"kind": NeverReading, "max_data": 30_000, "max_stream_data": 30_000}
    ) as (peer, connection):
        peer.forgetful = True
        sent = 0

        async def send() -> None:
            nonlocal sent
            async with connection.open_stream() as out:
                while True:
                    await out.send_all(bytes(10_000))
                    sent += 10_000

        with trio.move_on_after(5):
            await send()
        assert sent <= WINDOW + 40_000
        assert peer.got == 30_000
