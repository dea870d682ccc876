"""What sessions say on their own streams, as a peer sees it: ends of every kind, and what must not be."""

from __future__ import annotations

import contextlib

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
)
from tests.webtransport_pairs import (
    Visitors,
    check_nothing_is_held,
    connect,
    serving,
    settle,
)
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    Stream,
    StreamReset,
)
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network


async def test_a_close_of_the_server_s_is_a_capsule_and_the_end() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        stream = await peer.open_session_stream(exchange.stream_id, b"x")
        one_way = await peer.open_session_send_stream(exchange.stream_id, b"x")
        async with session.open_stream() as theirs:
            await theirs.send_all(b"y")
            number, ours = await peer.next_session_stream()
            assert number == exchange.stream_id
            session.close_now(0x01020304, "grün")
            assert await exchange.receive_capsule() == (
                CapsuleType.CLOSE_SESSION,
                b"\x01\x02\x03\x04gr\xc3\xbcn",
            )
            assert await exchange.receive_capsule() is None
            await settle()
            # All streams are given up in both directions.
            for use in (
                stream.receive_some(),
                stream.send_all(b"x"),
                one_way.send_all(b"x"),
                ours.send_all(b"x"),
            ):
                with pytest.raises(StreamReset) as caught:
                    await use
                assert caught.value.wire_code == Http3Code.WT_SESSION_GONE
            with pytest.raises(StreamReset) as caught:
                while True:
                    await ours.receive_some()
            assert caught.value.wire_code == Http3Code.WT_SESSION_GONE
        # The request's stream itself ends in order, whoever answers it.
        await exchange.stream.send_eof()
        await settle()
        assert peer.connection.closed is None
        check_nothing_is_held(session.connection)


ENDS: dict[str, tuple[type[ConnectionClosed], int, str]] = {
    "capsule": (ConnectionClosedError, 7, "why"),
    "capsule and fin": (ConnectionClosedError, 7, "why"),
    "capsule of 0": (ConnectionClosedOK, 0, "fine"),
    "fin": (ConnectionClosedOK, 0, ""),
    "not UTF-8": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
    "longest": (ConnectionClosedError, 7, "x" * 1024),
    "largest": (ConnectionClosedError, 2**32 - 1, ""),
    "reset": (ConnectionLost, 0, ""),
    "stop": (ConnectionLost, 0, ""),
    "too long": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
    "too short": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
    "cut off": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
}


async def give_end(exchange: Exchange, how: str) -> None:
    """One of these."""
    if how.startswith("capsule"):
        capsule = close_capsule(0, b"fine") if "0" in how else close_capsule(7, b"why")
        await exchange.send_data(capsule, eof="fin" in how)
    elif how == "fin":
        await exchange.stream.send_eof()
    elif how == "not UTF-8":
        await exchange.send_data(close_capsule(7, b"a\xffb"))
    elif how == "longest":
        await exchange.send_data(close_capsule(7, b"x" * 1024))
    elif how == "largest":
        await exchange.send_data(close_capsule(2**32 - 1))
    elif how == "reset":
        exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
    elif how == "stop":
        exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
    elif how == "too long":
        await exchange.send_data(close_capsule(7, b"x" * 1025))
    elif how == "too short":
        await exchange.send_data(encode(CapsuleType.CLOSE_SESSION) + b"\x03abc")
    else:
        await exchange.send_data(close_capsule(7, b"why")[:-1], eof=True)


@pytest.mark.parametrize("how", ENDS)
async def test_ends_that_a_client_may_give(how: str) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        other = await peer.open_session(b"/other")
        their_other = await visitors.next()
        exchange = await peer.open_session()
        session = await visitors.next()
        await give_end(exchange, how)
        kind, code, reason = ENDS[how]
        with trio.fail_after(1):
            end = await session.wait_closed()
        assert type(end) is kind
        assert end.remote
        assert end.code == code
        if kind is ConnectionLost:
            assert reason in end.reason
            # Both directions are over, whoever has ended them.
            with pytest.raises((StreamReset, trio.ClosedResourceError)):
                while await exchange.receive_capsule():
                    pass
            with pytest.raises((StreamReset, trio.ClosedResourceError)):
                while True:
                    await exchange.stream.send_all(b"\x00\x00")
                    await trio.sleep(0.01)
        else:
            assert end.reason == reason
            # FIN is what it is answered with.
            assert await exchange.receive_capsule() is None
        assert their_other.closed is None
        await peer.open_session_stream(other.stream_id, b"x")
        await their_other.incoming_streams.receive()


