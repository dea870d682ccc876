"""The WebSocket rows of the table of defaults: each limit where it is said to be, and what happens past it."""

from __future__ import annotations

import inspect
import re
import socket
import ssl

import pytest
import trio
import trio.testing
import trustme

import trio_wt
from tests.robustness.peer import (
    BINARY,
    CONTINUATION,
    DEFLATE,
    PING,
    PONG,
    REQUEST,
    TEXT,
    RawPeer,
    close_frame,
    deflated,
    frame,
    parse_answer,
    request,
)
from tests.robustness.target import Side, attacked, bounded_memory, memory_server, socket_server

SIDES: list[Side] = ["client", "server"]
MIB = 2**20


def test_defaults_are_the_documented_ones() -> None:
    settings = trio_wt.Settings()
    assert settings.max_message_size == MIB
    assert settings.max_fragments == 65536
    assert (settings.max_queue_messages, settings.max_queue_bytes) == (16, MIB)
    assert settings.close_timeout == 5
    assert (settings.ping_interval, settings.ping_timeout) == (20, 20)
    assert settings.compression == trio_wt.Deflate()
    for client in (trio_wt.open_websocket, trio_wt.wrap_client_stream):
        assert inspect.signature(client).parameters["handshake_timeout"].default == 10
    for server in (trio_wt.serve_websocket, trio_wt.wrap_server_stream):
        assert inspect.signature(server).parameters["handshake_timeout"].default == 10
        assert inspect.signature(server).parameters["origins"].default == "same-host"


# ---- opening handshake: 10 s, absolute, then 408


@pytest.mark.parametrize("pause", [None, 0.05, 0.5, 9.9])
async def test_opening_handshake_timeout(pause: float | None) -> None:
    """Nothing at all, or bytes one by one: after ten seconds it is over."""
    async with memory_server() as server:
        peer = await server.connect()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def dribble() -> None:
                assert pause is not None
                for byte in request("X-Pad: " + "a" * 500):
                    await peer.try_send(bytes([byte]))
                    await trio.sleep(pause)

            if pause is not None:
                nursery.start_soon(dribble)
            got = await peer.rest()
            nursery.cancel_scope.cancel()
        assert parse_answer(got).status == 408
        assert trio.current_time() - start == pytest.approx(10, abs=0.1)


async def test_opening_handshake_in_the_last_moment() -> None:
    async with memory_server() as server:
        peer = await server.connect()
        await trio.sleep(9.9)
        await peer.upgrade()
        await peer.echo("in time")
        await trio.sleep(1)
        await peer.echo("the limit does not go on")
        await peer.aclose()


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server and a client."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n"])
async def test_tls_handshake_that_stalls(said: bytes) -> None:
    server_context, _ = tls_contexts()
    async with memory_server(ssl_context=server_context) as server:
        peer = await server.connect()
        start = trio.current_time()
        await peer.send(said)
        await peer.rest()
        assert trio.current_time() - start <= 10.1


async def test_tls_and_the_request_share_the_limit() -> None:
    """The limit is absolute: being slow in TLS does not buy ten seconds more."""
    server_context, client_context = tls_contexts()
    async with memory_server(ssl_context=server_context) as server:
        start = trio.current_time()
        peer = await server.connect()
        await trio.sleep(8)
        tls = trio.SSLStream(
            peer.stream, client_context, server_hostname="localhost", https_compatible=True
        )
        await tls.do_handshake()
        await RawPeer(tls).rest()
        assert trio.current_time() - start <= 12.1  # and two seconds to read the answer


async def test_on_request_that_waits_does_not_count_as_the_peers_time() -> None:
    async def on_request(request: trio_wt.Request) -> None:
        await trio.sleep(15)

    async with memory_server(on_request=on_request) as server:
        peer = await server.opened()
        await peer.echo("patience")
        await peer.aclose()


# ---- request head: 16 KiB, 100 fields, then 431


