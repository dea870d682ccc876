"""`trio-wt serve`: echoes, TLS, and an end that says goodbye."""

from __future__ import annotations

import hashlib
import http.client
import signal
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import trio

import trio_wt
from trio_wt.cli import main

from .cli_tools import Process, fails, one_line, run


class Serve(Process):
    """A server, once it listens."""

    def __init__(self, *arguments: str) -> None:
        port = () if "--unix" in arguments else ("--port", "0")
        super().__init__("serve", *port, *arguments)
        self.url = self.line().removeprefix("listening on ")

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


def echoes(*arguments: str) -> str:
    """Connect, see a line come back, and leave; what was said on standard error."""
    with Process("connect", "--linger=0", *arguments) as client:
        client.write(b"hello\n")
        assert client.line() == "hello"
        client.end_input()
        assert client.wait() == 0
        return client.errors()


async def closed_by(websocket: trio_wt.WebSocket) -> trio_wt.ConnectionClosed:
    """How it ends, whatever is received until then."""
    with pytest.raises(trio_wt.ConnectionClosed) as caught:
        while True:
            await websocket.receive()
    return caught.value


@pytest.mark.real_clock
async def test_it_echoes_and_stops_with_its_clients() -> None:
    with Serve() as server:
        assert server.url == f"ws://127.0.0.1:{server.port}/"
        async with trio_wt.open_websocket(server.url, proxy=None) as websocket:
            assert list(websocket.extensions) == ["permessage-deflate"]
            for message in ("text", b"\x00\xff", "", "x" * 2**20):
                await websocket.send(message)
                assert await websocket.receive() == message
            server.signal(signal.SIGINT)
            assert (await closed_by(websocket)).code == 1001
        assert await trio.to_thread.run_sync(server.wait) == 0
        assert server.errors() == ""


@pytest.mark.real_clock
async def test_busy_connections_are_told_that_the_server_stops() -> None:
    ends: list[trio_wt.ConnectionClosed] = []

    async def client(url: str, message: str | bytes, busy: trio.Event) -> None:
        async with trio_wt.open_websocket(url, proxy=None) as websocket:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    try:
                        while True:
                            await websocket.send(message)
                            if websocket.statistics().messages_received > 3:
                                busy.set()
                    except (trio_wt.ConnectionClosed, trio.ClosedResourceError):
                        return

                nursery.start_soon(send)
                ends.append(await closed_by(websocket))

    with Serve() as server:
        async with trio.open_nursery() as nursery:
            events = [trio.Event() for _ in range(4)]
            messages: list[str | bytes] = ["small", b"x" * 100_000] * 2
            for event, message in zip(events, messages, strict=True):
                nursery.start_soon(client, server.url, message, event)
            for event in events:
                await event.wait()
            begin = trio.current_time()
            server.signal(signal.SIGTERM)
        assert [end.code for end in ends] == [1001] * 4
        assert await trio.to_thread.run_sync(server.wait) == 0
        assert trio.current_time() - begin < 9
        assert server.errors() == ""


