"""Serving: decisions about requests, listeners, and the end."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_wt import (
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    Rejected,
    Request,
    WebSocket,
    open_websocket,
    serve_websocket,
)
from trio_wt.testing import websocket_pair

real = pytest.mark.real_clock


async def echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


@asynccontextmanager
async def serving(handler: object = echo, **options: object) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: serve_websocket(
                handler,  # type: ignore[arg-type]
                0,
                host="127.0.0.1",
                task_status=task_status,
                **options,  # type: ignore[arg-type]
            )
        )
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def get(authority: str, target: str, method: str = "GET") -> tuple[bytes, bytes]:
    """A plain HTTP request: the head and the body of the answer."""
    host, _, port = authority.partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        answer = b""
        async for data in stream:
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@real
async def test_health_checks_share_the_port_and_leave_no_word_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def decide(request: Request) -> None:
        await trio.lowlevel.checkpoint()
        if request.path == "/health":
            request.respond(200, {"X-Server": "fine"}, "ok")

    with caplog.at_level(logging.INFO):
        async with serving(on_request=decide) as authority:
            head, body = await get(authority, "/health?now")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-server: fine" in head.lower()
            assert b"connection: close" in head.lower()
            assert body == b"ok"
            head, body = await get(authority, "/health", "HEAD")
            assert b"content-length: 2" in head.lower()
            assert body == b""
            head, body = await get(authority, "/elsewhere")
            assert head.startswith(b"HTTP/1.1 426 ")
            assert b"upgrade: websocket" in head.lower()
            async with open_websocket(f"ws://{authority}/health-not") as ws:
                await ws.send("and WebSockets")
                assert await ws.receive() == "and WebSockets"
    assert not caplog.records


async def test_the_application_chooses_subprotocol_and_headers() -> None:
    def decide(request: Request) -> None:
        assert request.subprotocols == ["b", "a"]
        request.accept(subprotocol="a", headers={"Set-Cookie": "x=1"})

    async with websocket_pair(subprotocols=["b", "a"], on_request=decide) as (client, server):
        assert client.subprotocol == server.subprotocol == "a"
        assert client.response_headers["set-cookie"] == "x=1"


async def test_the_servers_order_of_subprotocols_counts() -> None:
    async with websocket_pair(subprotocols=["a", "b"]) as (client, _):
        assert client.subprotocol == "a"


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, "same-host", True),
        ("http://example.test", "same-host", True),
        ("https://example.test", "same-host", True),
        ("http://example.test:8080", "same-host", False),
        ("http://evil.test", "same-host", False),
        ("null", "same-host", False),
        ("http://evil.test", "any", True),
        ("http://friend.test", ["http://friend.test"], True),
        ("http://a.friend.test", [re.compile(r"http://\w+\.friend\.test")], True),
        ("http://a.friend.test.evil", [re.compile(r"http://\w+\.friend\.test")], False),
        ("http://example.test", [], False),
    ],
)
async def test_origins(origin: str | None, origins: object, allowed: bool) -> None:
    if allowed:
        async with websocket_pair(origin=origin, origins=origins):  # type: ignore[arg-type]
            return
    with pytest.raises(Rejected) as caught:
        async with websocket_pair(origin=origin, origins=origins):  # type: ignore[arg-type]
            pass
    assert caught.value.status == 403


async def test_an_error_in_on_request_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def decide(_: Request) -> None:
        raise ZeroDivisionError

    with pytest.raises(Rejected) as caught:
        async with websocket_pair(on_request=decide):
            pass
    assert caught.value.status == 500
    assert "ZeroDivisionError" in caplog.text


@real
async def test_several_listeners() -> None:
    listeners = [
        *await trio.open_tcp_listeners(0, host="127.0.0.1"),
        *await trio.open_tcp_listeners(0, host="127.0.0.1"),
    ]
    async with trio.open_nursery() as nursery:
        started = await nursery.start(
            lambda task_status: serve_websocket(echo, listeners=listeners, task_status=task_status)
        )
        assert started == listeners
        for listener in listeners:
            port = listener.socket.getsockname()[1]
            async with open_websocket(f"ws://127.0.0.1:{port}/") as ws:
                await ws.send("x")
                assert await ws.receive() == "x"
        nursery.cancel_scope.cancel()
    for listener in listeners:
        assert listener.socket.fileno() == -1


@real
async def test_how_a_handler_ends_decides_the_code() -> None:
    async def handler(ws: WebSocket) -> None:
        if ws.request.path == "/raise":
            raise ZeroDivisionError
        if ws.request.path == "/cancel":
            ws.cancel_scope.cancel()
            await trio.sleep_forever()

    logging.getLogger("trio_wt.server").disabled = True
    try:
        async with serving(handler) as authority:
            for path, code in (("return", 1000), ("raise", 1011), ("cancel", 1011)):
                async with open_websocket(f"ws://{authority}/{path}") as ws:
                    await ws.wait_closed()
                    assert ws.close_code == code
    finally:
        logging.getLogger("trio_wt.server").disabled = False


@real
async def test_handler_errors_may_go_on_to_the_nursery() -> None:
    async def handler(_: WebSocket) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(handler, handler_errors="raise") as authority:
            async with open_websocket(f"ws://{authority}/") as ws:
                await ws.wait_closed()
                assert ws.close_code == 1011


@real
async def test_handlers_run_in_the_nursery_that_was_given() -> None:
    parents: list[trio.Nursery | None] = []

    async def handler(ws: WebSocket) -> None:
        parents.append(trio.lowlevel.current_task().parent_nursery)
        await ws.receive()

    async with trio.open_nursery() as handlers:
        async with serving(handler, handler_nursery=handlers) as authority:
            async with open_websocket(f"ws://{authority}/") as ws:
                await ws.send("x")
        assert parents == [handlers]


@real
async def test_shutdown_says_1001_to_all_and_returns() -> None:
    shutdown = trio.Event()
    ended: list[str] = []

    async def handler(ws: WebSocket) -> None:
        with pytest.raises(ConnectionClosedOK):
            while True:
                await ws.receive()
        ended.append(ws.request.path)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            lambda task_status: serve_websocket(
                handler, 0, host="127.0.0.1", shutdown=shutdown, task_status=task_status
            )
        )
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"  # type: ignore[attr-defined]
        async with open_websocket(f"{url}/1") as one, open_websocket(f"{url}/2") as two:
            shutdown.set()
            for ws in (one, two):
                with pytest.raises(ConnectionClosedOK) as caught:
                    await ws.receive()
                assert caught.value.code == 1001
            with trio.fail_after(2):
                while len(ended) < 2:
                    await trio.sleep(0.01)
            with pytest.raises(HandshakeFailed):
                async with open_websocket(url):
                    pass


@real
async def test_shutdown_is_bounded() -> None:
    shutdown = trio.Event()

    async def handler(_: WebSocket) -> None:
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                lambda task_status: serve_websocket(
                    handler,
                    0,
                    host="127.0.0.1",
                    shutdown=shutdown,
                    shutdown_timeout=0.1,
                    task_status=task_status,
                )
            )
            port = listener.socket.getsockname()[1]  # type: ignore[attr-defined]
            async with open_websocket(f"ws://127.0.0.1:{port}/") as ws:
                shutdown.set()
                with pytest.raises(ConnectionClosedOK):
                    await ws.receive()


@real
async def test_cancelling_the_server_says_1001() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            lambda task_status: serve_websocket(echo, 0, host="127.0.0.1", task_status=task_status)
        )
        port = listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        async with trio.open_nursery() as clients:

            @clients.start_soon
            async def client() -> None:
                with trio.CancelScope(shield=True):
                    async with open_websocket(f"ws://127.0.0.1:{port}/") as ws:
                        nursery.cancel_scope.cancel()
                        with pytest.raises((ConnectionClosedOK, ConnectionClosedError)) as caught:
                            await ws.receive()
                        assert caught.value.code == 1001


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"port": 0, "unix_path": "/x"},
        {"port": 0, "origins": "all"},
        {"port": 0, "handler_errors": "ignore"},
        {"port": 0, "handshake_timeout": 0},
        {"port": 0, "subprotocols": ["a b"]},
        {"port": 0, "close_timeout": 0},
    ],
    ids=str,
)
async def test_mistakes_are_value_errors(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="."):
        await serve_websocket(echo, **options)  # type: ignore[arg-type]