@pytest.mark.parametrize(
    ("size", "fields", "status"),
    [(16384, 6, 101), (16385, 6, 431), (1000, 100, 101), (1000, 101, 431), (16384, 100, 101)],
)
async def test_head_limits(size: int, fields: int, status: int) -> None:
    extra = [f"X: {i}" for i in range(fields - 6)]
    pad = size - len(request(*extra, "Y: "))
    data = request(*extra, "Y: " + "a" * max(pad, 0))
    assert data.count(b"\r\n") == fields + 2
    async with memory_server() as server:
        peer = await server.connect()
        await peer.send(data)
        if status == 101:
            assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
            await peer.aclose()
        else:
            assert parse_answer(await peer.rest()).status == status


# ---- message: 1 MiB after inflation, then 1009


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("how", ["one frame", "fragments", "compressed", "compressed fragments"])
@pytest.mark.parametrize("over", [0, 1])
async def test_message_size(side: Side, opcode: int, how: str, over: int) -> None:
    data = b"a" * (MIB + over)
    masked = side == "server"
    if how == "one frame":
        sent = frame(opcode, data, masked=masked)
    elif how == "fragments":
        sent = frame(opcode, data[:300_000], masked=masked, fin=False)
        sent += frame(CONTINUATION, data[300_000:600_000], masked=masked, fin=False)
        sent += frame(CONTINUATION, data[600_000:], masked=masked)
    else:
        payload = deflated(data)
        cut = len(payload) if how == "compressed" else 500
        sent = frame(opcode, payload[:cut], masked=masked, rsv=0x40, fin=cut == len(payload))
        if cut < len(payload):
            sent += frame(CONTINUATION, payload[cut:], masked=masked)
    offer = f"Sec-WebSocket-Extensions: {DEFLATE if masked else 'permessage-deflate'}"
    if not masked:
        offer += "; server_max_window_bits=12"
    async with attacked(side, offer) as (peer, ws):
        await peer.send(sent)
        if not over:
            message = await ws.receive()
            assert message == (data.decode() if opcode == TEXT else data)
            return
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.remote) == (1009, False)
        with trio.fail_after(1):
            await peer.expect_failure(1009)


async def test_message_size_counts_bytes_of_text() -> None:
    text = "\N{EURO SIGN}" * (MIB // 3)
    async with attacked("server") as (peer, ws):
        await peer.send_frame(TEXT, text.encode())
        assert await ws.receive() == text
        await peer.send_frame(TEXT, (text + "\N{EURO SIGN}").encode())
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1009


@pytest.mark.parametrize("side", SIDES)
async def test_message_too_big_is_told_by_its_header(side: Side) -> None:
    """No byte of the payload needs to come."""
    async with attacked(side) as (peer, _):
        await peer.send_frame(BINARY, b"", length=MIB + 1)
        with trio.fail_after(1):
            await peer.expect_failure(1009)


# ---- fragments: 65,536, joined in place, then 1008


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("payload", [b"", b"a"])
@pytest.mark.parametrize("beyond", [False, True])
async def test_fragments(side: Side, payload: bytes, beyond: bool) -> None:
    # An empty last one is not counted: Autobahn's own program ends 65,536 parts with one.
    number = 65536 + (not payload) + beyond
    masked = side == "server"
    begin = frame(TEXT, payload, masked=masked, fin=False)
    middle = frame(CONTINUATION, payload, masked=masked, fin=False)
    end = frame(CONTINUATION, payload, masked=masked)
    async with attacked(side) as (peer, ws):
        await peer.send(begin + middle * (number - 2) + end)
        if not beyond:
            assert await ws.receive() == (payload * number).decode()
            return
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1008
        with trio.fail_after(1):
            await peer.expect_failure(1008)


async def test_fragments_cost_only_their_bytes() -> None:
    sent = frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"a", fin=False) * 60_000
    async with attacked("server") as (peer, ws):
        with bounded_memory(4):
            for at in range(0, len(sent), 5000):
                await peer.send(sent[at : at + 5000])
                await trio.testing.wait_all_tasks_blocked()
            assert ws.statistics().queued_bytes == 60_001
        await peer.send_frame(CONTINUATION, b"b")
        assert await ws.receive() == b"a" * 60_001 + b"b"


