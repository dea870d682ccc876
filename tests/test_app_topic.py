"""One message to many subscribers of every kind, however slow some of them are."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.frames import frame, parse_frames
from tests.quic_pairs import one_way_pair, serving, settle, visit
from trio_wt import (
    Connection,
    ConnectionClosedError,
    StreamReset,
    WebSocket,
    wrap_server_stream,
)
from trio_wt._protocol import websocket as protocol
from trio_wt._webtransport.settings import WebTransportSettingsKwargs
from trio_wt.app._codecs import JsonCodec
from trio_wt.app._subscription import Subscription, TooSlow
from trio_wt.app._topic import Rooms, Topic
from trio_wt.testing import Network, websocket_pair, webtransport_pair

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMIT = 1000
# Little fits between the two ends of such sessions.
SMALL: WebTransportSettingsKwargs = {
    "send_buffer": 30_000,
    "stream_window": 30_000,
    "max_stream_window": 30_000,
}
KINDS = ["drop oldest", "drop newest", "disconnect", "wait"]


def prefixed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


def text(*messages: str) -> list[tuple[int, bytes]]:
    return [(0x81, message.encode()) for message in messages]


class Peer:
    """A server's WebSocket, and the bare stream of its client, which can stop taking."""

    def __init__(
        self, ws: WebSocket, client: trio.abc.Stream, sends: trio.testing.MemorySendStream
    ) -> None:
        self.ws = ws
        self.client = client
        self._sends = sends
        self._deliver = sends.send_all_hook
        self._room = trio.Event()
        self._data = b""

    async def stall(self) -> list[tuple[int, bytes]]:
        """Take nothing more, with the connection's own buffer full; what is owed then."""
        self._sends.send_all_hook = self._wait_and_deliver
        owed = []
        while self.ws.statistics().unsent_bytes < LIMIT:
            await self.ws.send(bytes(400))
            owed.append((0x82, bytes(400)))
            await trio.testing.wait_all_tasks_blocked()
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
async def peers(count: int) -> AsyncIterator[list[Peer]]:
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
            members.append(Peer(ws, ours, theirs.send_stream))
        yield members


async def all_of(subscription: Subscription[Any]) -> list[Any]:
    """What waits for a subscriber in this process."""
    found = []
    await trio.lowlevel.checkpoint()
    while True:
        try:
            found.append(subscription.receive_nowait())
        except trio.WouldBlock:
            return found


class Counting:
    """A codec that says how often it was asked."""

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self.calls = 0
        self._encode = encode

    def encode(self, message: object) -> Any:
        self.calls += 1
        return self._encode(message)


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
async def test_all_websockets_get_it(message: Any, expected: tuple[int, bytes]) -> None:
    topic = Topic[Any]()
    async with peers(3) as members, AsyncExitStack() as stack:
        for member in members:
            await stack.enter_async_context(topic.subscribe(member.ws))
        assert await topic.publish(message) == 3
        assert topic.publish_nowait(message) == 3
        for member in members:
            assert await member.received() == [expected] * 2


async def test_subscribers_of_every_kind_get_it() -> None:
    topic = Topic[str]()
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    into, out_of = trio.open_memory_channel[str](10)
    async with (
        websocket_pair() as (client, server),
        webtransport_pair() as (a, b),
        topic.subscribe(server) as first,
        topic.subscribe(client),
        topic.subscribe(b),
        topic.subscribe(b, via="streams"),
        topic.subscribe(b, via="datagrams"),
        topic.subscribe(a.datagrams),
        topic.subscribe(sender),
        topic.subscribe(into),
        topic.subscribe() as local,
        one_way_pair(a, b) as (own_stream, own_end),
        topic.subscribe(own_stream),
    ):
        assert len(topic) == 10
        assert await topic.publish("one") == 10
        assert topic.publish_nowait("two é") == 10
        await settle()
        wire = prefixed(b"one", "two é".encode())
        assert [await client.receive(), await client.receive()] == ["one", "two é"]
        assert [await server.receive(), await server.receive()] == ["one", "two é"]
        streams = []
        for _ in range(3):
            stream = await a.incoming_receive_streams.receive()
            streams.append(bytes(await stream.receive_some()))
        assert sorted(streams) == sorted([wire, b"one", "two é".encode()])
        for session in (a, b):
            got = [await session.datagrams.receive() for _ in range(2)]
            assert got == [b"one", "two é".encode()]
        assert await receiver.receive_some() == wire
        assert [await out_of.receive(), await out_of.receive()] == ["one", "two é"]
        assert [await local.receive(), await local.receive()] == ["one", "two é"]
        assert await own_end.receive_some() == wire
        assert (first.sent, first.queued, first.dropped) == (2, 0, 0)
    assert len(topic) == 0
    assert topic.statistics().dropped == 0


async def test_over_quic_without_http() -> None:
    topic = Topic[bytes]()
    network = Network()

    async def handle(connection: Connection) -> None:
        async with topic.subscribe(connection), topic.subscribe(connection, via="datagrams"):
            await connection.wait_closed()

    async with serving(handle, network), visit(network) as connection:
        await settle()
        assert await topic.publish(b"news") == 2
        assert await connection.datagrams.receive() == b"news"
        stream = await connection.incoming_receive_streams.receive()
        assert await stream.receive_some() == prefixed(b"news")


async def test_it_is_encoded_and_framed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    framed: list[bytes] = []
    real = protocol.encode_frame  # type: ignore[attr-defined]

    def encode_frame(first: int, payload: bytes, keys: object) -> list[bytes]:
        framed.append(payload)
        return real(first, payload, keys)  # type: ignore[no-any-return]

    codec = Counting(lambda message: f"<{message}>")
    topic = Topic[int](codec)
    async with peers(5) as members, AsyncExitStack() as stack:
        owed = await members[0].stall()
        for member in members:
            await stack.enter_async_context(topic.subscribe(member.ws))
        monkeypatch.setattr(protocol, "encode_frame", encode_frame)
        assert await topic.publish(7) == 5
        members[0].go_on()
        await trio.testing.wait_all_tasks_blocked()
        assert framed == [b"<7>"]
        assert codec.calls == 1
        monkeypatch.undo()
        assert await members[0].received() == [*owed, *text("<7>")]
        for member in members[1:]:
            assert await member.received() == text("<7>")


async def test_nothing_is_encoded_for_those_who_get_objects() -> None:
    codec = Counting(str)
    topic = Topic[object](codec)
    into, out_of = trio.open_memory_channel[object](10)
    message = object()
    async with topic.subscribe() as local, topic.subscribe(into):
        assert await topic.publish(message) == 2
        assert await local.receive() is message
        assert await out_of.receive() is message
    assert codec.calls == 0


