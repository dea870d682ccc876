"""The pages on WebTransport say what is so: every line of their code runs in here."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import trio
import trio.testing

import trio_wt
from tests.shown_code import ROOT, free_port, loaded
from trio_wt._cli.certificate import make_certificate
from trio_wt.testing import Network, webtransport_pair

CODE = ROOT / "docs" / "code"


def shown(name: str, **replace: str) -> AbstractContextManager[Any]:
    return loaded(CODE / f"{name}.py", replace=replace)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate that the code on the pages has a name for."""
    folder = tmp_path_factory.mktemp("certificates")
    made = make_certificate()
    (folder / "cert.pem").write_bytes(made.certificate)
    (folder / "key.pem").write_bytes(made.key)
    return folder


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test runs in that folder."""
    monkeypatch.chdir(files)
    yield files


def server_tls() -> trio_wt.ServerTLS:
    return trio_wt.ServerTLS(trio_wt.Certificate.load("cert.pem", "key.pem"))


def client_tls() -> trio_wt.ClientTLS:
    return trio_wt.ClientTLS(ca="cert.pem")


@asynccontextmanager
async def serving(handler: Any, **kwargs: Any) -> AsyncIterator[str]:
    """Serve on loopback for as long as the block lasts; yields the URL."""
    async with trio.open_nursery() as nursery:
        serve = partial(
            trio_wt.serve_webtransport, handler, 0, host="localhost", tls=server_tls(), **kwargs
        )
        sockets = await nursery.start(serve)
        yield f"https://localhost:{sockets[0].local_address[1]}"
        nursery.cancel_scope.cancel()


async def echo(session: trio_wt.WebTransportSession) -> None:
    async with trio.open_nursery() as nursery:

        async def datagrams() -> None:
            async for data in session.datagrams:
                await session.datagrams.send(data)

        nursery.start_soon(datagrams)
        async for stream in session.incoming_streams:
            async with stream:
                await stream.send_all(await stream.receive_all())


def test_all_of_it_is_tested_here() -> None:
    prefix = "test_webtransport_"
    tested = {name.removeprefix("test_") for name in globals() if name.startswith(prefix)}
    programs = {"webtransport_first_server", "webtransport_first_client"}  # test_first_programs
    assert {path.stem for path in CODE.glob("webtransport_*.py")} == tested | programs


@pytest.mark.real_clock
async def test_first_programs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"4433": str(free_port())}
    with (
        shown("webtransport_first_server", **there) as server,
        shown("webtransport_first_client", **there) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.main)
            await trio.testing.wait_all_tasks_blocked()
            await client.main()
            nursery.cancel_scope.cancel()
    assert capsys.readouterr().out == "b'hello'\n"


async def test_a_reset_stream_harms_no_other(here: Path) -> None:
    with loaded(CODE / "webtransport_first_server.py", complete=False) as code:
        async with webtransport_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(code.echo, server)
            async with client.open_stream() as kept:
                await kept.send_all(b"x")
                async with client.open_stream() as given_up:
                    await given_up.send_all(b"x")
                    await given_up.receive_some()
                    given_up.cancel_scope.cancel()
                    await trio.sleep(1)
                await trio.sleep(1)
                await kept.send_all(b"y")
                assert await kept.receive_exactly(2) == b"xy"
            nursery.cancel_scope.cancel()


# ---- streams and datagrams


async def test_webtransport_streams(capsys: pytest.CaptureFixture[str]) -> None:
    async def lines() -> AsyncIterator[str]:
        yield "all is well"
        yield "still"

    with shown("webtransport_streams") as code:
        async with webtransport_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.serve, b)
            questions = [b"or not", b"to be"]
            assert await code.ask_all(a, questions) == {b"or not": b"OR NOT", b"to be": b"TO BE"}
            await code.report(a, lines())
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert capsys.readouterr().out == "all is well\nstill\n"
        async with webtransport_pair() as (a, b), trio.open_nursery() as nursery:
            done = []

            async def receive() -> None:
                async with await b.incoming_receive_streams.receive() as stream:
                    done.append(len(await stream.receive_all()))

            nursery.start_soon(receive)
            nursery.start_soon(receive)
            await code.both_kinds(a, bytes(300_000), b"urgent")
        assert done == [6, 300_000]


async def test_webtransport_datagrams(capsys: pytest.CaptureFixture[str]) -> None:
    async def positions() -> AsyncIterator[tuple[float, float]]:
        yield 1, 2
        yield 1.5, 2

    with shown("webtransport_datagrams") as code:
        async with webtransport_pair() as (a, b):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(code.follow, b)
                await code.send_positions(a, positions())
                await trio.sleep(1)
                await a.datagrams.send(code.POSITION.pack(0, 9, 9))  # one that was overtaken
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            assert capsys.readouterr().out == "1, 2\n1.5, 2\n"
            assert await code.send_picture(a, b"small") == "by datagram"
            assert await code.send_picture(a, bytes(20_000)) == "by stream"
            await a.datagrams.send(b"newest")
            await trio.sleep(1)
            assert code.latest(b) == b"newest"
            assert code.latest(b) is None


# ---- endings


@pytest.mark.real_clock
async def test_webtransport_endings(here: Path) -> None:
    async def answer_all(session: trio_wt.WebTransportSession) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in session.incoming_streams:
                nursery.start_soon(code.answer, stream)

    async def enough(session: trio_wt.WebTransportSession) -> None:
        async with await session.incoming_receive_streams.receive() as stream:
            await stream.receive_some()
            await session.aclose(9)

    with shown("webtransport_endings", **{"move_on_after(5)": "move_on_after(0.2)"}) as code:
        async with webtransport_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, b)
            assert await code.ask(a, b"what is it?") == "42"
            assert await code.ask(a, b"") == "no answer, code 16"
            assert await code.ask_in_time(a, b"what is it?") == "42"
            nursery.cancel_scope.cancel()
        async with webtransport_pair() as (a, b):
            assert await code.ask_in_time(a, b"what is it?") is None
            await code.turn_away(b)
            assert await code.how_it_ends(a) == "their code 17: come back tomorrow"
            assert await code.how_it_ends(b) == "our code 17: come back tomorrow"
        async with webtransport_pair() as (a, b):
            await a.aclose(0, "bye")
            assert await code.how_it_ends(b) == "finished: bye"
        network = Network()
        async with webtransport_pair(network=network, idle_timeout=0.3) as (a, b):
            network.loss = 1
            assert (await code.how_it_ends(a)).startswith("lost: ")
        async with webtransport_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.work, b)
            async with a.open_stream() as stream:
                await stream.send_all(b"what")
                await trio.sleep(0.1)
                a.drain()
                await trio.sleep(0.1)
                await stream.send_all(b" is it?", eof=True)
                assert await stream.receive_all() == b"42"
        async with webtransport_pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(code.work, b)
            await trio.sleep(0.1)
            await a.aclose()
        async with serving(enough) as url:
            assert await code.watch(url, client_tls()) == "over, code 9"


async def test_a_timeout_crosses_the_wire() -> None:
    with loaded(CODE / "webtransport_endings.py", complete=False) as code:
        async with webtransport_pair() as (a, b):
            assert await code.ask_in_time(a, b"what is it?") is None
            await trio.sleep(1)
            async with await b.incoming_streams.receive() as stream:
                assert await stream.receive_all() == b"what is it?"
                with pytest.raises(trio_wt.StreamReset, match="code 1"):
                    await stream.send_all(b"42")


# ---- connections


@pytest.mark.real_clock
async def test_webtransport_connections(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def on_request(request: trio_wt.Request) -> None:
        if request.path == "/health" and not request.asks_for_session:
            request.respond(200, body="ok\n")
        elif request.path == "/rooms/private":
            request.reject(401, body="members only\n")

    with shown("webtransport_connections") as code:
        async with serving(echo, on_request=on_request, subprotocols=["chat.v1"]) as url:
            await code.two_rooms(url, client_tls())
            assert capsys.readouterr().out == "b'hello, tea'\nb'hello, milk'\n"
            async with trio_wt.open_webtransport_connection(url, tls=client_tls()) as connection:
                assert await code.is_healthy(connection)
                assert await code.join(connection, "tea", "x") == "joined tea, chat.v1"
                rejected = await code.join(connection, "private", "x")
                assert rejected == "rejected with 401: members only"
                async with connection.open_session("/rooms/tea") as session:
                    assert len(await code.shared_secret(session)) == 32
                    assert (await code.figures(session)).startswith("0 streams, 0 bytes to read; ")
                    assert await code.stay_close(session) > 0


async def test_both_ends_have_the_same_secret() -> None:
    with loaded(CODE / "webtransport_connections.py", complete=False) as code:
        async with webtransport_pair() as (a, b):
            assert await code.shared_secret(a) == await code.shared_secret(b)


# ---- servers


@pytest.mark.real_clock
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
async def test_webtransport_servers(here: Path) -> None:
    async def said(path: str, **kwargs: Any) -> str:
        async with connection.open_session(path, **kwargs) as session:
            assert session.request.path
            async with await session.incoming_receive_streams.receive() as stream:
                return (await stream.receive_all()).decode()

    known = [("Authorization", "Bearer s3cret")]
    with shown("webtransport_servers") as code:
        async with trio.open_nursery() as nursery:
            sockets = await nursery.start(code.main, 0)
            url = f"https://localhost:{sockets[0].local_address[1]}"
            async with trio_wt.open_webtransport_connection(url, tls=client_tls()) as connection:
                assert await said("/rooms/tea?name=ann", headers=known) == "ann in tea, None"
                offers = ["chat.v2", "chat.v1"]
                room = "/rooms/tea"
                heard = await said(room, headers=known, subprotocols=offers)
                assert heard == "somebody in tea, chat.v2"
                heard = await said(room, headers=known, subprotocols=["chat.v1"])
                assert heard == "somebody in tea, chat.v1"
                assert (await connection.request("GET", "/health")).status == 200
                assert (await connection.request("GET", "/")).status == 404
                for path, status, more in (
                    (room, 401, {}),
                    ("/", 404, {"headers": known}),
                    (room, 403, {"headers": known, "origin": "https://evil.example"}),
                ):
                    with pytest.raises(trio_wt.Rejected) as caught:
                        await said(path, **more)
                    assert caught.value.status == status
                ours = "https://app.example.com"
                async with connection.open_session(room, headers=known, origin=ours) as session:
                    signal.raise_signal(signal.SIGTERM)
                    await session.wait_closed()


# ---- WebSocket over HTTP/3


@pytest.mark.real_clock
async def test_webtransport_websocket(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown("webtransport_websocket") as code:
        async with trio.open_nursery() as nursery:
            certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
            port = await nursery.start(code.serve_both, 0, certificate)
            await code.talk(f"https://localhost:{port}", client_tls())
            assert capsys.readouterr().out == "hello, over HTTP/3\n"
            async with trio_wt.open_websocket(f"ws://localhost:{port}/") as ws:
                await ws.send("hello")
                assert await ws.receive() == "hello, over HTTP/1.1"
            nursery.cancel_scope.cancel()


# ---- browsers


@pytest.mark.real_clock
async def test_webtransport_page(here: Path) -> None:
    def get(path: str) -> str:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            assert response.headers["content-type"].startswith("text/html")
            text: str = response.read().decode()
            return text

    port = free_port()
    with shown("webtransport_page") as code:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(code.main, port)
            await trio.testing.wait_all_tasks_blocked()
            page = await trio.to_thread.run_sync(get, "/")
            found = re.search(r'atob\("([^"]+)"\)', page)
            with loaded(CODE / "webtransport_browser.py", complete=False) as browser:
                certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
                assert found is not None
                assert found[1] == browser.for_the_page(certificate)
            url = f"https://127.0.0.1:{port}"
            origin = f"http://127.0.0.1:{port}"
            async with trio_wt.open_webtransport(url, tls=client_tls(), origin=origin) as session:
                async with session.open_stream() as stream:
                    await stream.send_all(b"hello", eof=True)
                    assert await stream.receive_all() == b"hello"
            with pytest.raises(trio_wt.Rejected):
                async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/"):
                    pass
            nursery.cancel_scope.cancel()


def test_webtransport_browser(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = trio_wt.Certificate.load("cert.pem", "key.pem")
    both = Path("cert.pem").read_text() + Path("key.pem").read_text()
    monkeypatch.chdir(tmp_path)
    Path("certificates").mkdir()
    Path("certificates/today.pem").write_text(both)
    with shown("webtransport_browser") as code:
        assert len(code.for_the_page(certificate)) == 44
        assert code.renewed_each_day() is code.renewed_each_day()
        assert code.renewed_each_day().certificate.sha256 == certificate.sha256


# ---- testing


def test_webtransport_testing() -> None:
    with shown("webtransport_testing") as code:
        tests = [name for name in vars(code) if name.startswith("test_")]
        assert len(tests) == 4
        for name in tests:
            vars(code)[name]()
