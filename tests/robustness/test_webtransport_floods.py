"""Sessions, streams and datagrams without end, read or not: they cost what a few of them cost."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from aioquic.quic.connection import QuicConnection

import trio_wt
from tests.robustness.h3_peer import (
    CLOSE,
    CONNECT_SETTINGS,
    MAX_DATA,
    MAX_STREAMS,
    Code,
    H3Client,
    close_capsule,
    content,
    datagram,
    head,
    session_fields,
    stream_head,
    to_wire,
)
from tests.robustness.h3_target import (
    H3Target,
    attacked_h3_client,
    attacked_h3_server,
    echo,
    engine_streams,
    no_answer,
    refuse_all,
    take_all,
)
from tests.robustness.quic_peer import frame, stream

RESET, STOP, RESET_AT = 0x04, 0x05, 0x24
KIB = 2**10
MIB = 2**20
#: What a session may have unread.
WINDOW = trio_wt.WebTransportSettings().session_window

Handler = Callable[[trio_wt.WebTransportSession], Awaitable[object]]


# ---- streams that come and go

#: By the stream's id and its head.
CHURNS: dict[str, Callable[[int, bytes], list[bytes]]] = {
    "reset": lambda i, h: [stream(i, 0, h), frame(RESET, i, to_wire(7), len(h))],
    "reset with data": lambda i, h: [stream(i, 0, h + b"x"), frame(RESET, i, 7, len(h) + 1)],
    "reset without a head": lambda i, h: [frame(RESET, i, to_wire(7), 0)],
    "ended": lambda i, h: [stream(i, 0, h, fin=True)],
    "one byte": lambda i, h: [stream(i, 0, h + b"x", fin=True)],
    "reset at": lambda i, h: [
        stream(i, 0, h + b"x"),
        frame(RESET_AT, i, to_wire(7), len(h) + 1, len(h)),
    ],
    "reset both ways": lambda i, h: [
        stream(i, 0, h),
        frame(RESET, i, to_wire(7), len(h)),
        *([] if i & 2 else [frame(STOP, i, to_wire(7))]),
    ],
    "end reordered": lambda i, h: [stream(i, len(h), b"x", fin=True), stream(i, 0, h)],
}


async def churn(
    target: H3Target, peer: H3Client, session_id: int, kind: str, uni: bool, rounds: int
) -> tuple[int, list[int]]:
    """How many streams it were, and what was allocated after each round."""
    first = number = peer.next_id(uni=uni) // 4
    head_ = stream_head(session_id, uni=uni)
    peer.claim(2**20)
    figures = []
    for _ in range(rounds):
        limits = peer.connection
        limit = limits._remote_max_streams_uni if uni else limits._remote_max_streams_bidi
        if kind != "reset without a head":  # which are of no session's
            limit = min(limit, first + granted(peer, session_id, uni))
        for _ in range(min(limit - number, 60)):
            peer.say(*CHURNS[kind](peer.own(number, uni=uni), head_))
            number += 1
        await trio.sleep(0.1)
        gc.collect()
        figures.append(tracemalloc.get_traced_memory()[0])
    return number - first, figures


def granted(peer: H3Client, session_id: int, uni: bool) -> int:
    """How many streams a session may have in all, by what has been said about it."""
    limits = [payload for kind, payload in peer.capsules(session_id) if kind == MAX_STREAMS + uni]
    return int.from_bytes(limits[-1]) % 2 ** (8 * len(limits[-1]) - 2) if limits else 128


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        *((kind, take_all) for kind in CHURNS),
        *((kind, no_answer) for kind in ("reset", "one byte", "reset without a head")),
        *((kind, refuse_all) for kind in ("reset", "one byte", "end reordered")),
    ],
)
async def test_rapid_reset(kind: str, uni: bool, handler: Handler) -> None:
    """As fast as the limits let one: a queue of them has a bound, and memory is steady."""
    async with attacked_h3_server(handler, memory=2) as target:
        peer, session_id = await target.in_session()
        count, figures = await churn(target, peer, session_id, kind, uni, 7)
        assert peer.end is None, peer.end
        victim = target.served[0]
        assert victim.closed is None, victim.closed
        assert victim.statistics().unaccepted_streams <= 128
        assert victim.statistics().open_streams <= 128
        if handler is not no_answer or kind == "reset without a head":
            assert count > 250
            assert target.streams(peer) == 1
            assert figures[-1] - figures[-4] < 64 * KIB, figures
        else:
            assert count == 128


async def test_streams_of_many_sessions_at_once() -> None:
    """All of them together count against the connection."""
    async with attacked_h3_server(no_answer, memory=6) as target:
        peer = await target.introduced()
        sessions = [await peer.open_session() for _ in range(16)]
        for number in range(112):
            peer.open_session_stream(sessions[number % 16], bytes(1000))
            peer.open_session_stream(sessions[number % 16], bytes(1000), uni=True)
        await trio.sleep(0.5)
        assert sum(s.statistics().open_streams for s in target.served) == 224
        assert peer.end is None
        peer.tell(sessions[0], content(close_capsule()), fin=True)
        await peer.over(sessions[0])
        assert peer.end is None


# ---- what nobody reads


@pytest.mark.parametrize("sessions", [1, 4])
async def test_streams_that_nobody_reads(sessions: int) -> None:
    """They hold a window of their session's, however many there are."""
    async with attacked_h3_server(no_answer, memory=4 + sessions) as target:
        peer = await target.introduced()
        opened = [await peer.open_session() for _ in range(sessions)]
        for number in range(16 * sessions):
            session_id = opened[number % sessions]
            peer.open_session_stream(session_id, bytes(WINDOW // 16), uni=number % 4 < 2)
        await trio.sleep(2)
        assert peer.end is None, peer.end
        assert [s.statistics().unread_bytes for s in target.served] == [WINDOW] * sessions
        # Who has no credit left may still go, and gets all of it back.
        for number in opened:
            peer.reset(number)
        assert [await peer.over(number, 1) for number in opened].count(None) == 0
        await peer.still_served()


@pytest.mark.parametrize("size", [0, 1, 1000, 50_000])
async def test_datagrams_that_nobody_reads(size: int) -> None:
    """The newest 256 are kept, of 1 MiB at most; the others are counted."""
    async with attacked_h3_server(no_answer, memory=3 if size < 50_000 else 8) as target:
        peer, session_id = await target.in_session()
        for number in range(2000 if size < 50_000 else 200):
            peer.say(datagram(session_id, b"%08d" % number + bytes(size)))
            if number % 20 == 19:
                await trio.sleep(0.0005)
        await trio.sleep(0.1)
        victim = target.served[0]
        kept = min(256, MIB // (size + 8))
        assert victim.datagrams.unread == kept
        assert victim.datagrams.dropped == number + 1 - kept
        newest = [victim.datagrams.receive_nowait() for _ in range(kept)]
        assert newest[-1].startswith(b"%08d" % number)


class Stingy(QuicConnection):
    """Gives no more credit than it had to begin with."""

    def _write_stream_limits(self, *args: object, **kwargs: object) -> None:
        pass

    def _write_connection_limits(self, *args: object, **kwargs: object) -> None:
        pass


async def fill(session: trio_wt.WebTransportSession) -> None:
    """Send without end, on many streams and in datagrams."""

    async def send() -> None:
        async with session.open_send_stream() as sending:
            while True:
                await sending.send_all(bytes(100_000))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(send)
        while True:
            await session.datagrams.send(bytes(1000))
            await trio.sleep(0.003)


async def test_client_that_never_reads() -> None:
    """What is sent to it waits in buffers of a bounded size, and its end is not held up by them."""
    async with attacked_h3_server(fill, memory=8) as target:
        peer = await target.shaken(kind=Stingy)
        await peer.introduce({**CONNECT_SETTINGS, 0x2B61: 2**60, 0x2B64: 2**20, 0x2B65: 2**20})
        session_id = await peer.open_session()
        peer.forgetful = True
        await trio.sleep(2)
        peer.datagrams.clear()
        assert target.served[0].statistics().unsent_bytes < 8 * 300 * KIB
        peer.tell(session_id, content(close_capsule()), fin=True)
        with trio.fail_after(1):
            while not target.ends:
                await trio.sleep(0.01)


# ---- sessions


async def test_flood_of_sessions() -> None:
    """Sixteen are open at a time; the others are refused, and when some are over there is room again."""
    async with attacked_h3_server(echo, memory=4) as target:
        peer = await target.introduced()
        requests = [peer.request(session_fields(), fin=False) for _ in range(300)]
        await trio.sleep(2)
        statuses = [peer.status(number) for number in requests]
        assert statuses.count(200) == 16
        assert statuses.count(429) == 284
        assert target.sessions(peer) == 16
        opened = [number for number in requests if peer.status(number) == 200]
        for number in opened:
            await peer.echo(peer.open_session_stream(number), b"hello")
        for number in opened[:5]:
            peer.tell(number, content(close_capsule()), fin=True)
            await peer.over(number)
        again = [peer.request(session_fields(), fin=False) for _ in range(10)]
        assert [await peer.answered(number) for number in again].count(200) == 5


async def test_sessions_one_after_the_other() -> None:
    async with attacked_h3_server(echo, memory=4) as target:
        peer = await target.introduced()
        for number in range(200):
            request = head(session_fields()) + content(close_capsule(number))
            peer.open(request, fin=True)
            if number % 15 == 14:
                await trio.sleep(0.02)
        await trio.sleep(0.5)
        assert len(target.ends) >= 150
        assert target.streams(peer) == 0
        assert engine_streams(target.driver(peer)) <= 8


async def test_many_clients_with_sessions() -> None:
    """They come and go without a word; the server hears nothing of them and forgets them in time."""
    async with attacked_h3_server(no_answer, memory=24, patience=35, idle_timeout=5) as target:
        for _ in range(20):
            peer, session_id = await target.in_session()
            peer.open_session_stream(session_id, b"x")
            peer.close()
        await trio.sleep(8)
        assert len(target.ends) == 20
        assert {type(end) for end in target.ends} == {trio_wt.ConnectionLost}


# ---- ends of sessions with many streams


@pytest.mark.parametrize("by", ["close", "end", "reset", "goodbye", "handler"])
async def test_a_thousand_streams_open_at_the_end(by: str) -> None:
    """Of each side, in both directions: it takes a second at most, of the clock and of the processor."""
    leave = trio.Event()

    async def handler(session: trio_wt.WebTransportSession) -> None:
        async def send() -> None:
            async with session.open_send_stream() as sending:
                await sending.send_all(b"x")
                await session.wait_closed()

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(send)
            await leave.wait()
            if by == "handler":
                session.close_now(7, "enough")

    async with attacked_h3_server(
        handler, memory=None, bystander=False, max_streams=1000, max_receive_streams=1000
    ) as target:
        peer = await target.shaken()
        peer.connection._local_max_streams_uni.value = 1100
        await peer.introduce({**CONNECT_SETTINGS, 0x2B64: 1100})
        session_id = await peer.open_session()
        for number in range(1000):
            peer.open_session_stream(session_id, b"x", uni=number % 2 == 0)
            if number % 50 == 0:
                await trio.sleep(0.005)
        await trio.sleep(1)
        assert target.served[0].statistics().open_streams == 2000
        start, spent = trio.current_time(), time.process_time()
        leave.set()
        await trio.sleep(0)
        if by == "close":
            peer.tell(session_id, content(close_capsule(7)), fin=True)
        elif by == "end":
            peer.tell(session_id, fin=True)
        elif by == "reset":
            peer.reset(session_id)
        elif by == "goodbye":
            peer.leave()
        with trio.fail_after(1):
            while not target.ends:
                await trio.sleep(0.01)
        if by in ("goodbye",):
            return
        if by == "handler":
            await peer.until(lambda: peer.capsules(session_id)[-1:] == [(CLOSE, b"\0\0\0\7enough")])
            peer.tell(session_id, fin=True)
        with trio.fail_after(1):
            while target.streams(peer) or engine_streams(target.driver(peer)) > 8:
                await trio.sleep(0.05)
        assert trio.current_time() - start < 1
        assert time.process_time() - spent < 4  # that of the client among it
        assert peer.end is None
        await peer.still_served()


async def test_streams_that_go_on_after_the_end() -> None:
    """The client takes no notice of the end of its session: what it sends is thrown away."""
    async with attacked_h3_server(no_answer, memory=3) as target:
        peer, session_id = await target.in_session()
        peer.claim(60)
        sizes = {}
        for number in range(1, 50):
            stream_id = peer.own(number, uni=number % 2 == 0)
            text = stream_head(session_id, uni=number % 2 == 0) + b"x"
            sizes[stream_id] = len(text)
            peer.say(stream(stream_id, 0, text))
        await trio.sleep(0.1)
        peer.tell(session_id, content(close_capsule()), fin=True)
        await trio.sleep(0.1)
        for _ in range(40):
            for stream_id in sizes:
                peer.say(stream(stream_id, sizes[stream_id], bytes(1000)))
                sizes[stream_id] += 1000
            await trio.sleep(0.01)
        # Two megabytes through a window of one.
        assert peer.end is None, peer.end
        await peer.still_served()


# ---- closes that are never answered


async def leaves(session: trio_wt.WebTransportSession) -> None:
    """Closes its session at once."""


async def test_client_that_never_answers_a_close() -> None:
    """It has its time for that; then the session's stream is given up, and there is room for others."""
    async with attacked_h3_server(leaves, memory=4, bystander=False) as target:
        peer = await target.introduced()
        for _ in range(20):
            for _ in range(15):
                session_id = peer.request(session_fields(), fin=False)
            await trio.sleep(15)
            peer.connection.send_ping(1)
            peer.go_on()
            # All of the three hundred get one.
            assert peer.status(session_id) == 200
        await trio.sleep(15)
        assert target.streams(peer) == 0
        assert engine_streams(target.driver(peer)) <= 8


async def test_server_that_never_answers_a_close() -> None:
    """A client with many sessions on one connection keeps nothing of those that are over."""
    async with attacked_h3_client(memory=4, hostile={"max_stream_data": 2**20}) as (
        peer,
        connection,
    ):
        peer.open_control()

        async def serve() -> None:
            for number in range(60):
                await peer.accept(number=number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for _ in range(60):
                async with connection.open_session("/"):
                    await trio.sleep(0.01)
        with trio.fail_after(15):
            while connection.statistics().open_streams > 6:
                await trio.sleep(1)
                peer.connection.send_ping(1)
                peer.go_on()
        assert connection.closed is None


# ---- what is put off for a moment


@pytest.mark.parametrize("of", ["the session", "a stream", "a stream, gone", "an early stream"])
async def test_flood_of_stops(of: str) -> None:
    """Of the same stream again and again: the first one counts."""
    async with attacked_h3_server(no_answer, memory=3) as target:
        peer, session_id = await target.in_session()
        number = session_id
        if of == "an early stream":
            number = peer.open_session_stream(400)
        elif of != "the session":
            number = peer.open_session_stream(session_id, b"x")
        await trio.sleep(0.1)
        code = Code.SESSION_GONE if "gone" in of else to_wire(7)
        for _ in range(60):
            for _ in range(5):
                peer.say(frame(STOP, number, code) * 100)
            await trio.sleep(0.005)
        await peer.still_served()


async def slowly(session: trio_wt.WebTransportSession) -> None:
    """Take streams when they may have been reset."""
    with suppress(trio_wt.ConnectionClosed):
        async for taken in session.incoming_receive_streams:
            with trio.move_on_after(0.01), suppress(trio_wt.StreamReset):
                async with taken:
                    await taken.receive_all()


async def test_flood_of_streams_that_seem_to_be_gone() -> None:
    """Resets that may belong to the end of the session wait for it, and not for long."""
    async with attacked_h3_server(slowly, memory=3) as target:
        peer, session_id = await target.in_session()
        count = 0
        for _ in range(25):
            more = min(20, granted(peer, session_id, True) - count)
            opened = [peer.open_session_stream(session_id, b"x", uni=True) for _ in range(more)]
            count += more
            await trio.sleep(0.05)
            for number in opened:
                with suppress(ValueError):  # it is over because we did not want it
                    peer.reset(number, Code.SESSION_GONE)
            await trio.sleep(0.05)
        assert count > 200
        assert target.served[0].closed is None
        assert target.streams(peer) == 1


# ---- windows


@pytest.mark.parametrize("handler", [take_all, refuse_all])
@pytest.mark.parametrize("kind", ["reset", "ended", "data and reset"])
async def test_streams_that_are_given_up_give_their_windows_back(
    kind: str, handler: Handler
) -> None:
    """Megabytes that nobody wants, within the limits of the session: it never runs out of them."""
    async with attacked_h3_server(handler, memory=3) as target:
        peer, session_id = await target.in_session()
        prefix = stream_head(session_id, uni=True)
        first = peer.next_id(uni=True) // 4
        peer.claim(2**20)
        sent = number = quiet = 0
        while sent < 4 * MIB and quiet < 100:
            quiet += 1
            await trio.sleep(0.005)
            while (
                first + number < peer.connection._remote_max_streams_uni
                and number < granted(peer, session_id, True)
                and sent + 20_000 <= data_limit(peer, session_id)
            ):
                stream_id = peer.own(first + number, uni=True)
                whole = 20_000 + len(prefix)
                if kind == "ended":
                    peer.say(stream(stream_id, 0, prefix + bytes(20_000), fin=True))
                elif kind == "reset":
                    peer.say(stream(stream_id, 0, prefix), frame(RESET, stream_id, 7, whole))
                else:
                    peer.say(stream(stream_id, 0, prefix + bytes(5000)))
                    peer.say(frame(RESET, stream_id, to_wire(7), whole))
                sent += 20_000
                number += 1
                quiet = 0
        assert peer.end is None, peer.end
        assert not peer.resets, peer.resets
        assert sent >= 4 * MIB


def data_limit(peer: H3Client, session_id: int) -> int:
    limits = [payload for kind, payload in peer.capsules(session_id) if kind == MAX_DATA]
    return int.from_bytes(limits[-1]) % 2 ** (8 * len(limits[-1]) - 2) if limits else WINDOW


# ---- decisions that take time


async def test_sessions_that_are_decided_about_at_the_same_time() -> None:
    """However many are let in, sixteen become sessions."""

    async def on_request(request: trio_wt.Request) -> None:
        await trio.sleep(1)

    async with attacked_h3_server(no_answer, on_request=on_request) as target:
        peer = await target.introduced()
        requests = [peer.request(session_fields(), fin=False) for _ in range(60)]
        await trio.sleep(2)
        statuses = [peer.status(number) for number in requests]
        assert (statuses.count(200), statuses.count(429)) == (16, 44)
        assert target.sessions(peer) == 16
