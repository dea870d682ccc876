"""Much of what HTTP/3 allows: it may cost neither memory that stays nor time that grows faster than it does."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import trio
from aioquic.quic.connection import QuicConnection

from tests.robustness.h3_peer import (
    CONNECT_SETTINGS,
    Code,
    H3Client,
    H3Server,
    content,
    head,
    record,
    request_fields,
    session_fields,
    settings_frame,
)
from tests.robustness.h3_target import (
    attacked_h3_client,
    attacked_h3_server,
    no_answer,
)
from tests.robustness.quic_peer import frame, stream, varint
from tests.robustness.test_quic_floods import assert_linear

GOAWAY, MAX_PUSH_ID, PRIORITY, GREASE = 7, 0x0D, 0xF0700, 0x1F * 5 + 0x21
RESET, STOP = 0x04, 0x05
APPLICATION_ERROR = 0x0C
KIB = 2**10
WHOLE = settings_frame(CONNECT_SETTINGS)

#: What the control stream, or another, is flooded with: its beginning, and each frame by its number.
FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "unknown frames": (b"\0" + WHOLE, lambda n: record(GREASE + 31 * (n % 99), b"xxxx")),
    "empty unknown frames": (b"\0" + WHOLE, lambda n: record(GREASE)),
    "large unknown frames": (b"\0" + WHOLE, lambda n: record(GREASE, bytes(200))),
    "the same GOAWAY": (b"\0" + WHOLE, lambda n: record(GOAWAY, varint(400))),
    "cancellations": (b"\3", lambda n: bytes([0x40 | n % 63])),
    "long cancellations": (b"\3", lambda n: b"\x7f" + b"\xff" * 7 + b"\0"),
    "capacities of 0": (b"\2", lambda n: b"\x20"),
}
CLIENT_FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "MAX_PUSH_ID": (b"\0" + WHOLE, lambda n: record(MAX_PUSH_ID, varint(n))),
    "PRIORITY_UPDATE": (
        b"\0" + WHOLE,
        lambda n: record(PRIORITY, varint(4 * (n % 1000)) + b"u=%d" % (n % 8)),
    ),
    "PRIORITY_UPDATE of junk": (
        b"\0" + WHOLE,
        lambda n: record(PRIORITY, varint(0) + b"\xff\0u=\r\n" * 20),
    ),
    "PRIORITY_UPDATE of what was never asked for": (
        b"\0" + WHOLE,
        lambda n: record(PRIORITY, varint(2**61) + b"u=1"),
    ),
}


async def flood_a_stream(
    peer: H3Client | H3Server, beginning: bytes, make: Callable[[int], bytes], rounds: int = 16
) -> None:
    stream_id = peer.open(beginning, uni=True)
    number = 0
    figures = []
    for at in range(rounds):
        peer.tell(stream_id, b"".join(make(n) for n in range(number, number + 200)))
        number += 200
        await trio.sleep(0.01)
        if at in (rounds // 2, rounds - 1):
            await trio.sleep(0.2)
            gc.collect()
            figures.append(tracemalloc.get_traced_memory()[0])
    assert figures[1] - figures[0] < 48 * KIB, figures


@pytest.mark.parametrize("kind", {**FLOODS, **CLIENT_FLOODS})
async def test_flood_from_a_client(kind: str) -> None:
    async with attacked_h3_server() as target:
        peer = await target.shaken()
        beginning, make = {**FLOODS, **CLIENT_FLOODS}[kind]
        if beginning[0]:
            await peer.introduce()
        await flood_a_stream(peer, beginning, make)
        assert peer.end is None, peer.end
        await peer.open_session()
        await peer.still_served()


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_from_a_server(kind: str) -> None:
    async with attacked_h3_client() as (peer, connection):
        beginning, make = FLOODS[kind]
        if beginning[0]:
            peer.open_control()
        await flood_a_stream(peer, beginning, make)
        assert connection.closed is None, connection.closed
        with trio.fail_after(2):
            await connection.ping()


async def test_priorities_of_a_session_with_many_streams() -> None:
    """Each of them concerns all streams of the session; the more of them come at once, the more it must not cost."""

    async def cost(number: int) -> float:
        async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
            peer, session_id = await target.in_session()
            for _ in range(100):
                peer.open_session_stream(session_id, b"x")
            await trio.sleep(0.1)
            frames = [record(PRIORITY, varint(session_id) + b"u=%d" % (n % 8)) for n in range(100)]
            start = time.process_time()
            for _ in range(number):
                peer.tell(2, b"".join(frames))
                await trio.sleep(0.01)
            spent = time.process_time() - start
            assert peer.end is None
            return spent / number / len(frames)

    # A frame of nine bytes may not keep the processor busy for longer than a tenth of a millisecond.
    assert min([await cost(20) for _ in range(3)]) < 1e-4


# ---- unidirectional streams of unknown types


UNKNOWN = varint(GREASE)
CHURNS: dict[str, Callable[[int], list[bytes]]] = {
    "ended": lambda i: [stream(i, 0, UNKNOWN + b"data", fin=True)],
    "empty": lambda i: [stream(i, 0, UNKNOWN, fin=True)],
    "nothing": lambda i: [stream(i, 0, fin=True)],
    "half a type": lambda i: [stream(i, 0, b"\x40", fin=True)],
    "reset": lambda i: [stream(i, 0, UNKNOWN), frame(RESET, i, 7, len(UNKNOWN))],
    "reset at once": lambda i: [frame(RESET, i, 7, 0)],
    "never ended": lambda i: [stream(i, 0, UNKNOWN + b"data")],
    "half a type, never ended": lambda i: [stream(i, 0, b"\x40")],
}


@pytest.mark.parametrize("kind", CHURNS)
async def test_flood_of_unknown_streams(kind: str) -> None:
    """Those that are ended are followed by others; nothing of them stays."""
    async with attacked_h3_server() as target:
        peer = await target.introduced()
        allowed = peer.connection._remote_max_streams_uni
        peer.claim(2**20)
        number, figures = 1, []
        for _ in range(12):
            limit = peer.connection._remote_max_streams_uni
            for _ in range(min(limit - number, 60)):
                peer.say(*CHURNS[kind](peer.own(number, uni=True)))
                number += 1
            await trio.sleep(0.1)
            gc.collect()
            figures.append(tracemalloc.get_traced_memory()[0])
        assert peer.end is None, peer.end
        if "never" in kind:
            assert number == allowed
        else:
            assert number > 400
            assert target.streams(peer) == 0
            assert figures[-1] - figures[-4] < 48 * KIB, figures


async def test_unknown_stream_that_goes_on() -> None:
    """Though it is not wanted: what it carries is gone at once, and it may carry a window's worth."""
    async with attacked_h3_server(memory=1) as target:
        peer = await target.introduced()
        peer.claim(10)
        for number in range(1, 8):
            for at in range(0, 200_000, 4000):
                peer.say(
                    stream(peer.own(number, uni=True), at, UNKNOWN + bytes(4000 - len(UNKNOWN)))
                )
                await trio.sleep(0.0005)
        assert peer.end is None
        await peer.still_served()


