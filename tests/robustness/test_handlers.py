"""Handlers that end in every way: the peer gets the right code, and the server nothing of it."""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest
import trio
import trio.testing

import trio_wt
from tests.robustness.conftest import Log
from tests.robustness.peer import REQUEST, TEXT, RawPeer, close_frame, frame, parse_answer
from tests.robustness.target import MemoryListener, echo, memory_server

Handler = Callable[[trio_wt.WebSocket], Awaitable[object]]


async def closes(
    handler: Handler, log: Log, *, shutdown_after: float = math.inf, **options: Any
) -> tuple[int, str]:
    """The Close frame that a client gets from a handler; the server lives on."""
    async with memory_server(handler, **options) as server:
        peer = await server.connect()
        await peer.upgrade()
        with trio.move_on_after(shutdown_after):
            code = await peer.until_close()
            await peer.send(close_frame(1000))
            assert await peer.rest() == b""
            other = await server.opened()
            await other.aclose()
            return code
        server.shutdown.set()
        return await peer.until_close()


async def returns(ws: trio_wt.WebSocket) -> None:
    pass


async def raises(ws: trio_wt.WebSocket) -> None:
    raise ValueError("a bug in the application")


async def raises_later(ws: trio_wt.WebSocket) -> None:
    await ws.send("a")
    await trio.sleep(1)
    raise KeyError("a bug in the application")


async def raises_a_group(ws: trio_wt.WebSocket) -> None:
    async def fail() -> None:
        raise ValueError("a bug in the application")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        nursery.start_soon(trio.sleep_forever)


async def raises_while_sending(ws: trio_wt.WebSocket) -> None:
    async with ws.send_stream(text=True) as message:
        await message.send("half a")
        raise ValueError("a bug in the application")


async def cancels_itself(ws: trio_wt.WebSocket) -> None:
    ws.cancel_scope.cancel()
    await trio.sleep_forever()


async def leaves_by_its_own_scope(ws: trio_wt.WebSocket) -> None:
    with trio.move_on_after(1):
        await ws.receive()


async def closes_itself(ws: trio_wt.WebSocket) -> None:
    await ws.close(3210, "enough")


async def sends_after_closing(ws: trio_wt.WebSocket) -> None:
    await ws.close(3210, "enough")
    await ws.send("too late")


ENDS: list[tuple[Handler, int, int]] = [
    (returns, 1000, 0),
    (leaves_by_its_own_scope, 1000, 0),
    (raises, 1011, 1),
    (raises_later, 1011, 1),
    (raises_a_group, 1011, 1),
    (raises_while_sending, 1011, 1),
    (cancels_itself, 1011, 0),
    (closes_itself, 3210, 0),
    (sends_after_closing, 3210, 1),
]


@pytest.mark.parametrize(("handler", "code", "errors"), ENDS)
async def test_handler_ends(handler: Handler, code: int, errors: int, log: Log) -> None:
    """Each end has its code; the application's errors are logged, and go nowhere else."""
    log.allow_tracebacks = True
    assert (await closes(handler, log))[0] == code
    assert len([record for record in log.records if record.exc_info]) in (errors, 2 * errors)
    assert len(log.lines(logging.WARNING)) in (errors, 2 * errors)


@types.coroutine
def cancel_at(
    coroutine: Coroutine[Any, Any, object], number: int, cancel: Callable[[], None]
) -> Generator[Any, Any, bool]:
    """Run a coroutine and cancel when it has reached its checkpoint ``number``: whether it came so far."""
    count = 0
    outcome: tuple[str, Any] = ("send", None)
    while True:
        try:
            trap = getattr(coroutine, outcome[0])(outcome[1])
        except StopIteration:
            return False
        count += 1
        if count == number:
            cancel()
        try:
            outcome = ("send", (yield trap))
        except BaseException as exc:
            outcome = ("throw", exc)


