"""Streams and datagrams that come before their session, or after its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    CapsuleType,
    Exchange,
    FrameType,
    Http3Code,
    RawPeer,
    close_capsule,
    raw_client,
    raw_server,
    session_stream_head,
)
from tests.webtransport_pairs import (
    Visitors,
    check_connection_credit,
    check_nothing_is_held,
    connect,
    serving,
    settle,
    stream_pair,
)
from trio_wt import (
    ConnectionClosedError,
    HandshakeFailed,
    Rejected,
    Request,
    Stream,
    StreamReset,
    WebTransportConnection,
    WebTransportSession,
)
from trio_wt.testing import Network

GONE = Http3Code.WT_SESSION_GONE
REFUSED = Http3Code.WT_BUFFERED_STREAM_REJECTED


@asynccontextmanager
async def raw_visit(
    **options: object,
) -> AsyncIterator[tuple[RawPeer, Visitors, WebTransportSession, Exchange]]:
    """A raw client of a server, and one session that is open already, as a way to look at the server's connection."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, **options), raw_client(network) as peer:
        first = await peer.open_session(b"/first")
        yield peer, visitors, await visitors.next(), first


async def end_first(session: WebTransportSession, first: Exchange) -> WebTransportConnection:
    """Without it, nothing should be held any more."""
    await first.send_data(close_capsule(0), eof=True)
    await settle()
    check_nothing_is_held(session.connection)
    return session.connection


async def code_of(stream: Stream) -> tuple[int, int]:
    """With what a stream was refused: for what we send, and for what the other side would."""
    with pytest.raises(StreamReset) as sending:
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)
    with pytest.raises(StreamReset) as receiving:
        await stream.receive_some()
    return sending.value.wire_code, receiving.value.wire_code


# ---- before the request


async def test_what_overtakes_the_request_waits_for_it() -> None:
    async with raw_visit() as (peer, visitors, first_session, first):
        request = Exchange(peer, await peer.open_stream())
        both = await peer.open_session_stream(request.stream_id, b"bo")
        one_way = await peer.open_session_send_stream(request.stream_id, b"one")
        ended = await peer.open_session_send_stream(request.stream_id, b"whole")
        await ended.send_eof()
        empty = await peer.open_session_stream(request.stream_id)
        await empty.send_eof()
        peer.send_datagram(request.stream_id, b"early")
        await settle()
        await both.send_all(b"th")
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        assert await session.datagrams.receive() == b"early"
        async with await session.incoming_streams.receive() as stream:
            assert stream.stream_id == both.stream_id
            assert await stream.receive_exactly(4) == b"both"
            await stream.send_all(b"answer")
            assert await both.receive_exactly(6) == b"answer"
        async with await session.incoming_streams.receive() as stream:
            assert await stream.receive_some() == b""
        async with await session.incoming_receive_streams.receive() as receive_stream:
            assert await receive_stream.receive_exactly(3) == b"one"
            await one_way.send_all(b" more", eof=True)
            assert await receive_stream.receive_all() == b" more"
        async with await session.incoming_receive_streams.receive() as receive_stream:
            assert await receive_stream.receive_all() == b"whole"
        await request.send_data(close_capsule(0), eof=True)
        await end_first(first_session, first)


async def test_they_come_in_the_order_in_which_they_were_opened() -> None:
    async with raw_visit() as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        numbers = [
            (await peer.open_session_send_stream(request.stream_id, b"x")).stream_id
            for _ in range(8)
        ]
        for number in range(8):
            peer.send_datagram(request.stream_id, b"%d" % number)
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        for number in numbers:
            assert (await session.incoming_receive_streams.receive()).stream_id == number
        for number in range(8):
            assert await session.datagrams.receive() == b"%d" % number


async def test_a_stream_whose_head_is_cut_anywhere_arrives() -> None:
    async with raw_visit() as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        # As long as it may be written, too.
        head = b"\x80\x00\x00\x41\xc0\x00\x00\x00\x00\x00\x00" + bytes([request.stream_id])
        streams = []
        for cut in range(len(head) + 1):
            stream = await peer.open_stream()
            await stream.send_all(head[:cut])
            streams.append((stream, head[cut:]))
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        await settle()
        for stream, rest in streams:
            await stream.send_all(rest + b"data", eof=True)
        for _ in streams:
            async with await session.incoming_streams.receive() as accepted:
                assert await accepted.receive_all() == b"data"


