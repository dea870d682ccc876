"""Connections that carry sessions: trust, resumption, moving, sharing a socket, and their ends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import make
from tests.http3_peers import (
    CapsuleType,
    FrameType,
    Http3Code,
    RawPeer,
    Setting,
    raw_server,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    Visitors,
    ask,
    certificate,
    check_nothing_is_held,
    connect,
    echo,
    one_way_pair,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    Certificate,
    CertificateRejected,
    ClientTLS,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    ServerTLS,
    SessionStore,
    WebTransportConnection,
    WebTransportSession,
    open_quic_endpoint,
)
from trio_wt.testing import Network

# ---- trust


async def test_certificate_hashes() -> None:
    network = Network()
    async with serving(echo, network):
        right, wrong = certificate().sha256, bytes(32)
        for hashes in ([right], [wrong, right]):
            tls = ClientTLS(server_certificate_hashes=hashes)
            async with visit(network, tls=tls) as session:
                assert await ask(session, b"x") == b"x"
        with pytest.raises(CertificateRejected):
            async with visit(network, tls=ClientTLS(server_certificate_hashes=[wrong])):
                pytest.fail("the hash is wrong")
        with pytest.raises(CertificateRejected):
            async with visit(network, tls=ClientTLS()):
                pytest.fail("nobody knows it")
        assert trio.current_time() < 1


async def test_names_and_authorities() -> None:
    made = make(("other.test",))
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    network = Network()
    async with serving(echo, network, tls=tls):
        with pytest.raises(CertificateRejected, match=r"server\.test"):
            async with visit(network, tls=ClientTLS(ca=made.pem)):
                pytest.fail("the name is wrong")
        named = ClientTLS(ca=made.pem, server_name="other.test")
        async with visit(network, tls=named) as session:
            assert await ask(session, b"x") == b"x"


async def test_a_client_s_certificate_is_known_to_handlers() -> None:
    made = make(("client",), purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    network, visitors = Network(), Visitors()
    server = ServerTLS(certificate(), client_certificates="require", client_ca=made.pem)
    async with serving(visitors, network, tls=server):
        tls = ClientTLS(
            server_certificate_hashes=[certificate().sha256],
            certificate=Certificate.from_pem(made.pem, made.key_pem),
        )
        async with visit(network, tls=tls):
            session = await visitors.next()
            assert session.connection.peer_certificate is not None
            assert session.request.tls_peer_certificate == session.connection.peer_certificate


# ---- resumption, and no early data


class Tickets(SessionStore):
    """Tells what the tickets allow."""

    def __init__(self) -> None:
        super().__init__()
        self.early_data: list[int | None] = []

    def put(self, key: Any, ticket: Any, **kwargs: Any) -> None:
        self.early_data.append(ticket.max_early_data_size)
        super().put(key, ticket, **kwargs)


def was_resumed(connection: WebTransportConnection) -> bool:
    handshake = connection._driver.handshake
    assert handshake is not None
    assert not handshake.early_data_accepted
    return handshake.session_resumed


async def test_tls_sessions_are_resumed() -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network):
        resumed = []
        for _ in range(3):
            async with visit(network, session_store=store) as session:
                assert await ask(session, b"x") == b"x"
                resumed.append(was_resumed(session.connection))
        assert resumed == [False, True, True]
        assert session.connection.peer_certificate is None
        async with visit(network) as session:
            assert not was_resumed(session.connection)


async def test_a_request_is_never_sent_as_early_data() -> None:
    """Not even to a server that would take it, and whose tickets say so."""
    kinds: list[int] = []

    def watch(data: bytes, source: object, to: object) -> bool:
        if to == (HOST, PORT):
            kinds.append(data[0] >> 4 & 3 if data[0] & 0x80 else -1)
        return True

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        assert peer.connection.handshake_complete
        assert not peer.connection.early_data_accepted
        await exchange.receive_capsule()

    network, store = Network(delay=0.1), Tickets()
    async with raw_server(network, handler, early_data=True):
        async with visit(network, session_store=store) as session:
            await session.connection.ping()
        assert store.early_data
        assert all(store.early_data)
        await settle()
        network.drop = watch
        async with visit(network, session_store=store) as session:
            assert was_resumed(session.connection)
    assert 0 in kinds
    assert 1 not in kinds


async def test_a_session_takes_two_round_trips() -> None:
    """One for the handshake, and one for the request; the server's SETTINGS come with its part of the handshake."""
    network, store = Network(delay=0.1), SessionStore()
    async with serving(stay, network):
        for _ in range(2):
            started = trio.current_time()
            async with visit(network, session_store=store) as session:
                assert trio.current_time() - started == pytest.approx(0.4, abs=0.01)
                await session.connection.ping()


