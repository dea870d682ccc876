"""What the tests of the command line share: running it, serving it, and a terminal to look at."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import trio

import trio_wt
from trio_wt._cli.certificate import Certificate, make_certificate
from trio_wt.cli import main

from .peers import require

COMMAND = [sys.executable, "-W", "error", "-m", "trio_wt"]
#: Seconds after which something that should take a moment has failed.
LIMIT = 15.0


def environment(**more: str) -> dict[str, str]:
    """The environment without what changes how the command behaves."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("PROMPT_TOOLKIT")
    }
    return {**kept, **more}


def run(
    *arguments: str, data: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end, with ``data`` as its standard input."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=LIMIT,
        env=env or environment(),
        check=False,
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What is started in the block can be interrupted, even where a shell runs the tests in the background.

    Such a shell lets them ignore SIGINT, which processes hand down.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def one_line(output: bytes | str) -> str:
    """What is one line, starts with the program's name and is no traceback."""
    text = output.decode() if isinstance(output, bytes) else output
    assert text.startswith("trio-wt: "), text
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.removeprefix("trio-wt: ").rstrip("\n")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The one line that a command says which fails, run in this process."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
    output = capsys.readouterr()
    assert output.out == ""
    return one_line(output.err)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Process:
    """The command as a process whose output is read while it runs."""

    def __init__(self, *arguments: str, command: list[str] | None = None) -> None:
        with interruptible():
            self.popen = subprocess.Popen(
                [*(command or COMMAND), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
            )
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def write(self, data: bytes) -> None:
        """Give it something to read."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def end_input(self) -> None:
        """Let its standard input come to an end."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def line(self) -> str:
        """Its next line of output."""
        assert self.popen.stdout is not None
        deadline = time.monotonic() + LIMIT
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.popen.stdout], [], [], max(left, 0))
            assert ready, f"no line within {LIMIT} seconds; read so far: {self._read!r}"
            chunk = os.read(self.popen.stdout.fileno(), 65536)
            assert chunk, f"the output has ended: {self._read!r}; {self.errors()}"
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def errors(self) -> str:
        """All of its standard error; it must be about to end."""
        self.popen.wait(LIMIT)
        assert self.popen.stderr is not None
        return self.popen.stderr.read().decode()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.popen.wait(LIMIT)


class Server:
    """A server in a thread.

    Attributes:
        url: where it serves.
        hash: the SHA-256 of its certificate in base64, if it has one.
        requests: what it was asked.
        closed: the close codes of the connections that ended.
    """

    def __init__(self) -> None:
        self.url = ""
        self.hash = ""
        self.requests: list[trio_wt.Request] = []
        self.closed: list[int | None] = []

    def wait_closed(self) -> list[int | None]:
        """The close codes, once there is one."""
        deadline = time.monotonic() + LIMIT
        while not self.closed:
            assert time.monotonic() < deadline, "no connection has ended"
            time.sleep(0.005)
        return self.closed


