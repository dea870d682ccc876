"""A connection as its two users see it: messages, pings, backpressure and endings."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.frames import close_frame, frame, parse_frames
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    Deflate,
    WebSocket,
    wrap_server_stream,
)
from trio_wt._websocket.settings import SettingsKwargs
from trio_wt.testing import websocket_pair

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class RawPeer:
    """The client's end of a stream, for a test that speaks the protocol itself."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_frames(self) -> list[tuple[int, bytes]]:
        """All frames until the server closes the stream."""
        data = b""
        while more := await self.stream.receive_some():
            data += more
        return parse_frames(data)

    async def read_available(self) -> list[tuple[int, bytes]]:
        """What the server has sent once it has nothing more to do."""
        await trio.testing.wait_all_tasks_blocked()
        data = b""
        with trio.move_on_after(0.001):
            while more := await self.stream.receive_some():
                data += more
        return parse_frames(data)


@asynccontextmanager
async def raw_peer(**settings: object) -> AsyncIterator[tuple[RawPeer, WebSocket]]:
    """A server's WebSocket, and the bare stream that leads to it."""
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(HANDSHAKE)
    async with wrap_server_stream(theirs, **settings) as websocket:  # type: ignore[arg-type]
        await ours.receive_some()
        yield RawPeer(ours), websocket


# ---- messages


@pytest.mark.parametrize("compression", [None, Deflate()])
async def test_messages_of_every_kind_arrive_as_they_were(compression: Deflate | None) -> None:
    messages: list[str | bytes] = ["text", "", b"", b"bytes", "é" * 50_000, bytes(500_000)]
    async with websocket_pair(compression=compression) as (client, server):
        assert list(client.extensions) == (["permessage-deflate"] if compression else [])
        for a, b in ((client, server), (server, client)):
            for message in messages:
                await a.send(message)
                assert await b.receive() == message


async def test_bytes_like_may_be_changed_after_sending() -> None:
    async with websocket_pair() as (client, server):
        buffer = bytearray(b"first")
        await client.send(buffer)
        buffer[:] = b"other"
        await client.send(memoryview(buffer)[1:])
        assert await server.receive() == b"first"
        assert await server.receive() == b"ther"


async def test_bytes_as_text_and_text_as_bytes() -> None:
    async with websocket_pair() as (client, server):
        await client.send("é".encode(), text=True)
        await client.send("é", text=False)
        await trio.testing.wait_all_tasks_blocked()
        assert await server.receive_many() == ["é", "é".encode()]
        with pytest.raises(UnicodeDecodeError):
            await client.send(b"\xff", text=True)
        with pytest.raises(UnicodeEncodeError):
            await client.send("\ud800")
        await client.send("fine")
        assert await server.receive() == "fine"


@pytest.mark.parametrize("wrong", [None, 3, object()])
async def test_what_is_no_message_is_a_type_error(wrong: object) -> None:
    async with websocket_pair() as (client, _):
        with pytest.raises(TypeError, match="a message is str or bytes-like"):
            await client.send(wrong)  # type: ignore[arg-type]


async def test_iterables_are_sent_as_fragments() -> None:
    async def slowly() -> AsyncIterator[str]:
        for part in ("x", "yy", "zzz"):
            await trio.sleep(1)
            yield part

    async with raw_peer(compression=None) as (peer, server):
        await server.send(["a", "b"])
        await server.send(iter([b"c"]))
        await server.send([])
        await server.send(slowly())
        assert await peer.read_available() == [
            (0x01, b"a"),
            (0x00, b"b"),
            (0x80, b""),
            (0x02, b"c"),
            (0x80, b""),
            (0x82, b""),
            (0x01, b"x"),
            (0x00, b"yy"),
            (0x00, b"zzz"),
            (0x80, b""),
        ]
        with pytest.raises(TypeError, match="this message is text"):
            await server.send(["text", b"bytes"])


async def test_messages_of_several_tasks_never_mix() -> None:
    async with websocket_pair() as (client, server), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client.send, [str(number)] * 5)
            nursery.start_soon(client.send, str(number) * 5)
        received = sorted([await server.receive() for _ in range(40)])
        assert received == sorted(str(number) * 5 for number in range(20) for _ in range(2))


async def test_receive_many_gives_all_that_has_arrived() -> None:
    async with websocket_pair() as (client, server):
        await client.send_many([str(number) for number in range(1000)])
        received: list[str | bytes] = []
        while len(received) < 1000:
            received += await server.receive_many()
        assert received == [str(number) for number in range(1000)]
        await client.send_many("abc")
        await trio.testing.wait_all_tasks_blocked()
        assert await server.receive_many(2) == ["a", "b"]
        assert await server.receive_many(2) == ["c"]
        with pytest.raises(ValueError, match="max_messages"):
            await server.receive_many(0)


