"""Connections that come, go, break and stay: nothing of them is left."""

from __future__ import annotations

import errno
import gc
import logging
import os
import ssl
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

import trio_wt
from tests.robustness.conftest import Log
from tests.robustness.peer import (
    BINARY,
    PING,
    PONG,
    REQUEST,
    TEXT,
    RawPeer,
    close_frame,
    frame,
)
from tests.robustness.target import (
    MemoryListener,
    Server,
    echo,
    memory_server,
    nothing_left,
    open_fds,
    reset,
    settled,
    socket_server,
    tasks,
)

# ---- storms and churn


async def stages(server: Server, stage: int) -> RawPeer:
    """A connection that has come this far."""
    peer = await server.connect()
    if stage == 1:
        await peer.send(REQUEST[:30])
    elif stage == 2:
        await peer.send(REQUEST)
    elif stage == 3:
        await peer.upgrade()
    elif stage == 4:
        await peer.upgrade(behind=frame(BINARY, bytes(50_000))[:30_000])
    elif stage == 5:
        await peer.upgrade()
        await peer.send(frame(TEXT, b"a" * 5000) * 50)
    elif stage == 6:
        await peer.upgrade(behind=close_frame(1000))
    elif stage == 7:
        await peer.send(b"nonsense\r\n\r\n")
    return peer


@pytest.mark.real_clock
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_storm(how: str) -> None:
    """Hundreds of connections that end at every stage; the check is what is left, and the log."""
    async with socket_server() as server:

        async def one(number: int) -> None:
            peer = await stages(server, number % 8)
            if number % 3 == 0:
                await trio.sleep(0.002)
            if how == "reset":
                reset(peer)
            else:
                await peer.aclose()

        for batch in range(8):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(one, batch + number)


@pytest.mark.real_clock
async def test_churn_leaves_nothing() -> None:
    """Rounds of a hundred connections that behave; memory does not grow from one to the next."""
    async with socket_server() as server:

        async def round_of_connections() -> None:
            async def one() -> None:
                url = f"ws://127.0.0.1:{server.port}/"
                async with trio_wt.open_websocket(url, proxy=None) as ws:
                    await ws.send("hello")
                    assert await ws.receive() == "hello"

            for _ in range(4):
                async with trio.open_nursery() as nursery:
                    for _ in range(25):
                        nursery.start_soon(one)
            gc.collect()

        before = tasks(), open_fds()
        await round_of_connections()
        tracemalloc.start()
        try:
            await round_of_connections()
            base, _ = tracemalloc.get_traced_memory()
            await round_of_connections()
            await round_of_connections()
            grown = tracemalloc.get_traced_memory()[0] - base
        finally:
            tracemalloc.stop()
        assert grown < 100_000, f"200 connections left {grown} bytes"
        await settled(tasks, before[0])
        await settled(open_fds, before[1])


@pytest.mark.real_clock
async def test_unread_messages_go_with_their_connection() -> None:
    """A full queue is freed when the peer is gone, not when the garbage collector comes."""

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        await ws.wait_closed()

    async with socket_server(handler) as server:

        async def one() -> None:
            peer = await server.opened(behind=frame(BINARY, bytes(1000)))
            await peer.send(frame(BINARY, bytes(900_000)))
            await trio.sleep(0.01)
            reset(peer)

        await one()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(20):
                await one()
            await trio.sleep(0.1)
            left = (tracemalloc.get_traced_memory()[0] - before) / 20
        finally:
            tracemalloc.stop()
            gc.enable()
        assert left < 250_000, f"each connection left {left:.0f} bytes"


