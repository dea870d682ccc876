"""The order of middlewares, and what becomes of one that fails: the same for every kind of request."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Literal, cast

import pytest
import trio
import trio.testing

import trio_wt
from tests.app_exchange import logged
from tests.app_servers import Served, serving_in_memory
from tests.quic_pairs import certificate, client_tls
from trio_wt import Rejected, ServerTLS, WebSocket
from trio_wt.app import App, Context, HTTPError, Request, StateKey
from trio_wt.app._middleware.access_log import access_log
from trio_wt.app._middleware.authentication import bearer_auth
from trio_wt.app._middleware.deadline import deadline
from trio_wt.app._middleware.limits import limit_concurrency, rate_limit
from trio_wt.app._middleware.origins import allow_origins

WAYS = ("websocket 1.1", "websocket 3", "webtransport", "http 1.1", "http 3")

Middleware = Callable[[Context], AbstractAsyncContextManager[object]]


class Story:
    """What happened, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def layer(
        self, name: str, before: Exception | None = None, after: Exception | None = None
    ) -> Middleware:
        """A middleware that tells when it is entered, and how it is left; it may raise."""

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            self.told.append(f"{name} in")
            if before is not None:
                raise before
            try:
                yield
            except BaseException as exc:
                self.told.append(f"{name} out: {type(exc).__name__}")
                raise
            self.told.append(f"{name} out: {context.status}")
            if after is not None:
                raise after

        return layer

    def serve(self, app: App, *middleware: Middleware, error: Exception | None = None) -> None:
        """Give an application a handler of every kind at /x."""

        def tell() -> None:
            self.told.append("handler")
            if error is not None:
                raise error

        @app.session("/x", middleware=middleware)
        async def session(session: Any) -> None:
            tell()

        @app.http("/x", middleware=middleware)
        def page(request: Request) -> str:
            tell()
            return "ok"


async def visit(served: Served, way: str, path: str = "/x", **options: Any) -> int | str:
    """Ask in one of the ways: the status of a refusal or a page, or how a session was closed."""
    kind, _, version = way.partition(" ")
    if kind == "http":
        response = await served.ask(cast(Literal["1.1", "3"], version), "GET", path)
        assert response.status != 101
        return response.status
    try:
        async with served.session(way, path, **options) as session:  # type: ignore[arg-type]
            await session.wait_closed()
            if isinstance(session, WebSocket):
                return f"closed {session.close_code}"
            assert session.closed is not None
            return f"closed {session.closed.code}"
    except Rejected as exc:
        return exc.status


def opened(way: str) -> int:
    return 101 if way == "websocket 1.1" else 200


def outcome(way: str, *, ok: bool = True) -> int | str:
    """What `visit` gives if the handler was asked, and all went well or it failed."""
    if way.startswith("http"):
        return 200 if ok else 500
    if way == "webtransport":
        return f"closed {0 if ok else 2}"
    return f"closed {1000 if ok else 1011}"


@pytest.mark.parametrize("way", WAYS)
async def test_the_first_is_outermost(way: str) -> None:
    """The application's, then the mounted one's, then the route's; the other way round at the end."""
    story = Story()
    outer = App(middleware=[story.layer("a"), story.layer("b")])
    mounted = App(middleware=[story.layer("c"), story.layer("d")])
    inmost = App(middleware=[story.layer("e")])
    story.serve(inmost, story.layer("f"), story.layer("g"))
    mounted.mount("/in", inmost)
    outer.mount("/sub", mounted)
    async with serving_in_memory(outer) as served:
        assert await visit(served, way, "/sub/in/x") == outcome(way)
        await trio.sleep(1)
    entered = [f"{name} in" for name in "abcdefg"]
    left = [f"{name} out: {opened(way)}" for name in "gfedcba"]
    assert story.told == [*entered, "handler", *left]


