"""Connecting again, with WebSockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme

from trio_wt import (
    ConnectionClosed,
    HandshakeFailed,
    WebSocket,
    open_websocket,
    reconnect,
    serve_websocket,
)
from trio_wt.testing import websocket_pair


class Servers:
    """Opens a client's WebSocket whose server greets and closes with the next code."""

    def __init__(self, *codes: int | None) -> None:
        self.codes = list(codes)

    @asynccontextmanager
    async def __call__(self, *, cancel_on_close: bool = False) -> AsyncIterator[WebSocket]:
        async with websocket_pair(cancel_on_close=cancel_on_close) as (client, server):
            await server.send("hello")
            code = self.codes.pop(0)
            if code is None:
                server.cancel_scope.cancel()
            else:
                await server.send_close(code)
            yield client


async def test_a_feed_goes_on_over_its_ends() -> None:
    opener, received = Servers(1000, 1001, 1011, 1013, 4000), []
    with pytest.raises(ConnectionClosed) as caught:
        async for attempt in reconnect(opener):
            async with attempt as ws:
                async for message in ws:
                    received.append(message)
    assert caught.value.code == 4000
    assert received == ["hello"] * 5


async def test_a_lost_session_with_cancel_on_close_is_followed_by_the_next() -> None:
    opener, sessions = Servers(1001, 1011, 1000), 0
    async for attempt in reconnect(opener, cancel_on_close=True):
        async with attempt:
            sessions += 1
            if sessions == 3:
                break
            await trio.sleep_forever()
    assert sessions == 3


async def test_a_block_may_cancel_its_own_session() -> None:
    opener, sessions = Servers(1000, 1000), 0
    async for attempt in reconnect(opener):
        async with attempt as ws:
            sessions += 1
            if sessions == 2:
                break
            ws.cancel_scope.cancel()
            await trio.sleep_forever()
    assert sessions == 2


@pytest.mark.real_clock
async def test_a_certificate_that_does_not_verify_is_not_tried_again() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    retried: list[Exception] = []

    async def handler(ws: WebSocket) -> None:
        await ws.wait_closed()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(serve_websocket, handler, 0, host="127.0.0.1", ssl_context=context)
        )
        port = listener.socket.getsockname()[1]
        with pytest.raises(HandshakeFailed, match="certificate"):
            async for attempt in reconnect(
                open_websocket,
                f"wss://127.0.0.1:{port}",
                proxy=None,
                on_retry=lambda exc, delay: retried.append(exc),
            ):
                async with attempt:
                    pytest.fail("nobody has verified it")
        nursery.cancel_scope.cancel()
    assert retried == []


@pytest.mark.real_clock
async def test_a_server_that_comes_back_is_found() -> None:
    retried = trio.Event()

    async def handler(ws: WebSocket) -> None:
        await ws.send("here again")

    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]  # nobody listens yet: connections are refused

    async def come_back() -> None:
        await retried.wait()
        listener.listen()
        await serve_websocket(handler, listeners=[trio.SocketListener(listener)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        async for attempt in reconnect(
            open_websocket,
            f"ws://127.0.0.1:{port}",
            proxy=None,
            initial_delay=0.01,
            max_delay=0.01,
            on_retry=lambda exc, delay: retried.set(),
        ):
            async with attempt as ws:
                assert await ws.receive() == "here again"
                break
        nursery.cancel_scope.cancel()
    assert retried.is_set()