# ---- answers that nobody reads


async def test_client_that_takes_no_answers() -> None:
    """It gives no credit for what it asks for: it can have as many answers waiting as it may have streams."""
    async with attacked_h3_server(no_answer) as target:
        peer = await target.shaken(max_stream_data=0)
        peer.open_control()
        await trio.sleep(0.1)
        get = head(request_fields())
        allowed = peer.connection._remote_max_streams_bidi
        peer.claim(2**20)
        for number in range(1000):
            if number >= peer.connection._remote_max_streams_bidi:
                break
            peer.say(stream(peer.own(number), 0, get, fin=True))
            if number % 50 == 0:
                await trio.sleep(0.01)
        await trio.sleep(1)
        assert number == allowed
        assert peer.end is None, peer.end
        assert not peer.resets


async def test_flood_of_requests() -> None:
    async with attacked_h3_server(bystander=True) as target:
        peer = await target.introduced()
        get = head(request_fields(path=b"/ok"))
        peer.claim(2**20)
        peer.forgetful = True
        number, figures = 0, []
        for at in range(30):
            for _ in range(min(peer.connection._remote_max_streams_bidi - number, 40)):
                peer.say(stream(peer.own(number), 0, get, fin=True))
                number += 1
            await trio.sleep(0.02)
            peer.ended.clear()
            if at in (15, 29):
                gc.collect()
                figures.append(tracemalloc.get_traced_memory()[0])
        assert number > 700
        assert peer.end is None, peer.end
        assert figures[1] - figures[0] < 96 * KIB, figures


