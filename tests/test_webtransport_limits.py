"""How many streams a session may have, how many sessions a connection, and limits that must not be."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    CapsuleType,
    Exchange,
    Http3Code,
    RawPeer,
    number_capsule,
    raw_client,
    raw_server,
    settings_of,
)
from tests.webtransport_pairs import (
    Visitors,
    check_credit,
    check_nothing_is_held,
    connect,
    one_way_pair,
    open_loose,
    serving,
    session_pair,
    settle,
    stream_pair,
    visit,
)
from trio_wt import (
    ConnectionClosedError,
    ConnectionLost,
    HandshakeFailed,
    Rejected,
    Stream,
    StreamReset,
    WebTransportSession,
)
from trio_wt._protocol.varint import decode, encode
from trio_wt.testing import Network, webtransport_pair

WINDOW = 20_000
FIXED = {"session_window": WINDOW, "max_session_window": WINDOW}
NONE = {
    "WT_INITIAL_MAX_DATA": None,
    "WT_INITIAL_MAX_STREAMS_BIDI": None,
    "WT_INITIAL_MAX_STREAMS_UNI": None,
}


# ---- streams


async def count_openable(session: WebTransportSession, *, unidirectional: bool = False) -> int:
    """How many streams can be opened at once. They stay open."""
    count = 0
    with trio.move_on_after(1) as scope:
        while True:
            await (await open_loose(session, unidirectional=unidirectional)).send_all(b"x")
            count += 1
    assert scope.cancelled_caught
    return count


@pytest.mark.parametrize("by_client", [True, False])
async def test_each_session_may_have_so_many_streams(by_client: bool) -> None:
    network, visitors = Network(), Visitors()
    limits = {"max_streams": 3}
    async with serving(visitors, network, **limits), connect(network, **limits) as connection:
        async with session_pair(connection, visitors) as one:
            session = one[not by_client]
            assert await count_openable(session) == 3
            session.close_now()
        await settle()
        async with session_pair(connection, visitors) as two:
            session = two[not by_client]
            assert await count_openable(session) == 3
            session.close_now()


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_session_that_uses_up_its_streams_leaves_others_theirs(by_client: bool) -> None:
    """With default settings, whoever opens them, and new sessions can be opened too."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors, "/full") as full,
            session_pair(connection, visitors, "/free") as free,
        ):
            session = full[not by_client]
            assert await count_openable(session) == 128
            assert await count_openable(session, unidirectional=True) == 128
            with trio.fail_after(10):
                for a, b in (free, free[::-1]):
                    async with stream_pair(a, b), one_way_pair(a, b):
                        for _ in range(30):
                            for unidirectional in (False, True):
                                stream = await open_loose(a, unidirectional=unidirectional)
                                await stream.send_all(b"x")
                async with session_pair(connection, visitors, "/new") as new, stream_pair(*new):
                    pass
                assert (await connection.request("GET", "/")).status == 404
            full[0].close_now()


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("unidirectional", [True, False])
async def test_streams_wait_for_others_to_end_and_come_in_turn(
    unidirectional: bool, by_client: bool
) -> None:
    async with webtransport_pair(max_streams=2, max_receive_streams=2) as pair:
        a, b = pair if by_client else pair[::-1]
        order: list[int] = []
        incoming = b.incoming_receive_streams if unidirectional else b.incoming_streams

        async def use(number: int) -> None:
            async with a.open_send_stream() if unidirectional else a.open_stream() as stream:
                order.append(number)
                await stream.send_all(b"%d" % number)
                # One at a time: tasks that are woken together run in any order.
                await trio.sleep(1 + number * 7 % 10 * 0.043)

        async with trio.open_nursery() as taking:

            @taking.start_soon
            async def take() -> None:
                async for stream in incoming:  # type: ignore[attr-defined]
                    async with stream:
                        await stream.receive_all()

            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(use, number)
                    await trio.testing.wait_all_tasks_blocked()
                await settle()
                assert order == [0, 1]
            assert order == list(range(10))
            taking.cancel_scope.cancel()
        await settle()
        assert a.statistics().open_streams == b.statistics().open_streams == 0


async def test_who_is_cancelled_while_waiting_takes_nobody_s_turn() -> None:
    async with webtransport_pair(max_streams=1) as (client, server):
        opened: list[str] = []
        scopes: dict[str, trio.CancelScope] = {}

        async def use(name: str) -> None:
            with trio.CancelScope() as scopes[name]:
                async with client.open_stream() as stream:
                    opened.append(name)
                    await stream.send_all(b"x", eof=True)
                    await stream.receive_all()

        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(use, name)
                await trio.testing.wait_all_tasks_blocked()
            scopes["b"].cancel()
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                async with await server.incoming_streams.receive() as stream:
                    await stream.receive_all()
                    # Together with the turn that it would be given.
                    if opened == ["a"]:
                        scopes["c"].cancel()
                await settle()
                if opened == ["a", "d"]:
                    break
            async with await server.incoming_streams.receive() as stream:
                await stream.receive_all()
        assert opened == ["a", "d"]
        check_credit(client, server)


