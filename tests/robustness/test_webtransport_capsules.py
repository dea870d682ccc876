"""What a client may say about its session, and must not: it costs the session at most."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

import pytest
import trio
from aioquic.quic.connection import QuicConnection

import trio_wt
from tests.robustness.h3_peer import (
    CLOSE,
    CONNECT_SETTINGS,
    DATAGRAM,
    DRAIN,
    MAX_DATA,
    MAX_STREAMS,
    Code,
    H3Client,
    capsule,
    close_capsule,
    content,
    datagram,
    head,
    record,
    session_fields,
)
from tests.robustness.h3_target import (
    H3Target,
    ask,
    attacked_h3_server,
    echo,
    no_answer,
    refuse_all,
    take_all,
)
from tests.robustness.quic_peer import frame, stream, varint
from tests.robustness.test_quic_floods import assert_linear

MAX_STREAM_DATA, STREAM_DATA_BLOCKED = 0x190B4D3E, 0x190B4D42
DATA_BLOCKED, STREAMS_BLOCKED = 0x190B4D41, 0x190B4D43
GREASE = 0x29 * 3 + 0x17
KIB = 2**10
MIB = 2**20
NUMBERS = (
    *(MAX_DATA, MAX_STREAM_DATA, MAX_STREAMS, MAX_STREAMS + 1),
    *(DATA_BLOCKED, STREAM_DATA_BLOCKED, STREAMS_BLOCKED, STREAMS_BLOCKED + 1),
)


def number(kind: int, value: int, size: int = 0) -> bytes:
    return capsule(kind, varint(value, size))


async def other_is_well(peer: H3Client) -> None:
    """Another session on the same connection."""
    session_id = await peer.open_session()
    peer.say(datagram(session_id, b"x"))
    peer.tell(session_id, content(close_capsule()), fin=True)
    assert await peer.over(session_id) is None


#: What ends a session with an error, and the error.
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    # lengths (RFC 9297 section 3.3, draft-ietf-webtrans-http3-16 section 6)
    "CLOSE with a reason of 1025 bytes": (close_capsule(7, b"x" * 1025), Code.MESSAGE_ERROR),
    "CLOSE with a reason of 32 MiB": (
        capsule(CLOSE, bytes(4), length=2**25),
        Code.MESSAGE_ERROR,
    ),
    "CLOSE of 2^40 bytes": (capsule(CLOSE, length=2**40), Code.MESSAGE_ERROR),
    "CLOSE of 2^62 - 1 bytes": (capsule(CLOSE, length=2**62 - 1), Code.MESSAGE_ERROR),
    **{
        f"CLOSE of {size} bytes": (capsule(CLOSE, bytes(size)), Code.MESSAGE_ERROR)
        for size in range(4)
    },
    "CLOSE with a reason that is no text": (close_capsule(7, b"\xff\xfe"), Code.MESSAGE_ERROR),
    "CLOSE with half a character": (close_capsule(7, "é".encode()[:1]), Code.MESSAGE_ERROR),
    "DRAIN with something": (capsule(DRAIN, b"x"), Code.MESSAGE_ERROR),
    "DRAIN of 2^40 bytes": (capsule(DRAIN, length=2**40), Code.MESSAGE_ERROR),
    "DATAGRAM of 2^40 bytes": (capsule(DATAGRAM, length=2**40), Code.MESSAGE_ERROR),
    "DATAGRAM of 64 KiB and one": (capsule(DATAGRAM, length=64 * KIB + 1), Code.MESSAGE_ERROR),
    **{f"{kind:#x} without a number": (capsule(kind), Code.MESSAGE_ERROR) for kind in NUMBERS},
    **{
        f"{kind:#x} of half a number": (capsule(kind, b"\xc0"), Code.MESSAGE_ERROR)
        for kind in NUMBERS
    },
    **{
        f"{kind:#x} of two numbers": (capsule(kind, b"\0\0"), Code.MESSAGE_ERROR)
        for kind in NUMBERS
    },
    **{
        f"{kind:#x} of 2^40 bytes": (capsule(kind, length=2**40), Code.MESSAGE_ERROR)
        for kind in NUMBERS
    },
    # limits (section 5.6)
    "MAX_DATA that shrinks": (number(MAX_DATA, MIB - 1), Code.FLOW_CONTROL_ERROR),
    "MAX_DATA that stays the same": (number(MAX_DATA, MIB), Code.FLOW_CONTROL_ERROR),
    "MAX_DATA of 0": (number(MAX_DATA, 0), Code.FLOW_CONTROL_ERROR),
    "MAX_DATA that shrinks later": (
        number(MAX_DATA, 2**40) + number(MAX_DATA, 2**40 - 1),
        Code.FLOW_CONTROL_ERROR,
    ),
    **{
        f"{name} {kind:#x}": (data, Code.FLOW_CONTROL_ERROR)
        for kind in (MAX_STREAMS, MAX_STREAMS + 1)
        for name, data in {
            "shrinking": number(kind, 127),
            "the same": number(kind, 128),
            "shrinking to nothing": number(kind, 0),
            "shrinking later": number(kind, 500) + number(kind, 499),
            "more than 2^60": number(kind, 2**60 + 1),
            "2^62 - 1": number(kind, 2**62 - 1),
        }.items()
    },
    **{
        f"blocked beyond all {kind:#x}": (number(kind, 2**60 + 1), Code.FLOW_CONTROL_ERROR)
        for kind in (STREAMS_BLOCKED, STREAMS_BLOCKED + 1)
    },
    "MAX_STREAM_DATA": (number(MAX_STREAM_DATA, 0), Code.FLOW_CONTROL_ERROR),
    "STREAM_DATA_BLOCKED": (number(STREAM_DATA_BLOCKED, 0), Code.FLOW_CONTROL_ERROR),
}


async def ended(target: H3Target, seconds: float = 2) -> trio_wt.ConnectionClosed:
    """How the first session has ended."""
    with trio.fail_after(seconds):
        while not target.ends:
            await trio.sleep(0.01)
    end = target.ends[0]
    assert end is not None
    return end


@pytest.mark.parametrize("kind", VIOLATIONS)
async def test_session_that_is_broken(kind: str) -> None:
    """Its stream is reset both ways; its handler is told; other sessions of the client are well. At once, and byte by byte."""
    data, code = VIOLATIONS[kind]
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer = await target.introduced()
        for peer.trickles in (False, True):
            session_id = await peer.open_session()
            opened = peer.open_session_stream(session_id, b"x")
            peer.tell(session_id, content(data))
            assert await peer.over(session_id, 1) == code
            assert peer.stops[session_id] == code
            end = await ended(target)
            assert type(end) is trio_wt.ConnectionLost
            assert end.remote
            assert peer.resets[opened] == peer.stops[opened] == Code.SESSION_GONE
            target.ends.clear()
        await other_is_well(peer)
        assert peer.end is None


@pytest.mark.parametrize("size", [0, 1, 9, 100])
@pytest.mark.parametrize("kind", [CLOSE, DRAIN, DATAGRAM, MAX_DATA, GREASE])
async def test_capsule_that_is_cut_off(kind: int, size: int) -> None:
    """The end of the stream is no end of the session then (RFC 9297 section 3.3)."""
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer, session_id = await target.in_session()
        whole = capsule(kind, bytes(8), length=200 if kind in (GREASE, DATAGRAM) else None)
        data = whole[: len(whole) - 1 - size] if size < len(whole) - 1 else whole[:1]
        if kind == DRAIN:
            data = varint(DRAIN)
        peer.tell(session_id, content(data), fin=True)
        assert await peer.over(session_id, 1) == Code.MESSAGE_ERROR
        assert type(await ended(target)) is trio_wt.ConnectionLost
        await other_is_well(peer)


#: What comes behind a close.
AFTER: dict[str, bytes] = {
    "the same": close_capsule(9, b"again"),
    "DRAIN": capsule(DRAIN),
    "an unknown capsule": capsule(GREASE, b"x"),
    "half an unknown capsule": capsule(GREASE, b"x", length=9),
    "half a number": b"\x40",
    "a datagram": capsule(DATAGRAM, b"x"),
    "megabytes": capsule(GREASE, bytes(10_000), length=2**40),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("kind", AFTER)
async def test_data_behind_a_close(kind: str, at_once: bool) -> None:
    """The close counts; what is behind it is an error of the message (draft-ietf-webtrans-http3-16 section 6)."""
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer, session_id = await target.in_session()
        if at_once:
            peer.tell(session_id, content(close_capsule(7, b"bye") + AFTER[kind]))
        else:
            peer.tell(session_id, content(close_capsule(7, b"bye")))
            await trio.sleep(0.1)
            peer.tell(session_id, content(AFTER[kind]))
        await peer.until(lambda: session_id in peer.stops, 1)
        assert peer.stops[session_id] == Code.MESSAGE_ERROR
        end = await ended(target)
        assert (type(end), end.code, end.reason) == (trio_wt.ConnectionClosedError, 7, "bye")
        await other_is_well(peer)


@pytest.mark.parametrize(
    "reason",
    [
        *(b"", b"x" * 1024, "\u202e\u0000".encode() * 200, b"\x1b[31m\x07\r\n" * 100),
        *("\N{GRINNING FACE}".encode() * 256, b"%s%n{0}"),
    ],
)
async def test_reasons(reason: bytes) -> None:
    """They may be any text, and are safe to show."""
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer, session_id = await target.in_session()
        peer.tell(session_id, content(close_capsule(2**32 - 1, reason)), fin=True)
        assert await peer.over(session_id) is None
        end = await ended(target)
        assert end.code == 2**32 - 1
        assert end.reason == reason.decode()
        assert str(end).isprintable()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ending", ["reset", "stop", "end", "close"])
async def test_session_whose_stream_is_half_gone(ending: str, both: bool) -> None:
    """One direction is enough: never is the other left open."""
    async with attacked_h3_server(no_answer, memory=None) as target:
        peer, session_id = await target.in_session()
        opened = peer.open_session_stream(session_id, b"x")
        if ending == "reset" or both:
            peer.reset(session_id)
        if ending == "stop" or both:
            peer.stop(session_id)
        if ending == "end" and not both:
            peer.tell(session_id, fin=True)
        if ending == "close" and not both:
            peer.tell(session_id, content(close_capsule(7)))
        end = await ended(target)
        code = await peer.over(session_id, 1)
        if ending in ("end", "close") and not both:
            assert code is None
            assert end.code == (7 if ending == "close" else 0)
        else:
            assert code == Code.REQUEST_CANCELLED
            assert type(end) is trio_wt.ConnectionLost
        assert peer.stops[opened] == Code.SESSION_GONE
        await other_is_well(peer)


@pytest.mark.parametrize(
    "data",
    [
        record(1, length=2**30),
        record(1, bytes(10), length=70_000),
        head([(b"a", b"b")]),
        head([(b":path", b"b")]),
        record(1, b"\0\0\x80"),
        record(4),
        record(0x41),
    ],
    ids=[
        *("HEADERS of 2^30 bytes", "large HEADERS", "trailers", "pseudo-trailers"),
        *("junk", "SETTINGS", "WT_STREAM"),
    ],
)
async def test_frames_that_a_session_does_not_have(data: bytes) -> None:
    """The session does not go on as if nothing had been (RFC 9114 section 4.4)."""
    async with attacked_h3_server(no_answer, bystander=False) as target:
        peer, session_id = await target.in_session()
        peer.tell(session_id, data)
        await ended(target)
        assert peer.end is not None or await peer.over(session_id) is not None


async def test_unknown_frames_in_a_session() -> None:
    async with attacked_h3_server(no_answer, bystander=False) as target:
        peer, session_id = await target.in_session()
        for _ in range(200):
            peer.tell(session_id, record(0x1F * 8 + 0x21, b"xx") + content(b"") * 20)
        peer.tell(session_id, content(close_capsule(7)), fin=True)
        assert (await ended(target)).code == 7


# ---- limits


async def test_more_data_than_a_session_allows() -> None:
    async with attacked_h3_server(no_answer, session_window=10_000) as target:
        peer, session_id = await target.in_session()
        whole = peer.open_session_stream(session_id, bytes(10_000))
        await trio.sleep(0.1)
        assert target.served[0].closed is None
        assert target.served[0].statistics().unread_bytes == 10_000
        peer.tell(whole, b"x")
        assert await peer.over(session_id, 1) == Code.FLOW_CONTROL_ERROR
        assert type(await ended(target)) is trio_wt.ConnectionLost
        await other_is_well(peer)


@pytest.mark.parametrize("handler", [take_all, refuse_all, no_answer])
async def test_data_that_is_reset_counts(
    handler: Callable[[trio_wt.WebTransportSession], object],
) -> None:
    """Also what was never sent: a final size of 20,000 bytes is that much (section 5.4)."""
    async with attacked_h3_server(
        handler,  # type: ignore[arg-type]
        session_window=10_000,
        max_session_window=10_000,
    ) as target:
        peer, session_id = await target.in_session()
        stream_id = peer.next_id(uni=True)
        peer.claim(10)
        prefix = b"\x40\x54" + varint(session_id)
        peer.say(stream(stream_id, 0, prefix))
        await trio.sleep(0.1)
        peer.say(frame(0x04, stream_id, 7, 20_000 + len(prefix)))
        if handler is no_answer:
            await trio.sleep(0.1)
        assert await peer.over(session_id, 1) == Code.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_more_streams_than_a_session_allows(uni: bool) -> None:
    limits = {"max_receive_streams" if uni else "max_streams": 10}
    async with attacked_h3_server(no_answer, max_sessions=16, **limits) as target:
        peer, session_id = await target.in_session()
        for _ in range(10):
            peer.open_session_stream(session_id, uni=uni)
        await trio.sleep(0.1)
        assert target.served[0].closed is None
        peer.open_session_stream(session_id, uni=uni)
        assert await peer.over(session_id, 1) == Code.FLOW_CONTROL_ERROR
        await trio.sleep(0.1)
        assert len(target.ends) == 1
        assert target.streams(peer) == 0
        assert peer.end is None


@pytest.mark.parametrize("settings", [{}, {0x2B61: 0, 0x2B64: 0, 0x2B65: 0}])
async def test_session_without_limits(settings: dict[int, int]) -> None:
    """Where it was not agreed on, what is said about limits is not heard; one session is all there may be."""
    without = {key: value for key, value in CONNECT_SETTINGS.items() if not 0x2B61 <= key < 0x2B66}
    async with attacked_h3_server() as target:
        peer = await target.shaken()
        await peer.introduce({**without, **settings})
        session_id = await peer.open_session()
        for kind in (MAX_DATA, MAX_STREAMS, MAX_STREAMS + 1, DATA_BLOCKED):
            for value in (2**62 - 1, 5, 0):
                peer.tell(session_id, content(number(kind, value)))
        await peer.echo(peer.open_session_stream(session_id), b"hello")
        for _ in range(50):
            more = peer.request(session_fields(), fin=False)
            assert await peer.answered(more) in (429, -Code.REQUEST_REJECTED)
        await peer.echo(peer.open_session_stream(session_id), b"hello again")


# ---- floods


FLOODS: dict[str, Callable[[int], bytes]] = {
    "unknown capsules": lambda n: capsule(GREASE + 0x29 * (n % 99), b"xxxx"),
    "empty unknown capsules": lambda n: capsule(GREASE),
    "large unknown capsules": lambda n: capsule(GREASE, bytes(200)),
    "DRAIN": lambda n: capsule(DRAIN),
    "MAX_DATA": lambda n: number(MAX_DATA, MIB + n + 1),
    "MAX_STREAMS": lambda n: number(MAX_STREAMS + n % 2, 129 + n),
    "DATA_BLOCKED": lambda n: number(DATA_BLOCKED, n),
    "STREAMS_BLOCKED": lambda n: number(STREAMS_BLOCKED + n % 2, n),
    "datagrams": lambda n: capsule(DATAGRAM, b"%d" % n),
    "empty datagrams": lambda n: capsule(DATAGRAM),
}


@pytest.mark.parametrize(
    ("kind", "frames"), [*((kind, False) for kind in FLOODS), ("DRAIN", True), ("datagrams", True)]
)
async def test_flood_of_capsules(kind: str, frames: bool) -> None:
    async with attacked_h3_server(no_answer) as target:
        peer, session_id = await target.in_session()
        make, count, figures = FLOODS[kind], 0, []
        for at in range(20):
            if frames:
                data = b"".join(content(make(n)) for n in range(count, count + 200))
            else:
                data = content(b"".join(make(n) for n in range(count, count + 200)))
            count += 200
            peer.tell(session_id, data)
            await trio.sleep(0.01)
            if at in (10, 19):
                await trio.sleep(0.2)
                gc.collect()
                figures.append(tracemalloc.get_traced_memory()[0])
        assert figures[1] - figures[0] < 48 * KIB, figures
        assert target.served[0].closed is None
        assert target.served[0].datagrams.unread <= 256
        assert target.served[0].draining == (kind == "DRAIN")
        await other_is_well(peer)


async def test_flood_of_capsules_costs_linear_time() -> None:
    async def cost(count: int) -> float:
        async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
            peer, session_id = await target.in_session()
            start = time.process_time()
            for _ in range(count):
                peer.tell(session_id, content(capsule(GREASE, b"x") * 100))
                await trio.sleep(0.002)
            return time.process_time() - start

    await assert_linear(cost, 50)


async def test_capsule_of_a_terabyte() -> None:
    """Of a kind that nobody knows: nothing of it is kept, and the rest of the session goes on."""
    async with attacked_h3_server(echo, memory=2) as target:
        peer, session_id = await target.in_session()
        peer.tell(session_id, record(0, length=2**50) + capsule(GREASE, length=2**40))
        for _ in range(40):
            peer.tell(session_id, bytes(60_000))
            await trio.sleep(0.02)
        await peer.echo(peer.open_session_stream(session_id), b"hello")


async def test_large_capsules_that_stay_incomplete() -> None:
    """In all sessions that there may be: 64 KiB each."""
    async with attacked_h3_server(no_answer, memory=6) as target:
        peer = await target.introduced()
        for _ in range(16):
            session_id = await peer.open_session()
            peer.tell(session_id, content(capsule(DATAGRAM, bytes(65_000), length=65_536)))
            await trio.sleep(0.02)
        await peer.still_served()


async def blocked(session: trio_wt.WebTransportSession) -> None:
    """Has more to send than it may."""
    async with session.open_send_stream() as sending:
        await sending.send_all(bytes(2**24))


async def opens(session: trio_wt.WebTransportSession) -> None:
    """Opens more streams than it may."""
    opened = []
    while True:
        async with session.open_send_stream() as sending:
            opened.append(sending.stream_id)


class Stingy(QuicConnection):
    """Gives no credit for what it has taken."""

    def _write_stream_limits(self, *args: object, **kwargs: object) -> None:
        pass


@pytest.mark.parametrize(
    ("handler", "make"),
    [
        (blocked, lambda n: number(MAX_DATA, 1 + n)),
        (opens, lambda n: number(MAX_STREAMS + 1, 1 + n)),
    ],
    ids=["MAX_DATA", "MAX_STREAMS"],
)
async def test_limits_that_creep(
    handler: Callable[[trio_wt.WebTransportSession], object], make: Callable[[int], bytes]
) -> None:
    """Each step lets us send a byte, or open a stream, and then say that we are held back, to a client that never reads it."""
    async with attacked_h3_server(handler, memory=None, bystander=False) as target:  # type: ignore[arg-type]
        # Of the session's own stream it takes the head of the answer, and never more.
        peer = await target.shaken(kind=Stingy, max_stream_data=200)
        await peer.introduce({**CONNECT_SETTINGS, 0x2B61: 1, 0x2B64: 1})
        session_id = await peer.open_session()
        engine = target.driver(peer).engine
        for step in range(600):
            peer.tell(session_id, content(make(1 + step)))
            await trio.sleep(0.003)
        assert peer.end is None, peer.end
        # What waits to be said is a moment's, not a history.
        assert engine.unsent(session_id) < 2 * KIB
        del engine


async def test_nothing_of_a_session_is_left() -> None:
    async with attacked_h3_server(echo, memory=4) as target:
        peer = await target.introduced()
        figures = []
        for count in range(100):
            session_id = await peer.open_session()
            opened = peer.open_session_stream(session_id)
            peer.tell(opened, b"x", fin=True)
            peer.say(datagram(session_id, b"x"))
            peer.tell(session_id, content(close_capsule(count)), fin=True)
            await peer.over(session_id)
            for taken in (peer.data, peer.ended, peer.resets, peer.stops, peer.datagrams):
                taken.clear()  # type: ignore[attr-defined]
            target.served.clear()
            target.ends.clear()
            if count in (50, 99):
                # Long enough for the clock to forget the times of this test.
                await trio.sleep(10)
                gc.collect()
                figures.append(tracemalloc.get_traced_memory()[0])
        assert target.streams(peer) == 0
        assert figures[1] - figures[0] < 150 * KIB, figures
        async with target.honest() as session:
            await ask(session, b"and now?")
