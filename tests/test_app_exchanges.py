"""What applications stand on: exchanges over HTTP/1.1 and HTTP/3, when clients or applications do not do as they should."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.app_servers import BOTH, MemoryListener, Version, serving_in_memory
from tests.http3_peers import raw_client
from tests.webtransport_pairs import settle
from trio_wt import (
    HandshakeFailed,
    Headers,
    WebSocket,
    WebTransportSession,
    serve_websocket,
)
from trio_wt.app import App, Context, Request, Response, deadline

both = pytest.mark.parametrize("version", BOTH)

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def stay(session: WebSocket | WebTransportSession) -> None:
    await session.wait_closed()


def answering(app: App, answer: Callable[..., Any]) -> App:
    """The same with an answer that is no application's."""
    app._answer = answer  # type: ignore[method-assign]
    return app


# ---- applications that do not answer


@pytest.mark.parametrize("how", ["raises", "returns"])
@pytest.mark.parametrize("version", ["1.1", "3"])
async def test_a_request_that_is_not_answered_is_not_left_waiting(
    version: Version, how: str
) -> None:
    async def answer(*args: Any, **kwargs: Any) -> None:
        await trio.lowlevel.checkpoint()
        if how == "raises":
            raise ZeroDivisionError

    async with serving_in_memory(answering(App(), answer)) as served:
        with trio.fail_after(5), pytest.raises((HandshakeFailed, AssertionError)):
            await served.ask(version, "GET", "/")


async def test_what_breaks_in_an_application_is_its_failure() -> None:
    app = App()

    @app.http("/")
    def query(request: Request) -> str:
        raise trio.BrokenResourceError("the database")

    with pytest.raises(ExceptionGroup) as caught:
        async with serving_in_memory(app, handler_errors="raise") as served:
            assert (await served.ask("1.1", "GET", "/")).status == 500
            await settle()
            raise KeyError
    assert caught.group_contains(trio.BrokenResourceError)


# ---- clients that do not take what they are sent


async def test_a_client_that_does_not_take_its_acceptance_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()
    app.websocket("/ws")(stay)
    async with serving_in_memory(app, handshake_timeout=5) as served:
        stream = served.listener.connect(buffered=False)
        await stream.send_all(UPGRADE)
        await trio.sleep(6)
        have = app.statistics()
        assert (have.requests, have.failed, have.websockets) == (1, 0, 0)
        await trio.aclose_forcefully(stream)
    assert not caplog.records


async def test_a_deadline_that_passes_while_a_client_takes_its_acceptance_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App(middleware=[deadline(2)])
    app.websocket("/ws")(stay)
    async with serving_in_memory(app) as served:
        stream = served.listener.connect(buffered=False)
        await stream.send_all(UPGRADE)
        await trio.sleep(3)
        have = app.statistics()
        assert (have.requests, have.failed, have.websockets) == (1, 0, 0)
        await trio.aclose_forcefully(stream)
    assert not caplog.records


async def test_a_slow_client_gets_all_of_a_large_response() -> None:
    size = 2_000_000
    app = App()
    app.http("/")(lambda request: bytes(size))
    async with serving_in_memory(app) as served:
        stream = served.listener.connect(buffered=False)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = 0
        while data := await stream.receive_some(65536):
            received += len(data)
            await trio.sleep(1)
        assert received > size


async def test_a_slow_client_gets_all_of_a_large_response_over_http3() -> None:
    size = 500_000
    app = App()
    app.http("/")(lambda request: bytes(size))
    async with serving_in_memory(app) as served, raw_client(served.network) as peer:
        exchange = await peer.request(peer.plain_fields(), eof=True)
        assert (await exchange.receive_head())[b"content-length"] == b"%d" % size
        received = 0
        while data := await exchange.stream.receive_some(30_000):
            received += len(data)
            await trio.sleep(2)
        assert received >= size


@pytest.mark.parametrize("version", ["1.1", "3"])
async def test_a_client_that_never_reads_is_given_up(version: Version) -> None:
    ended = []

    @asynccontextmanager
    async def watch(context: Context) -> AsyncIterator[None]:
        try:
            yield
        finally:
            ended.append(trio.current_time())

    app = App(middleware=[watch])
    app.http("/")(lambda request: bytes(20_000_000))
    async with serving_in_memory(app) as served:
        if version == "1.1":
            stream = served.listener.connect(buffered=False)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep(600)
            assert ended
            await trio.aclose_forcefully(stream)
        else:
            async with raw_client(served.network) as peer:
                await peer.request(peer.plain_fields(), eof=True)
                for _ in range(60):
                    await trio.sleep(10)
                    await peer.connection.ping()
                assert ended


# ---- responses


@pytest.mark.parametrize(
    "version",
    ["1.1", "3"],
)
async def test_not_modified_says_nothing_about_the_length(version: Version) -> None:
    """It would be that of the 200 response (RFC 9110 section 8.6)."""
    app = App()
    app.http("/")(lambda request: Response(304, Headers({"ETag": '"x"'})))
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert response.headers["etag"] == '"x"'
        assert "content-length" not in response.headers


async def test_upgrade_is_told_with_connection() -> None:
    """RFC 9110 section 7.8."""
    app = App()
    app.websocket("/ws")(stay)
    async with serving_in_memory(app) as served:
        response = await served.ask("1.1", "GET", "/ws")
        assert response.status == 426
        assert "upgrade" in [token.lower() for token in response.headers.tokens("connection")]


# ---- content of requests, which nobody reads


async def test_content_of_requests_over_http1() -> None:
    app = App()
    app.http("/", methods=["POST"])(lambda request: "thanks")
    async with serving_in_memory(app) as served:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
        for request in (
            head + b"\r\n" + bytes(100_000),
            head + b"Expect: 100-continue\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        ):
            response = await served.ask_raw(request)
            assert (response.status, response.body) == (200, b"thanks")


async def test_content_of_requests_over_http3() -> None:
    app = App()
    app.http("/", methods=["POST"])(lambda request: "thanks")
    async with serving_in_memory(app) as served, raw_client(served.network) as peer:
        for _ in range(2):
            exchange = await peer.request(peer.plain_fields(b"POST"))
            head = await exchange.receive_head()
            assert head[b":status"] == b"200"
            assert await exchange.receive_body() == b"thanks"
            # What is still on its way is refused, and the connection goes on.
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(100):
                    await exchange.send_data(bytes(100_000))
                    await settle()


# ---- memory


async def _open_many(listener: MemoryListener, count: int) -> list[trio.abc.Stream]:
    streams = []
    for _ in range(count):
        stream = listener.connect()
        await stream.send_all(UPGRADE)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some()
        streams.append(stream)
    return streams


async def _size(listener: MemoryListener, count: int = 60) -> float:
    """What one more idle session takes, in bytes."""
    streams = await _open_many(listener, count)
    tracemalloc.start()
    try:
        streams += await _open_many(listener, count)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    for stream in streams:
        await trio.aclose_forcefully(stream)
    return size


async def test_what_an_idle_session_takes() -> None:
    @asynccontextmanager
    async def around(context: Context) -> AsyncIterator[None]:
        yield

    sizes = []
    for count in (0, 10):
        app = App(middleware=[around] * count)
        app.websocket("/ws")(stay)
        async with serving_in_memory(app) as served:
            sizes.append(await _size(served.listener))
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_websocket, stay, listeners=[listener]))
        without = await _size(listener)
        nursery.cancel_scope.cancel()
    assert sizes[0] - without < 7000
    assert (sizes[1] - sizes[0]) / 10 < 1500
