"""Chromium at our server: WebTransport, and what it does over HTTP/3 besides."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.browser.chromium import BROWSER, DRIVER, Chromium
from tests.browser.driven import Page
from tests.browser.scenarios import (
    BEGIN,
    MEBIBYTE,
    PATIENTLY,
    Scenarios,
    Seen,
    answer_with_page,
    certificate,
    echo,
    every_code,
    free_port,
    visit,
)
from trio_wt import (
    ConnectionClosed,
    ConnectionLost,
    Request,
    ServerTLS,
    StreamReset,
    WebSocket,
    WebTransportSession,
    serve_webtransport,
)

pytestmark = [
    pytest.mark.real_clock,
    pytest.mark.skipif(
        not (BROWSER and DRIVER) and not os.environ.get("CI"),
        reason="chromium and chromium-driver are not installed",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    chromium = Chromium()
    yield chromium
    chromium.close()


class TestWebTransport(Scenarios):
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [(["a", "b", "c"], "b"), (["c", "b"], "b"), (["d"], None), ([], None)],
    )
    async def test_subprotocols(
        self, browser: Chromium, offered: list[str], chosen: str | None
    ) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add((list(session.request.subprotocols), session.subprotocol))
            await session.wait_closed()

        async with visit(browser, handler, subprotocols=["b", "c"]) as page:
            script = "return (await connected('/', { protocols })).protocol"
            assert (await page.run(script, protocols=offered) or None) == chosen
            assert await seen.next() == (offered, chosen)

    async def test_a_subprotocol_of_on_request(self, browser: Chromium) -> None:
        def on_request(request: Request) -> None:
            request.accept(subprotocol="a", headers=[("x-more", "fields")])

        async with visit(browser, echo, on_request=on_request, subprotocols=["b"]) as page:
            script = "return (await connected('/', { protocols: ['a', 'b'] })).protocol"
            assert await page.run(script) == "a"

    async def test_more_one_way_streams_than_the_limit(self, browser: Chromium) -> None:
        async with visit(browser, echo, max_receive_streams=10) as page:
            script = (
                PATIENTLY
                + """
                const session = await connected();
                const numbers = [...Array(100).keys()];
                const tell = async (number) => {
                  await sendAll(await patiently(() => session.createUnidirectionalStream()), `${number}`);
                };
                const hear = async () => {
                  const heard = [];
                  for await (const stream of session.incomingUnidirectionalStreams) {
                    heard.push(Number(await receiveText(stream)));
                    if (heard.length === numbers.length) return heard.sort((a, b) => a - b);
                  }
                };
                const [heard] = await Promise.all([hear(), Promise.all(numbers.map(tell))]);
                return heard;
            """
            )
            assert await page.run(script) == list(range(100))

    # ---- ends

    async def test_last_words(self, browser: Chromium) -> None:
        """What a handler sends before it returns arrives all the same."""

        async def handler(session: WebTransportSession) -> None:
            async with session.open_send_stream() as stream:
                await stream.send_all(b"x" * 300_000)

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                const text = await receiveText(await take(session.incomingUnidirectionalStreams));
                return [text.length, await session.closed];
            """
            assert await page.run(script) == [300_000, {"closeCode": 0, "reason": ""}]

    async def test_the_page_goes_away(self, browser: Chromium) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                seen.add(await stream.receive_some())
                try:
                    await stream.receive_some()
                except (ConnectionClosed, StreamReset) as exc:
                    seen.add(exc)
            seen.add(await session.wait_closed())

        async with visit(browser, handler) as page:
            script = """
                window.session = await connected();
                const stream = await window.session.createBidirectionalStream();
                window.writer = stream.writable.getWriter();
                await window.writer.write(utf8.encode("hello"));
            """
            await page.run(script)
            assert await seen.next() == b"hello"
            await page.go("about:blank")
            await seen.next()
            end = await seen.next()
            assert end.remote
            assert not isinstance(end, ConnectionLost)

    @every_code
    async def test_the_page_stops(self, browser: Chromium, code: int) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            await session.incoming_receive_streams.receive()
            async with session.open_send_stream() as stream:
                try:
                    while True:
                        await stream.send_all(bytes(1000))
                except StreamReset as exc:
                    seen.add(exc)
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                await sendAll(await session.createUnidirectionalStream(), "start");
                const readable = await take(session.incomingUnidirectionalStreams);
                await take(readable);
                await readable.cancel(new WebTransportError({ streamErrorCode }));
            """
            await page.run(script, streamErrorCode=code)
            end = await seen.next()
            assert (end.code, end.remote) == (code, True)

    async def test_the_page_stops_and_sends_on(self, browser: Chromium) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_some() == b"hello"
                try:
                    while True:
                        await stream.send_all(bytes(1000))
                except StreamReset as exc:
                    seen.add(exc.code)
                seen.add(await stream.receive_all())
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = (
                BEGIN
                + """
                await take(stream.readable);
                await stream.readable.cancel(new WebTransportError({ streamErrorCode: 5 }));
                await writer.write(utf8.encode("unhurt"));
                await writer.close();
            """
            )
            await page.run(script)
            assert await seen.next() == 5
            assert await seen.next() == b"unhurt"

    async def test_the_server_resets_and_receives_on(self, browser: Chromium) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_some() == b"hello"
                stream.reset(6)
                seen.add(await stream.receive_all())
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = (
                BEGIN
                + """
                const end = await outcome(receiveAll(stream.readable));
                await writer.write(utf8.encode("unhurt"));
                await writer.close();
                return end.error.code;
            """
            )
            assert await page.run(script) == 6
            assert await seen.next() == b"unhurt"

    async def test_the_server_stops_and_sends_on(self, browser: Chromium) -> None:
        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_some() == b"hello"
                stream.stop(7)
                await stream.send_all(b"unhurt", eof=True)
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = (
                BEGIN
                + """
                const end = await outcome(writer.closed);
                return [end.error.code, await receiveText(stream.readable)];
            """
            )
            assert await page.run(script) == [7, "unhurt"]


# ---- pages over HTTP/3


def trusted() -> str:
    """Pages come from servers whose certificate's key is trusted; there is no giving a hash there."""
    key = certificate().chain[0].public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


