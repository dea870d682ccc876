"""Servers that accept a session and mean it no good: it costs our client that session at most."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    CONNECT_SETTINGS,
    MAX_DATA,
    MAX_STREAMS,
    Code,
    H3Server,
    capsule,
    close_capsule,
    content,
    datagram,
    head,
    record,
    stream_head,
    to_wire,
)
from tests.robustness.h3_target import Watched, attacked_h3_client
from tests.robustness.quic_peer import frame, stream, varint
from tests.robustness.test_webtransport_capsules import AFTER, FLOODS, VIOLATIONS

RESET, STOP = 0x04, 0x05
KIB = 2**10
WINDOW = trio_wt.WebTransportSettings().session_window


@asynccontextmanager
async def session_with(
    *extra: tuple[bytes, bytes],
    memory: float | None = None,
    settings: dict[int, int] = CONNECT_SETTINGS,
    behind: bytes = b"",
    **options: Any,
) -> AsyncIterator[tuple[H3Server, Watched, Watched]]:
    """A hostile server, our connection to it, and a session on that.

    Args:
        extra: fields of the answer.
        memory: as for the connection.
        settings: the server's.
        behind: what comes in one piece with the answer.
        options: of our connection.
    """
    async with attacked_h3_client(memory=memory, **options) as (peer, connection):
        peer.open_control(settings)

        async def serve() -> None:
            await peer.requested()
            peer.tell(0, head([(b":status", b"200"), *extra]) + behind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with connection.open_session("/") as session:
                watched = Watched(session, session._carrier)
                del session
                yield peer, connection, watched


async def end_of(session: Watched, seconds: float = 2) -> trio_wt.ConnectionClosed:
    with trio.fail_after(seconds):
        end = await session.wait_closed()
    assert isinstance(end, trio_wt.ConnectionClosed)
    return end


# ---- what it says


@pytest.mark.parametrize("behind", [False, True], ids=["later", "with the answer"])
@pytest.mark.parametrize("kind", VIOLATIONS)
async def test_session_that_is_broken(kind: str, behind: bool) -> None:
    data, code = VIOLATIONS[kind]
    async with session_with(behind=content(data) if behind else b"") as (peer, connection, session):
        if not behind:
            peer.tell(0, content(data))
        assert type(await end_of(session)) is trio_wt.ConnectionLost
        assert await peer.over(0, 1) == code
        assert peer.stops[0] == code
        assert connection.closed is None
        await connection.ping()


@pytest.mark.parametrize(
    "junk",
    [
        b"<html>hello</html>" * 100,
        bytes(3000),
        b"\xff" * 3000,
        bytes(range(256)) * 10,
        capsule(0x4242, length=2**40) + bytes(1000),
    ],
    ids=["a page", "zeros", "ones", "all bytes", "a terabyte"],
)
async def test_content_that_is_no_capsule(junk: bytes) -> None:
    """It is one of a kind that nobody knows, or none."""
    async with session_with(behind=content(junk)) as (peer, connection, session):
        await trio.sleep(0.1)
        with suppress(ValueError):
            peer.tell(0, b"", fin=True)
        await end_of(session)
        assert await peer.over(0) is not None or session.closed is not None
        assert connection.closed is None


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("kind", AFTER)
async def test_data_behind_a_close(kind: str, at_once: bool) -> None:
    async with session_with() as (peer, connection, session):
        if at_once:
            peer.tell(0, content(close_capsule(7, b"bye") + AFTER[kind]))
        else:
            peer.tell(0, content(close_capsule(7, b"bye")))
            await trio.sleep(0.1)
            peer.tell(0, content(AFTER[kind]))
        end = await end_of(session)
        assert (type(end), end.code, end.reason) == (trio_wt.ConnectionClosedError, 7, "bye")
        await peer.until(lambda: 0 in peer.stops, 1)
        assert peer.stops[0] == Code.MESSAGE_ERROR
        assert connection.closed is None


async def test_storm_of_closes() -> None:
    """The first one counts."""
    async with session_with(memory=2) as (peer, connection, session):
        peer.tell(0, content(close_capsule(7, b"first")) + content(close_capsule(8)) * 1000)
        end = await end_of(session)
        assert (end.code, end.reason) == (7, "first")
        assert connection.closed is None


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ending", ["reset", "stop"])
async def test_session_whose_stream_is_half_gone(ending: str, both: bool) -> None:
    async with session_with() as (peer, connection, session):
        if ending == "reset" or both:
            peer.reset(0)
        if ending == "stop" or both:
            peer.stop(0)
        assert type(await end_of(session)) is trio_wt.ConnectionLost
        assert await peer.over(0, 1) is not None
        assert connection.closed is None


@pytest.mark.parametrize(
    "data",
    [
        *(head([(b":status", b"200")]), head([(b"a", b"b")]), record(1, length=2**30)),
        *(record(1, b"\0\0\x80"), record(4), record(0x41), record(5, b"\0\0\0")),
    ],
    ids=["200 again", "trailers", "2^30 bytes", "junk", "SETTINGS", "WT_STREAM", "a push"],
)
@pytest.mark.parametrize("behind", [False, True], ids=["later", "with the answer"])
async def test_frames_that_a_session_does_not_have(data: bytes, behind: bool) -> None:
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()

        async def serve() -> None:
            await peer.requested()
            peer.tell(0, head([(b":status", b"200")]) + (data if behind else b""))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with suppress(trio_wt.HandshakeFailed):
                async with connection.open_session("/") as session:
                    if not behind:
                        peer.tell(0, data)
                    with trio.fail_after(2):
                        await session.wait_closed()
                del session
        with trio.fail_after(1):
            while connection.closed is None and 0 not in peer.resets:
                await trio.sleep(0.01)


@pytest.mark.parametrize("length", [b"0", b"5", b"1000000000000"])
async def test_answer_with_a_length(length: bytes) -> None:
    """A tunnel has none, whatever is said (RFC 9110 section 9.3.6)."""
    async with session_with(
        (b"content-length", length), behind=content(close_capsule(7, b"all of it"))
    ) as (peer, connection, session):
        end = await end_of(session)
        assert (end.code, end.reason) == (7, "all of it")
        assert connection.closed is None


@pytest.mark.parametrize("status", [b"201", b"204", b"206", b"299"])
async def test_other_answers_that_accept(status: bytes) -> None:
    """All of 2xx do (RFC 9110 section 9.3.6)."""
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()

        async def serve() -> None:
            await peer.requested()
            peer.tell(0, head([(b":status", status)]) + content(close_capsule(7)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with connection.open_session("/") as session:
                assert (await session.wait_closed()).code == 7
                del session


# ---- its streams and datagrams


async def test_streams_of_other_sessions() -> None:
    """Of those that are not, are gone, or are another's: none comes to this session."""
    async with session_with(memory=3) as (peer, connection, session):
        for number in range(1, 200):
            peer.open_session_stream(4 * number, b"x", uni=number % 2 == 0)
            peer.say(datagram(4 * number, b"x"))
        mine = peer.open_session_stream(0, b"mine", uni=True, fin=True)
        peer.say(datagram(0, b"mine"))
        taken = await session.incoming_receive_streams.receive()
        async with taken:
            assert taken.stream_id == mine
            assert await taken.receive_all() == b"mine"
        del taken
        assert await session.datagrams.receive() == b"mine"
        await trio.sleep(6)
        assert session.statistics().open_streams == 0
        assert session.datagrams.unread == 0
        assert connection.statistics().open_streams <= 4
        peer.tell(0, content(close_capsule()), fin=True)
        await end_of(session)
        late = [peer.open_session_stream(0, b"x", uni=n % 2 == 0) for n in range(100)]
        await trio.sleep(0.1)
        assert {peer.stops.get(number) for number in late} == {Code.SESSION_GONE}


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_more_streams_than_we_allow(uni: bool) -> None:
    limits = {"max_receive_streams" if uni else "max_streams": 10}
    async with session_with(max_sessions=16, **limits) as (peer, connection, session):
        for _ in range(11):
            peer.open_session_stream(0, b"x", uni=uni)
        assert type(await end_of(session)) is trio_wt.ConnectionLost
        assert await peer.over(0) == Code.FLOW_CONTROL_ERROR
        assert connection.closed is None