async def test_receive_many_wakes_once_for_a_read_full_of_messages() -> None:
    async with raw_peer() as (peer, server):
        await peer.send(frame(2, b"x", masked=True) * 5000)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await server.receive_many()) == 5000


async def test_receive_nowait() -> None:
    async with websocket_pair() as (client, server):
        with pytest.raises(trio.WouldBlock):
            server.receive_nowait()
        await client.send("here")
        await trio.testing.wait_all_tasks_blocked()
        assert server.receive_nowait() == "here"
        await client.close()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionClosedOK):
            server.receive_nowait()


async def test_one_task_at_a_time_may_receive() -> None:
    async with websocket_pair() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.receive)
        await trio.testing.wait_all_tasks_blocked()
        for receive in (server.receive, server.receive_many):
            with pytest.raises(trio.BusyResourceError):
                await receive()
        with pytest.raises(trio.BusyResourceError):
            server.receive_nowait()
        with pytest.raises(trio.BusyResourceError):
            async with server.receive_stream():
                pass
        await client.send("for the first")


async def test_a_message_is_received_as_it_arrives() -> None:
    async with raw_peer() as (peer, server):
        await peer.send(frame(1, "é".encode()[:1], masked=True, fin=False))
        async with server.receive_stream() as message:
            assert message.text
            await peer.send(frame(0, "é".encode()[1:], masked=True, fin=False))
            assert await message.receive_some() == "é"
            await peer.send(frame(0, b"rest", masked=True) + frame(2, b"next", masked=True))
            assert [part async for part in message] == ["rest"]
            assert await message.receive_some() is None
        assert await server.receive() == b"next"


async def test_read_all_is_bounded() -> None:
    async with websocket_pair() as (client, server):
        await client.send(b"x" * 100)
        async with server.receive_stream() as message:
            with pytest.raises(ValueError, match="more than 99 bytes"):
                await message.read_all(99)
        await client.send("x" * 100)
        async with server.receive_stream() as message:
            assert await message.read_all(100) == "x" * 100
        with pytest.raises(trio.ClosedResourceError):
            await message.receive_some()


async def test_an_unlimited_message_is_streamed_in_bounded_memory() -> None:
    total = 30 * 2**20
    async with (
        websocket_pair(max_message_size=None, max_queue_bytes=65536, compression=None) as (
            client,
            server,
        ),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send, (bytes(2**16) for _ in range(total >> 16)))
        size = 0
        async with server.receive_stream() as message:
            async for part in message:
                size += len(part)
                assert server.statistics().queued_bytes <= 65536
                assert server.statistics().unparsed_bytes <= 2 * 65536
        assert size == total


async def test_a_whole_message_larger_than_the_queue_still_arrives() -> None:
    async with websocket_pair(max_queue_bytes=1000, compression=None) as (client, server):
        await client.send(bytes(500_000))
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().queued_bytes <= 1000
        assert await server.receive() == bytes(500_000)


# ---- backpressure


async def test_unread_messages_stop_the_reading_and_pings_are_answered_all_the_same() -> None:
    async with websocket_pair() as (client, server):
        for number in range(40):
            await client.send(str(number))
        with trio.fail_after(1):
            assert await client.ping() == 0
        assert server.statistics().queued_messages == 16
        assert [await server.receive() for _ in range(40)] == [str(n) for n in range(40)]


async def test_what_nobody_reads_is_bounded_and_comes_whole_later() -> None:
    client_stream, server_stream = trio.testing.lockstep_stream_pair()
    sent = 0

    async def send_all() -> None:
        nonlocal sent
        await client_stream.send_all(HANDSHAKE)
        while sent < 50 * 2**20:
            await client_stream.send_all(frame(2, bytes(10_000), masked=True))
            sent += 10_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)

        @nursery.start_soon
        async def drain() -> None:
            while await client_stream.receive_some():
                pass

        async with wrap_server_stream(server_stream) as server:
            await trio.testing.wait_all_tasks_blocked()
            assert sent < 400_000
            assert len(await server.receive()) == 10_000
            await trio.sleep(15)
            assert server.close_code is None
        nursery.cancel_scope.cancel()