async def busy(ws: trio_wt.WebSocket) -> None:
    """A handler that uses everything once."""
    await ws.send("text")
    await ws.send_many([b"a", "b"])
    await ws.send(iter([b"frag", b"ments"]))
    assert await ws.receive() == "one"
    async with ws.receive_stream() as message:
        assert await message.read_all() == "two"
    assert await ws.receive_many(2) == ["three"]
    assert await ws.receive_many() == ["four"]
    async with ws.send_stream(text=False) as stream:
        await stream.send(b"part")
    await ws.ping()
    await ws.pong()
    await trio.sleep(1)
    await ws.send_close(3000)


async def client_of_busy(peer: RawPeer) -> int:
    """Answers what it has to; gives the close code."""
    await peer.upgrade()
    for text in (b"one", b"two", b"three", b"four"):
        await trio.sleep(0.1)
        await peer.send_frame(TEXT, text)
    while (found := await peer.next_frame()) is not None:
        if found[0] == 0x89:
            await peer.send_frame(10, found[1])
        elif found[0] == 0x88:
            await peer.try_send(frame(8, found[1]))
            return int.from_bytes(found[1][:2])
    raise AssertionError("the connection ended without a Close frame")


@pytest.mark.parametrize("what", ["scope", "server", "shutdown", "raise"])
async def test_handler_is_ended_at_every_checkpoint(what: str, log: Log) -> None:
    """Cancelled by its own scope, with the server, at shutdown, or raising there."""
    log.allow_tracebacks = what == "raise"
    codes: list[int] = []
    number = 0
    more = True

    class Bug(Exception):
        pass

    while more:
        number += 1
        assert number < 200
        listener = MemoryListener()
        shutdown = trio.Event()
        more = False

        async with trio.open_nursery() as nursery:
            serving = trio.CancelScope()

            async def handler(ws: trio_wt.WebSocket, serving: trio.CancelScope = serving) -> None:
                nonlocal more

                def end() -> None:
                    nonlocal more
                    more = True
                    if what == "scope":
                        ws.cancel_scope.cancel()
                    elif what == "server":
                        serving.cancel()
                    elif what == "shutdown":
                        shutdown.set()
                    else:
                        inner.cancel()

                with trio.CancelScope() as inner:
                    await cancel_at(busy(ws), number, end)
                if inner.cancelled_caught:
                    raise Bug

            async def serve(serving: trio.CancelScope = serving) -> None:
                with serving:
                    await trio_wt.serve_websocket(
                        handler, listeners=[listener], shutdown=shutdown, shutdown_timeout=3
                    )

            nursery.start_soon(serve)
            peer = RawPeer(listener.connect())
            with trio.fail_after(60):
                codes.append(await client_of_busy(peer))
                await peer.rest()
            if not more:
                assert codes.pop() == 3000
            nursery.cancel_scope.cancel()
    assert len(codes) > 15
    # Once the handler has sent its own Close nothing else can be said.
    expected = {"scope": 1011, "server": 1001, "shutdown": 1001, "raise": 1011}[what]
    while codes and codes[-1] == 3000:
        codes.pop()
    assert set(codes) <= {expected, 1011}
    assert codes.count(expected) > 10
    assert len([record for record in log.records if record.exc_info]) <= (
        number if what == "raise" else 0
    )


async def test_handlers_that_send_at_shutdown_leave_no_traceback(log: Log) -> None:
    """The server closes, so a handler in the middle of its work has made no mistake."""

    async def sends(ws: trio_wt.WebSocket) -> None:
        while True:
            await ws.send("news")
            await trio.sleep(0.1)

    async def pings(ws: trio_wt.WebSocket) -> None:
        while True:
            await ws.ping()
            await trio.sleep(0.1)

    async def streams(ws: trio_wt.WebSocket) -> None:
        async with ws.send_stream(text=True) as message:
            while True:
                await message.send("news")
                await trio.sleep(0.1)

    async def in_a_nursery(ws: trio_wt.WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, ws)
            nursery.start_soon(sends, ws)

    for handler in (echo, sends, pings, streams, in_a_nursery):
        assert await closes(handler, log, shutdown_after=1) == (1001, "the server is shutting down")
        assert log.lines(logging.INFO) == []


