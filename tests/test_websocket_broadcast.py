"""One message to many connections, however slow some of them are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.frames import frame, parse_frames
from trio_wt import (
    ConnectionClosedError,
    Deflate,
    WebSocket,
    broadcast,
    wrap_server_stream,
)
from trio_wt._protocol import websocket as protocol
from trio_wt.testing import websocket_pair

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMIT = 1000


class Member:
    """A server's connection, and the bare stream of its client, which can stop taking."""

    def __init__(
        self, ws: WebSocket, client: trio.abc.Stream, sends: trio.testing.MemorySendStream
    ) -> None:
        self.ws = ws
        self.client = client
        self._sends = sends
        self._deliver = sends.send_all_hook
        self._room = trio.Event()

    async def stall(self) -> list[tuple[int, bytes]]:
        """Take nothing more; send until the connection is behind, and tell what is owed then."""
        self._sends.send_all_hook = self._wait_and_deliver
        await self.ws.send(b"under way")
        await trio.testing.wait_all_tasks_blocked()
        owed = [(0x82, b"under way")]
        while self.ws.statistics().unsent_bytes < LIMIT:
            await self.ws.send(bytes(400))
            owed.append((0x82, bytes(400)))
        return owed

    async def _wait_and_deliver(self) -> None:
        await self._room.wait()
        assert self._deliver is not None
        await self._deliver()

    def go_on(self) -> None:
        self._room.set()

    async def received(self) -> list[tuple[int, bytes]]:
        """All frames that have come so far."""
        await trio.testing.wait_all_tasks_blocked()
        data = b""
        with trio.move_on_after(0.001):
            while more := await self.client.receive_some():
                data += bytes(more)
        return parse_frames(data)


@asynccontextmanager
async def room(count: int) -> AsyncIterator[list[Member]]:
    members = []
    async with AsyncExitStack() as stack:
        for _ in range(count):
            ours, theirs = trio.testing.memory_stream_pair()
            await ours.send_all(HANDSHAKE)
            ws = await stack.enter_async_context(
                wrap_server_stream(theirs, compression=None, write_limit=LIMIT, ping_interval=None)
            )
            await ours.receive_some()
            assert isinstance(theirs.send_stream, trio.testing.MemorySendStream)
            members.append(Member(ws, ours, theirs.send_stream))
        yield members


def sockets(members: list[Member]) -> list[WebSocket]:
    return [member.ws for member in members]


# ---- to all


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("text é", (0x81, "text é".encode())),
        (b"bytes", (0x82, b"bytes")),
        (bytearray(b"array"), (0x82, b"array")),
        (memoryview(b"view"), (0x82, b"view")),
        ("", (0x81, b"")),
        (bytes(100_000), (0x82, bytes(100_000))),
    ],
)
async def test_everybody_gets_it(
    message: str | bytes | bytearray | memoryview, expected: tuple[int, bytes]
) -> None:
    async with room(3) as members:
        assert await broadcast(sockets(members), message) == 3
        for member in members:
            assert await member.received() == [expected]
            assert member.ws.statistics().messages_sent == 1


async def test_connections_may_come_from_anywhere() -> None:
    async with room(3) as members:
        assert await broadcast((member.ws for member in members), "a") == 3
        assert await broadcast(set(sockets(members)), "b") == 3
        for member in members:
            assert await member.received() == [(0x81, b"a"), (0x81, b"b")]


async def test_to_nobody() -> None:
    for slow in ("drop", "close", "wait"):
        assert await broadcast([], "hello", slow=slow) == 0


async def test_the_owner_may_change_a_buffer_afterwards() -> None:
    async with room(2) as members:
        buffer = bytearray(b"first")
        await broadcast(sockets(members), buffer)
        buffer[:] = b"other"
        for member in members:
            assert await member.received() == [(0x82, b"first")]


async def test_it_is_framed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    framed: list[bytes] = []
    real = protocol.encode_frame  # type: ignore[attr-defined]

    def encode_frame(first: int, payload: bytes, keys: object) -> list[bytes]:
        framed.append(payload)
        return real(first, payload, keys)  # type: ignore[arg-type]

    async with room(5) as members:
        monkeypatch.setattr(protocol, "encode_frame", encode_frame)
        assert await broadcast(sockets(members), "for all") == 5
        assert framed == [b"for all"]
        for member in members:
            assert await member.received() == [(0x81, b"for all")]
        monkeypatch.undo()


