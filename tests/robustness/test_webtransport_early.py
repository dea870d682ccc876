"""Streams and datagrams of sessions that are not open: early ones are kept, a few and for a while; all others are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    CONNECT_SETTINGS,
    Code,
    H3Client,
    close_capsule,
    content,
    datagram,
    head,
    request_fields,
    session_fields,
    stream_head,
)
from tests.robustness.h3_target import (
    attacked_h3_client,
    attacked_h3_server,
    echo,
    engine_streams,
    no_answer,
)
from tests.robustness.quic_peer import frame, stream, varint

RESET, STOP = 0x04, 0x05
KIB = 2**10
GONE, REJECTED = Code.SESSION_GONE, Code.BUFFERED_STREAM_REJECTED


def refused(peer: H3Client, stream_id: int, code: int) -> bool:
    """Whether we want nothing of a stream, in either direction."""
    return peer.stops.get(stream_id) == code and (
        stream_id & 2 != 0 or peer.resets.get(stream_id) == code
    )


# ---- before the session


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_flood_of_early_streams(uni: bool) -> None:
    """Sixteen are kept; the others are refused at once, so that the client may open more."""
    got: list[bytes] = []

    async def handler(session: trio_wt.WebTransportSession) -> None:
        channel = session.incoming_receive_streams if uni else session.incoming_streams
        async with trio.open_nursery() as nursery:

            async def receive(stream: trio_wt.ReceiveStream) -> None:
                async with stream:
                    got.append(await stream.receive_all())

            async for stream in channel:
                nursery.start_soon(receive, stream)

    async with attacked_h3_server(handler, memory=2) as target:
        peer = await target.introduced()
        session_id = peer.next_id()
        peer.claim(1)
        early = [
            peer.open_session_stream(session_id, b"%d" % n, uni=uni, fin=True) for n in range(16)
        ]
        await trio.sleep(0.1)
        late = [peer.open_session_stream(session_id, b"x", uni=uni) for _ in range(400)]
        await trio.sleep(1)
        for number in late:
            assert refused(peer, number, REJECTED), number
        assert all(number not in peer.stops for number in early)
        assert target.streams(peer) == 16 + (not uni)
        peer.say(stream(session_id, 0, head(session_fields())))
        await trio.sleep(0.1)
        assert sorted(got) == sorted(b"%d" % n for n in range(16))
        assert peer.end is None


async def test_early_streams_come_to_their_session() -> None:
    """Whole, however much of them was there before, and nothing but their own."""
    async with attacked_h3_server(memory=4) as target:
        peer = await target.introduced()
        session_id = peer.next_id()
        peer.claim(9)
        for number in range(1, 9):
            peer.say(stream(4 * number, 0, stream_head(session_id, uni=False) + b"%d" % number))
        await trio.sleep(0.1)
        peer.say(stream(session_id, 0, head(session_fields())))
        await trio.sleep(0.1)
        for number in range(1, 9):
            at = len(stream_head(session_id, uni=False)) + 1
            peer.say(stream(4 * number, at, b"!", fin=True))
        await trio.sleep(0.1)
        assert target.served[0].closed is None
        assert target.streams(peer) == 1


@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_early_streams_whose_session_never_comes(uni: bool, fin: bool) -> None:
    """They are refused when their time is over, and cost a window each until then."""
    async with attacked_h3_server(memory=4) as target:
        peer = await target.introduced()
        streams = [
            peer.open_session_stream(400, bytes(20_000), uni=uni, fin=fin) for _ in range(16)
        ]
        await trio.sleep(4.5)
        assert target.streams(peer) == 16
        await trio.sleep(1)
        assert target.streams(peer) == 0
        if not fin:
            assert all(refused(peer, number, REJECTED) for number in streams)
        # There is room for others again.
        again = peer.open_session_stream(400, uni=uni)
        await trio.sleep(1)
        assert again not in peer.stops
        await peer.still_served()


@pytest.mark.parametrize("timeout", [0.1, 0.3, 0.7, 1.1, 5, 7.3])
async def test_early_streams_expire_at_any_time(timeout: float) -> None:
    """Sums of times have their roundings; the server must not wait for one to be different."""
    async with attacked_h3_server(bystander=False, early_timeout=timeout) as target:
        peer = await target.introduced()
        for number in range(20):
            await trio.sleep(0.0137 * number)
            peer.open_session_stream(400, uni=True)
            peer.say(datagram(400, b"x"))
        await trio.sleep(timeout + 0.1)
        assert target.streams(peer) == 0


async def test_early_streams_with_the_handshake() -> None:
    """They come with the client's last words of QUIC's, before there is anything to serve them; their time is limited too."""

    class Hasty(H3Client):
        def _on_event(self, event: object) -> None:
            super()._on_event(event)  # type: ignore[arg-type]
            if self.handshake is event:
                self.connection.send_stream_data(2, b"\0")
                for number in range(1, 17):
                    self.connection.send_stream_data(4 * number + 2, stream_head(400, uni=True))

    async with attacked_h3_server(bystander=False) as target:
        peer = Hasty(target.network.socket())
        target.peers.append(peer)
        await target.nursery.start(peer.run)
        await peer.shake_hands()
        await trio.sleep(0.1)
        assert target.streams(peer) == 16
        await trio.sleep(6)
        assert target.streams(peer) == 0


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_early_streams_that_are_reset(uni: bool) -> None:
    """They leave their places to others."""
    async with attacked_h3_server(memory=2) as target:
        peer = await target.introduced()
        peer.claim(2**20)
        text = stream_head(400, uni=uni) + b"data"
        for number in range(uni, 100):
            stream_id = peer.own(number, uni=uni)
            peer.say(stream(stream_id, 0, text), frame(RESET, stream_id, 7, len(text)))
            if number % 10 == 0:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert not peer.stops
        assert target.streams(peer) == 0
        assert peer.end is None


@pytest.mark.parametrize("count", [1, 16, 1000])
async def test_early_datagrams(count: int) -> None:
    """Sixteen are kept, in their order."""
    got: list[bytes] = []

    async def handler(session: trio_wt.WebTransportSession) -> None:
        async for data in session.datagrams:
            got.append(data)

    async with attacked_h3_server(handler, memory=2) as target:
        peer = await target.introduced()
        peer.claim(1)
        for number in range(0, count, 20):
            peer.say(*(datagram(0, b"%d" % n) for n in range(number, min(count, number + 20))))
            await trio.sleep(0.0005)
        await trio.sleep(0.1)
        peer.say(stream(0, 0, head(session_fields())))
        await trio.sleep(0.1)
        assert got == [b"%d" % n for n in range(min(count, 16))]


async def test_early_datagrams_that_are_large() -> None:
    async with attacked_h3_server(memory=3) as target:
        peer = await target.introduced()
        for number in range(300):
            peer.say(datagram(400 + 4 * number, bytes(60_000)))
            await trio.sleep(0.001)
        await peer.still_served()


async def test_early_datagrams_of_many_sessions() -> None:
    """They wait for five seconds, and others may then."""
    async with attacked_h3_server(memory=2) as target:
        peer = await target.introduced()
        for number in range(2000):
            peer.say(datagram(4 * number, b"x" * 20))
            if number % 50 == 0:
                await trio.sleep(0.001)
        router = target.driver(peer).upper.router
        await trio.sleep(0.1)
        assert len(router._early_datagrams) == 16
        await trio.sleep(5)
        assert len(router._early_datagrams) == 0
        del router


@pytest.mark.parametrize("status", [403, 404, 405, 429, 501, 431])
async def test_early_streams_whose_session_is_refused(status: int) -> None:
    def on_request(request: trio_wt.Request) -> None:
        if request.path == "/":
            request.reject(status)

    async with attacked_h3_server(on_request=on_request) as target:
        peer = await target.introduced()
        session_id = peer.next_id()
        peer.claim(1)
        early = [peer.open_session_stream(session_id, b"x", uni=n % 2 == 0) for n in range(16)]
        peer.say(datagram(session_id, b"x"))
        await trio.sleep(0.1)
        peer.say(stream(session_id, 0, head(session_fields())))
        await trio.sleep(0.5)
        assert all(refused(peer, number, GONE) for number in early)
        assert target.streams(peer) == 0


async def test_streams_of_a_session_that_ends_before_it_is_open() -> None:
    """The request comes with its end, and with streams."""
    async with attacked_h3_server(echo) as target:
        peer = await target.introduced()
        peer.claim(10)
        request = head(session_fields())
        for ending in (b"", content(close_capsule(7, b"bye")), content(b"\0\2x")):
            first = target.driver(peer).upper._next_request // 4
            session_id = 4 * first
            peer.say(
                stream(session_id + 4, 0, stream_head(session_id, uni=False) + b"x"),
                datagram(session_id, b"x"),
            )
            peer.say(stream(session_id, 0, request + ending, fin=True))
            await trio.sleep(0.2)
            assert target.streams(peer) == 0
            # The next free pair of streams.
            peer.say(stream(session_id + 8, 0, head(request_fields(path=b"/ok")), fin=True))
            await trio.sleep(0.1)
        assert target.sessions(peer) == 0
        assert len(target.ends) == len(target.served)


# ---- after the session


async def gone_session(peer: H3Client) -> int:
    session_id = await peer.open_session()
    peer.tell(session_id, content(close_capsule()), fin=True)
    assert await peer.over(session_id) is None
    return session_id


async def plain_request(peer: H3Client) -> int:
    stream_id = peer.request(request_fields())
    assert await peer.answered(stream_id) == 404
    return stream_id


async def refused_session(peer: H3Client) -> int:
    stream_id = peer.request(session_fields((b"origin", b"null")), fin=False)
    assert await peer.answered(stream_id) == 403
    return stream_id


@pytest.mark.parametrize("of", [gone_session, plain_request, refused_session])
async def test_streams_of_sessions_that_are_gone(
    of: Callable[[H3Client], Awaitable[int]],
) -> None:
    """Hundreds: each is refused, and nothing of it stays."""
    async with attacked_h3_server(memory=3) as target:
        peer = await target.introduced()
        gone = await of(peer)
        for _ in range(30):
            late = [peer.open_session_stream(gone, b"data", uni=n % 2 == 0) for n in range(20)]
            peer.say(datagram(gone, b"data"))
            await trio.sleep(0.05)
            assert all(refused(peer, number, GONE) for number in late)
        assert target.streams(peer) == 0
        assert peer.end is None, peer.end


@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_stream_that_goes_on_though_its_session_is_gone(uni: bool) -> None:
    """What it carries is thrown away; of the connection's window it keeps nothing."""
    async with attacked_h3_server(memory=2) as target:
        peer = await target.introduced()
        gone = await gone_session(peer)
        peer.claim(100)
        prefix = stream_head(gone, uni=uni)
        for number in range(10, 30):
            stream_id = peer.own(number, uni=uni)
            for at in range(0, 200_000, 10_000):
                peer.say(stream(stream_id, at, prefix + bytes(10_000 - len(prefix))))
                await trio.sleep(0.001)
        # Four megabytes have gone through a window of one.
        assert peer.end is None, peer.end
        await trio.sleep(0.1)
        peer.say(frame(0x01))
        await target.still_serves()