async def test_send_waits_while_the_buffer_is_full() -> None:
    client_stream, server_stream = trio.testing.lockstep_stream_pair()

    async def shake_hands_and_stall() -> None:
        await client_stream.send_all(HANDSHAKE)
        await client_stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands_and_stall)
        async with wrap_server_stream(server_stream, write_limit=1000) as server:
            await server.send(b"x" * 2000)
            with trio.move_on_after(1) as scope:
                await server.send(b"y")
            assert scope.cancelled_caught
            assert server.statistics().unsent_bytes <= 2004
            await client_stream.aclose()


# ---- pings


async def test_ping_gives_the_round_trip_time_and_sets_latency() -> None:
    async with raw_peer() as (peer, server), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            (ping,) = await peer.read_available()
            await trio.sleep(3)
            await peer.send(frame(10, ping[1], masked=True))

        assert await server.ping() == pytest.approx(3, abs=0.1)
        assert server.latency == pytest.approx(3, abs=0.1)


async def test_a_pong_answers_the_pings_before_its_own() -> None:
    async with raw_peer() as (peer, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.ping, b"1")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(server.ping, b"2")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="under way"):
            await server.ping(b"2")
        await peer.send(frame(10, b"unknown", masked=True) + frame(10, b"2", masked=True))


async def test_long_payloads_are_refused() -> None:
    async with websocket_pair() as (client, _):
        with pytest.raises(ValueError, match="125"):
            await client.ping(b"x" * 126)
        with pytest.raises(ValueError, match="125"):
            await client.pong(b"x" * 126)
        assert await client.ping(b"x" * 125) == 0


async def test_keepalive_pings_a_silent_peer_and_keeps_the_latency() -> None:
    async with raw_peer(ping_interval=20, ping_timeout=5) as (peer, server):
        await trio.sleep(19)
        await peer.send(frame(2, b"a sign of life", masked=True))
        await trio.sleep(19)
        assert await peer.read_available() == []
        await trio.sleep(2)
        ((first, payload),) = await peer.read_available()
        assert first == 0x89
        await peer.send(frame(10, payload, masked=True))
        await trio.sleep(1)
        assert server.latency == pytest.approx(1, abs=0.1)
        assert server.close_code is None


async def test_keepalive_fails_the_connection_with_1011() -> None:
    async with raw_peer(ping_interval=20, ping_timeout=5) as (peer, server):
        started = trio.current_time()
        with pytest.raises(ConnectionClosedError) as caught:
            await server.receive()
        assert trio.current_time() - started == pytest.approx(25, abs=0.1)
        assert caught.value.code == 1011
        assert not caught.value.remote
        await peer.stream.aclose()


async def test_any_inbound_data_counts_as_life() -> None:
    async with raw_peer(ping_interval=20, ping_timeout=5) as (peer, server):
        await trio.sleep(23)
        await peer.send(frame(2, b"late, but not the pong", masked=True))
        await trio.sleep(10)
        assert server.close_code is None


async def test_keepalive_does_not_blame_a_peer_we_do_not_listen_to() -> None:
    async with websocket_pair(ping_interval=1, ping_timeout=1, compression=None) as (
        client,
        server,
    ):
        for _ in range(30):
            await client.send(bytes(100_000))
        await client.send_close()
        await trio.sleep(30)
        assert server.close_code is None
        assert await server.receive() == bytes(100_000)


async def test_keepalive_can_be_turned_off() -> None:
    async with raw_peer(ping_interval=None) as (peer, server):
        await trio.sleep(5000)
        assert server.close_code is None
        assert await peer.read_available() == []


# ---- endings


async def test_a_clean_close_ends_iteration_on_the_other_side() -> None:
    async with websocket_pair() as (client, server):
        await client.send("last words")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.close, 1000, "done")
            assert [message async for message in server] == ["last words"]
        with pytest.raises(ConnectionClosedOK) as caught:
            await server.receive()
        assert (caught.value.code, caught.value.reason, caught.value.remote) == (1000, "done", True)
        assert (client.close_code, client.close_reason) == (1000, "done")
        with pytest.raises(ConnectionClosedError) as sending:
            await server.send("too late")
        assert sending.value.code == 1000
        assert isinstance(sending.value, trio.BrokenResourceError)
        for use in (client.receive, client.ping, client.receive_many):
            with pytest.raises(trio.ClosedResourceError):
                await use()


async def test_other_codes_are_errors_that_carry_code_and_reason() -> None:
    async with websocket_pair() as (client, server):
        await client.close(4321, "gründe")
        with pytest.raises(ConnectionClosedError) as caught:
            async for _ in server:
                pass
        assert (caught.value.code, caught.value.reason) == (4321, "gründe")
        assert "4321: gründe" in str(caught.value)


