"""Frames that break a rule: the exact close code in a Close frame, then the end; both sides alike."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trio_wt
from tests.robustness.conftest import Log
from tests.robustness.peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    RawPeer,
    close_frame,
    deflated,
    frame,
)
from tests.robustness.target import Side, attacked, memory_server, socket_server

SIDES: list[Side] = ["client", "server"]
Frame = Callable[..., bytes]

# What is sent, given a function that makes frames masked the right way, and the code it earns.
BAD: dict[str, tuple[int, Callable[[Frame], bytes]]] = {
    # reserved bits and opcodes (RFC 6455 section 5.2)
    **{
        f"RSV {rsv >> 4} on opcode {opcode}": (
            1002,
            lambda f, rsv=rsv, opcode=opcode: f(opcode, b"hi", rsv=rsv),  # type: ignore[misc]
        )
        for rsv in (0x10, 0x20, 0x40, 0x70)
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
    },
    "RSV1 on a continuation": (
        1002,
        lambda f: f(TEXT, b"a", fin=False) + f(CONTINUATION, b"b", rsv=0x40),
    ),
    **{
        f"opcode {opcode}": (1002, lambda f, opcode=opcode: f(opcode, b"hi"))  # type: ignore[misc]
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    # lengths
    "2^62": (1009, lambda f: f(BINARY, b"a", length=2**62)),
    "2^63 - 1": (1009, lambda f: f(BINARY, b"a", length=2**63 - 1)),
    "2^63": (1002, lambda f: f(BINARY, b"a", length=2**63)),
    "2^64 - 1": (1002, lambda f: f(BINARY, b"a", length=2**64 - 1)),
    "4 GiB": (1009, lambda f: f(TEXT, b"a", length=2**32)),
    "2^62 in a continuation": (
        1009,
        lambda f: f(TEXT, b"a", fin=False) + f(CONTINUATION, b"a", length=2**62),
    ),
    "5 in two bytes": (1002, lambda f: f(TEXT, b"hello", length_bytes=2)),
    "125 in two bytes": (1002, lambda f: f(BINARY, bytes(125), length_bytes=2)),
    "0 in eight bytes": (1002, lambda f: f(BINARY, b"", length_bytes=8)),
    "65535 in eight bytes": (1002, lambda f: f(BINARY, bytes(65535), length_bytes=8)),
    # control frames (section 5.5)
    "ping of 126": (1002, lambda f: f(PING, bytes(126))),
    "pong of 65536": (1002, lambda f: f(PONG, bytes(65536))),
    "ping of 2^62": (1002, lambda f: f(PING, b"a", length=2**62)),
    "close of 126": (1002, lambda f: f(CLOSE, struct.pack("!H", 1000) + b"a" * 124)),
    "ping of 5 in two bytes": (1002, lambda f: f(PING, b"hello", length_bytes=2)),
    "fragmented ping": (1002, lambda f: f(PING, b"a", fin=False)),
    "fragmented close": (1002, lambda f: f(CLOSE, b"\x03\xe8", fin=False)),
    # fragments (section 5.4)
    "continuation of nothing": (1002, lambda f: f(CONTINUATION, b"a")),
    "continuation after the end": (1002, lambda f: f(TEXT, b"a") + f(CONTINUATION, b"a")),
    "message in a message": (1002, lambda f: f(TEXT, b"a", fin=False) + f(TEXT, b"b")),
    "binary in a text": (1002, lambda f: f(TEXT, b"a", fin=False) + f(BINARY, b"b", fin=False)),
    # close codes (section 7.4)
    **{
        f"code {code}": (1002, lambda f, code=code: f(CLOSE, struct.pack("!H", code)))  # type: ignore[misc]
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close of one byte": (1002, lambda f: f(CLOSE, b"\x03")),
    "reason is not UTF-8": (1007, lambda f: f(CLOSE, b"\x03\xe8\xff")),
    "reason is cut": (1007, lambda f: f(CLOSE, b"\x03\xe8\xe2\x82")),
    "reason with a surrogate": (1007, lambda f: f(CLOSE, b"\x03\xe8\xed\xa0\x80")),
    # UTF-8 (section 8.1)
    "lone continuation byte": (1007, lambda f: f(TEXT, b"a\x80")),
    "overlong slash": (1007, lambda f: f(TEXT, b"\xc0\xaf")),
    "surrogate": (1007, lambda f: f(TEXT, b"\xed\xa0\x80")),
    "beyond Unicode": (1007, lambda f: f(TEXT, b"\xf4\x90\x80\x80")),
    "cut character": (1007, lambda f: f(TEXT, b"caf\xc3")),
    "cut in the last fragment": (
        1007,
        lambda f: f(TEXT, b"caf", fin=False) + f(CONTINUATION, b"\xe2\x82"),
    ),
    "character broken by a fragment": (
        1007,
        lambda f: f(TEXT, b"\xe2\x82", fin=False) + f(CONTINUATION, b"a"),
    ),
    "empty end after a cut character": (
        1007,
        lambda f: f(TEXT, b"\xe2", fin=False) + f(CONTINUATION, b""),
    ),
}


def offer(side: Side) -> str:
    """Our peer's half of negotiating permessage-deflate."""
    if side == "server":
        return f"Sec-WebSocket-Extensions: {DEFLATE}"
    return "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12"


