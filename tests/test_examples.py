"""Every program in examples/ does what it says."""

from __future__ import annotations

import importlib.util
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio
import trustme

import trio_wt
from tests.shown_code import ROOT

EXAMPLES = ROOT / "examples"


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
    named = " ".join(name for name in globals() if name.startswith("test_"))
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