async def test_streams_of_an_open_session_that_begin_slowly() -> None:
    """Their heads come byte by byte, on all streams, or not at all."""
    async with attacked_h3_server(no_answer, memory=4) as target:
        peer, session_id = await target.in_session()
        streams = [peer.open(b"\x40", uni=n % 2 == 0) for n in range(200)]
        await trio.sleep(0.1)
        assert target.served[0].statistics().open_streams == 0
        for number in streams[:100]:
            kind = b"\x54" if number & 2 else b"\x41"
            peer.tell(number, kind)
            peer.tell(number, varint(session_id, 8)[:4])
        await trio.sleep(0.1)
        assert target.served[0].statistics().open_streams == 0
        for number in streams[:100]:
            peer.tell(number, varint(session_id, 8)[4:] + b"x")
        await trio.sleep(0.1)
        assert target.served[0].statistics().open_streams == 100
        assert target.served[0].statistics().unread_bytes == 100


@pytest.mark.parametrize("kind", ["nothing", "half a head", "a head and half a session"])
@pytest.mark.parametrize("uni", [False, True], ids=["bidi", "uni"])
async def test_streams_that_end_before_they_have_begun(uni: bool, kind: str) -> None:
    text = {"nothing": b"", "half a head": b"\x40"}.get(kind, stream_head(2**30, uni=uni)[:-1])
    async with attacked_h3_server(no_answer) as target:
        peer, session_id = await target.in_session()
        for _ in range(50):
            stream_id = peer.open(text, uni=uni, fin=True)
        if not uni:
            # It would wait for an answer.
            assert await peer.over(stream_id, 1) is not None
        await trio.sleep(0.1)
        assert target.streams(peer) == 1
        assert engine_streams(target.driver(peer)) <= 8
        assert target.served[0].closed is None