@pytest.mark.parametrize("way", WAYS)
async def test_what_no_route_takes_is_inside_of_the_applications_own(way: str) -> None:
    story = Story()
    outer = App(middleware=[story.layer("a")])
    mounted = App(middleware=[story.layer("b")])
    story.serve(mounted, story.layer("c"))
    outer.mount("/sub", mounted)
    async with serving_in_memory(outer) as served:
        for path in ("/sub/nope", "/nope"):
            assert await visit(served, way, path) == 404
    assert story.told == ["a in", "a out: 404"] * 2


# ---- before the yield


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_is_seen_outside_as_its_status(way: str) -> None:
    story = Story()
    app = App(
        middleware=[story.layer("a"), story.layer("b", before=HTTPError(418)), story.layer("c")]
    )
    story.serve(app)
    async with serving_in_memory(app, handler_errors="raise") as served:
        assert await visit(served, way) == 418
    assert story.told == ["a in", "b in", "a out: 418"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_before_the_answer_is_500_and_a_line(way: str) -> None:
    story = Story()
    app = App(middleware=[story.layer("a"), story.layer("b", before=LookupError("s3cret"))])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt") as records:
            assert await visit(served, way) == 500
    assert story.told == ["a in", "b in", "a out: LookupError"]
    (record,) = [record for record in records if record.levelname == "ERROR"]
    assert record.name == "trio_wt.app" and record.exc_info
    assert app.statistics().failed == 1


@pytest.mark.parametrize("way", WAYS)
async def test_one_outside_may_answer_for_one_inside(way: str) -> None:
    @asynccontextmanager
    async def translate(context: Context) -> AsyncIterator[None]:
        try:
            yield
        except LookupError:
            raise HTTPError(409) from None

    story = Story()
    app = App(middleware=[story.layer("a"), translate, story.layer("b", before=LookupError())])
    story.serve(app)
    async with serving_in_memory(app, handler_errors="raise") as served:
        assert await visit(served, way) == 409
    assert story.told == ["a in", "b in", "a out: 409"]


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_does_not_yield_is_a_failure(way: str) -> None:
    @asynccontextmanager
    async def absent(context: Context) -> AsyncIterator[None]:
        if context.status is not None:
            yield

    story = Story()
    app = App(middleware=[story.layer("a"), absent])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt.app") as records:
            assert await visit(served, way) == 500
    assert story.told == ["a in", "a out: RuntimeError"] and len(records) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_yields_twice_is_a_failure_after_the_answer(way: str) -> None:
    @asynccontextmanager
    async def twice(context: Context) -> AsyncIterator[None]:
        yield
        yield

    story = Story()
    app = App(middleware=[twice, story.layer("a")])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt") as records:
            assert await visit(served, way) == outcome(way)
            await trio.sleep(10)
    assert story.told == ["a in", "handler", f"a out: {opened(way)}"]
    assert [record.levelname for record in records if record.levelname != "DEBUG"] == ["ERROR"]


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_is_no_context_manager_is_a_failure(way: str) -> None:
    story = Story()
    app = App(middleware=[story.layer("a"), cast(Any, lambda context: None)])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt.app") as records:
            assert await visit(served, way) == 500
    assert story.told == ["a in", "a out: TypeError"] and len(records) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_swallows_before_the_answer_is_a_failure(way: str) -> None:
    @asynccontextmanager
    async def swallow(context: Context) -> AsyncIterator[None]:
        with suppress(LookupError):
            yield

    story = Story()
    app = App(middleware=[story.layer("a"), swallow, story.layer("b", before=LookupError())])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt.app") as records:
            assert await visit(served, way) == 500
    assert story.told == ["a in", "b in", "a out: None"] and len(records) == 1


# ---- after the yield


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_handler_raises_passes_all_of_them(way: str) -> None:
    story = Story()
    app = App(middleware=[story.layer("a"), story.layer("b")])
    story.serve(app, error=LookupError())
    async with serving_in_memory(app) as served:
        with logged("trio_wt") as records:
            assert await visit(served, way) == outcome(way, ok=False)
            await trio.sleep(10)
    assert story.told == [
        "a in",
        "b in",
        "handler",
        "b out: LookupError",
        "a out: LookupError",
    ]
    assert [record.levelname for record in records if record.levelname != "DEBUG"] == ["ERROR"]


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_handler_raises_can_be_swallowed(way: str) -> None:
    """The session's block has ended with it by then, so its peer knows; nobody else does."""

    @asynccontextmanager
    async def swallow(context: Context) -> AsyncIterator[None]:
        with suppress(LookupError):
            yield
        if context.session is None:
            raise HTTPError(404)

    story = Story()
    app = App(middleware=[story.layer("a"), swallow])
    story.serve(app, error=LookupError())
    async with serving_in_memory(app, handler_errors="raise") as served:
        expected = 404 if way.startswith("http") else outcome(way, ok=False)
        assert await visit(served, way) == expected
        await trio.sleep(10)
    status = 404 if way.startswith("http") else opened(way)
    assert story.told == ["a in", "handler", f"a out: {status}"]


@pytest.mark.parametrize("error", [LookupError(), HTTPError(500), RuntimeError()])
@pytest.mark.parametrize("way", WAYS)
async def test_a_failure_after_the_answer_is_a_line(way: str, error: Exception) -> None:
    story = Story()
    app = App(middleware=[story.layer("a"), story.layer("b", after=error)])
    story.serve(app)
    async with serving_in_memory(app) as served:
        with logged("trio_wt") as records:
            assert await visit(served, way) == outcome(way)
            await trio.sleep(10)
    told = [f"b out: {opened(way)}", f"a out: {type(error).__name__}"]
    assert story.told == ["a in", "b in", "handler", *told]
    (record,) = [record for record in records if record.levelname == "ERROR"]
    assert record.exc_info and record.exc_info[1] is error


# ---- cancelled


@pytest.mark.parametrize("where", ["before", "inside", "after"])
@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_with_the_server(way: str, where: str) -> None:
    """Whatever it is doing, each middleware that was entered is left, from the inside out."""
    story = Story()
    started = trio.Event()

    async def stay(at: str) -> None:
        if at == where:
            started.set()
            await trio.sleep_forever()

    @asynccontextmanager
    async def slow(context: Context) -> AsyncIterator[None]:
        await stay("before")
        yield
        await stay("after")

    app = App(middleware=[story.layer("a"), slow, story.layer("b")])

    @app.session("/x")
    async def session(session: Any) -> None:
        await stay("inside")

    @app.http("/x")
    async def page(request: Request) -> str:
        await stay("inside")
        return "ok"

    async with serving_in_memory(app, shutdown_timeout=1) as served:
        async with trio.open_nursery() as nursery:

            async def come() -> None:
                with suppress(Exception):
                    await visit(served, way)

            nursery.start_soon(come)
            await started.wait()
            served.shutdown.set()
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
    inner = {
        "before": [],
        "inside": ["b in", "b out: Cancelled"],
        "after": ["b in", f"b out: {opened(way)}"],
    }[where]
    assert story.told == ["a in", *inner, "a out: Cancelled"]


# ---- what they know


@pytest.mark.parametrize("way", WAYS)
async def test_headers_and_state_from_outside_in(way: str) -> None:
    number = StateKey[int]("number")
    seen = []

    def count(context: Context) -> AbstractAsyncContextManager[object]:
        @asynccontextmanager
        async def layer() -> AsyncIterator[None]:
            context.state[number] = context.state.get(number, 0) + 1
            context.headers += [("X-Layer", str(context.state[number]))]
            assert context.status is None and context.session is None
            yield
            assert context.status == opened(way)
            assert (context.session is None) == way.startswith("http")

        return layer()

    app = App(middleware=[count, count])

    @app.session("/x", middleware=[count])
    async def session(session: Any, context: Context) -> None:
        opened_one: Any = context.session
        assert opened_one is session
        seen.append(opened_one.response_headers.get_all("x-layer"))

    @app.http("/x", middleware=[count])
    def page(request: Request, context: Context) -> str:
        seen.append(context.headers.get_all("x-layer"))
        return "ok"

    async with serving_in_memory(app, handler_errors="raise") as served:
        assert await visit(served, way) == outcome(way)
        await trio.sleep(1)
    assert seen == [["1", "2", "3"]]


# ---- all of the ready ones, on sockets

USER = StateKey[str]("user")


@pytest.mark.real_clock
async def test_all_of_them_on_sockets() -> None:
    rate = rate_limit(0.001, 12)
    places = limit_concurrency(2, wait=5)
    app = App(
        middleware=[
            access_log(fields=lambda context: {"user": context.state.get(USER)}),
            rate,
            allow_origins(["https://app.example.com"], plain=True),
            bearer_auth(key=USER, tokens={"s3cret": "ann"}, query="token"),
            places,
            deadline(0.3),
        ],
        origins="any",
    )

    @app.session("/chat")
    async def chat(session: Any, context: Context) -> None:
        await trio.sleep_forever()

    @app.http("/health")
    def health(request: Request, context: Context) -> str:
        return context.state[USER]

    with logged("trio_wt.access") as records:
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(
                lambda task_status: app.serve(
                    "127.0.0.1", 0, tls=ServerTLS(certificate()), task_status=task_status
                )
            )
            tls = client_tls()
            url = serving.url("webtransport", "/chat?token=s3cret")
            origin = "https://app.example.com"
            async with trio_wt.open_webtransport(url, tls=tls, origin=origin) as session:
                end = await session.wait_closed()
                assert (end.code, end.reason) == (0, "time is up")
                response = await session.connection.request("GET", "/health")
                assert response.status == 401
                response = await session.connection.request("GET", "/health?token=s3cret")
                assert (response.status, response.body) == (200, b"ann")
                headers = {"Authorization": "Bearer s3cret"}
                opening = session.connection.open_websocket("/chat", headers=headers)
                async with opening as websocket:
                    await websocket.wait_closed()
                    assert (websocket.close_code, websocket.close_reason) == (1001, "time is up")
                with pytest.raises(Rejected, match="403"):
                    async with session.connection.open_websocket("/chat", origin="https://x.test"):
                        pass
                while (response := await session.connection.request("GET", "/x")).status != 429:
                    assert response.status == 401
                assert int(response.headers["retry-after"]) > 900
            serving.shut_down()
    assert rate.statistics().admitted == 12 and rate.statistics().refused == 1
    assert places.statistics().active == 0 and places.statistics().admitted == 3
    lines = [record.getMessage() for record in records]
    assert len(lines) == 13 and not any("s3cret" in line for line in lines)
    sessions = [line for line in lines if 'reason="time is up"' in line]
    assert len(sessions) == 2 and all(" user=ann" in line for line in sessions)
    assert all(line.startswith("peer=127.0.0.1:") for line in lines)


@pytest.mark.real_clock
@pytest.mark.skipif(sys.platform == "win32", reason="resets differ")
async def test_a_client_that_leaves_while_a_middleware_waits() -> None:
    """It is nobody's fault, so it is no traceback in the log."""
    import socket
    import struct

    waiting, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def slow(context: Context) -> AsyncIterator[None]:
        waiting.set()
        await go_on.wait()
        yield

    app = App(middleware=[access_log(), slow])

    @app.websocket("/")
    async def session(ws: WebSocket) -> None:
        await ws.receive()

    with logged("trio_wt") as records:
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(
                lambda task_status: app.serve("127.0.0.1", 0, task_status=task_status)
            )
            stream = await trio.open_tcp_stream("127.0.0.1", serving.port)
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await waiting.wait()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
            go_on.set()
            serving.shut_down()
    assert [record for record in records if record.levelname == "INFO"]
    assert not [record for record in records if record.levelno > 20]