@pytest.mark.real_clock
async def test_idle_connection_keeps_nothing_of_what_it_received() -> None:
    """Large messages were received and dropped; what waits for the next one is small."""

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        size = 0
        async for message in ws:
            size += len(message)
            del message
            await ws.send(b"%d" % size)

    async with socket_server(handler) as server:
        peers = [await server.opened() for _ in range(20)]
        large = frame(BINARY, bytes(1_000_000))
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for count in range(1, 4):
                for peer in peers:
                    await peer.send(large)
                    assert await peer.next_frame() == (0x82, b"%d" % (count * 1_000_000))
            gc.collect()
            left = (tracemalloc.get_traced_memory()[0] - before) / len(peers)
        finally:
            tracemalloc.stop()
        assert left < 100_000, f"each idle connection keeps {left:.0f} bytes"


async def test_idle_connections() -> None:
    """Three hundred that sit and answer nothing: all are closed by the keepalive, none before."""
    async with memory_server() as server:
        idle = [await server.opened() for _ in range(300)]
        await trio.sleep(39)
        await server.still_serves()
        await trio.sleep(2)
        for peer in idle:
            assert (await peer.until_close())[0] == 1011
        with trio.fail_after(6):
            for peer in idle:
                assert await peer.rest() == b""


@pytest.mark.real_clock
async def test_peer_that_is_gone_is_noticed_behind_a_full_queue() -> None:
    """An application that does not read, a peer that filled the queue, and a reset: nothing may stay."""
    ended = trio.Event()

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        await ws.wait_closed()
        ended.set()

    async with socket_server(handler, ping_interval=0.2, ping_timeout=0.2) as server:
        peer = await server.opened()
        with trio.move_on_after(0.5):
            while True:
                await peer.send(frame(BINARY, bytes(50_000)))
        reset(peer)
        with trio.fail_after(3):
            await ended.wait()


@pytest.mark.real_clock
async def test_cancel_on_close_behind_a_full_queue() -> None:
    """The peer is gone: the handler is told, though it has not read what came before."""
    cancelled = trio.Event()

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with socket_server(handler, cancel_on_close=True) as server:
        peer = await server.opened(behind=frame(TEXT, b"unread") * 40)
        await trio.sleep(0.05)
        reset(peer)
        with trio.fail_after(2):
            await cancelled.wait()