@dataclass
class Forced:
    """A browser that speaks HTTP/3 with one server, unasked."""

    browser: Chromium
    port: int


@pytest.fixture(scope="module")
def forced() -> Iterator[Forced]:
    port = free_port()
    chromium = Chromium(
        "--enable-features=EnableWebsocketsOverHttp3",
        f"--origin-to-force-quic-on=127.0.0.1:{port}",
        f"--ignore-certificate-errors-spki-list={trusted()}",
    )
    yield Forced(chromium, port)
    chromium.close()


@asynccontextmanager
async def visit_over_h3(
    forced: Forced,
    websocket_handler: Callable[[WebSocket], Awaitable[None]] | None,
    handler: Any = echo,
    on_request: Callable[[Request], None] = answer_with_page,
    **options: Any,
) -> AsyncIterator[Page]:
    """A page from the server itself, over HTTP/3."""
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_webtransport,
                handler,
                forced.port,
                host="127.0.0.1",
                tls=ServerTLS(certificate()),
                websocket_handler=websocket_handler,
                on_request=on_request,
                **options,
            )
        )
        url = f"https://127.0.0.1:{forced.port}/?hash={certificate().sha256.hex()}"
        async with forced.browser.page(url) as page:
            yield page
        nursery.cancel_scope.cancel()


