"""Serving applications on real sockets: one port, one life, one end."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.app_servers import parse_response
from tests.certificates import make
from tests.quic_pairs import certificate, client_tls
from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosed,
    Rejected,
    ServerTLS,
    Settings,
    WebSocket,
    WebTransportSession,
    WebTransportSettings,
    open_websocket,
    open_webtransport,
    open_webtransport_connection,
)
from trio_wt.app import App, Context, Request, Response, Serving

pytestmark = pytest.mark.real_clock

ROOT = Path(__file__).parents[1]
TLS = ServerTLS(certificate())


def ssl_context() -> ssl.SSLContext:
    """Of a client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def serving(app: App, *args: Any, **options: Any) -> AsyncIterator[Serving]:
    """Serve on loopback for as long as the block lasts."""
    options = {"host": "127.0.0.1", "port": 0, "tls": TLS, "shutdown_timeout": 0.5, **options}
    async with trio.open_nursery() as nursery:
        served = await nursery.start(
            lambda task_status: app.serve(task_status=task_status, **options)
        )
        yield served
        served.shut_down()


async def get(serving: Serving, path: str = "/", method: str = "GET") -> Response:
    """A page over HTTP/1.1."""
    host, port = serving.addresses[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
    if serving.secure:
        stream = trio.SSLStream(
            stream, ssl_context(), server_hostname="localhost", https_compatible=True
        )
    async with stream:
        await stream.send_all(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while True:
            head, end, body = answer.partition(b"\r\n\r\n")
            if end:
                response = parse_response(answer)
                length = 0 if method == "HEAD" else response.headers.get("content-length", "0")
                if len(body) >= int(length):
                    await trio.aclose_forcefully(stream)
                    return response
            data = await stream.receive_some()
            assert data
            answer += data


async def get3(serving: Serving, path: str = "/", method: str = "GET") -> Response:
    """The same over HTTP/3."""
    url = serving.url("webtransport")
    async with open_webtransport_connection(url, tls=client_tls()) as connection:
        return await connection.request(method, path)


def ws(serving: Serving, path: str = "/", **options: Any) -> Any:
    if serving.secure:
        options["ssl_context"] = ssl_context()
    return open_websocket(serving.url("ws", path), **options)


def wt(serving: Serving, path: str = "/", **options: Any) -> Any:
    return open_webtransport(serving.url("webtransport", path), tls=client_tls(), **options)


def town() -> App:
    app = App()

    @app.http("/")
    def page(request: Request) -> str:
        return f"{request.scheme} {request.http_version}"

    @app.session("/echo")
    async def echo(session: WebSocket | WebTransportSession) -> None:
        if isinstance(session, WebSocket):
            async for message in session:
                await session.send(message)
        else:
            async for stream in session.incoming_streams:
                async with stream:
                    await stream.send_all(await stream.receive_all())

    @app.session("/busy")
    async def busy(session: WebSocket | WebTransportSession) -> None:
        await trio.sleep_forever()

    return app


async def check_echo(session: Any) -> None:
    if isinstance(session, WebSocket):
        await session.send("hello")
        assert await session.receive() == "hello"
    else:
        async with session.open_stream() as stream:
            await stream.send_all(b"hello", eof=True)
            assert await stream.receive_all() == b"hello"


def can_bind(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as sock:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free for both, and that the system gives nobody by itself."""
    return next(
        port
        for port in iter(lambda: random.randrange(20000, 30000), None)
        if can_bind(port, socket.SOCK_STREAM) and can_bind(port, socket.SOCK_DGRAM)
    )


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No socket and no file, whatever the test did."""
    if not Path("/proc/self/fd").is_dir():
        yield
        return
    before = open_files()
    yield
    assert open_files() == before


# ---- one port


async def test_one_port_for_everything() -> None:
    app = town()
    async with serving(app) as served:
        assert served.secure
        assert served.http3
        assert served.addresses == [("127.0.0.1", served.port)]
        assert repr(served) == f"<Serving https://127.0.0.1:{served.port}/ and HTTP/3>"
        async with ws(served, "/echo") as websocket:
            await check_echo(websocket)
            assert websocket.response_headers["alt-svc"] == f'h3=":{served.port}"; ma=86400'
        async with wt(served, "/echo") as session:
            await check_echo(session)
            async with session.connection.open_websocket("/echo") as over_http3:
                await check_echo(over_http3)
                assert "alt-svc" not in over_http3.response_headers
        response = await get(served)
        assert (response.status, response.body) == (200, b"https 1.1")
        # Also with what is no success, and to HEAD (RFC 7838 section 3).
        for path, method in (("/", "GET"), ("/", "HEAD"), ("/", "POST"), ("/nope", "GET")):
            headers = (await get(served, path, method)).headers
            assert headers.get_all("alt-svc") == [f'h3=":{served.port}"; ma=86400']
        response = await get3(served)
        assert (response.status, response.body) == (200, b"https 3")
        assert "alt-svc" not in response.headers
        have = app.statistics()
        assert (have.websockets, have.webtransport_sessions) == (2, 1)


async def test_a_given_port() -> None:
    port = free_port()
    async with serving(town(), port=port) as served:
        assert served.port == port
        assert (await get(served)).status == (await get3(served)).status == 200


async def test_plain_http_has_no_udp() -> None:
    async with serving(town(), port=free_port(), tls=None) as served:
        assert not served.secure
        assert not served.http3
        assert repr(served) == f"<Serving http://127.0.0.1:{served.port}/>"
        assert can_bind(served.port, socket.SOCK_DGRAM)
        response = await get(served)
        assert response.body == b"http 1.1"
        assert "alt-svc" not in response.headers
        async with ws(served, "/echo") as websocket:
            await check_echo(websocket)
        with pytest.raises(ValueError, match="HTTP/3 is not served"):
            served.url("webtransport")


async def test_tls_without_http3() -> None:
    async with serving(town(), port=free_port(), http3=False) as served:
        assert served.secure
        assert not served.http3
        assert can_bind(served.port, socket.SOCK_DGRAM)
        response = await get(served)
        assert response.body == b"https 1.1"
        assert "alt-svc" not in response.headers


async def test_http3_beside_plain_tcp() -> None:
    async with serving(town(), tls=None, http3=TLS) as served:
        assert not served.secure
        assert served.http3
        assert served.url("ws") == f"ws://127.0.0.1:{served.port}/"
        response = await get(served)
        assert response.body == b"http 1.1"
        # What is not secure must not say it.
        assert "alt-svc" not in response.headers
        assert (await get3(served)).body == b"https 3"
        async with wt(served, "/echo") as session:
            await check_echo(session)


async def test_another_certificate_for_http3() -> None:
    made = make()
    other = Certificate.from_pem(made.pem, made.key_pem)
    async with serving(town(), http3=ServerTLS(other)) as served:
        tls = ClientTLS(server_certificate_hashes=[other.sha256])
        url = served.url("webtransport", "/echo")
        async with open_webtransport(url, tls=tls) as session:
            await check_echo(session)
        async with ws(served, "/echo") as websocket:
            await check_echo(websocket)


@pytest.mark.parametrize("host", [None, "localhost", "::1", "::", "0.0.0.0"])
@pytest.mark.parametrize("tls", [None, TLS])
async def test_all_addresses_have_one_port(host: str | None, tls: ServerTLS | None) -> None:
    async with serving(town(), host=host, tls=tls) as served:
        assert {port for _, port in served.addresses} == {served.port}
        assert (await get(served)).status == 200
        if tls is not None:
            assert (await get3(served)).status == 200
        assert "://127.0.0.1:" in served.url() or "://[::1]:" in served.url()


def test_urls() -> None:
    def of(host: str, *, secure: bool, http3: bool = True) -> Serving:
        return Serving([(host, 443)], trio.Event(), secure=secure, http3=http3)

    secure, plain = of("127.0.0.1", secure=True), of("::", secure=False)
    assert secure.url() == "https://127.0.0.1:443/"
    assert secure.url("ws", "/a?b") == "wss://127.0.0.1:443/a?b"
    assert secure.url("webtransport") == "https://127.0.0.1:443/"
    assert plain.url() == "http://[::1]:443/"
    assert plain.url("ws") == "ws://[::1]:443/"
    assert plain.url("webtransport") == "https://[::1]:443/"
    assert of("0.0.0.0", secure=True).url() == "https://127.0.0.1:443/"
    with pytest.raises(ValueError, match="the path 'a' must begin with /"):
        secure.url("ws", "a")
    with pytest.raises(ValueError, match="not 'https'"):
        secure.url("https")  # type: ignore[arg-type]


# ---- what cannot be


@pytest.mark.parametrize("kind", ["UDP", "TCP"])
async def test_a_port_in_use(kind: str) -> None:
    sort = socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM
    port = free_port()
    with socket.socket(socket.AF_INET, sort) as taken:
        taken.bind(("127.0.0.1", port))
        if kind == "TCP":
            taken.listen()
        with pytest.raises(OSError, match=rf"in use.* \({kind} port {port}\)") as caught:
            await town().serve("127.0.0.1", port, tls=TLS)
        assert caught.value.errno == errno.EADDRINUSE
        other = socket.SOCK_STREAM if kind == "UDP" else socket.SOCK_DGRAM
        assert can_bind(port, other)
        if kind == "UDP":
            async with serving(town(), port=port, tls=None) as served:  # needs TCP only
                assert served.port == port


async def test_any_port_is_looked_for_until_both_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = trio.open_tcp_listeners, []

    async def in_use(port: int, **options: Any) -> list[trio.SocketListener]:
        tried.append(port)
        if len(tried) < 4:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return await real(port, **options)

    monkeypatch.setattr(trio, "open_tcp_listeners", in_use)
    async with serving(town()) as served:
        assert len(tried) >= 4
        assert served.port == tried[-1]
    monkeypatch.setattr(trio, "open_tcp_listeners", _always_in_use)
    with pytest.raises(OSError, match="in use"):
        await town().serve("127.0.0.1", 0, tls=TLS)


async def _always_in_use(port: int, **options: Any) -> list[trio.SocketListener]:
    raise OSError(errno.EADDRINUSE, "Address already in use")


async def test_addresses_that_are_not_ours() -> None:
    for tls in (None, TLS):
        with pytest.raises(OSError, match=r"\((UDP|TCP) port 0\)"):
            await town().serve("192.0.2.1", 0, tls=tls)
        with pytest.raises(socket.gaierror):
            await town().serve("no.such.name.invalid", 0, tls=tls)


class Alive:
    """A lifespan that says when it was entered and left."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, app: App) -> Any:
        return self.named("app")(app)

    def named(
        self, name: str, *, before: BaseException | None = None, after: BaseException | None = None
    ) -> Callable[[App], Any]:
        @asynccontextmanager
        async def lifespan(app: App) -> AsyncIterator[None]:
            if before is not None:
                raise before
            self.said.append(f"+{name}")
            try:
                yield
            finally:
                self.said.append(f"-{name}")
                if after is not None:
                    raise after

        return lifespan


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"port": -1}, ValueError, "a port is from 0 to 65535, not -1"),
        ({"port": 65536}, ValueError, "not 65536"),
        ({"handshake_timeout": 0}, ValueError, "handshake_timeout must be greater than 0"),
        ({"handshake_timeout": float("nan")}, ValueError, "handshake_timeout must be greater"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout must be at least 0, and is -1"),
        ({"shutdown_timeout": float("nan")}, ValueError, "shutdown_timeout must be at least 0"),
        ({"signals": [signal.SIGKILL]}, ValueError, "9 is not a signal that can be listened for"),
        ({"signals": [0]}, ValueError, "0 is not a signal"),
        ({"signals": signal.SIGTERM}, TypeError, "not iterable"),
        ({"handler_errors": "ignore"}, ValueError, 'handler_errors is "log" or "raise"'),
        ({"tls": ssl_context()}, TypeError, "tls is a ServerTLS, or a function .* not SSLContext"),
        ({"tls": certificate()}, TypeError, "not Certificate"),
        ({"tls": "cert.pem"}, TypeError, "not str"),
        ({"http3": "yes"}, TypeError, "http3 is a ServerTLS"),
    ],
)
async def test_wrong_settings_are_told_before_anything_begins(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    alive = Alive()
    with pytest.raises(error, match=says):
        await App(lifespan=alive).serve(**{"host": "127.0.0.1", "port": 0, "tls": TLS, **options})
    assert alive.said == []


@pytest.mark.parametrize("where", ["tls", "http3"])
@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (ServerTLS(certificate(), client_ca="/nowhere/ca.pem"), FileNotFoundError, "nowhere"),
        (ServerTLS(certificate(), client_ca=b"none"), ValueError, "certificate"),
        (lambda: ServerTLS(certificate(), client_ca=b"none"), ValueError, "certificate"),
        (lambda: "nothing", TypeError, "the function for tls returns a ServerTLS, not str"),
        (lambda: {}["x"], KeyError, "x"),
    ],
)
async def test_certificates_that_cannot_be_used(
    where: str, source: Any, error: type[Exception], says: str
) -> None:
    alive = Alive()
    with pytest.raises(error, match=says):
        await App(lifespan=alive).serve("127.0.0.1", 0, **{where: source})
    assert alive.said == ["+app", "-app"]


async def test_a_keylog_that_cannot_be_written() -> None:
    with pytest.raises(OSError, match="nowhere"):
        await App().serve("127.0.0.1", 0, http3=ServerTLS(certificate(), keylog="/nowhere/log"))


# ---- the end


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    begin = trio.current_time()
    yield
    assert trio.current_time() - begin < seconds


@pytest.mark.parametrize("how", ["event", "shut_down", "cancel"])
async def test_the_end_is_told_to_all_and_waits_for_their_handlers(how: str) -> None:
    shutdown, put_away, said = trio.Event(), trio.Event(), []
    app, port = App(), free_port()

    @app.session("/{name}")
    async def work(session: WebSocket | WebTransportSession, name: str) -> None:
        await session.wait_closed()
        await put_away.wait()
        said.append(name)

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[Serving]) -> None:
            with scope:
                await app.serve(
                    "127.0.0.1", port, tls=TLS, shutdown=shutdown, task_status=task_status
                )
            said.append("served")

        served: Serving = await nursery.start(serve)
        async with ws(served, "/ws") as websocket, wt(served, "/wt") as session:
            if how == "event":
                shutdown.set()
            elif how == "shut_down":
                served.shut_down()
                served.shut_down()
            else:
                scope.cancel()
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.receive()
            assert (caught.value.code, caught.value.reason) == (
                1001,
                "the server is shutting down",
            )
            await session.wait_draining()
            assert session.connection.going_away
            # Nobody is let in any more.
            assert can_bind(served.port, socket.SOCK_STREAM)
            await session.aclose()
            assert said == []
            put_away.set()
    assert sorted(said[:2]) == ["ws", "wt"]
    assert said[2:] == ["served"]
    assert can_bind(served.port, socket.SOCK_DGRAM)


@pytest.mark.parametrize("how", ["event", "shut_down", "cancel"])
async def test_the_end_is_bounded(how: str) -> None:
    shutdown, cancelled = trio.Event(), []
    app = App()

    @app.session("/")
    async def busy(session: WebSocket | WebTransportSession, context: Context) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(context.kind)
            raise

    with at_most(8):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def serve(task_status: trio.TaskStatus[Serving]) -> None:
                with scope:
                    await app.serve(
                        "127.0.0.1",
                        0,
                        tls=TLS,
                        shutdown=shutdown,
                        shutdown_timeout=0.5,
                        task_status=task_status,
                    )

            served: Serving = await nursery.start(serve)
            async with (
                ws(served) as websocket,
                wt(served) as session,
                session.connection.open_websocket("/") as over_http3,
            ):
                {"event": shutdown.set, "shut_down": served.shut_down, "cancel": scope.cancel}[
                    how
                ]()
                await session.wait_draining()
                assert cancelled == []
                await websocket.wait_closed()
                await over_http3.wait_closed()
                await session.wait_closed()
    assert sorted(cancelled) == ["websocket", "websocket", "webtransport"]
    have = app.statistics()
    assert (have.open_websockets, have.open_webtransport_sessions, have.failed) == (0, 0, 0)


async def test_an_end_that_was_there_before_the_beginning() -> None:
    shutdown, alive = trio.Event(), Alive()
    shutdown.set()
    with at_most(6):
        await App(lifespan=alive).serve("127.0.0.1", 0, tls=TLS, shutdown=shutdown)
    assert alive.said == ["+app", "-app"]


async def test_clients_that_have_said_nothing_yet_do_not_hold_the_end_up_for_long() -> None:
    with at_most(8):
        async with serving(town(), shutdown_timeout=0.5) as served:
            silent = await trio.open_tcp_stream("127.0.0.1", served.port)
            async with open_webtransport_connection(
                served.url("webtransport"), tls=client_tls()
            ) as idle:
                served.shut_down()
                await idle.wait_closed()
            async with silent:
                with pytest.raises((trio.BrokenResourceError, AssertionError)):
                    assert await silent.receive_some()


@pytest.mark.parametrize("steps", range(40))
async def test_cancelled_at_every_step_of_the_beginning(steps: int) -> None:
    alive, app = Alive(), town()
    app._lifespan = alive
    tasks = trio.lowlevel.current_statistics().tasks_living
    with at_most(6):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: app.serve("127.0.0.1", 0, tls=TLS, shutdown_timeout=1))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert alive.said in ([], ["+app", "-app"])
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    # It can be served again.
    async with serving(app) as served:
        assert (await get(served)).status == 200


async def test_started_in_a_block_that_is_cancelled() -> None:
    """`Nursery.start` leaves a task where it is then (the servers must not)."""
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[Serving]) -> None:
                class Cancelling:
                    def started(self, value: Serving) -> None:
                        nursery.cancel_scope.cancel()
                        task_status.started(value)

                await town().serve(
                    "127.0.0.1", 0, tls=TLS, task_status=Cancelling(), shutdown_timeout=1
                )

            await nursery.start(serve)
    assert not scope.cancelled_caught


# ---- lifespans


async def test_the_order_of_lives() -> None:
    alive = Alive()
    app, inner, deep, other = (
        App(lifespan=alive.named(name)) for name in ("app", "inner", "deep", "other")
    )
    inner.mount("/deep", deep)
    app.mount("/inner", inner)
    app.mount("/other", other)
    app.mount("/none", App())
    # One that can be reached in two ways lives once.
    app.mount("/again", deep)

    @app.http("/")
    def page(request: Request) -> str:
        alive.said.append("page")
        return ""

    @app.websocket("/ws")
    async def stay(ws: WebSocket) -> None:
        try:
            await ws.wait_closed()
            await trio.sleep(0.2)
        finally:
            alive.said.append("handler")

    async with serving(app) as served:
        begun = list(alive.said)
        assert begun[:2] == ["+app", "+inner"]
        assert sorted(begun) == ["+app", "+deep", "+inner", "+other"]
        await get(served)
        async with ws(served, "/ws") as websocket:
            served.shut_down()
            await websocket.wait_closed()
    # Handlers go before what they stand on.
    expected = [f"-{name[1:]}" for name in reversed(begun)]
    assert alive.said == [*begun, "page", "handler", *expected]


async def test_a_life_that_cannot_begin() -> None:
    alive = Alive()
    app = App(lifespan=alive.named("app"))
    app.mount("/a", App(lifespan=alive.named("a", before=ZeroDivisionError("no database"))))
    app.mount("/b", App(lifespan=alive.named("b")))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="no database"):
            await app.serve("127.0.0.1", 0, tls=TLS)
    assert alive.said == ["+app", "-app"] * 2


async def test_a_life_that_does_not_end_well() -> None:
    alive = Alive()
    app = App(lifespan=alive.named("app"))
    app.mount("/a", App(lifespan=alive.named("a", after=ZeroDivisionError("no end"))))
    shutdown = trio.Event()
    shutdown.set()
    with pytest.raises(ZeroDivisionError, match="no end"):
        await app.serve("127.0.0.1", 0, tls=TLS, shutdown=shutdown)
    assert alive.said == ["+app", "+a", "-a", "-app"]


async def test_nothing_listens_before_the_lives_have_begun() -> None:
    began, go_on = trio.Event(), trio.Event()

    @asynccontextmanager
    async def slow(app: App) -> AsyncIterator[None]:
        began.set()
        await go_on.wait()
        yield

    port = free_port()
    app = App(lifespan=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: app.serve("127.0.0.1", port, tls=TLS))
        await began.wait()
        assert can_bind(port, socket.SOCK_STREAM)
        assert can_bind(port, socket.SOCK_DGRAM)
        # Cancelled, it gives up at once.
        with at_most(3):
            nursery.cancel_scope.cancel()
    go_on.set()
    async with serving(app, port=port) as served:
        assert served.port == port


async def test_a_background_task_of_a_life_that_fails_ends_the_serving() -> None:
    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def fail() -> None:
                await trio.sleep(0.2)
                raise ZeroDivisionError

            yield

    app = town()
    app._lifespan = lifespan
    with pytest.raises(ExceptionGroup) as caught, at_most(6):
        async with serving(app, shutdown_timeout=0.3) as served, ws(served, "/busy") as websocket:
            with pytest.raises(ConnectionClosed):
                await websocket.receive()
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)


async def test_an_application_with_a_life_is_served_once_at_a_time() -> None:
    alive = Alive()
    inner = App(lifespan=alive)
    inner.http("/")(lambda request: "inner")
    app = App()
    app.mount("/in", inner)
    async with serving(app) as served:
        with pytest.raises(RuntimeError, match="is being served already"):
            await app.serve("127.0.0.1", 0, tls=TLS)
        with pytest.raises(RuntimeError, match="is being served already"):
            await inner.serve("127.0.0.1", 0, tls=TLS)
        assert (await get(served, "/in/")).body == b"inner"
    assert alive.said == ["+app", "-app"]
    async with serving(inner):
        pass
    assert alive.said == ["+app", "-app"] * 2


async def test_an_application_without_a_life_may_be_served_twice() -> None:
    app = town()
    async with serving(app) as secure, serving(app, tls=None) as plain:
        assert secure.port != plain.port
        assert (await get(secure)).body == b"https 1.1"
        assert (await get(plain)).body == b"http 1.1"
        async with ws(secure, "/busy"), ws(plain, "/busy"):
            assert app.statistics().open_websockets == 2
    assert app.statistics().requests == 4
    assert app.statistics().open_websockets == 0


# ---- failures that go on to the caller


@pytest.mark.parametrize("kind", ["page 1.1", "page 3", "websocket", "webtransport"])
async def test_a_failure_ends_everything_if_it_is_to(kind: str) -> None:
    alive, app = Alive(), town()
    app._lifespan = alive

    @app.session("/fail")
    async def fail(session: WebSocket | WebTransportSession) -> None:
        raise ZeroDivisionError

    @app.http("/fail")
    def fail_page(request: Request) -> str:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught, at_most(8):
        async with serving(app, handler_errors="raise") as served, ws(served, "/busy"):
            if kind == "page 1.1":
                assert (await get(served, "/fail")).status == 500
            elif kind == "page 3":
                assert (await get3(served, "/fail")).status == 500
            elif kind == "websocket":
                async with ws(served, "/fail") as websocket:
                    await websocket.wait_closed()
            else:
                async with wt(served, "/fail") as session:
                    await session.wait_closed()
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
    assert alive.said == ["+app", "-app"]
    assert app.statistics().failed == 1


async def test_clients_that_leave_are_no_failures() -> None:
    app = App()

    @app.websocket("/")
    async def read(ws: WebSocket) -> None:
        await ws.receive()

    @app.webtransport("/")
    async def listen(session: WebTransportSession) -> None:
        await session.datagrams.receive()

    async with serving(app, handler_errors="raise") as served:
        for _ in range(2):
            async with ws(served):
                pass
            async with wt(served):
                pass
        await trio.sleep(0.1)
        assert app.statistics().failed == 0


# ---- signals


PROGRAM = textwrap.dedent(
    """
    import sys, trio
    from contextlib import asynccontextmanager
    from tests.quic_pairs import certificate
    from trio_wt import ServerTLS
    from trio_wt.app import App

    @asynccontextmanager
    async def lifespan(app):
        say("begun")
        try:
            yield
        finally:
            say("ended")

    def say(*words):
        print(*words, flush=True)

    app = App(lifespan=lifespan)

    @app.session("/{how}")
    async def handle(session, how):
        try:
            if how == "polite":
                await session.wait_closed()
            else:
                await trio.sleep_forever()
        finally:
            say("left", how, type(session).__name__)

    class Status:
        def started(self, serving):
            say(certificate().sha256.hex(), serving.port)

    async def main():
        await app.serve("127.0.0.1", 0, tls=ServerTLS(certificate()), task_status=Status(), **OPTIONS)
        say("returned")

    async def beside():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(main)
            await trio.sleep_forever()

    trio.run(main if len(sys.argv) < 2 else beside)
    """
)


class Program:
    """A server in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._unread = b""

    async def line(self) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            data = await self.process.stdout.receive_some()
            assert data, "the process has ended"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    async def rest(self) -> list[str]:
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            self._unread += data
        return self._unread.decode().split("\n")[:-1]


@asynccontextmanager
async def program(*arguments: str, **options: Any) -> AsyncIterator[tuple[Program, str, ClientTLS]]:
    code = PROGRAM.replace("**OPTIONS", f"**{options!r}")
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [sys.executable, "-c", code, *arguments],
                cwd=ROOT,
                check=False,
                stdin=subprocess.DEVNULL,
                task_status=task_status,
                deliver_cancel=_kill,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        running = Program(process)
        assert await running.line() == "begun"
        digest, port = (await running.line()).split()
        tls = ClientTLS(server_certificate_hashes=[bytes.fromhex(digest)])
        yield running, f"127.0.0.1:{port}", tls
        with trio.fail_after(5):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()
        nursery.cancel_scope.cancel()


async def _kill(process: trio.Process) -> None:
    process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it(number: signal.Signals) -> None:
    async with program(shutdown_timeout=5) as (running, authority, tls):
        async with (
            open_websocket(f"wss://{authority}/polite", ssl_context=ssl_context()) as websocket,
            open_webtransport(f"https://{authority}/polite", tls=tls) as session,
        ):
            running.process.send_signal(number)
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.receive()
            assert caught.value.code == 1001
            await session.wait_draining()
        lines = await running.rest()
        assert sorted(lines[:2]) == ["left polite WebSocket", "left polite WebTransportSession"]
        assert lines[2:] == ["ended", "returned"]
    assert running.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_after_a_signal_it_is_bounded(number: signal.Signals) -> None:
    async with program(shutdown_timeout=0.5) as (running, authority, tls):
        async with (
            open_websocket(f"wss://{authority}/busy", ssl_context=ssl_context()) as websocket,
            open_webtransport(f"https://{authority}/busy", tls=tls) as session,
        ):
            with at_most(6):
                running.process.send_signal(number)
                await websocket.wait_closed()
                await session.wait_closed()
                lines = await running.rest()
        assert sorted(lines[:2]) == ["left busy WebSocket", "left busy WebTransportSession"]
        assert lines[2:] == ["ended", "returned"]
    assert running.process.returncode == 0


@pytest.mark.parametrize("beside", [(), ("beside",)])
async def test_a_second_interrupt_is_not_waited_for(beside: tuple[str, ...]) -> None:
    async with program(*beside, shutdown_timeout=60) as (running, authority, _):
        async with open_websocket(
            f"wss://{authority}/busy", ssl_context=ssl_context()
        ) as websocket:
            running.process.send_signal(signal.SIGINT)
            await websocket.wait_closed()
            with at_most(6):
                running.process.send_signal(signal.SIGINT)
                lines = await running.rest()
        assert lines == ["left busy WebSocket", "ended"]
    assert running.process.returncode not in (0, None)


async def test_a_second_termination_acts_as_the_system_says() -> None:
    async with program(shutdown_timeout=60) as (running, authority, _):
        async with open_websocket(
            f"wss://{authority}/busy", ssl_context=ssl_context()
        ) as websocket:
            running.process.send_signal(signal.SIGTERM)
            await websocket.wait_closed()
            running.process.send_signal(signal.SIGTERM)
            assert await running.rest() == []
    assert running.process.returncode == -signal.SIGTERM


async def test_signals_may_be_left_to_others() -> None:
    async with program(signals=()) as (running, _, _):
        running.process.send_signal(signal.SIGINT)
        assert await running.rest() == ["ended"]
    assert running.process.returncode not in (0, None)


def test_another_thread_has_no_signals() -> None:
    outcome: list[object] = []

    def run() -> None:
        async def main() -> None:
            async with serving(town()) as served:
                outcome.append((await get(served)).status)

        trio.run(main)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert outcome == [200]


# ---- settings reach where they belong


async def test_settings_reach_both_kinds() -> None:
    async with serving(
        town(),
        tls=None,
        http3=TLS,
        websocket_settings=Settings(max_message_size=10),
        webtransport_settings=WebTransportSettings(max_sessions=1),
    ) as served:
        async with ws(served, "/echo") as websocket:
            await websocket.send("x" * 11)
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.receive()
            assert caught.value.code == 1009
        async with wt(served, "/echo") as session:
            async with session.connection.open_websocket("/echo") as over_http3:
                await over_http3.send("x" * 11)
                with pytest.raises(ConnectionClosed) as caught:
                    await over_http3.receive()
                assert caught.value.code == 1009
            with pytest.raises(Rejected) as rejected:
                async with session.connection.open_session("/echo"):
                    pass
            assert rejected.value.status == 429