async def test_closing_twice_and_after_the_peer_is_fine() -> None:
    async with websocket_pair() as (client, server):
        await client.close()
        await client.close(4000)
        await client.aclose()
        await server.close()
        assert server.close_code == 1000
        await server.wait_closed()


async def test_half_close_goes_on_receiving() -> None:
    async with websocket_pair() as (client, server):
        await server.send("on its way")
        await client.send_close(1000, "that was all")
        with pytest.raises(trio.ClosedResourceError):
            await client.send("more")
        with pytest.raises(trio.ClosedResourceError):
            await client.send_close()
        assert [message async for message in client] == ["on its way"]
        assert [message async for message in server] == []


async def test_bad_codes_and_reasons_change_nothing() -> None:
    async with websocket_pair() as (client, server):
        for code, reason in ((1006, ""), (1005, "x"), (1000, "x" * 124), (1000, "a\nb")):
            with pytest.raises(ValueError, match=r"code|reason"):
                await client.close(code, reason)
            with pytest.raises(ValueError, match=r"code|reason"):
                await client.send_close(code, reason)
        await client.send("still open")
        assert await server.receive() == "still open"


async def test_the_loss_of_the_stream_is_1006() -> None:
    async with raw_peer() as (peer, server):
        await peer.send(frame(1, b"last", masked=True))
        await peer.stream.aclose()
        assert await server.receive() == "last"
        with pytest.raises(ConnectionClosedError) as caught:
            await server.receive()
        assert (caught.value.code, caught.value.remote) == (1006, True)
        with pytest.raises(ConnectionClosedError):
            await server.send("x")
        await server.wait_closed()


async def test_all_messages_before_the_peers_close_can_be_answered() -> None:
    async with raw_peer(compression=None) as (peer, server):
        questions = b"".join(frame(2, b"%d" % number, masked=True) for number in range(5))
        await peer.send(questions + close_frame(1000, masked=True))
        async for message in server:
            await server.send(message)
            await trio.sleep(0.01)
        answers = [(0x82, b"%d" % number) for number in range(5)]
        assert await peer.read_frames() == [*answers, (0x88, b"\x03\xe8")]


async def test_answers_to_messages_before_the_peers_close_have_a_moment_and_no_more() -> None:
    async with raw_peer(compression=None) as (peer, server):
        started = trio.current_time()
        await peer.send(frame(2, b"question", masked=True) + close_frame(1000, masked=True))
        assert await server.receive() == b"question"
        await server.wait_closed()
        assert trio.current_time() - started < 0.5
        with pytest.raises(ConnectionClosedError):
            await server.send(b"too late")


async def test_the_end_wakes_everybody() -> None:
    async with raw_peer(write_limit=10) as (peer, server):
        outcomes: list[type[BaseException]] = []

        async def expect(use: object) -> None:
            assert callable(use)
            with pytest.raises(ConnectionClosed) as caught:
                await use()
            outcomes.append(type(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, server.receive)
            nursery.start_soon(expect, server.ping)
            nursery.start_soon(server.wait_closed)
            await trio.testing.wait_all_tasks_blocked()
            await peer.stream.aclose()
        assert outcomes == [ConnectionClosedError] * 2


async def test_close_wakes_our_own_waiters_with_closed_resource() -> None:
    async with websocket_pair() as (client, _):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await client.receive()

            await trio.testing.wait_all_tasks_blocked()
            await client.close()


async def test_a_peer_that_never_answers_close_is_dropped() -> None:
    async with raw_peer(close_timeout=5) as (peer, server):
        started = trio.current_time()
        await server.close(1000)
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)
        assert server.close_code == 1006
        assert await peer.read_frames() == [(0x88, b"\x03\xe8")]


async def test_a_violation_is_answered_and_the_stream_closed_though_nobody_reads() -> None:
    async with raw_peer(close_timeout=5) as (peer, server):
        await peer.send(frame(1, b"\xff", masked=True) + b"garbage" * 100)
        started = trio.current_time()
        ((first, payload),) = await peer.read_frames()
        assert (first, payload[:2]) == (0x88, (1007).to_bytes(2, "big"))
        assert trio.current_time() - started <= 5.1
        with pytest.raises(ConnectionClosedError) as caught:
            await server.receive()
        assert (caught.value.code, caught.value.remote) == (1007, False)