async def test_only_so_many_streams_wait() -> None:
    async with raw_visit(max_early_streams=3) as (peer, visitors, first_session, first):
        request = Exchange(peer, await peer.open_stream())
        kept = [await peer.open_session_stream(request.stream_id, b"kept") for _ in range(3)]
        refused = [await peer.open_session_stream(request.stream_id, bytes(1000)) for _ in range(3)]
        one_way = await peer.open_session_send_stream(request.stream_id, b"x")
        for stream in refused:
            assert await code_of(stream) == (REFUSED, REFUSED)
        with pytest.raises(StreamReset) as caught:
            await one_way.send_all(b"x")
        assert caught.value.wire_code == REFUSED
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        for stream in kept:
            async with await session.incoming_streams.receive() as accepted:
                assert accepted.stream_id == stream.stream_id
                assert await accepted.receive_exactly(4) == b"kept"
        # There is room again.
        late = await peer.open_session_stream(request.stream_id, b"late")
        assert (await session.incoming_streams.receive()).stream_id == late.stream_id
        await request.send_data(close_capsule(0), eof=True)
        await end_first(first_session, first)


async def test_none_may_wait() -> None:
    async with raw_visit(max_early_streams=0, max_early_datagrams=0) as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        stream = await peer.open_session_stream(request.stream_id, b"x")
        peer.send_datagram(request.stream_id, b"x")
        assert await code_of(stream) == (REFUSED, REFUSED)
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        await settle()
        assert session.statistics().unaccepted_streams == session.datagrams.unread == 0


async def test_only_so_many_datagrams_wait() -> None:
    async with raw_visit(max_early_datagrams=4) as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        for number in range(10):
            peer.send_datagram(request.stream_id, b"%d" % number)
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        peer.send_datagram(request.stream_id, b"last")
        await settle()
        got = [session.datagrams.receive_nowait() for _ in range(session.datagrams.unread)]
        assert got == [b"0", b"1", b"2", b"3", b"last"]


async def test_the_limits_are_those_of_the_connection() -> None:
    """Whatever sessions a peer names."""
    async with raw_visit(max_early_streams=4, max_early_datagrams=4) as (peer, _, session, first):
        for number in range(20):
            await peer.open_session_send_stream(4000 + 4 * number, bytes(1000))
            peer.send_datagram(4000 + 4 * number, bytes(1000))
        await settle()
        sessions = session.connection._sessions
        assert len(sessions._early) == len(sessions._early_datagrams) == 4
        await trio.sleep(6)
        await end_first(session, first)


async def test_they_wait_only_so_long() -> None:
    async with raw_visit(early_timeout=3) as (peer, visitors, first_session, first):
        request = Exchange(peer, await peer.open_stream())
        started = trio.current_time()
        one = await peer.open_session_stream(request.stream_id, b"one")
        peer.send_datagram(request.stream_id, b"one")
        await trio.sleep(2)
        two = await peer.open_session_stream(request.stream_id, b"two")
        peer.send_datagram(request.stream_id, b"two")
        with pytest.raises(StreamReset) as caught:
            await one.receive_some()
        assert caught.value.wire_code == REFUSED
        assert trio.current_time() - started == pytest.approx(3, abs=0.05)
        assert (await code_of(one))[0] == REFUSED
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        accepted = await session.incoming_streams.receive()
        assert accepted.stream_id == two.stream_id
        assert await session.datagrams.receive() == b"two"
        await trio.sleep(10)
        assert session.statistics().unaccepted_streams == session.datagrams.unread == 0
        assert await accepted.receive_exactly(3) == b"two"
        await request.send_data(close_capsule(0), eof=True)
        await end_first(first_session, first)


