"""The datagrams of sessions."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.http3_peers import raw_client
from tests.webtransport_pairs import (
    Visitors,
    connect,
    serving,
    session_pair,
    settle,
)
from trio_wt import (
    DatagramTooLarge,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair


@pytest.mark.parametrize("by_client", [True, False])
async def test_datagrams_go_both_ways(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        for data in (b"", b"one", bytearray(b"two"), memoryview(b"xthreex")[1:-1]):
            await a.datagrams.send(data)
            assert await b.datagrams.receive() == bytes(data)
        a.datagrams.send_nowait(b"four")
        with pytest.raises(trio.WouldBlock):
            b.datagrams.receive_nowait()
        await settle()
        assert b.datagrams.receive_nowait() == b"four"


async def test_the_largest_datagram_arrives_and_one_more_byte_is_refused() -> None:
    for settings in ({"max_packet_size": 1200}, {}):
        network = Network(mtu=1400)
        async with webtransport_pair(network=network, **settings) as (client, server):  # type: ignore[arg-type]
            await trio.sleep(5)
            for a, b in ((client, server), (server, client)):
                most = a.datagrams.max_size
                assert 1100 < most < 1400
                await a.datagrams.send(bytes(most))
                assert await b.datagrams.receive() == bytes(most)
                with pytest.raises(DatagramTooLarge) as caught:
                    await a.datagrams.send(bytes(most + 1))
                assert (caught.value.size, caught.value.max_size) == (most + 1, most)
                # It leaves no trace.
                await a.datagrams.send(b"next")
                assert await b.datagrams.receive() == b"next"


async def test_datagrams_of_sessions_with_larger_numbers_are_a_little_smaller() -> None:
    network, visitors = Network(mtu=1300), Visitors()
    async with serving(visitors, network), connect(network, max_packet_size=1200) as connection:
        for _ in range(70):
            async with session_pair(connection, visitors) as (ours, theirs):
                most = ours.datagrams.max_size
                await ours.datagrams.send(bytes(most))
                assert await theirs.datagrams.receive() == bytes(most)
                with pytest.raises(DatagramTooLarge):
                    await ours.datagrams.send(bytes(most + 1))
        assert ours.session_id >= 256


async def test_unread_datagrams_are_bounded_per_session() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_datagram_queue=10), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            for number in range(30):
                await one.datagrams.send(b"%d" % number)
            await two.datagrams.send(b"mine")
            await settle()
            assert [await their_one.datagrams.receive() for _ in range(10)] == [
                b"%d" % number for number in range(20, 30)
            ]
            assert their_one.statistics().datagrams_dropped == 20
            assert their_two.statistics().datagrams_dropped == 0
            assert their_two.statistics().datagrams_unread == 1
            assert await their_two.datagrams.receive() == b"mine"


async def test_without_datagrams_there_are_none() -> None:
    async with webtransport_pair(server_settings={"datagrams": False}) as (client, _):
        assert client.datagrams.max_size == 0
        with pytest.raises(DatagramTooLarge):
            await client.datagrams.send(b"")


async def test_closed_datagrams_are_closed_for_one_session_only() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            await one.datagrams.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await one.datagrams.send(b"x")
            await their_one.datagrams.send(b"nobody listens")
            await their_two.datagrams.send(b"somebody does")
            assert await two.datagrams.receive() == b"somebody does"
            assert one.closed is None


async def test_a_datagram_that_is_sent_at_once_does_not_overtake_the_response() -> None:
    """Not even within a packet: browsers drop what comes before the session is open."""

    async def handler(session: WebTransportSession) -> None:
        session.datagrams.send_nowait(b"first")
        await session.wait_closed()

    network = Network()
    async with serving(handler, network), raw_client(network) as peer:
        order: list[bool] = []
        upper = peer.connection._driver.upper
        arrived = upper.datagram_arrived

        def note(data: bytes) -> None:
            order.append(exchange.stream.buffered > 0)
            arrived(data)

        upper.datagram_arrived = note  # type: ignore[method-assign]
        exchange = await peer.request(peer.session_fields())
        assert await peer.connection.datagrams.receive() == b"\x00first"
        assert order == [True]