# ---- received and not read: 16 messages and 1 MiB, then the socket is not read


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [0, 100, 5000])
async def test_queue_of_messages(side: Side, size: int) -> None:
    async with attacked(side) as (peer, ws):
        for i in range(200):
            await peer.send_frame(BINARY, b"%d" % i + bytes(size))
            await trio.testing.wait_all_tasks_blocked()
        figures = ws.statistics()
        assert figures.queued_messages == 16
        assert figures.unparsed_bytes <= 2 * 65536
        assert [await ws.receive() for _ in range(200)] == [
            b"%d" % i + bytes(size) for i in range(200)
        ]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("compressed", [False, True])
async def test_queue_of_bytes(side: Side, compressed: bool) -> None:
    """Inflated bytes are counted: 300 KiB that came in as 400 bytes are 300 KiB."""
    data = bytes(300 * 1024)
    masked = side == "server"
    message = (
        frame(BINARY, deflated(data), masked=masked, rsv=0x40)
        if compressed
        else frame(BINARY, data, masked=masked)
    )
    offer = f"Sec-WebSocket-Extensions: {DEFLATE if masked else 'permessage-deflate'}"
    if not masked:
        offer += "; server_max_window_bits=12"
    async with attacked(side, offer) as (peer, ws):
        with bounded_memory(10):  # 5 MiB of them in the stream between us
            await peer.send(message * 2)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(message * 8)
            await trio.testing.wait_all_tasks_blocked()
            figures = ws.statistics()
            assert figures.queued_messages <= 4
            assert MIB // 2 < figures.queued_bytes <= 2 * MIB
            assert figures.unparsed_bytes <= 2 * 65536
        for _ in range(10):
            assert await ws.receive() == data


