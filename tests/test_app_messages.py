"""Typed messages over everything that carries them."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import trio_wt
from tests.quic_pairs import one_way_pair, settle, stream_pair
from tests.test_quic_cancellation import CancelAtStep, at_every_step
from trio_wt.app._codecs import Codec, JsonCodec, MessagePackCodec
from trio_wt.app._framing import frame
from trio_wt.app._message_errors import IncompleteMessage, InvalidMessage, MessageTooLarge
from trio_wt.app._messages import MessageChannel
from trio_wt.testing import quic_pair, websocket_pair, webtransport_pair


class Say(msgspec.Struct, tag=True):
    text: str


class Move(msgspec.Struct, tag=True):
    x: int
    y: int


Both = Say | Move
CODECS: dict[str, Codec[Both]] = {"json": JsonCodec(Both), "messagepack": MessagePackCodec(Both)}
JSON = CODECS["json"]
BAD = b'{"type":"Move","x":1,"y":"up"}'


class Upper:
    """A codec of the simplest kind: it takes capital letters only."""

    def encode(self, message: str, /) -> bytes | str:
        return message.encode()

    def decode(self, data: bytes | str, /) -> str:
        text = data if isinstance(data, str) else data.decode()
        if not text.isupper():
            raise ValueError(f"{text} is not in capitals")
        return text


# ---- pairs of everything

Pair = tuple[Any, Any]


@asynccontextmanager
async def memory() -> AsyncIterator[Pair]:
    yield trio.testing.memory_stream_pair()


@asynccontextmanager
async def stapled() -> AsyncIterator[Pair]:
    async with quic_pair() as (a, b):
        async with (
            one_way_pair(a, b) as (send_a, receive_b),
            one_way_pair(b, a) as (send_b, receive_a),
        ):
            yield trio.StapledStream(send_a, receive_a), trio.StapledStream(send_b, receive_b)


@asynccontextmanager
async def quic_stream() -> AsyncIterator[Pair]:
    async with quic_pair() as (a, b), stream_pair(a, b) as ends:
        yield ends


@asynccontextmanager
async def webtransport_stream() -> AsyncIterator[Pair]:
    async with webtransport_pair() as (a, b), stream_pair(a, b) as ends:  # type: ignore[arg-type]
        yield ends


@asynccontextmanager
async def quic_datagrams() -> AsyncIterator[Pair]:
    async with quic_pair() as (a, b):
        yield a.datagrams, b.datagrams


@asynccontextmanager
async def webtransport_datagrams() -> AsyncIterator[Pair]:
    async with webtransport_pair() as (a, b):
        yield a.datagrams, b.datagrams


STREAMS: dict[str, Callable[[], AbstractAsyncContextManager[Pair]]] = {
    "memory stream": memory,
    "stapled streams": stapled,
    "QUIC stream": quic_stream,
    "WebTransport stream": webtransport_stream,
}
DATAGRAMS: dict[str, Callable[[], AbstractAsyncContextManager[Pair]]] = {
    "QUIC datagrams": quic_datagrams,
    "WebTransport datagrams": webtransport_datagrams,
}
CARRIERS: dict[str, Callable[[], AbstractAsyncContextManager[Pair]]] = {
    "WebSocket": websocket_pair,
    **STREAMS,
    **DATAGRAMS,
}
all_carriers = pytest.mark.parametrize("kind", CARRIERS)
all_streams = pytest.mark.parametrize("kind", STREAMS)


async def send_raw(carrier: Any, data: bytes) -> None:
    """Send what no codec would."""
    if isinstance(carrier, trio.abc.SendStream):
        await carrier.send_all(frame(data))
    else:
        await carrier.send(data)


# ---- there and back


@all_carriers
@pytest.mark.parametrize("codec", CODECS)
async def test_messages_go_both_ways(kind: str, codec: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours = MessageChannel(a, CODECS[codec])
        peers = MessageChannel(b, CODECS[codec])
        for message in (Say("hello \N{SNOWMAN}"), Move(1, -2), Say("")):
            await ours.send(message)
            assert await peers.receive() == message
            await peers.send(message)
            assert await ours.receive() == message
        assert isinstance(ours, trio.abc.Channel)
        assert (ours.statistics().sent, ours.statistics().received) == (3, 3)
        assert (ours.statistics().invalid, ours.statistics().buffered) == (0, 0)


async def test_text_and_binary_on_a_websocket() -> None:
    async with websocket_pair() as (a, b):
        await MessageChannel(a, JsonCodec(Both)).send(Move(1, 2))
        assert await b.receive() == '{"type":"Move","x":1,"y":2}'
        await MessageChannel(a, MessagePackCodec(Both)).send(Move(1, 2))
        assert await b.receive() == msgspec.msgpack.encode(Move(1, 2))
        await b.send('{"type":"Move","x":1,"y":2}')
        await b.send(b'{"type":"Move","x":1,"y":2}')
        ours = MessageChannel(a, JsonCodec(Both))
        assert await ours.receive() == await ours.receive() == Move(1, 2)


async def test_a_frame_on_a_stream() -> None:
    a, b = trio.testing.memory_stream_pair()
    await MessageChannel(a, Upper()).send("ABC")
    assert await b.receive_some() == b"\0\0\0\3ABC"


async def test_streams_of_one_direction() -> None:
    async with quic_pair() as (a, b), one_way_pair(a, b) as (send, receive):
        ours, peers = MessageChannel(send, JSON), MessageChannel(receive, JSON)
        with pytest.raises(TypeError, match="only sends"):
            await ours.receive()
        with pytest.raises(TypeError, match="only receives"):
            await peers.send(Say("x"))
        await ours.send(Say("x"))
        await ours.aclose()
        assert [message async for message in peers] == [Say("x")]


async def test_a_codec_of_ones_own() -> None:
    async with websocket_pair() as (a, b):
        ours, peers = MessageChannel(a, Upper()), MessageChannel(b, Upper())
        await ours.send("HELLO")
        assert await peers.receive() == "HELLO"
        await ours.send("hello")
        with pytest.raises(InvalidMessage) as caught:
            await peers.receive()
        assert str(caught.value) == "this is no valid message for Upper: hello is not in capitals"
        assert isinstance(caught.value.__cause__, ValueError)


@given(
    messages=st.lists(st.one_of(st.builds(Say, text=st.text()), st.just(None)), max_size=6),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
@settings(deadline=None)
def test_any_chunking_gives_the_same_messages(messages: list[Say | None], cuts: list[int]) -> None:
    """None stands for a message that is not valid."""
    sent = [BAD if m is None else str(JSON.encode(m)).encode() for m in messages]
    data = b"".join(map(frame, sent))

    async def main() -> None:
        ours = MessageChannel(Pieces(data, cuts), JSON)
        received: list[Both | None] = []
        while len(received) < len(messages):
            try:
                received.append(await ours.receive())
            except InvalidMessage as exc:
                assert exc.path == "$.y"
                received.append(None)
        assert received == messages
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()

    trio.run(main)


class Pieces(trio.abc.ReceiveStream):
    """Gives its bytes in pieces of these sizes, over and over."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.left = data
        self.sizes = itertools.cycle(sizes)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = next(self.sizes)
        piece, self.left = self.left[:size], self.left[size:]
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


