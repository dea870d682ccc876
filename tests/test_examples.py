"""Every program in examples/ does what it says."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio
import trustme

import trio_wt
from tests import test_examples_app
from tests.shown_code import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def examples_find_each_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when they run as programs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("quic_common", None)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def running(main: Any, *args: Any) -> AsyncIterator[int]:
    """Run a server's main on a free port for as long as the block lasts; yields the port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(main, *args, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def test_all_of_them_are_tested_and_documented() -> None:
    names = [*globals(), *vars(test_examples_app)]
    named = " ".join(name for name in names if name.startswith("test_"))
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in named, f"{path.name} has no test"
        assert path.name in (ROOT / "README.md").read_text(), f"{path.name} is not in the README"


@pytest.mark.real_clock
async def test_echo_server_and_echo_client(capsys: pytest.CaptureFixture[str]) -> None:
    async with running(example("echo_server").main) as port:
        await example("echo_client").main(f"ws://127.0.0.1:{port}/")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["'hello'", r"b'\x00\x01\x02'", "'goodbye'"]
    assert lines[3].startswith("a ping takes ")


@pytest.mark.real_clock
async def test_chat() -> None:
    async with running(example("chat").main) as port:
        url = f"ws://127.0.0.1:{port}/rooms"
        async with (
            trio_wt.open_websocket(f"{url}/tea?name=ann") as ann,
            trio_wt.open_websocket(f"{url}/milk?name=cid") as cid,
        ):
            assert await ann.receive() == "* ann has come"
            assert await cid.receive() == "* cid has come"
            async with trio_wt.open_websocket(f"{url}/tea?name=bob") as bob:
                assert await ann.receive() == await bob.receive() == "* bob has come"
                await bob.send("hello")
                assert await ann.receive() == "bob: hello"
            assert await ann.receive() == "* bob has gone"
            with pytest.raises(trio.WouldBlock):
                cid.receive_nowait()
        with pytest.raises(trio_wt.Rejected) as refused:
            async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/"):
                pass
        assert refused.value.status == 404
        assert b"/rooms/NAME" in refused.value.body


@pytest.mark.real_clock
async def test_request_reply(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("request_reply")
    await module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert "0 + 1 + 2 + 3 = 6" in lines


@pytest.mark.real_clock
async def test_request_reply_when_the_server_leaves() -> None:
    async def leave(ws: trio_wt.WebSocket) -> None:
        await ws.receive()

    def serve(port: int, task_status: Any) -> Any:
        return trio_wt.serve_websocket(leave, port, host="127.0.0.1", task_status=task_status)

    module = example("request_reply")
    async with running(serve) as port, module.open_client(f"ws://127.0.0.1:{port}/") as client:
        with pytest.raises(trio.EndOfChannel):
            await client.ask([1, 2])
        with pytest.raises(trio_wt.ConnectionClosedError):
            await client.ask([1, 2])


@pytest.mark.real_clock
async def test_streaming_upload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("streaming_upload")
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 20_000)
    await module.main(str(large))
    shown = capsys.readouterr().out.replace("\r", "\n").splitlines()
    assert "5,120,000 of 5,120,000 bytes" in shown
    assert shown[-1] == "the checksums are the same"
    async with running(module.serve) as port:
        async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/") as ws:
            await ws.send("text")
            with pytest.raises(trio_wt.ConnectionClosedError) as refused:
                await ws.receive()
            assert refused.value.code == 1003


@pytest.mark.real_clock
async def test_reconnecting_feed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    await example("reconnecting_feed").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.isdigit()] == [str(n) for n in range(10)]
    assert lines.count("-- the peer closed the connection with code 1012: restarting") == 2


@pytest.mark.real_clock
async def test_health_check() -> None:
    def get(path: str) -> tuple[int, str, bytes]:
        try:
            response = urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
        except HTTPError as exc:
            response = exc
        with response:
            return response.status, response.headers["content-type"], response.read()

    async with running(example("health_check").main) as port:
        status, _, body = await trio.to_thread.run_sync(get, "/health")
        assert (status, body) == (200, b"ok\n")
        async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/chat") as ws:
            await ws.send("x")
            assert await ws.receive() == "x"
            _, kind, body = await trio.to_thread.run_sync(get, "/figures")
            assert (kind, json.loads(body)) == ("application/json", {"connections": 1})
        status, _, _ = await trio.to_thread.run_sync(get, "/nowhere")
        assert status == 404