async def test_time_is_kept_for_every_round() -> None:
    """What comes after all that waited is gone has its time too."""
    async with raw_visit(early_timeout=1) as (peer, _, session, first):
        for _ in range(3):
            stream = await peer.open_session_stream(4000, b"x")
            started = trio.current_time()
            with pytest.raises(StreamReset):
                await stream.receive_some()
            assert trio.current_time() - started == pytest.approx(1, abs=0.05)
            await trio.sleep(2)
        await end_first(session, first)


async def test_what_waits_and_is_given_up_costs_no_credit() -> None:
    """The connection's window is whole again, whether streams were held, refused, or reset by their sender."""
    async with raw_visit(early_timeout=1, max_early_streams=4) as (peer, _, session, first):
        for round_ in range(4):
            for number in range(8):
                stream = await peer.open_session_send_stream(4000, bytes(1500))
                if number % 4 == 1:
                    stream.reset(1)
                elif number % 4 == 2:
                    await stream.send_eof()
            await trio.sleep(2 if round_ % 2 else 1.1)
        await trio.sleep(2)
        check_connection_credit(session.connection)
        await end_first(session, first)


async def test_streams_that_are_reset_while_they_wait_are_forgotten() -> None:
    async with raw_visit() as (peer, visitors, first_session, first):
        request = Exchange(peer, await peer.open_stream())
        both = await peer.open_session_stream(request.stream_id, b"x")
        one_way = await peer.open_session_send_stream(request.stream_id, b"x")
        await settle()
        for stream in (both, one_way):
            stream.reset(9)
        await settle()
        assert not first_session.connection._sessions._early
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        await settle()
        assert session.statistics().unaccepted_streams == 0
        # The half that would come from the server is over as well.
        with pytest.raises(StreamReset):
            await both.receive_some()
        await request.send_data(close_capsule(0), eof=True)
        await end_first(first_session, first)


async def test_a_waiting_stream_that_is_stopped_is_an_ordinary_one_later() -> None:
    async with raw_visit() as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        stream = await peer.open_session_stream(request.stream_id, b"x")
        stream.stop(0x52E4A40FA8DB + 5)
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        async with await session.incoming_streams.receive() as accepted:
            assert await accepted.receive_exactly(1) == b"x"
            with pytest.raises(StreamReset) as caught:
                await accepted.send_all(b"unwanted")
            assert caught.value.code == 5
            await stream.send_all(b"y", eof=True)
            assert await accepted.receive_all() == b"y"


async def test_what_waited_counts_for_its_session() -> None:
    """A stream that has come early uses up the session's credit like any other."""
    limits = {"session_window": 5000, "max_session_window": 5000}
    async with raw_visit(**limits) as (peer, visitors, _, _first):
        request = Exchange(peer, await peer.open_stream())
        await peer.open_session_send_stream(request.stream_id, bytes(5001))
        await settle()
        await request.send_head(peer.session_fields())
        session = await visitors.next()
        end = await session.wait_closed()
        assert isinstance(end, ConnectionClosedError)
        assert "WT_FLOW_CONTROL_ERROR" in end.reason
        with pytest.raises(StreamReset) as caught:
            await request.receive_body()
        assert caught.value.wire_code == Http3Code.WT_FLOW_CONTROL_ERROR


# ---- no session after all


@pytest.mark.parametrize("how", ["rejected", "malformed", "reset", "plain"])
async def test_streams_of_a_request_that_opens_no_session_are_refused(how: str) -> None:
    def on_request(request: Request) -> None:
        if request.path == "/no":
            request.reject(404)

    async with raw_visit(on_request=on_request) as (peer, _, session, first):
        request = Exchange(peer, await peer.open_stream())
        stream = await peer.open_session_stream(request.stream_id, b"x")
        peer.send_datagram(request.stream_id, b"x")
        await settle()
        if how == "rejected":
            await request.send_head(peer.session_fields(b"/no"))
            assert (await request.receive_head())[b":status"] == b"404"
        elif how == "malformed":
            await request.send_head([(b":method", b"CONNECT")])
            assert (await request.receive_head())[b":status"] == b"400"
        elif how == "plain":
            await request.send_head(peer.plain_fields(), eof=True)
            assert (await request.receive_head())[b":status"] == b"404"
        else:
            await request.send_frame(0x21, b"something, so that it is known for a request")
            await settle()
            request.stream.reset(Http3Code.REQUEST_CANCELLED)
        with trio.fail_after(1):
            assert await code_of(stream) == (GONE, GONE)
        # And whatever comes still.
        late = await peer.open_session_stream(request.stream_id, b"y")
        with trio.fail_after(1):
            assert await code_of(late) == (GONE, GONE)
        peer.send_datagram(request.stream_id, b"y")
        await trio.sleep(6)
        await end_first(session, first)