# ---- what is not valid


@all_carriers
async def test_a_bad_message_costs_itself(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours, peers = MessageChannel(a, JSON), MessageChannel(b, JSON)
        await peers.send(Say("before"))
        await settle()
        await send_raw(b, BAD)
        await settle()
        await peers.send(Say("after"))
        assert await ours.receive() == Say("before")
        with pytest.raises(InvalidMessage) as caught:
            await ours.receive()
        assert (caught.value.path, caught.value.reason) == ("$.y", "Expected `int`, got `str`")
        assert str(caught.value) == (
            "this is no valid JSON message of Say | Move: Expected `int`, got `str`, at $.y"
        )
        assert await ours.receive() == Say("after")
        await ours.send(Say("and back"))
        assert await peers.receive() == Say("and back")
        assert (ours.statistics().received, ours.statistics().invalid) == (2, 1)


@all_carriers
async def test_a_message_that_is_too_large_costs_itself(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours, peers = MessageChannel(a, JSON, max_size=50), MessageChannel(b, JSON)
        await peers.send(Say("x" * 500))
        await settle()
        await peers.send(Say("after"))
        with pytest.raises(InvalidMessage, match=r"it has 5\d\d bytes, and at most 50 are allowed"):
            await ours.receive()
        assert await ours.receive() == Say("after")
        # In bytes, not in characters.
        await peers.send(Say("\N{SNOWMAN}" * 20))
        with pytest.raises(InvalidMessage):
            await ours.receive()


@all_streams
async def test_a_length_beyond_the_limit_is_told_before_the_message_comes(kind: str) -> None:
    async with STREAMS[kind]() as (a, b), trio.open_nursery() as nursery:
        ours, peers = MessageChannel(a, JSON, max_size=50), MessageChannel(b, JSON)
        await b.send_all((1_000_000).to_bytes(4))
        with pytest.raises(InvalidMessage, match="1000000 bytes"):
            await ours.receive()

        async def rest() -> None:
            await b.send_all(bytes(1_000_000))
            await peers.send(Say("after"))

        nursery.start_soon(rest)
        assert await ours.receive() == Say("after")


@pytest.mark.parametrize(("invalid_code", "told"), [(None, 1007), (4321, 4321)])
async def test_a_bad_message_closes_a_websocket(invalid_code: int | None, told: int) -> None:
    async with websocket_pair() as (a, b):
        ours = MessageChannel(a, JSON, invalid="close", invalid_code=invalid_code)
        await b.send(BAD)
        await b.send(JSON.encode(Say("behind it")))
        with pytest.raises(InvalidMessage):
            await ours.receive()
        with pytest.raises(trio_wt.ConnectionClosedError) as closed:
            await b.receive()
        assert (closed.value.code, closed.value.reason) == (told, "invalid message, at $.y")
        await check_closed(ours)


async def test_a_large_message_closes_a_websocket() -> None:
    async with websocket_pair() as (a, b):
        ours = MessageChannel(a, JSON, max_size=50, invalid="close")
        await b.send("x" * 51)
        with pytest.raises(InvalidMessage):
            await ours.receive()
        with pytest.raises(trio_wt.ConnectionClosedError) as closed:
            await b.receive()
        assert closed.value.code == 1009
        assert closed.value.reason == "it has 51 bytes, and at most 50 are allowed"


async def test_a_reason_is_cut_for_the_close_frame() -> None:
    class Hostile:
        def encode(self, message: str, /) -> str:
            return message

        def decode(self, data: bytes | str, /) -> str:
            raise InvalidMessage("bad", "$." + "\N{SNOWMAN}" * 90)

    async with websocket_pair() as (a, b):
        await b.send("x")
        with pytest.raises(InvalidMessage):
            await MessageChannel(a, Hostile(), invalid="close").receive()
        with pytest.raises(trio_wt.ConnectionClosedError) as closed:
            await b.receive()
        assert closed.value.reason.startswith("invalid message, at $.\N{SNOWMAN}")


async def test_a_websockets_own_limit_comes_first() -> None:
    async with websocket_pair(max_message_size=50) as (a, b):
        await b.send("x" * 51)
        with pytest.raises(trio_wt.ConnectionClosedError) as closed:
            await MessageChannel(a, JSON).receive()
        assert closed.value.code == 1009


@pytest.mark.parametrize("kind", ["stapled streams", "QUIC stream", "WebTransport stream"])
@pytest.mark.parametrize(
    ("data", "invalid_code", "told"),
    [(BAD, None, 1007), (b"x" * 51, None, 1009), (BAD, 17, 17), (b"x" * 51, 17, 17)],
)
async def test_a_bad_message_resets_a_stream(
    kind: str, data: bytes, invalid_code: int | None, told: int
) -> None:
    async with STREAMS[kind]() as (a, b):
        ours = MessageChannel(a, JSON, max_size=50, invalid="close", invalid_code=invalid_code)
        await b.send_all(frame(data))
        with pytest.raises(InvalidMessage):
            await ours.receive()
        with pytest.raises(trio_wt.StreamReset) as reset:
            await b.receive_some()
        assert (reset.value.code, reset.value.remote) == (told, True)
        with pytest.raises(trio_wt.StreamReset) as stopped:
            await b.send_all(b"x")
        assert (stopped.value.code, stopped.value.remote) == (told, True)
        await check_closed(ours)


async def test_a_bad_message_stops_a_stream_of_one_direction() -> None:
    async with quic_pair() as (a, b), one_way_pair(a, b) as (send, receive):
        await send.send_all(frame(BAD))
        with pytest.raises(InvalidMessage):
            await MessageChannel(receive, JSON, invalid="close").receive()
        await settle()
        with pytest.raises(trio_wt.StreamReset) as stopped:
            await send.send_all(b"x")
        assert stopped.value.code == 1007


async def test_a_bad_message_closes_any_other_stream() -> None:
    a, b = trio.testing.memory_stream_pair()
    ours = MessageChannel(a, JSON, invalid="close")
    await b.send_all(frame(BAD))
    with pytest.raises(InvalidMessage):
        await ours.receive()
    assert await b.receive_some() == b""
    await check_closed(ours)


@pytest.mark.parametrize("kind", DATAGRAMS)
async def test_a_bad_message_closes_datagrams(kind: str) -> None:
    async with DATAGRAMS[kind]() as (a, b):
        ours = MessageChannel(a, JSON, invalid="close")
        await b.send(BAD)
        with pytest.raises(InvalidMessage):
            await ours.receive()
        with pytest.raises(trio.ClosedResourceError):
            await a.send(b"x")
        await check_closed(ours)


async def check_closed(ours: MessageChannel[Any]) -> None:
    with pytest.raises(trio.ClosedResourceError, match="an invalid message had come"):
        await ours.receive()
    with pytest.raises(trio.ClosedResourceError, match="an invalid message had come"):
        await ours.send(Say("x"))
    await ours.aclose()


async def test_what_is_cancelled_hears_of_the_bad_message_all_the_same() -> None:
    async with websocket_pair() as (a, b):
        await b.send(BAD)
        with trio.CancelScope() as scope:

            class Cancels:
                def encode(self, message: str, /) -> str:
                    return message

                def decode(self, data: bytes | str, /) -> str:
                    scope.cancel()
                    raise ValueError("bad")

            ours = MessageChannel(a, Cancels(), invalid="close")
            with pytest.raises(InvalidMessage) as caught:
                await ours.receive()
        assert caught.value.reason == "bad"
        assert not scope.cancelled_caught
        with pytest.raises(trio_wt.ConnectionClosedError):
            await b.receive()


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError("no"), "no"),
        (ValueError(), "the codec cannot read it"),
        (KeyError("age"), "KeyError: 'age'"),
        (RecursionError(), "RecursionError"),
        (ValueError("\x1b" + "x" * 5000), "\\x1bxxx"),
    ],
)
async def test_whatever_a_codec_raises(raised: Exception, reason: str) -> None:
    class Fails:
        def encode(self, message: str, /) -> str:
            return message

        def decode(self, data: bytes | str, /) -> str:
            raise raised

    async with websocket_pair() as (a, b):
        await b.send("x")
        with pytest.raises(InvalidMessage) as caught:
            await MessageChannel(a, Fails()).receive()
        assert caught.value.reason.startswith(reason)
        assert len(str(caught.value)) < 500
        assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_matter_of_the_message_goes_on(raised: type[BaseException]) -> None:
    class Fails:
        def encode(self, message: str, /) -> str:
            return message

        def decode(self, data: bytes | str, /) -> str:
            raise raised

    async with websocket_pair() as (a, b):
        await b.send("x")
        with pytest.raises(raised):
            await MessageChannel(a, Fails(), invalid="close").receive()
        await b.send("x")
        assert await a.receive() == "x"