@pytest.mark.real_clock
@pytest.mark.parametrize("size", [10, 10_000, 500_000])
async def test_socket_is_not_read_past_the_mark(size: int) -> None:
    """A flood that nobody receives stops in the kernel's buffers, and goes on when it is received."""
    sockets: list[trio_wt.WebSocket] = []
    go = trio.Event()
    received = 0

    async def handler(ws: trio_wt.WebSocket) -> None:
        nonlocal received
        if "x-purpose" in ws.request.headers:
            async for message in ws:
                await ws.send(message)
            return
        sockets.append(ws)
        await go.wait()
        async for _ in ws:
            received += 1

    async with socket_server(handler) as server:
        peer = await server.opened()
        message = frame(BINARY, bytes(size))
        burst = message * max(1, 100_000 // len(message))
        bursts = 0
        with bounded_memory(8):
            while bursts * len(burst) < 64 * MIB:
                with trio.move_on_after(0.5) as stuck:
                    await peer.send(burst)
                if stuck.cancelled_caught:
                    break
                bursts += 1
            assert stuck.cancelled_caught, "64 MiB were taken that nobody received"
        figures = sockets[0].statistics()
        assert figures.queued_messages <= 16
        assert figures.queued_bytes <= 2 * MIB
        assert figures.unparsed_bytes <= MIB + 2 * 65536
        assert figures.bytes_received <= 3 * MIB + 2 * 65536
        go.set()
        # The last burst was cut somewhere: what is left of a message cannot be finished.
        with trio.move_on_after(5):
            while received < bursts * len(burst) // len(message):
                await trio.sleep(0.01)
        assert received >= bursts * len(burst) // len(message)
        await peer.aclose()


@pytest.mark.parametrize("side", SIDES)
async def test_ping_is_answered_behind_a_full_queue(side: Side) -> None:
    async with attacked(side) as (peer, ws):
        for i in range(40):
            await peer.send_frame(BINARY, b"%d" % i)
        await peer.send_frame(PING, b"still there?")
        with trio.fail_after(1):
            assert await peer.next_frame() == (0x80 | PONG, b"still there?")
        assert [await ws.receive() for _ in range(40)] == [b"%d" % i for i in range(40)]


# ---- close handshake: 5 s, then the connection is dropped


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("talks", [False, True])
async def test_close_timeout(side: Side, talks: bool) -> None:
    """A peer that never answers Close, silent or sending for ever."""
    async with attacked(side) as (peer, ws), trio.open_nursery() as nursery:

        async def talk() -> None:
            while True:
                await peer.try_send(frame(TEXT, b"bla", masked=side == "server"))
                await trio.sleep(0.1)

        if talks:
            nursery.start_soon(talk)
        start = trio.current_time()
        await ws.close(3000, "enough")
        assert trio.current_time() - start == pytest.approx(5, abs=0.2)
        assert await peer.until_close() == (3000, "enough")
        await peer.rest()
        assert trio.current_time() - start == pytest.approx(5, abs=0.2)
        assert ws.close_code == 1006
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("side", SIDES)
async def test_violation_is_followed_by_the_end_within_the_close_timeout(side: Side) -> None:
    async with attacked(side) as (peer, ws):
        start = trio.current_time()
        await peer.send_frame(3)
        await ws.wait_closed()
        assert trio.current_time() - start == pytest.approx(5, abs=0.1)
        await peer.expect_failure(1002)


async def test_half_closed_peer_that_never_answers() -> None:
    """After `send_close` the peer may take its time, but must show life."""
    async with attacked("server") as (peer, ws):
        start = trio.current_time()
        await ws.send_close(1000)
        with pytest.raises(trio_wt.ConnectionClosedError):
            await ws.receive()
        assert 5 <= trio.current_time() - start <= 41
        assert await peer.until_close() == (1000, "")


# ---- keepalive: a ping after 20 s of silence, 1011 after 20 s more


@pytest.mark.parametrize("side", SIDES)
async def test_keepalive(side: Side) -> None:
    async with attacked(side) as (peer, ws):
        start = trio.current_time()
        found = await peer.next_frame()
        assert found is not None and found[0] == 0x80 | PING
        assert trio.current_time() - start == pytest.approx(20, abs=0.1)
        assert await peer.until_close() == (1011, "keepalive ping timeout")
        assert trio.current_time() - start == pytest.approx(40, abs=0.1)
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.remote) == (1011, False)
        await ws.wait_closed()
        assert trio.current_time() - start <= 45.1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sign", ["pong", "another pong", "ping", "message", "part of a frame"])
async def test_any_sign_of_life_counts(side: Side, sign: str) -> None:
    """For ten minutes, a sign in answer to each ping."""
    async with attacked(side) as (peer, ws):
        masked = side == "server"
        partial = frame(BINARY, bytes(1000), masked=masked)
        sent = 0
        start = trio.current_time()
        while trio.current_time() - start < 600:
            found = await peer.next_frame()
            assert found is not None
            if found[0] != 0x80 | PING:
                assert found[0] == 0x80 | PONG
                continue
            if sign == "part of a frame":
                await peer.send(partial[sent : sent + 1])
                sent += 1
                continue
            opcode = {"ping": PING, "message": TEXT}.get(sign, PONG)
            await peer.send_frame(opcode, found[1] if sign == "pong" else b"hi")
            if sign == "message":
                assert await ws.receive() == "hi"
        assert ws.close_code is None


async def test_keepalive_does_not_need_the_application() -> None:
    """A handler that does something else for an hour keeps its connection, and reads nothing."""
    async with attacked("server") as (peer, ws):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                while (found := await peer.next_frame()) is not None:
                    await peer.send_frame(PONG, found[1])

            nursery.start_soon(answer)
            await trio.sleep(3600)
            assert ws.close_code is None
            nursery.cancel_scope.cancel()