def upgrade(port: int) -> socket.socket:
    """A connection that is open, and from now on silent."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(65536)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def test_a_peer_that_never_answers_does_not_hold_it() -> None:
    with Serve("--grace", "0.4") as server, closing(upgrade(server.port)) as sock:
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert sock.recv(4)[2:] == (1001).to_bytes(2)
        assert server.wait() == 0
        assert 0.4 <= time.monotonic() - begin < 4  # and not the usual five for a closing handshake
        assert server.errors() == ""


def test_a_second_signal_ends_it_at_once() -> None:
    with Serve("--grace", "60") as server, closing(upgrade(server.port)) as sock:
        server.signal(signal.SIGTERM)
        assert sock.recv(4)[2:] == (1001).to_bytes(2)
        server.signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
        assert server.errors() == ""


def test_it_answers_health_checks() -> None:
    with Serve() as server:
        for method, path, status, body in [
            ("GET", "/health", 200, b"ok\n"),
            ("HEAD", "/health", 200, b""),
            ("GET", "/health?verbose", 200, b"ok\n"),
            ("GET", "/nowhere", 404, b"there is nothing here\n"),
            ("GET", "/", 200, None),
            ("GET", "/echo", 426, b"this is for WebSockets\n"),
        ]:
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as http_:
                http_.request(method, path)
                response = http_.getresponse()
                assert response.status == status
                assert body is None or response.read() == body
        for path in ("", "echo"):
            assert echoes(f"{server.url}{path}") == ""
        assert "status 404" in one_line(run("connect", f"{server.url}nowhere").stderr)


def test_a_certificate_and_a_client_that_trusts_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["cert", "--out", str(tmp_path)])
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    with Serve("--certfile", certificate, "--keyfile", key) as server:
        assert server.url == f"wss://127.0.0.1:{server.port}/"
        assert echoes("--cafile", certificate, server.url) == ""
        assert echoes("--cafile", certificate, server.url.replace("127.0.0.1", "localhost")) == ""
        done = run("connect", server.url, data=b"never sent\n")
        assert (done.returncode, done.stdout) == (1, b"")
        message = one_line(done.stderr)
        assert "CERTIFICATE_VERIFY_FAILED" in message
        assert "--cafile" in message
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.errors() == ""


def test_a_certificate_for_this_run() -> None:
    with Serve("--self-signed") as server:
        assert server.line().endswith(" (WebTransport)")
        told = server.line().removeprefix("certificate's SHA-256: ")
        server.line()
        der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", server.port)))
        assert told == hashlib.sha256(der).digest().hex(":").upper()
        said = echoes("--insecure", server.url)
        assert said.startswith("WARNING: --insecure: ")
        assert said.count("\n") == 1
        server.signal(signal.SIGINT)
        assert server.wait() == 0


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with Serve("--unix", str(path)) as server:
        assert server.url == f"ws+unix://{quote(str(path), safe='')}/"
        assert echoes(server.url) == ""
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.makefile("rb").read().endswith(b"\r\n\r\nok\n")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert not path.exists()


@pytest.mark.real_clock
async def test_settings_and_origins() -> None:
    with Serve(
        "--no-compression", "--max-size", "100", "--allow-origin", "https://a.example"
    ) as server:
        async with trio_wt.open_websocket(
            server.url, proxy=None, origin="https://a.example"
        ) as websocket:
            assert not websocket.extensions
            await websocket.send("x" * 100)
            assert await websocket.receive() == "x" * 100
            await websocket.send("x" * 101)
            assert (await closed_by(websocket)).code == 1009
        with pytest.raises(trio_wt.Rejected) as caught:
            async with trio_wt.open_websocket(server.url, proxy=None, origin="https://b.example"):
                pass
        assert caught.value.status == 403


@pytest.mark.real_clock
async def test_any_origin_and_any_size() -> None:
    with Serve("--max-size", "0", "--allow-origin", "any") as server:
        async with trio_wt.open_websocket(
            server.url, proxy=None, origin="https://a.example", max_message_size=None
        ) as websocket:
            await websocket.send(b"x" * 2**21)
            assert await websocket.receive() == b"x" * 2**21


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        message = fails(capsys, "serve", "--port", port)
    assert message == f"cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_unix_socket_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    message = fails(capsys, "serve", "--unix", str(path))
    assert message == f"cannot listen on {path}: Address already in use"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--host", "no.such.host.invalid"], 1, "cannot listen on no.such.host.invalid:8765"),
        (["--port", "65536"], 2, "--port"),
        (["--port", "http"], 2, "--port"),
        (["--unix", "x", "--port", "1"], 2, "--unix excludes"),
        (["--unix", "x", "--self-signed"], 2, "without TLS"),
        (["--self-signed", "--certfile", __file__], 2, "--self-signed excludes"),
        (["--keyfile", __file__], 2, "--keyfile needs --certfile"),
        (["--certfile", "/no/such/file"], 2, "/no/such/file"),
        (["--certfile", __file__], 1, f"{__file__}: no certificate and key in PEM form"),
        (["--max-size", "-1"], 2, "--max-size"),
        (["--grace", "x"], 2, "--grace"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], code: int, expected: str
) -> None:
    assert expected in fails(capsys, "serve", *arguments, code=code)


def test_a_key_of_another_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        with pytest.raises(SystemExit):
            main(["cert", "--out", str(tmp_path / name)])
    capsys.readouterr()
    certificate, key = str(tmp_path / "one" / "cert.pem"), str(tmp_path / "two" / "key.pem")
    message = fails(capsys, "serve", "--certfile", certificate, "--keyfile", key)
    assert message.startswith(f"{certificate} and {key}: no certificate and key")


def test_a_key_with_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cryptography.hazmat.primitives import serialization

    with pytest.raises(SystemExit):
        main(["cert", "--out", str(tmp_path)])
    capsys.readouterr()
    path = tmp_path / "key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"geheim"),
        )
    )
    certificate = str(tmp_path / "cert.pem")
    message = fails(capsys, "serve", "--certfile", certificate, "--keyfile", str(path))
    assert "password" in message
