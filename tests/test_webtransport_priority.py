"""Which session is served first (RFC 9218), and which of its streams."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    FrameType,
    Http3Code,
    RawPeer,
    raw_client,
)
from tests.webtransport_pairs import (
    Visitors,
    connect,
    serving,
    session_pair,
    settle,
)
from trio_wt import (
    Priority,
    SendStream,
    WebTransportSession,
)
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network


async def order_of(
    streams: list[tuple[WebTransportSession, bytes]], peers: list[WebTransportSession]
) -> list[bytes]:
    """In which order streams of 100 kB, begun in the given order, come to their ends."""
    finished: list[bytes] = []

    async def send(session: WebTransportSession, name: bytes) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(bytes(100_000) + name, eof=True)

    async def receive(session: WebTransportSession) -> None:
        async for stream in session.incoming_receive_streams:
            nursery.start_soon(read, stream)

    async def read(stream: Any) -> None:
        finished.append((await stream.receive_all()).strip(b"\0"))
        if len(finished) == len(streams):
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(receive, peer)
        for session, name in streams:
            nursery.start_soon(send, session, name)
    return finished


async def test_sessions_are_served_by_their_urgency() -> None:
    network, visitors = Network(rate=200_000), Visitors()
    async with serving(visitors, network, send_buffer=2**20), connect(network) as connection:
        async with (
            session_pair(connection, visitors, priority=Priority(6)) as (low, their_low),
            session_pair(connection, visitors) as (plain, their_plain),
            session_pair(connection, visitors, priority=Priority(0)) as (high, their_high),
        ):
            got = await order_of(
                [(their_low, b"low"), (their_plain, b"plain"), (their_high, b"high")],
                [low, plain, high],
            )
            assert got == [b"high", b"plain", b"low"]
            # The client keeps to what it has said, too.
            got = await order_of(
                [(low, b"low"), (plain, b"plain"), (high, b"high")],
                [their_low, their_plain, their_high],
            )
            assert got == [b"high", b"plain", b"low"]


async def test_priorities_of_streams_count_within_their_session() -> None:
    network, visitors = Network(rate=200_000), Visitors()
    async with serving(visitors, network, send_buffer=2**20), connect(network) as connection:
        async with (
            session_pair(connection, visitors, priority=Priority(5)) as (low, their_low),
            session_pair(connection, visitors, priority=Priority(1)) as (high, their_high),
            trio.open_nursery() as nursery,
        ):
            finished: list[bytes] = []

            async def read(session: WebTransportSession) -> None:
                async for stream in session.incoming_receive_streams:
                    nursery.start_soon(read_one, stream)

            async def read_one(stream: Any) -> None:
                finished.append((await stream.receive_all()).strip(b"\0"))

            nursery.start_soon(read, low)
            nursery.start_soon(read, high)
            async with (
                their_low.open_send_stream(priority=1000) as a,
                their_low.open_send_stream() as b,
                their_high.open_send_stream(priority=-1000) as c,
                their_high.open_send_stream() as d,
            ):
                for stream, name in ((b, b"b"), (a, b"a"), (c, b"c"), (d, b"d")):
                    await stream.send_all(bytes(100_000) + name, eof=True)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
            assert finished == [b"d", b"c", b"a", b"b"]


@pytest.mark.parametrize("when", ["before", "at once", "later", "while sending"])
async def test_a_client_may_think_again_about_a_session_s_priority(when: str) -> None:
    """PRIORITY_UPDATE on the control stream, RFC 9218 section 7.2."""
    network, visitors = Network(rate=200_000, queue=16_000), Visitors()
    async with (
        serving(visitors, network, send_buffer=2**20),
        raw_client(network, connection_window=2**24, stream_window=2**20) as peer,
    ):
        if when == "before":
            await update(peer, 4, b"u=0")
            await settle()
        first = await peer.open_session(b"/first")
        one = await visitors.next()
        second = await peer.open_session(b"/second", (b"priority", b"u=7"))
        assert second.stream_id == 4
        if when == "at once":
            await update(peer, 4, b"u=0")
        two = await visitors.next()
        if when == "later":
            await update(peer, 4, b"u=0")
        await settle()
        finished: list[int] = []

        async def read() -> None:
            session_id, stream = await peer.next_session_receive_stream()
            async for _ in stream:
                pass
            finished.append(session_id)

        async def send(session: WebTransportSession) -> None:
            stream: SendStream
            async with session.open_send_stream() as stream:
                await stream.send_all(bytes(200_000))

        async with trio.open_nursery() as nursery:
            for session in (one, two):
                nursery.start_soon(read)
                nursery.start_soon(send, session)
            if when == "while sending":
                await trio.sleep(0.2)
                await update(peer, 4, b"u=0")
        assert finished == [second.stream_id, first.stream_id]
        assert two.request.headers["priority"] == "u=7"


async def update(peer: RawPeer, stream_id: int, value: bytes) -> None:
    await peer.send_control(FrameType.PRIORITY_UPDATE, encode(stream_id) + value)


async def test_priorities_that_make_no_sense_are_the_default() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session(b"/", (b"priority", b"u=9, \xff?"))
        await visitors.next()
        for value in (b"u=8", b"u=-1", b"u", b"u=1.5", b'u="0"', b"(((", b"", b"\xff", b"u=(0 1)"):
            await update(peer, exchange.stream_id, value)
        # Of a session that is not there yet.
        await update(peer, 400, b"u=1")
        await settle()
        assert peer.connection.closed is None


@pytest.mark.parametrize("kind", [FrameType.PRIORITY_UPDATE, FrameType.PRIORITY_UPDATE_PUSH])
async def test_priorities_of_what_cannot_be_are_an_error(kind: FrameType) -> None:
    """A number that is no request's, and a push, of which there are none (RFC 9218 section 7.2)."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        await peer.send_control(kind, encode(1) + b"u=1")
        assert (await peer.connection.wait_closed()).code == Http3Code.ID_ERROR
