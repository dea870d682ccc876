"""WebSockets over HTTP/3 (RFC 9220) whose clients break rules: the Close code that says so, and the stream's end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    Code,
    H3Client,
    close_capsule,
    content,
    datagram,
    head,
    record,
    stream_head,
    websocket_fields,
)
from tests.robustness.h3_target import H3Target, attacked_h3_server, echo_messages
from tests.robustness.peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    deflated,
    frame,
)
from tests.robustness.quic_peer import frame as quic_frame
from tests.robustness.quic_peer import stream

KIB = 2**10
DEFLATE = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")


@asynccontextmanager
async def websocket(
    *extra: tuple[bytes, bytes], memory: float | None = None, **options: Any
) -> AsyncIterator[tuple[H3Target, H3Client, int]]:
    """A server, a hostile client, and the stream of its WebSocket."""
    async with attacked_h3_server(memory=memory, bystander=memory is not None, **options) as target:
        peer = await target.introduced()
        number = peer.request(websocket_fields(*extra), fin=False)
        assert await peer.answered(number) == 200
        yield target, peer, number


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The opcodes and payloads of what a server sends."""
    found, at = [], 0
    while at + 2 <= len(data):
        opcode, size, begin = data[at] & 15, data[at + 1], at + 2
        assert size < 128, "a server masks nothing"
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[begin : begin + width])
            begin += width
        found.append((opcode, data[begin : begin + size]))
        at = begin + size
    return found


async def close_code(peer: H3Client, number: int, seconds: float = 2) -> int:
    """The code of the Close frame that comes, and the end of the stream behind it."""
    await peer.until(
        lambda: any(opcode == CLOSE for opcode, _ in frames(peer.content(number))), seconds
    )
    opcode, payload = frames(peer.content(number))[-1]
    assert opcode == CLOSE
    return int.from_bytes(payload[:2])


#: What a client must not send, and the code of the Close frame.
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "unmasked": (frame(TEXT, b"x", masked=False), 1002),
    "RSV1": (frame(TEXT, b"x", rsv=0x40), 1002),
    "RSV2": (frame(TEXT, b"x", rsv=0x20), 1002),
    "opcode 3": (frame(3, b"x"), 1002),
    "opcode 15": (frame(15, b"x"), 1002),
    "continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a message in a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "a long ping": (frame(PING, bytes(126)), 1002),
    "half a ping": (frame(PING, b"x", fin=False), 1002),
    "2^62 bytes": (frame(BINARY, b"", length=2**62), 1009),
    "2^63 bytes": (frame(BINARY, b"", length=2**63), 1002),
    "a long length": (frame(TEXT, b"x", length_bytes=8), 1002),
    "not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a character": (frame(TEXT, b"\xc3"), 1007),
    "1 MiB and one": (frame(BINARY, b"", length=2**20 + 1), 1009),
    "Close of one byte": (frame(CLOSE, b"x"), 1002),
    "Close 1005": (close_frame(1005), 1002),
    "Close 999": (close_frame(999), 1002),
    "Close with no text": (close_frame(1000, b"\xff"), 1007),
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "capsules": (close_capsule(7, b"bye"), 1002),
}


@pytest.mark.parametrize("pieces", [False, True], ids=["in one frame", "a frame each byte"])
@pytest.mark.parametrize("kind", VIOLATIONS)
async def test_frames_that_must_not_be(kind: str, pieces: bool) -> None:
    data, code = VIOLATIONS[kind]
    async with websocket() as (_, peer, number):
        peer.tell(
            number,
            b"".join(content(data[at : at + 1]) for at in range(len(data)))
            if pieces
            else content(data),
        )
        assert await close_code(peer, number) == code
        assert await peer.over(number, 12) in (None, Code.REQUEST_CANCELLED)
        await peer.still_served()


async def test_violation_behind_the_request() -> None:
    """In one piece with it."""
    async with attacked_h3_server(bystander=False) as target:
        peer = await target.introduced()
        number = peer.open(head(websocket_fields()) + content(frame(TEXT, b"\xff")))
        assert await peer.answered(number) == 200
        assert await close_code(peer, number) == 1007


async def test_deflate_bomb() -> None:
    bomb = frame(BINARY, deflated(bytes(2**24)), rsv=0x40)
    async with websocket(DEFLATE, memory=6) as (_, peer, number):
        peer.tell(number, content(bomb))
        assert await close_code(peer, number) == 1009
        await peer.still_served()


async def test_fragments_without_end() -> None:
    async with websocket(memory=6) as (_, peer, number):
        peer.tell(number, content(frame(BINARY, b"", fin=False)))
        for _ in range(20):
            peer.tell(number, content(frame(CONTINUATION, b"", fin=False) * 5000))
            await trio.sleep(0.02)
            if number in peer.ended:
                break
        assert await close_code(peer, number) == 1008


async def test_flood_of_pings_that_are_not_read() -> None:
    """The client gives no credit for what it gets: pongs do not pile up."""
    async with attacked_h3_server(memory=4) as target:
        peer = await target.shaken(max_stream_data=300)
        await peer.introduce()
        number = peer.request(websocket_fields(), fin=False)
        assert await peer.answered(number) == 200
        peer.connection._write_stream_limits = lambda *args, **kwargs: None  # type: ignore[method-assign]
        for _ in range(60):
            peer.tell(number, content(frame(PING, b"ping" * 20) * 50))
            await trio.sleep(0.01)
        assert target.driver(peer).engine.unsent(number) < 64 * KIB