async def echo_messages(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def test_the_page_came_over_h3(forced: Forced) -> None:
    seen = Seen()

    def on_request(request: Request) -> None:
        seen.add((request.method, request.path, request.query, request.http_version))
        if request.path == "/answer":
            request.respond(201, [("x-field", "value"), ("content-type", "text/plain")], "grüße")
        elif request.path == "/large":
            request.respond(200, [("content-type", "text/plain")], bytes(MEBIBYTE))
        else:
            answer_with_page(request)

    async with visit_over_h3(forced, echo_messages, on_request=on_request) as page:
        method, path, query, version = await seen.next()
        assert (method, path, version) == ("GET", "/", "3")
        assert query == f"hash={certificate().sha256.hex()}"
        script = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
        assert await page.run(script) == "h3"
        script = """
            const ask = async (path, options) => {
              const response = await fetch(path, options);
              return [response.status, response.headers.get("x-field"), (await response.text())];
            };
            return [
              await ask("/answer?a=b"), await ask("/answer", { method: "POST", body: "a body".repeat(1000) }),
              await ask("/nothing"), (await ask("/large"))[2].length,
            ];
        """
        answer, posted, missing, large = await page.run(script)
        assert answer == posted == [201, "value", "grüße"]
        assert missing[0] == 404
        assert large == MEBIBYTE


# What the WebSockets' scripts need besides.
SOCKET = """
    const open = (path = "/", protocols = []) => new Promise((resolve, reject) => {
      const ws = new WebSocket(`wss://${location.host}${path}`, protocols);
      ws.binaryType = "arraybuffer";
      ws.onopen = () => resolve(ws);
      ws.onerror = () => reject(new Error("no WebSocket"));
    });
    const message = (ws) => new Promise((resolve, reject) => {
      ws.onmessage = (event) => resolve(event.data);
      ws.onclose = (event) => reject(new Error(`closed: ${event.code}`));
    });
    const closed = (ws) => new Promise((resolve) => {
      ws.onclose = ({ code, reason, wasClean }) => resolve({ code, reason, wasClean });
    });
"""


async def test_websocket_messages(forced: Forced) -> None:
    seen = Seen()

    async def handler(ws: WebSocket) -> None:
        request = ws.request
        seen.add((request.http_version, request.path, request.query, request.is_websocket))
        await echo_messages(ws)

    async with visit_over_h3(forced, handler) as page:
        script = (
            SOCKET
            + """
            const ws = await open("/chat?room=1");
            const answers = [];
            for (const text of texts) {
              ws.send(text);
              answers.push(await message(ws));
            }
            const data = pattern(1 << 20);
            ws.send(data);
            return [answers, equal(new Uint8Array(await message(ws)), data)];
        """
        )
        texts = ["hello", "", "grüße ☃", "x" * 200_000]
        assert await page.run(script, texts=texts) == [texts, True]
        assert await seen.next() == ("3", "/chat", "room=1", True)


async def test_websocket_subprotocols(forced: Forced) -> None:
    async with visit_over_h3(forced, echo_messages, subprotocols=["b", "c"]) as page:
        script = SOCKET + "return (await open('/', ['a', 'b'])).protocol"
        assert await page.run(script) == "b"


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4001, "grüße")])
async def test_the_page_closes_a_websocket(forced: Forced, code: int, reason: str) -> None:
    seen = Seen()

    async def handler(ws: WebSocket) -> None:
        try:
            await ws.receive()
        except ConnectionClosed as exc:
            seen.add(exc)

    async with visit_over_h3(forced, handler) as page:
        script = (
            SOCKET
            + """
            const ws = await open();
            const end = closed(ws);
            ws.close(code, reason);
            return end;
        """
        )
        end = await page.run(script, code=code, reason=reason)
        assert end == {"code": code, "reason": reason, "wasClean": True}
        exc = await seen.next()
        assert (exc.code, exc.reason, exc.remote) == (code, reason, True)


async def test_the_server_closes_a_websocket(forced: Forced) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.send("last words")
        await ws.close(4002, "enough")

    async with visit_over_h3(forced, handler) as page:
        script = (
            SOCKET
            + """
            const ws = new WebSocket(`wss://${location.host}/`);
            const last = message(ws);
            const text = await last;
            return [text, await closed(ws)];
        """
        )
        end = {"code": 4002, "reason": "enough", "wasClean": True}
        assert await page.run(script) == ["last words", end]


async def test_the_page_goes_away_from_a_websocket(forced: Forced) -> None:
    seen = Seen()

    async def handler(ws: WebSocket) -> None:
        seen.add(await ws.receive())
        try:
            await ws.receive()
        except ConnectionClosed as exc:
            seen.add(exc)

    async with visit_over_h3(forced, handler) as page:
        await page.run(SOCKET + "window.ws = await open(); window.ws.send('hello')")
        assert await seen.next() == "hello"
        await page.go("about:blank")
        assert (await seen.next()).remote


async def test_a_websocket_is_rejected(forced: Forced) -> None:
    def on_request(request: Request) -> None:
        if request.is_websocket and request.path == "/no":
            request.reject(403, body="no")
        answer_with_page(request)

    async with visit_over_h3(forced, echo_messages, on_request=on_request) as page:
        script = (
            SOCKET
            + """
            const failed = await outcome(open("/no"));
            const ws = await open("/yes");
            ws.send("hello");
            return [failed.error.message, await message(ws)];
        """
        )
        assert await page.run(script) == ["no WebSocket", "hello"]


async def test_no_websockets_here(forced: Forced) -> None:
    async with visit_over_h3(forced, None) as page:
        failed = await page.run(SOCKET + "return outcome(open())")
        assert failed["error"]["message"] == "no WebSocket"


async def test_all_at_once(forced: Forced) -> None:
    """A page, WebSockets on its connection, and WebTransport besides."""
    async with visit_over_h3(forced, echo_messages) as page:
        script = (
            SOCKET
            + """
            const sockets = await Promise.all([0, 1, 2, 3].map(() => open()));
            const session = await connected();
            const stream = await session.createBidirectionalStream();
            const data = pattern(1 << 20);
            const pushed = Promise.all([receiveAll(stream.readable), sendAll(stream.writable, data)]);
            const heard = Promise.all(sockets.map(message));
            sockets.forEach((ws, n) => ws.send(`${n}`));
            const page = await (await fetch("/")).text();
            return [await heard, equal((await pushed)[0], data), page.startsWith("<!doctype html>")];
        """
        )
        assert await page.run(script) == [["0", "1", "2", "3"], True, True]