# ---- what we send


@all_carriers
async def test_what_cannot_be_sent_harms_nothing(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours, peers = MessageChannel(a, JSON, max_size=100), MessageChannel(b, JSON)
        with pytest.raises(MessageTooLarge, match="has 124 bytes, and the max_size .* is 100"):
            await ours.send(Say("x" * 100))
        with pytest.raises(MessageTooLarge):
            await ours.send(Say("\N{SNOWMAN}" * 30))
        with pytest.raises(TypeError, match="unsupported"):
            await ours.send(Say(object()))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="surrogates"):
            await ours.send(Say("\ud800"))
        await ours.send(Say("all is well"))
        assert await peers.receive() == Say("all is well")
        assert ours.statistics().sent == 1


async def test_a_datagram_that_does_not_fit() -> None:
    async with quic_pair() as (a, b):
        ours, peers = MessageChannel(a.datagrams, JSON), MessageChannel(b.datagrams, JSON)
        with pytest.raises(trio_wt.DatagramTooLarge):
            await ours.send(Say("x" * 70_000))
        await ours.send(Say("x"))
        assert await peers.receive() == Say("x")


async def test_a_codec_that_gives_something_else() -> None:
    class Wrong:
        def encode(self, message: str, /) -> Any:
            return json

        def decode(self, data: bytes | str, /) -> str:
            return ""

    async with websocket_pair() as (a, _):
        with pytest.raises(
            TypeError, match=r"encode\(\) of .*Wrong must return bytes or str, not module"
        ):
            await MessageChannel(a, Wrong()).send("x")


