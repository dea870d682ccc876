"""`trio-wt connect` without a terminal: scripts, options and failures."""

from __future__ import annotations

import base64
import hashlib
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
import trio

import trio_wt

from .cli_tools import (
    COMMAND,
    LIMIT,
    Process,
    echo,
    environment,
    fails,
    free_port,
    one_line,
    run,
    serving,
)


def test_each_line_is_a_message() -> None:
    received: list[str | bytes] = []

    async def handler(websocket: trio_wt.WebSocket) -> None:
        for _ in range(5):
            received.append(await websocket.receive())
            await websocket.send(received[-1])
        await websocket.close()

    with serving(handler) as server:
        done = run(
            "connect", "--linger", "inf", server.url, data="eins\n\nzwei \r\n/ping\nü".encode()
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert received == ["eins", "", "zwei ", "/ping", "ü"]
    assert done.stdout.decode().split("\n") == ["eins", "", "zwei ", "/ping", "ü", ""]


def test_long_lines_and_many_lines_come_whole() -> None:
    lines = ["x" * 300_000, *(str(number) for number in range(5000)), "é" * 100_000]
    received: list[str | bytes] = []

    async def handler(websocket: trio_wt.WebSocket) -> None:
        while len(received) < len(lines):
            received.append(await websocket.receive())
        await websocket.close()

    with serving(handler) as server:
        done = run("connect", "--linger", "inf", server.url, data="\n".join(lines).encode() + b"\n")
    assert done.returncode == 0
    assert received == lines


def test_what_is_received_is_one_line_and_harmless() -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send(
            "two\nlines, \x1b[31mred\x9b, tab\t, \u202eright to left, \u2028, 👩\u200d💻"
        )
        await websocket.send(b"\x00\xffabc")
        await websocket.send(b"")

    with serving(handler) as server:
        done = run("connect", "--linger", "inf", server.url)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        r"two\nlines, \x1b[31mred\x9b, tab"
        + "\t"
        + r", \u202eright to left, \u2028, 👩"
        + "\u200d💻",
        "0x00ff616263",
        "0x",
    ]


def test_binary_goes_and_comes_as_it_is() -> None:
    data = bytes(range(256)) * 2000
    received: list[str | bytes] = []

    async def handler(websocket: trio_wt.WebSocket) -> None:
        received.append(await websocket.receive())
        await websocket.send(received[0])
        await websocket.send("and text\n")

    with serving(handler) as server:
        done = run("connect", "--binary", "--linger", "inf", server.url, data=data)
    assert done.returncode == 0
    assert received == [data]
    assert done.stdout == data + b"and text\n"


@pytest.mark.parametrize("seconds", ["0", "0.5"])
def test_after_the_input_it_lingers(seconds: str) -> None:
    async def silent(websocket: trio_wt.WebSocket) -> None:
        async for _ in websocket:
            pass

    with serving(silent) as server, Process("connect", "--linger", seconds, server.url) as process:
        process.write(b"x\n")
        begin = time.monotonic()
        process.end_input()
        assert process.wait() == 0
        assert time.monotonic() - begin >= float(seconds)
        assert server.wait_closed() == [1000]


def test_a_peer_that_never_stops_does_not_hold_it() -> None:
    async def chatty(websocket: trio_wt.WebSocket) -> None:
        while True:
            await websocket.send("more")

    with serving(chatty) as server:
        done = run("connect", "--linger", "0.2", server.url)
    assert (done.returncode, done.stderr) == (0, b"")
    assert set(done.stdout.splitlines()) == {b"more"}


def test_a_clean_close_ends_it_while_the_input_is_open() -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send(f"got {await websocket.receive()!s}")

    with serving(handler) as server, Process("connect", server.url) as process:
        process.write(b"this\n")
        assert process.line() == "got this"
        assert process.wait() == 0
        assert process.errors() == ""


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            lambda ws: ws.close(1011, "out of \x1b[5m order"),
            r"the peer closed the connection with code 1011: out of \x1b[5m order",
        ),
        (
            lambda ws: ws.close(4000),
            "the peer closed the connection with code 4000",
        ),
        (
            lambda ws: ws._connection.transport.aclose(graceful=False),
            "the connection was lost without a closing handshake (1006)",
        ),
    ],
    ids=["1011", "4000", "1006"],
)
def test_any_other_end_is_a_failure(end: object, message: str) -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send("before")
        await websocket.receive()
        await end(websocket)  # type: ignore[operator]

    with serving(handler) as server:
        done = run("connect", "--linger", "inf", server.url, data=b"now\n")
    assert (done.returncode, done.stdout) == (1, b"before\n")
    assert one_line(done.stderr).startswith(message)