async def test_to_nobody() -> None:
    topic = Topic[Any]()
    assert await topic.publish("x") == 0
    assert topic.publish_nowait(3) == 0
    assert topic.statistics().published == 2
    assert topic, "a topic without subscribers is no less true"


async def test_the_owner_may_change_a_buffer_afterwards() -> None:
    topic = Topic[Any]()
    async with peers(1) as (member,), topic.subscribe(member.ws), topic.subscribe() as local:
        owed = await member.stall()
        buffer = bytearray(b"first")
        await topic.publish(buffer)
        buffer[:] = b"other"
        member.go_on()
        assert await member.received() == [*owed, (0x82, b"first")]
        assert await local.receive() == b"first"


async def test_a_session_may_subscribe_twice() -> None:
    topic, other = Topic[str](), Topic[str]()
    async with (
        peers(1) as (member,),
        topic.subscribe(member.ws),
        topic.subscribe(member.ws),
        other.subscribe(member.ws),
    ):
        assert await topic.publish("a") == 2
        assert await other.publish("b") == 1
        assert await member.received() == text("a", "a", "b")


async def test_who_keeps_up_costs_no_task() -> None:
    topic = Topic[str]()
    async with peers(3) as members, AsyncExitStack() as stack:
        before = trio.lowlevel.current_statistics().tasks_living
        for member in members:
            await stack.enter_async_context(topic.subscribe(member.ws))
        await topic.publish("x")
        assert trio.lowlevel.current_statistics().tasks_living == before
        await members[0].stall()
        await topic.publish("y")
        assert trio.lowlevel.current_statistics().tasks_living == before + 1
        members[0].go_on()
        await members[0].received()
        assert trio.lowlevel.current_statistics().tasks_living == before


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"slow": "skip"}, ValueError, "not 'skip'"),
        ({"limit": 0}, ValueError, "1 or more"),
        ({"limit_bytes": 0}, ValueError, "1 or more"),
        ({"via": "stream"}, ValueError, "there is none"),
        ({"session": 3}, TypeError, "not int"),
        ({"session": "ws", "via": "stream"}, ValueError, "one way only"),
        ({"session": "wt", "via": "pigeon"}, ValueError, "not 'pigeon'"),
        ({"session": "wt", "via": "datagrams", "slow": "wait"}, ValueError, "never wait"),
        ({"session": "wt", "via": "datagrams", "slow": "disconnect"}, ValueError, "never wait"),
    ],
)
async def test_wrong_arguments(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    topic = Topic[str]()
    async with websocket_pair() as (_, ws), webtransport_pair() as (_, wt):
        if "session" in arguments:
            named = {"ws": ws, "wt": wt}
            arguments = {**arguments, "session": named.get(arguments["session"], 3)}
        with pytest.raises(error, match=says):
            topic.subscribe(**arguments)
    assert len(topic) == 0


@pytest.mark.parametrize("wrong", [None, 3, ["a", "b"]])
async def test_what_is_no_message_is_given_to_nobody(wrong: Any) -> None:
    topic = Topic[Any]()
    async with peers(1) as (member,), topic.subscribe() as local, topic.subscribe(member.ws):
        with pytest.raises(TypeError, match="give the topic a codec"):
            await topic.publish(wrong)
        with pytest.raises(TypeError, match="str or bytes-like"):
            topic.publish_nowait(wrong)
        assert await member.received() == await all_of(local) == []
    assert topic.statistics().published == 0


async def test_a_codec_that_fails() -> None:
    def refuse(message: object) -> str:
        raise ValueError("no such message")

    for encode, error in ((refuse, ValueError), (lambda message: 3, TypeError)):
        topic = Topic[Any](Counting(encode))
        async with peers(1) as (member,), topic.subscribe() as local, topic.subscribe(member.ws):
            with pytest.raises(error):
                await topic.publish("x")
            with pytest.raises(error):
                topic.publish_nowait("x")
            assert await member.received() == await all_of(local) == []


async def test_a_message_that_no_prefix_can_tell_the_length_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_wt.app._outlets.MAX_LENGTH", 255)
    topic = Topic[bytes]()
    async with topic.subscribe() as local:
        with pytest.raises(ValueError, match="not 256"):
            await topic.publish(bytes(256))
        assert await topic.publish(bytes(255)) == 1
        assert await all_of(local) == [bytes(255)]


async def test_a_subscription_has_one_block_and_one_receiver() -> None:
    topic = Topic[str]()
    async with peers(1) as (member,), topic.subscribe(member.ws) as remote:
        with pytest.raises(RuntimeError, match="subscribe again"):
            async with remote:
                pass
        with pytest.raises(RuntimeError, match="go to its session"):
            remote.receive_nowait()
        with pytest.raises(RuntimeError, match="go to its session"):
            await remote.receive()
        assert await topic.publish("still") == 1
    async with topic.subscribe() as local, trio.open_nursery() as nursery:
        nursery.start_soon(local.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await local.receive()
        await topic.publish("x")
    with pytest.raises(trio.ClosedResourceError):
        await local.receive()
    with pytest.raises(trio.ClosedResourceError):
        local.receive_nowait()


async def test_who_receives_is_told_of_the_end_of_the_block() -> None:
    topic = Topic[str]()
    async with trio.open_nursery() as nursery:
        async with topic.subscribe() as local:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await local.receive()

            await trio.testing.wait_all_tasks_blocked()


async def test_what_does_not_fit_a_datagram_is_left_out_and_counted() -> None:
    topic = Topic[bytes]()
    async with (
        webtransport_pair() as (a, b),
        topic.subscribe(b, via="datagrams") as small,
        topic.subscribe(b) as any_size,
    ):
        assert await topic.publish(bytes(100_000)) == 1
        assert await topic.publish(b"fits") == 2
        assert (small.dropped, small.sent, small.closed) == (1, 1, False)
        assert (any_size.dropped, any_size.queued + any_size.sent) == (0, 2)
        assert await a.datagrams.receive() == b"fits"


# ---- some are slow: WebSockets


async def test_the_oldest_make_room() -> None:
    topic = Topic[str]()
    async with peers(2) as (slow, fast):
        async with topic.subscribe(slow.ws, limit=3) as behind, topic.subscribe(fast.ws, limit=1):
            owed = await slow.stall()
            start = trio.current_time()
            for number in range(10):
                assert await topic.publish(f"{number}") == 2
            assert trio.current_time() == start
            assert (behind.queued, behind.queued_bytes, behind.dropped) == (3, 3, 7)
            assert await fast.received() == text(*map(str, range(10)))
            slow.go_on()
            assert await slow.received() == [*owed, *text("7", "8", "9")]
            assert (behind.queued, behind.queued_bytes, behind.sent) == (0, 0, 3)
            await topic.publish("again")
            assert await slow.received() == text("again")
    figures = topic.statistics()
    assert (figures.published, figures.taken, figures.dropped) == (11, 22, 7)


async def test_the_newest_are_left_out() -> None:
    topic = Topic[str]()
    async with (
        peers(2) as (slow, fast),
        topic.subscribe(slow.ws, slow="drop newest", limit=3) as behind,
        topic.subscribe(fast.ws),
    ):
        owed = await slow.stall()
        took = [topic.publish_nowait(f"{number}") for number in range(5)]
        assert took == [2, 2, 2, 1, 1]
        assert behind.dropped == 2
        slow.go_on()
        assert await slow.received() == [*owed, *text("0", "1", "2")]
        assert await fast.received() == text("0", "1", "2", "3", "4")


@pytest.mark.parametrize("body", ["reads", "sleeps", "is done"])
async def test_who_is_too_slow_is_disconnected(body: str) -> None:
    topic = Topic[str]()
    raised: list[BaseException] = []
    async with peers(2) as (slow, fast), topic.subscribe(fast.ws, slow="disconnect"):
        owed = await slow.stall()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def handle() -> None:
                with pytest.raises(TooSlow, match="too slow, and was disconnected") as caught:
                    async with topic.subscribe(slow.ws, slow="disconnect", limit=2) as behind:
                        if body == "reads":
                            await slow.ws.receive()
                        elif body == "sleeps":
                            await trio.sleep_forever()
                        else:
                            await behind.wait_closed()
                raised.append(caught.value)
                assert (behind.sent, behind.dropped, behind.closed) == (2, 1, True)

            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
            took = [topic.publish_nowait(f"{number}") for number in range(4)]
            assert took == [2, 2, 1, 1]
        assert trio.current_time() == start
        error = raised[0]
        assert isinstance(error, ConnectionClosedError)
        assert (error.code, error.reason, error.remote) == (1008, "too slow", False)
        assert type(pickle.loads(pickle.dumps(error))) is TooSlow
        with pytest.raises(ConnectionClosedError, match="too slow"):
            await slow.ws.receive()
        slow.go_on()
        # What was accepted comes, and then the reason.
        assert await slow.received() == [*owed, *text("0", "1"), (0x88, b"\x03\xf0too slow")]
        assert await fast.received() == text("0", "1", "2", "3")
        assert topic.statistics().disconnected == 1
        assert len(topic) == 1


async def test_what_the_block_raises_itself_is_not_hidden() -> None:
    topic = Topic[str]()
    async with peers(1) as (slow,):
        await slow.stall()
        with pytest.raises(KeyError):
            async with topic.subscribe(slow.ws, slow="disconnect", limit=1):
                topic.publish_nowait("a")
                topic.publish_nowait("b")
                raise KeyError
        slow.go_on()


async def test_a_message_half_sent_is_not_broken_into() -> None:
    topic = Topic[str]()
    async with (
        peers(1) as (busy,),
        topic.subscribe(busy.ws) as oldest,
        topic.subscribe(busy.ws, slow="disconnect", limit=1) as strict,
    ):
        async with busy.ws.send_stream(text=True) as stream:
            await stream.send("begun")
            assert await topic.publish("later") == 2
            await stream.send("ended")
        assert await busy.received() == [
            (0x01, b"begun"),
            (0x00, b"ended"),
            (0x80, b""),
            *text("later", "later"),
        ]
        assert (oldest.sent, strict.sent) == (1, 1)


async def test_disconnected_in_the_middle_of_another_message() -> None:
    topic = Topic[str]()
    async with peers(1) as (busy,):
        with pytest.raises(TooSlow):
            async with topic.subscribe(busy.ws, slow="disconnect", limit=1) as strict:
                with pytest.raises(ConnectionClosedError):
                    async with busy.ws.send_stream(text=True) as stream:
                        await stream.send("begun")
                        assert topic.publish_nowait("a") == 1
                        assert topic.publish_nowait("b") == 0
        assert (strict.sent, strict.dropped) == (0, 2)
        assert await busy.received() == [(0x01, b"begun"), (0x88, b"\x03\xf0too slow")]


async def test_a_limit_in_bytes() -> None:
    topic = Topic[str]()
    async with (
        peers(1) as (slow,),
        topic.subscribe(slow.ws, slow="drop newest", limit_bytes=10) as behind,
    ):
        owed = await slow.stall()
        assert topic.publish_nowait("é" * 2) == 1
        assert topic.publish_nowait("x" * 7) == 0, "4 bytes and 7 are too many"
        assert topic.publish_nowait("x" * 6) == 1
        assert behind.queued_bytes == 10
        slow.go_on()
        assert await slow.received() == [*owed, *text("éé", "xxxxxx")]


async def test_an_empty_queue_takes_one_of_any_size() -> None:
    topic = Topic[str]()
    async with (
        peers(1) as (slow,),
        topic.subscribe(slow.ws, limit_bytes=10) as behind,
    ):
        owed = await slow.stall()
        for size in (5, 50, 500):
            assert topic.publish_nowait("x" * size) == 1
        assert (behind.queued, behind.queued_bytes, behind.dropped) == (1, 500, 2)
        slow.go_on()
        assert await slow.received() == [*owed, *text("x" * 500)]


# ---- some are to be waited for


async def test_waiting_for_who_is_slow() -> None:
    topic = Topic[str]()
    async with (
        peers(2) as (slow, fast),
        topic.subscribe(slow.ws, slow="wait", limit=2) as behind,
        topic.subscribe(fast.ws),
    ):
        owed = await slow.stall()
        assert [await topic.publish("0"), await topic.publish("1")] == [2, 2]
        results = []
        async with trio.open_nursery() as nursery:

            async def publish(message: str) -> None:
                results.append(await topic.publish(message))

            for message in ("2", "3", "4"):
                nursery.start_soon(publish, message)
                await trio.testing.wait_all_tasks_blocked()
            # The others have it although the first has no room.
            assert await fast.received() == text("0", "1", "2", "3", "4")
            assert results == []
            assert (behind.queued, behind.publishers_waiting) == (2, 3)
            assert topic.statistics().publishers_waiting == 3
            slow.go_on()
        assert results == [2, 2, 2]
        assert await slow.received() == [*owed, *text("0", "1", "2", "3", "4")]
        assert (behind.dropped, behind.sent) == (0, 5)
        assert topic.statistics().taken == 10


async def test_cancelled_while_it_waits() -> None:
    topic = Topic[str]()
    async with (
        peers(3) as (slow, fast, other),
        topic.subscribe(slow.ws, slow="wait", limit=1),
        topic.subscribe(fast.ws, slow="wait"),
        topic.subscribe(other.ws, slow="wait", limit=1),
    ):
        owed = await slow.stall(), await other.stall()
        await topic.publish("first")
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(topic.publish, "second")
                await trio.testing.wait_all_tasks_blocked()
                other.go_on()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await fast.received() == text("first", "second")
        assert await other.received() == [*owed[1], *text("first", "second")]
        slow.go_on()
        assert await slow.received() == [*owed[0], *text("first")]
        assert topic.statistics().publishers_waiting == 0
        assert topic.statistics().taken == 5
        assert await topic.publish("third") == 3
        assert await slow.received() == text("third")


async def test_without_waiting_nobody_gets_it() -> None:
    topic = Topic[str]()
    async with (
        peers(2) as (slow, fast),
        topic.subscribe(fast.ws),
        topic.subscribe(slow.ws, slow="wait", limit=1),
    ):
        owed = await slow.stall()
        assert topic.publish_nowait("0") == 2
        with pytest.raises(trio.WouldBlock):
            topic.publish_nowait("1")
        assert await fast.received() == text("0")
        slow.go_on()
        assert await slow.received() == [*owed, *text("0")]
        assert topic.publish_nowait("2") == 2


async def test_small_messages_do_not_overtake_a_large_one_that_waits() -> None:
    topic = Topic[str]()
    async with (
        topic.subscribe(slow="wait", limit=10, limit_bytes=100) as local,
        topic.subscribe() as other,
        trio.open_nursery() as nursery,
    ):
        await topic.publish("0" * 60)
        for message in ("1" * 80, "2", "3"):
            nursery.start_soon(topic.publish, message)
            await trio.testing.wait_all_tasks_blocked()
        assert (local.queued, local.publishers_waiting) == (1, 3)
        with pytest.raises(trio.WouldBlock):
            topic.publish_nowait("4")
        assert [(await local.receive())[0] for _ in range(4)] == ["0", "1", "2", "3"]
        assert await topic.publish("5") == 2
        assert await all_of(local) == ["5"]
        assert [message[0] for message in await all_of(other)] == ["0", "1", "2", "3", "5"]


async def test_who_gives_up_lets_those_behind_go_on() -> None:
    topic = Topic[str]()
    results = []

    async def publish(message: str) -> None:
        results.append((message[0], await topic.publish(message)))

    async with (
        peers(1) as (slow,),
        topic.subscribe(slow.ws, slow="wait", limit=3, limit_bytes=100) as behind,
        trio.open_nursery() as nursery,
    ):
        owed = await slow.stall()
        await topic.publish("0" * 60)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(topic.publish, "1" * 80)
                await trio.testing.wait_all_tasks_blocked()
                for message in ("2", "3", "4"):
                    nursery.start_soon(publish, message)
                    await trio.testing.wait_all_tasks_blocked()
                assert results == []
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(results) == [("2", 1), ("3", 1)], "two have room, and the last still waits"
        assert (behind.queued, behind.queued_bytes, behind.publishers_waiting) == (3, 62, 1)
        slow.go_on()
        assert await slow.received() == [*owed, *text("0" * 60, "2", "3", "4")]
        assert results[-1] == ("4", 1)


async def test_who_is_cancelled_when_room_comes_has_sent_nothing() -> None:
    topic = Topic[str]()
    async with topic.subscribe(slow="wait", limit=1) as local, trio.open_nursery() as nursery:
        await topic.publish("0")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(topic.publish, "1")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(topic.publish, "2")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                assert local.receive_nowait() == "0"
        await trio.testing.wait_all_tasks_blocked()
        assert (local.queued, local.publishers_waiting) == (1, 0)
        assert await local.receive() == "2"
    assert topic.statistics().taken == 2


@given(
    steps=st.lists(
        st.one_of(st.integers(0, 12), st.none(), st.tuples(st.integers(0, 5))), max_size=40
    ),
    limit=st.integers(1, 4),
    limit_bytes=st.integers(1, 30),
)
def test_who_waits_is_served_in_turn(steps: list[Any], limit: int, limit_bytes: int) -> None:
    """A number publishes a message of so many bytes; None receives one; a tuple cancels a publisher that waits."""

    async def main() -> None:
        topic = Topic[bytes]()
        queue: list[bytes] = []
        line: list[tuple[bytes, trio.CancelScope]] = []

        async def publish(message: bytes, scope: trio.CancelScope) -> None:
            with scope:
                await topic.publish(message)

        def is_full(message: bytes) -> bool:
            size = sum(map(len, queue)) + len(message)
            return len(queue) >= limit or (len(queue) > 0 and size > limit_bytes)

        async with (
            topic.subscribe(slow="wait", limit=limit, limit_bytes=limit_bytes) as local,
            trio.open_nursery() as nursery,
        ):
            for number, step in enumerate(steps):
                if step is None:
                    if queue:
                        assert local.receive_nowait() == queue.pop(0)
                elif isinstance(step, tuple):
                    if line:
                        line.pop(step[0] % len(line))[1].cancel()
                else:
                    message, scope = bytes([number]) * step, trio.CancelScope()
                    if line or is_full(message):
                        with pytest.raises(trio.WouldBlock):
                            topic.publish_nowait(message)
                    nursery.start_soon(publish, message, scope)
                    line.append((message, scope))
                await trio.testing.wait_all_tasks_blocked()
                while line and not is_full(line[0][0]):
                    queue.append(line.pop(0)[0])
                assert (local.queued, local.publishers_waiting) == (len(queue), len(line))
                assert local.queued_bytes == sum(map(len, queue))
            for _, scope in line:
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert await all_of(local) == queue

    trio.run(main)


@pytest.mark.parametrize("how", ["leaves", "is cancelled", "is lost"])
async def test_who_ends_is_waited_for_no_longer(how: str) -> None:
    topic = Topic[str]()
    async with peers(2) as (slow, fast), topic.subscribe(fast.ws):
        await slow.stall()
        async with trio.open_nursery() as nursery:
            leave = trio.Event()

            @nursery.start_soon
            async def handle() -> None:
                async with topic.subscribe(slow.ws, slow="wait", limit=1) as behind:
                    if how == "is cancelled":
                        await leave.wait()
                        behind.cancel_scope.cancel()
                    await (leave if how == "leaves" else trio.Event()).wait()

            await trio.testing.wait_all_tasks_blocked()
            assert await topic.publish("0") == 2

            @nursery.start_soon
            async def publish() -> None:
                start = trio.current_time()
                assert await topic.publish("1") == 1
                assert trio.current_time() < start + 1
                nursery.cancel_scope.cancel()

            await trio.testing.wait_all_tasks_blocked()
            leave.set()
            if how == "is lost":
                await slow.client.aclose()
                slow.go_on()
        assert await fast.received() == text("0", "1")
        slow.go_on()


@pytest.mark.parametrize("policy", KINDS)
async def test_publishing_is_a_checkpoint(policy: Any) -> None:
    topic = Topic[str]()
    async with topic.subscribe(slow=policy) as local:
        with trio.CancelScope() as scope:
            scope.cancel()
            await topic.publish("x")
        assert scope.cancelled_caught
        assert await all_of(local) == [], "cancelled, it was given to nobody"
        with trio.testing.assert_checkpoints():
            await topic.publish("x")
        with trio.testing.assert_checkpoints():
            assert await local.receive() == "x"
        await topic.publish("y")
        with trio.CancelScope() as scope:
            scope.cancel()
            await local.receive()
        assert scope.cancelled_caught
        assert await local.receive() == "y", "cancelled, nothing was received"


# ---- some are slow: others than WebSockets


async def test_a_slow_session_is_closed_with_a_code() -> None:
    topic = Topic[bytes]()
    piece = bytes(20_000)
    async with webtransport_pair(**SMALL) as (a, b):
        took = 0
        with pytest.raises(TooSlow):
            async with topic.subscribe(b, slow="disconnect", limit=3):
                for _ in range(50):
                    took += await topic.publish(piece)
                    await trio.sleep(0.01)
                pytest.fail("it was too slow long before")
        assert 3 <= took < 50
        end = await a.wait_closed()
        assert (end.code, end.reason, end.remote) == (1008, "too slow", True)


async def test_a_session_that_wakes_up_in_time_gets_all_that_was_accepted() -> None:
    topic = Topic[bytes]()
    piece = bytes(20_000)
    async with webtransport_pair(**SMALL) as (a, b):
        async with trio.open_nursery() as nursery:
            got: list[int] = []

            @nursery.start_soon
            async def read() -> None:
                stream = await a.incoming_receive_streams.receive()
                await trio.sleep(2)
                got.append(len(await stream.receive_all(10**7)))

            with pytest.raises(TooSlow):
                async with topic.subscribe(b, slow="disconnect", limit=3) as subscription:
                    while not subscription.closed:
                        await topic.publish(piece)
                        await trio.sleep(0.01)
        assert got == [topic.statistics().taken * len(prefixed(piece))]
        assert (await a.wait_closed()).code == 1008


async def test_a_session_that_opens_no_room_for_streams_is_closed() -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(client_settings={"max_receive_streams": 8}) as (a, b):
        with pytest.raises(TooSlow):
            async with topic.subscribe(b, via="streams", slow="disconnect", limit=2):
                for _ in range(20):
                    await topic.publish(b"x")
                    await trio.sleep(0.01)
        end = await a.wait_closed()
        assert (end.code, end.reason, end.remote) == (1008, "too slow", True)


@pytest.mark.parametrize("policy", ["drop oldest", "drop newest"])
async def test_a_slow_stream(policy: Any) -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b):
        async with (
            one_way_pair(b, a) as (ours, theirs),
            topic.subscribe(ours, slow=policy, limit=2) as behind,
        ):
            sizes = range(20_001, 20_021)
            for size in sizes:
                await topic.publish(bytes(size))
                await trio.sleep(0.01)
            assert behind.dropped > 10
            got = []
            with trio.move_on_after(5):
                while True:
                    got.append(int.from_bytes(await theirs.receive_exactly(4), "big"))
                    assert await theirs.receive_exactly(got[-1]) == bytes(got[-1])
            assert len(got) == behind.sent == 20 - behind.dropped
            assert got == sorted(got)
            assert (got[-1] == sizes[-1]) == (policy == "drop oldest")


async def test_a_stream_each_and_a_peer_that_lets_few_be_open() -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(client_settings={"max_receive_streams": 8}) as (a, b):
        async with topic.subscribe(b, via="streams", limit=2) as behind:
            for number in range(20):
                await topic.publish(b"%d" % number)
                await trio.sleep(0.01)
            assert behind.dropped > 5
            got = []
            with trio.move_on_after(5):
                async for stream in a.incoming_receive_streams:
                    async with stream:
                        got.append(int(await stream.receive_all(100)))
            assert len(got) == behind.sent == 20 - behind.dropped
            assert 19 in got


async def test_who_does_not_want_one_stream_still_gets_the_next() -> None:
    topic = Topic[bytes]()
    async with (
        webtransport_pair(**SMALL) as (a, b),
        topic.subscribe(b, via="streams") as subscription,
    ):
        await topic.publish(bytes(200_000))
        stream = await a.incoming_receive_streams.receive()
        await stream.aclose()
        await settle()
        await topic.publish(b"next")
        stream = await a.incoming_receive_streams.receive()
        assert await stream.receive_all(100) == b"next"
        assert not subscription.closed


async def test_a_slow_stream_of_the_users_is_reset() -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b):
        async with one_way_pair(b, a) as (ours, theirs):
            start = trio.current_time()
            with pytest.raises(TooSlow):
                async with topic.subscribe(ours, slow="disconnect", limit=1):
                    for _ in range(20):
                        topic.publish_nowait(bytes(20_000))
                        await settle()
            assert trio.current_time() - start < 10
            with pytest.raises(StreamReset) as caught:
                await theirs.receive_all(10**7)
            assert (caught.value.code, caught.value.remote) == (1008, True)
        assert b.closed is None


