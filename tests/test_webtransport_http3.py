"""What neither side of HTTP/3 puts up with: requests, frames and streams that must not be."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    Exchange,
    FrameType,
    Http3Code,
    Setting,
    ask_raw,
    raw_client,
)
from tests.webtransport_pairs import (
    Visitors,
    check_nothing_is_held,
    connect,
    serving,
    settle,
    stay,
)
from trio_wt import Request, StreamReset, WebSocket
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network

PAGE = b"<h1>hello</h1>"


def on_request(request: Request) -> None:
    if request.path == "/health":
        request.respond(200, body="ok")
    elif request.path == "/page":
        request.respond(200, {"Content-Type": "text/html", "X-Method": request.method}, PAGE)
    elif request.path == "/empty":
        request.respond(204)
    elif request.path == "/big":
        request.respond(200, body=bytes(200_000))
    elif request.path == "/unchanged":
        request.respond(304, {"ETag": '"x"'}, b"ignored")


# ---- refusals


async def test_connects_of_other_kinds() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), raw_client(network) as peer:
        plain = [(b":method", b"CONNECT"), (b":authority", b"elsewhere.test:443")]
        exchange = await peer.request(plain)
        assert (await exchange.receive_head())[b":status"] == b"405"
        exchange = await peer.request(peer.session_fields(token=b"connect-udp"))
        assert (await exchange.receive_head())[b":status"] == b"501"
        exchange = await peer.request(peer.session_fields(token=b"websocket"))
        assert (await exchange.receive_head())[b":status"] == b"405"


async def test_sessions_where_there_are_none() -> None:
    async def websocket_handler(_: WebSocket) -> None:
        pytest.fail("nobody asks for one")

    network = Network()
    async with serving(None, network, websocket_handler=websocket_handler):
        async with raw_client(network) as peer:
            exchange = await peer.request(peer.session_fields())
            assert (await exchange.receive_head())[b":status"] == b"405"
            assert await exchange.receive_body()


async def test_one_session_too_many() -> None:
    network = Network()
    async with serving(stay, network, max_sessions=1), raw_client(network) as peer:
        first = await peer.open_session()
        exchange = await peer.request(peer.session_fields())
        assert (await exchange.receive_head())[b":status"] == b"429"
        first.stream.reset(Http3Code.REQUEST_CANCELLED)
        await settle()
        await peer.open_session()


async def test_heads_that_are_too_large() -> None:
    network = Network()
    limits = {"max_field_section": 2000, "max_fields": 20}
    async with serving(stay, network, on_request=on_request, **limits), raw_client(network) as peer:
        many = [(b"x-%d" % number, b"y") for number in range(30)]
        for more in (many, [(b"x", b"y" * 1000), (b"z", b"y" * 1000)], [(b"x", b"\x7e" * 10_000)]):
            exchange = await peer.request([*peer.plain_fields(path=b"/health"), *more])
            assert (await exchange.receive_head())[b":status"] == b"431"
        just = [(b"x", b"y" * 1000), *many[:10]]
        exchange = await peer.request([*peer.plain_fields(path=b"/health"), *just])
        assert (await exchange.receive_head())[b":status"] == b"200"
        assert peer.connection.closed is None


async def test_the_limit_on_heads_is_said() -> None:
    network = Network()
    async with serving(stay, network, max_field_section=2000), connect(network) as connection:
        await connection.request("GET", "/")
        assert connection.peer_settings[Setting.MAX_FIELD_SECTION_SIZE] == 2000


async def test_a_head_of_a_gigabyte_is_not_waited_for() -> None:
    network = Network()
    async with serving(stay, network), raw_client(network) as peer:
        exchange = Exchange(peer, await peer.open_stream())
        await exchange.stream.send_all(bytes([FrameType.HEADERS]) + encode(2**30) + bytes(1000))
        with trio.fail_after(1):
            assert (await exchange.receive_head())[b":status"] == b"431"


GOOD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"server.test:4433"),
    (b":path", b"/health"),
]
BAD_HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "no method": GOOD[1:],
    "no scheme": [GOOD[0], *GOOD[2:]],
    "no authority": [*GOOD[:2], GOOD[3]],
    "no path": GOOD[:3],
    "empty path": [*GOOD[:3], (b":path", b"")],
    "path without a slash": [*GOOD[:3], (b":path", b"health")],
    "path with a blank": [*GOOD[:3], (b":path", b"/a b")],
    "two paths": [*GOOD, (b":path", b"/health")],
    "a status": [*GOOD, (b":status", b"200")],
    "unknown pseudo": [*GOOD, (b":version", b"3")],
    "pseudo behind others": [*GOOD[:3], (b"x", b"y"), GOOD[3]],
    "protocol with GET": [*GOOD, (b":protocol", b"webtransport")],
    "upper case": [*GOOD, (b"X-Y", b"z")],
    "name with CR": [*GOOD, (b"x\ry", b"z")],
    "value with LF": [*GOOD, (b"x", b"a\nb")],
    "value with NUL": [*GOOD, (b"x", b"a\x00b")],
    "value with blanks": [*GOOD, (b"x", b" a ")],
    "connection": [*GOOD, (b"connection", b"close")],
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "te": [*GOOD, (b"te", b"gzip")],
    "another host": [*GOOD, (b"host", b"other.test")],
    "two lengths": [*GOOD, (b"content-length", b"5"), (b"content-length", b"6")],
    "no length": [*GOOD, (b"content-length", b"five")],
    "negative length": [*GOOD, (b"content-length", b"-5")],
    "user": [*GOOD[:2], (b":authority", b"user@server.test"), GOOD[3]],
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_heads_that_are_not_valid(name: str) -> None:
    """They cost their stream only."""
    asked: list[Request] = []
    network = Network()
    async with serving(stay, network, on_request=asked.append), raw_client(network) as peer:
        exchange = await peer.request(BAD_HEADS[name], eof=True)
        assert (await exchange.receive_head())[b":status"] == b"400"
        assert asked == []
        assert peer.connection.closed is None
        head, _ = await ask_raw(peer, GOOD)
        assert head[b":status"] == b"404"


@pytest.mark.parametrize("length", [b"3", b"5"])
async def test_lengths_that_are_not_kept_to(length: bytes) -> None:
    """More or less than Content-Length says: malformed (RFC 9114 section 4.1.2)."""
    network = Network()
    async with serving(stay, network), raw_client(network) as peer:
        exchange = await peer.request([*GOOD, (b"content-length", length)])
        with contextlib.suppress(StreamReset):
            await exchange.send_data(b"four", eof=True)
        with trio.fail_after(1), contextlib.suppress(StreamReset):
            assert (await exchange.receive_head())[b":status"] in (b"400", b"404")
        await settle()
        assert peer.connection.closed is None


FRAMES: dict[str, tuple[bytes, int]] = {
    "DATA first": (b"\x00\x01x", Http3Code.FRAME_UNEXPECTED),
    "SETTINGS": (b"\x04\x00", Http3Code.FRAME_UNEXPECTED),
    "GOAWAY": (b"\x07\x01\x00", Http3Code.FRAME_UNEXPECTED),
    "MAX_PUSH_ID": (b"\x0d\x01\x00", Http3Code.FRAME_UNEXPECTED),
    "PING of HTTP/2": (b"\x06\x00", Http3Code.FRAME_UNEXPECTED),
    "PUSH_PROMISE": (b"\x05\x01\x00", Http3Code.FRAME_UNEXPECTED),
    "nonsense of QPACK": (b"\x01\x03\xff\xff\xff", Http3Code.QPACK_DECOMPRESSION_FAILED),
    "dynamic table": (b"\x01\x03\x02\x00\x80", Http3Code.QPACK_DECOMPRESSION_FAILED),
    "WT_STREAM later": (b"\x21\x00\x40\x41\x00", Http3Code.FRAME_ERROR),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_that_must_not_be_there(name: str) -> None:
    data, code = FRAMES[name]
    network = Network()
    async with serving(stay, network), raw_client(network) as peer:
        stream = await peer.open_stream()
        await stream.send_all(data, eof=True)
        end = await peer.connection.wait_closed()
        assert end.code == code
        assert end.reason


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x10abc", b"\x21\x05abc"])
async def test_requests_that_are_cut_off(data: bytes) -> None:
    network = Network()
    async with serving(stay, network), raw_client(network) as peer:
        exchange = Exchange(peer, await peer.open_stream())
        await exchange.stream.send_all(data, eof=True)
        with trio.fail_after(1), contextlib.suppress(trio.BrokenResourceError):
            assert (await exchange.receive_head())[b":status"] == b"400"
        await settle()
        end = peer.connection.closed
        assert end is None or end.code == Http3Code.FRAME_ERROR


CONTROLS: dict[str, tuple[bytes, int]] = {
    "no SETTINGS first": (b"\x00\x07\x01\x00", Http3Code.MISSING_SETTINGS),
    "SETTINGS twice": (b"\x00\x04\x00\x04\x00", Http3Code.FRAME_UNEXPECTED),
    "a setting of HTTP/2": (b"\x00\x04\x02\x02\x00", Http3Code.SETTINGS_ERROR),
    "a setting twice": (b"\x00\x04\x04\x06\x05\x06\x06", Http3Code.SETTINGS_ERROR),
    "a setting of 2": (b"\x00\x04\x02\x33\x02", Http3Code.SETTINGS_ERROR),
    "a setting cut off": (b"\x00\x04\x01\x06", Http3Code.FRAME_ERROR),
    "DATA": (b"\x00\x04\x00\x00\x00", Http3Code.FRAME_UNEXPECTED),
    "HEADERS": (b"\x00\x04\x00\x01\x00", Http3Code.FRAME_UNEXPECTED),
    "a GOAWAY of no number": (b"\x00\x04\x00\x07\x02\x00\x00", Http3Code.FRAME_ERROR),
    "a push id that falls": (b"\x00\x04\x00\x0d\x01\x05\x0d\x01\x04", Http3Code.ID_ERROR),
    "a push cancelled": (b"\x00\x04\x00\x03\x01\x00", Http3Code.ID_ERROR),
    "SETTINGS of a megabyte": (b"\x00\x04" + encode(2**20), Http3Code.EXCESSIVE_LOAD),
    "a push": (b"\x01\x00", Http3Code.STREAM_CREATION_ERROR),
    "a dynamic table": (b"\x02\x3f\x45", Http3Code.QPACK_ENCODER_STREAM_ERROR),
    "an acknowledgement": (b"\x03\x85", Http3Code.QPACK_DECODER_STREAM_ERROR),
}


@pytest.mark.parametrize("name", CONTROLS)
async def test_streams_that_must_not_say_that(name: str) -> None:
    data, code = CONTROLS[name]
    network = Network()
    async with serving(stay, network), raw_client(network, settings=None) as peer:
        stream = await peer.open_send_stream()
        await stream.send_all(data)
        end = await peer.connection.wait_closed()
        assert end.code == code


@pytest.mark.parametrize("kind", [b"\x00\x04\x00", b"\x02", b"\x03"])
@pytest.mark.parametrize("how", ["second", "ended", "reset"])
async def test_critical_streams_are_one_of_each_and_last(kind: bytes, how: str) -> None:
    network = Network()
    async with serving(stay, network), raw_client(network, settings=None) as peer:
        stream = await peer.open_send_stream()
        await stream.send_all(kind)
        await settle()
        assert peer.connection.closed is None
        if how == "second":
            second = await peer.open_send_stream()
            await second.send_all(kind)
        elif how == "ended":
            await stream.send_eof()
        else:
            stream.reset(Http3Code.NO_ERROR)
        end = await peer.connection.wait_closed()
        expected = (
            Http3Code.STREAM_CREATION_ERROR if how == "second" else Http3Code.CLOSED_CRITICAL_STREAM
        )
        assert end.code == expected


async def test_streams_of_kinds_that_nobody_knows_are_refused_one_by_one() -> None:
    network = Network()
    async with serving(stay, network, max_receive_streams=4), raw_client(network) as peer:
        for number in range(40):
            stream = await peer.open_send_stream()
            kind = encode(0x1F * number + 0x21)
            if number % 3 == 0:
                await stream.send_all(kind, eof=True)
                continue
            await stream.send_all(kind + bytes(1000))
            with pytest.raises(StreamReset) as caught:
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.01)
            assert caught.value.wire_code == Http3Code.STREAM_CREATION_ERROR
        # Some say nothing at all.
        for _ in range(20):
            await (await peer.open_send_stream()).send_eof()
            (await peer.open_send_stream()).reset(0)
            await settle()
        assert (await ask_raw(peer, GOOD))[0][b":status"] == b"404"


# ---- rapid resets, and requests that do not come to their ends


async def test_requests_that_are_reset_at_once() -> None:
    asked: list[str] = []

    async def think(request: Request) -> None:
        asked.append(request.path)
        await trio.sleep(1)

    network, visitors = Network(), Visitors()
    async with serving(visitors, network, on_request=think), raw_client(network) as peer:
        first = await peer.open_session(b"/first")
        session = await visitors.next()
        for number in range(300):
            exchange = await peer.request(peer.session_fields(b"/%d" % number))
            if number % 2:
                await trio.sleep(0.005)
            exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
            exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
        await trio.sleep(3)
        assert peer.connection.closed is None
        # Of those that are gone none has become a session.
        assert session.connection.open_sessions == 1
        await first.stream.send_eof()
        await settle()
        check_nothing_is_held(session.connection)


async def test_requests_that_are_opened_and_never_sent() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        await peer.open_session()
        session = await visitors.next()
        for number in range(40):
            stream = await peer.open_stream()
            if number % 2:
                await stream.send_all(b"\x01\x40")
            await settle()
            if number % 4 < 2:
                stream.reset(0)
            else:
                await stream.send_eof()
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.receive_all()
            if peer.connection.closed is not None:
                break
        await settle()
        assert len(session.connection._driver._streams) <= 4