async def test_tls_connections_that_end_at_every_stage() -> None:
    """In the TLS handshake, behind it, in the request, open; with and without close_notify."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    trusting, distrusting = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)

    async with memory_server(ssl_context=context) as server:

        async def one(stage: int) -> None:
            peer = await server.connect()
            if stage == 0:
                await peer.send(b"\x16\x03\x01\x00\x05hello")
                await peer.aclose()
                return
            tls = trio.SSLStream(
                peer.stream,
                distrusting if stage == 1 else trusting,
                server_hostname="localhost",
                https_compatible=stage % 2 == 0,
            )
            if stage == 1:
                with pytest.raises(trio.BrokenResourceError):
                    await tls.do_handshake()
            elif stage < 4:
                await tls.do_handshake()
            elif stage < 6:
                await tls.send_all(REQUEST[:50])
            else:
                inner = RawPeer(tls)
                await inner.upgrade()
                await inner.echo("over TLS")
                if stage == 8:
                    await inner.send(frame(3))
                    await inner.expect_failure(1002)
                elif stage == 9:
                    await peer.send(b"not TLS at all")
            with trio.move_on_after(0.1):
                await (peer.stream if stage % 3 else tls).aclose()

        for stage in range(10):
            for _ in range(3):
                await one(stage)
        with trio.fail_after(15):
            await one(6)


@pytest.mark.real_clock
@pytest.mark.parametrize("then", ["ping", "close", "violation", "reset"])
async def test_handler_that_is_busy_after_a_conversation(then: str) -> None:
    """Message by message it went; now the application does something else, and the connection is served on."""
    closed: list[int | None] = []

    async def handler(ws: trio_wt.WebSocket) -> None:
        if "x-purpose" in ws.request.headers:
            await echo(ws)
            return
        for _ in range(20):
            await ws.send(await ws.receive())
        if then == "ping":
            await trio.sleep(0.5)
        else:
            await ws.wait_closed()
            closed.append(ws.close_code)

    async with socket_server(handler) as server:
        peer = await server.opened()
        for _ in range(20):
            await peer.echo("and so on")
        with trio.fail_after(2):
            if then == "ping":
                for i in range(20):
                    await peer.send_frame(PING, b"%d" % i)
                    with trio.fail_after(0.2):
                        assert await peer.next_frame() == (0x80 | PONG, b"%d" % i)
                return
            if then == "close":
                await peer.send(close_frame(3003))
                assert await peer.until_close() == (3003, "")
            elif then == "violation":
                await peer.send(frame(3))
                await peer.expect_failure(1002)
                await peer.aclose()
            else:
                reset(peer)
            while not closed:
                await trio.sleep(0.01)
        assert closed == [{"close": 3003, "violation": 1002, "reset": 1006}[then]]


# ---- out of file descriptors


class Exhausted(MemoryListener):
    """Fails to accept some times."""

    def __init__(self, code: int, times: int) -> None:
        super().__init__()
        self.code = code
        self.times = times
        self.asked: list[float] = []

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        if self.times:
            self.times -= 1
            raise OSError(self.code, os.strerror(self.code))
        return await super().accept()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_accept_is_out_of_something(code: int, log: Log) -> None:
    """Back off, say so once, recover."""
    listener = Exhausted(code, 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio_wt.serve_websocket(echo, listeners=[listener]))
        peer = RawPeer(listener.connect())
        with trio.fail_after(60):
            await peer.upgrade()
            await peer.echo("at last")
        assert len(log.lines(logging.WARNING)) == 1
        assert min(b - a for a, b in zip(listener.asked, listener.asked[1:-1])) >= 0.05
        await peer.aclose()
        nursery.cancel_scope.cancel()


STARVED = """
    import logging, resource, sys, trio, trio_wt
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="LOG %(message)s")

    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    async def main():
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                lambda task_status: trio_wt.serve_websocket(
                    echo, 0, host="127.0.0.1", task_status=task_status
                )
            )
            used = max(trio.socket.socket().fileno(), 10)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
            print(listeners[0].socket.getsockname()[1], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            print("CPU", resource.getrusage(resource.RUSAGE_SELF).ru_utime, flush=True)
            nursery.cancel_scope.cancel()

    trio.run(main)
"""


@pytest.mark.real_clock
async def test_out_of_file_descriptors() -> None:
    """More connections than the process may have files: those it has live, and it recovers."""
    root = Path(__file__).parents[2]
    with trio.fail_after(20):
        async with nothing_left():
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", textwrap.dedent(STARVED)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=root,
            )
            assert process.stdout is not None and process.stdin is not None
            try:
                output = RawPeer(process.stdout)  # type: ignore[arg-type]
                while b"\n" not in output.received:
                    assert await output.more()
                port = int(output.received.split(b"\n")[0])
                first = RawPeer(await trio.open_tcp_stream("127.0.0.1", port))
                await first.upgrade()
                flood = [RawPeer(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(60)]
                for _ in range(5):
                    await trio.sleep(0.2)
                    with trio.fail_after(2):
                        await first.echo("those inside are served")
                for peer in flood:
                    await peer.aclose()
                with trio.fail_after(3):
                    later = RawPeer(await trio.open_tcp_stream("127.0.0.1", port))
                    await later.upgrade()
                    await later.echo("recovered")
                await later.aclose()
                await first.aclose()
                await process.stdin.aclose()
                said = (await output.rest()).decode().split("\n")
                assert await process.wait() == 0
            finally:
                process.kill()
                await process.wait()
                await process.stdout.aclose()
                await process.stdin.aclose()
    lines = [line for line in said if line.startswith("LOG")]
    assert 1 <= len(lines) <= 5, said
    assert all("accept" in line for line in lines)
    assert not any("Traceback" in line for line in said)
    (cpu,) = (float(line.split()[1]) for line in said if line.startswith("CPU"))
    assert cpu < 3, "waiting for descriptors took the processor"
