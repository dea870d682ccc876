"""Servers that mean our client no good: what it asked for fails in time, and nothing of it stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import pytest
import trio
from aioquic.quic.connection import QuicConnection

import trio_wt
from tests.robustness.h3_peer import (
    Code,
    H3Server,
    content,
    head,
    record,
    section,
    stream_head,
)
from tests.robustness.h3_target import URL, Watched, attacked_h3_client
from tests.robustness.quic_peer import SERVER, frame, varint
from tests.robustness.quic_target import certificate, identity
from trio_wt.testing import Network

HEADERS, DATA, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 1, 0, 5, 7, 0x0D
GREASE = 0x1F * 9 + 0x21
KIB = 2**10
OK = head([(b":status", b"200")])
NO = head([(b":status", b"403")])

Kind: TypeAlias = Literal["request", "session", "websocket"]
ANSWERS = (trio_wt.HandshakeFailed, trio_wt.Response)
KINDS: Sequence[Kind] = ("request", "session", "websocket")


async def ask_for(connection: Any, kind: Kind, path: str = "/", **options: Any) -> object:
    """Ask for something, and leave it at once."""
    if kind == "request":
        return await connection.request("GET", path, **options)
    opening = connection.open_session if kind == "session" else connection.open_websocket
    async with opening(path, **options) as opened:
        return opened.response_headers


class Outcome(NamedTuple):
    """What came of something, without all that an exception keeps in memory."""

    kind: type
    text: str
    status: int = 0
    body: bytes = b""


async def outcome(asked: Awaitable[object]) -> Outcome:
    """What came of asking for something."""
    try:
        result = await asked
    except Exception as exc:
        failed: Any = exc
        if isinstance(exc, trio_wt.Rejected):
            return Outcome(type(exc), str(exc), exc.status, exc.body)
        return Outcome(type(failed), str(failed))
    if isinstance(result, trio_wt.Response):
        return Outcome(type(result), "", result.status, result.body)
    return Outcome(type(result), "")


@asynccontextmanager
async def asking(
    kind: Kind, *, memory: float | None = None, seconds: float = 3, **settings: Any
) -> AsyncIterator[tuple[H3Server, Watched, list[Outcome]]]:
    """A client that asks for something; in the end, what came of it within a few seconds is in the list."""
    results: list[Outcome] = []
    async with attacked_h3_client(memory=memory, **settings) as (peer, connection):
        peer.open_control()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                results.append(await outcome(ask_for(connection, kind)))

            nursery.start_soon(ask)
            await peer.requested()
            yield peer, connection, results
            with trio.fail_after(seconds):
                while not results:
                    await trio.sleep(0.05)


#: Responses that are none.
BAD: dict[str, bytes] = {
    "no status": head([(b"a", b"b")]),
    **{
        f"status {status!r}": head([(b":status", status)])
        for status in (
            b"",
            b"abc",
            b"20",
            b"2000",
            b"099",
            b"600",
            b"-20",
            b" 200",
            b"200 ",
            b"101",
        )
    },
    "status beyond ASCII": head([(b":status", "٢٠٠".encode())]),
    "status twice": head([(b":status", b"200"), (b":status", b"200")]),
    "status behind a field": head([(b"a", b"b"), (b":status", b"200")]),
    "a pseudo-field of requests": head([(b":status", b"200"), (b":path", b"/")]),
    "upper case": head([(b":status", b"200"), (b"Date", b"x")]),
    **{
        f"a value of {value!r}": head([(b":status", b"200"), (b"x", value)])
        for value in (b"a\r\nb: c", b"a\nb", b"a\0b", b" a", b"a\x1b[31m")
    },
    **{
        f"a name of {name!r}": head([(b":status", b"200"), (name, b"x")])
        for name in (b"a b", b"a\r\nb", b"\xe9", b"a:")
    },
    "connection": head([(b":status", b"200"), (b"connection", b"close")]),
    "transfer-encoding": head([(b":status", b"200"), (b"transfer-encoding", b"chunked")]),
    "a length that is none": head([(b":status", b"403"), (b"content-length", b"x")]),
    "two lengths": head(
        [(b":status", b"403"), (b"content-length", b"1"), (b"content-length", b"2")]
    ),
    # sizes
    "HEADERS of 2^30 bytes": record(HEADERS, b"\0\0", length=2**30),
    "thousands of fields": head([(b":status", b"200"), *[(b"a", b"b")] * 5000]),
    "fields of more than 64 KiB": head([(b":status", b"200"), (b"a", b"b" * (64 * KIB - 60))]),
    "interim responses": head([(b":status", b"103")]) * 40,
    "interim responses in front of the last": head([(b":status", b"100")]) * 33 + OK,
}

#: What breaks the whole connection.
BROKEN: dict[str, tuple[bytes, int]] = {
    "DATA first": (content(b"x"), Code.FRAME_UNEXPECTED),
    "DATA behind an interim response": (
        head([(b":status", b"100")]) + content(b"x"),
        Code.FRAME_UNEXPECTED,
    ),
    "PUSH_PROMISE": (record(PUSH_PROMISE, b"\0\0\0"), Code.ID_ERROR),
    "SETTINGS": (record(4), Code.FRAME_UNEXPECTED),
    "GOAWAY": (record(GOAWAY, b"\0"), Code.FRAME_UNEXPECTED),
    "a frame of HTTP/2": (record(6), Code.FRAME_UNEXPECTED),
    "WT_STREAM": (stream_head(0, uni=False), Code.FRAME_ERROR),
    "a section that cannot be read": (
        record(HEADERS, b"\0\0\x80"),
        Code.QPACK_DECOMPRESSION_FAILED,
    ),
    "a dynamic section": (
        record(HEADERS, b"\x02\0" + section([(b":status", b"200")])[2:]),
        Code.QPACK_DECOMPRESSION_FAILED,
    ),
}

#: The same, where the stream ends.
CUT: dict[str, bytes] = {
    "half a head": OK[:-2],
    "half a type": b"\x40",
    "DATA cut off": NO + record(DATA, b"x", length=2**40),
    "an unknown frame cut off": NO + record(GREASE, b"x", length=100),
}


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("kind", BAD)
async def test_responses_that_are_none(kind: str, asked: Kind) -> None:
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, BAD[kind])
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
        assert results[0].kind is trio_wt.HandshakeFailed, results
        # It was one response only.
        assert connection.closed is None
        await connection.ping()
        assert 0 in peer.stops


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("kind", BROKEN)
async def test_responses_that_break_the_connection(kind: str, asked: Kind) -> None:
    data, code = BROKEN[kind]
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, data)
        assert await peer.closed(1) == code
        assert (await connection.wait_closed()).code == code
    assert results[0].kind is trio_wt.HandshakeFailed, results


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("kind", CUT)
async def test_responses_that_are_cut_off(kind: str, asked: Kind) -> None:
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, CUT[kind], fin=True)
        assert await peer.closed(1) == Code.FRAME_ERROR
    assert issubclass(results[0].kind, ANSWERS), results


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("data", [b"", head([(b":status", b"103")]), record(GREASE)])
async def test_no_response_at_all(data: bytes, asked: Kind) -> None:
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, data, fin=True)
        await peer.over(0, 1)
        assert connection.closed is None
    assert results[0].kind is trio_wt.HandshakeFailed, results


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("code", [0, 7, Code.REQUEST_REJECTED, Code.NO_ERROR, 2**62 - 1])
@pytest.mark.parametrize("data", [b"", OK[:4], head([(b":status", b"103")])])
async def test_requests_that_are_reset(data: bytes, code: int, asked: Kind) -> None:
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, data)
        peer.reset(0, code)
        with trio.fail_after(0.5):
            while not results:
                await trio.sleep(0.01)
        assert connection.closed is None
    assert results[0].kind is trio_wt.HandshakeFailed, results


@pytest.mark.parametrize("asked", ["session", "websocket"])
@pytest.mark.parametrize("silent", [False, True])
async def test_server_that_does_not_answer(asked: Kind, silent: bool) -> None:
    """The request is given up when its time is over, and the server told."""
    async with attacked_h3_client() as (peer, connection):
        peer.open_control()
        if not silent:
            await trio.sleep(0.1)
        started = trio.current_time()
        failure = await outcome(ask_for(connection, asked, handshake_timeout=4))
        assert failure.kind is trio_wt.HandshakeFailed
        assert trio.current_time() - started == pytest.approx(4, abs=0.5)
        assert await peer.over(0) == Code.REQUEST_CANCELLED


@pytest.mark.parametrize("asked", ["session", "websocket"])
async def test_server_that_never_says_who_it_is(asked: Kind) -> None:
    async with attacked_h3_client() as (peer, connection):
        failure = await outcome(ask_for(connection, asked, handshake_timeout=3))
        assert failure.kind is trio_wt.HandshakeFailed
        assert 0 not in peer.data


@pytest.mark.parametrize(
    "settings", [{}, {0x08: 1, 0x33: 1}, {0x2C7CF000: 1}, {0x08: 0, 0x2C7CF000: 1, 0x33: 1}]
)
async def test_server_without_webtransport(settings: dict[int, int]) -> None:
    async with attacked_h3_client() as (peer, connection):
        peer.open_control(settings)
        with trio.fail_after(1):
            failure = await outcome(ask_for(connection, "session"))
        assert failure.kind is trio_wt.HandshakeFailed
        assert 0 not in peer.data


# ---- bodies


@pytest.mark.parametrize("asked", KINDS)
async def test_bodies_without_end(asked: Kind) -> None:
    """Of a body 64 KiB are kept, and the rest is not waited for."""
    async with asking(asked, memory=3) as (peer, connection, results):
        peer.tell(0, NO + record(DATA, length=2**40))
        for _ in range(100):
            if 0 in peer.stops:
                break
            peer.tell(0, bytes(20_000))
            await trio.sleep(0.01)
        assert 0 in peer.stops
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
        result = results[0]
        assert issubclass(result.kind, trio_wt.Response | trio_wt.Rejected)
        assert (result.status, len(result.body)) == (403, 64 * KIB)


@pytest.mark.parametrize("asked", KINDS)
async def test_bodies_in_many_frames(asked: Kind) -> None:
    """A byte each, and empty ones and unknown ones between them."""
    async with asking(asked, memory=3) as (peer, connection, results):
        body = (content(b"x") + content(b"") + record(GREASE, b"xx")) * 3000
        peer.tell(0, NO + body, fin=True)
        with trio.fail_after(2):
            while not results:
                await trio.sleep(0.01)
        assert results[0].body == b"x" * 3000


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("ending", ["reset", "close", "less", "more"])
async def test_bodies_that_break_off(ending: str, asked: Kind) -> None:
    """The status has come; what there is of the body is given with it, and nothing hangs."""
    async with asking(asked) as (peer, connection, results):
        length = (b"content-length", b"3" if ending == "more" else b"100")
        peer.tell(0, head([(b":status", b"403"), length]) + content(b"half a body"))
        await trio.sleep(0.1)
        if ending == "reset":
            peer.reset(0)
        elif ending == "close":
            peer.say(frame(0x1D, 7, 0))
        elif 0 not in peer.stops:
            peer.tell(0, b"", fin=True)
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
    result = results[0]
    if result.kind is trio_wt.HandshakeFailed:
        return
    assert result.status == 403
    assert b"half a body".startswith(result.body)


@pytest.mark.parametrize("asked", ["session", "websocket"])
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 405, 429, 500, 503])
async def test_rejections(status: int, asked: Kind) -> None:
    """None is followed, wherever it points to."""
    async with asking(asked) as (peer, connection, results):
        fields = [(b":status", b"%d" % status), (b"location", b"https://elsewhere.test/")]
        peer.tell(0, head(fields) + content(b"why"), fin=True)
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
        rejected = results[0]
        assert rejected.kind is trio_wt.Rejected
        assert (rejected.status, rejected.body) == (status, b"why")
        assert list(peer.fields) == [0]


# ---- what a server chooses


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b'"c"', b"a", b'"a", "b"', b"?1", b'("a")', b'"a', b"\xff", b":YQ==:", b"1"),
        *(b'"A"', b'"a" "b"', b'"' + b"a" * 60_000 + b'"', b"(" * 60_000, b'"a";' * 1000),
    ],
)
async def test_subprotocols_that_were_not_offered(value: bytes) -> None:
    """They are as if nothing had been said (draft-ietf-webtrans-http3-16 section 3.3)."""
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.accept, (b"wt-protocol", value))
            async with connection.open_session("/", subprotocols=["a", "b"]) as session:
                assert session.subprotocol is None
                del session


@pytest.mark.parametrize(
    "field",
    [
        (b"sec-websocket-protocol", b"c"),
        (b"sec-websocket-protocol", b"a, b"),
        (b"sec-websocket-protocol", b"\xff"),
        (b"sec-websocket-extensions", b"unheard-of"),
        (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits=99"),
        (b"sec-websocket-extensions", b"permessage-deflate, permessage-deflate"),
        (b"sec-websocket-extensions", b";;;=,"),
    ],
)
async def test_websockets_agreed_on_wrongly(field: tuple[bytes, bytes]) -> None:
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.accept, field)
            failure = await outcome(ask_for(connection, "websocket", subprotocols=["a", "b"]))
        assert failure.kind is trio_wt.HandshakeFailed
        assert await peer.over(0) == Code.REQUEST_CANCELLED


# ---- streams that a server must not open


@pytest.mark.parametrize(
    ("say", "code"),
    [
        (lambda peer: peer.open(OK), Code.STREAM_CREATION_ERROR),
        (lambda peer: peer.open(record(GREASE)), Code.STREAM_CREATION_ERROR),
        (lambda peer: peer.open(varint(1) + b"\0", uni=True), Code.ID_ERROR),
        (lambda peer: peer.open(stream_head(1, uni=False)), Code.ID_ERROR),
        (
            lambda peer: peer.tell(3, record(MAX_PUSH_ID, b"\0")),
            Code.FRAME_UNEXPECTED,
        ),
        (
            lambda peer: peer.tell(3, record(0xF0700, b"\0u=1")),
            Code.FRAME_UNEXPECTED,
        ),
        *[
            (lambda peer, n=n: peer.tell(3, record(GOAWAY, varint(n))), Code.ID_ERROR)
            for n in (1, 2, 3, 2**62 - 1)
        ],
    ],
    ids=[
        *("a response", "an unknown frame", "a push", "a stream of session 1"),
        *("MAX_PUSH_ID", "PRIORITY_UPDATE", "GOAWAY 1", "GOAWAY 2", "GOAWAY 3", "GOAWAY 2^62-1"),
    ],
)
async def test_what_only_clients_may_do(say: Callable[[H3Server], object], code: int) -> None:
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()
        say(peer)
        assert await peer.closed(1) == code
        assert (await connection.wait_closed()).code == code


# ---- GOAWAY


@pytest.mark.parametrize("asked", KINDS)
async def test_goaway_before_anything_is_asked(asked: Kind) -> None:
    async with attacked_h3_client(memory=None) as (peer, connection):
        control = peer.open_control()
        peer.tell(control, record(GOAWAY, varint(0)))
        await trio.sleep(0.1)
        assert connection.going_away
        with trio.fail_after(1):
            failure = await outcome(ask_for(connection, asked))
        assert failure.kind is trio_wt.HandshakeFailed
        assert 0 not in peer.data


@pytest.mark.parametrize("asked", KINDS)
async def test_goaway_that_excludes_what_was_asked(asked: Kind) -> None:
    """It will not be answered any more (RFC 9114 section 5.2), and nobody waits for that."""
    async with asking(asked) as (peer, connection, results):
        peer.tell(3, record(GOAWAY, varint(0)))
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
        assert results[0].kind is trio_wt.HandshakeFailed
        assert connection.closed is None


@pytest.mark.parametrize("asked", KINDS)
async def test_goaway_behind_what_was_asked(asked: Kind) -> None:
    """What was asked before is answered still."""
    async with asking(asked) as (peer, connection, results):
        for number in (2**60, 400, 8, 4, 4):
            peer.tell(3, record(GOAWAY, varint(number)))
        await trio.sleep(0.1)
        assert not results
        peer.tell(0, NO, fin=True)
        with trio.fail_after(1):
            while not results:
                await trio.sleep(0.01)
        assert results[0].status == 403


# ---- ends at any moment


@pytest.mark.parametrize("asked", KINDS)
@pytest.mark.parametrize("code", [0, 7, Code.NO_ERROR, 2**62 - 1])
@pytest.mark.parametrize("data", [b"", OK[:3]])
async def test_connections_closed_before_the_answer(data: bytes, code: int, asked: Kind) -> None:
    async with asking(asked) as (peer, connection, results):
        peer.tell(0, data)
        peer.say(frame(0x1D, code, 3, b"\x1b\r\n"))
        with trio.fail_after(0.5):
            while not results:
                await trio.sleep(0.01)
    assert results[0].kind is trio_wt.HandshakeFailed, results
    assert str(results[0]).isprintable()


def closed_to(kind: str) -> type[QuicConnection]:
    """A server that lets us open no streams, of one kind or the other."""

    class Closed(QuicConnection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            getattr(self, f"_local_max_streams_{kind}").value = 0

    return Closed


@pytest.mark.parametrize("asked", KINDS)
async def test_server_that_lets_us_ask_for_nothing(asked: Kind) -> None:
    """No stream for a request: it is waited for as long as for the answer."""
    async with attacked_h3_client(hostile={"kind": closed_to("bidi")}) as (peer, connection):
        peer.open_control()
        with trio.move_on_after(4):
            options = {} if asked == "request" else {"handshake_timeout": 3}
            failure = await outcome(ask_for(connection, asked, **options))
            assert failure.kind is trio_wt.HandshakeFailed
        assert connection.closed is None
        assert connection.statistics().open_streams <= 2


async def test_server_that_lets_us_open_no_control_stream() -> None:
    async with trio.open_nursery() as nursery:
        network = Network()
        options = {**identity(), "kind": closed_to("uni")}
        peer = H3Server(network.socket(SERVER), **options)
        await nursery.start(peer.run)
        with trio.fail_after(3), pytest.raises(trio_wt.HandshakeFailed):
            async with trio_wt.open_webtransport(
                URL,
                tls=trio_wt.ClientTLS(server_certificate_hashes=[certificate().sha256]),
                socket=network.socket(),
            ):
                pass
        peer.close()


async def test_many_requests_and_a_server_that_answers_none() -> None:
    async with attacked_h3_client(memory=8) as (peer, connection):
        peer.open_control()
        results: list[Outcome] = []
        async with trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                kind = KINDS[1 + number % 2]
                results.append(
                    await outcome(ask_for(connection, kind, f"/{number}", handshake_timeout=3))
                )

            for number in range(300):
                nursery.start_soon(ask, number)
        assert len(results) == 300
        assert {result.kind for result in results} == {trio_wt.HandshakeFailed}
        await trio.sleep(1)
        assert connection.statistics().open_streams <= 2
