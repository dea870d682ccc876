"""Many streams at once over bad networks, sent on, received from, reset, stopped and cancelled at random."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trio_wt import (
    Connection,
    IncompleteRead,
    ReadLimitExceeded,
    ReceiveStream,
    SendStream,
    Stream,
    StreamAbort,
    StreamReset,
)
from trio_wt.testing import Network, quic_pair

CANCELLED, FAILED, ABORTED, RESET, STOPPED = 901, 902, 903, 904, 905
ENDINGS = ["eof", "eof", "close", "close", "reset", "cancel", "fail", "abort"]
WAYS = ["some", "some", "all", "exactly", "until", "iterate", "stop", "leave", "cancel", "late"]
CODES = {"reset": RESET, "cancel": CANCELLED, "fail": FAILED, "abort": ABORTED}


class Failure(Exception):
    pass


def pattern(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Soak:
    """What both sides do, and what each expects of the other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # By the stream's number and its sender: what is sent, and how that ended.
        self.sent: dict[tuple[int, str], bytes] = {}
        self.ended: dict[tuple[int, str], str] = {}
        # Whether it came to that end.
        self.reached: dict[tuple[int, str], bool] = {}
        self.count = 0
        self.opening = 2
        self.all_opened = trio.Event()

    async def send(self, stream: SendStream, side: str) -> None:
        """Send a pattern, or a part of it, and end in some way."""
        rng = self.random
        key = (stream.stream_id, side)
        self.count += 1
        whole = self.sent[key] = pattern(self.count, rng.choice([0, 1, 100, 3000, 40_000]))
        ending = rng.choice(ENDINGS)
        cut = len(whole) if ending in ("eof", "close") else rng.randrange(len(whole) + 1)
        self.ended[key] = ending
        self.reached[key] = False
        at = 0
        try:
            while at < cut:
                size = rng.choice([1, 100, 5000, 40_000])
                chunk = whole[at : min(at + size, cut)]
                await stream.send_all(chunk if rng.random() < 0.5 else memoryview(chunk))
                at += len(chunk)
                if rng.random() < 0.2:
                    await trio.sleep(rng.random() * 0.05)
        except StreamReset as exc:
            assert exc.remote
            assert exc.code in (0, STOPPED, *CODES.values())
            self.ended[key] = "stopped"
            return
        self.reached[key] = True
        if ending == "eof":
            await stream.send_eof()
        elif ending == "reset":
            stream.reset(RESET)
        elif ending == "cancel":
            stream.cancel_scope.cancel()
            await trio.sleep_forever()
        elif ending == "fail":
            raise Failure
        elif ending == "abort":
            raise StreamAbort(ABORTED)

    async def receive(self, stream: ReceiveStream, peer: str) -> None:
        """Receive in some way, and compare."""
        rng = self.random
        got = b""
        way = rng.choice(WAYS)
        try:
            if way == "late":
                await trio.sleep(rng.random())
            if way == "stop":
                got += await stream.receive_some(10)
                stream.stop(STOPPED)
                return
            if way == "leave":
                got += await stream.receive_some()
                if isinstance(stream, Stream):
                    # Its block goes on, and must not hold what nobody will read.
                    stream.stop(0)
                return
            if way == "cancel":
                got += await stream.receive_some()
                stream.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
            if way == "iterate":
                async for data in stream:
                    got += data
            while True:
                try:
                    with trio.move_on_after(rng.choice([0.001, 0.01, 10])):
                        data = await self.receive_once(stream, way)
                        if not data:
                            break
                        got += data
                except ReadLimitExceeded:
                    got += await stream.receive_some(rng.randrange(1, 5000))
                except IncompleteRead as exc:
                    if not exc.received:
                        break
                    got += await stream.receive_exactly(exc.received)
        except StreamReset as exc:
            assert exc.remote
            if isinstance(stream, Stream):
                # Whichever direction has failed there: its block is left.
                assert exc.code in (*CODES.values(), STOPPED, 0)
            else:
                # A sender that was stopped resets with the code of that (RFC 9000 section 3.5).
                ended = self.ended[stream.stream_id, peer]
                assert exc.code == CODES.get(ended) or ended == "stopped"
        else:
            assert got == self.sent[stream.stream_id, peer]
        finally:
            assert self.sent.get((stream.stream_id, peer), b"").startswith(got)

    async def receive_once(self, stream: ReceiveStream, way: str) -> bytes:
        rng = self.random
        if way == "all":
            return await stream.receive_all(rng.choice([10, 10_000, 100_000]))
        if way == "exactly":
            return await stream.receive_exactly(rng.choice([1, 500, 20_000]))
        if way == "until":
            return await stream.receive_until(bytes([rng.randrange(256)]), 2000)
        return await stream.receive_some(rng.choice([None, 1, 1000]))

    async def use(self, stream: Stream | SendStream | ReceiveStream, side: str, peer: str) -> None:
        """One side of a stream, to whichever directions it has."""
        directions: list[Callable[[], Awaitable[None]]] = []
        if isinstance(stream, SendStream):
            directions.append(lambda: self.send(stream, side))
        if isinstance(stream, ReceiveStream):
            directions.append(lambda: self.receive(stream, peer))
        try:
            async with trio.open_nursery() as nursery:
                for direction in directions:
                    nursery.start_soon(direction)
        except* StreamReset:
            # Stopped in one direction, because the other side's block has failed.
            pass
        finally:
            key = (stream.stream_id, side)
            if trio.current_effective_deadline() <= trio.current_time() and key in self.ended:
                # Cancelled from outside, whatever it was about to do.
                if self.ended[key] not in ("reset", "abort", "fail") or not self.reached[key]:
                    self.ended[key] = "cancel"

    async def side(self, connection: Connection, side: str, peer: str) -> None:
        """Open streams, and take the other side's."""
        rng = self.random

        async def accepted(stream: Stream | ReceiveStream) -> None:
            try:
                async with stream:
                    await self.use(stream, side, peer)
            except* Failure:
                pass

        async def take(streams: trio.abc.ReceiveChannel[object]) -> None:
            async for stream in streams:
                assert isinstance(stream, Stream | ReceiveStream)
                nursery.start_soon(accepted, stream)

        async def open_one() -> None:
            opener = connection.open_stream if rng.random() < 0.6 else connection.open_send_stream
            try:
                with trio.move_on_after(rng.choice([0.05, 1000, 1000])):
                    async with opener(priority=rng.randrange(3)) as stream:  # type: ignore[attr-defined]
                        await self.use(stream, side, peer)
            except* Failure:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, connection.incoming_streams)
            nursery.start_soon(take, connection.incoming_receive_streams)
            async with trio.open_nursery() as opening:
                for _ in range(40):
                    opening.start_soon(open_one)
                    if rng.random() < 0.3:
                        await trio.sleep(rng.random() * 0.1)
            # Let the other side's end too.
            self.opening -= 1
            if not self.opening:
                self.all_opened.set()
            await self.all_opened.wait()
            await trio.sleep(200)
            nursery.cancel_scope.cancel()


