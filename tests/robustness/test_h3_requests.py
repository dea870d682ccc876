"""Requests over HTTP/3 that must not be served: one complete 4xx, and the connection goes on."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    AUTHORITY,
    Code,
    H3Client,
    content,
    head,
    prefixed,
    record,
    request_fields,
    section,
    session_fields,
    websocket_fields,
)
from tests.robustness.h3_target import (
    H3Target,
    attacked_h3_server,
    echo_messages,
    no_answer,
)
from tests.robustness.quic_peer import frame, stream

HEADERS, DATA, RESET, STOP = 0x01, 0x00, 0x04, 0x05
GREASE = 0x1F * 9 + 0x21
KIB = 2**10

Fields = list[tuple[bytes, bytes]]


def without(name: bytes, fields: Fields | None = None) -> Fields:
    return [line for line in fields or request_fields() if line[0] != name]


def with_(name: bytes, value: bytes, fields: Fields | None = None) -> Fields:
    """The same with another value."""
    return [(n, value if n == name else v) for n, v in fields or request_fields()]


#: Malformed by RFC 9114 section 4.1.2.
MALFORMED: dict[str, Fields] = {
    "nothing": [],
    **{
        f"no {name.decode()}": without(name)
        for name in (b":method", b":scheme", b":authority", b":path")
    },
    **{
        f"empty {name.decode()}": with_(name, b"")
        for name in (b":method", b":scheme", b":authority", b":path")
    },
    **{
        f"{name.decode()} twice": [*request_fields(), (name, value)]
        for name, value in request_fields()
    },
    **{
        f"{name.decode()} twice, at the front": [(name, value), *request_fields()]
        for name, value in request_fields()
    },
    "an unknown pseudo-field": [(b":what", b"x"), *request_fields()],
    "a pseudo-field of responses": [(b":status", b"200"), *request_fields()],
    "a pseudo-field without a name": [(b":", b"x"), *request_fields()],
    "a pseudo-field in upper case": [(b":Method", b"GET"), *without(b":method")],
    "a pseudo-field behind a field": [(b"a", b"b"), *request_fields()],
    # names
    **{
        f"a field of name {name!r}": request_fields((name, b"x"))
        for name in (
            *(b"X-Upper", b"a b", b"a\r\nb", b"a\nb", b"a\0b", b"a:b", b"\xe9", b"a\x7f"),
            *(b"a\t", b" a", b'"a"', b"(a)", b"a,b", b"a/b", b"a=b", b"a{b", b"\xc3\xa9"),
        )
    },
    # values
    **{
        f"a field of value {value!r}": request_fields((b"x", value))
        for value in (
            *(b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\0", b"\r", b"\n", b" a", b"a "),
            *(b"\ta", b"a\t", b" ", b"a\x01b", b"a\x1bb", b"a\x7fb", b"a\x0bb"),
        )
    },
    **{
        f"{name.decode()} of {value!r}": with_(name, value)
        for name, values in {
            b":method": (b"G T", b"GET\r\n", b"G\0T", b"G\xe9T", b"GET /", b":GET"),
            b":scheme": (b"https ", b"ht tps", b"\xe9", b"https\r\n", b"\0"),
            b":authority": (b"a b", b"a@b", b"\xe9.test", b"a\r\nHost: b", b"a\0", b" a", b"a\x7f"),
            b":path": (
                *(b"x", b"*", b"http://server.test/", b"/a b", b"/\xe9", b"/\r\nX: y", b"/\0"),
                *(b" /", b"/ ", b"/\x7f", b"?", b"//\t"),
            ),
        }.items()
        for value in values
    },
    # fields of HTTP/1.1 (section 4.2)
    **{
        f"the field {name.decode()}": request_fields((name, value))
        for name, value in {
            b"connection": b"keep-alive",
            b"keep-alive": b"5",
            b"proxy-connection": b"keep-alive",
            b"transfer-encoding": b"chunked",
            b"upgrade": b"websocket",
            b"te": b"gzip",
        }.items()
    },
    # authorities (section 4.3.1)
    "another host": request_fields((b"host", b"elsewhere.test")),
    "two hosts": request_fields((b"host", AUTHORITY), (b"host", AUTHORITY)),
    "two hosts that differ": [*without(b":authority"), (b"host", b"a"), (b"host", b"b")],
    "empty host": [*without(b":authority"), (b"host", b"")],
    "host with a user": [*without(b":authority"), (b"host", b"me@server.test")],
    # CONNECT (section 4.4, RFC 9220 section 3)
    "CONNECT with a path": request_fields(method=b"CONNECT"),
    "CONNECT without an authority": [(b":method", b"CONNECT")],
    "CONNECT with an empty authority": [(b":method", b"CONNECT"), (b":authority", b"")],
    ":protocol of a GET": [*request_fields(), (b":protocol", b"webtransport")],
    ":protocol twice": [(b":protocol", b"webtransport-h3"), *session_fields()],
    "a session without a path": without(b":path", session_fields()),
    "a session without a scheme": without(b":scheme", session_fields()),
    "a session without an authority": without(b":authority", session_fields()),
    "a session at a path that is none": session_fields(path=b"room"),
    ":protocol that is no token": session_fields(protocol=b"web\r\ntransport"),
    # lengths
    **{
        f"Content-Length of {value!r}": request_fields((b"content-length", value))
        for value in (b"", b"x", b"-1", b"+1", b"1 1", b"1,1", b"0x10", b"9" * 30, b"\xb2")
    },
    "two lengths": request_fields((b"content-length", b"1"), (b"content-length", b"2")),
}

#: Well formed, and not to be served either.
REFUSED: dict[str, tuple[int, Fields]] = {
    "CONNECT": (405, [(b":method", b"CONNECT"), (b":authority", b"elsewhere.test:22")]),
    "CONNECT for UDP": (501, session_fields(protocol=b"connect-udp")),
    "CONNECT for HTTP/2's token": (501, session_fields(protocol=b"h2c")),
    "a token in upper case": (501, session_fields(protocol=b"WEBTRANSPORT")),
    "a WebSocket of no version": (426, without(b"sec-websocket-version", websocket_fields())),
    "a WebSocket of version 8": (426, with_(b"sec-websocket-version", b"8", websocket_fields())),
    "another Origin": (403, session_fields((b"origin", b"https://elsewhere.test"))),
    "null for an Origin": (403, session_fields((b"origin", b"null"))),
    "an empty Origin": (403, session_fields((b"origin", b""))),
    "the host under another scheme": (403, session_fields((b"origin", b"http://server.test:80"))),
    "the host at another port": (403, session_fields((b"origin", b"https://server.test:1"))),
    "two Origins": (
        403,
        session_fields((b"origin", b"https://" + AUTHORITY), (b"origin", b"https://elsewhere")),
    ),
    "an Origin beyond ASCII": (403, session_fields((b"origin", b"https://s\xe9rver.test:4433"))),
    "another Origin of a WebSocket": (
        403,
        websocket_fields((b"origin", b"https://elsewhere.test")),
    ),
    "nothing there": (404, request_fields(path=b"/nowhere")),
    "OPTIONS of all": (404, with_(b":path", b"*", request_fields(method=b"OPTIONS"))),
    "an unknown method": (404, request_fields(method=b"BREW")),
    "a URL of 30 KB": (404, request_fields(path=b"/" + b"x" * 30_000)),
    "127 fields": (404, request_fields(*[(b"a", b"b")] * 123)),
    "a field beyond ASCII": (404, request_fields((b"x", b"gr\xfc\xdfe"))),
}


async def is_answered(peer: H3Client, stream_id: int, status: int) -> None:
    """With one complete response."""
    assert await peer.answered(stream_id, 2) == status
    assert await peer.over(stream_id) is None
    kinds = [kind for kind, _ in peer.frames(stream_id)]
    assert kinds[0] == HEADERS
    assert set(kinds[1:]) <= {DATA}
    (response,) = peer.heads(stream_id)
    assert int(response[b"content-length"]) == len(peer.content(stream_id))


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_requests(kind: str) -> None:
    async with attacked_h3_server(memory=None, bystander=False) as target:
        peer = await target.introduced()
        await is_answered(peer, peer.request(MALFORMED[kind], fin=False), 400)
        await is_answered(peer, peer.request(MALFORMED[kind]), 400)
        assert not target.asked
        await peer.still_served()
        assert not target.served


@pytest.mark.parametrize("kind", REFUSED)
async def test_requests_that_are_refused(kind: str) -> None:
    async with attacked_h3_server(memory=None, bystander=False) as target:
        peer = await target.introduced()
        status, fields = REFUSED[kind]
        await is_answered(peer, peer.request(fields, fin=False), status)
        if status == 426:
            assert peer.heads(0)[0][b"sec-websocket-version"] == b"13"
        await peer.still_served()
        assert not target.served


async def test_all_of_them_on_one_connection() -> None:
    async with attacked_h3_server(memory=1.5) as target:
        peer = await target.introduced()
        for fields in MALFORMED.values():
            assert await peer.answered(peer.request(fields, fin=False)) == 400
            peer.data.clear()
        await peer.still_served()


@pytest.mark.parametrize(
    ("handler", "options", "fields"),
    [
        (None, {"handler": None}, session_fields()),
        (no_answer, {"websocket_handler": None}, websocket_fields()),
    ],
    ids=["WebTransport", "WebSocket"],
)
async def test_what_there_is_no_handler_for(
    handler: Callable[..., object] | None, options: dict[str, object], fields: Fields
) -> None:
    if handler is None:
        async with trio.open_nursery() as nursery:
            target = H3Target(network := trio_wt.testing.Network(), nursery)
            from tests.robustness.quic_peer import SERVER
            from tests.robustness.quic_target import certificate

            async def run(task_status: trio.TaskStatus[object]) -> None:
                await trio_wt.serve_webtransport(
                    None,
                    websocket_handler=echo_messages,
                    sockets=[network.socket(SERVER)],
                    tls=trio_wt.ServerTLS(certificate()),
                    task_status=task_status,
                )

            await nursery.start(run)
            peer = await target.introduced()
            await is_answered(peer, peer.request(fields, fin=False), 405)
            peer.leave()
            nursery.cancel_scope.cancel()
        return
    async with attacked_h3_server(handler, **options) as target:
        peer = await target.introduced()
        await is_answered(peer, peer.request(fields, fin=False), 405)
        await peer.still_served()


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ("same-host", None, 200),
        ("same-host", b"https://server.test:4433", 200),
        ("same-host", b"https://SERVER.test:4433", 200),
        ("any", b"https://elsewhere.test", 200),
        ("any", b"null", 200),
        (["https://a.test"], b"https://a.test", 200),
        (["https://a.test"], b"https://server.test:4433", 403),
        (["https://a.test"], b"https://a.test.evil.test", 403),
        (["https://a.test"], b"https://a.test:444", 403),
        (["https://a.test"], b"http://a.test", 403),
        (["https://a.test"], None, 200),
        ([], b"https://server.test:4433", 403),
    ],
)
async def test_origins(origins: object, origin: bytes | None, status: int) -> None:
    extra = [] if origin is None else [(b"origin", origin)]
    async with attacked_h3_server(memory=None, bystander=False, origins=origins) as target:
        peer = await target.introduced()
        for fields in (session_fields(*extra), websocket_fields(*extra)):
            stream_id = peer.request(fields, fin=False)
            assert await peer.answered(stream_id) == status
            peer.reset(stream_id)


# ---- sizes


def long_value(size: int) -> bytes:
    return section(request_fields((b"x", b"v" * size)))


def bomb(lines: int) -> bytes:
    """Lines of a byte each: the static table's longest, ``x-frame-options: sameorigin`` and the like."""
    return section(request_fields()) + prefixed(0xC0, 6, 97)[:2] * lines