async def test_error_in_the_cleanup_of_a_handler_cancelled_at_shutdown(log: Log) -> None:
    """Cancelled and Exception in one group: the exception is logged, and does not reach the server."""
    log.allow_tracebacks = True

    async def worker() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a bug in the application's cleanup")

    async def handler(ws: trio_wt.WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)
            nursery.start_soon(trio.sleep_forever)

    assert (await closes(handler, log, shutdown_after=1, shutdown_timeout=1))[0] == 1001
    assert len(log.lines(logging.ERROR)) == 1


async def test_error_in_the_cleanup_of_a_handler_cancelled_with_the_server(log: Log) -> None:
    log.allow_tracebacks = True
    listener = MemoryListener()

    async def handler(ws: trio_wt.WebSocket) -> None:
        async def worker() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("a bug in the application's cleanup")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)
            nursery.start_soon(trio.sleep_forever)

    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio_wt.serve_websocket(handler, listeners=[listener]))
            peer = RawPeer(listener.connect())
            await peer.upgrade()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(log.lines(logging.ERROR)) == 1


async def test_handler_runs_into_the_end_of_its_connection(log: Log) -> None:
    """However the peer ends it, a handler that lets ConnectionClosed pass is no error."""

    async def in_a_nursery(ws: trio_wt.WebSocket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, ws)
            nursery.start_soon(ws.ping)

    async def receives(ws: trio_wt.WebSocket) -> None:
        await ws.receive()

    for handler in (echo, receives, in_a_nursery):
        for ending in (b"", frame(3), close_frame(1000), close_frame(3999), frame(TEXT, b"\xff")):
            async with memory_server(handler) as server:
                peer = await server.opened()
                await peer.send(ending)
                await trio.testing.wait_all_tasks_blocked()
                await peer.aclose()
    assert log.lines(logging.INFO) == []


async def test_shutdown_is_bounded(log: Log) -> None:
    """A handler that does not end is cancelled, one that resists cancellation included in the bound."""

    async def stubborn(ws: trio_wt.WebSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.sleep_forever()

    async with memory_server(stubborn, shutdown_timeout=3) as server:
        peers = [await server.opened() for _ in range(20)]
        waiting = await server.connect()
        start = trio.current_time()
        server.shutdown.set()
        for peer in peers:
            assert (await peer.until_close())[0] == 1001
        for peer in (*peers, waiting):
            await peer.rest()
        assert trio.current_time() - start <= 3 + 1 + 5.1


async def test_shutdown_during_a_handshake(log: Log) -> None:
    """A connection that opens while the server shuts down is told so, and is within the bound."""

    async def on_request(request: trio_wt.Request) -> None:
        await trio.sleep(2)

    ended: list[float] = []

    async def stays(ws: trio_wt.WebSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    listener = MemoryListener()
    shutdown = trio.Event()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def serve() -> None:
            await trio_wt.serve_websocket(
                stays,
                listeners=[listener],
                on_request=on_request,
                shutdown=shutdown,
                shutdown_timeout=4,
            )
            done.set()

        nursery.start_soon(serve)
        peer = RawPeer(listener.connect())
        nursery.start_soon(peer.upgrade)
        await trio.sleep(1)
        shutdown.set()
        with trio.fail_after(10):
            await trio.sleep(1.5)
            assert await peer.until_close() == (1001, "the server is shutting down")
            await peer.send(close_frame(1001))
            await peer.rest()
            await done.wait()
    assert [when - start for when in ended] == [pytest.approx(1 + 4, abs=0.1)]


# ---- requests while things go wrong


async def test_on_request_that_fails_or_hangs(log: Log) -> None:
    log.allow_tracebacks = True

    async def on_request(request: trio_wt.Request) -> None:
        if request.path == "/raise":
            raise LookupError("a bug in the application")
        if request.path == "/twice":
            request.accept()
            request.reject(403)
        if request.path == "/hang":
            await trio.sleep_forever()

    async with memory_server(on_request=on_request, shutdown_timeout=1) as server:
        for path in ("/raise", "/twice"):
            peer = await server.connect()
            await peer.send(REQUEST.replace(b"GET /", b"GET " + path.encode()))
            assert parse_answer(await peer.rest()).status == 500
        peer = await server.connect()
        await peer.send(REQUEST.replace(b"GET /", b"GET /hang"))
        await server.still_serves()