async def test_a_violation_right_behind_the_handshake_is_answered() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(HANDSHAKE + frame(1, b"x", masked=False))
    async with wrap_server_stream(theirs, compression=None):
        data = b""
        while more := await ours.receive_some():
            data += more
        ((first, payload),) = parse_frames(data.partition(b"\r\n\r\n")[2])
        assert (first, payload[:2]) == (0x88, (1002).to_bytes(2, "big"))


async def test_leaving_the_block_says_how() -> None:
    class Mine(Exception):
        pass

    async def server_code(how: str) -> int | None:
        async with raw_peer() as (peer, server):
            pass
        return server.close_code

    assert (
        await server_code("normally") == 1006
    )  # the raw peer never answers; see below for real ones

    async def run(end: str) -> int | None:
        seen: list[WebSocket] = []
        try:
            with trio.CancelScope() as outer:
                async with websocket_pair() as (client, server):
                    seen.append(server)
                    if end == "raise":
                        raise Mine
                    if end == "outer":
                        outer.cancel()
                        await trio.sleep_forever()
                    if end == "inner":
                        client.cancel_scope.cancel()
                        await trio.sleep_forever()
        except Mine:
            assert end == "raise"
        return seen[0].close_code

    assert await run("return") == 1000
    assert await run("raise") == 1011
    assert await run("outer") == 1001
    assert await run("inner") == 1011


async def test_the_blocks_exception_comes_out_as_it_was() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with websocket_pair():
            try:
                raise KeyError
            except KeyError:
                raise error
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)


async def test_cancel_on_close_ends_the_block() -> None:
    async with websocket_pair(server_settings={"cancel_on_close": True}) as (client, server):
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def watch() -> None:
                    await server.wait_closed()
                    assert server.cancel_scope.cancel_called

                await client.close()


async def test_nothing_is_left_behind() -> None:
    async with websocket_pair() as (client, server):
        await client.send("x")
        assert await server.receive() == "x"
    assert len(trio.lowlevel.current_task().child_nurseries) == 0
    task = trio.lowlevel.current_task()
    assert task.parent_nursery is not None
    assert task.parent_nursery.child_tasks == {task}
    gc.collect()


async def test_statistics_count() -> None:
    async with raw_peer(compression=None) as (peer, server):
        await peer.send(frame(2, b"abc", masked=True))
        assert await server.receive() == b"abc"
        await server.send(b"de")
        await trio.testing.wait_all_tasks_blocked()
        figures = server.statistics()
        assert (figures.bytes_received, figures.bytes_sent) == (9, 4)
        assert (figures.messages_received, figures.messages_sent) == (1, 1)
        assert figures.unsent_bytes == figures.unparsed_bytes == figures.queued_messages == 0
        await peer.send(close_frame(1000, masked=True))


async def test_a_stream_that_raises_something_else_only_ends_the_connection() -> None:
    class Odd(trio.abc.Stream):
        def __init__(self, inner: trio.abc.Stream) -> None:
            self.inner = inner
            self.broken = False

        async def send_all(self, data: bytes) -> None:  # type: ignore[override]
            await self.inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            data = await self.inner.receive_some(max_bytes)
            if data.endswith(b"!"):
                raise RuntimeError("odd")
            return bytes(data)

        async def aclose(self) -> None:
            await self.inner.aclose()

    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(HANDSHAKE)
    async with wrap_server_stream(Odd(theirs)) as server:
        await ours.receive_some()
        await ours.send_all(b"!")
        with pytest.raises(ConnectionClosedError) as caught:
            await server.receive()
        assert isinstance(caught.value.__cause__, RuntimeError)
        await server.wait_closed()


async def test_every_method_is_a_checkpoint() -> None:
    settings: SettingsKwargs = {"compression": None}
    async with websocket_pair(**settings) as (client, server):
        await server.send_many(["1", "2", "3", "4"])
        await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await client.send("x")
        with trio.testing.assert_checkpoints():
            await client.send_many(["x"])
        with trio.testing.assert_checkpoints():
            await client.receive()
        with trio.testing.assert_checkpoints():
            await client.receive_many(1)
        with trio.testing.assert_checkpoints():
            async with client.receive_stream() as message:
                await message.read_all()
        with trio.testing.assert_checkpoints():
            await client.pong()
        with trio.testing.assert_checkpoints():
            await client.ping()
        with trio.testing.assert_checkpoints():
            await client.close()
        with trio.testing.assert_checkpoints():
            await client.close()
        with trio.testing.assert_checkpoints():
            await client.wait_closed()
        with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
            await client.receive()
        with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
            await client.send("x")
