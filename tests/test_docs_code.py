"""The code that the docs show, page by page: every line of docs/code runs in here."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trio_wt
from tests.shown_code import ROOT, free_port, loaded
from trio_wt.testing import websocket_pair

CODE = ROOT / "docs" / "code"


def shown(name: str, **replace: str) -> AbstractContextManager[Any]:
    return loaded(CODE / f"{name}.py", replace=replace)


@pytest.fixture
def port() -> Iterator[int]:
    yield free_port()


async def start(nursery: trio.Nursery, handler: Any, **kwargs: Any) -> int:
    """Serve on loopback; the port."""
    serve = partial(trio_wt.serve_websocket, handler, 0, host="127.0.0.1", **kwargs)
    listeners = await nursery.start(serve)
    port: int = listeners[0].socket.getsockname()[1]
    return port


def test_all_of_it_is_tested_here() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    programs = {"first_server", "first_client"}  # both in test_first_programs
    # in test_docs_quic.py, test_docs_webtransport.py and test_docs_app*.py
    elsewhere = {
        path.stem for kind in ("app", "quic", "webtransport") for path in CODE.glob(f"{kind}_*.py")
    }
    assert {path.stem for path in CODE.glob("*.py")} - tested - programs - elsewhere == {"chat_app"}


# ---- the first programs


@pytest.mark.real_clock
async def test_first_programs(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"8765": str(port)}
    with shown("first_server", **there) as server, shown("first_client", **there) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.main)
            await trio.testing.wait_all_tasks_blocked()
            await client.main()
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == "hello\n"


@pytest.mark.real_clock
async def test_first_both(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("first_both") as both:
        await both.main()
    assert capsys.readouterr().out == "hello\n"


def test_they_run_as_programs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(CODE / "first_both.py"), run_name="__main__")
    assert capsys.readouterr().out == "hello\n"


# ---- requests


@pytest.mark.real_clock
async def test_requests(port: int) -> None:
    def front(request: trio_wt.Request) -> Any:
        if request.path.startswith("/token"):
            return code.check_token(request)
        if request.path.startswith("/chat"):
            code.insist_on_chat(request)
        elif request.path.startswith("/cookie"):
            code.set_cookie(request)
        else:
            code.front_desk(request)
        return None

    with shown("requests") as code:
        async with trio.open_nursery() as nursery:
            there = await start(nursery, code.room, on_request=front)
            url = f"ws://127.0.0.1:{there}"
            said = await code.visit(f"{url}/rooms/tea?limit=3")
            assert said == f"room tea, limit 3, for trio-wt/{trio_wt.__version__}"
            assert await code.visit(f"{url}/health") == "rejected with 200: ok\n"
            assert await code.visit(f"{url}/x") == "rejected with 404: there is nothing here\n"
            assert await code.visit(f"{url}/token") == "rejected with 401: "
            assert (
                await code.visit(f"{url}/chat") == "rejected with 400: this server speaks chat.v2\n"
            )
            async with trio_wt.open_websocket(f"{url}/chat", subprotocols=["chat.v2"]):
                pass
            bearer = [("Authorization", "Bearer s3cret")]
            async with trio_wt.open_websocket(f"{url}/token", headers=bearer):
                pass
            async with trio_wt.open_websocket(f"{url}/cookie") as ws:
                assert ws.response_headers["set-cookie"].startswith("seen=1")
            nowhere = await code.visit(f"ws://127.0.0.1:{port}/")
            assert nowhere.startswith("failed: cannot connect to 127.0.0.1:")
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(code.serve_our_pages, port)
            await trio.testing.wait_all_tasks_blocked()
            for origin, status in (
                ("https://example.com", None),
                ("https://app.example.com", None),
                ("https://example.com.evil.test", 403),
            ):
                try:
                    async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/", origin=origin):
                        assert status is None
                except trio_wt.Rejected as exc:
                    assert exc.status == status
            nursery.cancel_scope.cancel()


# ---- messages


async def test_messages(capsys: pytest.CaptureFixture[str]) -> None:
    async def rows() -> AsyncIterator[str]:
        yield "ann,31"
        yield "bob,27"

    with shown("messages") as code:
        async with websocket_pair() as (a, b):
            await code.kinds(a, bytearray(b"buffer"))
            await trio.testing.wait_all_tasks_blocked()
            assert await b.receive_many() == [
                "text",
                b"binary",
                b"buff",
                '{"already": "UTF-8"}',
            ]
            await code.send_rows(a, ["one", "two"])
            assert await b.receive() == "one\ntwo\n"
            await code.send_as_it_comes(a, rows())
            assert await b.receive() == "name,age\nann,31\nbob,27\n"
            await a.send([b"ab", b"c"])
            assert (await code.checksum(b)).startswith("ba7816bf8f01cfea")
            await a.send(b"header and a lot more")
            await code.read_header(b)
            assert code.poll(b) is None
            await a.send("now")
            await trio.testing.wait_all_tasks_blocked()
            assert code.poll(b) == "now"
            await a.send_many(["1", "2", "3"])
            await trio.testing.wait_all_tasks_blocked()
            assert await code.newest(b) == "3"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(code.echo_in_batches, b)
                await a.send_many(["x", "y"])
                assert [await a.receive(), await a.receive()] == ["x", "y"]
                await a.send_close()
        async with websocket_pair() as (a, b):
            await a.send_many(["a", b"bc"])
            await a.send_close()
            await code.listen(b)
    assert capsys.readouterr().out == "text: a\nbinary: 2 bytes\n"


# ---- endings


async def test_endings() -> None:
    with shown("endings") as code:
        async with websocket_pair() as (a, b):
            assert await code.ask(a, "who?") is None
            assert await b.receive() == "who?"
            await b.send("I")
            assert await code.ask(a, "and who else?") == "I"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(code.refuse, b)
                assert await code.report(a) == (
                    "broken: the peer closed the connection with code 4001: this account is closed"
                )
        async with websocket_pair() as (a, b), trio.open_nursery() as nursery:

            async def answer() -> None:
                await b.receive()
                await b.send_many(["one more thing", "and another"])

            nursery.start_soon(answer)
            assert await code.last_words(a) == ["one more thing", "and another"]
            assert await code.report(b) == "finished: the peer closed the connection with code 1000"


@pytest.mark.real_clock
async def test_gone() -> None:
    async def enough(ws: trio_wt.WebSocket) -> None:
        assert await ws.receive() == "21.5 C"
        await ws.close(1001, "enough")

    with shown("gone") as code:
        async with trio.open_nursery() as nursery:
            port = await start(nursery, enough)
            assert await code.measure(f"ws://127.0.0.1:{port}/") == 1001
            nursery.cancel_scope.cancel()


async def test_groups() -> None:
    with shown("groups") as code:
        async with websocket_pair() as (a, b), trio.open_nursery() as nursery:
            await a.send("x")
            nursery.start_soon(a.send_close, 1001, "bye")
            assert await code.both_ways(b) == "the peer closed the connection with code 1001: bye"


# ---- tasks


async def test_tasks() -> None:
    with shown("tasks") as code:
        async with websocket_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.session, b)
            assert await a.receive() == "tick"
            await a.send("x")
            assert await a.receive() == "you said x"
            assert await a.receive() == "tick"
            await a.send_close()
        urgent = trio.Event()
        async with websocket_pair() as (a, b):
            await a.send("x")
            assert await code.either(b, urgent) == "x"
            urgent.set()
            assert await code.either(b, urgent) is None


def test_tree(capsys: pytest.CaptureFixture[str]) -> None:
    """The tree that the page on tasks shows is the one that there is."""
    with shown("tree"):
        runpy.run_path(str(CODE / "tree.py"), run_name="__main__")
    assert capsys.readouterr().out == (CODE / "tree.txt").read_text()


# ---- flow


async def test_flow(capsys: pytest.CaptureFixture[str]) -> None:
    async def frames(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(50_000)

    with shown("flow") as code:
        async with websocket_pair() as (a, b):
            await code.measure(a)
            await b.send("x")
            await trio.testing.wait_all_tasks_blocked()
            assert code.load(a) == "1 messages to read, 0 bytes to send"
            assert await code.stream_frames(a, frames(200)) > 0
        assert capsys.readouterr().out == "there and back in 0.0 ms\n"
        here, there = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet_and_close, there)
            await code.patient(here)


async def greet_and_close(stream: trio.abc.Stream) -> None:
    async with trio_wt.wrap_server_stream(stream) as ws:
        await ws.send("welcome")


# ---- many


async def test_many() -> None:
    with shown("many") as code:
        feed = code.Feed()
        async with websocket_pair() as (a, b), websocket_pair() as (c, d):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed.subscribe, b)
                nursery.start_soon(feed.subscribe, d)
                await trio.testing.wait_all_tasks_blocked()
                assert await feed.publish("news") == 2
                assert [await a.receive(), await c.receive()] == ["news", "news"]
                await a.close()
                await c.close()
            assert not feed.subscribers


# ---- again


@pytest.mark.real_clock
async def test_again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Pauses are random below a bound: without them the test takes no time.
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    visits = 0

    async def serve(ws: trio_wt.WebSocket) -> None:
        nonlocal visits
        visits += 1
        if ws.request.path == "/from":
            assert await ws.receive() == f"from {visits - 1}"
            await ws.send("x")
            if visits < 3:
                await ws.close(1011, "oh")
        else:
            await ws.send(f"visit {visits}")
            if visits == 2:
                await ws.close(4000)

    def late(request: trio_wt.Request) -> None:
        nonlocal visits
        if request.path == "/late" and (visits := visits + 1) < 3:
            request.reject(404 if visits == 1 else 503)

    with shown("again") as code:
        async with trio.open_nursery() as nursery:
            port = await start(nursery, serve, on_request=late)
            url = f"ws://127.0.0.1:{port}"
            with pytest.raises(trio_wt.ConnectionClosedError):
                await code.follow(url)
            assert capsys.readouterr().out == "visit 1\nvisit 2\n"
            visits = 0
            await code.follow_from(f"{url}/from")
            assert capsys.readouterr().out.count("code 1011: oh; again in 0.0 s") == 2
            visits = 0
            await code.first_word(f"{url}/late")
            assert capsys.readouterr().out == "visit 4\n"
            nursery.cancel_scope.cancel()


# ---- network


async def tunnel(stream: trio.SocketStream) -> None:
    """As little of an HTTP proxy as can be."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    host, port = head.split()[1].decode().rsplit(":", 1)
    async with await trio.open_tcp_stream(host, int(port)) as onward:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

        async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
            async for data in source:
                await target.send_all(data)
            await target.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, onward)
            nursery.start_soon(copy, onward, stream)


