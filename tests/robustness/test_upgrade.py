"""Requests that must not become a WebSocket: one complete 4xx, then the end."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import trio_wt
import trio_wt.testing
from tests.robustness.conftest import Log
from tests.robustness.peer import KEY, REQUEST, RawPeer, accept_for, parse_answer, request
from tests.robustness.target import MemoryListener, bounded_memory, memory_server, socket_server

BAD = {
    # the key (RFC 6455 section 4.2.1, item 5)
    "no key": (400, request(drop="sec-websocket-key")),
    "empty key": (400, request("Sec-WebSocket-Key:", drop="sec-websocket-key")),
    "short key": (400, request("Sec-WebSocket-Key: AAAA", drop="sec-websocket-key")),
    "long key": (400, request(f"Sec-WebSocket-Key: {'A' * 32}", drop="sec-websocket-key")),
    "key not base64": (
        400,
        request("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==", drop="sec-websocket-key"),
    ),
    "key with a space": (
        400,
        request("Sec-WebSocket-Key: dGhlIHNhbXBs ZSBub25jZQ==", drop="sec-websocket-key"),
    ),
    "two keys": (400, request(f"Sec-WebSocket-Key: {KEY}")),
    "two keys in a line": (
        400,
        request(f"Sec-WebSocket-Key: {KEY}, {KEY}", drop="sec-websocket-key"),
    ),
    # the version (section 4.4)
    "no version": (426, request(drop="sec-websocket-version")),
    "version 8": (426, request("Sec-WebSocket-Version: 8", drop="sec-websocket-version")),
    "version 14": (426, request("Sec-WebSocket-Version: 14", drop="sec-websocket-version")),
    "version 013": (426, request("Sec-WebSocket-Version: 013", drop="sec-websocket-version")),
    "two versions": (426, request("Sec-WebSocket-Version: 8")),
    # HTTP itself
    "HTTP/1.0": (400, request(first="GET / HTTP/1.0")),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2.0": (400, request(first="GET / HTTP/2.0")),
    "lower case http": (400, request(first="GET / http/1.1")),
    "POST": (405, request(first="POST / HTTP/1.1")),
    "HEAD with upgrade": (405, request(first="HEAD / HTTP/1.1")),
    "CONNECT": (405, request(first="CONNECT localhost:80 HTTP/1.1")),
    "no target": (400, request(first="GET HTTP/1.1")),
    "two spaces": (400, request(first="GET  / HTTP/1.1")),
    "space in the target": (400, request(first="GET /a b HTTP/1.1")),
    "no host": (400, request(drop="host")),
    "two hosts": (400, request("Host: elsewhere")),
    "empty host": (400, request("Host:", drop="host")),
    "plain GET": (426, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "another upgrade": (426, request("Upgrade: h2c", drop="upgrade")),
    "upgrade without connection": (426, request(drop="connection")),
    "HTTP/2 preface": (426, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS": (400, bytes.fromhex("160301020001000001fc0303") + bytes(32)),
    "garbage": (400, b"hello\r\n\r\n"),
    # a body (section 4.1: GET; RFC 9112 section 6.3)
    "length": (400, request("Content-Length: 5") + b"GET /"),
    "length and chunked": (
        400,
        request("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    ),
    "chunked": (400, request("Transfer-Encoding: chunked") + b"0\r\n\r\n" + REQUEST),
    "two lengths": (400, request("Content-Length: 0", "Content-Length: 5") + b"GET /"),
    "length list": (400, request("Content-Length: 0, 5") + b"GET /"),
    "signed length": (400, request("Content-Length: +0")),
    "negative length": (400, request("Content-Length: -1")),
    "length with underscore": (400, request("Content-Length: 0_0")),
    "chunked in disguise": (400, request("Transfer-Encoding:\tchunked") + b"0\r\n\r\n"),
    "chunked twice": (400, request("Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n"),
    "unknown coding": (400, request("Transfer-Encoding: gzip")),
    "chunked and unknown": (400, request("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "identity": (400, request("Transfer-Encoding: identity")),
    # bytes that must not be in a head (RFC 9110 section 5.5, RFC 9112 sections 2.2 and 5)
    "obs-fold with space": (400, request("X-Folded: a\r\n b")),
    "obs-fold with tab": (400, request("X-Folded: a\r\n\tb")),
    "fold before the first header": (400, REQUEST.replace(b"Host", b" Host", 1)),
    "NUL in a value": (400, request("X-Nul: a\0b")),
    "NUL in a name": (400, request("X-\0Nul: a")),
    "NUL in the target": (400, request(first="GET /\0 HTTP/1.1")),
    "CR in a value": (400, request("X-CR: a\rb")),
    "CR in the target": (400, request(first="GET /\r HTTP/1.1")),
    "CR before CRLF": (400, request("X-CR: a\r")),
    "LF instead of CRLF": (400, REQUEST.replace(b"\r\n", b"\n")),
    "one LF": (400, REQUEST.replace(b"\r\nUpgrade", b"\nUpgrade")),
    "LF LF at the end": (400, REQUEST[:-4] + b"\n\n" + REQUEST),
    "high byte in a value": (400, request("X-Latin: caf\xe9")),
    "UTF-8 in a value": (400, request("X-Utf8: caf\xc3\xa9")),
    "high byte in a name": (400, request("X-caf\xe9: a")),
    "high byte in the host": (400, request(host="caf\xe9")),
    "high byte in the key": (400, request("Sec-WebSocket-Key: \xff" + KEY, drop="sec-websocket-k")),
    "high byte in the version": (
        400,
        request("Sec-WebSocket-Version: 13\xa0", drop="sec-websocket-version"),
    ),
    "high byte in upgrade": (400, request("Upgrade: websocket\xff", drop="upgrade")),
    "high byte in a subprotocol": (400, request("Sec-WebSocket-Protocol: \xe9")),
    "high byte in an extension": (400, request("Sec-WebSocket-Extensions: \xe9")),
    "high byte in origin": (400, request("Origin: http://caf\xe9")),
    "high byte in the target": (400, request(first="GET /caf\xe9 HTTP/1.1")),
    "UTF-8 in the target": (400, request(first="GET /caf\xc3\xa9 HTTP/1.1")),
    "high byte in the method": (400, request(first="G\xcbT / HTTP/1.1")),
    "space before the colon": (400, request("X-Space : a")),
    "no colon": (400, request("X-Nothing")),
    "no name": (400, request(": a")),
    "form feed": (400, request("X-FF: a\x0cb")),
    # what the handshake adds
    "malformed extensions": (400, request("Sec-WebSocket-Extensions: a;;b")),
    "extensions with a quote": (400, request('Sec-WebSocket-Extensions: a;b="')),
    "foreign origin": (403, request("Origin: http://elsewhere")),
    "null origin": (403, request("Origin: null")),
    "two origins": (403, request("Origin: http://localhost", "Origin: http://elsewhere")),
    "origin is another port": (403, request("Origin: http://localhost:81")),
    "origin with user": (403, request("Origin: http://localhost@elsewhere")),
    "origin malformed": (403, request("Origin: http://[::1")),
    # limits
    "long target": (431, request(first=f"GET /{'a' * 16384} HTTP/1.1")),
    "long value": (431, request(f"X-Long: {'a' * 16384}")),
    "long name": (431, request(f"X-{'a' * 16384}: a")),
    "101 fields": (431, request(*(f"X-{i}: a" for i in range(96)))),
    "thousands of fields": (431, request(*("a: b" for _ in range(2500)))),
}
WHOLE_AND_SPLIT = [2**20, 1, 7]


async def answer_to(data: bytes, piece: int = 2**20, **options: object) -> bytes:
    """What a server says to some bytes, until it closes; never an exception."""
    async with memory_server(**options) as server:  # type: ignore[arg-type]
        peer = await server.connect()
        for at in range(0, len(data), piece):
            await peer.try_send(data[at : at + piece])
            if piece < 100 and at % 97 == 0:
                await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(3):
            return await peer.rest()


@pytest.mark.parametrize("piece", WHOLE_AND_SPLIT)
@pytest.mark.parametrize("name", BAD)
async def test_bad_request(name: str, piece: int, log: Log) -> None:
    status, data = BAD[name]
    if len(data) > 4096 and piece == 1:
        piece = 512
    got = await answer_to(data, piece)
    method = "HEAD" if data.startswith(b"HEAD") else "GET"
    answer = parse_answer(got, method=method)
    assert answer.status == status
    assert got.isascii()
    if "version" in name and status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
    if status == 405:
        assert answer.headers["allow"] == "GET"
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
    assert log.lines(logging.INFO) == []


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"\r\n" + REQUEST,
        b"\r\n\r\n" + REQUEST,
        request("Content-Length: 0"),
        request("Origin: http://localhost"),
        request("Origin: https://LOCALHOST:443"),
        request("Upgrade: h2c, WebSocket", drop="upgrade"),
        request("connection: keep-alive, upgrade", drop="connection"),
        request(*(f"X-{i}: a" for i in range(95))),
        request("X-Pad: " + "a" * (16384 - len(request("X-Pad: ")))),
        request("Sec-WebSocket-Extensions: unknown; a; a=1"),
        request("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99"),
        request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=x"),
    ],
)
@pytest.mark.parametrize("piece", WHOLE_AND_SPLIT)
async def test_good_request(data: bytes, piece: int) -> None:
    """The limits do not bite before their time, and it does not matter how the bytes come."""
    async with memory_server() as server:
        peer = await server.connect()
        for at in range(0, len(data), piece):
            await peer.send(data[at : at + piece])
            if at < 300:
                await trio.testing.wait_all_tasks_blocked()
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        await peer.echo("hello")
        await peer.aclose()


def mutated() -> st.SearchStrategy[bytes]:
    """A good request with a few bytes replaced, inserted or cut out."""
    nasty = st.sampled_from(
        [b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b"\xff", b"\x1b", b'"']
        + [b"\r\n ", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"HTTP/1.0", b""]
    )
    base = request("Sec-WebSocket-Extensions: permessage-deflate", "Origin: http://localhost")
    edit = st.tuples(st.integers(0, len(base)), st.integers(0, 3), nasty | st.binary(max_size=4))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = base
        for at, dropped, new in edits:
            data = data[:at] + new + data[at + dropped :]
        return data

    return st.lists(edit, min_size=1, max_size=3).map(apply)


@given(data=mutated(), piece=st.sampled_from([1, 3, 50, 2**20]))
@example(data=b"\r\n" + REQUEST, piece=1)
@example(data=REQUEST[:-4] + b"\r\n \r\n", piece=1)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_request(data: bytes, piece: int) -> None:
    """Whatever comes: a WebSocket, or one complete error; and the same however it is cut."""

    async def check(piece: int) -> int:
        got = bytearray()
        async with memory_server() as server:
            peer = await server.connect()
            for at in range(0, len(data), piece):
                await peer.try_send(data[at : at + piece])
                if piece < 2**20:
                    await trio.testing.wait_all_tasks_blocked()
            assert isinstance(peer.stream, trio.StapledStream)
            try:
                await peer.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            with trio.fail_after(30):
                got += await peer.rest()
        if got.startswith(b"HTTP/1.1 101 "):
            assert accept_for(KEY).encode() in got or data.count(KEY.encode()) == 0
            return 101
        return parse_answer(bytes(got)).status if got else 0

    def run(piece: int) -> int:
        return trio.run(check, piece, clock=trio.testing.MockClock(autojump_threshold=0))

    status = run(piece)
    assert status in (0, 101) or 400 <= status < 500
    assert status == run(2**20)


async def test_body_is_not_a_second_request() -> None:
    """What comes behind a refused request is dropped, whatever it says."""
    got = await answer_to(request("Content-Length: 300") + REQUEST + REQUEST)
    assert parse_answer(got).status == 400
    got = await answer_to(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 300\r\n\r\n" + REQUEST)
    assert parse_answer(got).status == 426


async def test_peer_leaves_in_the_middle_of_its_head() -> None:
    async with memory_server() as server:
        for cut in (0, 1, 10, len(REQUEST) - 1):
            peer = await server.connect()
            await peer.send(REQUEST[:cut])
            assert isinstance(peer.stream, trio.StapledStream)
            await peer.stream.send_eof()
            got = await peer.rest()
            assert got == b"" if not cut else parse_answer(got).status == 400


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_refused_peer_that_stays_is_dropped(data: bytes) -> None:
    """It may take two seconds to read the answer, whatever else it sends."""
    async with memory_server() as server:
        peer = await server.connect()
        await peer.send(data)
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while trio.current_time() - start < 10:
                await peer.send(b"more")
                await trio.sleep(0.05)
        assert trio.current_time() - start <= 2.1
        assert parse_answer(await peer.rest()).status in (400, 426)


@pytest.mark.real_clock
async def test_answer_arrives_although_the_peer_goes_on_sending() -> None:
    """Closing a socket with unread bytes resets it, and the answer with it (RFC 9112 section 9.6)."""
    async with socket_server() as server:
        peer = await server.connect()
        await peer.send(b"GET / HTTP/1.1\r\nX-Endless: ")
        for _ in range(30):
            await peer.try_send(b"a" * 16384)
        assert parse_answer(await peer.rest()).status == 431
        assert not peer.broken
        await peer.aclose()


@pytest.mark.real_clock
async def test_endless_heads_cost_no_memory() -> None:
    """Fifty peers that send a header that never ends, and one that sends empty lines."""
    async with socket_server(handshake_timeout=1) as server:

        async def attack(first: bytes, then: bytes) -> None:
            peer = await server.connect()
            await peer.send(first)
            with trio.move_on_after(1.5):
                while True:
                    await peer.try_send(then)
                    await trio.sleep(0.02)
            await peer.aclose()

        with bounded_memory(12):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(attack, b"GET / HTTP/1.1\r\nX: ", b"a" * 65536)
                nursery.start_soon(attack, b"\r\n", b"\r\n" * 8192)


async def test_hundreds_wait_in_their_handshake_and_others_get_in() -> None:
    async with memory_server() as server:
        slow = [await server.connect() for _ in range(300)]
        for peer in slow:
            await peer.send(b"GET / HTTP/1.1\r\n")
        await server.still_serves()
        start = trio.current_time()
        for peer in slow:
            assert parse_answer(await peer.rest()).status == 408
        assert trio.current_time() - start == pytest.approx(10, abs=0.1)


async def test_peer_bytes_in_log_lines_are_escaped(log: Log) -> None:
    """A target in a log line, from a request that makes the application fail."""
    log.allow_tracebacks = True

    def broken(request: trio_wt.Request) -> None:
        raise RuntimeError("broken")

    target = "/a%0d%0aFAKE" + "~" * 5000
    data = request("X-Escape: \x1b[31m", first=f"GET {target} HTTP/1.1")
    got = await answer_to(data, on_request=broken)
    assert parse_answer(got).status in (400, 500)
    for record in log.records:
        assert len(record.getMessage()) < 500


# ---- our own API given line breaks


SPLITS = ["a\r\nX-Injected: b", "a\nb", "a\rb", "a\0b"]


@pytest.mark.parametrize("bad", SPLITS)
async def test_client_refuses_to_split_a_request(bad: str) -> None:
    client, server = trio.testing.memory_stream_pair()
    url = "ws://localhost/"
    for target, options in [
        (url, {"headers": [("X-A", bad)]}),
        (url, {"headers": [(bad, "a")]}),
        (url, {"headers": {"Host": bad}}),
        (url, {"headers": {"Cookie": bad}}),
        (url, {"subprotocols": [bad]}),
        (url, {"origin": bad}),
        (url, {"user_agent": bad}),
        (url + bad, {}),
        (f"ws://{bad}/", {}),
        (f"ws://localhost/?{bad}", {}),
    ]:
        with pytest.raises(ValueError):
            async with trio_wt.wrap_client_stream(client, target, **options):  # type: ignore[arg-type]
                pass
        with pytest.raises(ValueError):
            async with trio_wt.open_websocket(target, proxy=None, **options):  # type: ignore[arg-type]
                pass
    for header in ("Upgrade", "Connection", "Sec-WebSocket-Key", "Transfer-Encoding"):
        with pytest.raises(ValueError):
            async with trio_wt.wrap_client_stream(client, url, headers={header: "a"}):
                pass
    await client.aclose()
    assert await server.receive_some() == b""


@pytest.mark.parametrize("bad", SPLITS)
async def test_server_refuses_to_split_a_response(bad: str) -> None:
    """Each way to give a bad value raises ValueError where it is given, and the server says nothing of it."""
    refused: list[str] = []

    def on_request(request: trio_wt.Request) -> None:
        def refuses(name: str, call: object) -> None:
            try:
                call()  # type: ignore[operator]
            except ValueError:
                refused.append(name)

        refuses("value", lambda: request.accept(headers=[("X-A", bad)]))
        refuses("name", lambda: request.accept(headers=[(bad, "a")]))
        refuses("subprotocol", lambda: request.accept(subprotocol=bad))
        refuses("rejected value", lambda: request.reject(403, [("X-A", bad)]))
        refuses("rejected name", lambda: request.respond(200, {bad: "a"}))
        refuses("interim status", lambda: request.reject(101))

    got = await answer_to(REQUEST + b"\x88\x80\0\0\0\0", on_request=on_request)
    assert len(refused) == 6
    assert got.startswith(b"HTTP/1.1 101 ") and b"a\r" not in got and b"Injected" not in got
    with pytest.raises(ValueError):
        await trio_wt.serve_websocket(_never, listeners=[MemoryListener()], subprotocols=[bad])


@pytest.mark.parametrize("bad", ["a\r\nb", "a\nb", "a\rb", "a" * 124, "\ud800"])
async def test_close_reason_is_checked_before_anything_is_sent(bad: str) -> None:
    async with trio_wt.testing.websocket_pair() as (client, server):
        for ws in (client, server):
            with pytest.raises(ValueError):
                await ws.close(1000, bad)
            with pytest.raises(ValueError):
                await ws.send_close(3000, bad)
            assert ws.close_code is None
        await client.send("still open")
        assert await server.receive() == "still open"


async def _never(ws: trio_wt.WebSocket) -> None:
    raise AssertionError("nothing was accepted")


RESERVED = [
    ("Connection", "close"),
    ("Upgrade", "h2c"),
    ("Sec-WebSocket-Accept", "a"),
    ("Sec-WebSocket-Protocol", "chat"),
    ("Sec-WebSocket-Extensions", "permessage-deflate"),
    ("Content-Length", "5"),
    ("Transfer-Encoding", "chunked"),
]


@pytest.mark.parametrize("header", RESERVED)
async def test_application_gives_a_header_of_the_handshake(
    header: tuple[str, str], log: Log
) -> None:
    """The application's mistake costs this request a 500, and the server nothing."""
    log.allow_tracebacks = True

    def on_request(request: trio_wt.Request) -> None:
        if request.path == "/bad":
            request.accept(headers=[header])

    async with memory_server(on_request=on_request) as server:
        peer = await server.connect()
        await peer.send(request(first="GET /bad HTTP/1.1"))
        with trio.fail_after(3):
            assert parse_answer(await peer.rest()).status == 500
        await server.still_serves()


