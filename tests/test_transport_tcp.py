"""Stream sockets as transports, over real ones."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_wt._transport.tcp import SocketTransport, transport_of
from trio_wt._transport.transport import Interrupted, Pieces, StreamTransport

pytestmark = pytest.mark.real_clock


@asynccontextmanager
async def pair(
    *, buffer: int | None = None
) -> AsyncIterator[tuple[SocketTransport, socket.socket]]:
    """A transport, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    if buffer is not None:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    theirs.setblocking(False)
    transport = SocketTransport(ours)
    try:
        yield transport, theirs
    finally:
        theirs.close()
        await transport.aclose(graceful=False)


@asynccontextmanager
async def tcp_pair(
    family: socket.AddressFamily = socket.AF_INET,
) -> AsyncIterator[tuple[SocketTransport, socket.socket]]:
    """The same over TCP on loopback."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        ours = socket.create_connection(listener.getsockname()[:2])
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    transport = SocketTransport(ours)
    try:
        yield transport, theirs
    finally:
        theirs.close()
        await transport.aclose(graceful=False)


def drain(sock: socket.socket) -> bytes:
    """All that is there."""
    data = b""
    try:
        while more := sock.recv(2**20):
            data += more
    except BlockingIOError:
        pass
    return data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- bytes


async def test_bytes_both_ways() -> None:
    async with pair() as (transport, peer):
        pieces: Pieces = [b"hello"]
        await transport.send_some(pieces)
        assert pieces == []
        assert peer.recv(100) == b"hello"
        peer.send(b"back")
        assert await transport.receive() == b"back"


async def test_receiving_waits() -> None:
    async with pair() as (transport, peer), trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await transport.receive() == b"late"

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"late")


async def test_reads_grow_while_data_stream_in() -> None:
    async with tcp_pair() as (transport, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += peer.send(bytes(100_000))
        assert sent > 200_000
        sizes = [len(await transport.receive())]
        while sum(sizes) < sent:
            sizes.append(len(await transport.receive()))
        assert sizes[0] == 65536, "an idle connection asks for little"
        assert max(sizes) > 100_000
        assert max(sizes) <= 2**20
        peer.send(b"small")
        assert await transport.receive() == b"small"
        assert peer.send(bytes(100_000)) == 100_000
        await trio.sleep(0.01)
        assert len(await transport.receive()) == 65536


async def test_several_pieces_go_in_one_call() -> None:
    async with pair() as (transport, peer):
        pieces: Pieces = [b"a", memoryview(b"bc"), b"def"]
        await transport.send_some(pieces)
        assert pieces == []
        assert peer.recv(100) == b"abcdef"


async def test_more_pieces_than_the_system_takes_at_once() -> None:
    async with pair() as (transport, peer):
        pieces: Pieces = [b"%04d" % number for number in range(3000)]
        whole = b"".join(pieces)
        received = b""
        while pieces:
            await transport.send_some(pieces)
            received += drain(peer)
        assert received == whole


@pytest.mark.parametrize("parts", [1, 3, 400])
async def test_partial_sends_lose_nothing(parts: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(300_000))
    size = len(data) // parts + 1
    pieces: Pieces = [data[at : at + size] for at in range(0, len(data), size)]
    received = b""
    async with pair(buffer=4096) as (transport, peer):
        calls = 0
        while pieces:
            left = sum(map(len, pieces))
            await transport.send_some(pieces)
            calls += 1
            assert sum(map(len, pieces)) < left
            received += drain(peer)
    assert received == data
    assert calls > 3, "the buffer was too small for it all"


def fill(transport: SocketTransport) -> int:
    """Send until the system takes no more: how much it took."""
    total = 0
    while size := transport.send_nowait(bytes(10_000)):
        total += size
    return total


async def test_what_goes_out_at_once_and_what_does_not() -> None:
    async with pair(buffer=4096) as (transport, peer):
        assert transport.send_nowait(b"small") == 5
        assert peer.recv(100) == b"small"
        data = bytes(i & 0xFF for i in range(500_000))
        size = transport.send_nowait(data)
        assert 0 < size < len(data)
        assert transport.send_nowait(b"more") == 0
        received = b""
        while len(received) < size:
            received += drain(peer)
        assert received == data[:size]


async def test_a_sender_waits_for_room_and_can_be_cancelled() -> None:
    async with pair(buffer=4096) as (transport, peer):
        filled = fill(transport)
        pieces: Pieces = [b"late"]
        with trio.move_on_after(0.01) as scope:
            await transport.send_some(pieces)
        assert scope.cancelled_caught
        assert pieces == [b"late"], "cancelled, it has sent nothing"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_some, pieces)
            await trio.testing.wait_all_tasks_blocked()
            received = b""
            while len(received) < filled + 4:
                received += drain(peer)
                await trio.sleep(0)
        assert received.endswith(b"\0late")
        assert pieces == []


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with pair() as (transport, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            peer.send(b"kept")
            await transport.receive()
        assert scope.cancelled_caught
        assert await transport.receive() == b"kept"


# ---- interrupting


async def test_a_receive_can_be_interrupted_and_loses_nothing() -> None:
    async with pair(buffer=4096) as (transport, peer), trio.open_nursery() as nursery:
        filled = fill(transport)
        interrupted = trio.Event()
        pieces: Pieces = [b"late"]

        async def receive() -> None:
            with pytest.raises(Interrupted):
                await transport.receive()
            interrupted.set()

        nursery.start_soon(receive)
        nursery.start_soon(transport.send_some, pieces)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.interruptible
        transport.interrupt()
        await interrupted.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert pieces == [b"late"], "who sends goes on waiting"
        peer.send(b"kept")
        assert await transport.receive() == b"kept"
        received = b""
        while len(received) < filled + 4:
            received += drain(peer)
            await trio.sleep(0)
        assert received.endswith(b"\0late")


async def test_interrupting_nobody_does_nothing() -> None:
    async with pair() as (transport, peer):
        transport.interrupt()
        peer.send(b"x")
        assert await transport.receive() == b"x"


# ---- ends


async def test_the_end_both_ways() -> None:
    async with pair() as (transport, peer):
        await transport.send_eof()
        assert peer.recv(10) == b""
        peer.send(b"last")
        peer.shutdown(socket.SHUT_WR)
        assert await transport.receive() == b"last"
        assert await transport.receive() == b""
        assert await transport.receive() == b""


async def test_ending_our_side_is_a_checkpoint() -> None:
    async with pair() as (transport, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.send_eof()
        assert scope.cancelled_caught
        with pytest.raises(BlockingIOError):
            peer.recv(1)


async def test_a_reset_breaks_the_connection() -> None:
    async with tcp_pair() as (transport, peer):
        reset(peer)
        with pytest.raises(trio.BrokenResourceError, match="reset") as caught:
            await transport.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert transport.send_nowait(b"x") == 0  # the next to wait is told
        pieces: Pieces = [b"x"]
        with pytest.raises(trio.BrokenResourceError, match="the connection broke"):
            await transport.send_some(pieces)
        await transport.send_eof()  # errors are swallowed


async def test_sending_to_a_peer_that_is_gone() -> None:
    async with pair() as (transport, peer):
        peer.close()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await transport.send_some([b"x"])
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        assert cause.errno == errno.EPIPE
        assert await transport.receive() == b""


@pytest.mark.parametrize("graceful", [True, False])
async def test_closing_wakes_a_task_that_waits(graceful: bool) -> None:
    async with pair(buffer=4096) as (transport, _), trio.open_nursery() as nursery:
        fill(transport)
        woken: list[str] = []

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()
            woken.append("receiver")

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send_some([b"x"])
            woken.append("sender")

        nursery.start_soon(receive)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose(graceful=graceful)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["receiver", "sender"]


async def test_after_closing_it_is_closed() -> None:
    async with pair() as (transport, peer):
        await transport.aclose(graceful=True)
        assert peer.recv(10) == b""
        await transport.aclose(graceful=True)  # again
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()
        with pytest.raises(trio.ClosedResourceError):
            await transport.send_some([b"x"])
        assert transport.send_nowait(b"x") == 0
        transport.interrupt()
        await transport.send_eof()
        for call in (transport.receive, lambda: transport.send_some([b"x"])):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught, "a checkpoint all the same"


async def test_closing_is_a_checkpoint_that_closes_all_the_same() -> None:
    async with pair() as (transport, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.aclose(graceful=True)
        assert scope.cancelled_caught
        assert peer.recv(10) == b""


# ---- what it is


async def test_addresses_of_tcp() -> None:
    async with tcp_pair() as (transport, peer):
        assert transport.peer == peer.getsockname()
        assert transport.local == peer.getpeername()


async def test_addresses_of_ipv6() -> None:
    async with tcp_pair(socket.AF_INET6) as (transport, peer):
        assert transport.peer == peer.getsockname()
        assert transport.local is not None
        assert transport.local[0] == "::1"


async def test_addresses_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = SocketTransport(socket.socket(socket.AF_UNIX))
        await client.aclose(graceful=False)
        assert client.peer is None, "not connected"
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(path)
        theirs, _ = listener.accept()
        client, server = SocketTransport(ours), SocketTransport(theirs)
        assert (client.peer, client.local) == (path, None)
        assert (server.peer, server.local) == (None, path)
        await client.send_some([b"unix"])
        assert await server.receive() == b"unix"
        await client.aclose(graceful=False)
        assert await server.receive() == b""
        await server.aclose(graceful=False)


async def test_an_address_in_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind("")  # the system chooses a name
        except OSError:
            return  # only Linux has it
        name = listener.getsockname()
        if not isinstance(name, bytes):
            return
        listener.listen()
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(name)
        transport = SocketTransport(ours)
        assert transport.peer == name.decode()
        await transport.aclose(graceful=False)


async def test_a_peer_can_be_given() -> None:
    a, b = socket.socketpair()
    with b:
        transport = SocketTransport(a, peer=("192.0.2.7", 1))
        assert transport.peer == ("192.0.2.7", 1)
        await transport.aclose(graceful=False)


async def test_small_messages_do_not_wait_for_acknowledgements() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        transport = SocketTransport(ours)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not ours.getblocking()
        await transport.aclose(graceful=False)


async def trio_pair() -> tuple[trio.SocketStream, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await trio.open_tcp_stream(*listener.getsockname())
        theirs, _ = listener.accept()
    assert isinstance(stream, trio.SocketStream)
    return stream, theirs


async def test_a_socket_stream_of_our_own_gives_its_socket_away() -> None:
    stream, theirs = await trio_pair()
    with theirs:
        transport = transport_of(stream, owned=True)
        assert isinstance(transport, SocketTransport)
        assert transport.peer == theirs.getsockname()
        assert stream.socket.fileno() == -1
        await transport.send_some([b"x"])
        assert theirs.recv(10) == b"x"
        await transport.aclose(graceful=False)
        assert theirs.recv(10) == b""


async def test_a_stream_that_somebody_else_holds_stays_whole() -> None:
    stream, theirs = await trio_pair()
    with theirs:
        transport = transport_of(stream, owned=False)
        assert isinstance(transport, StreamTransport)
        assert transport.peer == theirs.getsockname()
        assert transport.local == theirs.getpeername()
        await stream.send_all(b"still usable")
        assert theirs.recv(100) == b"still usable"
        await transport.aclose(graceful=False)
        assert theirs.recv(10) == b""


async def test_addresses_under_tls() -> None:
    stream, theirs = await trio_pair()
    with theirs:
        inner = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="a")
        outer = trio.SSLStream(inner, ssl.create_default_context(), server_hostname="a")
        transport = transport_of(outer, owned=True)
        assert isinstance(transport, StreamTransport)
        assert transport.peer == theirs.getsockname()
        assert transport.local == theirs.getpeername()
        await transport.aclose(graceful=False)
        assert stream.socket.fileno() == -1


async def test_a_stream_without_a_socket_has_no_address() -> None:
    ours, _ = trio.testing.memory_stream_pair()
    transport = transport_of(ours, owned=True)
    assert isinstance(transport, StreamTransport)
    assert (transport.peer, transport.local) == (None, None)