@pytest.mark.real_clock
async def test_tls_server(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with running(example("tls_server").main, certificate, key) as port:
        url = f"wss://localhost:{port}/"
        async with trio_wt.open_websocket(url, ssl_context=context) as ws:
            await ws.send("x")
            assert await ws.receive() == "x"
        with pytest.raises(trio_wt.HandshakeFailed, match="certificate verify failed"):
            async with trio_wt.open_websocket(url):
                pass


@pytest.mark.real_clock
async def test_several_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    await example("several_tasks").main(seconds=0.3)
    shown = capsys.readouterr().out
    assert "it is " in shown
    assert "tell_time" in shown
    assert "trio_wt reader" in shown


# ---- QUIC: each with both ends, then with its command line, and with what people get wrong


async def program(name: str, *arguments: str) -> tuple[int, str, str]:
    """Run an example as a program: its exit code, and what it writes to stdout and stderr."""
    done = await trio.run_process(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@asynccontextmanager
async def serving(name: str, *args: Any) -> AsyncIterator[tuple[ModuleType, int, Any]]:
    """Run an example's server on a free port; yields the example, the port and what its clients need."""
    module = example(name)
    server, client = module.own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(partial(module.serve, server, *args))
        yield module, sockets[0].local_address[1], client
        nursery.cancel_scope.cancel()


@pytest.mark.real_clock
async def test_quic_echo(capsys: pytest.CaptureFixture[str]) -> None:
    await example("quic_echo").demo()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:2]) == ["goodbye", "hello"]
    assert lines[2] == "a datagram"
    assert lines[3].startswith("there and back in ")
    async with serving("quic_echo") as (_, port, client):
        digest = client.server_certificate_hashes[0].hex()
        target = ("connect", "127.0.0.1", str(port), "--hash", digest)
        code, out, _ = await program("quic_echo", *target, "--text", "from another process")
        assert code == 0
        assert out.startswith("from another process\n")
        code, _, err = await program("quic_echo", "connect", "localhost", str(port))
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("the certificate is not trusted: it is self-signed")


@pytest.mark.real_clock
async def test_quic_file_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await example("quic_file_transfer").demo()
    assert capsys.readouterr().out.endswith("the files are the same\n")
    there = tmp_path / "there"
    there.mkdir()
    sizes = {"one": 1_000_000, "none": 0, "large": 2_000_000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    serve = serving("quic_file_transfer", trio.Path(there), 1_500_000)
    async with serve as (module, port, client):
        send = partial(module.send, "127.0.0.1", port, client)
        with pytest.raises(module.Failed) as failed:
            await send([str(tmp_path / name) for name in (*sizes, "missing")])
        assert sorted(str(failed.value).splitlines()) == [
            f"{tmp_path / 'large'}: the file is larger than the server allows",
            f"{tmp_path / 'missing'}: No such file or directory",
        ]
        with pytest.raises(module.Failed, match="one: the server has a file of this name"):
            await send([str(tmp_path / "one")])
        assert {path.name: path.stat().st_size for path in there.iterdir()} == {
            "one": 1_000_000,
            "none": 0,
        }
        async with trio_wt.open_quic(
            "127.0.0.1", port, alpn=[module.ALPN], tls=client
        ) as connection:
            for content, code in {
                b"junk\n": module.BAD_REQUEST,
                b"[" * 4000 + b"\n": module.BAD_REQUEST,
                b'{"name": "../up", "size": 1}\n': module.BAD_NAME,
                b'{"name": "x", "size": 9}\nshort': module.INCOMPLETE,
                b'{"name": "x", "size": 1}\ny' + bytes(32): module.DAMAGED,
            }.items():
                async with connection.open_stream() as stream:
                    await stream.send_all(content, eof=True)
                    with pytest.raises(trio_wt.StreamReset) as refused:
                        await stream.receive_all()
                    assert refused.value.code == code
            async with connection.open_stream() as stream:
                await stream.send_all(b'{"name": "given-up", "size": 9}\n')
                await trio.sleep(0.05)
                stream.cancel_scope.cancel()
                await trio.sleep_forever()
            await trio.sleep(0.05)
        assert len(list(there.iterdir())) == 2
    code, _, err = await program("quic_file_transfer", "serve", str(tmp_path / "nowhere"))
    assert (code, err) == (1, f"{tmp_path / 'nowhere'}: there is no such directory\n")


@pytest.mark.real_clock
async def test_quic_datagram_ticker(capsys: pytest.CaptureFixture[str]) -> None:
    await example("quic_datagram_ticker").demo(count=20, interval=0.01)
    *ticks, summary, _ = capsys.readouterr().out.splitlines()
    assert summary.startswith(f"{len(ticks)} of 20 ticks came, {20 - len(ticks)} got lost, ")
    async with serving("quic_datagram_ticker", 0.01) as (module, port, client):
        await module.connect("127.0.0.1", port, client, 5)
    assert "tick 4, " in capsys.readouterr().out


@pytest.mark.real_clock
async def test_quic_early_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await example("quic_early_data").demo(round_trip=0.05)
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != "-"]
    assert [line.partition(",")[0] for line in lines] == [
        "get visits: 0",
        "add visits: 1",
        "   there was a whole handshake",
        "get visits: 1",
        "add visits: 2",
        "   the server took early data",
        "get visits: 2",
        "add visits: 3",
        "   the server took early data",
    ]
    early = [line for line in lines if line.endswith(", asked during the handshake")]
    assert [line[:5] for line in early] == ["get v", "get v"]
    async with serving("quic_early_data") as (_, port, client):
        digest = client.server_certificate_hashes[0].hex()
        target = ("connect", "127.0.0.1", str(port), "--hash", digest)
        remember = ("--sessions", str(tmp_path / "sessions"), "--request", "get x")
        _, out, _ = await program("quic_early_data", *target, *remember)
        assert out.endswith("there was a whole handshake\n")
        _, out, _ = await program("quic_early_data", *target, *remember)
        assert out.endswith("the server took early data\n")
        code, _, err = await program("quic_early_data", *target, "--request", "steal x")
        assert (code, err) == (1, "the server does not understand 'steal x'\n")