#: A line whose value has 48,000 times the letter "a", in 30,000 bytes.
HUFFMAN = b"\x51" + prefixed(0x80, 7, 30_000) + b"\x18\xc6\x31\x8c\x63" * 6000

#: Field sections that are too large, and what of them is sent.
TOO_LARGE: dict[str, bytes] = {
    "HEADERS of 2^30 bytes": record(HEADERS, bytes(5000), length=2**30),
    "HEADERS of 2^61 bytes": record(HEADERS, length=2**61),
    "HEADERS of 64 KiB and one": record(HEADERS, length=64 * KIB + 1),
    "fields of more than 64 KiB": record(HEADERS, long_value(64 * KIB - 150)),
    "129 fields": record(HEADERS, section(request_fields(*[(b"a", b"b")] * 125))),
    "thousands of fields": record(HEADERS, section(request_fields(*[(b"a", b"")] * 9000))),
    "thousands of lines of the table": record(HEADERS, bomb(30_000)),
    "Huffman that grows": record(HEADERS, section(request_fields()) + 2 * HUFFMAN),
}


@pytest.mark.parametrize("trickles", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_heads_that_are_too_large(kind: str, trickles: bool) -> None:
    async with attacked_h3_server(memory=1) as target:
        peer = await target.introduced()
        data = TOO_LARGE[kind]
        if trickles:
            stream_id = peer.open(data[:1])
            for at in range(1, len(data), step := max(1, len(data) // 200)):
                if stream_id not in peer.stops:
                    peer.tell(stream_id, data[at : at + step])
                    await trio.sleep(0.00005)
        else:
            stream_id = peer.open(data)
        await is_answered(peer, stream_id, 431)
        assert not target.asked
        await peer.still_served()


async def test_head_that_is_as_large_as_it_may_be() -> None:
    async with attacked_h3_server() as target:
        peer = await target.introduced()
        stream_id = peer.open(record(HEADERS, long_value(64 * KIB - 400)), fin=True)
        await is_answered(peer, stream_id, 404)


async def test_head_that_is_too_large_is_not_waited_for() -> None:
    """All of 2^30 bytes: they are thrown away, once the client has had its answer."""
    async with attacked_h3_server(memory=1) as target:
        peer = await target.introduced()
        stream_id = peer.open(record(HEADERS, length=2**30))
        await is_answered(peer, stream_id, 431)
        assert stream_id in peer.stops


@pytest.mark.parametrize("size", [1000, 60_000])
async def test_heads_byte_by_byte(size: int) -> None:
    """They are well, and cost no more than others."""
    async with attacked_h3_server(memory=1) as target:
        peer = await target.introduced()
        data = record(HEADERS, long_value(size))
        stream_id = peer.open(data[:1])
        for at in range(1, len(data) - 1, step := max(1, size // 200)):
            peer.tell(stream_id, data[at : min(at + step, len(data) - 1)])
            await trio.sleep(0.00002)
        assert not peer.status(stream_id)
        peer.tell(stream_id, data[-1:], fin=True)
        await is_answered(peer, stream_id, 404)


async def test_heads_that_are_never_complete() -> None:
    """On as many streams as there may be, for a minute: they cost a window at most, and nobody else notices."""
    async with attacked_h3_server(memory=8, bystander=False) as target:
        peer = await target.introduced()
        peer.claim(2**10)
        for number in range(peer.connection._remote_max_streams_bidi):
            if peer.connection._remote_max_data >= 60_000 * (number + 1):
                peer.say(stream(4 * number, 0, record(HEADERS, bytes(59_990), length=60_000)))
                await trio.sleep(0.001)
        await trio.sleep(0.1)
        assert peer.end is None, peer.end
        for _ in range(6):
            await trio.sleep(10)
            peer.connection.send_ping(1)
            peer.go_on()
        await target.still_serves()


@pytest.mark.parametrize("with_head", [False, True])
async def test_unknown_frames_without_end(with_head: bool) -> None:
    """One of 2^61 bytes, of which megabytes come: nothing of it is kept."""
    async with attacked_h3_server(memory=2) as target:
        peer = await target.introduced()
        stream_id = peer.open(head(request_fields()) if with_head else b"")
        peer.tell(stream_id, record(GREASE, length=2**61))
        for _ in range(30):
            if stream_id not in peer.stops:
                peer.tell(stream_id, bytes(60_000))
                await trio.sleep(0.02)
        await peer.still_served()
        if with_head:
            assert await peer.answered(stream_id) == 404
            assert stream_id in peer.stops


async def test_content_that_nobody_wants() -> None:
    """Gigabytes announced, and as much sent as the window lets one: it is not kept once the answer is out."""
    async with attacked_h3_server(memory=2) as target:
        peer = await target.introduced()
        for _ in range(8):
            stream_id = peer.request(request_fields(method=b"POST"), fin=False)
            peer.tell(stream_id, record(DATA, bytes(300_000), length=2**40))
            await is_answered(peer, stream_id, 404)
            assert stream_id in peer.stops
        await peer.still_served()


async def test_content_while_the_application_thinks() -> None:
    """It is held back by windows, of streams and of the connection."""

    async def on_request(request: trio_wt.Request) -> None:
        await trio.sleep(5)
        request.respond(200)

    async with attacked_h3_server(memory=4, on_request=on_request, bystander=False) as target:
        peer = await target.introduced()
        for _ in range(20):
            stream_id = peer.request(request_fields(method=b"POST"), fin=False)
            peer.tell(stream_id, record(DATA, bytes(60_000), length=2**40))
        await trio.sleep(4)
        assert await peer.answered(stream_id) == 200


#: Content that is not what it is said to be.
LIES: dict[str, bytes] = {
    "more than Content-Length": head(request_fields((b"content-length", b"3"))) + content(b"1234"),
    "less than Content-Length": head(request_fields((b"content-length", b"3"))) + content(b"12"),
    "trailers with a pseudo-field": head(request_fields()) + head([(b":path", b"/x")]),
    "trailers in upper case": head(request_fields()) + head([(b"X-Y", b"z")]),
    "trailers that are too large": head(request_fields()) + record(HEADERS, length=2**30),
    "trailers of thousands of fields": head(request_fields()) + head([(b"a", b"b")] * 5000),
}


@pytest.mark.parametrize("kind", LIES)
async def test_content_that_lies(kind: str) -> None:
    """The application may have seen the request before; it costs the request at most."""
    async with attacked_h3_server(bystander=False) as target:
        peer = await target.introduced()
        stream_id = peer.open(LIES[kind], fin="2^30" not in kind and "too large" not in kind)
        await peer.over(stream_id)
        await peer.still_served()


# ---- requests that are given up


CHURNS: dict[str, Callable[[int], list[bytes]]] = {
    "half a head": lambda i: [stream(i, 0, GET[:5]), frame(RESET, i, Code.REQUEST_CANCELLED, 5)],
    "nothing": lambda i: [frame(RESET, i, Code.REQUEST_CANCELLED, 0)],
    "no end": lambda i: [stream(i, 0, fin=True)],
    "half a number": lambda i: [stream(i, 0, b"\x40", fin=True)],
    "reset": lambda i: [stream(i, 0, GET), frame(RESET, i, Code.REQUEST_CANCELLED, len(GET))],
    "reset both ways": lambda i: [
        stream(i, 0, GET),
        frame(RESET, i, Code.REQUEST_CANCELLED, len(GET)),
        frame(STOP, i, Code.REQUEST_CANCELLED),
    ],
    "ended, and not wanted": lambda i: [
        stream(i, 0, GET, fin=True),
        frame(STOP, i, Code.REQUEST_CANCELLED),
    ],
    "not wanted": lambda i: [stream(i, 0, GET), frame(STOP, i, Code.REQUEST_CANCELLED)],
    "served": lambda i: [stream(i, 0, GET, fin=True)],
    "sessions reset": lambda i: [
        stream(i, 0, SESSION),
        frame(RESET, i, Code.REQUEST_CANCELLED, len(SESSION)),
    ],
    "sessions reset both ways": lambda i: [
        stream(i, 0, SESSION),
        frame(RESET, i, Code.REQUEST_CANCELLED, len(SESSION)),
        frame(STOP, i, Code.REQUEST_CANCELLED),
    ],
    "sessions ended": lambda i: [stream(i, 0, SESSION, fin=True)],
    "malformed": lambda i: [stream(i, 0, BAD, fin=True)],
}
GET, SESSION, BAD = head(request_fields(path=b"/ok")), head(session_fields()), head([(b"A", b"b")])


async def churn(
    peer: H3Client, make: Callable[[int], list[bytes]], count: int, start: int = 0
) -> int:
    """Requests as fast as the limit on streams lets one, all made by hand; the number of the next."""
    peer.claim(2**20)
    peer.forgetful = True
    number, quiet = start, 0
    while number < count and quiet < 50 and peer.end is None:
        limit = peer.connection._remote_max_streams_bidi
        quiet = quiet + 1 if limit == number else 0
        for first in range(number, min(limit, number + 60, count), 10):
            number = min(first + 10, limit, count)
            peer.say(*(part for n in range(first, number) for part in make(peer.own(n))))
        await trio.sleep(0.003)
        peer.resets.clear()
        peer.stops.clear()
        peer.ended.clear()
    peer.forgetful = False
    return number


@pytest.mark.parametrize("kind", CHURNS)
async def test_rapid_reset(kind: str) -> None:
    """Thousands of requests that are given up at once: they come one after the other, and nothing of them stays."""
    count = 400
    async with attacked_h3_server(no_answer, memory=4) as target:
        peer = await target.introduced()
        allowed = peer.connection._remote_max_streams_bidi
        number = await churn(peer, CHURNS[kind], count)
        await trio.sleep(1)
        assert peer.end is None, peer.end
        # Streams that never come to their end are not followed by others.
        assert target.streams(peer) == 0 or number == allowed
        assert target.sessions(peer) == 0
        assert len(target.ends) == len(target.served)


async def test_ten_thousand_resets() -> None:
    async with attacked_h3_server(no_answer, memory=None, bystander=False) as target:
        peer = await target.introduced()
        assert await churn(peer, CHURNS["reset both ways"], 1000) == 1000
        before = sys.getallocatedblocks()
        assert await churn(peer, CHURNS["reset both ways"], 10_000, start=1000) == 10_000
        await trio.sleep(1)
        assert target.streams(peer) == 0
        assert sys.getallocatedblocks() - before < 5000


@pytest.mark.parametrize("kind", ["reset", "reset both ways", "sessions reset both ways"])
async def test_rapid_reset_of_requests_that_take_time(kind: str) -> None:
    """However many are given up, the application is not asked about more of them at a time than there may be streams."""
    running = most = 0

    async def on_request(request: trio_wt.Request) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep(20)
        finally:
            running -= 1

    async with attacked_h3_server(
        memory=6, on_request=on_request, bystander=False, patience=25
    ) as target:
        peer = await target.introduced()
        allowed = peer.connection._remote_max_streams_bidi
        await churn(peer, CHURNS[kind], 600)
        assert most <= allowed


async def test_reset_while_the_application_thinks() -> None:
    """A request for a session that was given up in the meantime does not become one."""
    asked = trio.Event()

    async def on_request(request: trio_wt.Request) -> None:
        if request.path == "/":
            asked.set()
            await trio.sleep(1)

    for both_ways in (False, True):
        asked = trio.Event()
        async with attacked_h3_server(no_answer, on_request=on_request) as target:
            peer = await target.introduced()
            session_id = peer.request(session_fields(), fin=False)
            await asked.wait()
            peer.reset(session_id)
            if both_ways:
                peer.stop(session_id)
            assert await peer.over(session_id) is not None
            await trio.sleep(1)
            assert not [watched for watched in target.served if not watched.is_gone]
            assert target.sessions(peer) == 0


# ---- what nobody has thought of


async def test_random_sections() -> None:
    """Bytes of which some look like lines: each has an answer or breaks the connection, and no other."""
    rng = random.Random(1)
    async with attacked_h3_server(memory=None) as target:
        peer, other = await target.introduced(), await target.introduced()
        for number in range(200):
            data = bytearray(section(request_fields((b"x", rng.randbytes(9)))))
            for _ in range(rng.randrange(6)):
                at = rng.randrange(len(data))
                kind = rng.randrange(3)
                if kind == 0:
                    data[at] = rng.randrange(256)
                elif kind == 1:
                    data[at:at] = rng.randbytes(rng.randrange(8))
                else:
                    del data[at : at + rng.randrange(4)]
            stream_id = peer.open(record(HEADERS, bytes(data)), fin=True)
            await peer.until(lambda n=stream_id: peer.end or peer.status(n), 2)  # type: ignore[misc]
            if peer.end is not None:
                assert peer.end.error_code == Code.QPACK_DECOMPRESSION_FAILED
                peer = await target.introduced()
            else:
                assert peer.status(stream_id) in (400, 404, 405, 431, 501)
            if number % 50 == 0:
                await other.still_served()
