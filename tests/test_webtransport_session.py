"""A session as its two users see it: what it knows, its scope, drain, keys and figures."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.webtransport_pairs import (
    HOST,
    PORT,
    Visitors,
    connect,
    one_way_pair,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    ConnectionClosedOK,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair

# ---- what it is


async def test_what_both_sides_know_of_each_other() -> None:
    async with webtransport_pair(path="/a%20b?x=1&y=2", subprotocols=["b", "a"]) as (
        client,
        server,
    ):
        assert client.subprotocol == server.subprotocol == "b"
        assert client.session_id == server.session_id == 0
        assert client.peer_address == server.local_address == (HOST, PORT)
        assert server.peer_address == client.local_address
        assert client.connection.peer_certificate is not None
        assert server.connection.peer_certificate is None
        for session in (client, server):
            request = session.request
            assert request.is_webtransport
            assert not request.is_websocket
            assert request.asks_for_session
            assert request.method == "CONNECT"
            assert request.http_version == "3"
            assert request.scheme == "https"
            assert request.host == f"{HOST}:{PORT}"
            assert request.target == "/a%20b?x=1&y=2"
            assert request.path == "/a b"
            assert request.query == "x=1&y=2"
            assert list(request.subprotocols) == ["b", "a"]
            assert request.origin is None
            assert session.response_headers["wt-protocol"] == '"b"'
            assert session.closed is None
            assert not session.draining
            assert session.connection.open_sessions == 1
            assert not session.connection.going_away
        assert repr(client) == (f"<WebTransportSession /a%20b?x=1&y=2 open, peer {(HOST, PORT)}>")
        assert repr(client.connection) == f"<WebTransportConnection open, peer {(HOST, PORT)}>"
        await client.aclose()
        assert repr(client).startswith("<WebTransportSession /a%20b?x=1&y=2 closed, peer ")
    assert repr(client.connection).startswith("<WebTransportConnection closed, peer ")


async def test_without_subprotocols_there_is_none() -> None:
    async with webtransport_pair() as (client, server):
        assert client.subprotocol is server.subprotocol is None
        assert list(server.request.subprotocols) == []
        assert "wt-protocol" not in client.response_headers


# ---- scopes


@pytest.mark.parametrize("how", ["theirs", "lost", "ours"])
@pytest.mark.parametrize("cancel_on_close", [True, False])
async def test_cancel_on_close(cancel_on_close: bool, how: str) -> None:
    """Cancelled is who has lost the other side, not who has closed it."""
    network, visitors = Network(), Visitors()
    cancelled = left = False
    async with serving(visitors, network):
        async with visit(network, cancel_on_close=cancel_on_close) as client:
            server = await visitors.next()
            if how == "theirs":
                server.close_now(3)
            elif how == "lost":
                network.loss = 1
            else:
                client.close_now(3)
            try:
                await trio.sleep(100 if how == "lost" else 20)
                left = True
            except trio.Cancelled:
                cancelled = True
                raise
        assert client.closed is not None
        assert cancelled == (cancel_on_close and how != "ours")
        assert left != cancelled
        assert client.cancel_scope.cancelled_caught == cancelled
        if not cancelled or how == "theirs":
            assert client.closed.code == (0 if how == "lost" else 3)


async def test_cancel_on_close_cancels_handlers() -> None:
    cancelled: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(session.request.path)
            raise

    network = Network()
    async with serving(handler, network, cancel_on_close=True), connect(network) as connection:
        async with connection.open_session("/stays"):
            async with connection.open_session("/goes"):
                pass
            await settle()
            assert cancelled == ["/goes"]


# ---- drain


@pytest.mark.parametrize("by_client", [True, False])
async def test_drain_is_a_request_and_no_more(by_client: bool) -> None:
    async with webtransport_pair() as pair:
        a, b = pair if by_client else pair[::-1]
        times: list[float] = []

        async def wait() -> None:
            await b.wait_draining()
            times.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.sleep(2)
            a.drain()
            a.drain()
        assert times == [pytest.approx(2, abs=0.1)] * 2
        assert b.draining
        assert not a.draining
        await b.wait_draining()
        # All goes on as before.
        async with stream_pair(a, b), stream_pair(b, a), one_way_pair(b, a):
            await b.datagrams.send(b"x")
            assert await a.datagrams.receive() == b"x"
        assert a.closed is b.closed is None


async def test_waiting_for_a_drain_ends_with_the_session() -> None:
    async with webtransport_pair() as (client, server):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(ConnectionClosedOK):
                    await server.wait_draining()

            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()


async def test_one_that_has_drained_before_the_wait_is_known() -> None:
    async with webtransport_pair() as (client, server):
        server.drain()
        await settle()
        assert client.draining
        with trio.testing.assert_checkpoints():
            await client.wait_draining()


# ---- keys and figures


async def test_both_sides_export_the_same_secrets() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            secrets: set[bytes] = set()
            cases = [(b"a", b"", 32), (b"b", b"", 32), (b"a", b"c", 32), (b"", b"ac", 32)]
            for label, context, length in [*cases, (b"l" * 255, b"c" * 255, 32)]:
                for ours, theirs in ((one, their_one), (two, their_two)):
                    secret = ours.export_keying_material(label, context, length)
                    assert secret == theirs.export_keying_material(label, context, length)
                    assert len(secret) == length
                    secrets.add(secret)
            assert len(secrets) == 10
            assert len(one.export_keying_material(b"x", b"", 8160)) == 8160
            for bad in ((b"l" * 256, b"", 32), (b"", b"c" * 256, 32), (b"", b"", 8161)):
                with pytest.raises(ValueError):
                    one.export_keying_material(*bad)
    async with webtransport_pair() as (other, _):
        assert other.export_keying_material(b"a", b"", 32) not in secrets


async def test_figures_of_a_session() -> None:
    network, visitors = Network(), Visitors()
    settings = {"session_window": 50_000, "max_session_window": 50_000}
    async with serving(visitors, network, **settings), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as (one, their_one),
            session_pair(connection, visitors) as (two, their_two),
        ):
            assert one.statistics().dialect == "13-14"
            assert one.statistics().send_credit == 50_000
            async with one.open_stream() as stream, one.open_send_stream() as ended:
                await stream.send_all(bytes(1000))
                await ended.send_all(bytes(10), eof=True)
                await one.datagrams.send(b"x")
                await settle()
                ours, theirs = one.statistics(), their_one.statistics()
                assert (ours.open_streams, theirs.open_streams) == (1, 2)
                assert ours.unaccepted_streams == 0
                assert theirs.unaccepted_streams == 2
                assert theirs.unread_bytes == 1010
                assert ours.unsent_bytes == 0
                assert theirs.datagrams_unread == 1
                assert theirs.datagrams_dropped == 0
                assert ours.send_credit == 50_000 - 1010
                with trio.move_on_after(1):
                    await stream.send_all(bytes(10**6))
                assert one.statistics().send_credit == 0
                for session in (two, their_two):
                    figures = session.statistics()
                    assert figures.open_streams == figures.unread_bytes == 0
                whole = their_one.connection.statistics()
                assert whole.unaccepted_streams == 2
                assert whole.unread_bytes == 50_000
                assert whole.datagrams_unread == 1
                assert whole.open_streams >= 4


async def test_the_handler_of_another_session_does_not_hear_of_an_end() -> None:
    network = Network()
    ended: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        await stay(session)
        ended.append(session.request.path)

    async with serving(handler, network), connect(network) as connection:
        async with connection.open_session("/a"), connection.open_session("/b") as b:
            b.close_now(1)
            await settle()
            assert ended == ["/b"]
    assert ended == ["/b", "/a"]