@pytest.mark.parametrize("kind", ["WebSocket", *STREAMS])
async def test_messages_of_several_tasks_never_mix(kind: str) -> None:
    big = "x" * 200_000
    async with CARRIERS[kind]() as (a, b), trio.open_nursery() as nursery:
        ours, peers = MessageChannel(a, JSON), MessageChannel(b, JSON)
        for n in range(5):
            nursery.start_soon(ours.send, Say(f"{n}{big}"))
        received = [await peers.receive() for _ in range(5)]
        assert {m.text[0] for m in received if isinstance(m, Say)} == set("01234")
        assert all(m == Say(m.text[0] + big) for m in received if isinstance(m, Say))


class Gate(trio.abc.SendStream):
    """Has no room at first."""

    def __init__(self) -> None:
        self.room = trio.Event()
        self.sent = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def wait_send_all_might_not_block(self) -> None:
        await self.room.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_send_cancelled_while_it_waits_for_room_has_sent_nothing() -> None:
    gate = Gate()
    ours = MessageChannel(gate, Upper())
    with trio.move_on_after(1) as scope:
        await ours.send("FIRST")
    assert scope.cancelled_caught
    assert ours.statistics().sent == 0
    gate.room.set()
    await ours.send("SECOND")
    assert gate.sent == frame(b"SECOND")