@pytest.mark.parametrize("wrong", [None, 3, ["a", "b"]])
async def test_what_is_no_message_is_sent_to_nobody(wrong: object) -> None:
    async with room(2) as members:
        with pytest.raises(TypeError, match="a message is str or bytes-like"):
            await broadcast(sockets(members), wrong)  # type: ignore[arg-type]
        for member in members:
            assert await member.received() == []


async def test_the_policy_is_checked() -> None:
    async with room(1) as members:
        with pytest.raises(ValueError, match="not 'skip'"):
            await broadcast(sockets(members), "x", slow="skip")  # type: ignore[arg-type]
        assert await members[0].received() == []


@pytest.mark.parametrize("slow", ["drop", "close", "wait", "wrong"])
async def test_it_is_a_checkpoint(slow: str) -> None:
    async with room(1) as members:
        with trio.CancelScope() as scope:
            scope.cancel()
            await broadcast(sockets(members), "x", slow=slow)  # type: ignore[arg-type]
        assert scope.cancelled_caught
        assert await members[0].received() == [], "cancelled, it was sent to nobody"


# ---- some are slow


async def test_by_default_the_message_is_left_out_for_who_is_slow() -> None:
    async with room(3) as members:
        fast, slow, other = members
        owed = await slow.stall()
        start = trio.current_time()
        for number in range(3):
            assert await broadcast(sockets(members), f"news {number}") == 2
        assert trio.current_time() == start
        expected = [(0x81, b"news %d" % number) for number in range(3)]
        assert await fast.received() == await other.received() == expected
        slow.go_on()
        assert await slow.received() == owed
        assert await broadcast(sockets(members), "again") == 3
        assert await slow.received() == [(0x81, b"again")]


async def test_who_has_room_left_is_not_slow() -> None:
    async with room(1) as members:
        (member,) = members
        await member.stall()
        member.go_on()
        await member.received()
        await member.ws.send(bytes(LIMIT * 5))  # one large message, which goes out at once
        await trio.testing.wait_all_tasks_blocked()
        assert await broadcast(sockets(members), "x") == 1


async def test_closing_who_is_slow() -> None:
    async with room(3) as members:
        fast, slow, other = members
        owed = await slow.stall()
        start = trio.current_time()
        assert await broadcast(sockets(members), "news", slow="close") == 2
        assert trio.current_time() == start
        with pytest.raises(ConnectionClosedError, match="too slow") as caught:
            await slow.ws.receive()
        assert (caught.value.code, caught.value.remote) == (1008, False)
        assert await fast.received() == await other.received() == [(0x81, b"news")]
        slow.go_on()
        # What was promised before still comes, and then the reason.
        assert await slow.received() == [*owed, (0x88, b"\x03\xf0too slow")]
        assert await broadcast(sockets(members), "next", slow="close") == 2


async def test_waiting_for_who_is_slow() -> None:
    async with room(3) as members:
        slow, fast, other = members
        owed = await slow.stall()
        async with trio.open_nursery() as nursery:
            delivered: list[int] = []

            async def send() -> None:
                delivered.append(await broadcast(sockets(members), "news", slow="wait"))

            nursery.start_soon(send)
            # The others have it although the first in the list has no room.
            assert await fast.received() == await other.received() == [(0x81, b"news")]
            assert delivered == []
            slow.go_on()
        assert delivered == [3]
        assert await slow.received() == [*owed, (0x81, b"news")]
        assert slow.ws.statistics().messages_sent == len(owed) + 1


async def test_two_slow_ones_do_not_wait_for_each_other() -> None:
    async with room(2) as members:
        first, second = members
        owed = await first.stall(), await second.stall()
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0.5)
                second.go_on()
                await broadcast(sockets(members), "news", slow="wait")
        assert scope.cancelled_caught
        assert await second.received() == [*owed[1], (0x81, b"news")]
        # Cancelled, it leaves who had no room as it was.
        first.go_on()
        assert await first.received() == owed[0]
        await first.ws.send("usable")
        assert await broadcast(sockets(members), "more", slow="wait") == 2
        assert await first.received() == [(0x81, b"usable"), (0x81, b"more")]