@pytest.mark.parametrize("how", ["capsule", "fin", "reset", "ours", "handler"])
async def test_what_comes_after_the_end_is_refused(how: str) -> None:
    async with raw_visit() as (peer, visitors, first_session, first):
        request = await peer.open_session(b"/gone")
        session = await visitors.next()
        if how == "capsule":
            await request.send_data(close_capsule(5, b"bye"), eof=True)
        elif how == "fin":
            await request.stream.send_eof()
        elif how == "reset":
            request.stream.reset(Http3Code.REQUEST_CANCELLED)
        elif how == "ours":
            session.close_now(6)
        else:
            session.cancel_scope.cancel()
        await session.wait_closed()
        # At once, and when it is long forgotten.
        for pause in (0, 0.2, 20):
            await trio.sleep(pause)
            stream = await peer.open_session_stream(request.stream_id, b"late")
            one_way = await peer.open_session_send_stream(request.stream_id, bytes(1000))
            ended = await peer.open_session_stream(request.stream_id, b"late")
            await ended.send_eof()
            peer.send_datagram(request.stream_id, b"late")
            with trio.fail_after(1):
                assert await code_of(stream) == (GONE, GONE)
                with pytest.raises(StreamReset) as caught:
                    while True:
                        await one_way.send_all(b"x")
                        await trio.sleep(0.01)
                assert caught.value.wire_code == GONE
                with pytest.raises(StreamReset) as caught:
                    await ended.receive_some()
                assert caught.value.wire_code == GONE
        assert session.datagrams.unread == 0
        with contextlib.suppress(StreamReset):
            while await request.receive_frame():
                pass
        if how != "fin":
            request.stream.reset(Http3Code.REQUEST_CANCELLED)
        await settle()
        await end_first(first_session, first)


async def test_streams_of_no_request_are_an_error_of_the_connection() -> None:
    for session_id in (1, 2, 3, 401):
        async with raw_visit() as (peer, _, session, _first):
            await peer.open_session_send_stream(session_id, b"x")
            end = await peer.connection.wait_closed()
            assert end.code == Http3Code.ID_ERROR
            assert session.closed is not None
    async with raw_visit() as (peer, _, _session, _first):
        peer.connection.datagrams.send_nowait(b"\xd0" + bytes(7) + b"data")
        end = await peer.connection.wait_closed()
        assert end.code == Http3Code.DATAGRAM_ERROR


# ---- at a client


async def test_what_overtakes_the_response_waits_for_it() -> None:
    answer = trio.Event()

    async def handler(peer: RawPeer) -> None:
        request, _ = await peer.next_request()
        stream = await peer.open_session_stream(request.stream_id, b"both")
        one_way = await peer.open_session_send_stream(request.stream_id, b"one")
        await one_way.send_eof()
        peer.send_datagram(request.stream_id, b"early")
        await answer.wait()
        await request.send_head([(b":status", b"200")])
        assert await stream.receive_exactly(6) == b"answer"
        await stream.send_eof()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def release() -> None:
                await trio.sleep(1)
                answer.set()

            async with connection.open_session() as session:
                assert await session.datagrams.receive() == b"early"
                async with await session.incoming_streams.receive() as stream:
                    assert await stream.receive_exactly(4) == b"both"
                    await stream.send_all(b"answer")
                    assert await stream.receive_all() == b""
                async with await session.incoming_receive_streams.receive() as receive_stream:
                    assert await receive_stream.receive_all() == b"one"
        await settle()
        assert not connection._sessions._early
        assert connection.open_sessions == 0


