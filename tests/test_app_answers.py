"""How applications answer: routes, middlewares, mounts and failures, over HTTP/1.1 and HTTP/3 alike."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio

from tests.app_servers import BOTH, Version, serving_in_memory
from tests.http3_peers import Http3Code, raw_client
from tests.webtransport_pairs import settle
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    Headers,
    Rejected,
    StreamReset,
    TrioWTError,
    WebSocket,
    WebTransportSession,
)
from trio_wt.app import (
    App,
    AppStatistics,
    Context,
    Converter,
    HTTPError,
    Request,
    Response,
    State,
    StateKey,
    html_response,
    json_response,
)

both = pytest.mark.parametrize("version", BOTH)
KINDS: list[Any] = ["websocket 1.1", "websocket 3", "webtransport"]
each_kind = pytest.mark.parametrize("kind", KINDS)


async def stay(session: WebSocket | WebTransportSession, **params: object) -> None:
    await session.wait_closed()


async def ws_echo(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


def page(request: Request) -> str:
    return "page"


def figures(app: App, **expected: int) -> None:
    have = app.statistics()
    for name, value in expected.items():
        assert getattr(have, name) == value, (name, have)


# ---- what there is, and is not


def town() -> App:
    app = App()
    app.http("/page")(page)
    app.http("/form", methods=["GET", "POST"])(page)
    app.http("/sink", methods=["post", "PUT"])(page)
    app.websocket("/ws")(ws_echo)
    app.webtransport("/wt")(stay)
    app.session("/any")(stay)
    app.websocket("/mixed")(ws_echo)
    app.http("/mixed")(page)
    return app


@both
@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/page", 200, None),
        ("GET", "/page?x=1", 200, None),
        ("HEAD", "/page", 200, None),
        ("POST", "/page", 405, "GET, HEAD, OPTIONS"),
        ("TRACE", "/page", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/page", 204, "GET, HEAD, OPTIONS"),
        ("POST", "/form", 200, None),
        ("DELETE", "/form", 405, "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/sink", 200, None),
        ("GET", "/sink", 405, "OPTIONS, POST, PUT"),
        ("HEAD", "/sink", 405, "OPTIONS, POST, PUT"),
        ("GET", "/nope", 404, None),
        ("POST", "/nope", 404, None),
        ("HEAD", "/nope", 404, None),
        ("OPTIONS", "/nope", 404, None),
        ("GET", "/page/", 404, None),
        ("GET", "/mixed", 200, None),
    ],
)
async def test_statuses(
    version: Version, method: str, target: str, status: int, allow: str | None
) -> None:
    async with serving_in_memory(town()) as served:
        response = await served.ask(version, method, target)
        assert response.status == status
        assert response.headers.get("allow") == allow
        if method == "HEAD" or status == 204:
            assert response.body == b""
        else:
            assert response.body


@pytest.mark.parametrize(
    ("version", "method", "status", "allow"),
    [
        ("1.1", "GET", 426, None),
        ("1.1", "POST", 405, "GET, OPTIONS"),
        ("1.1", "OPTIONS", 204, "GET, OPTIONS"),
        ("3", "GET", 405, "CONNECT, OPTIONS"),
        ("3", "POST", 405, "CONNECT, OPTIONS"),
        ("3", "OPTIONS", 204, "CONNECT, OPTIONS"),
    ],
)
@pytest.mark.parametrize("path", ["/ws", "/any"])
async def test_plain_requests_where_there_are_websockets(
    path: str, version: Version, method: str, status: int, allow: str | None
) -> None:
    async with serving_in_memory(town()) as served:
        response = await served.ask(version, method, path)
        assert (response.status, response.headers.get("allow")) == (status, allow)
        if status == 426:
            assert response.headers["upgrade"] == "websocket"


@both
async def test_plain_requests_where_there_is_webtransport(version: Version) -> None:
    allow = "CONNECT, OPTIONS" if version == "3" else "OPTIONS"
    async with serving_in_memory(town()) as served:
        for method, status in (("GET", 405), ("POST", 405), ("OPTIONS", 204)):
            response = await served.ask(version, method, "/wt")
            assert (response.status, response.headers["allow"]) == (status, allow)


async def test_methods_of_all_that_matches_are_told_together() -> None:
    app = App()
    app.http("/a/{x}")(lambda request, x: x)
    app.http("/{p:path}", methods=["POST"])(lambda request, p: f"all: {p}")
    async with serving_in_memory(app) as served:
        assert (await served.ask("1.1", "POST", "/a/b")).body == b"all: a/b"
        response = await served.ask("1.1", "PUT", "/a/b")
        assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_questions_about_the_server_as_a_whole() -> None:
    async with serving_in_memory(town()) as served:
        response = await served.ask("1.1", "OPTIONS", "*")
        assert (response.status, response.headers.get("allow")) == (204, None)
        assert (await served.ask("1.1", "CONNECT", "elsewhere.test:443")).status == 404
        assert (await served.ask("1.1", "GET", "http://server.test:4433/page")).status == 200


@each_kind
async def test_sessions_where_there_are_none(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    expected = {
        "/nope": dict.fromkeys(KINDS, 404),
        "/ws": {"webtransport": 501},
        "/wt": {"websocket 1.1": 405, "websocket 3": 501},
        "/sink": dict.fromkeys(KINDS, 405),
        # Over HTTP/1.1 the upgrade is left aside.
        "/page": {"websocket 1.1": 200, "websocket 3": 405, "webtransport": 405},
    }
    async with serving_in_memory(town()) as served:
        for path, statuses in expected.items():
            if kind not in statuses:
                continue
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, path):
                    pass
            assert caught.value.status == statuses[kind], path
            if caught.value.status == 405:
                assert caught.value.headers["allow"]
                assert caught.value.body.startswith(b"this takes ")


@each_kind
async def test_sessions_of_each_kind(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    app = App()
    seen: list[tuple[object, ...]] = []

    @app.session("/room/{name}/{n:int}")
    async def room(
        session: WebSocket | WebTransportSession, n: int, name: str, context: Context
    ) -> None:
        seen.append((type(session), name, n, context))
        assert context.session is session
        assert context.app is app
        assert context.request.path.startswith("/room/")
        assert context.params == {"name": name, "n": n}
        await session.wait_closed()

    async with serving_in_memory(app) as served:
        async with served.session(kind, "/room/a%2Fb/7"):
            await settle()
            ((session_type, name, n, context),) = seen
            assert session_type is (WebTransportSession if kind == "webtransport" else WebSocket)
            assert (name, n) == ("a/b", 7)
            assert isinstance(context, Context)
            assert context.kind == kind.partition(" ")[0]
            assert context.status == (101 if kind == "websocket 1.1" else 200)
            assert repr(context) == (
                f"<Context {context.kind} /room/{{name}}/{{n:int}}, status {context.status}>"
            )
            opened = "websockets" if "websocket" in kind else "webtransport_sessions"
            figures(app, requests=1, **{opened: 1, f"open_{opened}": 1})
        await settle()
        figures(app, requests=1, failed=0, refused=0, **{opened: 1, f"open_{opened}": 0})


# ---- what handlers of plain requests return


@both
@pytest.mark.parametrize(
    ("result", "status", "kind", "body"),
    [
        ("text ü", 200, "text/plain; charset=utf-8", "text ü".encode()),
        ("", 200, "text/plain; charset=utf-8", b""),
        (b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
        (None, 204, None, b""),
        (Response(201, Headers({"Content-Type": "a/b"}), b"made"), 201, "a/b", b"made"),
        (Response(200, {"Content-Type": "a/b"}, b"x"), 200, "a/b", b"x"),  # type: ignore[arg-type]
        (Response(302, Headers({"Location": "/x"})), 302, None, b""),
        (Response(304, Headers(), b"nothing of this"), 304, None, b""),
        (Response(503, Headers(), bytearray(b"busy")), 503, "text/plain; charset=utf-8", b"busy"),  # type: ignore[arg-type]
        (html_response("<p>ü"), 200, "text/html; charset=utf-8", "<p>ü".encode()),
        (html_response("x", 404), 404, "text/html; charset=utf-8", b"x"),
        (
            json_response({"a": [1, None, "ü"]}),
            200,
            "application/json",
            '{"a":[1,null,"ü"]}'.encode(),
        ),
        (
            json_response([], 422, {"content-type": "application/problem+json"}),
            422,
            "application/problem+json",
            b"[]",
        ),
    ],
)
async def test_responses(
    version: Version, result: object, status: int, kind: str | None, body: bytes
) -> None:
    app = App()
    app.http("/")(lambda request: result)
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert (response.status, response.body) == (status, body)
        if status != 304:
            assert response.headers.get("content-type") == kind
        assert "date" in response.headers
        if status == 204:
            assert "content-length" not in response.headers
        elif status != 304:
            assert response.headers["content-length"] == str(len(body))

        head = await served.ask(version, "HEAD", "/")
        assert (head.status, head.body) == (status, b"")
        assert head.headers.get("content-length") == response.headers.get("content-length")


@both
async def test_subclasses_of_text_are_text(version: Version) -> None:
    class Markup(str):
        __slots__ = ()

    app = App()
    app.http("/")(lambda request: Markup("safe"))
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert (response.status, response.body) == (200, b"safe")


async def test_handlers_may_be_sync_async_partial_or_objects() -> None:
    app = App()

    class Counter:
        count = 0

        def __call__(self, request: Request) -> str:
            self.count += 1
            return f"{self.count}"

        async def method(self, request: Request, n: int) -> str:
            await trio.sleep(1)
            return f"slowly {n}"

    counter = Counter()
    app.http("/sync")(counter)
    app.http("/async/{n:int}")(counter.method)
    app.http("/partial")(functools.partial(counter.method, n=5))
    app.http("/lambda")(lambda request: request.query)
    async with serving_in_memory(app) as served:
        assert (await served.ask("1.1", "GET", "/sync")).body == b"1"
        assert (await served.ask("1.1", "GET", "/sync")).body == b"2"
        assert (await served.ask("1.1", "GET", "/async/3")).body == b"slowly 3"
        assert (await served.ask("1.1", "GET", "/partial")).body == b"slowly 5"
        assert (await served.ask("1.1", "GET", "/lambda?a=b&c")).body == b"a=b&c"


@both
@pytest.mark.parametrize(
    ("result", "says"),
    [
        (5, "a handler returns a Response, str, bytes or None, not int"),
        ({"a": 1}, "not dict"),
        (("body", 200), "not tuple"),
        (page, "not function"),
        (Response(101, Headers()), "the status of a response is 200 to 599, not 101"),
        (Response(99, Headers()), "not 99"),
        (Response(600, Headers()), "not 600"),
        (Response(200, Headers(), "text"), "the body of a Response is bytes, not str"),  # type: ignore[arg-type]
        (Response(200, {"A": "b\r\nC: d"}), "header A has control characters"),  # type: ignore[arg-type]
        ("\ud800", "surrogates not allowed"),
    ],
)
async def test_nonsense_is_answered_with_500_and_told_in_the_log(
    version: Version, result: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    app.http("/")(lambda request: result)
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert (response.status, response.body) == (500, b"internal server error\n")
        figures(app, requests=1, refused=1, failed=1)
    assert says in caplog.text
    assert len(caplog.records) == 1


@both
@pytest.mark.parametrize("size", [0, 1, 65536, 5_000_000])
async def test_responses_of_any_size(version: Version, size: int) -> None:
    app = App()
    app.http("/")(lambda request: bytes(size))
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert response.headers["content-length"] == str(size)
        # Of what comes over HTTP/3, the client keeps 64 KiB.
        assert len(response.body) == (min(size, 65536) if version == "3" else size)


def test_json_that_is_none() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_response(float("nan"))
    with pytest.raises(TypeError):
        json_response(object())
    with pytest.raises(ValueError, match="control characters"):
        html_response("", headers={"A": "\n"})


# ---- handlers that raise


@both
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_page_that_fails(
    version: Version, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    def fail(request: Request) -> str:
        raise ZeroDivisionError("secret")

    async def fail_later(request: Request) -> str:
        await trio.sleep(1)
        return fail(request)

    app.http("/{x}")(lambda request, x: (fail_later if is_async else fail)(request))
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/%0Aforged")
        assert (response.status, response.body) == (500, b"internal server error\n")
        assert (await served.ask(version, "HEAD", "/x")).status == 500
        figures(app, requests=2, refused=2, failed=2)
    assert "secret" in caplog.text
    assert [record.getMessage() for record in caplog.records] == [
        "answering /%0Aforged failed",
        "answering /x failed",
    ]
    assert {record.name for record in caplog.records} == {"trio_wt.app"}


@both
@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (HTTPError(400), 400, b"400\n"),
        (HTTPError(404, "no such user"), 404, b"no such user"),
        (HTTPError(409, b"\xff", {"X-A": "1"}), 409, b"\xff"),
        (HTTPError(418, ""), 418, b""),
        (HTTPError(307, "", {"Location": "/y"}), 307, b""),
        (HTTPError(599), 599, b"599\n"),
    ],
)
async def test_pages_may_raise_an_answer(
    version: Version,
    error: HTTPError,
    status: int,
    body: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @app.http("/")
    async def fail(request: Request) -> None:
        raise error

    @app.http("/nursery")
    async def fail_in_a_nursery(request: Request) -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(fail, request)

    async with serving_in_memory(app) as served:
        for path in ("/", "/nursery"):
            response = await served.ask(version, "GET", path)
            assert (response.status, response.body) == (status, body)
            for name, value in error.headers.items():
                assert response.headers[name] == value
        figures(app, requests=2, refused=2 * (status >= 400), failed=0)
    assert not caplog.records


@both
async def test_two_answers_at_once_are_none(
    version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.http("/")
    async def fail(request: Request) -> None:
        async def raise_it(status: int) -> None:
            raise HTTPError(status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_it, 400)
            nursery.start_soon(raise_it, 401)

    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/")).status == 500
    assert "answering / failed" in caplog.text


@pytest.mark.parametrize("status", [-1, 0, 100, 200, 204, 299, 600])
def test_statuses_that_are_no_errors(status: int) -> None:
    with pytest.raises(ValueError, match=f"300 to 599, not {status}"):
        HTTPError(status)


def test_an_error_with_a_wrong_header_is_told_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="control characters"):
        HTTPError(400, headers={"A": "\r\n"})
    assert str(HTTPError(404)) == "answered with status 404"
    assert isinstance(HTTPError(404), TrioWTError)


@both
@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosedError(1006, "upstream", remote=True),
        StreamReset(3, remote=True),
        trio.BrokenResourceError("upstream"),
        trio.ClosedResourceError("upstream"),
        trio.EndOfChannel(),
        trio.TooSlowError(),
        OSError("upstream"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_ends_of_other_connections_are_failures_of_a_page(
    version: Version, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A page may have asked another server, and that may be gone."""
    app = App()

    @app.http("/")
    async def fetch(request: Request) -> None:
        raise error

    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/")).status == 500
        figures(app, requests=1, refused=1, failed=1)
    assert "answering / failed" in caplog.text


