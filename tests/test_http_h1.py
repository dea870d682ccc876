"""HTTP/1.1 heads over a transport."""

from __future__ import annotations

import email.utils
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt import HandshakeFailed, Headers
from trio_wt._http.h1 import (
    BadHead,
    RequestHead,
    linger,
    read_request_head,
    read_response,
    send_request,
    send_response,
    switch_protocols,
)
from trio_wt._http.request import Reject, Response
from trio_wt._transport.transport import StreamTransport

Stream = trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]


def connected() -> tuple[Stream, StreamTransport]:
    """A peer's bare stream, and our transport."""
    peer, ours = trio.testing.memory_stream_pair()
    return peer, StreamTransport(ours)  # type: ignore[return-value]


async def head_of(data: bytes, *, eof: bool = False) -> RequestHead | None:
    peer, transport = connected()
    await peer.send_all(data)
    if eof:
        await peer.send_eof()
    return await read_request_head(transport)


async def response_of(data: bytes, *, eof: bool = True) -> tuple[Response, bytes]:
    peer, transport = connected()
    await peer.send_all(data)
    if eof:
        await peer.send_eof()
    return await read_response(transport)


@asynccontextmanager
async def in_chunks(data: bytes, chunk: int) -> AsyncIterator[StreamTransport]:
    """A transport that receives the bytes chunk by chunk, and then the end."""
    peer, ours = trio.testing.lockstep_stream_pair()

    async def send() -> None:
        try:
            for at in range(0, len(data), chunk):
                await peer.send_all(data[at : at + chunk])
            await peer.send_eof()
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield StreamTransport(ours)
        await ours.aclose()


REQUEST = b"GET /a?b HTTP/1.1\r\nHost: example.test\r\nX: 1\r\nx: 2\r\n\r\n"

# ---- request heads


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.sampled_from([b"", b"\r\n", b"\r\n\r\n"]), st.binary(max_size=40))
def test_any_chunking_gives_the_same_request(chunk: int, before: bytes, behind: bytes) -> None:
    async def main() -> None:
        async with in_chunks(before + REQUEST + behind, chunk) as transport:
            head = await read_request_head(transport)
            assert head is not None
            assert (head.method, head.target, head.http_version) == ("GET", "/a?b", "1.1")
            assert head.headers == Headers([("Host", "example.test"), ("X", "1"), ("x", "2")])
            rest = head.leading
            while data := await transport.receive():
                rest += data
            assert rest == behind

    trio.run(main)


HEADS = st.lists(
    st.sampled_from(
        [b"GET / HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: a", b"A: b", b" ", b":", b"\0", b"\xe9"]
    ),
    max_size=12,
).map(b"".join)


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(HEADS, HEADS.map(lambda head: head + b"\r\n\r\n"), st.binary(max_size=60)),
    st.integers(1, 20),
)
def test_any_bytes_in_any_chunking_have_one_outcome(data: bytes, chunk: int) -> None:
    async def outcome(size: int) -> object:
        async with in_chunks(data, size) as transport:
            try:
                head = await read_request_head(transport)
            except BadHead as exc:
                return exc.status
            return None if head is None else (head.method, head.target, head.headers)

    assert trio.run(outcome, chunk) == trio.run(outcome, len(data) or 1)


async def test_a_peer_that_leaves_without_a_word() -> None:
    assert await head_of(b"", eof=True) is None
    assert await head_of(b"\r\n", eof=True) is None


@pytest.mark.parametrize("cut", [1, 3, len(REQUEST) - 2, len(REQUEST) - 1])
async def test_a_head_that_is_cut_off(cut: int) -> None:
    with pytest.raises(BadHead, match="incomplete") as caught:
        await head_of(REQUEST[:cut], eof=True)
    assert caught.value.status == 400


