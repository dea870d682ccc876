"""What every browser's WebTransport is to do at our server: the tests that the browsers' classes share.

Handlers run in the test's own process, so both ends are looked at: what the page says its script returns, and what the server
sees goes through channels.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.browser.driven import Browser, Page
from tests.certificates import make
from trio_wt import (
    Certificate,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ReceiveStream,
    Request,
    ServerTLS,
    Stream,
    StreamAbort,
    StreamReset,
    WebTransportSession,
    serve_websocket,
    serve_webtransport,
)

Handler = Callable[[WebTransportSession], Awaitable[None]]

HTML = f"""<!doctype html>
<meta charset="utf-8">
<title>trio_wt</title>
<script>{Path(__file__).with_name("page.js").read_text()}</script>
"""
# Chromium does not wait at the server's limit, but fails.
PATIENTLY = """
    const patiently = async (create) => {
      for (;;) {
        const { value, error } = await outcome(create());
        if (value) return value;
        if (error.name !== "NetworkError") throw new Error(error.message);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    };
"""
# A stream whose server has something to read.
BEGIN = """
    const session = await connected();
    const stream = await session.createBidirectionalStream();
    const writer = stream.writable.getWriter();
    await writer.write(utf8.encode("hello"));
"""
MEBIBYTE = 2**20
# How long the other end may take to see what happened at this one.
SOON = 5
# 30 and 31 lie on both sides of a code that HTTP/3 reserves; a browser sends no code above 255.
CODES = [0, 7, 29, 30, 31, 255]


@cache
def certificate() -> Certificate:
    """What browsers take by its hash: ECDSA, and valid for less than two weeks."""
    made = make(("localhost", "127.0.0.1"))
    return Certificate.from_pem(made.pem, made.key_pem)


def free_port() -> int:
    """A port that both TCP and UDP have free."""
    while True:
        with (
            socket.socket(type=socket.SOCK_STREAM) as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def answer_with_page(request: Request) -> None:
    if request.method == "GET" and request.path == "/":
        request.respond(200, [("content-type", "text/html; charset=utf-8")], HTML)


def containing(handler: Handler) -> Handler:
    """Pages come and go; whatever else a handler raises fails the test."""

    async def contained(session: WebTransportSession) -> None:
        try:
            await handler(session)
        except* ConnectionClosed:
            pass

    return contained


@asynccontextmanager
async def visit(
    browser: Browser,
    handler: Handler | None,
    *,
    scope: trio.CancelScope | None = None,
    **options: Any,
) -> AsyncIterator[Page]:
    """Serve WebTransport, and open a page of the same host and port, which comes over plain HTTP.

    Args:
        browser: where to open it.
        handler: the server's.
        scope: covers the server.
        options: the server's other arguments.
    """
    port = free_port()
    options.setdefault("tls", ServerTLS(certificate()))
    options.setdefault("handler_errors", "raise")
    if handler is not None and options["handler_errors"] == "raise":
        handler = containing(handler)

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        with scope or trio.CancelScope():
            await serve_webtransport(
                handler, port, host="127.0.0.1", task_status=task_status, **options
            )

    async with trio.open_nursery() as nursery:
        pages = partial(serve_websocket, no_websocket, port, host="127.0.0.1")
        await nursery.start(partial(pages, on_request=answer_with_page))
        await nursery.start(serve)
        url = f"http://127.0.0.1:{port}/?hash={certificate().sha256.hex()}"
        async with browser.page(url) as page:
            yield page
        nursery.cancel_scope.cancel()


async def no_websocket(ws: object) -> None:
    raise AssertionError("nobody asks for a WebSocket here")


class Seen:
    """What the server saw, for the test to wait for."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Any](math.inf)

    def add(self, what: object) -> None:
        self._send.send_nowait(what)

    async def next(self) -> Any:
        with trio.fail_after(SOON):
            return await self._receive.receive()

    def nothing(self) -> bool:
        return self._receive.statistics().current_buffer_used == 0


async def echo_stream(stream: Stream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def echo(session: WebTransportSession) -> None:
    """Streams of both directions come back as they are, those of one direction on others, and datagrams too."""

    async def answer(stream: ReceiveStream) -> None:
        async with stream, session.open_send_stream() as back:
            await back.send_all(await stream.receive_all(MEBIBYTE))

    async def one_way() -> None:
        async for stream in session.incoming_receive_streams:
            nursery.start_soon(answer, stream)

    async def datagrams() -> None:
        async for datagram in session.datagrams:
            await session.datagrams.send(datagram)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_way)
        nursery.start_soon(datagrams)
        async for stream in session.incoming_streams:
            nursery.start_soon(echo_stream, stream)


async def stopped(page: Page, script: str) -> dict[str, Any]:
    """The error of what the script returns.

    Chromium may notice the end before it hears of the code; then the script runs again.
    """
    for _ in range(5):
        error: dict[str, Any] = (await page.run(script))["error"]
        if error["name"] != "NetworkError":
            return error
    raise AssertionError(error)


def every_code(test: Any) -> Any:
    return pytest.mark.parametrize("code", CODES)(test)


class Scenarios:
    """The tests; a subclass in a test file has the browser as a fixture."""

    # ---- sessions

    async def test_the_request(self, browser: Browser) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add(session)
            await session.wait_closed()

        async with visit(browser, handler) as page:
            origin = await page.run(
                "await connected('/a%20room?with=query'); return location.origin"
            )
            session = await seen.next()
            request = session.request
            assert request.is_webtransport
            assert not request.is_websocket
            assert (request.path, request.query) == ("/a room", "with=query")
            assert request.origin == origin
            assert request.host == origin.removeprefix("http://")
            assert session.subprotocol is None
            assert session.peer_address[0] == "127.0.0.1"

    async def test_several_sessions(self, browser: Browser) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add(session.request.path)
            try:
                await echo(session)
            finally:
                seen.add(session.closed)

        async with visit(browser, handler) as page:
            script = """
                window.sessions = await Promise.all([0, 1, 2, 3, 4].map((n) => connected(`/${n}`)));
            """
            await page.run(script)
            assert {await seen.next() for _ in range(5)} == {f"/{n}" for n in range(5)}
            script = """
                const ask = async (session, n) => {
                  const stream = await session.createBidirectionalStream();
                  const answer = receiveText(stream.readable);
                  await sendAll(stream.writable, `I am ${n}`);
                  return answer;
                };
                return Promise.all(window.sessions.map(ask));
            """
            assert await page.run(script) == [f"I am {n}" for n in range(5)]
            await page.run("window.sessions.shift().close({closeCode: 1, reason: 'first'})")
            end = await seen.next()
            assert (end.code, end.reason) == (1, "first")
            assert await page.run(script) == [f"I am {n}" for n in range(4)]

    async def test_after_a_retry(self, browser: Browser) -> None:
        async with visit(browser, echo, retry="always") as page:
            script = """
                const session = await connected();
                const stream = await session.createBidirectionalStream();
                await sendAll(stream.writable, "hello");
                return receiveText(stream.readable);
            """
            assert await page.run(script) == "hello"

    # ---- streams

    async def test_streams_are_echoed(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const session = await connected();
                const answers = [];
                for (const text of texts) {
                  const stream = await session.createBidirectionalStream();
                  await sendAll(stream.writable, text);
                  answers.push(await receiveText(stream.readable));
                }
                return answers;
            """
            texts = ["hello", "", "grüße ☃", "x" * 5000]
            assert await page.run(script, texts=texts) == texts

    async def test_parts_come_at_once(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const session = await connected();
                const stream = await session.createBidirectionalStream();
                const writer = stream.writable.getWriter();
                const answers = [];
                for (const text of ["one", "two", "three"]) {
                  await writer.write(utf8.encode(text));
                  let answer = "";
                  while (answer.length < text.length) answer += new TextDecoder().decode(await take(stream.readable));
                  answers.push(answer);
                }
                await writer.close();
                return [...answers, await receiveText(stream.readable)];
            """
            assert await page.run(script) == ["one", "two", "three", ""]

    async def test_four_mebibytes(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const session = await connected();
                const stream = await session.createBidirectionalStream();
                const data = pattern(size);
                const [answer] = await Promise.all([receiveAll(stream.readable), sendAll(stream.writable, data)]);
                return equal(answer, data);
            """
            assert await page.run(script, size=4 * MEBIBYTE) is True

    async def test_more_streams_than_the_limit(self, browser: Browser) -> None:
        async with visit(browser, echo, max_streams=10) as page:
            script = (
                PATIENTLY
                + """
                const session = await connected();
                const ask = async (number) => {
                  const stream = await patiently(() => session.createBidirectionalStream());
                  await sendAll(stream.writable, `${number}`);
                  return Number(await receiveText(stream.readable));
                };
                return Promise.all([...Array(100).keys()].map(ask));
            """
            )
            assert await page.run(script) == list(range(100))

    async def test_one_way_streams(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const session = await connected();
                const answers = [];
                for (const text of texts) {
                  await sendAll(await session.createUnidirectionalStream(), text);
                  answers.push(await receiveText(await take(session.incomingUnidirectionalStreams)));
                }
                return answers;
            """
            texts = ["one way", "", "and another", "x" * 100_000]
            assert await page.run(script, texts=texts) == texts

    async def test_the_server_opens_streams(self, browser: Browser) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            for question in (b"one?", b"two?"):
                async with session.open_stream() as stream:
                    await stream.send_all(question, eof=True)
                    seen.add(await stream.receive_all())
            async with session.open_send_stream() as one_way:
                await one_way.send_all(b"three!")
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                for (let n = 0; n < 2; n++) {
                  const stream = await take(session.incomingBidirectionalStreams);
                  const question = await receiveText(stream.readable);
                  await sendAll(stream.writable, question.replace("?", "."));
                }
                return receiveText(await take(session.incomingUnidirectionalStreams));
            """
            assert await page.run(script) == "three!"
            assert [await seen.next(), await seen.next()] == [b"one.", b"two."]

    async def test_the_page_waits_for_the_server(self, browser: Browser) -> None:
        """What the server does not take stays with the page, which notices."""
        go_on, seen = trio.Event(), Seen()

        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_receive_streams.receive() as stream:
                await go_on.wait()
                seen.add(len(await stream.receive_all(8 * MEBIBYTE)))
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                const writer = (await session.createUnidirectionalStream()).getWriter();
                window.written = 0;
                window.send = async () => {
                  for (let n = 0; n < 128; n++) {
                    await writer.write(pattern(65536));
                    window.written++;
                  }
                  await writer.close();
                };
                window.sent = window.send();
                await new Promise((resolve) => setTimeout(resolve, 500));
                return window.written;
            """
            assert await page.run(script) < 100
            go_on.set()
            assert await page.run("await window.sent; return window.written") == 128
            assert await seen.next() == 8 * MEBIBYTE

    async def test_the_server_waits_for_the_page(self, browser: Browser) -> None:
        seen = Seen()
        sent = 0

        async def handler(session: WebTransportSession) -> None:
            nonlocal sent
            async with session.open_send_stream() as stream:
                for _ in range(512):
                    await stream.send_all(bytes(65536))
                    sent += 65536
            seen.add("all of it")
            await session.wait_closed()

        async with visit(browser, handler) as page:
            await page.run("window.session = await connected()")
            before = -1
            while sent != before:
                before = sent
                await trio.sleep(0.5)
            assert 0 < sent < 32 * MEBIBYTE
            script = """
                const data = await receiveAll(await take(window.session.incomingUnidirectionalStreams));
                return data.length;
            """
            assert await page.run(script) == 32 * MEBIBYTE
            assert await seen.next() == "all of it"

    # ---- datagrams

    async def test_datagrams(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const session = await connected();
                const { datagrams } = session;
                const writer = (datagrams.createWritable?.() ?? datagrams.writable).getWriter();
                const sizes = [1, 2, 100, 1000, datagrams.maxDatagramSize];
                for (const size of sizes) {
                  const data = pattern(size);
                  await writer.write(data);
                  if (!equal(await take(datagrams.readable), data)) return `wrong: ${size}`;
                }
                return sizes;
            """
            sizes = await page.run(script)
            assert sizes[:4] == [1, 2, 100, 1000]
            assert sizes[4] >= 1000

    async def test_a_datagram_with_the_session(self, browser: Browser) -> None:
        """What a handler sends first must not arrive before the session."""

        async def handler(session: WebTransportSession) -> None:
            await session.datagrams.send(b"welcome")
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = """
                const session = connect();
                return new TextDecoder().decode(await take(session.datagrams.readable));
            """
            for _ in range(5):
                assert await page.run(script) == "welcome"

    async def test_the_largest_datagram_of_the_server(self, browser: Browser) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add(session.datagrams.max_size)
            await session.datagrams.send(bytes(session.datagrams.max_size))
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = (
                "const session = connect(); return (await take(session.datagrams.readable)).length"
            )
            assert await page.run(script) == await seen.next() >= 1000

    # ---- how sessions end

    @pytest.mark.parametrize(
        ("code", "reason"), [(0, ""), (0, "done"), (7, ""), (4_000_000_000, "grüße ☃")]
    )
    async def test_the_page_closes(self, browser: Browser, code: int, reason: str) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            try:
                await session.datagrams.receive()
            except ConnectionClosed as exc:
                assert str(session.closed) == str(exc)
                seen.add(exc)

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                session.close({ closeCode, reason });
                return session.closed;
            """
            closed = await page.run(script, closeCode=code, reason=reason)
            assert closed == {"closeCode": code, "reason": reason}
            end = await seen.next()
            assert type(end) is (ConnectionClosedError if code else ConnectionClosedOK)
            assert (end.code, end.reason, end.remote) == (code, reason, True)

    async def test_the_page_closes_without_a_word(self, browser: Browser) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add(await session.wait_closed())

        async with visit(browser, handler) as page:
            await page.run("(await connected()).close()")
            end = await seen.next()
            assert type(end) is ConnectionClosedOK
            assert (end.code, end.reason, end.remote) == (0, "", True)

    @pytest.mark.parametrize(
        ("code", "reason"), [(0, ""), (0, "done"), (7, ""), (4_000_000_000, "grüße ☃")]
    )
    async def test_the_server_closes(self, browser: Browser, code: int, reason: str) -> None:
        async def handler(session: WebTransportSession) -> None:
            await session.incoming_streams.receive()
            await session.aclose(code, reason)

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                const stream = await session.createBidirectionalStream();
                const read = outcome(receiveAll(stream.readable));
                sendAll(stream.writable, "close").catch(() => {});
                return [await session.closed, await read];
            """
            closed, read = await page.run(script)
            assert closed == {"closeCode": code, "reason": reason}
            assert "error" in read, read

    async def test_the_handler_returns(self, browser: Browser) -> None:
        async def handler(session: WebTransportSession) -> None:
            pass

        async with visit(browser, handler) as page:
            closed = {"closeCode": 0, "reason": ""}
            assert await page.run("return connect().closed") == closed

    async def test_the_handler_fails(self, browser: Browser) -> None:
        async def handler(session: WebTransportSession) -> None:
            raise RuntimeError("the handler's own fault")

        async with visit(browser, handler, handler_errors="log", failed_code=77) as page:
            script = "return (await connect().closed).closeCode"
            assert await page.run(script) == 77

    async def test_the_handler_is_cancelled(self, browser: Browser) -> None:
        async def handler(session: WebTransportSession) -> None:
            await session.incoming_receive_streams.receive()
            session.cancel_scope.cancel()
            await trio.sleep_forever()

        async with visit(browser, handler, cancelled_code=78) as page:
            script = """
                const session = await connected();
                const stream = await session.createUnidirectionalStream();
                sendAll(stream, "now").catch(() => {});
                return (await session.closed).closeCode;
            """
            assert await page.run(script) == 78

    async def test_the_server_is_cancelled(self, browser: Browser) -> None:
        scope, seen = trio.CancelScope(), Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add("open")
            await trio.sleep_forever()

        async with visit(browser, handler, scope=scope, cancelled_code=79) as page:
            await page.run("window.session = await connected()")
            assert await seen.next() == "open"
            scope.cancel()
            assert await page.run("return (await window.session.closed).closeCode") == 79

    async def test_the_server_shuts_down(self, browser: Browser) -> None:
        """Handlers may go on until they are done, or the time is up."""
        shutdown, seen = trio.Event(), Seen()

        async def handler(session: WebTransportSession) -> None:
            seen.add("open")
            if session.request.path == "/patient":
                await trio.sleep_forever()
            async with await session.incoming_receive_streams.receive() as stream:
                assert await stream.receive_all() == b"last words"
            await session.aclose(5, "done")

        options: Any = {"shutdown": shutdown, "shutdown_timeout": 1, "cancelled_code": 80}
        async with visit(browser, handler, **options) as page:
            await page.run("window.sessions = [await connected(), await connected('/patient')]")
            assert [await seen.next(), await seen.next()] == ["open", "open"]
            shutdown.set()
            await trio.sleep(0.1)
            script = """
                const [first, second] = window.sessions;
                const stream = await first.createUnidirectionalStream();
                // The session may be closed before it knows that all has arrived.
                sendAll(stream, "last words").catch(() => {});
                return [await first.closed, (await second.closed).closeCode];
            """
            first = {"closeCode": 5, "reason": "done"}
            assert await page.run(script) == [first, 80]

    # ---- how streams end

    @every_code
    async def test_the_page_resets(self, browser: Browser, code: int) -> None:
        seen = Seen()

        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_some() == b"hello"
                await stream.send_all(b"go on")
                try:
                    await stream.receive_some()
                except StreamReset as exc:
                    seen.add(exc)
                await stream.send_all(b"unhurt")
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = (
                BEGIN
                + """
                await take(stream.readable);
                await writer.abort(new WebTransportError({ streamErrorCode }));
                return receiveText(stream.readable);
            """
            )
            assert await page.run(script, streamErrorCode=code) == "unhurt"
            end = await seen.next()
            assert (end.code, end.remote) == (code, True)

    @every_code
    async def test_the_server_resets(self, browser: Browser, code: int) -> None:
        async def handler(session: WebTransportSession) -> None:
            async with session.open_send_stream() as stream:
                await stream.send_all(b"hello")
                await session.incoming_receive_streams.receive()
                stream.reset(code)
            await session.wait_closed()

        async with visit(browser, handler) as page:
            script = """
                const session = await connected();
                const readable = await take(session.incomingUnidirectionalStreams);
                await take(readable);
                await sendAll(await session.createUnidirectionalStream(), "go on");
                return outcome(receiveAll(readable));
            """
            end = await page.run(script)
            assert (end["error"]["source"], end["error"]["code"]) == ("stream", code)

    @every_code
    async def test_the_server_stops(self, browser: Browser, code: int) -> None:
        async def handler(session: WebTransportSession) -> None:
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_some() == b"hello"
                stream.stop(code)
                await session.wait_closed()

        async with visit(browser, handler) as page:
            error = await stopped(page, BEGIN + "return outcome(writer.closed)")
            assert (error["source"], error["code"]) == ("stream", code)

    async def test_blocks_that_fail(self, browser: Browser) -> None:
        """How a block was left is what the page sees."""

        async def handler(session: WebTransportSession) -> None:
            async with session.open_stream() as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"y"
                raise StreamAbort(99)
            async with session.open_stream() as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"y"
                stream.cancel_scope.cancel()
                await trio.sleep_forever()
            await session.wait_closed()

        async with visit(browser, handler, cancelled_code=55) as page:
            script = """
                const session = await connected();
                const ends = [];
                for (let n = 0; n < 2; n++) {
                  const stream = await take(session.incomingBidirectionalStreams);
                  await take(stream.readable);
                  const writer = stream.writable.getWriter();
                  await writer.write(utf8.encode("y"));
                  ends.push(await outcome(receiveAll(stream.readable)), await outcome(writer.closed));
                }
                return ends.map((end) => end.error.code);
            """
            read, written, read_next, written_next = await page.run(script)
            assert (read, read_next) == (99, 55)
            # As in `stopped`.
            assert written in (99, None)
            assert written_next in (55, None)

    # ---- what does not become a session

    @pytest.mark.parametrize("status", [302, 404, 500])
    async def test_rejected(self, browser: Browser, status: int) -> None:
        def on_request(request: Request) -> None:
            if request.path == "/no":
                request.reject(status, [("location", "/")], "no")

        async with visit(browser, echo, on_request=on_request) as page:
            await self.fails(page, "/no")
            await self.works(page)

    async def test_another_origin(self, browser: Browser) -> None:
        async with visit(browser, echo, origins=["https://friend.example"]) as page:
            await self.fails(page, "/")

    async def test_an_origin_that_is_named(self, browser: Browser) -> None:
        seen = Seen()

        def on_request(request: Request) -> None:
            seen.add(request.origin)

        async with visit(browser, echo, origins="any", on_request=on_request) as page:
            await self.works(page)
            assert await page.run("return location.origin") == await seen.next()

    async def test_only_websockets(self, browser: Browser) -> None:
        async with visit(browser, None, websocket_handler=no_websocket) as page:
            await self.fails(page, "/")

    async def test_a_certificate_with_another_hash(self, browser: Browser) -> None:
        async with visit(browser, echo) as page:
            script = """
                const value = new Uint8Array(32);
                const session = connect("/", { serverCertificateHashes: [{ algorithm: "sha-256", value }] });
                return [await outcome(session.ready), await outcome(session.closed)];
            """
            ready, closed = await page.run(script)
            assert "error" in ready
            assert "error" in closed
            await self.works(page)

    async def fails(self, page: Page, path: str) -> None:
        script = "const session = connect(path); return [await outcome(session.ready), await outcome(session.closed)]"
        ready, closed = await page.run(script, path=path)
        assert ready["error"]["name"] == "WebTransportError"
        assert closed["error"]["source"] == "session"

    async def works(self, page: Page) -> None:
        script = """
            const session = await connected();
            await sendAll(await session.createUnidirectionalStream(), "hello");
            return receiveText(await take(session.incomingUnidirectionalStreams));
        """
        assert await page.run(script) == "hello"
