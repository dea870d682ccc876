"""What has gone wrong in libraries like this one; each scenario was seen to fail somewhere else.

Cancelled sends and receives at every checkpoint are in test_websocket_cancellation.py, keepalive and endings in
test_websocket_connection.py, floods and handshakes in tests/robustness.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.frames import frame, parse_frames
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedOK,
    Deflate,
    WebSocket,
    broadcast,
    open_websocket,
    reconnect,
    serve_websocket,
    wrap_server_stream,
)
from trio_wt.testing import websocket_pair

HEAD = (
    b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@asynccontextmanager
async def server(handler: object, **settings: object) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: serve_websocket(
                handler, 0, host="127.0.0.1", task_status=task_status, **settings
            )
        )
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


async def answer_to(head: bytes) -> bytes:
    """What a server answers to a request head, until it closes."""
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(head)
    answer = b""

    async def serve() -> None:
        try:
            async with wrap_server_stream(theirs) as ws:
                await ws.receive()
        except Exception:
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        while data := await ours.receive_some():
            answer += data
    return answer


@pytest.mark.real_clock
async def test_a_cancelled_large_send_leaves_no_half_frame() -> None:
    received: list[str | bytes] = []
    go = trio.Event()

    async def handler(ws: WebSocket) -> None:
        await go.wait()
        async for message in ws:
            received.append(message)

    async with server(handler, max_message_size=None, compression=None) as url:
        async with open_websocket(url, compression=None) as ws:
            large = bytes(30_000_000)
            await ws.send(large)
            with trio.move_on_after(0.1) as scope:
                await ws.send(bytes(1_000_000))
            assert scope.cancelled_caught
            go.set()
            await ws.send("after it")
        with trio.fail_after(10):
            while len(received) < 2:
                await trio.sleep(0.01)
    assert [len(received[0]), received[1]] == [len(large), "after it"]


async def test_reconnecting_nests_properly_in_nurseries_and_scopes() -> None:
    sessions = 0

    @asynccontextmanager
    async def session() -> AsyncIterator[WebSocket]:
        async with websocket_pair() as (client, _):
            yield client

    with trio.move_on_after(1000) as outer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            async for attempt in reconnect(session):
                with trio.CancelScope():
                    async with attempt as ws, trio.open_nursery() as inner:
                        inner.start_soon(ws.ping)
                        sessions += 1
                if sessions == 3:
                    break
    assert sessions == 3
    assert not outer.cancelled_caught


@pytest.mark.real_clock
async def test_connect_send_and_close_at_once_two_hundred_times() -> None:
    messages: list[str | bytes] = []
    codes: list[int | None] = []

    async def handler(ws: WebSocket) -> None:
        async for message in ws:
            messages.append(message)
        codes.append(ws.close_code)

    async with server(handler) as url:
        for number in range(200):
            async with open_websocket(url) as ws:
                await ws.send(str(number))
            assert ws.close_code == 1000
        with trio.fail_after(5):
            while len(codes) < 200:
                await trio.sleep(0.01)
    assert messages == [str(number) for number in range(200)]
    assert codes == [1000] * 200


@pytest.mark.real_clock
async def test_a_ping_gets_its_pong_past_forty_unread_messages() -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.wait_closed()

    async with server(handler) as url, open_websocket(url) as ws:
        for number in range(40):
            await ws.send(str(number))
        with trio.fail_after(2):
            await ws.ping()


@pytest.mark.real_clock
async def test_a_stalled_client_does_not_hold_up_a_broadcast() -> None:
    connections: set[WebSocket] = set()

    async def handler(ws: WebSocket) -> None:
        connections.add(ws)
        await ws.wait_closed()

    async with (
        server(handler, compression=None) as url,
        open_websocket(url, max_message_size=None) as awake,
        open_websocket(url, max_message_size=None, close_timeout=0.1),
    ):
        # The second never receives, so its sockets fill up.
        received = 0

        async def receive() -> None:
            nonlocal received
            async for _ in awake:
                received += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            while len(connections) < 2:
                await trio.sleep(0.01)
            with trio.fail_after(10):
                for number in range(60):
                    await broadcast(connections, bytes(500_000))
                    while received <= number:
                        await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        for connection in connections:
            connection.cancel_scope.cancel()


async def test_the_end_wakes_ping_receive_and_send() -> None:
    async with websocket_pair() as (client, ws), trio.open_nursery() as nursery:

        async def ends(use: object, *args: object) -> None:
            assert callable(use)
            with pytest.raises(ConnectionClosed):
                while True:
                    await use(*args)

        # A server that looks at nothing, so that the ping waits for its pong.
        nursery.start_soon(ends, ws.receive)
        nursery.start_soon(ends, ws.send, "x" * 1000)
        nursery.start_soon(ends, ws.ping)
        await trio.sleep(0)
        await client.close()


async def test_a_control_frame_inside_a_compressed_message() -> None:
    deflate = Deflate()
    codec = deflate.confirm([("client_max_window_bits", "12"), ("server_max_window_bits", "12")])
    first, _ = codec.encode(b"hello " * 100, first=True, final=False, wanted=True)
    second, _ = codec.encode(b"world " * 100, first=False, final=True, wanted=True)
    ours, theirs = trio.testing.memory_stream_pair()
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=12\r\n"
    await ours.send_all(HEAD + KEY + offer + b"\r\n")
    async with wrap_server_stream(theirs) as ws:
        await ours.receive_some()
        await ours.send_all(
            frame(1, first, masked=True, fin=False, rsv=0x40)
            + frame(9, b"between", masked=True)
            + frame(0, second, masked=True)
        )
        assert await ws.receive() == "hello " * 100 + "world " * 100
        assert parse_frames(bytes(await ours.receive_some())) == [(0x8A, b"between")]
        await ours.aclose()


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; unknown",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=08",
        "permessage-deflate; server_no_context_takeover=1",
    ],
)
async def test_bad_deflate_offers_are_declined(offer: str) -> None:
    extensions = f"Sec-WebSocket-Extensions: {offer}\r\n".encode()
    answer = await answer_to(HEAD + KEY + extensions + b"\r\n" + frame(8, b"", masked=True))
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"permessage-deflate" not in answer


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Sec-WebSocket-Key: c2hvcnQ=\r\n\r\n",
        HEAD + KEY + KEY + b"\r\n",
        (HEAD + KEY).replace(b"example.test", "exämple.test".encode()) + b"\r\n",
    ],
    ids=["short key", "two keys", "non-ASCII Host"],
)
async def test_bad_handshakes_get_400(head: bytes) -> None:
    assert (await answer_to(head)).startswith(b"HTTP/1.1 400 ")


async def test_a_plain_get_gets_a_proper_answer() -> None:
    answer = await answer_to(b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"content-length: %d" % len(body) in head.lower()


async def test_closing_with_1006_is_an_error_and_not_1000() -> None:
    async with websocket_pair() as (client, server_side):
        with pytest.raises(ValueError, match="1006"):
            await client.close(1006)
        await client.send("still open")
        assert await server_side.receive() == "still open"


@pytest.mark.real_clock
async def test_a_handlers_exception_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(ws: WebSocket) -> None:
        if await ws.receive() == "fail":
            raise ZeroDivisionError
        await ws.send("fine")

    with caplog.at_level(logging.CRITICAL, "trio_wt"):
        async with server(handler) as url:
            async with open_websocket(url) as ws:
                await ws.send("fail")
                with pytest.raises(ConnectionClosed) as caught:
                    await ws.receive()
                assert caught.value.code == 1011
            async with open_websocket(url) as ws:
                await ws.send("work")
                assert await ws.receive() == "fine"
                with pytest.raises(ConnectionClosedOK):
                    await ws.receive()