def padded(size: int) -> bytes:
    """A head of exactly this size."""
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("behind", [b"", b"behind" * 10_000])
async def test_a_head_has_at_most_16_kib(behind: bytes) -> None:
    head = await head_of(padded(16384) + behind)
    assert head is not None
    assert behind.startswith(head.leading)
    with pytest.raises(BadHead, match="more than 16384 bytes") as caught:
        await head_of(padded(16385) + behind)
    assert caught.value.status == 431


async def test_an_endless_head_is_refused_before_it_ends() -> None:
    with pytest.raises(BadHead) as caught:
        await head_of(padded(16384)[:-4] + b"xxxxx")
    assert caught.value.status == 431


async def test_a_head_has_at_most_100_fields() -> None:
    fields = b"".join(b"X%d: y\r\n" % i for i in range(99))
    head = await head_of(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    assert head is not None
    assert len(head.headers) == 100
    with pytest.raises(BadHead, match="more than 100 fields") as caught:
        await head_of(b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n" + fields + b"\r\n")
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\x80: a\r\n\r\n",
    ],
)
async def test_bytes_that_must_not_be_in_a_head(data: bytes) -> None:
    with pytest.raises(BadHead, match="must not be in it") as caught:
        await head_of(data)
    assert caught.value.status == 400
    async with in_chunks(data, 1) as transport:
        with pytest.raises(BadHead, match="must not be in it"):
            await read_request_head(transport)


async def test_such_bytes_are_refused_before_the_head_is_complete() -> None:
    for data in (b"GET / HTTP/1.1\r\nX: \0", b"\xff", b"\n", b"GET / HTTP/1.1\n"):
        with pytest.raises(BadHead) as caught:
            await head_of(data)
        assert caught.value.status == 400


async def test_bytes_behind_a_head_may_be_anything() -> None:
    head = await head_of(REQUEST + b"\0\xff\n\r\x80")
    assert head is not None
    assert head.leading == b"\0\xff\n\r\x80"


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_400(data: bytes) -> None:
    with pytest.raises(BadHead) as caught:
        await head_of(data)
    assert caught.value.status == 400
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


async def test_other_methods_and_versions_are_requests_too() -> None:
    head = await head_of(b"HEAD * HTTP/1.0\r\n\r\n")
    assert head is not None
    assert (head.method, head.target, head.http_version) == ("HEAD", "*", "1.0")