# ---- pongs owed to a ping flood: the newest


@pytest.mark.parametrize("side", SIDES)
async def test_ping_flood_in_one_segment(side: Side) -> None:
    """The newest ping is answered, and not thousands of older ones."""
    async with attacked(side) as (peer, _):
        masked = side == "server"
        flood = b"".join(frame(PING, b"%d" % i, masked=masked) for i in range(5000))
        assert len(flood) < 65536
        await peer.send(flood)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(close_frame(1000, masked=masked))
        pongs = []
        with trio.fail_after(1):
            while (found := await peer.next_frame()) is not None and found[0] == 0x80 | PONG:
                pongs.append(found[1])
        assert found == (0x88, b"\x03\xe8")
        assert pongs[-1] == b"4999"
        assert len(pongs) <= 256


@pytest.mark.real_clock
async def test_ping_flood_without_reading() -> None:
    """Who does not read pongs gets the newest, and what is left of the rest costs nothing."""
    async with socket_server(ping_interval=None) as server:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", server.port))
        peer = RawPeer(trio.SocketStream(sock))
        await peer.upgrade()
        number = 0
        with bounded_memory(4), trio.fail_after(10):
            while number < 60_000:
                flood = (frame(PING, b"%0100d" % (number + i)) for i in range(10))
                await peer.send(b"".join(flood))
                number += 10
        await peer.send(close_frame(1000))
        pongs = []
        with trio.fail_after(5):
            while (found := await peer.next_frame()) is not None and found[0] == 0x80 | PONG:
                pongs.append(int(found[1]))
        assert found == (0x88, b"\x03\xe8")
        assert pongs == sorted(set(pongs))
        assert pongs[-1] == number - 1
        assert len(pongs) < number // 2
        await peer.aclose()


# ---- Origin: the same host, unless opened


ORIGINS = [
    ("same-host", "http://example.com", 101),
    ("same-host", "https://example.com", 101),
    ("same-host", "http://EXAMPLE.com:80", 101),
    ("same-host", None, 101),
    ("same-host", "http://example.com:8080", 403),
    ("same-host", "http://example.com.evil.test", 403),
    ("same-host", "http://evil.test/example.com", 403),
    ("same-host", "http://example.com@evil.test", 403),
    ("same-host", "http://evil.test#example.com", 403),
    ("same-host", "http://sub.example.com", 403),
    ("same-host", "example.com", 403),
    ("same-host", "null", 403),
    ("same-host", "", 403),
    ("same-host", "://", 403),
    ("same-host", "http://", 403),
    ("any", "http://evil.test", 101),
    (["https://good.test"], "https://good.test", 101),
    (["https://good.test"], "http://good.test", 403),
    (["https://good.test"], "http://example.com", 403),
    (["https://good.test"], None, 101),
    ([], "http://example.com", 403),
    ([re.compile(r"https://[a-z]+\.good\.test")], "https://a.good.test", 101),
    ([re.compile(r"https://[a-z]+\.good\.test")], "https://a.good.test.evil.test", 403),
    ([re.compile(r"https://[a-z]+\.good\.test")], "https://evil.test/https://a.good.test", 403),
]


@pytest.mark.parametrize(("origins", "origin", "status"), ORIGINS)
async def test_origin(origins: object, origin: str | None, status: int) -> None:
    extra = [] if origin is None else [f"Origin: {origin}"]
    async with memory_server(origins=origins) as server:
        peer = await server.connect()
        await peer.send(request(*extra, host="example.com"))
        if status == 101:
            assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
            await peer.aclose()
        else:
            assert parse_answer(await peer.rest()).status == status


async def test_request_without_anything_special_is_accepted() -> None:
    async with memory_server() as server:
        peer = await server.connect()
        await peer.send(REQUEST)
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Sec-WebSocket-Extensions" not in head
        await peer.aclose()
