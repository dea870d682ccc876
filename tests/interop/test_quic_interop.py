"""QUIC with other implementations at the other end, both ways."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tests.interop.quic_peers import ALPN, LIMIT, Peer, Seen, serve_peer
from trio_wt import (
    Certificate,
    ClientTLS,
    Connection,
    ConnectionClosedError,
    ServerTLS,
    StreamReset,
    open_quic,
    serve_quic,
)

pytestmark = pytest.mark.real_clock

# aiopquic's wheels are for Python 3.12 and later.
needs_newer = pytest.mark.skipif(sys.version_info < (3, 12), reason="aiopquic needs Python 3.12")
PEERS = [
    pytest.param(Peer("aioquic"), id="aioquic"),
    pytest.param(Peer("qh3"), id="qh3"),
    pytest.param(Peer("aiopquic"), id="aiopquic", marks=needs_newer),
]
SIZES = [1, 1199, 100_000, 4 * 2**20]

every_peer = pytest.mark.parametrize("peer", PEERS)


class Files:
    """A certificate for localhost, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self.chain, self.key, self.ca = (
            str(folder / name) for name in ("chain.pem", "key.pem", "ca.pem")
        )
        Path(self.chain).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)
        authority.cert_pem.write_to_path(self.ca)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


# ---- our client


@asynccontextmanager
async def connected(peer: Peer, files: Files) -> AsyncIterator[tuple[Connection, Seen]]:
    """Our client at a peer's server."""
    async with peer.server(files.chain, files.key) as (port, seen):
        tls = ClientTLS(ca=Path(files.ca), server_name="localhost")
        async with open_quic("127.0.0.1", port, alpn=[ALPN], tls=tls) as connection:
            yield connection, seen