# ---- time


async def test_flood_of_unknown_frames_costs_linear_time() -> None:
    async def cost(number: int) -> float:
        async with attacked_h3_server(memory=None, bystander=False) as target:
            peer = await target.introduced()
            stream_id = peer.open(record(GREASE))
            start = time.process_time()
            for _ in range(number):
                peer.tell(2, record(GREASE, b"x") * 100)
                peer.tell(stream_id, record(GREASE, b"x") * 10)
                await trio.sleep(0.002)
            return time.process_time() - start

    await assert_linear(cost, 50)


HEADS: dict[str, tuple[bytes, bytes]] = {
    # A field of as many bytes, whose parser must not walk over it again and again.
    "subprotocols": (b"wt-available-protocols", b'"a", ' * 12_000 + b'"a"'),
    "a long subprotocol": (b"wt-available-protocols", b'"' + b"a" * 60_000 + b'"'),
    "lists in lists": (b"wt-available-protocols", b"(" * 60_000),
    "escapes": (b"wt-available-protocols", b'"' + b"\\\\" * 30_000 + b'"'),
    "parameters": (b"wt-available-protocols", b'"a"' + b";a" * 29_000),
    "priorities": (b"priority", b"u=1, " * 12_000 + b"u=1"),
    "a long priority": (b"priority", b"u=" + b"1" * 60_000),
    "origins": (b"origin", b"https://" + b"a." * 29_000),
    "extensions": (b"sec-websocket-extensions", b"permessage-deflate; " * 3000 + b"x"),
    "protocols of a WebSocket": (b"sec-websocket-protocol", b"a, " * 20_000 + b"b"),
    "cookies": (b"cookie", b"a=b; " * 12_000 + b"a=b"),
}


@pytest.mark.parametrize("kind", HEADS)
async def test_fields_as_long_as_they_may_be(kind: str) -> None:
    """Whatever is made of it, a request of 64 KiB takes no more than a moment."""
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer = await target.introduced()
        websocket = b"sec-websocket" in HEADS[kind][0]
        extra = [(b"sec-websocket-version", b"13")] if websocket else []
        token = b"websocket" if websocket else b"webtransport"
        for _ in range(2):
            start = time.process_time()
            stream_id = peer.request(session_fields(*extra, HEADS[kind], protocol=token), fin=False)
            assert await peer.answered(stream_id) in (200, 400, 403)
            assert time.process_time() - start < 1.5
            peer.reset(stream_id)
            peer.stop(stream_id)
        await peer.still_served()


# ---- what is ours


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_client_that_does_not_want_our_control_stream(number: int) -> None:
    """It must not ask for that (RFC 9114 section 6.2.1); the server's end is the usual one all the same."""
    async with attacked_h3_server(bystander=False) as target:
        peer = await target.introduced()
        peer.say(frame(STOP, peer.other(number, uni=True), Code.NO_ERROR))
        await trio.sleep(0.1)
        target.shutdown.set()
        await trio.sleep(20)
        assert target.finished