@pytest.mark.parametrize("opcode", [PING, PONG, TEXT])
async def test_flood_of_frames(opcode: int) -> None:
    async with websocket(memory=6) as (_, peer, number):
        for _ in range(20):
            peer.tell(number, content(frame(opcode, b"x") * 100))
            await trio.sleep(0.01)
        peer.tell(number, content(close_frame(1000)), fin=True)
        assert await close_code(peer, number) == 1000


async def test_messages_that_nobody_reads() -> None:
    """The stream's window holds the client back."""

    async def sleeps(ws: trio_wt.WebSocket) -> None:
        await trio.sleep(60)

    async with websocket(memory=6, websocket_handler=sleeps, patience=70) as (target, peer, number):
        for _ in range(40):
            peer.tell(number, content(frame(BINARY, bytes(60_000))))
            await trio.sleep(0.02)
        driver = target.driver(peer)
        assert driver.engine.highest_received(number) < 2**21
        del driver
        await peer.still_served()


@pytest.mark.parametrize("ending", ["reset", "stop", "both", "end", "goodbye", "vanish"])
@pytest.mark.parametrize("inside", [b"", b"\x81", frame(TEXT, b"half a", length=20)])
async def test_clients_that_leave(inside: bytes, ending: str) -> None:
    """The handler is told, whatever it is that is missing."""
    ends: list[str] = []

    async def handler(ws: trio_wt.WebSocket) -> None:
        try:
            await echo_messages(ws)
            ends.append("ok")
        except trio_wt.ConnectionClosed as exc:
            ends.append(f"{exc.code}")

    async with websocket(websocket_handler=handler, idle_timeout=4, patience=8) as (
        _,
        peer,
        number,
    ):
        if inside:
            peer.tell(number, content(inside))
        if ending in ("reset", "both"):
            peer.reset(number)
        if ending in ("stop", "both"):
            peer.stop(number)
            # It is only noticed by who sends.
            if ending == "stop":
                peer.tell(number, fin=True)
        if ending == "end":
            peer.tell(number, fin=True)
        elif ending == "goodbye":
            peer.leave()
        elif ending == "vanish":
            peer.close()
        with trio.fail_after(12):
            while not ends:
                await trio.sleep(0.05)
    assert ends == ["1006"]


async def test_client_that_never_answers_a_close() -> None:
    """It has five seconds for that; then its stream is given up."""

    async def closes(ws: trio_wt.WebSocket) -> None:
        await ws.close(3000)

    async with websocket(memory=4, websocket_handler=closes) as (target, peer, number):
        assert await close_code(peer, number) == 3000
        await trio.sleep(12)
        assert target.streams(peer) == 0
        assert number in peer.stops or number in peer.resets


@pytest.mark.parametrize(
    "data",
    [
        head([(b"a", b"b")]),
        record(1, length=2**30),
        record(4),
        stream_head(0, uni=False),
        record(0, b"x", length=2**40),
    ],
    ids=["trailers", "HEADERS of 2^30 bytes", "SETTINGS", "WT_STREAM", "DATA cut off"],
)
async def test_frames_of_http_that_must_not_be(data: bytes) -> None:
    async with websocket() as (target, peer, number):
        peer.tell(number, data, fin=True)
        await trio.sleep(2)
        assert peer.end is not None or number in peer.ended or number in peer.resets
        if peer.end is None:
            assert target.streams(peer) == 0


async def test_streams_and_datagrams_of_a_websocket() -> None:
    """It has none: they are refused, or dropped."""
    async with websocket(memory=4) as (target, peer, number):
        opened = [peer.open_session_stream(number, b"x", uni=n % 2 == 0) for n in range(40)]
        for _ in range(100):
            peer.say(datagram(number, b"x"))
        peer.tell(number, content(frame(TEXT, b"hello")))
        await peer.until(lambda: frames(peer.content(number)) == [(TEXT, b"hello")])
        await trio.sleep(6)
        assert set(opened) <= set(peer.stops)
        assert target.streams(peer) == 1


async def test_rapid_reset_of_websockets() -> None:
    """Hundreds of them: as many handlers as there may be streams, and none of them stays."""
    running = most = 0

    async def handler(ws: trio_wt.WebSocket) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await echo_messages(ws)
        finally:
            running -= 1

    async with attacked_h3_server(memory=8, websocket_handler=handler) as target:
        peer = await target.introduced()
        allowed = peer.connection._remote_max_streams_bidi
        peer.claim(2**20)
        request = head(websocket_fields())
        number = 0
        for _ in range(30):
            for _ in range(min(peer.connection._remote_max_streams_bidi - number, 20)):
                peer.say(
                    stream(4 * number, 0, request),
                    quic_frame(0x04, 4 * number, Code.REQUEST_CANCELLED, len(request)),
                    quic_frame(0x05, 4 * number, Code.REQUEST_CANCELLED),
                )
                number += 1
            await trio.sleep(0.02)
        await trio.sleep(1)
        assert number > 400
        assert most <= allowed
        assert running == 0
        assert target.streams(peer) == 0
        assert peer.end is None