async def test_more_behind_a_close_is_an_error_of_the_message() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        for more in (close_capsule(8), b"\x21\x00", b"\x21"):
            exchange = await peer.open_session()
            session = await visitors.next()
            await exchange.send_data(close_capsule(7))
            assert (await session.wait_closed()).code == 7
            await exchange.send_data(more)
            with pytest.raises(StreamReset) as caught:
                while True:
                    await exchange.stream.send_all(b"\x00\x00")
                    await trio.sleep(0.01)
            assert caught.value.wire_code == Http3Code.MESSAGE_ERROR
            assert session.closed is not None
            assert session.closed.code == 7
        assert peer.connection.closed is None


async def test_what_a_session_says_that_nobody_knows_is_skipped() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        # GREASE, as browsers send it; a capsule of 1 MiB; frames that nobody knows; a datagram as a capsule.
        await exchange.send_data(encode(0x1F * 7 + 0x17) + b"\x05hello")
        await exchange.send_data(encode(0x3FFF_1234) + encode(2**20))
        for _ in range(2**4):
            await exchange.send_data(bytes(2**16))
        await exchange.send_frame(0x21, b"a frame of no kind")
        await exchange.send_frame(FrameType.DATA, b"")
        await exchange.send_data(b"\x00\x05hello")
        assert await session.datagrams.receive() == b"hello"
        await exchange.send_data(encode(CapsuleType.DRAIN_SESSION) + b"\x00")
        await session.wait_draining()
        assert session.closed is None


async def test_frames_that_must_not_be_on_a_session_s_stream_cost_the_connection() -> None:
    for kind, code in (
        (FrameType.SETTINGS, Http3Code.FRAME_UNEXPECTED),
        (FrameType.HEADERS, Http3Code.FRAME_UNEXPECTED),
        (FrameType.WT_STREAM, Http3Code.FRAME_ERROR),
        (0x06, Http3Code.FRAME_UNEXPECTED),
    ):
        network, visitors = Network(), Visitors()
        async with serving(visitors, network), raw_client(network) as peer:
            exchange = await peer.open_session()
            session = await visitors.next()
            await exchange.send_frame(kind, b"")
            assert (await peer.connection.wait_closed()).code == code
            end = await session.wait_closed()
            assert isinstance(end, ConnectionLost)


async def test_trailers_behind_a_session_are_the_connection_s_error_or_the_session_s_end() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        await exchange.send_head([(b"x", b"y")], eof=True)
        with trio.fail_after(1):
            await session.wait_closed()


# ---- ends that a server may give


@pytest.mark.parametrize("how", ENDS)
async def test_ends_that_a_server_may_give(how: str) -> None:
    answered: list[bool] = []

    async def handler(peer: RawPeer) -> None:
        other = await peer.accept_session()
        exchange = await peer.accept_session()
        await settle()
        await give_end(exchange, how)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.fail_after(2):
                while await exchange.receive_capsule():
                    pass
            answered.append(True)
            await exchange.stream.send_eof()
        # The other session lives until the client leaves it.
        assert await other.receive_capsule() == (CapsuleType.CLOSE_SESSION, bytes(4))
        await other.stream.send_eof()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with connection.open_session("/other") as other:
            async with connection.open_session() as session:
                kind, code, reason = ENDS[how]
                with trio.fail_after(2):
                    end = await session.wait_closed()
                assert type(end) is kind
                assert (end.code, end.remote) == (code, True)
                assert reason in end.reason
            assert other.closed is None
        await settle()
        # FIN is the answer to an end in order.
        assert answered == ([] if kind is ConnectionLost else [True])
        check_nothing_is_held(connection)