async def test_a_slow_channel_is_closed() -> None:
    topic = Topic[int]()
    into, out_of = trio.open_memory_channel[int](0)
    with pytest.raises(TooSlow):
        async with topic.subscribe(into, slow="disconnect", limit=2):
            for number in range(10):
                await topic.publish(number)
                await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.EndOfChannel):
        await out_of.receive()


async def test_a_slow_stream_of_another_kind_is_closed() -> None:
    topic = Topic[bytes]()
    sender, receiver = trio.testing.lockstep_stream_one_way_pair()
    with pytest.raises(TooSlow):
        async with topic.subscribe(sender, slow="disconnect", limit=2):
            for _ in range(10):
                await topic.publish(b"x")
                await trio.testing.wait_all_tasks_blocked()
    assert await receiver.receive_some() == b""


async def test_cancelled_while_a_slow_session_is_parted_with() -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b):
        with pytest.raises(TooSlow):
            async with topic.subscribe(b, slow="disconnect", limit=1) as subscription:
                while not subscription.closed:
                    topic.publish_nowait(bytes(20_000))
                    await trio.lowlevel.checkpoint()
                subscription.cancel_scope.cancel()
        assert (await a.wait_closed()).code == 1008


# ---- in this process


async def test_iterating() -> None:
    topic = Topic[str]()
    got = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def listen() -> None:
            async with topic.subscribe() as subscription:
                async for message in subscription:
                    got.append(message)
                    if message == "end":
                        break

        await trio.testing.wait_all_tasks_blocked()
        for message in ("a", "b", "end"):
            assert await topic.publish(message) == 1
    assert got == ["a", "b", "end"]