async def test_a_server_never_says_that_it_takes_early_data() -> None:
    network, store = Network(), Tickets()
    async with serving(stay, network), visit(network, session_store=store) as session:
        await session.connection.ping()
    assert store.early_data
    assert not any(store.early_data)


# ---- moving, and sharing a socket


async def test_a_connection_moves_with_its_sessions() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as one,
            session_pair(connection, visitors) as two,
            stream_pair(*one) as (a, b),
        ):
            secret = one[0].export_keying_material(b"x", b"", 16)
            for _ in range(3):
                socket = network.socket()
                await connection.migrate(socket=socket)
                assert connection.local_address == socket.local_address
                await a.send_all(b"x")
                assert await b.receive_some() == b"x"
                await settle()
                for session in (one[1], two[1]):
                    assert session.peer_address == socket.local_address
                await b.send_all(b"y")
                assert await a.receive_some() == b"y"
                await two[1].datagrams.send(b"z")
                assert await two[0].datagrams.receive() == b"z"
                async with stream_pair(two[1], two[0]), one_way_pair(*two):
                    pass
            assert one[1].export_keying_material(b"x", b"", 16) == secret


async def test_a_connection_moves_in_the_middle_of_a_transfer() -> None:
    network = Network(delay=0.01, rate=10**6)
    content = bytes(i % 251 for i in range(500_000))
    async with serving(echo, network), visit(network) as session, trio.open_nursery() as nursery:
        answers: list[bytes] = []

        @nursery.start_soon
        async def transfer() -> None:
            answers.append(await ask(session, content))

        for _ in range(2):
            await trio.sleep(0.2)
            await session.connection.migrate(socket=network.socket())
        await trio.sleep(10)
        assert answers == [content]


async def test_a_new_address_given_by_a_nat_is_followed() -> None:
    network, visitors = Network(), Visitors()
    socket = network.socket()
    async with serving(visitors, network), visit(network, socket=socket) as client:
        server = await visitors.next()
        async with stream_pair(client, server) as (a, b):
            socket.rebind()
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
            await b.send_all(b"y")
            assert await a.receive_some() == b"y"
            await settle()
            assert server.peer_address == socket.local_address


async def test_connections_share_a_socket() -> None:
    network, visitors = Network(), Visitors()
    async with (
        serving(visitors, network),
        open_quic_endpoint(socket=network.socket()) as endpoint,
        visit(network, endpoint=endpoint) as one,
        visit(network, endpoint=endpoint) as two,
    ):
        their_one, their_two = await visitors.next(), await visitors.next()
        assert their_one.peer_address == their_two.peer_address
        assert one.session_id == two.session_id == 0
        async with stream_pair(one, their_one), stream_pair(two, their_two):
            one.close_now(1)
            await settle()
        async with stream_pair(two, their_two):
            pass


# ---- the life of connections


async def test_several_sessions_on_one_connection() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors, "/one") as one,
            session_pair(connection, visitors, "/two") as two,
            session_pair(connection, visitors, "/three") as three,
        ):
            assert [ours.session_id for ours, _ in (one, two, three)] == [0, 4, 8]
            assert connection.open_sessions == one[1].connection.open_sessions == 3
            for ours, theirs in (one, two, three):
                assert ours.session_id == theirs.session_id
                assert ours.request.path == theirs.request.path
                assert ours.connection is connection
                assert theirs.connection is one[1].connection
                async with stream_pair(ours, theirs) as (a, b), one_way_pair(theirs, ours):
                    await a.send_all(ours.request.path.encode(), eof=True)
                    assert await b.receive_all() == theirs.request.path.encode()
                await ours.datagrams.send(ours.request.path.encode())
            for ours, theirs in (three, one, two):
                assert await theirs.datagrams.receive() == ours.request.path.encode()
        assert connection.open_sessions == 0
        assert connection.closed is None