async def test_who_ends_while_it_is_waited_for_does_not_count() -> None:
    async with room(2) as members:
        slow, _ = members
        await slow.stall()
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await trio.sleep(1)
                await slow.client.aclose()
                slow.go_on()

            nursery.start_soon(leave)
            assert await broadcast(sockets(members), "news", slow="wait") == 1


async def test_the_end_wakes_all_who_wait() -> None:
    async with room(1) as members:
        (slow,) = members
        await slow.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: broadcast([slow.ws], "waits", slow="wait"))
            await trio.testing.wait_all_tasks_blocked()

            async def send() -> None:
                with pytest.raises(ConnectionClosedError):
                    await slow.ws.send("waits behind it")

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            await slow.client.aclose()
            with trio.fail_after(10):
                while nursery.child_tasks:
                    await trio.sleep(0.1)
        slow.go_on()


async def test_those_who_waited_keep_their_turn() -> None:
    async with room(1) as members:
        (slow,) = members
        owed = await slow.stall()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(slow.ws.send, f"sent {number}")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(broadcast, [slow.ws], f"broadcast {number}")
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda: broadcast([slow.ws], "waited", slow="wait"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(slow.ws.send, "last")
            await trio.testing.wait_all_tasks_blocked()
            slow.go_on()
        assert await slow.received() == [
            *owed,
            *[(0x81, b"sent %d" % number) for number in range(3)],
            (0x81, b"waited"),
            (0x81, b"last"),
        ]


async def test_a_message_that_is_being_sent_in_parts_is_not_broken_into() -> None:
    async with room(2) as members:
        busy, other = members
        async with trio.open_nursery() as nursery:
            async with busy.ws.send_stream(text=True) as stream:
                await stream.send("begun")
                assert await broadcast(sockets(members), "dropped") == 1
                nursery.start_soon(lambda: broadcast(sockets(members), "waits", slow="wait"))
                await trio.testing.wait_all_tasks_blocked()
                await stream.send("ended")
        assert await busy.received() == [
            (0x01, b"begun"),
            (0x00, b"ended"),
            (0x80, b""),
            (0x81, b"waits"),
        ]
        assert await other.received() == [(0x81, b"dropped"), (0x81, b"waits")]


# ---- of every kind


async def test_those_that_have_ended_are_passed_over() -> None:
    for slow in ("drop", "close", "wait"):
        async with room(5) as members:
            closing, closed, left, lost, alive = members
            await closing.ws.send_close()
            await left.client.send_all(frame(8, b"\x03\xe8", masked=True))
            await lost.client.aclose()
            await left.ws.wait_closed()
            with trio.move_on_after(0):
                await closed.ws.close()
            await trio.testing.wait_all_tasks_blocked()
            assert await broadcast(sockets(members), "news", slow=slow) == 1
            assert await alive.received() == [(0x81, b"news")]
            assert await closing.received() == [(0x88, b"\x03\xe8")]


async def test_clients_mask_each_frame_for_itself() -> None:
    ours, theirs = [], []
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client, server = await stack.enter_async_context(websocket_pair())
            ours.append(client)
            theirs.append(server)
        for _ in range(2):
            assert await broadcast(ours, "from clients") == 3
            assert await broadcast([*theirs, *ours], b"both") == 6
        for ws in theirs:
            assert [await ws.receive() for _ in range(4)] == ["from clients", b"both"] * 2
        for ws in ours:
            assert [await ws.receive() for _ in range(2)] == [b"both"] * 2


async def test_compressed_connections_get_it_too() -> None:
    news = "news " * 1000
    async with (
        websocket_pair(compression=Deflate()) as (a, at_a),
        websocket_pair(compression=None) as (b, at_b),
    ):
        for _ in range(2):
            # Their window does not lose its place when a message passes it by.
            for ws, at in ((a, at_a), (b, at_b)):
                await at.send(news)
                assert await ws.receive() == news
            before = at_a.statistics().bytes_sent
            assert await broadcast([at_a, at_b], news) == 2
            assert await a.receive() == await b.receive() == news
            assert at_a.statistics().bytes_sent - before == len(news) + 4
