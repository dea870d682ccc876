"""Much of what is allowed: linear cost, bounded memory, and everybody else is still served."""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

import trio_wt
from tests.robustness.peer import (
    BINARY,
    CONTINUATION,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    RawPeer,
    close_frame,
    deflated,
    frame,
)
from tests.robustness.target import Side, attacked, bounded_memory, echo, socket_server

SIDES: list[Side] = ["client", "server"]
MIB = 2**20
COMPRESSED = f"Sec-WebSocket-Extensions: {DEFLATE}"


def offer(side: Side) -> str:
    if side == "server":
        return COMPRESSED
    return "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12"


# ---- cost is linear


async def assert_linear(cost: Callable[[int], Awaitable[float]], small: int) -> None:
    """Four times as much may cost at most eight times as much; quadratic would be sixteen."""
    ratios = []
    for _ in range(3):
        base = await cost(small)
        ratios.append(await cost(4 * small) / base)
        if ratios[-1] < 8:
            return
    raise AssertionError(f"four times as much costs {ratios} times as much")


SEGMENT = 512


def segments(kind: str, number: int) -> list[bytes]:
    """A message in many segments."""
    if kind == "one frame":
        whole = frame(BINARY, bytes(SEGMENT * number))
    elif kind == "one text frame":
        whole = frame(TEXT, "\N{EURO SIGN}".encode() * (SEGMENT * number // 3))
    elif kind == "one compressed frame":
        data = bytes(i * i * 37 % 251 for i in range(SEGMENT * number))
        stored = zlib.compressobj(0, zlib.DEFLATED, -9)
        payload = stored.compress(data) + stored.flush(zlib.Z_SYNC_FLUSH)
        whole = frame(BINARY, payload[:-4], rsv=0x40)
    else:
        first = frame(BINARY, bytes(SEGMENT), fin=False)
        middle = frame(CONTINUATION, bytes(SEGMENT), fin=False)
        return [first, *[middle] * (number - 2), frame(CONTINUATION, bytes(SEGMENT))]
    return [whole[at : at + SEGMENT] for at in range(0, len(whole), SEGMENT)]


@pytest.mark.parametrize(
    "kind", ["one frame", "one text frame", "one compressed frame", "fragments"]
)
async def test_message_in_thousands_of_segments(kind: str) -> None:
    async def cost(number: int) -> float:
        pieces = segments(kind, number)
        async with attacked("server", COMPRESSED, max_message_size=None) as (peer, ws):
            start = time.process_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ws.receive)
                for piece in pieces:
                    await peer.send(piece)
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
            return time.process_time() - start

    await assert_linear(cost, 2500)


async def test_frame_in_tens_of_thousands_of_single_bytes() -> None:
    data = bytes(range(256)) * 120
    sent = frame(BINARY, data)
    async with attacked("server") as (peer, ws):
        for at in range(len(sent)):
            await peer.send(sent[at : at + 1])
            await trio.lowlevel.checkpoint()
        assert await ws.receive() == data


@pytest.mark.parametrize("payload", [b"", b"a"])
async def test_hundreds_of_thousands_of_fragments(payload: bytes) -> None:
    """Where they are allowed, they cost linear time and their bytes."""

    async def cost(number: int) -> float:
        sent = frame(BINARY, payload, fin=False)
        sent += frame(CONTINUATION, payload, fin=False) * number + frame(CONTINUATION, payload)
        async with attacked("server", max_fragments=10**6) as (peer, ws):
            start = time.process_time()
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    assert await ws.receive() == payload * (number + 2)

                nursery.start_soon(receive)
                for at in range(0, len(sent), 50_000):
                    await peer.send(sent[at : at + 50_000])
                    await trio.lowlevel.checkpoint()
            return time.process_time() - start

    await assert_linear(cost, 50_000)


@pytest.mark.real_clock
@pytest.mark.parametrize("payload", [b"", b"a"])
async def test_flood_of_tiny_messages(payload: bytes) -> None:
    """As fast as the peer can, to an application that takes them all at once."""
    received = 0

    async def handler(ws: trio_wt.WebSocket) -> None:
        nonlocal received
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        while True:
            received += len(await ws.receive_many())

    async with socket_server(handler) as server:
        peer = await server.opened()
        burst = frame(BINARY, payload) * 10_000
        with bounded_memory(12):
            for _ in range(15):
                await peer.send(burst)
            await peer.send(close_frame(1000))
            assert await peer.until_close() == (1000, "")
        assert received == 150_000
        await peer.aclose()


@pytest.mark.real_clock
async def test_flood_of_messages_nobody_waits_for_the_answers_of() -> None:
    """An echo server and a peer that never reads: each waits for the other, and nothing piles up."""
    async with socket_server() as server:
        peer = await server.opened()
        burst = frame(BINARY, bytes(1000)) * 60
        taken = 0
        with bounded_memory(6):
            while taken < 64 * MIB:
                with trio.move_on_after(0.5) as stuck:
                    await peer.send(burst)
                if stuck.cancelled_caught:
                    break
                taken += len(burst)
        assert taken < 48 * MIB, "what nobody takes was taken"
        await peer.aclose()


@pytest.mark.real_clock
@pytest.mark.parametrize("size", [100, 60_000, 3_000_000])
async def test_peer_that_never_reads(size: int) -> None:
    """What we send stays bounded, and the keepalive ends it."""
    figures: list[trio_wt.Statistics] = []
    ended: list[BaseException] = []

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        message = bytes(size)
        try:
            while True:
                await ws.send(message)
                figures.append(ws.statistics())
                del figures[:-1]
        except trio_wt.ConnectionClosedError as exc:
            ended.append(exc)

    async with socket_server(
        handler, ping_interval=0.4, ping_timeout=0.4, close_timeout=0.2
    ) as server:
        with bounded_memory(4 + 3 * size / MIB):
            peer = await server.opened()
            with trio.fail_after(4):
                while not ended:
                    await trio.sleep(0.01)
        assert figures[0].unsent_bytes < 65536 + size + 20
        await peer.aclose()


@pytest.mark.real_clock
async def test_pong_flood() -> None:
    """Pongs that answer nothing are ignored, and a real one is still found among them."""
    measured: list[float] = []

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        measured.append(await ws.ping(b"the real one"))
        await echo(ws)

    async with socket_server(handler) as server:
        peer = await server.opened()
        flood = b"".join(frame(PONG, b"%06d" % i) for i in range(5000))
        with bounded_memory(4):
            for _ in range(15):
                await peer.send(flood)
            assert await peer.next_frame() == (0x80 | PING, b"the real one")
            assert measured == []
            await peer.send_frame(PONG, b"the real one")
            await peer.send(flood)
            await peer.echo("enough")
        assert len(measured) == 1
        await peer.aclose()


# ---- deflate bombs


def zeros(size: int) -> bytes:
    """So many zeros as the payload of a compressed message, in blocks that stand for themselves."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -9)
    block = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (block * (size // MIB))[:-4]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fragments", [1, 1000])
async def test_deflate_bomb(side: Side, opcode: int, fragments: int) -> None:
    """256 MiB in 256 KiB: refused at the first MiB."""
    payload = zeros(256 * MIB)
    masked = side == "server"
    step = -(-len(payload) // fragments)
    pieces = [payload[at : at + step] for at in range(0, len(payload), step)]
    sent = b"".join(
        frame(
            opcode if not i else CONTINUATION,
            piece,
            masked=masked,
            rsv=0 if i else 0x40,
            fin=i == len(pieces) - 1,
        )
        for i, piece in enumerate(pieces)
    )
    async with attacked(side, offer(side)) as (peer, ws):
        with bounded_memory(5):
            await peer.send(sent)
            with pytest.raises(trio_wt.ConnectionClosedError) as caught:
                await ws.receive()
            assert caught.value.code == 1009
            with trio.fail_after(1):
                await peer.expect_failure(1009)


@pytest.mark.parametrize("side", SIDES)
async def test_deflate_bombs_nobody_receives(side: Side) -> None:
    """Hundreds of legal messages of 1 MiB each, in a kilobyte each: two of them are inflated."""
    masked = side == "server"
    sent = frame(BINARY, zeros(MIB), masked=masked, rsv=0x40) * 300
    async with attacked(side, offer(side)) as (peer, ws):
        with bounded_memory(6):
            await peer.send(sent)
            await trio.testing.wait_all_tasks_blocked()
            assert ws.statistics().queued_messages <= 2
            received = 0
            for _ in range(20):
                received += len(await ws.receive())
            assert received == 20 * MIB


async def test_text_that_takes_four_bytes_a_character() -> None:
    """One character can make a text four times as large in memory as on the wire."""
    text = deflated(b"a" * (MIB - 4) + "\N{GRINNING FACE}".encode())
    async with attacked("server", COMPRESSED) as (peer, ws):
        with bounded_memory(12):
            await peer.send(frame(TEXT, text, rsv=0x40) * 40)
            await trio.testing.wait_all_tasks_blocked()
        assert ws.statistics().queued_messages <= 2


@pytest.mark.real_clock
async def test_deflate_bombs_to_an_echo_server() -> None:
    """Legal messages as fast as they fit; the peer reads nothing, and others are still served."""
    async with socket_server() as server:
        peer = await server.opened(COMPRESSED)
        bomb = frame(BINARY, zeros(MIB), rsv=0x40) * 50
        with bounded_memory(12), trio.move_on_after(1.5):
            for _ in range(10):
                await peer.send(bomb)
        await peer.aclose()


FINAL_BLOCKS = b"\x03\x00" * 30_000
STORED_BLOCKS = b"\x00\x00\x00\xff\xff" * 12_000


@pytest.mark.parametrize("blocks", [FINAL_BLOCKS, STORED_BLOCKS], ids=["final", "stored"])
async def test_empty_deflate_blocks(blocks: bytes) -> None:
    """Blocks that mean nothing: BFINAL (RFC 7692 section 7.2.3.4) and empty stored ones."""

    async def cost(number: int) -> float:
        payload = blocks[: len(blocks) // 4 // 10 * 10 * number]
        async with attacked("server", COMPRESSED) as (peer, ws):
            start = time.process_time()
            with bounded_memory(4):
                await peer.send(frame(BINARY, payload + b"\x00", rsv=0x40))
                assert await ws.receive() == b""
            return time.process_time() - start

    await assert_linear(cost, 1)


@pytest.mark.parametrize("side", SIDES)
async def test_endless_message_as_a_stream(side: Side) -> None:
    """Without a limit for its size, memory stays bounded by the queue's while nobody takes parts."""
    piece = frame(CONTINUATION, bytes(50_000), masked=side == "server", fin=False)
    async with attacked(side, max_message_size=None) as (peer, ws):
        await peer.send_frame(BINARY, b"a", fin=False)
        async with ws.receive_stream() as message:
            assert await message.receive_some() == b"a"
            for _ in range(60):
                await peer.send(piece)
            await trio.testing.wait_all_tasks_blocked()
            figures = ws.statistics()
            assert figures.queued_bytes <= MIB
            assert figures.unparsed_bytes <= 2 * 65536
            size = 0
            while size < 60 * 50_000:
                part = await message.receive_some()
                assert part is not None
                size += len(part)
        await peer.send_frame(CONTINUATION, b"z")
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"


async def test_abandoned_stream_of_an_endless_message() -> None:
    """What nobody wants any more is dropped as it comes."""
    piece = frame(CONTINUATION, bytes(50_000), fin=False)
    async with attacked("server", max_message_size=None) as (peer, ws):
        await peer.send_frame(BINARY, b"a", fin=False)
        async with ws.receive_stream() as message:
            assert await message.receive_some() == b"a"
        with bounded_memory(4):
            for _ in range(200):
                await peer.send(piece)
                await trio.testing.wait_all_tasks_blocked()
            assert ws.statistics().queued_bytes == 0
        await peer.send_frame(CONTINUATION, b"z")
        await peer.send_frame(TEXT, b"next")
        assert await ws.receive() == "next"


async def test_segments_behind_a_full_queue() -> None:
    """What cannot be parsed yet is still searched for pings, and that is linear too."""

    async def cost(number: int) -> float:
        async with attacked("server") as (peer, _):
            for _ in range(17):
                await peer.send_frame(BINARY, bytes(2000))
            await trio.testing.wait_all_tasks_blocked()
            start = time.process_time()
            for i in range(number):
                await peer.send_frame(PING, b"%d" % i)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            await _newest_pong(peer, number - 1)
            return time.process_time() - start

    await assert_linear(cost, 1000)


async def _newest_pong(peer: RawPeer, number: int) -> None:
    with trio.fail_after(1):
        while (found := await peer.next_frame()) is not None:
            assert found[0] == 0x80 | PONG
            if found[1] == b"%d" % number:
                return
    raise AssertionError("the newest ping was not answered")