def make(side: Side, name: str) -> tuple[int, bytes]:
    code, build = BAD[name]
    return code, build(lambda *a, **k: frame(*a, masked=side == "server", **k))


async def expect_violation(peer: RawPeer, ws: trio_wt.WebSocket, code: int) -> None:
    """Both ends learn it: the peer by a Close frame, the application by an error."""
    with pytest.raises(trio_wt.ConnectionClosedError) as caught:
        while True:
            await ws.receive()
    assert (caught.value.code, caught.value.remote) == (code, False)
    with trio.fail_after(1):
        await peer.expect_failure(code)
    with pytest.raises(trio_wt.ConnectionClosedError):
        await ws.send("too late")
    assert ws.close_code == code


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", BAD)
async def test_violation(name: str, side: Side) -> None:
    code, sent = make(side, name)
    async with attacked(side) as (peer, ws):
        await peer.send(sent)
        await expect_violation(peer, ws, code)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", BAD)
async def test_violation_right_behind_the_handshake(name: str, side: Side) -> None:
    code, sent = make(side, name)
    async with attacked(side, behind=sent) as (peer, ws):
        await expect_violation(peer, ws, code)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", BAD)
async def test_violation_byte_by_byte(name: str, side: Side) -> None:
    code, sent = make(side, name)
    async with attacked(side) as (peer, ws):
        step = 1 + len(sent) // 100
        for at in range(0, len(sent), step):
            await peer.try_send(sent[at : at + step])
            await trio.testing.wait_all_tasks_blocked()
        await expect_violation(peer, ws, code)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["opcode 3", "2^62", "lone continuation byte", "code 1005"])
async def test_violation_with_deflate(name: str, side: Side) -> None:
    code, sent = make(side, name)
    async with attacked(side, offer(side)) as (peer, ws):
        assert ws.extensions == ["permessage-deflate"]
        await peer.send(sent)
        await expect_violation(peer, ws, code)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG])
async def test_masked_the_wrong_way(side: Side, opcode: int) -> None:
    """Clients mask and servers do not (section 5.1)."""
    payload = b"\x03\xe8" if opcode == CLOSE else b"hi"
    wrong = frame(opcode, payload, masked=side == "client")
    begin = frame(TEXT, b"a", masked=side == "server", fin=False)
    async with attacked(side) as (peer, ws):
        await peer.send((begin if opcode == CONTINUATION else b"") + wrong)
        await expect_violation(peer, ws, 1002)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "start",
    [b"\xff", b"\xc0", b"\xed\xa0\x80", b"\xf4\x90", b"a" * 1000 + b"\x80", b"\xe2\x82a"],
)
async def test_bad_utf8_fails_before_its_frame_has_arrived(side: Side, start: bytes) -> None:
    """As soon as no continuation could make it valid (section 8.1; fail-fast)."""
    async with attacked(side) as (peer, ws):
        await peer.send_frame(TEXT, b"ok\xe2\x82\xac", fin=False)
        head = frame(CONTINUATION, start, masked=side == "server", length=100_000)
        await peer.send(head)
        await expect_violation(peer, ws, 1007)