async def test_a_send_cancelled_while_it_waits_for_its_turn_has_sent_nothing() -> None:
    async with (
        quic_pair() as (a, b),
        stream_pair(a, b) as (x, y),
        trio.open_nursery() as nursery,
    ):
        ours = MessageChannel(x, JSON, max_size=2**24)
        peers = MessageChannel(y, JSON, max_size=2**24)
        big = Say("x" * 5_000_000)
        nursery.start_soon(ours.send, big)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await ours.send(Say("waits for its turn"))
        assert scope.cancelled_caught
        assert await peers.receive() == big
        await ours.send(Say("goes on"))
        assert await peers.receive() == Say("goes on")


async def test_a_send_that_was_cut_off_is_the_last() -> None:
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y):
        ours, peers = MessageChannel(x, JSON, max_size=2**24), MessageChannel(y, JSON)
        with trio.move_on_after(1) as scope:
            await ours.send(Say("x" * 5_000_000))
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError, match="has sent a part of its message"):
            await ours.send(Say("behind it"))
        # The other direction is as it was.
        await peers.send(Say("still here"))
        assert await ours.receive() == Say("still here")
        await ours.aclose()
        await settle()
        with pytest.raises(trio_wt.StreamReset):
            while True:
                await y.receive_some()


# ---- one at a time