def breaking(*received: bytes) -> StreamTransport:
    """A transport that gives some bytes, and then breaks."""
    chunks = iter(received)

    class Breaking(trio.abc.Stream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            for chunk in chunks:
                return chunk
            raise trio.BrokenResourceError("reset")

        async def send_all(self, data: object) -> None:
            await trio.lowlevel.checkpoint()

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    return StreamTransport(Breaking())


async def test_a_connection_that_breaks_is_not_a_bad_head() -> None:
    for received in ([], [b"GET"]):
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await read_request_head(breaking(*received))


# ---- sending responses


async def sent_by(response: Reject, *, head_only: bool = False) -> tuple[bytes, Headers, bytes]:
    """Status line, headers and body of what goes out."""
    peer, transport = connected()
    if head_only:
        await send_response(transport, response, patience=1, head_only=True)
    else:
        await send_response(transport, response, patience=1)
    await transport.aclose(graceful=False)
    data = b""
    while more := await peer.receive_some():
        data += bytes(more)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    pairs = [line.split(b": ", 1) for line in lines]
    return first, Headers.from_raw((name, value) for name, value in pairs), body


async def test_a_response_is_complete() -> None:
    first, headers, body = await sent_by(Reject(404, Headers({"X": "é"}), b"not here"))
    assert first == b"HTTP/1.1 404 Not Found"
    assert body == b"not here"
    assert list(headers) == ["x", "content-type", "date", "content-length", "connection"]
    assert headers["x"] == "é"
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["content-length"] == "8"
    assert headers["connection"] == "close"
    now = datetime.now(UTC)
    assert abs((email.utils.parsedate_to_datetime(headers["date"]) - now).total_seconds()) < 60


async def test_headers_of_the_application_stay_but_those_that_frame_the_message() -> None:
    extra = Headers(
        [
            ("Content-Type", "a/b"),
            ("DATE", "today"),
            ("Content-Length", "99"),
            ("Connection", "keep-alive"),
            ("Transfer-Encoding", "chunked"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ]
    )
    _, headers, _ = await sent_by(Reject(200, extra, b"{}"))
    assert headers.fields == (
        ("Content-Type", "a/b"),
        ("DATE", "today"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
        ("Content-Length", "2"),
        ("Connection", "close"),
    )


async def test_head_gets_the_headers_only() -> None:
    _, headers, body = await sent_by(Reject(200, Headers(), b"12345"), head_only=True)
    assert headers["content-length"] == "5"
    assert body == b""


async def test_no_body_no_type() -> None:
    _, headers, body = await sent_by(Reject(401, Headers(), b""))
    assert "content-type" not in headers
    assert headers["content-length"] == "0"
    assert body == b""


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body(status: int) -> None:
    # RFC 9110 sections 15.3.5 and 15.4.5
    _, headers, body = await sent_by(Reject(status, Headers(), b"lost"))
    assert body == b""
    assert "content-length" not in headers


async def test_a_status_nobody_knows_has_an_empty_reason() -> None:
    assert (await sent_by(Reject(599, Headers(), b"")))[0] == b"HTTP/1.1 599 "


async def test_switch_protocols() -> None:
    peer, transport = connected()
    await switch_protocols(transport, Headers({"Upgrade": "websocket"}))
    expected = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    assert await peer.receive_some() == expected


async def test_a_large_response_goes_out_whole() -> None:
    body = bytes(range(256)) * 1000
    assert (await sent_by(Reject(200, Headers(), body)))[2] == body


# ---- lingering


async def test_lingering_ends_our_side_and_waits_for_the_peers() -> None:
    peer, transport = connected()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger, transport)
        assert await peer.receive_some() == b""
        await peer.send_all(b"late")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        await peer.send_eof()


async def test_lingering_takes_a_mebibyte_and_no_more() -> None:
    peer, transport = connected()
    await peer.send_all(bytes(2**20 + 65536))
    with trio.fail_after(1):
        await linger(transport)


async def test_lingering_does_not_mind_a_break() -> None:
    _, transport = connected()
    await transport.aclose(graceful=False)
    await linger(transport)
    await linger(breaking(b"late"))


# ---- sending requests


async def test_a_request_as_sent() -> None:
    peer, transport = connected()
    await send_request(transport, "/a?b=%20", Headers([("Host", "h"), ("X", "é")]))
    assert await peer.receive_some() == b"GET /a?b=%20 HTTP/1.1\r\nHost: h\r\nX: \xe9\r\n\r\n"


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/\n", "/é", "/\0", "/\x7f", "/\t"])
async def test_a_target_cannot_split_the_request(target: str) -> None:
    peer, transport = connected()
    with pytest.raises(ValueError, match="not a valid request target"):
        await send_request(transport, target, Headers())
    await transport.aclose(graceful=False)
    assert await peer.receive_some() == b"", "nothing was sent"


# ---- reading responses

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.binary(max_size=50), st.integers(0, 2))
def test_any_chunking_gives_the_same_response(chunk: int, behind: bytes, interim: int) -> None:
    async def main() -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * interim
        async with in_chunks(early + SWITCH + behind, chunk) as transport:
            response, rest = await read_response(transport)
            assert response.status == 101
            assert response.headers == Headers({"Upgrade": "websocket", "Connection": "Upgrade"})
            while data := await transport.receive():
                rest += data
            assert rest == behind

    trio.run(main)


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (b"Content-Length: 5\r\n", b"hello", b"hello"),
        (b"Content-Length: 5\r\n", b"hello and more", b"hello"),
        (b"Content-Length: 5\r\n", b"hel", b"hel"),
        (b"Content-Length: 0\r\n", b"", b""),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nhel\r\n2\r\nl", b"hell"),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nhel\r\nzzz\r\n", b"hel"),
        (b"", b"until the end", b"until the end"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_the_body_of_another_response(
    head: bytes, body: bytes, expected: bytes, chunk: int
) -> None:
    data = b"HTTP/1.1 503 Sorry\r\nRetry-After: 1\r\n" + head + b"\r\n" + body
    async with in_chunks(data, chunk) as transport:
        response, rest = await read_response(transport)
    assert response.status == 503
    assert response.headers["retry-after"] == "1"
    assert response.body == expected
    assert rest == b""


@pytest.mark.parametrize("length", [b"Content-Length: 70000\r\n", b""])
@pytest.mark.parametrize("size", [65535, 65536, 65537, 70000])
async def test_a_body_is_cut_at_64_kib(length: bytes, size: int) -> None:
    body = bytes(i & 0xFF for i in range(size))
    response, _ = await response_of(b"HTTP/1.1 403 No\r\n" + length + b"\r\n" + body)
    assert response.body == body[:65536]


async def test_a_body_that_breaks_off_is_better_than_none() -> None:
    head = b"HTTP/1.1 503 Sorry\r\nContent-Length: 9\r\n\r\n"
    response, _ = await read_response(breaking(head + b"half"))
    assert (response.status, response.body) == (503, b"half")
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await read_response(breaking(head[:9]))


async def test_after_64_kib_nobody_waits_for_the_rest() -> None:
    with trio.fail_after(1):
        response, _ = await response_of(
            b"HTTP/1.1 403 No\r\nContent-Length: 99999999\r\n\r\n" + bytes(70000), eof=False
        )
    assert len(response.body) == 65536


async def test_a_response_without_a_body_is_not_waited_for() -> None:
    for status in (b"204 No Content", b"304 Not Modified"):
        with trio.fail_after(1):
            response, _ = await response_of(b"HTTP/1.1 " + status + b"\r\n\r\n", eof=False)
        assert response.body == b""


async def test_http_1_0_is_a_response_too() -> None:
    response, _ = await response_of(b"HTTP/1.0 400 Bad\r\n\r\nbody")
    assert (response.status, response.body) == (400, b"body")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "closed the connection without a response"),
        (b"HTTP/1.1 101 Swi", "in the middle of its response"),
        (b"HTTP/1.1 103 Early\r\n\r\n", "without a response"),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP", "in the middle of its response"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not valid HTTP"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 99 Low\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "not valid HTTP"),
        (b"\r\n\r\n", "not valid HTTP"),
        (b"x" * 16385, "more than 16384 bytes"),
        (b"HTTP/1.1 101 S\r\nX: " + b"x" * 16384 + b"\r\n\r\n", "more than 16384 bytes"),
        (b"HTTP/1.1 101 S\r\n" + b"X: y\r\n" * 101 + b"\r\n", "or 100 fields"),
        (b"HTTP/1.1 103 E\r\n\r\n" * 200 + SWITCH, "too many interim responses"),
    ],
)
async def test_what_is_no_response(data: bytes, why: str) -> None:
    with pytest.raises(HandshakeFailed, match=why) as caught:
        await response_of(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


async def test_a_response_at_the_limits() -> None:
    fields = b"".join(b"X%d: y\r\n" % i for i in range(98))
    head = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n" + fields + b"Y: "
    head += b"y" * (16384 - len(head) - 4) + b"\r\n\r\n"
    assert len(head) == 16384
    response, rest = await response_of(head + b"frames")
    assert len(response.headers) == 100
    assert rest == b"frames"


async def test_what_is_behind_a_101_may_be_anything() -> None:
    response, rest = await response_of(SWITCH + b"\x81\x00\r\n\r\n\xff" * 5000)
    assert response.status == 101
    assert b"\x81\x00\r\n\r\n\xff".startswith(rest[:7])