@pytest.mark.real_clock
async def test_quic_migration(capsys: pytest.CaptureFixture[str]) -> None:
    assert await example("quic_migration").demo(seconds=0.6, pause=0.15)
    lines = capsys.readouterr().out.splitlines()
    moved = [line.removeprefix("client: moved to ") for line in lines if " moved to " in line]
    seen = [line[len("server: the client is at ") : -4] for line in lines if line[-4:] == " now"]
    assert seen
    assert set(seen) <= set(moved)
    assert any(line.endswith(" bytes, undamaged") for line in lines)


def test_quic_common(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What people get wrong is one line, and never a traceback."""
    main = example("quic_echo").main

    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        if left.value.code == 2:
            return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]
        return str(left.value.code)

    missing = str(tmp_path / "missing")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    target = ("connect", "127.0.0.1", "1")
    assert "host, port" in told("connect")
    assert told("connect", "h", "70000") == "argument port: a port is from 0 to 65535"
    assert (
        told(*target, "--hash", "00")
        == "--hash or --ca: a certificate's hash must be 32 bytes, and is 1"
    )
    assert told(*target, "--ca", missing) == f"{missing}: No such file or directory"
    assert told("serve", "--key", missing) == "--key needs --cert"
    assert told("serve", "--cert", missing) == f"{missing}: No such file or directory"
    assert (
        told("serve", "--cert", str(junk))
        == f"{junk}: there is no certificate in it; it is not PEM"
    )
    assert told("serve", "--host", "192.0.2.1", "--port", "0") == "Cannot assign requested address"


# ---- WebTransport


@pytest.mark.real_clock
async def test_webtransport_echo(capsys: pytest.CaptureFixture[str]) -> None:
    await example("webtransport_echo").demo()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:2]) == ["goodbye", "hello"]
    assert lines[2:4] == ["one way and back", "a datagram"]
    assert lines[4].startswith("there and back in ")
    async with serving("webtransport_echo") as (module, port, client):
        digest = client.server_certificate_hashes[0].hex()
        target = ("connect", "127.0.0.1", str(port), "--hash", digest)
        code, out, _ = await program("webtransport_echo", *target, "--text", "from elsewhere")
        assert code == 0
        assert out.startswith("from elsewhere\n")
        url = f"https://127.0.0.1:{port}/"
        async with trio_wt.open_webtransport(
            url, tls=client, origin="https://a.example"
        ) as session:
            for size in (2**16 + 1, 5):
                async with session.open_send_stream() as stream:
                    await stream.send_all(bytes(size))
            async with await session.incoming_receive_streams.receive() as refused:
                with pytest.raises(trio_wt.StreamReset):
                    await refused.receive_all()
            async with await session.incoming_receive_streams.receive() as back:
                assert await back.receive_all() == bytes(5)
            async with session.open_stream() as given_up:
                await given_up.send_all(b"x")
                await given_up.receive_some()
                given_up.cancel_scope.cancel()
                await trio.sleep_forever()
            await module.talk(url, client, ["still there"])
    assert "still there" in capsys.readouterr().out


@pytest.mark.real_clock
async def test_webtransport_pooled_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    await example("webtransport_pooled_sessions").demo()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:2]) == [
        "/count/10: complete; the last number was 9",
        "/count/20: complete; the last number was 19",
    ]
    assert lines[2].startswith("/count/1000000: given up; the last number was ")
    assert lines[3].startswith("/count/everything: 404, the path ends in ")
    assert lines[4].startswith("0 sessions left, ")
    async with serving("webtransport_pooled_sessions") as (_, port, client):
        url = f"https://127.0.0.1:{port}/"
        async with trio_wt.open_webtransport_connection(url, tls=client) as connection:
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(connection.open_session("/count/1"))
                with pytest.raises(trio_wt.Rejected, match="429"):
                    await stack.enter_async_context(connection.open_session("/count/1"))


@pytest.mark.real_clock
async def test_websocket_over_http3(capsys: pytest.CaptureFixture[str]) -> None:
    await example("websocket_over_http3").demo()
    assert capsys.readouterr().out.splitlines() == [
        "hello! (over HTTP/1.1)",
        "hello! (over HTTP/3)",
        "hello from the other one! (over HTTP/3)",
        "GET /health: 200, ok",
    ]


@pytest.mark.real_clock
async def test_webtransport_chat_page(capsys: pytest.CaptureFixture[str]) -> None:
    def get(url: str) -> tuple[int, str]:
        try:
            with urlopen(url, timeout=10) as response:
                return response.status, response.read().decode()
        except HTTPError as exc:
            with exc:
                return exc.status, exc.read().decode()

    async with running(example("webtransport_chat_page").main) as port:
        here = f"http://127.0.0.1:{port}/"
        assert capsys.readouterr().out.startswith(f"open {here}?name=ann in a browser")
        status, page = await trio.to_thread.run_sync(get, here)
        assert status == 200
        found = re.search(r'atob\("([^"]+)"\)', page)
        assert found is not None
        tls = trio_wt.ClientTLS(server_certificate_hashes=[base64.b64decode(found[1])])
        assert (await trio.to_thread.run_sync(get, f"{here}nowhere"))[0] == 404
        chat = f"https://127.0.0.1:{port}/chat"
        origin = here.rstrip("/")
        async with (
            trio_wt.open_webtransport(f"{chat}?name=ann", tls=tls, origin=origin) as ann,
            trio_wt.open_webtransport(f"{chat}?name=", tls=tls, origin=origin) as nobody,
            ann.open_stream() as ann_stream,
        ):
            await ann_stream.send_all(b"\nis anybody there?\n")
            assert await ann_stream.receive_until(b"\n") == b"* ann has come\n"
            assert await ann_stream.receive_until(b"\n") == b"ann: is anybody there?\n"
            async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/chat?name=bob") as bob:
                assert await bob.receive() == "* bob has come"
                await bob.send("me, by WebSocket")
                assert await ann_stream.receive_until(b"\n") == b"* bob has come\n"
                assert await ann_stream.receive_until(b"\n") == b"bob: me, by WebSocket\n"
            assert await ann_stream.receive_until(b"\n") == b"* bob has gone\n"
            async with nobody.open_stream() as stream:
                await stream.send_all(b"x\n")
                assert await stream.receive_until(b"\n") == b"* somebody has come\n"
                await ann.datagrams.send(b"")
                assert await nobody.datagrams.receive() == b"ann"
        with pytest.raises(trio_wt.Rejected, match="404"):
            async with trio_wt.open_webtransport(f"https://127.0.0.1:{port}/", tls=tls):
                pass
        with pytest.raises(trio_wt.Rejected, match="403"):
            async with trio_wt.open_webtransport(chat, tls=tls, origin="https://evil.example"):
                pass
        async with trio_wt.open_webtransport_connection(chat, tls=tls) as connection:
            assert (await connection.request("GET", "/")).body.decode() == page