async def test_capsules_right_behind_the_response_are_heard() -> None:
    async def handler(peer: RawPeer) -> None:
        request, _ = await peer.next_request()
        section = peer.encode_fields(request.stream_id, [(b":status", b"200")])
        closing = close_capsule(9, b"at once")
        await request.stream.send_all(
            bytes([FrameType.HEADERS, len(section)])
            + section
            + bytes([FrameType.DATA, len(closing)])
            + closing,
            eof=True,
        )

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with connection.open_session() as session:
            assert session.closed is not None
            assert (session.closed.code, session.closed.reason) == (9, "at once")


@pytest.mark.parametrize("how", ["rejected", "reset", "cancelled", "too slow"])
async def test_a_client_refuses_streams_of_sessions_that_it_did_not_get(how: str) -> None:
    codes: list[tuple[int, int]] = []

    async def handler(peer: RawPeer) -> None:
        request, _ = await peer.next_request()
        stream = await peer.open_session_stream(request.stream_id, b"early")
        peer.send_datagram(request.stream_id, b"early")
        await settle()
        if how == "rejected":
            await request.send_head([(b":status", b"404")], eof=True)
        elif how == "reset":
            request.stream.reset(Http3Code.REQUEST_REJECTED)
        codes.append(await code_of(stream))

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with trio.move_on_after(1 if how == "cancelled" else 100):
            with pytest.raises(HandshakeFailed) as caught:
                async with connection.open_session(handshake_timeout=2):
                    pytest.fail("there is no session")
            assert isinstance(caught.value, Rejected) == (how == "rejected")
        await settle()
        assert codes == [(GONE, GONE)]
        check_nothing_is_held(connection)


async def test_streams_that_nobody_wanted_are_given_up_when_the_connection_ends() -> None:
    async with raw_visit() as (peer, _, session, _first):
        await peer.open_session_stream(4000, b"x")
        peer.send_datagram(4000, b"x")
        await settle()
        peer.connection.close_now(Http3Code.NO_ERROR)
        await settle()
        await trio.sleep(10)
        assert not session.connection._sessions._early
        assert not session.connection._sessions._early_datagrams


async def test_a_stream_of_this_side_s_end_that_crosses_the_close_of_the_other() -> None:
    """Both are in the right: the stream is refused, and nothing else happens."""
    network, visitors = Network(delay=0.05), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with connection.open_session("/stays") as other:
            their_other = await visitors.next()
            async with connection.open_session("/goes") as session:
                theirs = await visitors.next()
                theirs.close_now(1)
                async with session.open_stream() as stream:
                    await stream.send_all(b"on its way")
                    with pytest.raises(ConnectionClosedError) as caught:
                        await stream.receive_some()
                    assert caught.value.code == 1
            async with stream_pair(other, their_other):
                pass
            assert connection.closed is None
        await trio.sleep(1)
        check_nothing_is_held(connection)


async def test_heads_of_both_kinds_are_what_the_draft_says() -> None:
    assert session_stream_head(0, unidirectional=False) == b"\x40\x41\x00"
    assert session_stream_head(0, unidirectional=True) == b"\x40\x54\x00"
    async with raw_visit() as (peer, _, session, first):
        async with session.open_stream() as both, session.open_send_stream() as one_way:
            await both.send_all(b"x")
            await one_way.send_all(b"y")
            number, stream = await peer.next_session_stream()
            assert (number, await stream.receive_some()) == (first.stream_id, b"x")
            number, receive_stream = await peer.next_session_receive_stream()
            assert (number, await receive_stream.receive_some()) == (first.stream_id, b"y")
            # The half that the peer did not open has none.
            await stream.send_all(b"\x40\x41 is data here")
            assert await both.receive_exactly(15) == b"\x40\x41 is data here"
        session.close_now()
        assert await first.receive_capsule() == (CapsuleType.CLOSE_SESSION, bytes(4))
        assert await first.receive_capsule() is None