@pytest.mark.real_clock
async def test_network(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = authority.issue_cert("localhost")
    certificate, key, trusted = (str(tmp_path / n) for n in ("cert.pem", "key.pem", "ca.pem"))
    files.cert_chain_pems[0].write_to_path(certificate)
    files.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)

    async def who(ws: trio_wt.WebSocket) -> None:
        await ws.send(f"{ws.request.headers['authorization']} {ws.request.headers['cookie']}")

    with shown("network") as code:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(code.serve_tls, 0, certificate, key)
            port = listeners[0].socket.getsockname()[1]
            assert await code.visit_tls(port, trusted) == "in private"
            plain = await start(nursery, code.echo)
            proxies = await nursery.start(trio.serve_tcp, tunnel, 0)
            proxy = f"http://127.0.0.1:{proxies[0].socket.getsockname()[1]}"
            url = f"ws://127.0.0.1:{plain}/"
            assert await code.through_proxy(url, proxy) == "from behind"
            stream = await trio.open_tcp_stream("127.0.0.1", plain)
            assert await code.over_a_stream(stream) == "status"
            members = await start(nursery, who)
            said = await code.log_in(f"ws://127.0.0.1:{members}/")
            assert said == "Basic YW5uOnMzY3JldA== theme=dark"
            await code.serve_unix(str(tmp_path / "app.sock"))
            nursery.cancel_scope.cancel()