async def test_streams_that_are_opened_and_never_used_count_and_are_freed() -> None:
    async with webtransport_pair(max_streams=4, max_receive_streams=4) as (client, server):
        for _ in range(20):
            async with client.open_stream():
                pass
            async with client.open_send_stream() as stream:
                stream.reset(1)
            async with await server.incoming_streams.receive() as theirs:
                assert await theirs.receive_some() == b""
            async with await server.incoming_receive_streams.receive() as receive_stream:
                with pytest.raises(StreamReset):
                    await receive_stream.receive_some()


async def test_one_stream_too_many_is_the_session_s_end() -> None:
    for unidirectional in (True, False):
        network, visitors = Network(), Visitors()
        async with serving(visitors, network, max_streams=3, max_receive_streams=3):
            async with raw_client(network) as peer:
                other = await peer.open_session(b"/other")
                their_other = await visitors.next()
                exchange = await peer.open_session()
                session = await visitors.next()
                for number in range(4):
                    assert session.closed is None
                    if unidirectional:
                        await peer.open_session_send_stream(exchange.stream_id, b"%d" % number)
                    else:
                        await peer.open_session_stream(exchange.stream_id, b"%d" % number)
                    await settle()
                assert session.closed is not None
                assert "WT_FLOW_CONTROL_ERROR" in session.closed.reason
                assert their_other.closed is None
                await peer.open_session_stream(other.stream_id, b"x")
                await their_other.incoming_streams.receive()


async def test_a_client_says_that_it_waits_for_streams_and_hears_of_more() -> None:
    heard: list[tuple[int, bytes]] = []

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        for kind in (CapsuleType.MAX_STREAMS_BIDI, CapsuleType.MAX_STREAMS_UNI):
            capsule = await exchange.receive_capsule()
            assert capsule is not None
            heard.append(capsule)
            await trio.sleep(1)
            await exchange.send_data(number_capsule(kind, 2))

    network = Network()
    settings = settings_of(WT_INITIAL_MAX_STREAMS_BIDI=1, WT_INITIAL_MAX_STREAMS_UNI=0)
    async with raw_server(network, handler, settings=settings), visit(network) as session:
        async with session.open_stream(), session.open_stream():
            assert trio.current_time() == pytest.approx(1, abs=0.1)
            async with session.open_send_stream(), session.open_send_stream():
                assert trio.current_time() == pytest.approx(2, abs=0.1)
        assert heard == [
            (CapsuleType.STREAMS_BLOCKED_BIDI, encode(1)),
            (CapsuleType.STREAMS_BLOCKED_UNI, encode(0)),
        ]
        session.close_now()