def far_back() -> bytes:
    """Data that refer to what was never sent."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -9, zdict=b"never sent to you")
    return compressor.compress(b"never sent to you") + compressor.flush(zlib.Z_SYNC_FLUSH)


BAD_DEFLATE = {
    "not deflate": frame(BINARY, b"\xff\xff\xff\xff", rsv=0x40),
    "reserved block": frame(BINARY, b"\x07\x00\x00", rsv=0x40),
    "bad distance": frame(BINARY, far_back(), rsv=0x40),
    "stored length mismatch": frame(BINARY, b"\x00\x05\x00\x00\x00hello", rsv=0x40),
    "text that is not UTF-8": frame(TEXT, deflated(b"\xff\xfe"), rsv=0x40),
    "text cut in a character": frame(TEXT, deflated(b"caf\xc3"), rsv=0x40),
}


@pytest.mark.parametrize("name", BAD_DEFLATE)
@pytest.mark.parametrize("piece", [1, 2**20])
async def test_bad_compressed_data(name: str, piece: int) -> None:
    sent = BAD_DEFLATE[name]
    async with attacked("server", offer("server")) as (peer, ws):
        for at in range(0, len(sent), piece):
            await peer.try_send(sent[at : at + piece])
            await trio.testing.wait_all_tasks_blocked()
        await expect_violation(peer, ws, 1007)


async def test_control_frame_inside_a_compressed_message() -> None:
    data = bytes(range(256)) * 20
    payload = deflated(data)
    async with attacked("server", offer("server")) as (peer, ws):
        for _ in range(3):
            await peer.send_frame(BINARY, payload[:50], rsv=0x40, fin=False)
            await peer.send_frame(PING, b"inside")
            await peer.send_frame(CONTINUATION, payload[50:100], fin=False)
            await peer.send_frame(PONG, b"inside")
            await peer.send_frame(CONTINUATION, payload[100:])
            assert await ws.receive() == data
            assert await peer.next_frame() == (0x8A, b"inside")


@pytest.mark.parametrize("side", SIDES)
async def test_messages_before_a_violation_arrive(side: Side) -> None:
    """All in one segment: what was right is received, then the error tells."""
    masked = side == "server"
    sent = b"".join(frame(TEXT, b"%d" % i, masked=masked) for i in range(10))
    async with attacked(side) as (peer, ws):
        await peer.send(sent + frame(3, masked=masked) + sent)
        assert [await ws.receive() for _ in range(10)] == [str(i) for i in range(10)]
        await expect_violation(peer, ws, 1002)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("handler", ["waits", "sleeps", "sends"])
async def test_violation_though_nobody_reads(side: Side, handler: str) -> None:
    """The Close frame goes out and the connection ends in bounded time, whatever the application does."""
    async with attacked(side) as (peer, ws), trio.open_nursery() as nursery:
        if handler == "waits":
            nursery.start_soon(ws.wait_closed)
        elif handler == "sends":

            async def send() -> None:
                with pytest.raises(trio_wt.ConnectionClosedError):
                    while True:
                        await ws.send("news")
                        await trio.sleep(0.1)

            nursery.start_soon(send)
        await peer.send_frame(TEXT, b"unread")
        await peer.send_frame(3)
        start = trio.current_time()
        await peer.expect_failure(1002)
        assert trio.current_time() - start < 1
        await ws.wait_closed()
        assert trio.current_time() - start < 6
        assert ws.close_code in (None, 1002)


@pytest.mark.parametrize("side", SIDES)
async def test_violation_while_we_are_closing(side: Side) -> None:
    """Close has gone already: no second one, and the end comes in time (section 5.5.1)."""
    async with attacked(side) as (peer, ws), trio.open_nursery() as nursery:
        nursery.start_soon(ws.close)
        assert await peer.until_close() == (1000, "")
        await peer.send_frame(3)
        with trio.fail_after(6):
            assert await peer.rest() == b""


@pytest.mark.parametrize("side", SIDES)
async def test_data_after_close_is_ignored(side: Side) -> None:
    """Section 5.5.1: nothing follows Close, so nothing that does counts."""
    async with attacked(side) as (peer, ws):
        masked = side == "server"
        await peer.send(close_frame(3001, b"bye", masked=masked) + frame(3, masked=masked) * 100)
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.reason, caught.value.remote) == (3001, "bye", True)
        with trio.fail_after(1):
            assert await peer.until_close() == (3001, "bye")


VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("code", VALID_CODES)
async def test_valid_close_code(side: Side, code: int) -> None:
    async with attacked(side) as (peer, ws):
        await peer.send(close_frame(code, b"why", masked=side == "server"))
        with pytest.raises(trio_wt.ConnectionClosed) as caught:
            await ws.receive()
        assert isinstance(caught.value, trio_wt.ConnectionClosedOK) is (code in (1000, 1001))
        assert (caught.value.code, caught.value.reason, caught.value.remote) == (code, "why", True)
        assert (await peer.until_close())[0] == code


@pytest.mark.parametrize("reason", ["a\r\nFAKE LINE", "\x1b[31mred", "a\0b", "\u2028", "\x85"])
async def test_close_reason_is_shown_safely(reason: str, log: Log) -> None:
    """The reason is the peer's; what we print of it has no control characters."""
    async with attacked("client") as (peer, ws):
        await peer.send(close_frame(4000, reason.encode(), masked=False))
        with pytest.raises(trio_wt.ConnectionClosedError) as caught:
            await ws.receive()
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()
    assert repr(caught.value).isprintable()


