"""Several sessions on one connection over bad networks: many streams at once, and sessions that come and go, at random."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest
import trio
import trio.testing

from tests.test_quic_soak import CANCELLED, FAILED, NETWORKS, Failure, Soak
from tests.webtransport_pairs import (
    Visitors,
    check_credit,
    check_nothing_is_held,
    connect,
    serving,
    session_pair,
    settle,
)
from trio_wt import (
    ConnectionClosed,
    HandshakeFailed,
    ReceiveStream,
    SendStream,
    Stream,
    StreamAbort,
    StreamReset,
    WebTransportConnection,
    WebTransportSession,
)
from trio_wt.testing import Network

SETTINGS = {
    "idle_timeout": 1000,
    "max_streams": 6,
    "max_receive_streams": 4,
    "stream_window": 3000,
    "max_stream_window": 20_000,
    "session_window": 8000,
    "max_session_window": 30_000,
    "connection_window": 15_000,
    "max_connection_window": 60_000,
    "send_buffer": 8000,
    "cancelled_code": CANCELLED,
    "failed_code": FAILED,
}


async def check_transfers(a: WebTransportSession, b: WebTransportSession) -> None:
    """Neither credit nor streams have been lost on the way."""
    for _ in range(8):
        async with a.open_stream() as stream, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def answer() -> None:
                async with await b.incoming_streams.receive() as theirs:
                    await theirs.send_all(await theirs.receive_all())

            await stream.send_all(bytes(11_000), eof=True)
            assert await stream.receive_all() == bytes(11_000)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(2))
async def test_soak(seed: int, kind: str) -> None:
    network, visitors = Network(seed=seed, **NETWORKS[kind]), Visitors()  # type: ignore[arg-type]
    async with (
        serving(visitors, network, **SETTINGS),
        connect(network, **SETTINGS) as connection,
        session_pair(connection, visitors, handshake_timeout=60) as one,
        session_pair(connection, visitors, handshake_timeout=60) as two,
    ):
        async with trio.open_nursery() as nursery:
            for number, (ours, theirs) in enumerate((one, two)):
                soak = Soak(10 * seed + number)
                nursery.start_soon(soak.side, ours, "client", "server")
                nursery.start_soon(soak.side, theirs, "server", "client")
        await connection.ping()
        await trio.sleep(100)
        for ours, theirs in (one, two):
            for session in (ours, theirs):
                assert session.closed is None
                figures = session.statistics()
                assert figures.open_streams == figures.unread_bytes == figures.unsent_bytes == 0
            check_credit(ours, theirs)
            await check_transfers(ours, theirs)
            await check_transfers(theirs, ours)
        assert connection.closed is None


ENDS = ["return", "close", "raise", "cancel", "theirs", "their failure", "leave it", "refused"]


class Traffic:
    """What goes on in sessions, until somebody ends them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # How sessions are to end on the server's side, by path, and how they did on both.
        self.plans: dict[str, str] = {}
        self.seen: Counter[tuple[str, str, int]] = Counter()

    async def send(self, session: WebTransportSession) -> None:
        """Streams of all kinds, one after the other."""
        rng = self.random
        while True:
            await trio.sleep(rng.random() * 0.05)
            if rng.random() < 0.3:
                session.datagrams.send_nowait(rng.randbytes(rng.randrange(1000)))
                continue
            opener = session.open_stream if rng.random() < 0.5 else session.open_send_stream
            with contextlib.suppress(StreamReset):
                stream: SendStream
                async with opener() as stream:  # type: ignore[attr-defined]
                    await stream.send_all(bytes(rng.choice([0, 10, 2000, 20_000])))
                    if rng.random() < 0.3:
                        raise StreamAbort(rng.randrange(1000))
                    if isinstance(stream, Stream) and rng.random() < 0.5:
                        await stream.send_eof()
                        with trio.move_on_after(1):
                            await stream.receive_all()

    async def take(self, session: WebTransportSession) -> None:
        """Take some of what comes, and leave some."""
        rng = self.random

        async def read(stream: ReceiveStream) -> None:
            with contextlib.suppress(StreamReset):
                async with stream:
                    with trio.move_on_after(rng.choice([0.01, 1])):
                        await stream.receive_all()

        async def each(streams: trio.abc.ReceiveChannel[ReceiveStream]) -> None:
            async for stream in streams:
                nursery.start_soon(read, stream)
                if rng.random() < 0.2:
                    await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(each, session.incoming_streams)
            nursery.start_soon(each, session.incoming_receive_streams)

    async def use(self, session: WebTransportSession, how: str) -> None:
        """Until its end, which comes of this side sooner or later if it is to."""
        rng = self.random
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.send, session)
                nursery.start_soon(self.take, session)
                if how == "wait":
                    await session.wait_closed()
                else:
                    await trio.sleep(rng.random() * 1.5)
                    if how == "close":
                        await session.aclose(7, "seven", graceful=rng.random() < 0.5)
                    elif how == "raise":
                        raise Failure
                    elif how == "cancel":
                        session.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        except* (trio.ClosedResourceError, ConnectionClosed):
            pass

    async def handler(self, session: WebTransportSession) -> None:
        plan = self.plans[session.request.path]
        how = {"theirs": "close", "their failure": "raise", "leave it": "return"}.get(plan, "wait")
        try:
            await self.use(session, how)
        finally:
            self.note("server", session, plan)

    async def visit(self, connection: WebTransportConnection, number: int) -> None:
        plan = self.random.choice(ENDS)
        path = f"/{number}"
        self.plans[path] = plan
        how = plan if plan in ("return", "close", "raise", "cancel") else "wait"
        origin = "https://evil.example" if plan == "refused" else None
        try:
            with trio.move_on_after(100) as scope:
                async with connection.open_session(
                    path, origin=origin, handshake_timeout=50
                ) as session:
                    await self.use(session, how)
            assert not scope.cancelled_caught
            assert plan != "refused"
            self.note("client", session, plan)
        except* HandshakeFailed:
            assert plan == "refused"
        except* Failure:
            assert plan == "raise"

    def note(self, side: str, session: WebTransportSession, plan: str) -> None:
        if session.closed is not None:
            self.seen[side, plan, session.closed.code] += 1