def test_too_large_a_message_is_a_failure() -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send("x" * 101)
        await websocket.wait_closed()

    with serving(handler) as server:
        done = run("connect", "--max-size", "100", "--linger", "inf", server.url)
        assert done.returncode == 1
        assert "1009" in one_line(done.stderr)
        assert server.wait_closed() == [1009]


def test_no_limit_on_messages() -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send("x" * 2**21)

    with serving(handler) as server:
        done = run("connect", "--max-size", "0", "--linger", "inf", server.url)
    assert (done.returncode, len(done.stdout)) == (0, 2**21 + 1)


def test_input_that_is_no_text() -> None:
    with serving(echo) as server:
        done = run("connect", server.url, data=b"fine\n\xff\xfe\n")
    assert done.returncode == 1
    assert "line 2 of standard input is not UTF-8; --binary" in one_line(done.stderr)


def test_nobody_reads_the_output() -> None:
    async def chatty(websocket: trio_wt.WebSocket) -> None:
        while True:
            await websocket.send("more")

    with serving(chatty) as server, Process("connect", server.url) as process:
        process.line()
        assert process.popen.stdout is not None
        process.popen.stdout.close()
        assert process.wait() == 1
        assert process.errors() == ""
        assert server.wait_closed() == [1001]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_says_goodbye(number: signal.Signals, code: int) -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        await websocket.send("hello")
        await websocket.receive()

    with serving(handler) as server, Process("connect", server.url) as process:
        assert process.line() == "hello"
        process.signal(number)
        assert process.wait() == code
        assert process.errors() == ""
        assert server.wait_closed() == [1001]


def test_a_signal_while_the_output_is_stuck() -> None:
    stuck = threading.Event()

    async def handler(websocket: trio_wt.WebSocket) -> None:
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = trio.current_time() + 0.3
                await websocket.send("x" * 10_000)
        stuck.set()
        await websocket.wait_closed()

    with serving(handler) as server, Process("connect", server.url) as process:
        process.line()
        assert stuck.wait(LIMIT)
        process.signal(signal.SIGINT)
        assert process.wait() == 130
        assert server.wait_closed() == [1001]


def test_a_second_signal_does_not_wait_for_the_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        with Process("connect", url) as process:
            accepted, _ = listener.accept()
            with accepted:
                key = re.search(rb"sec-websocket-key: (\S+)", accepted.recv(65536), re.IGNORECASE)
                assert key is not None
                accept = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
                accepted.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n\x81\x02hi"
                    % base64.b64encode(accept)
                )
                assert process.line() == "hi"
                process.signal(signal.SIGINT)
                assert accepted.recv(65536)  # Close
                process.signal(signal.SIGINT)
                assert process.wait() == -signal.SIGINT
                assert process.errors() == ""


def test_an_interrupt_while_it_connects_is_quiet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Process("connect", f"ws://127.0.0.1:{port}/") as process:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(65536)
                process.signal(signal.SIGINT)
                assert process.wait() == 130
                assert process.errors() == ""


def test_the_request_is_as_told() -> None:
    with serving(echo, subprotocols=["chat.2"], origins="any") as server:
        done = run(
            "connect",
            "--linger=0",
            "-H",
            "X-One: 1: and more",
            "--header",
            "X-Two:2",
            "-s",
            "chat.1",
            "-s",
            "chat.2",
            "--origin",
            "https://example.com",
            "--auth",
            "user:pass:word",
            "--no-compression",
            server.url + "path?query=1",
        )
    assert (done.returncode, done.stderr) == (0, b"")
    (request,) = server.requests
    assert request.headers["x-one"] == "1: and more"
    assert request.headers["x-two"] == "2"
    assert list(request.subprotocols) == ["chat.1", "chat.2"]
    assert request.origin == "https://example.com"
    expected = base64.b64encode(b"user:pass:word").decode()
    assert request.headers["authorization"] == f"Basic {expected}"
    assert "sec-websocket-extensions" not in request.headers
    assert request.target == "/path?query=1"