async def test_more_data_than_we_allow() -> None:
    async with session_with(session_window=10_000) as (peer, connection, session):
        peer.open_session_stream(0, bytes(6000))
        peer.open_session_stream(0, bytes(4001))
        assert type(await end_of(session)) is trio_wt.ConnectionLost
        assert await peer.over(0) == Code.FLOW_CONTROL_ERROR
        assert connection.closed is None


async def test_streams_and_datagrams_that_nobody_reads() -> None:
    async with session_with(memory=8) as (peer, connection, session):
        for number in range(100):
            peer.open_session_stream(0, bytes(WINDOW // 40) if number < 40 else b"")
            for _ in range(20):
                peer.say(datagram(0, bytes(1000)))
            await trio.sleep(0.005)
        await trio.sleep(0.5)
        assert connection.closed is None
        assert session.statistics().unread_bytes == WINDOW // 40 * 40
        assert session.datagrams.unread == 256


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_of_capsules(kind: str) -> None:
    async with session_with(memory=4) as (peer, connection, session):
        make, count, figures = FLOODS[kind], 0, []
        for at in range(20):
            peer.tell(0, content(b"".join(make(n) for n in range(count, count + 200))))
            count += 200
            await trio.sleep(0.01)
            if at in (10, 19):
                await trio.sleep(0.2)
                gc.collect()
                figures.append(tracemalloc.get_traced_memory()[0])
        assert figures[1] - figures[0] < 48 * KIB, figures
        assert session.closed is None
        await connection.ping()


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (to_wire(0), 0),
        (to_wire(1), 1),
        (to_wire(0x1D), 0x1D),
        (to_wire(0x1E), 0x1E),
        (to_wire(2**32 - 1), 2**32 - 1),
        # none of an application's
        (0, 0),
        (Code.REQUEST_CANCELLED, 0),
        (to_wire(0) - 1, 0),
        (to_wire(2**32 - 1) + 1, 0),
        (2**62 - 1, 0),
        *[((0x52E4A40FA8DB // 31 + n) * 31 + 0x21, 0) for n in range(3)],
    ],
)
async def test_codes_of_resets(wire: int, code: int) -> None:
    async with session_with() as (peer, connection, session):
        number = peer.open_session_stream(0, b"x")
        async with await session.incoming_streams.receive() as taken:
            peer.reset(number, wire)
            peer.stop(number, wire)
            await trio.sleep(0.1)
            with pytest.raises(trio_wt.StreamReset) as caught:
                await taken.receive_some()
            assert (caught.value.code, caught.value.wire_code) == (code, wire)
            with pytest.raises(trio_wt.StreamReset) as caught:
                await taken.send_all(b"x")
            assert (caught.value.code, caught.value.wire_code) == (code, wire)
        del taken, caught
        assert connection.closed is None


async def test_streams_of_ours_that_are_not_wanted() -> None:
    """Each is stopped as soon as it is opened, and those that are not are reset."""
    async with session_with(memory=4) as (peer, connection, session):
        for number in range(120):
            with suppress(trio_wt.StreamReset):
                async with session.open_stream() as opened:
                    await opened.send_all(b"x")
                    await trio.sleep(0.01)
                    peer.stop(opened.stream_id, to_wire(7))
                    if number % 2:
                        peer.reset(opened.stream_id, to_wire(7))
                    else:
                        peer.tell(opened.stream_id, b"data", fin=True)
                    await trio.sleep(0.01)
                    await opened.send_all(b"y")
        del opened
        await trio.sleep(0.1)
        assert session.statistics().open_streams == 0
        assert connection.statistics().open_streams <= 4


async def test_server_that_allows_nothing() -> None:
    """No stream and no byte: whoever waits for that ends with the session, or when it is enough."""
    async with session_with(settings={**CONNECT_SETTINGS, 0x2B61: 1, 0x2B64: 0, 0x2B65: 1}) as (
        peer,
        connection,
        session,
    ):
        with trio.move_on_after(1) as scope:
            async with session.open_send_stream():
                pass
        assert scope.cancelled_caught
        ends: list[type] = []

        async def opens() -> None:
            try:
                async with session.open_send_stream():
                    pass
            except trio_wt.ConnectionClosed as exc:
                ends.append(type(exc))

        async def sends() -> None:
            try:
                async with session.open_stream() as opened:
                    await opened.send_all(bytes(10_000))
            except trio_wt.ConnectionClosed as exc:
                ends.append(type(exc))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens)
            nursery.start_soon(sends)
            await trio.sleep(1)
            peer.tell(0, content(close_capsule(3)), fin=True)
        assert ends == [trio_wt.ConnectionClosedError] * 2
        assert connection.closed is None


async def test_limits_that_jump() -> None:
    """As far as they may: nothing is computed from them that would not fit."""
    async with session_with() as (peer, _, session):
        for kind, most in ((MAX_DATA, 2**62 - 1), (MAX_STREAMS, 2**60), (MAX_STREAMS + 1, 2**60)):
            peer.tell(0, content(capsule(kind, varint(most))))
        await trio.sleep(0.1)
        assert session.closed is None
        async with session.open_send_stream() as opened:
            await opened.send_all(bytes(50_000))
        del opened


# ---- its connection


@pytest.mark.parametrize("say", ["close", "transport", "silence", "control stream"])
async def test_connection_that_ends_under_a_session(say: str) -> None:
    """Everybody who waits hears of it."""
    async with session_with(idle_timeout=3) as (peer, connection, session):
        heard: list[str] = []

        async def hears(what: Callable[[], Any]) -> None:
            try:
                await what()
            except trio_wt.ConnectionClosed as exc:
                heard.append(type(exc).__name__)

        async def stream_ends() -> None:
            async with session.open_stream() as opened:
                await opened.receive_some()

        async with trio.open_nursery() as nursery:
            for what in (
                session.datagrams.receive,
                session.incoming_streams.receive,
                session.incoming_receive_streams.receive,
                session.wait_draining,
                stream_ends,
            ):
                nursery.start_soon(hears, what)
            await trio.sleep(0.1)
            if say == "close":
                peer.say(frame(0x1D, 0x100, 0))
            elif say == "transport":
                peer.say(frame(0x1C, 1, 0, 0))
            elif say == "control stream":
                peer.tell(3, fin=True)
            else:
                peer.silent = peer.deaf = True
        assert heard == ["ConnectionLost"] * 5
        assert type(session.closed) is trio_wt.ConnectionLost


async def test_thousand_streams_and_then_nothing() -> None:
    """A client leaves its block within the time that it has for that."""
    async with session_with(memory=12, max_streams=1000, close_timeout=2) as (peer, _, session):
        peer.claim(1000)
        for number in range(500):
            peer.say(stream(peer.own(number), 0, stream_head(0, uni=False) + b"x"))
            if number % 50 == 49:
                await trio.sleep(0.002)
        await trio.sleep(0.1)
        assert session.statistics().open_streams == 500
        peer.silent = peer.deaf = True
        left = trio.current_time()
    assert trio.current_time() - left < 2 + 2 + 1