@pytest.mark.parametrize("kind", ["good", "bad", "narrow"])
@pytest.mark.parametrize("seed", range(2))
async def test_sessions_come_and_go(seed: int, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    network = Network(seed=seed, **NETWORKS[kind])  # type: ignore[arg-type]
    traffic, visitors = Traffic(seed), Visitors()

    async def handler(session: WebTransportSession) -> None:
        if session.request.path == "/stays":
            await visitors(session)
        else:
            await traffic.handler(session)

    # Handlers may outlast what their clients see of their sessions.
    settings = {**SETTINGS, "max_sessions": 30, "close_timeout": 2}
    async with serving(handler, network, **settings), connect(network, **settings) as connection:
        async with session_pair(connection, visitors, "/stays", handshake_timeout=60) as stays:
            limiter = trio.CapacityLimiter(4)

            async def one(number: int) -> None:
                async with limiter:
                    await traffic.visit(connection, number)

            async with trio.open_nursery() as nursery:
                for number in range(24):
                    nursery.start_soon(one, number)
            # The last ones' handlers, and what is under way.
            await trio.sleep(60)
            check_credit(*stays)
            await check_transfers(*stays)
            await check_transfers(*reversed(stays))
            server = stays[1].connection
            assert connection.open_sessions == server.open_sessions == 1
        await settle()
        await trio.sleep(10)
        assert connection.closed is server.closed is None
        check_nothing_is_held(connection)
        check_nothing_is_held(server)
    codes = {(side, plan): code for side, plan, code in traffic.seen}
    expected = {
        ("server", "close"): 7,
        ("server", "cancel"): CANCELLED,
        ("server", "raise"): FAILED,
        ("client", "theirs"): 7,
        ("client", "their failure"): FAILED,
        ("client", "leave it"): 0,
        ("server", "return"): 0,
    }
    for key, code in codes.items():
        assert code == expected.get(key, code), key
    assert len(codes) > 5
    for record in caplog.records:
        # No failure but those that were meant.
        assert record.exc_info is not None
        assert "Failure" in repr(record.exc_info[1])