async def test_too_slow_in_this_process() -> None:
    topic = Topic[int]()
    got = []
    with pytest.raises(TooSlow):
        async with topic.subscribe(slow="disconnect", limit=3) as subscription:
            took = [topic.publish_nowait(number) for number in range(5)]
            assert took == [1, 1, 1, 0, 0]
            await subscription.wait_closed()
            async for message in subscription:
                got.append(message)
    assert got == [0, 1, 2], "nothing is lost that was accepted"


async def test_text_counts_as_utf_8_in_this_process_too() -> None:
    topic = Topic[str]()
    async with topic.subscribe(slow="drop newest", limit_bytes=10) as local:
        assert topic.publish_nowait("é" * 3) == 1
        assert topic.publish_nowait("é" * 3) == 0, "6 bytes and 6 are too many"
        assert topic.publish_nowait("xxxx") == 1
        assert local.queued_bytes == topic.statistics().queued_bytes == 10
        assert await all_of(local) == ["ééé", "xxxx"]
        assert topic.publish_nowait("\ud800") == 1, "what is not sent need not be UTF-8"
        assert local.queued_bytes == 3


async def test_other_objects_count_by_number_only() -> None:
    topic = Topic[object]()
    async with topic.subscribe(slow="drop newest", limit=3, limit_bytes=1) as local:
        assert [topic.publish_nowait(["x" * 100]) for _ in range(4)] == [1, 1, 1, 0]
        assert (local.queued, local.queued_bytes) == (3, 0)