# ---- extensions


async def test_extensions() -> None:
    with shown("extensions") as code:
        checksum = code.Checksum()
        small = code.small_memory()
        async with websocket_pair(compression=small, extensions=[checksum]) as (a, b):
            assert list(a.extensions) == ["permessage-deflate", "x-crc32"]
            await code.compress_some(a, bytes(1000), "x" * 1000)
            await trio.testing.wait_all_tasks_blocked()
            assert 1000 < a.statistics().bytes_sent < 1200
            assert await b.receive_many() == [bytes(1000), "x" * 1000]
            await b.send(["to", "get", "her"])
            assert await a.receive() == "together"
        assert checksum.accept([("unknown", None)]) is None
        with pytest.raises(trio_wt.ExtensionError, match="no parameters"):
            checksum.confirm([("unknown", None)])
        damaged = code.ChecksumCodec()
        with pytest.raises(trio_wt.ExtensionError, match="damaged"):
            damaged.decode(b"abcd1234", final=True, max_length=None)


# ---- testing


def test_testing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CODE))
    monkeypatch.delitem(sys.modules, "chat_app", raising=False)
    with shown("testing") as code:
        tests = [name for name in vars(code) if name.startswith("test_")]
        assert len(tests) == 4
        for name in tests:
            vars(code)[name]()
    monkeypatch.delitem(sys.modules, "chat_app")


# ---- shutdown


@pytest.mark.real_clock
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
async def test_shutdown() -> None:
    with shown("shutdown") as code:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(code.main, 0)
            port = listeners[0].socket.getsockname()[1]
            async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/") as ws:
                await ws.send("x")
                assert await ws.receive() == "x"
                signal.raise_signal(signal.SIGTERM)
                with pytest.raises(trio_wt.ConnectionClosedOK) as ended:
                    await ws.receive()
                assert ended.value.code == 1001