@pytest.mark.parametrize("status", [200, 204, 301, 401, 404, 503])
async def test_rejection_is_complete(status: int) -> None:
    def on_request(request: trio_wt.Request) -> None:
        request.reject(status, [("X-Why", "because"), ("Content-Length", "999")], "the body\n")

    for data in (REQUEST, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"):
        got = await answer_to(data, on_request=on_request)
        if status == 204:
            assert got.startswith(b"HTTP/1.1 204 ") and got.endswith(b"\r\n\r\n")
            assert b"ontent-Length" not in got
        else:
            answer = parse_answer(got)
            assert (answer.status, answer.body) == (status, b"the body\n")
            assert answer.headers["x-why"] == "because"


async def test_violation_right_behind_the_request() -> None:
    """The close code comes through though it was earned before the 101 was sent."""
    async with memory_server() as server:
        peer = await server.opened(behind=b"\xff\xff\xff")
        with trio.fail_after(1):
            await peer.expect_failure(1002)


@pytest.mark.real_clock
async def test_violation_right_behind_the_request_on_a_socket() -> None:
    async with socket_server() as server:
        for _ in range(20):
            peer: RawPeer = await server.opened(behind=b"\xff" * 5000)
            with trio.fail_after(1):
                await peer.expect_failure(1002)
            await peer.aclose()