@given(
    data=st.binary(max_size=300), piece=st.sampled_from([1, 5, 2**20]), ours=st.sampled_from(SIDES)
)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_bytes(data: bytes, piece: int, ours: Side) -> None:
    """Whatever comes: messages, a Close frame with a code that may be sent, and the end."""

    async def check() -> None:
        async with attacked(ours, offer(ours)) as (peer, ws):
            for at in range(0, len(data), piece):
                await peer.try_send(data[at : at + piece])
            assert isinstance(peer.stream, trio.StapledStream)
            try:
                await peer.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            with pytest.raises(trio_wt.ConnectionClosed) as caught:
                while True:
                    await ws.receive()
            assert caught.value.code in (1002, 1005, 1006, 1007, 1008, 1009) or caught.value.remote
            with trio.fail_after(10):
                while await peer.next_frame() is not None:
                    pass

    trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- on sockets: the Close frame arrives although the socket closes right behind it


@pytest.mark.real_clock
@pytest.mark.parametrize("name", ["opcode 3", "2^62", "lone continuation byte", "code 999"])
async def test_close_frame_outruns_the_end_of_the_socket(name: str) -> None:
    """The peer goes on sending, so that closing with unread bytes would reset the connection."""
    code, sent = make("server", name)
    async with socket_server() as server:
        for behind in (b"", sent):
            peer = await server.opened(behind=behind)
            if not behind:
                await peer.send(sent)
            for _ in range(20):
                await peer.try_send(bytes(20_000))
            with trio.fail_after(2):
                await peer.expect_failure(code)
            assert not peer.broken
            await peer.aclose()


@pytest.mark.real_clock
async def test_close_frame_to_a_peer_that_closes_and_goes_on_sending() -> None:
    async with socket_server() as server:
        for _ in range(20):
            peer = await server.opened()
            await peer.send(close_frame(4321, b"bye") + bytes(100_000))
            with trio.fail_after(2):
                assert await peer.until_close() == (4321, "bye")
            await peer.aclose()


async def test_violations_hurt_nobody_else() -> None:
    async with memory_server() as server:
        bystander = await server.opened()
        for name in BAD:
            code, sent = make("server", name)
            peer = await server.opened(behind=sent)
            await bystander.echo(name)
            with trio.fail_after(1):
                await peer.expect_failure(code)
            await peer.aclose()
        await bystander.aclose()