async def test_leaving_the_connection_closes_it_cleanly() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        async with connect(network) as connection:
            async with session_pair(connection, visitors) as (_, theirs):
                pass
            server = theirs.connection
            assert server.closed is None
        end = await server.wait_closed()
        assert type(end) is ConnectionClosedOK
        assert end.code == Http3Code.NO_ERROR
        assert end.remote
        ours = await connection.wait_closed()
        assert not ours.remote
        assert repr(connection).startswith("<WebTransportConnection closed")
        with pytest.raises(HandshakeFailed, match="has ended"):
            async with connection.open_session():
                pytest.fail("it is closed")
        with pytest.raises(HandshakeFailed):
            await connection.request("GET", "/")
        with pytest.raises(trio.ClosedResourceError):
            await connection.ping()


@pytest.mark.parametrize("how", ["raise", "cancel"])
async def test_a_connection_whose_block_fails_lets_sessions_say_so(how: str) -> None:
    network, visitors = Network(), Visitors()
    codes = {"cancelled_code": 71, "failed_code": 72}
    async with serving(visitors, network):
        theirs: WebTransportSession | None = None
        with trio.CancelScope() as scope:
            with (
                pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True)
                if how == "raise"
                else ExitStack()
            ):
                async with connect(network, **codes) as connection:
                    async with session_pair(connection, visitors) as (_, theirs):
                        if how == "raise":
                            raise ZeroDivisionError
                        scope.cancel()
                        await trio.sleep_forever()
        assert theirs is not None
        end = await theirs.wait_closed()
        assert (end.code, end.remote) == (72 if how == "raise" else 71, True)
        end = await theirs.connection.wait_closed()
        assert end.code == Http3Code.NO_ERROR


async def test_goaway_drains_sessions_and_stops_new_ones() -> None:
    told = trio.Event()

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        await told.wait()
        await peer.send_control(FrameType.GOAWAY, b"\x04")
        await settle()
        stream = await peer.open_session_stream(exchange.stream_id, b"still open")
        await stream.send_eof()
        assert await exchange.receive_capsule() == (CapsuleType.CLOSE_SESSION, bytes(4))
        await exchange.stream.send_eof()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with connection.open_session() as session:
            assert not connection.going_away
            told.set()
            await session.wait_draining()
            assert session.draining
            assert connection.going_away
            with pytest.raises(HandshakeFailed, match="GOAWAY"):
                async with connection.open_session():
                    pytest.fail("it takes no more")
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_all() == b"still open"
            assert session.closed is None


async def test_who_waits_for_an_answer_hears_of_the_connection_s_end() -> None:
    async def handler(peer: RawPeer) -> None:
        await peer.next_request()
        await trio.sleep(1)
        peer.connection.close_now(Http3Code.NO_ERROR, "enough")

    network = Network()
    async with raw_server(network, handler):
        with pytest.raises(HandshakeFailed, match="enough"):
            async with visit(network):
                pytest.fail("there is no session")
        assert trio.current_time() < 1.5


async def test_figures_of_a_connection() -> None:
    network, visitors = Network(delay=0.05), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors):
            assert await connection.ping() == pytest.approx(0.1, abs=0.01)
            figures = connection.statistics()
            assert figures.rtt == pytest.approx(0.1, abs=0.02)
            assert figures.packets_sent > 0
            assert figures.packets_lost == 0
            assert connection.peer_settings[Setting.WT_ENABLED] == 1
            assert connection.peer_settings[Setting.MAX_FIELD_SECTION_SIZE] == 65536


async def test_a_cancelled_opening_takes_its_request_back() -> None:
    resets: list[int] = []

    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await exchange.stream.receive_some()
        resets.append(getattr(caught.value, "code", -1))
        # Too late: there is nobody.
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await exchange.send_head([(b":status", b"200")])
                await trio.sleep(0.01)
        second = await peer.accept_session()
        await second.receive_capsule()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with trio.move_on_after(1) as scope:
            async with connection.open_session():
                pytest.fail("it was never answered")
        assert scope.cancelled_caught
        await settle()
        assert resets == [Http3Code.REQUEST_CANCELLED]
        check_nothing_is_held(connection)
        async with connection.open_session():
            pass


async def test_a_connection_that_is_given_up_says_why() -> None:
    network = Network()
    async with serving(stay, network), visit(network) as session:
        driver = session.connection._driver
        driver.engine.lose("torn apart")
        driver.process()
        end = await session.wait_closed()
        assert isinstance(end, ConnectionLost)
        assert "torn apart" in str(end)