async def test_client_that_lets_us_open_no_stream() -> None:
    """Without a control stream there is no HTTP/3 (RFC 9114 section 6.2)."""

    class Closed(QuicConnection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._local_max_streams_uni.value = 0

    async with attacked_h3_server() as target:
        peer = await target.hostile(kind=Closed)
        peer.start()
        # Before the handshake is confirmed the code is hidden (RFC 9000 section 10.2.3).
        assert await peer.closed() in (Code.GENERAL_PROTOCOL_ERROR, APPLICATION_ERROR)


# ---- who never says who it is


async def test_client_without_settings() -> None:
    """Plain requests are answered; a session waits for SETTINGS, and not for ever."""
    async with attacked_h3_server(no_answer, handshake_timeout=4) as target:
        peer = await target.shaken()
        await peer.still_served()
        session_id = peer.request(session_fields(), fin=False)
        await trio.sleep(3.5)
        assert not peer.status(session_id)
        assert await peer.answered(session_id, 1) == 400
        # Later ones as well.
        late = peer.request(session_fields(), fin=False)
        await trio.sleep(1)
        await peer.introduce()
        assert await peer.answered(late, 1) == 200


async def test_client_without_settings_that_asks_for_everything() -> None:
    async with attacked_h3_server(no_answer, handshake_timeout=4) as target:
        peer = await target.shaken()
        requests = [peer.request(session_fields(), fin=False) for _ in range(100)]
        await trio.sleep(5)
        assert {peer.status(number) for number in requests} == {400}
        await peer.still_served()


@pytest.mark.parametrize(
    "settings",
    [{}, {0x33: 1}, {0x2C7CF000: 0, 0x33: 1}, {0x33: 0, 0x2C7CF000: 1}, {0x2B61: 2**62 - 1}],
)
async def test_clients_that_say_little(settings: dict[int, int]) -> None:
    """What they ask for counts; nothing breaks."""
    async with attacked_h3_server(no_answer) as target:
        peer = await target.shaken()
        await peer.introduce(settings)
        session_id = peer.request(session_fields(), fin=False)
        assert await peer.answered(session_id) in (200, 400)
        await peer.still_served()


@pytest.mark.parametrize("trickles", [False, True], ids=["at once", "byte by byte"])
async def test_as_many_settings_as_there_may_be(trickles: bool) -> None:
    """Unknown ones, which mean nothing (RFC 9114 section 7.2.4.1)."""
    async with attacked_h3_server(no_answer) as target:
        peer = await target.shaken()
        peer.trickles = trickles
        many = {GREASE + 31 * n: n for n in range(700)}
        peer.open_control({**CONNECT_SETTINGS, **many})
        peer.trickles = False
        await peer.open_session()


@pytest.mark.parametrize("size", [0, 1, 100])
async def test_client_that_reads_no_fields(size: int) -> None:
    """It says so (RFC 9114 section 4.2.2), and asks for something: it gets its answer, or none."""
    async with attacked_h3_server(no_answer) as target:
        peer = await target.shaken()
        await peer.introduce({**CONNECT_SETTINGS, 0x06: size})
        assert await peer.answered(peer.request(request_fields(path=b"/ok"))) in (
            *(200, -Code.INTERNAL_ERROR, -Code.REQUEST_REJECTED, -Code.REQUEST_CANCELLED),
        )


@pytest.mark.parametrize("value", [2**60 + 1, 2**62 - 1])
async def test_settings_beyond_all(value: int) -> None:
    async with attacked_h3_server() as target:
        peer = await target.shaken()
        await peer.introduce(
            {
                **CONNECT_SETTINGS,
                0x01: value,
                0x06: value,
                0x07: value,
                0x2B61: value,
                0x2B64: value,
            }
        )
        session_id = await peer.open_session()
        await peer.echo(peer.open_session_stream(session_id, b""), b"hello")


# ---- GOAWAY


async def test_client_that_goes_away() -> None:
    """It names a push, and there is none: nothing changes (RFC 9114 section 5.2)."""
    async with attacked_h3_server() as target:
        peer = await target.introduced()
        for number in (2**62 - 1, 1000, 3, 3, 1, 0, 0):
            peer.tell(2, record(GOAWAY, varint(number)))
        session_id = await peer.open_session()
        await peer.echo(peer.open_session_stream(session_id, b""), b"hello")
        await peer.still_served()


async def test_requests_after_our_goaway() -> None:
    """They are rejected, so that the client may ask elsewhere; sessions go on to their ends."""
    async with attacked_h3_server(bystander=False) as target:
        peer, session_id = await target.in_session()
        target.shutdown.set()
        await peer.until(lambda: bytes(peer.data[3]).endswith(record(GOAWAY, varint(4))))
        for _ in range(50):
            late = peer.request(session_fields(), fin=False)
            assert await peer.over(late) == Code.REQUEST_REJECTED
            assert peer.stops[late] == Code.REQUEST_REJECTED
        await peer.echo(peer.open_session_stream(session_id, b""), b"hello")
        peer.tell(session_id, content(b""), fin=True)
        await trio.sleep(1)
        assert target.finished