@pytest.mark.parametrize("codec", ["json", JsonCodec, object()])
def test_what_is_no_codec(codec: Any) -> None:
    for kind in (Topic, Rooms):
        with pytest.raises(TypeError, match="no codec: give an object with encode"):
            kind(codec)


async def test_who_has_nothing_queued_is_small() -> None:
    topic = Topic[str]()
    async with peers(1) as (member,):
        tracemalloc.start()
        try:
            async with AsyncExitStack() as stack:
                before = tracemalloc.get_traced_memory()[0]
                held = [topic.subscribe(member.ws) for _ in range(200)]
                each = (tracemalloc.get_traced_memory()[0] - before) / len(held)
                assert each < 1000
                small = await stack.enter_async_context(held[0])
                await member.stall()
                await topic.publish("x")
                queue = small._queue
                assert small.queued == 1
                member.go_on()
                await trio.testing.wait_all_tasks_blocked()
                assert small.queued == 0
                assert small._queue is not queue, "it is given back"
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("told", [True, False])
async def test_too_slow_is_told_once(told: bool) -> None:
    topic = Topic[int]()
    ended = False

    async def listen() -> None:
        nonlocal ended
        async with topic.subscribe(slow="disconnect", limit=1) as subscription:
            topic.publish_nowait(0)
            topic.publish_nowait(1)
            assert await subscription.receive() == 0
            if told:
                for _ in range(2):
                    with pytest.raises(TooSlow):
                        await subscription.receive()
        ended = True

    if told:
        await listen()
    else:
        with pytest.raises(TooSlow):
            await listen()
    assert ended == told