def test_compression_is_offered() -> None:
    with serving(echo) as server:
        assert run("connect", "--linger=0", server.url).returncode == 0
    assert "permessage-deflate" in server.requests[0].headers["sec-websocket-extensions"]


def test_the_keepalive_is_as_told() -> None:
    async def handler(websocket: trio_wt.WebSocket) -> None:
        before = websocket.statistics().bytes_received
        with trio.move_on_after(5):
            while websocket.statistics().bytes_received == before:
                await trio.sleep(0.01)
            await websocket.send("a ping came")

    with serving(handler) as server:
        done = run("connect", "--ping-interval", "0.05", "--linger", "inf", server.url)
    assert done.stdout == b"a ping came\n"


def test_proxies() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with serving(echo) as server:
        done = run("connect", "--linger=0", "--proxy", nowhere, server.url)
        assert done.returncode == 1
        assert "proxy" in one_line(done.stderr)
        surroundings = environment(http_proxy=nowhere)
        done = run("connect", "--linger=0", server.url, env=surroundings)
        assert done.returncode == 1
        done = run("connect", "--linger=0", "--no-proxy", server.url, env=surroundings)
        assert done.returncode == 0


def test_a_closed_standard_input_is_an_empty_one() -> None:
    with serving(echo) as server:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "connect", "--linger=0", server.url],
            capture_output=True,
            timeout=LIMIT,
            env=environment(),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_closed_standard_output_is_told() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "connect", "ws://localhost/"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=LIMIT,
        env=environment(),
    )
    assert done.returncode == 1
    assert one_line(done.stderr) == "standard output is closed"


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    message = fails(capsys, "connect", "--no-proxy", f"ws://127.0.0.1:{port}/")
    assert f"cannot connect to 127.0.0.1:{port}" in message
    assert message.count("Connection refused") == 1


def test_a_rejection_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def on_request(request: trio_wt.Request) -> None:
        request.reject(403, body="members only\x1b[2J\nsecond line")

    with serving(echo, on_request=on_request) as server:
        message = fails(capsys, "connect", "--no-proxy", server.url)
    assert "status 403" in message
    assert r"members only\x1b[2J" in message
    assert "second line" not in message


def test_a_server_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        message = fails(capsys, "connect", "--no-proxy", "--timeout", "0.05", url)
    assert "within 0.05 seconds" in message


def test_a_server_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(echo) as server:
        wss = server.url.replace("ws:", "wss:")
        assert "TLS" in fails(capsys, "connect", "--no-proxy", wss)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["http://localhost/"], 1, "must begin with ws://"),
        (["ws://[::1/"], 1, "IPv6"),
        (["ws://localhost:99999/"], 1, "port"),
        (["ws+unix://%2Fno%2Fsuch.sock/"], 1, "No such file"),
        ([], 2, "URL"),
        (["ws://localhost/", "more"], 2, "more"),
        (["--nonsense", "ws://localhost/"], 2, "--nonsense"),
        (["-H", "no colon", "ws://localhost/"], 2, "Name: value"),
        (["-H", "a b: c", "ws://localhost/"], 1, "header"),
        (["-H", "Upgrade: no", "ws://localhost/"], 1, "pgrade"),
        (["-s", "not a token", "ws://localhost/"], 1, "subprotocol"),
        (["--max-size", "many", "ws://localhost/"], 2, "--max-size"),
        (["--max-size", "-1", "ws://localhost/"], 2, "--max-size"),
        (["--linger", "nan", "ws://localhost/"], 2, "--linger"),
        (["--ping-interval", "-1", "ws://localhost/"], 2, "--ping-interval"),
        (["--timeout", "x", "ws://localhost/"], 2, "--timeout"),
        (["--proxy", "gopher://x", "ws://localhost/"], 1, "proxy"),
        (["--proxy", "http://x", "--no-proxy", "ws://localhost/"], 2, "exclude"),
        (["--cafile", "/no/such/file", "wss://localhost/"], 2, "/no/such/file"),
        (["--cafile", __file__, "wss://localhost/"], 1, "no certificates in PEM form"),
        (["--cafile", __file__, "--insecure", "wss://localhost/"], 2, "exclude"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, expected: str
) -> None:
    message = fails(capsys, "connect", *arguments, code=code)
    assert expected in message
    assert ("trio-wt connect --help" in message) == (code == 2)