NETWORKS = {
    "good": {},
    "lossy": {"loss": 0.05, "delay": (0.001, 0.02)},
    "bad": {"loss": 0.1, "reorder": 0.2, "duplicate": 0.1, "corrupt": 0.02, "delay": (0.01, 0.04)},
    "narrow": {"rate": 200_000.0, "queue": 20_000, "delay": 0.02},
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(2))
async def test_soak(seed: int, kind: str) -> None:
    network = Network(seed=seed, **NETWORKS[kind])  # type: ignore[arg-type]
    soak = Soak(seed)
    async with quic_pair(
        network=network,
        idle_timeout=1000,
        max_streams=6,
        max_receive_streams=4,
        stream_window=3000,
        max_stream_window=20_000,
        connection_window=10_000,
        max_connection_window=50_000,
        send_buffer=8000,
        cancelled_code=CANCELLED,
        failed_code=FAILED,
    ) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(soak.side, client, "client", "server")
            nursery.start_soon(soak.side, server, "server", "client")
        await client.ping()
        await trio.sleep(100)
        for connection in (client, server):
            assert connection.closed is None
            figures = connection.statistics()
            assert figures.open_streams == figures.unread_bytes == figures.unsent_bytes == 0
        # Neither credit nor streams have been lost on the way.
        for a, b in ((client, server), (server, client)):
            for _ in range(20):
                async with a.open_stream() as stream:
                    async with trio.open_nursery() as nursery:

                        @nursery.start_soon
                        async def answer(b: Connection = b) -> None:
                            async with await b.incoming_streams.receive() as theirs:
                                await theirs.send_all(await theirs.receive_all())

                        await stream.send_all(bytes(11_000), eof=True)
                        assert await stream.receive_all() == bytes(11_000)
