"""Listening, and accepting for as long as it takes."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_wt._transport.listen import Listener, accept_forever, open_listeners

# ---- opening


async def open_one(
    *,
    port: int | None = None,
    host: str | None = None,
    unix_path: str | os.PathLike[str] | None = None,
    listeners: list[Listener] | None = None,
    backlog: int | None = None,
) -> list[Listener]:
    return await open_listeners(
        port=port, host=host, unix_path=unix_path, listeners=listeners, backlog=backlog
    )


@asynccontextmanager
async def closing(listeners: list[Listener]) -> AsyncIterator[list[Listener]]:
    try:
        yield listeners
    finally:
        for listener in listeners:
            await listener.aclose()


@pytest.mark.parametrize(
    ("port", "unix_path", "has_listeners", "given"),
    [
        (None, None, False, "none"),
        (0, "x", False, "port, unix_path"),
        (0, None, True, "port, listeners"),
        (None, "x", True, "unix_path, listeners"),
        (0, "x", True, "port, unix_path, listeners"),
    ],
)
async def test_exactly_one_place_is_given(
    port: int | None, unix_path: str | None, has_listeners: bool, given: str
) -> None:
    with pytest.raises(ValueError, match=f"give one of .*; given: {given}$"):
        await open_one(port=port, unix_path=unix_path, listeners=[] if has_listeners else None)


async def test_given_listeners_are_used_as_they_are() -> None:
    listener = Accepts()
    opened = await open_one(listeners=[listener])
    assert opened == [listener]


@pytest.mark.parametrize("port", [None, 0])
async def test_opening_is_a_checkpoint_also_when_it_fails(port: int | None) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_one(port=port, listeners=[])
    assert scope.cancelled_caught


@pytest.mark.real_clock
async def test_a_free_port() -> None:
    async with closing(await open_one(port=0, host="127.0.0.1")) as opened:
        (listener,) = opened
        assert isinstance(listener, trio.SocketListener)
        host, port = listener.socket.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        client = await trio.open_tcp_stream(host, port)
        accepted = await listener.accept()
        await client.send_all(b"hello")
        assert await accepted.receive_some() == b"hello"
        await client.aclose()
        await accepted.aclose()
        with pytest.raises(OSError, match="in use"):
            await open_one(port=port, host="127.0.0.1")


@pytest.mark.real_clock
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with closing(await open_one(unix_path=path)) as opened:
        assert stat.S_ISSOCK(path.stat().st_mode)
        client = await trio.open_unix_socket(path)
        accepted = await opened[0].accept()
        await client.send_all(b"hello")
        assert await accepted.receive_some() == b"hello"
        await client.aclose()
        await accepted.aclose()


@pytest.mark.real_clock
async def test_a_unix_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    before = os.stat(path).st_ino, os.stat(path).st_mtime_ns
    async with closing(await open_one(unix_path=path)) as opened:
        assert (os.stat(path).st_ino, os.stat(path).st_mtime_ns) != before
        client = await trio.open_unix_socket(path)
        await (await opened[0].accept()).aclose()
        await client.aclose()


@pytest.mark.real_clock
async def test_a_unix_socket_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with closing(await open_one(unix_path=path)) as opened:
        with pytest.raises(OSError, match="in use"):
            await open_one(unix_path=path)
        await (await opened[0].accept()).aclose()  # the question whether it answers
        client = await trio.open_unix_socket(path)
        await client.send_all(b"still served")
        accepted = await opened[0].accept()
        assert await accepted.receive_some() == b"still served"
        await client.aclose()
        await accepted.aclose()


@pytest.mark.real_clock
async def test_anything_else_in_the_place_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (file, tmp_path):
        with pytest.raises(OSError, match="in use"):
            await open_one(unix_path=path)
    assert file.read_text() == "precious"
    with pytest.raises(FileNotFoundError):
        await open_one(unix_path=tmp_path / "missing" / "socket")


@pytest.mark.real_clock
async def test_the_backlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = socket.socket.listen

    def listen(self: socket.socket, backlog: int) -> None:
        asked.append(backlog)
        real(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    for number, backlog in enumerate((7, None, 100_000)):
        async with closing(await open_one(unix_path=tmp_path / str(number), backlog=backlog)):
            pass
    async with closing(await open_one(port=0, host="127.0.0.1", backlog=9)):
        pass
    assert asked == [7, 65535, 65535, 9]


# ---- accepting


class Accepts(trio.abc.Listener[trio.abc.Stream]):
    """A listener that gives what it was told, one after the other, and then waits."""

    def __init__(self, *outcomes: trio.abc.Stream | BaseException) -> None:
        self.outcomes = list(outcomes)
        self.asked_at: list[float] = []

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.asked_at.append(trio.current_time())
        if not self.outcomes:
            await trio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def stream() -> trio.abc.Stream:
    return trio.testing.memory_stream_pair()[0]


async def accept_all(listener: Accepts, *, seconds: float = 5) -> list[trio.abc.Stream]:
    accepted: list[trio.abc.Stream] = []

    async def handle(stream: trio.abc.Stream) -> None:
        accepted.append(stream)
        await trio.sleep_forever()

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            await accept_forever(listener, handle, nursery)
    return accepted


async def test_every_stream_gets_a_task_of_its_own() -> None:
    streams = [stream() for _ in range(3)]
    assert await accept_all(Accepts(*streams)) == streams


async def test_handlers_run_where_they_are_told() -> None:
    handled = trio.Event()

    async def handle(stream: trio.abc.Stream) -> None:
        task = trio.lowlevel.current_task()
        assert task.parent_nursery is handlers
        handled.set()

    async with trio.open_nursery() as handlers, trio.open_nursery() as accepting:
        accepting.start_soon(accept_forever, Accepts(stream()), handle, handlers)
        await handled.wait()
        accepting.cancel_scope.cancel()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_running_out_of_files_is_waited_out_and_logged_once(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [stream() for _ in range(3)]
    lack = OSError(code, "")
    listener = Accepts(lack, lack, lack, lack, *streams[:2], lack, streams[2])
    assert await accept_all(listener) == streams
    pauses = [b - a for a, b in zip(listener.asked_at, listener.asked_at[1:], strict=False)]
    assert pauses == pytest.approx([0.1, 0.1, 0.1, 0.1, 0, 0, 0.1, 0])
    # Once each time that it begins.
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == 2 * [
        (
            "trio_wt.server",
            logging.WARNING,
            f"cannot accept connections for now: {os.strerror(code)}",
        )
    ]


async def test_other_errors_come_out() -> None:
    for error in (OSError(errno.EINVAL, "broken"), trio.ClosedResourceError(), ValueError()):
        listener = Accepts(error, stream())
        with pytest.raises(ExceptionGroup) as caught:
            await accept_all(listener)
        assert caught.value.exceptions == (error,)


async def test_accepting_ends_when_it_is_cancelled() -> None:
    for outcomes in ([], [OSError(errno.EMFILE, "")] * 1000):
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                await accept_forever(Accepts(*outcomes), trio.abc.Stream.aclose, nursery)
        assert scope.cancelled_caught
