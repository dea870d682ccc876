"""WebSockets over HTTP/3, frame by frame."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.frames import close_frame, frame, parse_frames
from tests.http3_peers import (
    Exchange,
    RawPeer,
    raw_client,
    raw_server,
    ws_fields,
)
from tests.webtransport_pairs import (
    Guests,
    connect,
    serving,
    settle,
)
from trio_wt import (
    ConnectionClosedError,
    ConnectionClosedOK,
    Settings,
    StreamReset,
    WebSocket,
)
from trio_wt.testing import Network

TEXT, BINARY, CLOSE, PONG = 0x81, 0x82, 0x88, 0x8A


async def read_frames(exchange: Exchange) -> list[tuple[int, bytes]]:
    return parse_frames(await exchange.receive_body())


@asynccontextmanager
async def raw_websocket(
    *more: tuple[bytes, bytes], settings: Settings | None = None
) -> AsyncIterator[tuple[Exchange, WebSocket]]:
    """A server's, and the bare exchange that leads to it."""
    network, guests = Network(), Guests()
    async with serving(None, network, websocket_handler=guests, websocket_settings=settings):
        async with raw_client(network) as peer:
            exchange = await peer.request(ws_fields(peer, *more))
            assert (await exchange.receive_head())[b":status"] == b"200"
            yield exchange, await guests.next()


async def test_frames_are_those_of_rfc_6455() -> None:
    async with raw_websocket() as (exchange, websocket):
        # In DATA frames of any size.
        data = frame(1, b"hello", masked=True) + frame(9, b"ping", masked=True)
        for byte in data:
            await exchange.send_data(bytes([byte]))
        assert await websocket.receive() == "hello"
        await websocket.send("hi")
        await websocket.send(b"\x00\xff")
        await exchange.send_data(close_frame(3000, "bye", masked=True), eof=True)
        await websocket.wait_closed()
        assert websocket.close_code == 3000
        frames = await read_frames(exchange)
        assert sorted(frames[:3]) == [(TEXT, b"hi"), (BINARY, b"\x00\xff"), (PONG, b"ping")]
        assert frames[3:] == [(CLOSE, b"\x0b\xb8bye")]


async def test_fragments_and_a_ping_between_them() -> None:
    async with raw_websocket() as (exchange, websocket):
        await exchange.send_data(frame(2, b"one ", masked=True, fin=False))
        await exchange.send_data(frame(9, b"", masked=True))
        await exchange.send_data(frame(0, b"two ", masked=True, fin=False))
        await settle()
        await exchange.send_data(frame(0, b"three", masked=True))
        assert await websocket.receive() == b"one two three"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"x", masked=False), 1002),
        (frame(3, b"x", masked=True), 1002),
        (frame(1, b"x", masked=True, rsv=0x40), 1002),
        (frame(0, b"x", masked=True), 1002),
        (frame(9, b"x" * 126, masked=True), 1002),
        (frame(1, b"\xff", masked=True), 1007),
        (close_frame(1006, "", masked=True), 1002),
        (frame(2, b"", masked=True, length=2**40, length_bytes=8), 1009),
    ],
)
async def test_violations_have_their_codes(data: bytes, code: int) -> None:
    async with raw_websocket() as (exchange, websocket):
        await exchange.send_data(data)
        with pytest.raises(ConnectionClosedError) as caught:
            await websocket.receive()
        assert caught.value.code == code
        with trio.fail_after(10):
            frames = await read_frames(exchange)
        assert frames[-1][0] == CLOSE
        assert int.from_bytes(frames[-1][1][:2]) == code
        assert exchange.peer.connection.closed is None


async def test_permessage_deflate_is_negotiated() -> None:
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")
    async with raw_websocket(offer) as (exchange, websocket):
        assert list(websocket.extensions) == ["permessage-deflate"]
        await exchange.send_data(frame(1, bytes.fromhex("f248cdc9c90700"), masked=True, rsv=0x40))
        assert await websocket.receive() == "Hello"
    async with raw_websocket(offer, settings=Settings(compression=None)) as (_, websocket):
        assert list(websocket.extensions) == []


async def test_frames_of_http_in_between_change_nothing() -> None:
    async with raw_websocket() as (exchange, websocket):
        half = frame(1, b"hello", masked=True)
        await exchange.send_data(half[:4])
        await exchange.send_frame(0x1F * 3 + 0x21, b"grease")
        await exchange.send_data(b"")
        await exchange.send_data(half[4:])
        assert await websocket.receive() == "hello"


async def test_what_the_client_sends() -> None:
    """Masked frames, and the end of its stream behind Close."""
    bodies: list[bytes] = []

    async def handler(peer: RawPeer) -> None:
        exchange, head = await peer.next_request()
        assert head[b":protocol"] == b"websocket"
        assert head[b":path"] == b"/chat?x"
        assert head[b"sec-websocket-version"] == b"13"
        assert head[b"sec-websocket-protocol"] == b"a, b"
        assert b"sec-websocket-key" not in head
        assert b"upgrade" not in head
        await exchange.send_head([(b":status", b"200"), (b"sec-websocket-protocol", b"b")])
        await exchange.send_data(frame(1, b"hello", masked=False))
        await trio.sleep(1)
        await exchange.send_data(close_frame(1000, "", masked=False), eof=True)
        bodies.append(await exchange.receive_body())

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with connection.open_websocket("/chat?x", subprotocols=["a", "b"]) as websocket:
            assert websocket.subprotocol == "b"
            assert await websocket.receive() == "hello"
            await websocket.send("yes?")
            with pytest.raises(ConnectionClosedOK):
                await websocket.receive()
        await settle()
    (body,) = bodies
    frames = parse_frames(body)
    assert frames == [(TEXT, b"yes?"), (CLOSE, b"\x03\xe8")]
    assert body[1] & 0x80


async def test_a_peer_that_never_reads_does_not_hold_up_a_close() -> None:
    """Neither side's block waits for longer than its close timeout."""
    async with raw_websocket(settings=Settings(close_timeout=3, compression=None)) as (
        _,
        websocket,
    ):
        with trio.move_on_after(1):
            while True:
                await websocket.send(bytes(100_000))
        started = trio.current_time()
        await websocket.close()
        assert trio.current_time() - started <= 3.1


async def test_a_peer_that_does_not_answer_close_is_left_in_time() -> None:
    async with raw_websocket(settings=Settings(close_timeout=3)) as (exchange, websocket):
        started = trio.current_time()
        await websocket.close(3005)
        assert 2.9 <= trio.current_time() - started <= 3.1
        assert await read_frames_until_end(exchange) == [(CLOSE, b"\x0b\xbd")]


async def read_frames_until_end(exchange: Exchange) -> list[tuple[int, bytes]]:
    """Also where the end is a reset."""
    body = b""
    try:
        while (got := await exchange.receive_frame()) is not None:
            body += got[1]
    except StreamReset:
        pass
    return parse_frames(body)