# ---- what comes before the end, or instead of it


async def wait_on(stream: Stream) -> tuple[type[BaseException], int, float]:
    """What somebody hears who waits for more on a stream, and when."""
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError) as caught:
        while True:
            await stream.receive_some()
    code = getattr(caught.value, "code", -1)
    return type(caught.value), code, round(trio.current_time() - started, 2)


@pytest.mark.parametrize("pause", [0, 0.3])
async def test_streams_that_are_reset_for_the_session_s_end_tell_of_that(pause: float) -> None:
    """Peers reset the session's streams, and say how it has ended after that: that is what whoever waits is told."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        theirs = [await peer.open_session_stream(exchange.stream_id, b"x") for _ in range(2)]
        streams = [await session.incoming_streams.receive() for _ in range(2)]
        heard: list[tuple[type[BaseException], int, float]] = []

        async def wait(stream: Stream) -> None:
            heard.append(await wait_on(stream))

        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(wait, stream)
            await settle()
            for stream in theirs:
                stream.reset(Http3Code.WT_SESSION_GONE)
                stream.stop(Http3Code.WT_SESSION_GONE)
            await trio.sleep(pause)
            assert heard == []
            await exchange.send_data(close_capsule(9, b"over"), eof=True)
        assert [outcome[:2] for outcome in heard] == [(ConnectionClosedError, 9)] * 2
        for stream in streams:
            with pytest.raises(ConnectionClosedError) as caught:
                await stream.send_all(b"x")
            assert (caught.value.code, caught.value.reason) == (9, "over")
        await settle()
        await trio.sleep(2)
        check_nothing_is_held(session.connection)


async def test_streams_that_are_reset_for_an_end_that_does_not_come() -> None:
    """After a second it is a reset like any other, and the session goes on."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        theirs = await peer.open_session_stream(exchange.stream_id, b"x")
        async with await session.incoming_streams.receive() as stream:
            await stream.receive_exactly(1)
            theirs.reset(Http3Code.WT_SESSION_GONE)
            theirs.stop(Http3Code.WT_SESSION_GONE)
            assert await wait_on(stream) == (StreamReset, 0, pytest.approx(1, abs=0.1))
            with pytest.raises(StreamReset) as caught:
                await stream.send_all(b"x")
            assert caught.value.wire_code == Http3Code.WT_SESSION_GONE
        await settle()
        assert session.closed is None
        assert session.statistics().open_streams == 0
        await peer.open_session_stream(exchange.stream_id, b"y")
        async with await session.incoming_streams.receive() as stream:
            assert await stream.receive_exactly(1) == b"y"


async def test_who_is_cancelled_or_leaves_meanwhile_is_not_held_up() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        for _ in range(3):
            theirs = await peer.open_session_stream(exchange.stream_id, b"x")
            stream = await session.incoming_streams.receive()
            theirs.reset(Http3Code.WT_SESSION_GONE)
            theirs.stop(Http3Code.WT_SESSION_GONE)
            await settle()
            started = trio.current_time()
            with trio.move_on_after(0.05):
                async with stream:
                    await stream.receive_exactly(10)
            assert trio.current_time() - started < 0.1
        await trio.sleep(3)
        assert session.statistics().open_streams == 0
        session.close_now()
        await exchange.stream.send_eof()
        await settle()
        check_nothing_is_held(session.connection)


async def test_a_stop_of_the_session_s_stream_may_belong_to_a_close() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        for closes in (True, False):
            exchange = await peer.open_session()
            session = await visitors.next()
            exchange.stream.stop(Http3Code.NO_ERROR)
            await trio.sleep(0.2)
            assert session.closed is None
            if closes:
                await exchange.send_data(close_capsule(9, b"over"), eof=True)
            with trio.fail_after(1):
                end = await session.wait_closed()
            if closes:
                assert (type(end), end.code, end.reason) == (ConnectionClosedError, 9, "over")
            else:
                assert isinstance(end, ConnectionLost)
        assert peer.connection.closed is None