async def test_too_slow_in_this_process_hides_no_other_end() -> None:
    topic = Topic[int]()
    error = ConnectionClosedError(1006, "of a connection", remote=True)
    with pytest.raises(ConnectionClosedError) as caught:
        async with topic.subscribe(slow="disconnect", limit=1):
            topic.publish_nowait(0)
            topic.publish_nowait(1)
            raise error
    assert caught.value is error
    with pytest.raises(TooSlow) as caught:
        async with topic.subscribe(slow="disconnect", limit=1) as subscription:
            topic.publish_nowait(0)
            topic.publish_nowait(1)
            async for _ in subscription:
                pass
    assert caught.value.__cause__ is None


async def test_waiting_for_a_task_of_this_process() -> None:
    topic = Topic[int]()
    async with (
        topic.subscribe(slow="wait", limit=2) as subscription,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def publish() -> None:
            for number in range(10):
                assert await topic.publish(number) == 1

        for number in range(10):
            await trio.testing.wait_all_tasks_blocked()
            assert subscription.queued <= 2
            assert await subscription.receive() == number


STEPS = st.lists(st.one_of(st.integers(0, 12), st.none()), max_size=60)


@given(steps=STEPS, limit=st.integers(1, 4), limit_bytes=st.integers(1, 30))
@pytest.mark.parametrize("policy", ["drop oldest", "drop newest"])
def test_the_queue_is_as_a_plain_one(
    policy: Any, steps: list[int | None], limit: int, limit_bytes: int
) -> None:
    """A number publishes a message of so many bytes; None receives one."""

    async def main() -> None:
        topic = Topic[bytes]()
        model: deque[bytes] = deque()
        dropped = 0
        async with topic.subscribe(slow=policy, limit=limit, limit_bytes=limit_bytes) as local:
            for number, step in enumerate(steps):
                if step is None:
                    if model:
                        assert local.receive_nowait() == model.popleft()
                    else:
                        with pytest.raises(trio.WouldBlock):
                            local.receive_nowait()
                else:
                    message = bytes([number]) * step

                    def is_full() -> bool:
                        size = sum(map(len, model)) + len(message)
                        return len(model) >= limit or (len(model) > 0 and size > limit_bytes)

                    took = topic.publish_nowait(message)
                    if policy == "drop newest" and is_full():
                        dropped += 1
                        assert took == 0
                    else:
                        while is_full():
                            model.popleft()
                            dropped += 1
                        model.append(message)
                        assert took == 1
                assert local.queued == len(model) <= limit
                assert local.queued_bytes == sum(map(len, model))
                assert local.dropped == dropped
            assert await all_of(local) == list(model)

    trio.run(main)


# ---- the end of a block


async def test_what_waits_is_sent_at_the_end() -> None:
    topic = Topic[str]()
    async with peers(1) as (slow,), trio.open_nursery() as nursery:
        owed = await slow.stall()

        @nursery.start_soon
        async def later() -> None:
            await trio.sleep(3)
            slow.go_on()

        async with topic.subscribe(slow.ws) as subscription:
            await topic.publish("0")
            await topic.publish("1")
        assert len(topic) == 0
        assert (subscription.sent, subscription.dropped, subscription.closed) == (2, 0, True)
        assert await slow.received() == [*owed, *text("0", "1")]


async def test_that_takes_the_close_timeout_at_most() -> None:
    topic = Topic[str]()
    async with peers(1) as (slow,):
        owed = await slow.stall()
        start = trio.current_time()
        async with topic.subscribe(slow.ws) as subscription:
            await topic.publish("0")
        assert trio.current_time() - start == pytest.approx(5)
        assert (subscription.sent, subscription.dropped) == (0, 1)
        assert topic.statistics().dropped == 1
        slow.go_on()
        assert await slow.received() == owed


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_what_waits_is_dropped_when_the_block_is_broken_off(how: str) -> None:
    topic = Topic[str]()
    async with peers(1) as (slow,):
        owed = await slow.stall()
        start = trio.current_time()
        try:
            async with topic.subscribe(slow.ws) as subscription:
                await topic.publish("0")
                if how == "failed":
                    raise KeyError
                subscription.cancel_scope.cancel()
                await trio.sleep_forever()
        except KeyError:
            assert how == "failed"
        assert trio.current_time() == start
        assert subscription.dropped == 1
        slow.go_on()
        assert await slow.received() == owed


@pytest.mark.parametrize("how", ["ends", "is cancelled", "fails", "leaves a rest"])
async def test_the_peer_sees_how_the_block_ended(how: str) -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b):
        try:
            async with topic.subscribe(b) as subscription:
                await topic.publish(b"news")
                stream = await a.incoming_receive_streams.receive()
                if how == "leaves a rest":
                    for _ in range(5):
                        await topic.publish(bytes(20_000))
                elif how == "fails":
                    raise KeyError
                elif how == "is cancelled":
                    subscription.cancel_scope.cancel()
                    await trio.sleep_forever()
        except KeyError:
            pass
        if how == "ends":
            assert await stream.receive_all(100) == prefixed(b"news")
        else:
            with pytest.raises(StreamReset):
                await stream.receive_all(10**6)
        assert b.closed is None