@contextlib.contextmanager
def serving(
    handler: Callable[[trio_wt.WebSocket], Awaitable[object]], **settings: Any
) -> Iterator[Server]:
    """Serve on loopback in a thread while the block runs."""
    server = Server()

    async def handle(websocket: trio_wt.WebSocket) -> None:
        server.requests.append(websocket.request)
        try:
            await handler(websocket)
        except (trio_wt.ConnectionClosed, trio.ClosedResourceError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await websocket.close()
            server.closed.append(websocket.close_code)

    async def listen(nursery: trio.Nursery, shutdown: trio.Event) -> str:
        listeners = await nursery.start(
            partial(
                trio_wt.serve_websocket,
                handle,
                0,
                host="127.0.0.1",
                shutdown=shutdown,
                shutdown_timeout=0.2,
                **settings,
            )
        )
        return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"

    with _in_a_thread(server, listen):
        yield server


@contextlib.contextmanager
def serving_sessions(
    handler: Callable[[trio_wt.WebTransportSession], Awaitable[object]],
    *,
    certificate: Certificate | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """The same for WebTransport, with a certificate made for it if none is given."""
    server = Server()
    made = certificate or make_certificate()
    server.hash = made.sha256_base64

    async def handle(session: trio_wt.WebTransportSession) -> None:
        server.requests.append(session.request)
        try:
            await handler(session)
            await session.aclose()
        except* (trio_wt.ConnectionClosed, trio.ClosedResourceError):
            pass
        finally:
            # The peer's own, or else that of this side.
            server.closed.append(None if session.closed is None else session.closed.code)

    async def listen(nursery: trio.Nursery, shutdown: trio.Event) -> str:
        tls = trio_wt.ServerTLS(trio_wt.Certificate.from_pem(made.certificate, made.key))
        sockets = await nursery.start(
            partial(
                trio_wt.serve_webtransport,
                handle,
                0,
                host="127.0.0.1",
                tls=tls,
                shutdown=shutdown,
                shutdown_timeout=0.2,
                **settings,
            )
        )
        return f"https://127.0.0.1:{sockets[0].local_address[1]}/"

    with _in_a_thread(server, listen):
        yield server


@contextlib.contextmanager
def _in_a_thread(
    server: Server, listen: Callable[[trio.Nursery, trio.Event], Awaitable[str]]
) -> Iterator[None]:
    ready = threading.Event()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        shutdown = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stop.append(lambda: token.run_sync_soon(shutdown.set))
        async with trio.open_nursery() as nursery:
            server.url = await listen(nursery, shutdown)
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(LIMIT)
        yield
    finally:
        stop[0]()
        thread.join(LIMIT)
        assert not thread.is_alive()


async def echo(websocket: trio_wt.WebSocket) -> None:
    """A handler that sends everything back."""
    async for message in websocket:
        await websocket.send(message)


class Terminal:
    """The command on a pseudo-terminal, behind which an emulator draws its screen and answers what it asks."""

    def __init__(self, *arguments: str, command: list[str] | None = None, **env: str) -> None:
        pexpect = require("pexpect")
        pyte = require("pyte")
        self._ended = (pexpect.EOF,)
        self._silent = (pexpect.TIMEOUT,)
        self.screen = pyte.HistoryScreen(150, 30, history=100_000)
        self._stream = pyte.ByteStream(self.screen)
        whole = [*(command or COMMAND), *arguments]
        with interruptible():
            self._child = pexpect.spawn(
                whole[0],
                whole[1:],
                env=environment(**{"TERM": "xterm", **env}),
                dimensions=(30, 150),
                timeout=LIMIT,
            )
        self._child.delaybeforesend = None
        self.screen.write_process_input = self._child.send

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close(force=True)

    def type(self, keys: str) -> None:
        """Press keys."""
        self._child.send(keys)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal from outside."""
        self._child.kill(number)

    def _pump(self, seconds: float) -> bool:
        try:
            self._stream.feed(self._child.read_nonblocking(65536, seconds))
        except self._silent:
            return True
        except self._ended:
            return False
        return True

    def lines(self) -> list[str]:
        """What the screen shows, and what has scrolled off it."""
        gone = [
            "".join(row[column].data for column in range(self.screen.columns))
            for row in self.screen.history.top
        ]
        return [line.rstrip() for line in [*gone, *self.screen.display] if line.strip()]

    def wait(self, *expected: str) -> None:
        """Wait until the lowest lines are these; one that ends in ... is a beginning."""
        deadline = time.monotonic() + LIMIT
        while not self._shows(expected):
            running = self._pump(0.02)
            if not self._shows(expected) and (not running or time.monotonic() > deadline):
                pytest.fail(f"{expected} is not at the bottom of:\n" + "\n".join(self.lines()))

    def _shows(self, expected: tuple[str, ...]) -> bool:
        bottom = self.lines()[-len(expected) :]
        return len(bottom) == len(expected) and all(
            line.startswith(text[:-3]) if text.endswith("...") else line == text
            for line, text in zip(bottom, expected, strict=True)
        )

    def echoes(self) -> bool:
        """Whether the terminal is as a shell leaves it: it echoes what is typed."""
        return bool(self._child.getecho())

    def finish(self) -> int:
        """Wait for its end; its exit code."""
        deadline = time.monotonic() + LIMIT
        while self._pump(0.1):
            assert time.monotonic() < deadline, "the command does not end:\n" + "\n".join(
                self.lines()
            )
        self._child.wait()
        assert self._child.exitstatus is not None, f"signal {self._child.signalstatus}"
        return int(self._child.exitstatus)


def write_script(path: Path, text: str) -> list[str]:
    """A Python program as a command."""
    path.write_text(text, "utf-8")
    return [sys.executable, str(path)]
