"""Much of what is allowed: it may cost neither memory that stays nor time that grows faster than it does."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch

import trio_wt
from tests.robustness.quic_peer import HostilePeer, ack, crypto, frame, stream
from tests.robustness.quic_target import attacked_client, attacked_server, echo, no_answer

PING, RESET, STOP, NEW_TOKEN, MAX_DATA, MAX_STREAM_DATA = 0x01, 0x04, 0x05, 0x07, 0x10, 0x11
MAX_STREAMS, DATA_BLOCKED, STREAM_BLOCKED, STREAMS_BLOCKED = 0x12, 0x14, 0x15, 0x16
NEW_CID, RETIRE_CID, PATH_CHALLENGE, PATH_RESPONSE, DONE = 0x18, 0x19, 0x1A, 0x1B, 0x1E
DATAGRAM, RESET_AT = 0x31, 0x24
KIB = 2**10
FRAMES = 40

#: A frame by its number in the flood.
Frame = Callable[[HostilePeer, int], bytes]

FLOODS: dict[str, Frame] = {
    "PADDING": lambda p, n: bytes(20),
    "PING": lambda p, n: frame(PING),
    "ACK": lambda p, n: ack(0),
    "ACK with ECN": lambda p, n: frame(0x03, 0, 0, 0, 0, 2**61, 2**61, 2**61),
    "CRYPTO without data": lambda p, n: crypto(0),
    "the same CRYPTO data": lambda p, n: crypto(30_000, b"x"),
    "MAX_DATA": lambda p, n: frame(MAX_DATA, 2**30 + n),
    "MAX_STREAMS": lambda p, n: frame(MAX_STREAMS + n % 2, 2**20 + n),
    "MAX_STREAM_DATA": lambda p, n: frame(MAX_STREAM_DATA, p.own(n % 100), 2**30 + n),
    "DATA_BLOCKED": lambda p, n: frame(DATA_BLOCKED, n),
    "STREAM_DATA_BLOCKED": lambda p, n: frame(STREAM_BLOCKED, p.own(n % 100), n),
    "STREAMS_BLOCKED": lambda p, n: frame(STREAMS_BLOCKED + n % 2, n),
    "PATH_CHALLENGE": lambda p, n: frame(PATH_CHALLENGE, os.urandom(8)),
    "PATH_RESPONSE": lambda p, n: frame(PATH_RESPONSE, os.urandom(8)),
    "the same NEW_CONNECTION_ID": lambda p, n: frame(NEW_CID, 1, 0, b"\x08same one", bytes(16)),
    "RETIRE_CONNECTION_ID": lambda p, n: frame(RETIRE_CID, n % 6 + 1),
    "RETIRE_CONNECTION_ID of new ones": lambda p, n: frame(RETIRE_CID, n + 1),
    "STOP_SENDING": lambda p, n: frame(STOP, p.own(n % 100), n),
    "RESET_STREAM": lambda p, n: frame(RESET, p.own(n % 100, uni=True), n, 0),
    "RESET_STREAM_AT": lambda p, n: frame(RESET_AT, p.own(n % 100), 7, 100, 50),
    "STREAM without data": lambda p, n: stream(p.own(n % 100), 0),
    "STREAM without data at its end": lambda p, n: stream(p.own(n % 100), 0, fin=True),
    "the same STREAM data": lambda p, n: stream(p.own(n % 100), 0, b"again"),
    "STREAM data with a gap before it": lambda p, n: stream(p.own(n % 100), 1000, b"again"),
    "DATAGRAM": lambda p, n: frame(DATAGRAM, 5, b"hello"),
    "DATAGRAM without data": lambda p, n: frame(DATAGRAM, 0),
}
CLIENT_FLOODS: dict[str, Frame] = {
    "HANDSHAKE_DONE": lambda p, n: frame(DONE),
    "NEW_TOKEN": lambda p, n: frame(NEW_TOKEN, 20, os.urandom(20)),
}


async def flood(peer: HostilePeer, make: Frame, packets: int, start: int = 0) -> int:
    """Send as many packets full of frames; the number of the next frame."""
    number = start
    for at in range(packets):
        frames = [make(peer, n) for n in range(number, number + FRAMES)]
        number += FRAMES
        peer.say(*frames)
        await trio.sleep(0.001 if at % 10 == 9 else 0)
    await trio.sleep(0.2)
    return number


async def assert_steady(peer: HostilePeer, make: Frame) -> None:
    """What a flood costs in memory, it costs at its beginning."""
    peer.forgetful = True
    # However many connection ids come in return.
    peer.connection._local_active_connection_id_limit = 2**30
    number = await flood(peer, make, 15)
    figures = []
    for _ in range(2):
        number = await flood(peer, make, 30, number)
        peer.datagrams.clear()
        gc.collect()
        figures.append(tracemalloc.get_traced_memory()[0])
    peer.forgetful = False
    # 40 bytes a frame, much of which are Trio's own ups and downs.
    assert figures[1] - figures[0] < 48 * KIB, figures


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_from_a_client(kind: str) -> None:
    await flooded(kind, acknowledges=True)


@pytest.mark.parametrize(
    "kind",
    [
        "PING",
        "PATH_CHALLENGE",
        "RETIRE_CONNECTION_ID of new ones",
        "STOP_SENDING",
        "STREAM without data at its end",
        "DATAGRAM",
    ],
)
async def test_flood_from_a_client_that_acknowledges_nothing(kind: str) -> None:
    """These make us say something each time."""
    await flooded(kind, acknowledges=False)


async def flooded(kind: str, *, acknowledges: bool) -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        peer.claim(100)
        peer.silent = not acknowledges
        await assert_steady(peer, FLOODS[kind])
        assert target.served[0].closed is None, target.served[0].closed
        peer.silent = False
        await peer.echo(peer.own(100), b"still here")


@pytest.mark.parametrize("kind", [*FLOODS, *CLIENT_FLOODS])
async def test_flood_from_a_server(kind: str) -> None:
    async with attacked_client() as (peer, connection):
        peer.claim(100)
        await assert_steady(peer, {**FLOODS, **CLIENT_FLOODS}[kind])
        assert connection.closed is None, connection.closed
        with trio.fail_after(2):
            await connection.ping()


async def test_flood_of_session_tickets() -> None:
    """A client keeps the newest few."""
    store = trio_wt.SessionStore()
    async with attacked_client(
        session_store=store, hostile={"session_ticket_handler": lambda ticket: None}
    ) as (peer, connection):
        messages = b""
        for number in range(200):
            ticket = os.urandom(32)
            body = (3600).to_bytes(4) + bytes(4) + b"\x01" + bytes([number])
            body += len(ticket).to_bytes(2) + ticket + bytes(2)
            messages += b"\x04" + len(body).to_bytes(3) + body
        start = peer.connection._crypto_streams[Epoch.ONE_RTT].sender._buffer_stop
        for at in range(0, len(messages), 1000):
            peer.say(crypto(start + at, messages[at : at + 1000]))
            await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert connection.closed is None, connection.closed
        assert 0 < len(store) <= 4


async def test_peer_that_never_acknowledges() -> None:
    """What was sent to it is forgotten some time, if it was nothing but acknowledgements."""
    async with attacked_server(memory=None, bystander=False) as target:
        peer = await target.shaken()
        peer.silent = True
        for _ in range(1500):
            peer.say(frame(PING))
            await trio.sleep(0.0021)
        assert target.served[0].statistics().packets_sent > 1200
        assert sum(isinstance(thing, QuicSentPacket) for thing in gc.get_objects()) < 1100


# ---- streams that come and go


async def take_all(connection: trio_wt.Connection) -> None:
    """Take every stream, and drop it."""
    async with trio.open_nursery() as nursery:

        async def take(channel: object) -> None:
            async for taken in channel:  # type: ignore[attr-defined]
                await taken.aclose()

        nursery.start_soon(take, connection.incoming_streams)
        nursery.start_soon(take, connection.incoming_receive_streams)


async def refuse_all(connection: trio_wt.Connection) -> None:
    await connection.incoming_streams.aclose()
    await connection.incoming_receive_streams.aclose()
    await connection.wait_closed()


CHURNS: dict[str, Callable[[int], list[bytes]]] = {
    "reset": lambda i: [frame(RESET, i, 7, 0)],
    "opened and reset": lambda i: [stream(i, 0, b"x"), frame(RESET, i, 7, 1)],
    "ended": lambda i: [stream(i, 0, fin=True)],
    "one byte": lambda i: [stream(i, 0, b"x", fin=True)],
    "reset at": lambda i: [stream(i, 0, b"x"), frame(RESET_AT, i, 7, 1, 1)],
    "reset both ways": lambda i: [frame(RESET, i, 7, 0), *([] if i & 2 else [frame(STOP, i, 7)])],
    "end reordered": lambda i: [stream(i, 1, fin=True), stream(i, 0, b"x")],
}


@pytest.mark.parametrize("handler", [no_answer, take_all])
@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
@pytest.mark.parametrize("kind", CHURNS)
async def test_rapid_reset(
    kind: str, uni: bool, handler: Callable[[trio_wt.Connection], Awaitable[None]]
) -> None:
    """Streams opened and given up, as fast as the limit lets one: a queue of them has a bound, and memory is steady."""
    await churn(kind, uni, handler)


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
@pytest.mark.parametrize("kind", ["reset", "one byte"])
async def test_rapid_reset_of_streams_that_are_refused(kind: str, uni: bool) -> None:
    await churn(kind, uni, refuse_all)


async def churn(
    kind: str, uni: bool, handler: Callable[[trio_wt.Connection], Awaitable[None]]
) -> None:
    async with attacked_server(handler, memory=2) as target:
        peer = await target.shaken()
        peer.claim(2**20)
        victim, number, figures = target.served[0], 0, []
        for _ in range(9):
            limits = peer.connection
            limit = limits._remote_max_streams_uni if uni else limits._remote_max_streams_bidi
            for _ in range(min(limit - number, 60)):
                peer.say(*CHURNS[kind](peer.own(number, uni=uni)))
                number += 1
            await trio.sleep(0.1)
            assert victim.statistics().unaccepted_streams <= 128
            assert victim.statistics().open_streams <= 256
            gc.collect()
            figures.append(tracemalloc.get_traced_memory()[0])
        assert victim.closed is None, victim.closed
        if handler is no_answer:
            assert number == 128
        else:
            assert number > 300
            assert figures[-1] - figures[-4] < 48 * KIB, figures


async def test_all_streams_half_open() -> None:
    async with attacked_server() as target:
        peer = await target.shaken()
        peer.claim(128)
        for uni in (False, True):
            for number in range(128):
                peer.say(stream(peer.own(number, uni=uni), 0, b"x"))
        await trio.sleep(0.5)
        assert target.served[0].closed is None
        assert target.served[0].statistics().open_streams == 256


async def test_a_thousand_streams_open_at_the_end() -> None:
    """Closing takes no longer than one second."""
    async with attacked_server(max_streams=1000, memory=12) as target:
        peer = await target.shaken()
        peer.claim(1000)
        for number in range(1000):
            peer.say(stream(peer.own(number), 0, b"x"))
            if number % 50 == 49:
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert target.served[0].statistics().open_streams == 1000
        start = trio.current_time()
        target.peers[0].leave()
        with trio.fail_after(1):
            while not target.served[0].is_gone:
                await trio.sleep(0.05)
                gc.collect()
        assert trio.current_time() - start < 1


# ---- gaps and edges


@pytest.mark.parametrize("handler", [echo, no_answer])
async def test_a_thousand_gaps(handler: Callable[[trio_wt.Connection], Awaitable[None]]) -> None:
    """So many are allowed, and cost little."""
    async with attacked_server(handler, memory=2) as target:
        peer = await target.shaken()
        peer.claim(1)
        for at in range(0, 1000, 100):
            peer.say(*(stream(0, 2 * n + 1, b"x") for n in range(at, at + 100)))
            await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert target.served[0].closed is None
        peer.say(stream(0, 3001, b"x"))
        await peer.closed()


async def test_gaps_on_all_streams() -> None:
    async with attacked_server(no_answer, memory=8) as target:
        peer = await target.shaken()
        for number in range(128):
            peer.say(*(stream(peer.own(number), 2 * n + 1, b"x") for n in range(100)))
            await trio.sleep(0.0005)
        await trio.sleep(0.1)
        assert target.served[0].closed is None


@pytest.mark.parametrize("handler", [echo, no_answer])
async def test_bytes_at_the_edges_of_windows(
    handler: Callable[[trio_wt.Connection], Awaitable[None]],
) -> None:
    """Ten frames of one byte cost no more than the connection's window."""
    async with attacked_server(handler, memory=2.5) as target:
        peer = await target.shaken()
        window = 2**18
        for number in range(4):
            peer.say(stream(peer.own(number), window - 1, b"x"))
        for number in range(4):
            peer.say(stream(peer.own(number), window // 2, b"x"))
            peer.say(stream(peer.own(number), window - 1, b"x"))
        await trio.sleep(0.5)
        assert target.served[0].closed is None


# ---- time


async def assert_linear(cost: Callable[[int], Awaitable[float]], small: int) -> None:
    """Four times as much may cost at most eight times as much; quadratic would be sixteen."""
    ratios = []
    for _ in range(3):
        base = await cost(small)
        ratios.append(await cost(4 * small) / base)
        if ratios[-1] < 8:
            return
    raise AssertionError(f"four times as much costs {ratios} times as much")


def many(number: int, make: Callable[[int], bytes]) -> list[bytes]:
    """Frames in payloads of at most 8 KiB."""
    payloads, payload = [], bytearray()
    for at in range(number):
        payload += make(at)
        if len(payload) > 8000:
            payloads.append(bytes(payload))
            payload.clear()
    return [*payloads, bytes(payload)] if payload else payloads


HEAVY: dict[str, tuple[int, Callable[[int], list[bytes]]]] = {
    "gaps": (200, lambda n: many(n, lambda at: stream(0, 2 * at + 1, b"x"))),
    "gaps from the end": (200, lambda n: many(n, lambda at: stream(0, 9000 - 2 * at, b"x"))),
    "bytes one by one": (2000, lambda n: many(n, lambda at: stream(0, at, b"x"))),
    "bytes backwards": (2000, lambda n: many(n, lambda at: stream(0, n - 1 - at, b"x"))),
    "the same byte": (2000, lambda n: many(n, lambda at: stream(0, 5, b"x"))),
    "ranges acknowledged": (500, lambda n: [frame(0x02, 4 * n, 0, n, 0, *[1, 0] * n)]),
    "pings": (4000, lambda n: many(n, lambda at: frame(PING))),
    "padding": (40_000, lambda n: [bytes(n)[at : at + 8000] for at in range(0, n, 8000)]),
    "datagrams": (2000, lambda n: many(n, lambda at: frame(DATAGRAM, 1, b"x"))),
    "path challenges": (1000, lambda n: many(n, lambda at: frame(PATH_CHALLENGE, bytes(8)))),
    "new connection ids retired": (
        300,
        lambda n: many(n, lambda at: frame(RETIRE_CID, at + 1)),
    ),
}


@pytest.mark.parametrize("kind", HEAVY)
async def test_cost_in_time_is_linear(kind: str) -> None:
    small, make = HEAVY[kind]

    async def cost(number: int) -> float:
        async with attacked_server(no_answer, memory=None, bystander=False, patience=40) as target:
            peer = await target.shaken()
            peer.claim(1)
            peer.silent = True
            if kind == "ranges acknowledged":
                # Only what was sent can be acknowledged.
                target.served[0]._driver.engine._packet_number = 10 * number
            packets = [peer.packet(payload) for payload in make(number)]
            start = time.process_time()
            for data in packets:
                peer.send_raw(data)
                await trio.sleep(0.002)
            spent = time.process_time() - start
            assert target.served[0].closed is None, target.served[0].closed
            return spent

    await assert_linear(cost, small)