@every_peer
@pytest.mark.parametrize("size", SIZES)
async def test_our_client_gets_its_streams_back(peer: Peer, size: int, files: Files) -> None:
    data = os.urandom(size)
    async with connected(peer, files) as (connection, _):
        assert connection.alpn == ALPN
        async with connection.open_stream() as stream:

            async def send() -> None:
                await stream.send_all(data, eof=True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                assert await stream.receive_all(LIMIT) == data


@every_peer
async def test_our_client_has_many_streams(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _), trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            async with connection.open_stream() as stream:
                await stream.send_all(b"%d" % number, eof=True)
                assert await stream.receive_all() == b"%d" % number

        for number in range(300):
            nursery.start_soon(ask, number)


@every_peer
async def test_our_client_has_streams_of_one_direction(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _):
        async with connection.open_send_stream() as stream:
            await stream.send_all(b"one way")
        async with await connection.incoming_receive_streams.receive() as answer:
            assert await answer.receive_all() == b"one way"


@every_peer
async def test_our_client_has_datagrams(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _):
        assert connection.datagrams.max_size >= 1000
        for number in range(20):
            datagram = bytes([number]) * (number * 50 + 1)
            await connection.datagrams.send(datagram)
            assert await connection.datagrams.receive() == datagram


@every_peer
async def test_our_client_is_reset_and_stopped(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _):
        async with connection.open_stream() as stream:
            await stream.send_all(b"reset 77", eof=True)
            with pytest.raises(StreamReset) as caught:
                await stream.receive_all()
            assert (caught.value.code, caught.value.remote) == (77, True)
        async with connection.open_stream() as stream:
            await stream.send_all(b"stop 78")
            with pytest.raises(StreamReset) as caught:
                while True:
                    await stream.send_all(bytes(1000))
                    await trio.sleep(0.01)
            assert caught.value.code == 78


@every_peer
async def test_our_client_resets_and_stops(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, seen):
        async with connection.open_stream() as stream:
            await stream.send_all(b"something")
            await connection.ping()
            stream.reset(5)
            stream.stop(6)
            number = stream.stream_id
        while number not in seen.resets:
            await trio.sleep(0.01)
        assert seen.resets[number] == 5
        while number not in seen.stops:
            await trio.sleep(0.01)
        assert seen.stops[number] == 6


@every_peer
async def test_our_client_is_told_why_it_is_closed(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _):
        async with connection.open_stream() as stream:
            await stream.send_all(b"close 99 that is why", eof=True)
            closed = await connection.wait_closed()
        assert isinstance(closed, ConnectionClosedError)
        # aiopquic sends no reasons, and hears none.
        reason = "" if peer.name == "aiopquic" else "that is why"
        assert (closed.code, closed.reason, closed.remote) == (99, reason, True)


@every_peer
async def test_our_client_tells_why_it_closes(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, seen):
        await connection.aclose(7, "enough")
        with trio.move_on_after(3):
            while seen.closed is None:
                await trio.sleep(0.01)
        if peer.name == "aioquic":  # tells only when the closing period is over
            assert seen.closed in (None, (7, "enough"))
        else:
            assert seen.closed is not None
            assert seen.closed[0] == 7


@every_peer
async def test_our_client_updates_keys_and_migrates(peer: Peer, files: Files) -> None:
    async with connected(peer, files) as (connection, _):

        async def echo(data: bytes) -> None:
            async with connection.open_stream() as stream:
                await stream.send_all(data, eof=True)
                assert await stream.receive_all(LIMIT) == data

        await echo(b"before")
        connection.update_keys()
        await echo(b"with new keys" * 1000)
        before = connection.local_address
        await connection.migrate(local_address=("127.0.0.1", 0))
        assert connection.local_address != before
        await echo(b"from elsewhere" * 1000)


# ---- our server


@asynccontextmanager
async def serving(files: Files, **options: Any) -> AsyncIterator[int]:
    """Our server, for peers' clients."""
    certificate = Certificate.load(files.chain, files.key)
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(
            partial(
                serve_quic,
                serve_peer,
                0,
                host="127.0.0.1",
                alpn=[ALPN],
                tls=ServerTLS(certificate),
                **options,
            )
        )
        yield sockets[0].local_address[1]
        nursery.cancel_scope.cancel()


def send(protocol: Any, data: bytes, *, fin: bool = True, one_way: bool = False) -> int:
    """Send on a new stream of a peer's; its number."""
    number: int = protocol._quic.get_next_available_stream_id(is_unidirectional=one_way)
    protocol._quic.send_stream_data(number, data, fin)
    if hasattr(protocol, "transmit"):
        protocol.transmit()
    return number


@every_peer
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("retry", ["never", "always"])
async def test_our_server_sends_streams_back(
    peer: Peer, size: int, retry: str, files: Files
) -> None:
    if retry == "always" and size > 1:
        return  # the handshake is what differs
    data = os.urandom(size)

    async def act(protocol: Any, seen: Seen, until: Any) -> bytes:
        if peer.name == "aiopquic" and size > 2**18:
            number = protocol._quic.get_next_available_stream_id()
            for start in range(0, size, 65536):
                part = data[start : start + 65536]
                last = start + 65536 >= size
                await protocol._quic.send_stream_data_drained(number, part, last)
        else:
            number = send(protocol, data)
        await until(lambda: number in seen.ended)
        return bytes(seen.data[number])

    async with serving(files, retry=retry) as port:
        assert await peer.client(port, act) == data


@every_peer
async def test_our_server_has_streams_of_one_direction_and_datagrams(
    peer: Peer, files: Files
) -> None:
    async def act(protocol: Any, seen: Seen, until: Any) -> tuple[bytes, list[bytes]]:
        send(protocol, b"one way", one_way=True)
        await until(lambda: 3 in seen.ended)
        for number in range(10):
            protocol._quic.send_datagram_frame(b"datagram %d" % number)
            if hasattr(protocol, "transmit"):
                protocol.transmit()
            await until(lambda number=number: len(seen.datagrams) > number)
        return bytes(seen.data[3]), seen.datagrams

    async with serving(files) as port:
        answer, datagrams = await peer.client(port, act)
        assert answer == b"one way"
        assert datagrams == [b"datagram %d" % number for number in range(10)]


@every_peer
async def test_our_server_resets_stops_and_closes(peer: Peer, files: Files) -> None:
    async def act(protocol: Any, seen: Seen, until: Any) -> tuple[Any, ...]:
        reset = send(protocol, b"reset 77")
        await until(lambda: reset in seen.resets)
        stop = send(protocol, b"stop 78", fin=False)
        await until(lambda: stop in seen.stops)
        send(protocol, b"close 99 that is why")
        await until(lambda: seen.closed is not None)
        return seen.resets[reset], seen.stops.get(stop), seen.closed

    async with serving(files) as port:
        reset, stop, closed = await peer.client(port, act)
        assert reset == 77
        assert stop == 78
        assert closed == (99, "" if peer.name == "aiopquic" else "that is why")


@every_peer
async def test_our_server_has_many_streams_of_a_peer_s(peer: Peer, files: Files) -> None:
    async def act(protocol: Any, seen: Seen, until: Any) -> dict[int, bytes]:
        answers = {}
        for batch in range(5):
            numbers = [
                send(protocol, b"%d" % number) for number in range(batch * 50, batch * 50 + 50)
            ]
            await until(lambda numbers=numbers: seen.ended.issuperset(numbers))
            answers.update({number: bytes(seen.data[number]) for number in numbers})
        return answers

    async with serving(files) as port:
        answers = await peer.client(port, act)
        assert sorted(map(int, answers.values())) == list(range(250))