@pytest.mark.parametrize("how", ["is cancelled", "fails", "leaves a rest"])
async def test_a_stream_is_reset_if_it_ends_in_the_middle_of_a_message(how: str) -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b), one_way_pair(b, a) as (ours, theirs):
        try:
            async with topic.subscribe(ours, slow="wait") as subscription:
                await topic.publish(b"whole")
                await topic.publish(bytes(200_000))
                await settle()
                if how == "fails":
                    raise KeyError
                if how == "is cancelled":
                    subscription.cancel_scope.cancel()
                    await trio.sleep_forever()
        except KeyError:
            pass
        assert (subscription.sent, subscription.dropped) == (1, 1)
        async with topic.subscribe(ours):
            assert await topic.publish(b"next") == 0, "it would be taken for a part of the last"
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")
        with pytest.raises(StreamReset) as caught:
            await theirs.receive_all(10**6)
        settings = ours._carrier.settings
        cancelled = how == "is cancelled"
        expected = settings.cancelled_code if cancelled else settings.failed_code
        assert (caught.value.code, caught.value.remote) == (expected, True)
        assert b.closed is None


async def test_a_stream_of_whole_messages_stays_as_it_is() -> None:
    topic = Topic[bytes]()
    async with webtransport_pair(**SMALL) as (a, b), one_way_pair(b, a) as (ours, theirs):
        full = 0
        while (room := ours._carrier.room(ours._stream_id)) > 0:
            await ours.send_all(bytes(room))
            full += room
            await settle()
        async with topic.subscribe(ours) as first:
            await topic.publish(b"waits for room")
            await topic.publish(b"waits behind it")
            await settle()
            first.cancel_scope.cancel()
            await trio.sleep_forever()
        assert (first.sent, first.dropped) == (0, 2)
        assert await theirs.receive_exactly(full) == bytes(full)
        async with topic.subscribe(ours) as second:
            await topic.publish(b"next")
            second.cancel_scope.cancel()
            await trio.sleep_forever()
        await ours.send_eof()
        assert await theirs.receive_all(100) == prefixed(b"next")


@pytest.mark.parametrize("how", ["is cancelled", "leaves a rest"])
async def test_a_stream_of_another_kind_is_closed_in_the_middle_of_a_message(how: str) -> None:
    topic = Topic[bytes]()
    sender, receiver = trio.testing.lockstep_stream_one_way_pair()
    async with topic.subscribe(sender) as subscription:
        await topic.publish(b"message")
        assert await receiver.receive_some(2) == b"\x00\x00"
        if how == "is cancelled":
            subscription.cancel_scope.cancel()
            await trio.sleep_forever()
    assert (subscription.sent, subscription.dropped) == (0, 1)
    with pytest.raises(trio.ClosedResourceError):
        await sender.send_all(b"x")
    with trio.fail_after(1):
        assert [bytes(rest) async for rest in receiver] == [b"\x00\x07message"]


async def test_a_stream_with_a_bug_is_closed() -> None:
    async def fail() -> None:
        raise KeyError("a bug")

    topic = Topic[bytes]()
    sender, _ = trio.testing.memory_stream_one_way_pair()
    sender.send_all_hook = fail
    with pytest.raises(KeyError, match="a bug"):
        async with topic.subscribe(sender):
            await topic.publish(b"x")
            await trio.sleep_forever()
    with pytest.raises(trio.ClosedResourceError):
        await sender.send_all(b"y")


