"""Ours against every peer, both ways round."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trustme

from tests.interop.peers import PEERS, Message, Peer
from trio_wt import (
    ConnectionClosedError,
    Deflate,
    Request,
    WebSocket,
    open_websocket,
    serve_websocket,
)

pytestmark = [
    pytest.mark.real_clock,
    # Some peers leave a socket to the garbage collector; ours are counted in tests/robustness.
    pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
all_peers = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
tls_peers = pytest.mark.parametrize("peer", [p for p in PEERS if p.tls], ids=lambda peer: peer.name)

MESSAGES: list[str | bytes] = [
    "text äöü",
    b"binary \x00\xff",
    "",
    b"",
    "l" * 300_000,
    bytes(i & 0xFF for i in range(3_000_000)),
]
FRAGMENTED: list[Message] = [["one ", "two ", "three"], [b"1" * 70_000, b"2"]]


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def our_server(
    context: ssl.SSLContext | None = None, **settings: object
) -> AsyncIterator[tuple[str, list[WebSocket]]]:
    """Echoes; closes with 4002 on /close, drops on /drop, answers 403 on /no. With the WebSockets it had."""
    seen: list[WebSocket] = []

    async def handler(ws: WebSocket) -> None:
        seen.append(ws)
        if ws.request.path == "/close":
            await ws.close(4002, "enough")
        else:
            async for message in ws:
                await ws.send(message)

    def decide(request: Request) -> None:
        if request.path == "/no":
            request.reject(403, body="no")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: serve_websocket(
                handler,
                0,
                host="127.0.0.1",
                ssl_context=context,
                on_request=decide,
                subprotocols=["echo"],
                max_message_size=8 * 2**20,
                task_status=task_status,
                **settings,  # type: ignore[arg-type]
            )
        )
        port = listeners[0].socket.getsockname()[1]
        yield f"{'ws' if context is None else 'wss'}://127.0.0.1:{port}", seen
        nursery.cancel_scope.cancel()


# ---- our client, their server


@all_peers
@pytest.mark.parametrize(
    "compression",
    [
        None,
        Deflate(),
        Deflate(client_no_context_takeover=True, server_no_context_takeover=True),
    ],
    ids=["plain", "deflate", "deflate without takeover"],
)
async def test_our_client(peer: Peer, compression: Deflate | None) -> None:
    async with (
        peer.server(None) as port,
        open_websocket(
            f"ws://127.0.0.1:{port}/",
            subprotocols=["other", "echo"],
            compression=compression,
            max_message_size=8 * 2**20,
        ) as ws,
    ):
        assert ws.subprotocol == "echo"
        assert bool(ws.extensions) == (peer.deflates and compression is not None)
        for message in MESSAGES:
            await ws.send(message)
            assert await ws.receive() == message
        for parts in FRAGMENTED:
            await ws.send(parts)
            assert await ws.receive() == parts[0][:0].join(parts)  # type: ignore[arg-type]
        await ws.send_many(["a", b"b", "c"])
        received: list[str | bytes] = []
        while len(received) < 3:
            received += await ws.receive_many()
        assert received == ["a", b"b", "c"]
        assert 0 < await ws.ping() < 10
        await ws.close(3001, "bye")
        assert (ws.close_code, ws.close_reason) == (3001, "bye")


@all_peers
async def test_their_close_reaches_our_client(peer: Peer) -> None:
    async with (
        peer.server(None) as port,
        open_websocket(f"ws://127.0.0.1:{port}/", subprotocols=["echo"]) as ws,
    ):
        await ws.send("close 4001 because")
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.reason) == (4001, "because")
        assert caught.value.remote
        with trio.fail_after(5):
            await ws.wait_closed()


@all_peers
async def test_their_drop_is_1006_for_our_client(peer: Peer) -> None:
    async with (
        peer.server(None) as port,
        open_websocket(f"ws://127.0.0.1:{port}/", subprotocols=["echo"]) as ws,
    ):
        await ws.send("drop")
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1006


@tls_peers
async def test_our_client_over_tls(peer: Peer) -> None:
    server, client = certificates()
    async with (
        peer.server(server) as port,
        open_websocket(f"wss://127.0.0.1:{port}/", ssl_context=client, subprotocols=["echo"]) as ws,
    ):
        await ws.send("x" * 100_000)
        assert await ws.receive() == "x" * 100_000


# ---- their client, our server


@all_peers
@pytest.mark.parametrize("compression", [None, Deflate()], ids=["plain", "deflate"])
async def test_our_server(peer: Peer, compression: Deflate | None) -> None:
    messages: list[Message] = [*MESSAGES, *(FRAGMENTED if peer.fragments else [])]
    expected = [
        message[0][:0].join(message) if isinstance(message, list) else message  # type: ignore[arg-type]
        for message in messages
    ]
    async with our_server(compression=compression) as (url, seen):
        assert await peer.client(url, messages, 3002, None) == expected
        (ws,) = seen
        with trio.fail_after(5):
            await ws.wait_closed()
        assert (ws.close_code, ws.close_reason) == (3002, "done")
        assert bool(ws.extensions) == (peer.deflates and compression is not None)


@all_peers
async def test_our_close_reaches_their_client(peer: Peer) -> None:
    async with our_server() as (url, _):
        assert await peer.closed_by(f"{url}/close") == (4002, "enough")


@all_peers
async def test_our_rejection_reaches_their_client(peer: Peer) -> None:
    async with our_server() as (url, _):
        assert await peer.rejected(f"{url}/no") == 403


@tls_peers
async def test_our_server_over_tls(peer: Peer) -> None:
    server, client = certificates()
    async with our_server(server) as (url, _):
        assert await peer.client(url, ["x" * 100_000], 1000, client) == ["x" * 100_000]