# ---- a server's


async def test_streams_of_a_server_for_sessions_that_are_not() -> None:
    async with attacked_h3_client(memory=4) as (peer, connection):
        peer.open_control(CONNECT_SETTINGS)
        early = [peer.open_session_stream(4 * n, b"x", uni=n % 2 == 0) for n in range(100)]
        for number in range(500):
            peer.say(datagram(4 * number, b"x"))
        await trio.sleep(1)
        kept = [number for number in early if number not in peer.stops]
        assert len(kept) == 16
        assert {code for number, code in peer.stops.items() if number in early} == {REJECTED}
        await trio.sleep(5)
        assert set(peer.stops.values()) == {REJECTED}
        assert set(early) <= set(peer.stops)
        assert connection.closed is None
        assert connection.statistics().open_streams <= 2


async def test_early_streams_of_a_server_come_to_their_session() -> None:
    async with attacked_h3_client(memory=4) as (peer, connection):
        peer.open_control(CONNECT_SETTINGS)
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await peer.requested()
                for number in range(30):
                    peer.open_session_stream(0, b"%d" % number, uni=True, fin=True)
                peer.say(datagram(0, b"early"))
                await trio.sleep(0.1)
                await peer.accept()

            nursery.start_soon(serve)
            async with connection.open_session("/") as session:
                assert await session.datagrams.receive() == b"early"
                got = []
                for _ in range(16):
                    async with await session.incoming_receive_streams.receive() as taken:
                        got.append(await taken.receive_all())
                assert got == [b"%d" % n for n in range(16)]
                with trio.move_on_after(0.1):
                    await session.incoming_receive_streams.receive()
                    raise AssertionError("one too many")
                del session, taken
        peer.tell(0, b"", fin=True)