@all_carriers
async def test_two_tasks_may_not_receive(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b), trio.open_nursery() as nursery:
        ours, peers = MessageChannel(a, JSON), MessageChannel(b, JSON)
        nursery.start_soon(ours.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ours.receive()
        await peers.send(Say("for the first"))


@all_carriers
async def test_closing_wakes_who_receives(kind: str) -> None:
    async with CARRIERS[kind]() as (a, _), trio.open_nursery() as nursery:
        ours = MessageChannel(a, JSON)

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()


# ---- ends


@pytest.mark.parametrize("kind", ["WebSocket", *STREAMS])
async def test_a_clean_end_ends_iteration(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours, peers = MessageChannel(a, JSON), MessageChannel(b, JSON)
        await peers.send(Say("1"))
        await peers.send(Say("2"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers.aclose)
            assert [message async for message in ours] == [Say("1"), Say("2")]
        with pytest.raises(trio.EndOfChannel):
            await ours.receive()
        with pytest.raises(trio.ClosedResourceError):
            await peers.receive()
        with pytest.raises(trio.ClosedResourceError):
            await peers.send(Say("3"))
        await peers.aclose()


@pytest.mark.parametrize("kind", DATAGRAMS)
async def test_datagrams_end_with_their_connection(kind: str) -> None:
    pair = quic_pair() if kind.startswith("QUIC") else webtransport_pair()
    async with pair as (a, b):  # type: ignore[attr-defined]
        ours, peers = MessageChannel(a.datagrams, JSON), MessageChannel(b.datagrams, JSON)
        await peers.send(Say("1"))
        await settle()
        await b.aclose()
        assert [message async for message in ours] == [Say("1")]


@all_streams
@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\5", b"\0\0\0\5abc", b"\0\0\1\0abcdef"])
async def test_a_stream_that_ends_inside_a_message(kind: str, data: bytes) -> None:
    async with STREAMS[kind]() as (a, b):
        ours = MessageChannel(a, JSON, max_size=50)
        await MessageChannel(b, JSON).send(Say("whole"))
        await b.send_all(data)
        await b.send_eof()
        assert await ours.receive() == Say("whole")
        if data.startswith(b"\0\0\1\0"):
            with pytest.raises(InvalidMessage):
                await ours.receive()
        for _ in range(2):
            with pytest.raises(IncompleteMessage) as incomplete:
                await ours.receive()
            assert incomplete.value.received == len(data)
            assert isinstance(incomplete.value, trio_wt.IncompleteRead)
            assert str(incomplete.value) == (
                f"the stream ended inside a message, of which {len(data)} bytes have come"
            )


async def test_other_ends_come_as_the_carrier_tells_them() -> None:
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y):
        y.reset(7)
        await settle()
        with pytest.raises(trio_wt.StreamReset):
            await MessageChannel(x, JSON).receive()
    async with websocket_pair() as (a_ws, b_ws):
        await b_ws.close(4000)
        with pytest.raises(trio_wt.ConnectionClosedError):
            await MessageChannel(a_ws, JSON).receive()


@pytest.mark.parametrize("kind", ["WebSocket", "QUIC stream", "memory stream", "QUIC datagrams"])
async def test_closing_that_is_cancelled_closes_all_the_same(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours = MessageChannel(a, JSON)
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await (a.send_all(b"x") if isinstance(a, trio.abc.SendStream) else a.send(b"x"))
        if kind != "QUIC datagrams":
            with pytest.raises(trio.EndOfChannel):
                await MessageChannel(b, JSON).receive()


async def test_closing_while_another_task_sends() -> None:
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y), trio.open_nursery() as nursery:
        ours = MessageChannel(x, JSON, max_size=2**24)

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.send(Say("x" * 5_000_000))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        with pytest.raises(trio_wt.StreamReset):
            await MessageChannel(y, JSON, max_size=2**24).receive()


async def test_closing_what_the_peer_has_broken() -> None:
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y):
        y.stop(5)
        await settle()
        await MessageChannel(x, JSON).aclose()
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y):
        await b.aclose(3)
        await settle()
        await MessageChannel(x, JSON).aclose()


# ---- its block