async def test_a_server_gives_more_streams_in_steps() -> None:
    """Neither a capsule for every stream, nor so late that a peer waits without need."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_streams=8), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        limits: list[int] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def hear() -> None:
                with contextlib.suppress(StreamReset):
                    while (capsule := await exchange.receive_capsule()) is not None:
                        if capsule[0] == CapsuleType.MAX_STREAMS_BIDI:
                            limits.append(capsule[1][0] & 0x3F)

            for _ in range(20):
                stream = await peer.open_session_stream(exchange.stream_id, b"x")
                await stream.send_eof()
                async with await session.incoming_streams.receive() as theirs:
                    await theirs.receive_all()
                await settle()
            nursery.cancel_scope.cancel()
        assert limits == [12, 16, 20, 24, 28]


# ---- capsules that must not be


@pytest.mark.parametrize(
    "capsules",
    [
        [(CapsuleType.MAX_DATA, 5)],
        [(CapsuleType.MAX_DATA, 2**30), (CapsuleType.MAX_DATA, 2**30 - 1)],
        [(CapsuleType.MAX_STREAMS_BIDI, 5)],
        [(CapsuleType.MAX_STREAMS_UNI, 5)],
        [(CapsuleType.MAX_STREAMS_UNI, 2**60 + 1)],
        [(CapsuleType.MAX_STREAMS_BIDI, 2**60 + 1)],
        [(CapsuleType.MAX_STREAM_DATA, 2**30)],
        [(CapsuleType.STREAM_DATA_BLOCKED, 2**30)],
    ],
    ids=lambda capsules: f"{capsules[-1][0].name} {capsules[-1][1]}",
)
async def test_limits_that_must_not_be_end_the_session(
    capsules: list[tuple[CapsuleType, int]],
) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        async with session.open_stream() as stream:
            for capsule in capsules:
                assert session.closed is None
                await exchange.send_data(number_capsule(*capsule))
                await settle()
            assert isinstance(session.closed, ConnectionLost)
            with pytest.raises(StreamReset) as caught:
                await exchange.receive_capsule()
            assert caught.value.wire_code == Http3Code.WT_FLOW_CONTROL_ERROR
            with pytest.raises(ConnectionClosedError):
                await stream.send_all(b"x")
        assert peer.connection.closed is None


# ---- where it is off


async def test_without_it_there_is_one_session_and_no_limit_but_the_connection_s() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_streams=3, **FIXED):
        async with raw_client(network, settings=settings_of(**NONE)) as peer:
            exchange = await peer.open_session()
            session = await visitors.next()
            assert session.statistics().send_credit is None
            # No limit of the session's: the connection has more than three.
            for _ in range(8):
                await peer.open_session_stream(exchange.stream_id, bytes(5000))
            # Nor do its capsules mean anything.
            for capsule in (
                (CapsuleType.MAX_DATA, 0),
                (CapsuleType.MAX_STREAMS_UNI, 2**61),
            ):
                await exchange.send_data(number_capsule(*capsule))
            await settle()
            assert session.closed is None
            assert session.statistics().unaccepted_streams == 8
            second = await peer.request(peer.session_fields())
            assert (await second.receive_head())[b":status"] == b"429"
            # Nothing was said about credit.
            exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
            await settle()
            assert exchange.stream.buffered == 0
            await session.wait_closed()
            # Another one may follow.
            await peer.open_session()
            await visitors.next()


async def test_a_client_without_it_opens_one_session_at_a_time() -> None:
    async def handler(peer: RawPeer) -> None:
        for _ in range(2):
            exchange = await peer.accept_session()
            assert await exchange.receive_capsule() is not None
            await exchange.stream.send_eof()

    network = Network()
    async with raw_server(network, handler, settings=settings_of(**NONE)):
        async with connect(network) as connection:
            async with connection.open_session() as session:
                assert session.statistics().send_credit is None
                with pytest.raises(HandshakeFailed, match="one session per connection"):
                    async with connection.open_session():
                        pytest.fail("there must not be two")
                assert session.closed is None
            await settle()
            async with connection.open_session() as session:
                session.close_now()


# ---- how many sessions


async def test_only_so_many_sessions() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_sessions=2), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as one,
            session_pair(connection, visitors) as (two, _),
        ):
            with pytest.raises(Rejected) as caught:
                async with connection.open_session():
                    pytest.fail("there are two already")
            assert caught.value.status == 429
            assert one[0].closed is two.closed is None
            two.close_now()
            await settle()
            async with session_pair(connection, visitors) as three:
                async with stream_pair(*three), stream_pair(*one):
                    pass
        # Another connection has a limit of its own.
        async with connect(network) as another, another.open_session():
            pass


async def test_sessions_that_are_asked_for_at_once_keep_to_the_limit() -> None:
    """Also where the application takes its time over the requests."""

    async def on_request(request: object) -> None:
        await trio.sleep(1)

    network, visitors = Network(), Visitors()
    statuses: list[int] = []
    async with serving(visitors, network, max_sessions=3, on_request=on_request):
        async with connect(network) as connection, trio.open_nursery() as nursery:

            async def open_one() -> None:
                try:
                    async with connection.open_session():
                        statuses.append(200)
                        await trio.sleep(5)
                except Rejected as exc:
                    statuses.append(exc.status)

            for _ in range(8):
                nursery.start_soon(open_one)
    assert sorted(statuses) == [200] * 3 + [429] * 5


async def test_a_flood_of_sessions_leaves_nothing() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_sessions=2), connect(network) as connection:
        async with session_pair(connection, visitors) as (_, theirs):

            async def knock() -> None:
                with contextlib.suppress(Rejected):
                    async with connection.open_session():
                        await trio.sleep(0.01)

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(knock)
            server = theirs.connection
        await settle()
        check_nothing_is_held(connection)
        check_nothing_is_held(server)


async def test_limits_in_pieces_of_a_byte_are_limits() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **FIXED), raw_client(network) as peer:
        exchange: Exchange = await peer.open_session()
        session = await visitors.next()
        for byte in number_capsule(CapsuleType.MAX_DATA, 2**30):
            await exchange.send_data(bytes([byte]))
        await settle()
        assert session.statistics().send_credit == 2**30
        stream: Stream = await peer.open_session_stream(exchange.stream_id, bytes(WINDOW))
        async with await session.incoming_streams.receive() as theirs:
            assert len(await theirs.receive_exactly(WINDOW)) == WINDOW
            kind, payload = await exchange.receive_capsule() or (0, b"")
            assert kind == CapsuleType.MAX_DATA
            limit = decode(payload)
            assert limit is not None
            assert WINDOW < limit[0] <= 2 * WINDOW
            await stream.send_all(bytes(WINDOW // 2), eof=True)
            assert len(await theirs.receive_all()) == WINDOW // 2