async def test_a_stream_of_another_kind_of_whole_messages_stays_as_it_is() -> None:
    topic = Topic[bytes]()
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    for message in (b"one", b"two"):
        async with topic.subscribe(sender) as subscription:
            await topic.publish(message)
            assert await receiver.receive_some() == prefixed(message)
            subscription.cancel_scope.cancel()
            await trio.sleep_forever()
    busy, receiver = trio.testing.lockstep_stream_one_way_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.send_all, b"the user's own")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            async with topic.subscribe(busy):
                await topic.publish(b"refused")
                await trio.sleep_forever()
        assert await receiver.receive_some() == b"the user's own"
    await sender.send_all(b"still open")


async def test_entering_can_be_cancelled() -> None:
    topic = Topic[str]()
    async with webtransport_pair(client_settings={"max_receive_streams": 8}) as (_, b):
        for session in (None, b):
            with trio.CancelScope() as scope:
                scope.cancel()
                async with topic.subscribe(session):
                    pytest.fail("it was cancelled")
            assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def stay() -> None:
                async with topic.subscribe(b):
                    await trio.sleep_forever()

            for _ in range(12):
                nursery.start_soon(stay)
            await settle()
            assert 0 < len(topic) <= 8, "the others wait for a stream"
            assert await topic.publish("x") == len(topic)
            nursery.cancel_scope.cancel()
    assert len(topic) == 0


# ---- those that have ended


async def test_those_that_have_ended_are_passed_over() -> None:
    topic = Topic[str]()
    async with peers(5) as members, AsyncExitStack() as stack:
        closing, closed, left, lost, alive = members
        for member in members:
            await stack.enter_async_context(topic.subscribe(member.ws, slow="wait"))
        await closing.ws.send_close()
        await left.client.send_all(frame(8, b"\x03\xe8", masked=True))
        await lost.client.aclose()
        await left.ws.wait_closed()
        with trio.move_on_after(0):
            await closed.ws.close()
        await trio.testing.wait_all_tasks_blocked()
        assert len(topic) == 5
        assert await topic.publish("news") == 1
        assert len(topic) == 1
        assert topic.publish_nowait("more") == 1
        assert await alive.received() == text("news", "more")
        assert await closing.received() == [(0x88, b"\x03\xe8")]


@pytest.mark.parametrize("via", ["stream", "streams", "datagrams"])
async def test_a_session_that_has_ended(via: Any) -> None:
    topic = Topic[str]()
    async with webtransport_pair() as (a, b), topic.subscribe() as local:
        async with topic.subscribe(b, via=via) as subscription:
            a.close_now(7, "enough")
            assert (await b.wait_closed()).code == 7
            assert await topic.publish("news") == 1
            assert subscription.closed
            await subscription.wait_closed()
        assert await local.receive() == "news"


async def test_a_stream_that_its_peer_has_stopped() -> None:
    topic = Topic[str]()
    async with webtransport_pair() as (a, b), one_way_pair(b, a) as (ours, theirs):
        async with topic.subscribe(ours) as subscription:
            await theirs.aclose()
            await settle()
            assert await topic.publish("news") == 0
            await subscription.wait_closed()


async def test_the_end_while_messages_wait() -> None:
    topic = Topic[str]()
    async with peers(1) as (slow,), topic.subscribe(slow.ws) as subscription:
        await slow.stall()
        await topic.publish("0")
        await topic.publish("1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.wait_closed)
            await slow.client.aclose()
            slow.go_on()
        assert (subscription.queued, subscription.dropped) == (0, 2)
        assert await topic.publish("2") == 0


class Broken(trio.abc.SendChannel[str]):
    async def send(self, value: str) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("a bug")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_channel_with_a_bug_hurts_its_own_block_only() -> None:
    topic = Topic[str]()
    async with topic.subscribe() as local, peers(1) as (member,), topic.subscribe(member.ws):
        with pytest.raises(KeyError, match="a bug"):
            async with topic.subscribe(Broken()):
                assert await topic.publish("x") == 3
                await trio.sleep_forever()
        assert await topic.publish("y") == 2
        assert await all_of(local) == ["x", "y"]
        assert await member.received() == text("x", "y")


async def test_a_channel_whose_receiver_has_gone() -> None:
    topic = Topic[str]()
    into, out_of = trio.open_memory_channel[str](1)
    async with topic.subscribe(into) as subscription:
        out_of.close()
        await topic.publish("x")
        await subscription.wait_closed()
        assert await topic.publish("y") == 0
        assert subscription.dropped == 1


# ---- rooms


async def test_rooms() -> None:
    rooms = Rooms[str]()
    async with peers(2) as (first, second):
        async with rooms["tea"].subscribe(first.ws), rooms["coffee"].subscribe(second.ws):
            assert rooms["tea"] is rooms["tea"]
            assert await rooms["tea"].publish("hot") == 1
            assert rooms["coffee"].publish_nowait("black") == 1
            assert await rooms["milk"].publish("cold") == 0
            assert sorted(rooms) == ["coffee", "tea"]
            assert len(rooms) == 2
            assert "tea" in rooms
            assert "milk" not in rooms
            assert 3 not in rooms
            assert await first.received() == text("hot")
            assert await second.received() == text("black")
        assert list(rooms) == []
        assert "tea" not in rooms


async def test_rooms_that_nobody_is_in_cost_nothing() -> None:
    rooms = Rooms[str]()
    held = rooms["held"]
    for number in range(1000):
        await rooms[f"name {number}"].publish("x")
        async with rooms[f"visited {number}"].subscribe():
            pass
    gc.collect()
    assert list(rooms._topics) == ["held"]
    async with rooms["held"].subscribe() as local:
        assert await held.publish("who held it early has the same one") == 1
        assert len(await all_of(local)) == 1


async def test_rooms_share_a_codec() -> None:
    codec = Counting(lambda message: f"<{message}>")
    rooms = Rooms[int](codec)
    async with peers(1) as (member,), rooms["a"].subscribe(member.ws):
        await rooms["a"].publish(1)
        assert await member.received() == text("<1>")


async def test_they_show_what_they_are() -> None:
    rooms = Rooms[str]()
    async with rooms["a"].subscribe(slow="wait") as subscription:
        await rooms["a"].publish("x")
        assert repr(subscription) == "<Subscription open, wait, 1 queued>"
        assert repr(rooms["a"]) == "<Topic, 1 subscribers>"
        assert repr(rooms) == "<Rooms, 1 with subscribers>"
        assert subscription.slow == "wait"
    assert repr(subscription) == "<Subscription closed, wait, 0 queued>"