@all_carriers
async def test_leaving_the_block_closes(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        async with trio.open_nursery() as nursery:
            async with MessageChannel(a, JSON) as ours:
                await ours.send(Say("x"))
                if kind in DATAGRAMS:
                    assert await MessageChannel(b, JSON).receive() == Say("x")

                async def listen() -> None:
                    assert [m async for m in MessageChannel(b, JSON)] == [Say("x")]

                if kind not in DATAGRAMS:
                    nursery.start_soon(listen)
        with pytest.raises(trio.ClosedResourceError):
            await ours.send(Say("x"))


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("how", ["raise", "cancel", "abort"])
async def test_a_block_that_fails_is_told_to_the_peer(kind: str, how: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours = MessageChannel(a, JSON)
        with trio.CancelScope() as scope:
            try:
                async with ours:
                    if how == "raise":
                        raise KeyError
                    if how == "abort":
                        raise trio_wt.StreamAbort(99)
                    scope.cancel()
                    await trio.sleep_forever()
            except (KeyError, trio_wt.StreamAbort):
                pass
        with pytest.raises(trio.ClosedResourceError, match="block has ended"):
            await ours.send(Say("x"))
        if kind == "WebSocket":
            with pytest.raises(trio_wt.ConnectionClosedError) as closed:
                await b.receive()
            assert closed.value.code == 1011
        elif kind == "memory stream":
            assert await b.receive_some() == b""
        elif kind in STREAMS:
            with pytest.raises(trio_wt.StreamReset) as reset:
                await b.receive_some()
            assert (reset.value.code == 99) is (how == "abort")
        else:
            with pytest.raises(trio.ClosedResourceError):
                await a.receive()


async def test_a_bad_message_that_ends_the_block() -> None:
    async with quic_pair() as (a, b), stream_pair(a, b) as (x, y):
        await y.send_all(frame(BAD))
        with pytest.raises(InvalidMessage):
            async with MessageChannel(x, JSON, invalid="close") as ours:
                await ours.receive()
        with pytest.raises(trio_wt.StreamReset) as reset:
            await y.receive_some()
        assert reset.value.code == 1007


# ---- mistakes


async def test_mistakes_are_told_when_the_channel_is_made() -> None:
    stream, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TypeError, match="a WebSocket, a stream or datagrams, not object"):
        MessageChannel(object(), JSON)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_size is at least 1, not 0"):
        MessageChannel(stream, JSON, max_size=0)
    with pytest.raises(ValueError, match="max_size is at most 4294967295 on a stream"):
        MessageChannel(stream, JSON, max_size=2**32)
    with pytest.raises(ValueError, match='"raise" or "close", not \'ignore\''):
        MessageChannel(stream, JSON, invalid="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0 to 2\\^32 - 1"):
        MessageChannel(stream, JSON, invalid="close", invalid_code=-1)
    async with websocket_pair() as (ws, _):
        with pytest.raises(ValueError, match="1005 is no code"):
            MessageChannel(ws, JSON, invalid="close", invalid_code=1005)


# ---- checkpoints, and cancellation at each of them


@all_carriers
async def test_everything_is_a_checkpoint(kind: str) -> None:
    async with CARRIERS[kind]() as (a, b):
        ours, peers = MessageChannel(a, JSON, max_size=100), MessageChannel(b, JSON)
        for _ in range(3):
            await peers.send(Say("x"))
        await send_raw(b, BAD)
        await settle()
        with trio.testing.assert_checkpoints():
            await ours.send(Say("x"))
        for _ in range(3):
            with trio.testing.assert_checkpoints():
                await ours.receive()
        for failing in (ours.receive, partial(ours.send, Say("x" * 100))):
            with trio.testing.assert_checkpoints(), pytest.raises(ValueError):
                await failing()
        with trio.testing.assert_checkpoints():
            await ours.aclose()
        with trio.testing.assert_checkpoints():
            await ours.aclose()
        for failing in (ours.receive, partial(ours.send, Say("x"))):
            with trio.testing.assert_checkpoints(), pytest.raises(trio.ClosedResourceError):
                await failing()


async def send_slowly(carrier: Any, messages: list[Both]) -> None:
    """Messages one by one, and frames in three pieces."""
    for message in messages:
        await trio.sleep(1)
        if isinstance(carrier, trio.abc.SendStream):
            data = frame(str(JSON.encode(message)).encode())
            half = len(data) // 2
            await carrier.send_all(data[:2])
            await trio.sleep(1)
            await carrier.send_all(data[2:half])
            await trio.sleep(1)
            await carrier.send_all(data[half:])
        else:
            await MessageChannel(carrier, JSON).send(message)


async def send_at_once(carrier: Any, messages: list[Both]) -> None:
    """Messages that arrive together."""
    if isinstance(carrier, trio.abc.SendStream):
        await carrier.send_all(b"".join(frame(str(JSON.encode(m)).encode()) for m in messages))
    else:
        for message in messages:
            await MessageChannel(carrier, JSON).send(message)


@all_carriers
@pytest.mark.parametrize("send", [send_slowly, send_at_once])
def test_a_cancelled_receive_loses_nothing(kind: str, send: Any) -> None:
    expected = [Say("1"), Move(2, 2), Say("x" * 900), Say("4")]

    async def cancelled_at(step: int) -> bool:
        instrument = CancelAtStep(step)
        received: list[Both] = []
        async with CARRIERS[kind]() as (a, b), trio.open_nursery() as nursery:
            ours = MessageChannel(a, JSON)
            nursery.start_soon(send, b, expected)
            await settle()
            async with instrument.applied():
                while len(received) < len(expected):
                    received.append(await ours.receive())
            with trio.fail_after(60):
                while len(received) < len(expected):
                    received.append(await ours.receive())
        assert received == expected
        return instrument.scope.cancelled_caught

    assert at_every_step(cancelled_at) > 2


@pytest.mark.parametrize("kind", ["WebSocket", *STREAMS])
def test_a_cancelled_send_never_breaks_the_framing(kind: str) -> None:
    big = Say("b" * 400_000)

    async def cancelled_at(step: int) -> bool:
        instrument = CancelAtStep(step)
        received: list[Both] = []

        async def listen() -> None:
            await trio.sleep(1)
            try:
                async for message in MessageChannel(b, JSON):
                    received.append(message)
            except (trio.BrokenResourceError, trio_wt.IncompleteRead):
                received.append(Say("cut off"))

        async with CARRIERS[kind]() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            ours = MessageChannel(a, JSON)
            await ours.send(Say("before"))
            async with instrument.applied():
                await ours.send(big)
            was_cut = False
            try:
                await ours.send(Say("after"))
            except trio.BrokenResourceError:
                was_cut = True
            await ours.aclose()
        cancelled = instrument.scope.cancelled_caught
        if was_cut:
            assert cancelled and kind != "WebSocket"
            # What had come of it before may be lost with the stream's reset.
            assert received in ([Say("before"), Say("cut off")], [Say("before")], [Say("cut off")])
        else:
            assert received == [Say("before"), *([] if cancelled else [big]), Say("after")]
        return cancelled

    assert at_every_step(cancelled_at)


# ---- over a real socket


@pytest.mark.real_clock
async def test_a_socket() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async for message in MessageChannel(stream, JSON):
            await MessageChannel(stream, JSON).send(message)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with MessageChannel(await trio.open_tcp_stream("127.0.0.1", port), JSON) as ours:
            for message in (Say("x" * 500_000), Move(1, 2)):
                nursery.start_soon(ours.send, message)
                assert await ours.receive() == message
        nursery.cancel_scope.cancel()


# ---- codecs that are none


@pytest.mark.parametrize("codec", ["json", b"json", None, JsonCodec, 7, object()])
async def test_what_is_no_codec(codec: Any) -> None:
    async with websocket_pair() as (client, _):
        with pytest.raises(TypeError, match="no codec: give an object with encode and decode"):
            MessageChannel(client, codec)
        await client.send("the session is unharmed")


async def test_half_a_codec() -> None:
    class Encoder:
        def encode(self, message: str) -> str:
            return message

    async with websocket_pair() as (client, _):
        with pytest.raises(TypeError, match="no codec"):
            MessageChannel(client, Encoder())  # type: ignore[arg-type]