@both
async def test_a_converter_that_fails_is_500(
    version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(converters={"bad": Converter(".+", lambda text: {}[text])})
    app.http("/{x:bad}")(lambda request, x: "")
    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/a")).status == 500
        figures(app, requests=1, refused=1, failed=1)
    assert "KeyError" in caplog.text


@each_kind
async def test_a_session_whose_handler_raises(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @app.session("/")
    async def fail(session: WebSocket | WebTransportSession) -> None:
        raise ZeroDivisionError

    async with serving_in_memory(app) as served:
        async with served.session(kind, "/") as session:
            end = await session.wait_closed()
            if isinstance(session, WebSocket):
                with pytest.raises(ConnectionClosedError) as caught:
                    await session.receive()
                assert caught.value.code == 1011
            else:
                assert isinstance(end, ConnectionClosedError)
        await settle()
        figures(app, requests=1, refused=0, failed=1, open_websockets=0)
        figures(app, open_webtransport_sessions=0)
        async with served.session(kind, "/"):
            pass  # others go on
    assert "ZeroDivisionError" in caplog.text


@each_kind
async def test_a_session_has_been_answered_and_gets_no_other_answer(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @app.session("/")
    async def fail(session: WebSocket | WebTransportSession) -> None:
        raise HTTPError(404)

    async with serving_in_memory(app) as served, served.session(kind, "/") as session:
        await session.wait_closed()
        await settle()
        figures(app, failed=1, refused=0)
    assert "answered with status 404" in caplog.text


@each_kind
async def test_the_end_of_a_session_is_no_failure(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @app.session("/")
    async def read(session: WebSocket | WebTransportSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            if isinstance(session, WebSocket):
                await session.receive()
            else:
                await session.datagrams.receive()

    async with serving_in_memory(app) as served:
        async with served.session(kind, "/"):
            await settle()
        await settle()
        figures(app, requests=1, failed=0, open_websockets=0, open_webtransport_sessions=0)
    assert not caplog.records


@each_kind
async def test_a_handler_of_sessions_that_is_not_async(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()
    app.session("/sync")(lambda session: None)  # type: ignore[arg-type, return-value]
    async with serving_in_memory(app) as served, served.session(kind, "/sync") as session:
        await session.wait_closed()
        await settle()
    assert "the handler of /sync is for sessions and must be async" in caplog.text


@both
async def test_errors_may_go_on_to_the_caller(version: Version) -> None:
    app = App()

    @app.http("/")
    def fail(request: Request) -> None:
        raise ZeroDivisionError

    statuses = []
    with pytest.raises(ExceptionGroup) as caught:
        async with serving_in_memory(app, handler_errors="raise") as served:
            await served.ask(version, "GET", "/nope")
            statuses.append((await served.ask(version, "GET", "/")).status)
            await trio.sleep_forever()
    assert statuses == [500]
    assert caught.group_contains(ZeroDivisionError)
    figures(app, requests=2, refused=2, failed=1)


# ---- middlewares


class Recorder:
    """Middlewares that say what they see."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def __call__(self, name: str) -> Callable[[Context], Any]:
        @asynccontextmanager
        async def middleware(context: Context) -> AsyncIterator[None]:
            self.said.append(f"+{name}")
            try:
                yield
            except BaseException as exc:
                self.said.append(type(exc).__name__)
                raise
            finally:
                self.said.append((f"-{name}", context.status))

        return middleware


@both
async def test_the_order_of_middlewares(version: Version) -> None:
    record = Recorder()
    inner = App(middleware=[record("inner 1"), record("inner 2")])
    inner.http("/x", middleware=[record("route 1"), record("route 2")])(page)
    app = App(middleware=[record("outer 1"), record("outer 2")])
    app.mount("/in", inner)
    order = ["outer 1", "outer 2", "inner 1", "inner 2", "route 1", "route 2"]
    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/in/x")).status == 200
        expected: list[object] = [f"+{name}" for name in order]
        assert record.said == expected + [(f"-{name}", 200) for name in reversed(order)]

        # What no route takes is a matter of the application that was asked.
        record.said.clear()
        assert (await served.ask(version, "GET", "/in/y")).status == 404
        assert record.said == ["+outer 1", "+outer 2", ("-outer 2", 404), ("-outer 1", 404)]
        record.said.clear()
        assert (await served.ask(version, "POST", "/in/x")).status == 405
        assert record.said == ["+outer 1", "+outer 2", ("-outer 2", 405), ("-outer 1", 405)]


@both
async def test_a_middleware_that_rejects(version: Version) -> None:
    record = Recorder()

    @asynccontextmanager
    async def guard(context: Context) -> AsyncIterator[None]:
        context.headers += {"X-Guard": "1"}
        if "authorization" not in context.request.headers:
            raise HTTPError(401, "who are you?\n", {"WWW-Authenticate": "Basic"})
        yield

    app = App(middleware=[record("outer"), guard, record("inner")])
    app.http("/")(page)
    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        assert (response.status, response.body) == (401, b"who are you?\n")
        assert response.headers["x-guard"] == "1"
        assert response.headers["www-authenticate"] == "Basic"
        # Those outside of it see a request that was answered.
        assert record.said == ["+outer", ("-outer", 401)]
        assert (await served.ask(version, "GET", "/", {"Authorization": "x"})).status == 200


@each_kind
async def test_a_middleware_rejects_sessions_before_they_are_open(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    @asynccontextmanager
    async def refuse(context: Context) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise HTTPError(403, "not you", {"X-Why": "because"})
            yield

    app = App(middleware=[refuse])
    app.session("/")(stay)
    async with serving_in_memory(app) as served:
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/"):
                pass
        assert (caught.value.status, caught.value.body) == (403, b"not you")
        assert caught.value.headers["x-why"] == "because"
        figures(app, requests=1, refused=1, failed=0, websockets=0, webtransport_sessions=0)


@both
@pytest.mark.parametrize("when", ["before", "after a page", "after an error", "calling"])
async def test_a_middleware_that_raises(
    version: Version, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = Recorder()

    @asynccontextmanager
    async def bad(context: Context) -> AsyncIterator[None]:
        if when == "before":
            raise ZeroDivisionError
        try:
            yield
        finally:
            raise ZeroDivisionError

    def worse(context: Context) -> Any:
        raise ZeroDivisionError

    app = App(middleware=[record("outer"), worse if when == "calling" else bad])

    @app.http("/")
    def handler(request: Request) -> str:
        if when == "after an error":
            raise KeyError
        return "page"

    async with serving_in_memory(app) as served:
        status = (await served.ask(version, "GET", "/")).status
        await settle()
        assert status == (200 if when == "after a page" else 500)
        # It must not be taken for answered by who stands around it.
        seen = 200 if when == "after a page" else None
        assert record.said == ["+outer", "ZeroDivisionError", ("-outer", seen)]
        figures(app, requests=1, failed=1, refused=int(status == 500))
    assert "ZeroDivisionError" in caplog.text
    assert len(caplog.records) == 1


@both
@pytest.mark.parametrize("what", ["handler", "yield", "nothing"])
async def test_a_middleware_that_swallows(
    version: Version, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Swallow:
        def __init__(self, context: Context) -> None: ...

        async def __aenter__(self) -> None:
            if what == "yield":
                raise HTTPError(404)

        async def __aexit__(self, *exc: object) -> bool:
            return True

    app = App(middleware=[Swallow])

    @app.http("/")
    def handler(request: Request) -> str:
        if what == "handler":
            raise ZeroDivisionError
        return "page"

    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/")
        await settle()
        assert response.status == {"handler": 500, "yield": 404, "nothing": 200}[what]
    if what == "handler":
        assert "a middleware has swallowed what there was to be answered" in caplog.text
        figures(app, failed=1, refused=1)
    else:
        assert not caplog.records


async def test_a_middleware_may_swallow_what_came_after_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def swallow(context: Context) -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError:
            pass

    app = App(middleware=[swallow])

    @app.websocket("/")
    async def fail(ws: WebSocket) -> None:
        raise ZeroDivisionError

    async with serving_in_memory(app) as served, served.websocket("1.1", "/") as ws:
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1011
        await settle()
        figures(app, failed=0, open_websockets=0)
    assert not caplog.records


@both
async def test_a_middleware_that_answers_in_place_of_an_error(version: Version) -> None:
    @asynccontextmanager
    async def translate(context: Context) -> AsyncIterator[None]:
        try:
            yield
        except LookupError as exc:
            raise HTTPError(404, f"there is no {exc}") from exc

    app = App(middleware=[translate])

    @app.http("/{name}")
    def show(request: Request, name: str) -> str:
        raise LookupError(name)

    async with serving_in_memory(app) as served:
        response = await served.ask(version, "GET", "/bob")
        assert (response.status, response.body) == (404, b"there is no bob")
        figures(app, failed=0, refused=1)


@each_kind
async def test_headers_that_middlewares_add_to_sessions(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    @asynccontextmanager
    async def add(context: Context) -> AsyncIterator[None]:
        context.headers += [("X-A", "1")]
        context.headers = {**context.headers, "X-B": "2"}  # type: ignore[assignment]
        yield

    app = App(middleware=[add])
    app.session("/")(stay)
    async with (
        serving_in_memory(app, headers=Headers({"Alt-Svc": "x"})) as served,
        served.session(kind, "/") as session,
    ):
        headers = session.response_headers
        assert (headers["x-a"], headers["x-b"], headers["alt-svc"]) == ("1", "2", "x")


@each_kind
@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "b\r\nc"},
        {"a b": "c"},
        {"Sec-WebSocket-Protocol": "x"},
        {"Connection": "close"},
        5,
    ],
    ids=repr,
)
async def test_headers_that_cannot_be_sent_with_a_session(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    headers: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def add(context: Context) -> AsyncIterator[None]:
        context.headers = headers
        yield

    app = App(middleware=[add])
    app.session("/")(stay)
    async with serving_in_memory(app) as served:
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/"):
                pass
        assert caught.value.status == 500
        figures(app, requests=1, refused=1, websockets=0, webtransport_sessions=0)
    assert caplog.records


@pytest.mark.parametrize("kind", ["page", "websocket 3", "webtransport"])
async def test_headers_that_are_too_long_for_http3(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def add(context: Context) -> AsyncIterator[None]:
        context.headers += {"X-Long": "x" * 70000}
        yield

    app = App(middleware=[add])
    app.session("/")(stay)
    app.http("/page")(page)
    async with serving_in_memory(app) as served:
        if kind == "page":
            assert (await served.ask("3", "GET", "/page")).status == 500
        else:
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, "/"):
                    pass
            assert caught.value.status == 500
    assert "the header X-Long has more than 65535 bytes" in caplog.text


@both
async def test_headers_that_cannot_be_sent_with_a_page(
    version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.http("/")
    def bad(request: Request, context: Context) -> str:
        context.headers = [("X-A", "b"), ("C",)]  # type: ignore[assignment, list-item]
        return "page"

    @app.http("/connection")
    def connection(request: Request, context: Context) -> str:
        context.headers += {
            "Connection": "keep-alive",
            "Content-Length": "77",
            "Transfer-Encoding": "chunked",
            "Keep-Alive": "5",
        }
        return "page"

    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/")).status == 500
        response = await served.ask(version, "GET", "/connection")
        # It is the server that knows how the message is framed.
        assert (response.status, response.body) == (200, b"page")
        assert response.headers.get_all("content-length") == ["4"]
        assert "transfer-encoding" not in response.headers
        assert response.headers.get_all("connection") == (["close"] if version == "1.1" else [])


def test_functions_that_are_no_middlewares() -> None:
    async def generator(context: Context) -> AsyncIterator[None]:
        yield

    async def coroutine(context: Context) -> None: ...

    app = App()
    for wrong in (generator, coroutine):
        with pytest.raises(TypeError, match="put @contextlib.asynccontextmanager over"):
            App(middleware=[wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="put @contextlib.asynccontextmanager over"):
            app.http("/", middleware=[wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="put @contextlib.asynccontextmanager over"):
            app.session("/", middleware=[wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="a lifespan gives an async context manager"):
            App(lifespan=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a middleware is a function, not int"):
        App(middleware=[5])  # type: ignore[list-item]


# ---- state


USER = StateKey[str]("user")
COUNT = StateKey[int]("count")


def test_state() -> None:
    state = State()
    assert USER not in state
    assert state.get(USER) is None
    assert state.get(COUNT, 5) == 5
    with pytest.raises(KeyError, match="there is no user here; whatever sets it must come before"):
        state[USER]
    state[USER] = "bob"
    assert USER in state
    assert state[USER] == state.get(USER) == "bob"
    # Names are for people.
    assert StateKey[str]("user") not in state
    assert repr(USER) == "<StateKey user>"


@both
async def test_each_request_has_a_state_of_its_own(version: Version) -> None:
    @asynccontextmanager
    async def who(context: Context) -> AsyncIterator[None]:
        assert USER not in context.state
        context.state[USER] = context.request.query
        yield

    app = App(middleware=[who])
    app.state[COUNT] = 7

    @app.http("/")
    def greet(request: Request, context: Context) -> str:
        return f"{context.state[USER]} {context.app.state[COUNT]}"

    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/?ann")).body == b"ann 7"
        assert (await served.ask(version, "GET", "/?bob")).body == b"bob 7"


# ---- Origins and subprotocols


@each_kind
@pytest.mark.parametrize(
    ("app_origins", "route_origins", "origin", "allowed"),
    [
        ("same-host", None, None, True),
        ("same-host", None, "https://server.test:4433", True),
        ("same-host", None, "https://evil.test", False),
        ("same-host", None, "null", False),
        ("any", None, "https://evil.test", True),
        (["https://a.test"], None, "https://a.test", True),
        (["https://a.test"], None, "https://server.test:4433", False),
        ("any", "same-host", "https://evil.test", False),
        ("any", [], "https://server.test:4433", False),
        ("same-host", "any", "https://evil.test", True),
        ([], [re.compile("https://.*[.]test")], "https://b.test", True),
    ],
)
async def test_origins(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    app_origins: Any,
    route_origins: Any,
    origin: str | None,
    allowed: bool,
) -> None:
    app = App(origins=app_origins)
    app.session("/", origins=route_origins)(stay)
    app.http("/page")(page)
    async with serving_in_memory(app) as served:
        if allowed:
            async with served.session(kind, "/", origin=origin):
                pass
        else:
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, "/", origin=origin):
                    pass
            assert caught.value.status == 403
            assert caught.value.body == b"this Origin is not allowed\n"
        figures(app, refused=int(not allowed))
        if origin is not None and "websocket" in kind:
            # Pages are for everybody; what browsers may do with them, CORS says.
            version: Version = "3" if kind == "websocket 3" else "1.1"
            assert (await served.ask(version, "GET", "/page", {"Origin": origin})).status == 200


@each_kind
async def test_a_mounted_applications_origins_are_its_own(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    app, inner = App(origins="any"), App()
    inner.session("/")(stay)
    app.mount("/in", inner)
    async with serving_in_memory(app) as served:
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/in/", origin="https://evil.test"):
                pass
        assert caught.value.status == 403


@each_kind
@pytest.mark.parametrize(
    ("offered", "supported", "chosen"),
    [
        ([], [], None),
        (["a"], [], None),
        ([], ["a"], None),
        (["a", "b"], ["b", "a"], "b"),
        (["c"], ["a"], None),
    ],
)
async def test_subprotocols(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
    offered: list[str],
    supported: list[str],
    chosen: str | None,
) -> None:
    app = App()
    app.session("/", subprotocols=supported)(stay)
    async with (
        serving_in_memory(app) as served,
        served.session(kind, "/", subprotocols=offered) as session,
    ):
        assert session.subprotocol == chosen


def test_wrong_origins_and_subprotocols() -> None:
    app = App()
    with pytest.raises(ValueError, match="origins is"):
        App(origins="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="origins is"):
        app.websocket("/", origins="https://a.test")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not one string"):
        app.websocket("/", subprotocols="chat")
    with pytest.raises(ValueError, match="'a b' is not a valid subprotocol name"):
        app.webtransport("/", subprotocols=["a b"])


# ---- routes that cannot be


def test_handlers_that_do_not_take_what_the_path_gives() -> None:
    app = App()

    async def none(ws: WebSocket) -> None: ...
    async def other(ws: WebSocket, name: str) -> None: ...
    async def more(ws: WebSocket, room: str, more: int) -> None: ...
    async def nothing() -> None: ...
    async def only_position(ws: WebSocket, room: str, /) -> None: ...

    for wrong in (none, other, more, nothing, only_position):
        with pytest.raises(TypeError, match=rf"{wrong.__name__} must take the session or request"):
            app.websocket("/{room}")(wrong)
    with pytest.raises(TypeError, match="the name context is taken"):
        app.http("/{context}")(lambda request, context: "")
    with pytest.raises(TypeError):
        app.websocket("/x")(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="must be a sequence, such as"):
        app.http("/x", methods="GET")


@pytest.mark.parametrize(
    "methods", [["CONNECT"], [""], ["G ET"], ["GET\r\n"], ["GÉT"], ["connect"]]
)
def test_methods_that_pages_do_not_have(methods: list[str]) -> None:
    with pytest.raises(ValueError, match="is not a method for plain requests"):
        App().http("/", methods=methods)


def test_no_methods_at_all() -> None:
    with pytest.raises(ValueError, match="give at least one method"):
        App().http("/", methods=[])


async def test_a_handler_that_cannot_be_added_changes_nothing() -> None:
    app = App()
    app.http("/x", methods=["POST"])(page)
    with pytest.raises(ValueError, match="'/x' has a handler for POST already"):
        app.http("/x", methods=["GET", "POST"])(page)
    app.webtransport("/x")(stay)
    with pytest.raises(ValueError, match="'/x' has a handler for webtransport already"):
        app.session("/x")(stay)
    with pytest.raises(TypeError):
        app.http("/y/{n}")(page)
    app.http("/twice", methods=["GET", "get"])(page)
    async with serving_in_memory(app) as served:
        assert (await served.ask("1.1", "GET", "/x")).headers["allow"] == "OPTIONS, POST"
        assert (await served.ask("1.1", "GET", "/y/5")).status == 404
        assert (await served.ask("1.1", "GET", "/twice")).status == 200
    app.http("/x")(page)
    app.websocket("/x")(ws_echo)


def test_decorators_give_the_handler_back() -> None:
    app = App()
    assert app.websocket("/a")(ws_echo) is ws_echo
    assert app.session("/b")(stay) is stay
    assert app.http("/c")(page) is page


# ---- mounts


@both
async def test_mounts(version: Version) -> None:
    app, outer, inner = App(), App(), App()

    @inner.http("/")
    @inner.http("/x/{n:int}")
    def show(request: Request, context: Context, n: int = 0) -> str:
        assert context.app is inner
        return f"{context.route} {request.path} {n}"

    outer.mount("/b", inner)
    outer.http("/b/own")(page)
    app.mount("/a", outer)
    app.mount("/caf%C3%A9/", inner)
    app.http("/a/b/x/5")(page)
    async with serving_in_memory(app) as served:

        async def get(path: str) -> tuple[int, str]:
            response = await served.ask(version, "GET", path)
            return response.status, response.body.decode()

        assert await get("/a/b/x/6") == (200, "/a/b/x/{n:int} /a/b/x/6 6")
        assert await get("/a/b") == (200, "/a/b/ /a/b 0")
        assert await get("/a/b/") == (200, "/a/b/ /a/b/ 0")
        assert await get("/caf%c3%a9/x/7") == (200, "/caf%C3%A9/x/{n:int} /café/x/7 7")
        assert await get("/a/b/x/5") == (200, "page")  # what is nearer goes first
        assert await get("/a/b/own") == (200, "page")
        for path in ("/a", "/a/", "/ab/x/6", "/a%2Fb/x/6", "/x/6", "/a/b/x", "//a/b/x/6"):
            assert (await get(path))[0] == 404, path
        assert (await served.ask(version, "POST", "/a/b/x/6")).status == 405


async def test_the_longer_prefix_goes_first() -> None:
    app, short, long = App(), App(), App()
    short.http("/{p:path}")(lambda request, p: "short")
    long.http("/{p:path}")(lambda request, p: "long")
    app.mount("/a", short)
    app.mount("/a/b", long)
    async with serving_in_memory(app) as served:
        assert (await served.ask("1.1", "GET", "/a/b/c")).body == b"long"
        assert (await served.ask("1.1", "GET", "/a/c")).body == b"short"


@pytest.mark.parametrize("prefix", ["", "/", "//", "a", "/{x}", "/a?b", "/a#b"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(ValueError, match="is no prefix"):
        App().mount(prefix, App())


def test_mounts_that_cannot_be() -> None:
    a, b, c = App(), App(), App()
    with pytest.raises(ValueError, match="cannot be mounted on itself"):
        a.mount("/a", a)
    a.mount("/b", b)
    b.mount("/c", c)
    with pytest.raises(ValueError, match="cannot be mounted on itself"):
        c.mount("/a", a)
    with pytest.raises(ValueError, match="there is an application at '/%62/' already"):
        a.mount("/%62/", c)


async def test_figures_are_those_of_the_application_that_is_served() -> None:
    app, inner = App(), App()
    inner.websocket("/ws")(ws_echo)
    app.mount("/in", inner)
    async with serving_in_memory(app) as served, served.websocket("1.1", "/in/ws"):
        figures(app, websockets=1, open_websockets=1)
    assert inner.statistics() == AppStatistics(0, 0, 0, 0, 0, 0, 0)


# ---- clients that leave


@pytest.mark.parametrize("kind", ["page", "websocket", "webtransport"])
async def test_a_request_that_is_reset_while_a_middleware_waits(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = Recorder()
    reached, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def wait(context: Context) -> AsyncIterator[None]:
        reached.set()
        await go_on.wait()
        yield

    app = App(middleware=[record("outer"), wait])
    app.session("/session")(stay)
    app.http("/page")(page)
    async with serving_in_memory(app) as served, raw_client(served.network) as peer:
        if kind == "page":
            fields = peer.plain_fields(path=b"/page")
        else:
            fields = peer.session_fields(b"/session", token=kind.encode())
            fields.append((b"sec-websocket-version", b"13"))
        exchange = await peer.request(fields)
        await reached.wait()
        exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
        exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
        await settle()
        go_on.set()
        await settle()
        figures(app, requests=1, failed=0, websockets=0, webtransport_sessions=0)
        if kind == "page":
            assert record.said == ["+outer", ("-outer", 200)]
        else:
            assert record.said == ["+outer", "ClientGone", ("-outer", None)]
        # The connection is none the worse for it.
        again = await peer.request(peer.plain_fields(path=b"/page"), eof=True)
        assert (await again.receive_head())[b":status"] == b"200"
    assert not caplog.records


async def test_a_client_that_leaves_while_a_middleware_waits_over_tcp(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = Recorder()
    reached, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def wait(context: Context) -> AsyncIterator[None]:
        reached.set()
        await go_on.wait()
        yield

    app = App(middleware=[record("outer"), wait])
    app.websocket("/ws")(ws_echo)
    async with serving_in_memory(app) as served:
        stream = served.listener.connect()
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reached.wait()
        await trio.aclose_forcefully(stream)
        go_on.set()
        await settle()
        figures(app, requests=1, failed=0, websockets=0)
        assert record.said == ["+outer", "ClientGone", ("-outer", None)]
    assert not caplog.records


async def test_a_client_that_does_not_read_its_response() -> None:
    """Neither the response nor the wait for it may last for ever."""
    app = App()
    app.http("/")(lambda request: bytes(1000))
    async with serving_in_memory(app, handshake_timeout=5) as served:
        stream = served.listener.connect(buffered=False)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        begin = trio.current_time()
        served.shutdown.set()
        await trio.sleep(20)
        assert trio.current_time() - begin == 20
        figures(app, requests=1, failed=0)
        await trio.aclose_forcefully(stream)


# ---- shutting down


@both
async def test_what_is_asked_for_during_a_shutdown(version: Version) -> None:
    """A request that was accepted is answered; a session that opens late is told at once."""
    reached, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def wait(context: Context) -> AsyncIterator[None]:
        reached.set()
        await go_on.wait()
        yield

    app = App(middleware=[wait])
    app.http("/")(page)
    async with serving_in_memory(app) as served, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            response = await served.ask(version, "GET", "/")
            assert (response.status, response.body) == (200, b"page")

        await reached.wait()
        served.shutdown.set()
        await settle()
        go_on.set()


@each_kind
async def test_a_session_that_opens_during_a_shutdown(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    reached, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def wait(context: Context) -> AsyncIterator[None]:
        reached.set()
        await go_on.wait()
        yield

    app = App(middleware=[wait])
    app.session("/")(stay)
    async with (
        serving_in_memory(app, shutdown_timeout=60) as served,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def visit() -> None:
            async with served.session(kind, "/") as session:
                with trio.fail_after(5):
                    if isinstance(session, WebSocket):
                        with pytest.raises(ConnectionClosed) as caught:
                            await session.receive()
                        assert caught.value.code == 1001
                    else:
                        await session.wait_draining()

        await reached.wait()
        served.shutdown.set()
        await settle()
        go_on.set()


@each_kind
async def test_a_shutdown_tells_sessions_and_waits_for_their_handlers(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    ended = []
    app = App()

    @app.session("/")
    async def work(session: WebSocket | WebTransportSession) -> None:
        if isinstance(session, WebSocket):
            async for _ in session:
                pass
        else:
            await session.wait_closed()
        await trio.sleep(3)  # there is something to be put away
        ended.append(trio.current_time())

    async with serving_in_memory(app, shutdown_timeout=60) as served:
        async with served.session(kind, "/") as session:
            await settle()
            begin = trio.current_time()
            served.shutdown.set()
            with trio.fail_after(5):
                if isinstance(session, WebTransportSession):
                    await session.wait_draining()
                    await session.aclose()
                await session.wait_closed()
        await trio.sleep(4)
        assert len(ended) == 1
        assert 3 <= ended[0] - begin < 5
        figures(app, open_websockets=0, open_webtransport_sessions=0, failed=0)


@each_kind
async def test_a_shutdown_is_bounded(
    kind: Literal["websocket 1.1", "websocket 3", "webtransport"],
) -> None:
    record = Recorder()
    app = App(middleware=[record("outer")])

    @app.session("/")
    async def busy(session: WebSocket | WebTransportSession) -> None:
        await trio.sleep_forever()

    async with serving_in_memory(app, shutdown_timeout=7) as served:
        async with served.session(kind, "/") as session:
            await settle()
            served.shutdown.set()
            await trio.sleep(6.9)
            assert record.said == ["+outer"]
            await trio.sleep(1)
            await session.wait_closed()
        status = 101 if kind == "websocket 1.1" else 200
        assert record.said == ["+outer", "Cancelled", ("-outer", status)]
        figures(app, open_websockets=0, open_webtransport_sessions=0, failed=0)


@both
async def test_a_request_that_is_decided_for_ever_is_cancelled(version: Version) -> None:
    record = Recorder()
    app = App(middleware=[record("outer")])

    @app.http("/")
    async def never(request: Request) -> None:
        await trio.sleep_forever()

    async with serving_in_memory(app, shutdown_timeout=7) as served:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                with pytest.raises(Exception):  # noqa: B017
                    await served.ask(version, "GET", "/")

            await settle()
            served.shutdown.set()
        assert record.said == ["+outer", "Cancelled", ("-outer", None)]
        figures(app, requests=1, failed=0, refused=0)


# ---- figures


async def test_figures_do_not_drift_whatever_a_context_is_told() -> None:
    @asynccontextmanager
    async def meddle(context: Context) -> AsyncIterator[None]:
        yield
        context.session = None
        context.kind = "http"

    app = App(middleware=[meddle])

    @app.session("/")
    async def meddling(session: WebSocket | WebTransportSession, context: Context) -> None:
        context.session = None
        context.kind = "http"

    async with serving_in_memory(app) as served:
        for kind in KINDS:
            async with served.session(kind, "/") as session:
                await session.wait_closed()
    figures(app, requests=3, websockets=2, webtransport_sessions=1, failed=0)
    figures(app, open_websockets=0, open_webtransport_sessions=0)


async def test_figures_after_all_kinds_of_ends(caplog: pytest.LogCaptureFixture) -> None:
    app = App()

    @app.session("/{how}")
    async def session(session: WebSocket | WebTransportSession, how: str) -> None:
        if how == "raise":
            raise ZeroDivisionError
        if how == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise KeyError
        if how == "cancel":
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.sleep_forever()
        if how == "close":
            await session.aclose()

    async with serving_in_memory(app) as served:
        for kind in KINDS:
            for how in ("raise", "group", "cancel", "close", "return"):
                async with served.session(kind, f"/{how}") as visit:
                    await visit.wait_closed()
            with pytest.raises(Rejected):
                async with served.session(kind, "/too/long"):
                    pass
        await settle()
    assert app.statistics() == AppStatistics(
        requests=18,
        refused=3,
        failed=6,
        websockets=10,
        webtransport_sessions=5,
        open_websockets=0,
        open_webtransport_sessions=0,
    )
