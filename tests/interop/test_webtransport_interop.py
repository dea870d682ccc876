"""WebTransport with other implementations at the other end: as clients and as servers, at every test."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.webtransport_peers import (
    HOST,
    LIMIT,
    Aio,
    Files,
    Peer,
    PeerClosed,
    PeerRefused,
    PeerReset,
    PeerSession,
    PeerStream,
    Py,
)
from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    DatagramTooLarge,
    HandshakeFailed,
    Rejected,
    Request,
    ServerTLS,
    Stream,
    StreamAbort,
    StreamReset,
    WebTransportSession,
    open_webtransport,
    open_webtransport_connection,
    serve_webtransport,
)

pytestmark = pytest.mark.real_clock

PATH = "/there"
SIZES = [1, 1199, 100_000, 4 * 2**20]
# Codes around the gaps in HTTP/3's numbers for them, and the ends.
CODES = [0, 7, 29, 30, 31, 255, 2**32 - 1]
WHY = [(0, ""), (1, ""), (77, "that is why"), (2**32 - 1, "Grüße 🙂" * 70)]
SESSION_GONE = 0x170D7B68


@dataclass(frozen=True)
class End:
    """A peer, and which end it is."""

    peer: Peer
    serves: bool

    def __str__(self) -> str:
        return f"{self.peer}-{'server' if self.serves else 'client'}"


# The wheels of both are for Python 3.12 and later.
needs_newer = pytest.mark.skipif(sys.version_info < (3, 12), reason="the peer needs Python 3.12")
PEERS = [Py(), Aio()]
ENDS = [End(peer, serves) for peer in PEERS for serves in (True, False)]


def marked(values: list[Any]) -> list[Any]:
    return [pytest.param(value, id=str(value), marks=needs_newer) for value in values]


every_end = pytest.mark.parametrize("end", marked(ENDS))
every_peer = pytest.mark.parametrize("peer", marked(PEERS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def serving(
    files: Files, handler: Callable[[WebTransportSession], Awaitable[object]], **options: Any
) -> AsyncIterator[int]:
    """Our server: its port."""
    certificate = Certificate.load(files.chain, files.key)
    serve = partial(
        serve_webtransport, handler, 0, host=HOST, tls=ServerTLS(certificate), **options
    )
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve)
        yield sockets[0].local_address[1]
        nursery.cancel_scope.cancel()


def client_tls(files: Files) -> ClientTLS:
    return ClientTLS(ca=Path(files.ca))


@asynccontextmanager
async def connected(
    end: End, files: Files, **options: Any
) -> AsyncIterator[tuple[WebTransportSession, PeerSession]]:
    """Our end of a session, and the peer's.

    Args:
        end: the peer.
        files: the certificate.
        options: for our end.
    """
    if end.serves:
        async with (
            end.peer.server(files, paths=[PATH]) as server,
            open_webtransport(
                f"https://{HOST}:{server.port}{PATH}", tls=client_tls(files), **options
            ) as session,
        ):
            yield session, await server.next_session()
        return
    send, receive = trio.open_memory_channel[WebTransportSession](1)
    done = trio.Event()

    async def handle(session: WebTransportSession) -> None:
        await send.send(session)
        await done.wait()

    async with serving(files, handle, **options) as port, end.peer.client(files) as client:
        theirs = await client.connect(port, PATH)
        yield await receive.receive(), theirs
        done.set()


@asynccontextmanager
async def opened_by_us(
    ours: WebTransportSession, theirs: PeerSession
) -> AsyncIterator[tuple[Stream, PeerStream]]:
    """Both ends of a stream of both directions, each of which has sent and received a byte."""
    async with ours.open_stream() as stream:
        await stream.send_all(b">")
        other = await theirs.next_stream()
        assert await other.read() == b">"
        await other.send(b"<")
        assert await stream.receive_exactly(1) == b"<"
        yield stream, other


@asynccontextmanager
async def opened_by_peer(
    ours: WebTransportSession, theirs: PeerSession
) -> AsyncIterator[tuple[Stream, PeerStream]]:
    other = await theirs.open_stream()
    await other.send(b"<")
    async with await ours.incoming_streams.receive() as stream:
        assert await stream.receive_exactly(1) == b"<"
        await stream.send_all(b">")
        assert await other.read() == b">"
        yield stream, other


every_opener = pytest.mark.parametrize("stream_pair", [opened_by_us, opened_by_peer])


# ---- streams and datagrams


@every_end
@pytest.mark.parametrize("size", SIZES)
async def test_streams_carry_bytes_both_ways_at_once(end: End, size: int, files: Files) -> None:
    up, down = os.urandom(size), os.urandom(size)
    async with connected(end, files) as (ours, theirs):
        for stream_pair in (opened_by_us, opened_by_peer):
            async with (
                stream_pair(ours, theirs) as (stream, other),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(partial(stream.send_all, up, eof=True))
                nursery.start_soon(partial(other.send, down, end=True))

                async def receive(stream: Stream = stream) -> None:
                    assert await stream.receive_all(LIMIT) == down

                nursery.start_soon(receive)
                assert await other.read_all() == up


@every_end
async def test_streams_of_one_direction(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for data in (b"", b"one way", os.urandom(2**20)):

            async def send(data: bytes = data) -> None:
                async with ours.open_send_stream() as stream:
                    await stream.send_all(data, eof=True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                assert await (await theirs.next_receive_stream()).read_all() == data

            other = await theirs.open_send_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(other.send, data, end=True))
                async with await ours.incoming_receive_streams.receive() as stream:
                    assert await stream.receive_all(LIMIT) == data


@every_end
async def test_streams_that_carry_nothing(end: End, files: Files) -> None:
    if end.peer.name == "aiopquic" and end.serves:
        pytest.skip(
            "its server does not see a stream that ends where it begins, whoever has opened it"
        )
    async with connected(end, files) as (ours, theirs):
        async with ours.open_stream() as stream:
            await stream.send_eof()
            other = await theirs.next_stream()
            assert await other.read_all() == b""
            await other.send(b"", end=True)
            assert await stream.receive_all() == b""


@every_end
async def test_many_streams_at_once(end: End, files: Files) -> None:
    count = 150  # more than either side allows at a time
    async with connected(end, files) as (ours, theirs):

        async def ask(number: int) -> None:
            async with ours.open_stream() as stream:
                await stream.send_all(b"%d" % number, eof=True)
                assert await stream.receive_all() == b"%d" % number

        async def answer(other: PeerStream) -> None:
            await other.send(await other.read_all(), end=True)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(ask, number)
            for _ in range(count):
                nursery.start_soon(answer, await theirs.next_stream())


@every_end
async def test_many_streams_of_the_peer_s(end: End, files: Files) -> None:
    count = 150
    async with connected(end, files) as (ours, theirs):

        async def ask(number: int) -> None:
            other = await theirs.open_stream()
            await other.send(b"%d" % number, end=True)
            assert await other.read_all() == b"%d" % number

        async def answer(stream: Stream) -> None:
            async with stream:
                await stream.send_all(await stream.receive_all(), eof=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, ours, count, answer)
            for start in range(0, count, 50):
                # Neither peer waits for long where our limit is reached.
                async with trio.open_nursery() as batch:
                    for number in range(start, start + 50):
                        batch.start_soon(ask, number)


async def answer_all(
    ours: WebTransportSession, count: int, answer: Callable[[Stream], Awaitable[None]]
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(answer, await ours.incoming_streams.receive())


@every_end
async def test_datagrams(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for size in (0, 1, 100, 1000, 1150):
            data = os.urandom(size)
            await ours.datagrams.send(data)
            assert await theirs.next_datagram() == data
            if data or end.peer.sends_empty_datagrams:
                await theirs.send_datagram(data)
                assert await ours.datagrams.receive() == data
        with pytest.raises(DatagramTooLarge):
            await ours.datagrams.send(bytes(ours.datagrams.max_size + 1))


@every_end
async def test_a_peer_that_sends_on_is_held_back(end: End, files: Files) -> None:
    data = os.urandom(8 * 2**20)
    async with connected(end, files, stream_window=2**16, max_stream_window=2**18) as (
        ours,
        theirs,
    ):
        async with (
            opened_by_us(ours, theirs) as (stream, other),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(partial(other.send, data, end=True))
            held = -1
            while ours.statistics().unread_bytes > held:
                held = ours.statistics().unread_bytes
                await trio.sleep(0.1)
            assert 2**15 < held <= 2**18
            assert await stream.receive_all(LIMIT) == data


@every_peer
async def test_we_are_held_back(peer: Peer, files: Files) -> None:
    if peer.name == "aiopquic":
        pytest.skip("it takes in all that comes, whether it is read or not")
    data = os.urandom(12 * 2**20)
    async with connected(End(peer, serves=True), files) as (ours, theirs):
        async with opened_by_us(ours, theirs) as (stream, other):
            with trio.move_on_after(0.5) as scope:
                await stream.send_all(data, eof=True)
            assert scope.cancelled_caught
            assert ours.statistics().unsent_bytes > 0
            stream.reset(1)


# ---- the ends of streams


@every_end
@every_opener
async def test_the_peer_resets(end: End, stream_pair: Any, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for code in CODES:
            async with stream_pair(ours, theirs) as (stream, other):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(other.reset, code)
                    with pytest.raises(StreamReset) as caught:
                        await stream.receive_some()
                assert (caught.value.code, caught.value.remote) == (code, True)
                if end.peer.half_resets:
                    await stream.send_all(b"the other half goes on", eof=True)
                    assert await other.read_all() == b"the other half goes on"


@every_end
@every_opener
async def test_the_peer_stops(end: End, stream_pair: Any, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for code in CODES:
            async with stream_pair(ours, theirs) as (stream, other):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(other.stop, code)
                    with pytest.raises(StreamReset) as caught:
                        while True:
                            await stream.send_all(bytes(1000))
                assert (caught.value.code, caught.value.remote) == (code, True)
                # What we send was reset by that.
                if end.peer.half_resets:
                    await other.send(b"the other half goes on", end=True)
                    assert await stream.receive_all() == b"the other half goes on"


@every_end
@every_opener
async def test_we_reset(end: End, stream_pair: Any, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for code in CODES:
            async with stream_pair(ours, theirs) as (stream, other):
                stream.reset(code)
                with pytest.raises(PeerReset) as caught:
                    await other.read()
                assert caught.value.code == code
                if end.peer.half_resets:
                    await other.send(b"the other half goes on", end=True)
                    assert await stream.receive_all() == b"the other half goes on"


@every_end
@every_opener
async def test_we_stop(end: End, stream_pair: Any, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        for code in CODES:
            async with stream_pair(ours, theirs) as (stream, other):
                stream.stop(code)
                assert await other.stopped() == code
                with pytest.raises(PeerReset) as caught:
                    while True:
                        await other.send(bytes(1000))
                assert caught.value.code == code
                await stream.send_all(b"the other half goes on", eof=True)
                assert await other.read_all() == b"the other half goes on"


@every_end
async def test_a_sender_is_stopped_while_it_waits(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        async with opened_by_us(ours, theirs) as (stream, other):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    with pytest.raises(PeerReset) as caught:
                        while True:
                            await other.send(bytes(65536))
                    assert caught.value.code == 12

                nursery.start_soon(send)
                await trio.sleep(0.2)
                stream.stop(12)
                assert await other.stopped() == 12


@every_end
async def test_streams_of_one_direction_are_reset_and_stopped(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        async with ours.open_send_stream() as sending:
            await sending.send_all(b".")
            other = await theirs.next_receive_stream()
            assert await other.read() == b"."
            await other.stop(41)
            with pytest.raises(StreamReset) as caught:
                while True:
                    await sending.send_all(bytes(1000))
            assert caught.value.code == 41
        other = await theirs.open_send_stream()
        await other.send(b".")
        async with await ours.incoming_receive_streams.receive() as receiving:
            assert await receiving.receive_exactly(1) == b"."
            await other.reset(42)
            with pytest.raises(StreamReset) as caught:
                await receiving.receive_some()
            assert caught.value.code == 42


# ---- cancellation


@every_end
@every_opener
async def test_our_cancellation_crosses_the_wire(end: End, stream_pair: Any, files: Files) -> None:
    async with connected(end, files, cancelled_code=11) as (ours, theirs):
        scope = trio.CancelScope()

        async def work(task_status: trio.TaskStatus[PeerStream]) -> None:
            with scope:
                async with stream_pair(ours, theirs) as (stream, other):
                    task_status.started(other)
                    await stream.receive_some()

        async with trio.open_nursery() as nursery:
            other = await nursery.start(work)

            async def read() -> None:
                with pytest.raises(PeerReset) as caught:
                    await other.read()
                assert caught.value.code == 11

            nursery.start_soon(read)
            await trio.sleep(0.05)
            assert len(nursery.child_tasks) == 2
            with trio.fail_after(1):
                scope.cancel()
                assert await other.stopped() == 11
                while len(nursery.child_tasks):
                    await trio.sleep(0.001)
        # Nothing else is harmed.
        async with opened_by_us(ours, theirs):
            pass


@every_end
async def test_a_timeout_crosses_the_wire(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with trio.move_on_after(0.1):
                    async with ours.open_send_stream() as stream:
                        await stream.send_all(b"not all")
                        await trio.sleep_forever()

            nursery.start_soon(send)
            other = await theirs.next_receive_stream()
            # What was sent before may be lost with the reset, or not.
            with pytest.raises(PeerReset) as caught:
                await other.read_all()
            assert caught.value.code == 1


@every_end
@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("oops"), 2), (StreamAbort(5), 5)], ids=["failed", "abort"]
)
async def test_a_failed_block_crosses_the_wire(
    end: End, error: Exception, code: int, files: Files
) -> None:
    async with connected(end, files) as (ours, theirs):
        try:
            async with opened_by_us(ours, theirs) as (_, other):
                raise error
        except RuntimeError as caught:
            assert caught is error
        with pytest.raises(PeerReset) as refused:
            await other.read()
        assert refused.value.code == code
        assert await other.stopped() == code


@every_peer
@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_our_client_s_block_is_cut_off(peer: Peer, how: str, files: Files) -> None:
    async with peer.server(files, paths=[PATH]) as server:
        with trio.CancelScope() as scope:
            try:
                async with open_webtransport(
                    f"https://{HOST}:{server.port}{PATH}", tls=client_tls(files)
                ) as ours:
                    theirs = await server.next_session()
                    async with opened_by_us(ours, theirs):
                        if how == "failed":
                            raise RuntimeError("oops")
                        scope.cancel()
                        await trio.sleep_forever()
            except RuntimeError:
                assert how == "failed"
        assert await theirs.closed() == (1 if how == "cancelled" else 2, "")


@every_peer
@pytest.mark.parametrize("how", ["session", "server", "failed"])
async def test_our_handler_is_cut_off(
    peer: Peer, how: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    send, receive = trio.open_memory_channel[WebTransportSession](1)
    fail = trio.Event()

    async def handle(session: WebTransportSession) -> None:
        await send.send(session)
        await fail.wait()
        raise RuntimeError("oops")

    async with peer.client(files) as client, trio.open_nursery() as nursery:
        async with serving(files, handle) as port:
            theirs = await client.connect(port, PATH)
            ours = await receive.receive()
            async with opened_by_us(ours, theirs):
                if how == "session":
                    ours.cancel_scope.cancel()
                elif how == "failed":
                    fail.set()
                else:
                    # Below, by the end of the block.
                    nursery.start_soon(expect_close, theirs, 1)
                if how != "server":
                    await expect_close(theirs, 1 if how == "session" else 2)
    assert ("a handler failed" in caplog.text) == (how == "failed")


async def expect_close(theirs: PeerSession, code: int) -> None:
    with trio.fail_after(2):
        assert await theirs.closed() == (code, "")


# ---- the ends of sessions


@every_end
@pytest.mark.parametrize(("code", "reason"), WHY)
async def test_the_peer_closes(end: End, code: int, reason: str, files: Files) -> None:
    if end.peer.name == "aiopquic":
        reason = reason[:60]  # longer ones than 255 bytes it leaves out
    async with connected(end, files) as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.close, code, reason)
            closed = await ours.wait_closed()
        assert type(closed) is (ConnectionClosedError if code else ConnectionClosedOK)
        assert (closed.code, closed.reason, closed.remote) == (code, reason, True)
        with pytest.raises(type(closed)):
            await ours.incoming_streams.receive()
        with pytest.raises(ConnectionClosed):
            async with ours.open_stream():
                pass


@every_end
@pytest.mark.parametrize(("code", "reason"), WHY)
async def test_we_close(end: End, code: int, reason: str, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        await ours.aclose(code, reason)
        assert await theirs.closed() == (code, reason)
        with pytest.raises(PeerClosed):
            await theirs.next_datagram()


@every_end
async def test_leaving_the_block_closes_without_an_error(end: End, files: Files) -> None:
    data = os.urandom(2**20)
    # Both peers drop what they have not read of a session's streams when it is closed, so they must have read it.
    read = trio.Event()

    async def send(session: WebTransportSession) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(data, eof=True)
        await read.wait()

    async def receive(theirs: PeerSession) -> None:
        assert await (await theirs.next_receive_stream()).read_all() == data
        read.set()
        assert await theirs.closed() == (0, "")

    if end.serves:
        async with end.peer.server(files, paths=[PATH]) as server, trio.open_nursery() as nursery:
            url = f"https://{HOST}:{server.port}{PATH}"
            async with open_webtransport(url, tls=client_tls(files)) as ours:
                nursery.start_soon(receive, await server.next_session())
                await send(ours)
    else:
        async with serving(files, send) as port, end.peer.client(files) as client:
            await receive(await client.connect(port, PATH))


@every_end
@pytest.mark.parametrize("how", ["closes", "disconnects"])
async def test_the_end_of_a_session_wakes_everybody_at_once(
    end: End, how: str, files: Files
) -> None:
    if how == "disconnects" and not end.peer.disconnects:
        pytest.skip(f"{end.peer} closes no connection but by closing its session")
    expected = ConnectionClosedError if how == "closes" else ConnectionLost
    seen: list[Exception] = []

    async with connected(end, files, max_streams=64) as (ours, theirs):

        async def waits(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(ConnectionClosed) as caught:
                while True:
                    await call()
            seen.append(caught.value)

        async with (
            opened_by_us(ours, theirs) as (reading, _),
            opened_by_peer(ours, theirs) as (writing, _),
            trio.open_nursery() as nursery,
        ):
            waiting: list[Callable[[], Awaitable[object]]] = [
                reading.receive_some,
                partial(writing.send_all, bytes(65536)),
                ours.datagrams.receive,
                ours.incoming_streams.receive,
                ours.incoming_receive_streams.receive,
                ours.wait_draining,
            ]
            for call in waiting:
                nursery.start_soon(waits, call)
            await trio.sleep(0.1)
            assert not seen
            with trio.fail_after(2):
                if how == "closes":
                    await theirs.close(9, "over")
                else:
                    await theirs.disconnect()
                while len(nursery.child_tasks):
                    await trio.sleep(0.001)
        assert len(seen) == len(waiting)
        assert all(isinstance(exc, expected) for exc in seen)
        assert isinstance(await ours.wait_closed(), expected)


@every_end
async def test_the_peer_s_streams_end_with_the_session(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        async with opened_by_us(ours, theirs) as (_, other), trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(PeerReset) as caught:
                    await other.read()
                if end.peer.name == "aiopquic":
                    assert caught.value.code == SESSION_GONE

            nursery.start_soon(read)
            await trio.sleep(0.05)
            ours.close_now(3, "now")
        assert await theirs.closed() == (3, "now")


@every_end
async def test_draining(end: End, files: Files) -> None:
    async with connected(end, files) as (ours, theirs):
        assert not ours.draining
        ours.drain()
        await theirs.draining()
        # It is only advice.
        async with opened_by_us(ours, theirs), opened_by_peer(ours, theirs):
            pass
    async with connected(end, files) as (ours, theirs):
        await theirs.drain()
        await ours.wait_draining()
        assert ours.draining
        async with opened_by_us(ours, theirs):
            pass


# ---- opening sessions


@every_end
@pytest.mark.parametrize(
    ("offered", "supported", "chosen"),
    [
        ([], [], None),
        ([], ["a"], None),
        (["a"], ["a"], "a"),
        (["x", "b", "a"], ["a", "y", "b"], "b"),
        (['with "quotes" and \\', "plain"], ['with "quotes" and \\'], 'with "quotes" and \\'),
    ],
)
async def test_subprotocols(
    end: End, offered: list[str], supported: list[str], chosen: str | None, files: Files
) -> None:
    if end.peer.name == "aiopquic" and any('"' in name for name in offered):
        pytest.skip("it does not escape")
    if end.serves:
        async with (
            end.peer.server(files, paths=[PATH], subprotocols=supported) as server,
            open_webtransport(
                f"https://{HOST}:{server.port}{PATH}", subprotocols=offered, tls=client_tls(files)
            ) as ours,
        ):
            theirs = await server.next_session()
            assert (ours.subprotocol, theirs.subprotocol) == (chosen, chosen)
        return
    send, receive = trio.open_memory_channel[WebTransportSession](1)

    async def handle(session: WebTransportSession) -> None:
        await send.send(session)
        await session.wait_closed()

    def choose(request: Request) -> None:
        assert list(request.subprotocols) == offered
        request.accept(subprotocol=chosen)

    async with serving(files, handle, on_request=choose) as port, end.peer.client(files) as client:
        theirs = await client.connect(port, PATH, subprotocols=offered)
        ours = await receive.receive()
        assert (ours.subprotocol, theirs.subprotocol) == (chosen, chosen)


@every_peer
async def test_a_peer_refuses(peer: Peer, files: Files) -> None:
    async with peer.server(files, paths=[PATH]) as server:
        with pytest.raises(Rejected) as caught:
            async with open_webtransport(
                f"https://{HOST}:{server.port}/elsewhere", tls=client_tls(files)
            ):
                pass
        assert caught.value.status == peer.refuses_with


@needs_newer
async def test_aiopquic_refuses_without_a_common_subprotocol(files: Files) -> None:
    async with Aio().server(files, paths=[PATH], subprotocols=["a"]) as server:
        with pytest.raises(Rejected) as caught:
            async with open_webtransport(
                f"https://{HOST}:{server.port}{PATH}", subprotocols=["b"], tls=client_tls(files)
            ):
                pass
        assert caught.value.status == 400


@every_peer
@pytest.mark.parametrize("status", [302, 403, 404, 429, 503])
async def test_we_refuse(peer: Peer, status: int, files: Files) -> None:
    async def handle(session: WebTransportSession) -> None:
        raise AssertionError("it was refused")

    def refuse(request: Request) -> None:
        assert (request.path, request.is_webtransport) == (PATH, True)
        request.reject(status, body="no")

    async with serving(files, handle, on_request=refuse) as port, peer.client(files) as client:
        with pytest.raises(PeerRefused) as caught:
            await client.connect(port, PATH)
        assert caught.value.status == (status if peer.tells_status else None)


# ---- several sessions


@every_peer
async def test_our_client_has_several_sessions_on_a_connection(peer: Peer, files: Files) -> None:
    async with (
        peer.server(files, paths=[PATH]) as server,
        open_webtransport_connection(
            f"https://{HOST}:{server.port}", tls=client_tls(files)
        ) as connection,
        connection.open_session(PATH) as first,
    ):
        their_first = await server.next_session()
        if not peer.several_sessions:
            with pytest.raises(HandshakeFailed, match="one session"):
                async with connection.open_session(PATH):
                    pass
            return
        async with connection.open_session(PATH) as second:
            their_second = await server.next_session()
            for ours, theirs in ((first, their_first), (second, their_second)):
                async with opened_by_us(ours, theirs), opened_by_peer(ours, theirs):
                    await ours.datagrams.send(b"%d" % ours.session_id)
                    assert await theirs.next_datagram() == b"%d" % ours.session_id
            await their_second.close(3, "that one")
            assert (await second.wait_closed()).code == 3
        assert first.closed is None
        async with opened_by_us(first, their_first):
            pass


@every_peer
async def test_our_client_has_one_session_after_the_other(peer: Peer, files: Files) -> None:
    async with (
        peer.server(files, paths=[PATH]) as server,
        open_webtransport_connection(
            f"https://{HOST}:{server.port}", tls=client_tls(files)
        ) as connection,
    ):
        for number in range(3):
            async with connection.open_session(PATH) as ours:
                theirs = await server.next_session()
                async with opened_by_us(ours, theirs):
                    pass
                await ours.aclose(number)
                assert await theirs.closed() == (number, "")


@needs_newer
async def test_our_server_has_several_sessions_on_a_connection(files: Files) -> None:
    send, receive = trio.open_memory_channel[WebTransportSession](3)

    async def handle(session: WebTransportSession) -> None:
        await send.send(session)
        await session.wait_closed()

    async with (
        serving(files, handle, max_sessions=3) as port,
        Py().client(files) as client,
    ):
        pairs = []
        for number in range(3):
            theirs = await client.connect(port, f"/{number}")
            ours = await receive.receive()
            assert ours.request.path == f"/{number}"
            pairs.append((ours, theirs))
        with pytest.raises(PeerRefused):
            await client.connect(port, "/more")
        assert len({id(ours.connection) for ours, _ in pairs}) == 1
        for ours, theirs in pairs:
            async with opened_by_us(ours, theirs), opened_by_peer(ours, theirs):
                await theirs.send_datagram(b"%d" % ours.session_id)
                assert await ours.datagrams.receive() == b"%d" % ours.session_id
        await pairs[1][0].aclose(8, "that one")
        assert await pairs[1][1].closed() == (8, "that one")
        assert [ours.closed is None for ours, _ in pairs] == [True, False, True]


# ---- what else there is


@every_end
async def test_secrets_that_only_both_sides_have(end: End, files: Files) -> None:
    if not end.peer.exports:
        pytest.skip(f"{end.peer} exports nothing")
    async with connected(end, files) as (ours, theirs):
        for label, context, length in (("a", b"", 16), ("label", b"context", 64)):
            assert ours.export_keying_material(
                label.encode(), context, length
            ) == await theirs.export_keying_material(label, context, length)


@every_peer
async def test_our_client_moves_to_another_address(peer: Peer, files: Files) -> None:
    async with connected(End(peer, serves=True), files) as (ours, theirs):
        async with opened_by_us(ours, theirs) as (stream, other):
            before = ours.local_address
            if not peer.migrates:
                with pytest.raises(OSError, match="connection ids"):
                    await ours.connection.migrate(local_address=(HOST, 0), timeout=0.1)
            else:
                await ours.connection.migrate(local_address=(HOST, 0))
                assert ours.local_address != before
            await stream.send_all(b"from wherever", eof=True)
            assert await other.read_all() == b"from wherever"


@needs_newer
async def test_plain_requests_beside_a_session(files: Files, tmp_path: Path) -> None:
    content = os.urandom(30_000)
    (tmp_path / "file.txt").write_bytes(content)
    async with (
        Aio(web_folder=tmp_path).server(files, paths=[PATH]) as server,
        open_webtransport_connection(
            f"https://{HOST}:{server.port}", tls=client_tls(files)
        ) as connection,
        connection.open_session(PATH) as ours,
    ):
        theirs = await server.next_session()
        for _ in range(3):
            response = await connection.request("GET", "/file.txt")
            assert (response.status, response.body) == (200, content)
            assert response.headers["content-type"] == "text/plain"
        assert (await connection.request("GET", "/nothing")).status == 404
        async with opened_by_us(ours, theirs):
            pass


@every_peer
async def test_servers_without_websockets(peer: Peer, files: Files) -> None:
    async with (
        peer.server(files, paths=[PATH]) as server,
        open_webtransport_connection(
            f"https://{HOST}:{server.port}", tls=client_tls(files)
        ) as connection,
    ):
        with pytest.raises(Rejected) as caught:
            async with connection.open_websocket("/chat"):
                pass
        assert 400 <= caught.value.status < 500
        async with connection.open_session(PATH) as ours:
            async with opened_by_us(ours, await server.next_session()):
                pass
