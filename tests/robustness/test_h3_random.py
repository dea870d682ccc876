"""What nobody has thought of: streams, frames, capsules and datagrams at random, from clients and from servers."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    CONNECT_SETTINGS,
    H3Client,
    H3Server,
    capsule,
    content,
    head,
    record,
    request_fields,
    section,
    session_fields,
    settings_frame,
    stream_head,
    websocket_fields,
)
from tests.robustness.h3_target import attacked_h3_client, attacked_h3_server, echo
from tests.robustness.quic_peer import frame, varint

INTERNAL_ERRORS = (0x01, 0x102)
BOLD = [1, 2, 3, 4, 5, 6, 7, 0x0D, 0x41, 0xF0700, 0xF0701]
CAPSULES = [
    *(0, 0x2843, 0x78AE, 0x190B4D3D, 0x190B4D3E, 0x190B4D3F, 0x190B4D40, 0x190B4D41),
    *(0x190B4D42, 0x190B4D43, 0x190B4D44),
]
GREASE = 0x1F * 6 + 0x21


class Junk:
    """Bytes that are mostly right.

    Args:
        rng: where chance comes from.
        boldness: how often they are not.
        server: they are a server's.
    """

    def __init__(self, rng: random.Random, boldness: float, *, server: bool) -> None:
        self.rng = rng
        self.boldness = boldness
        self.server = server

    @property
    def is_bold(self) -> bool:
        return self.rng.random() < self.boldness

    def number(self) -> int:
        rng = self.rng
        return rng.choice([rng.randrange(9), rng.randrange(300), 2 ** rng.randrange(62), 2**62 - 1])

    def length(self) -> int | None:
        return self.number() if self.is_bold else None

    def bytes(self) -> bytes:
        rng = self.rng
        return rng.randbytes(rng.choice([0, 1, 2, 4, 8, rng.randrange(100), rng.randrange(3000)]))

    def head(self) -> bytes:
        rng = self.rng
        if self.server:
            fields = [(b":status", rng.choice([b"200", b"103", b"403"]))]
        else:
            fields = rng.choice([request_fields, session_fields, websocket_fields])()
        if self.is_bold:
            fields.insert(rng.randrange(len(fields) + 1), (self.bytes()[:20], self.bytes()))
        if self.is_bold:
            return record(1, section(fields)[: rng.randrange(90)] + self.bytes())
        return head(fields)

    def capsule(self) -> bytes:
        rng = self.rng
        if not self.is_bold:
            kind = rng.choice([0x17, GREASE, 0x78AE, 0x190B4D41, 0])
            payload = {0x78AE: b"", 0x190B4D41: varint(rng.randrange(99))}.get(kind, self.bytes())
            return capsule(kind, payload)
        payload = rng.choice([self.bytes(), varint(self.number()), bytes(4) + b"bye"])
        return capsule(rng.choice(CAPSULES), payload, length=self.length())

    def frame(self) -> bytes:
        rng = self.rng
        if not self.is_bold:
            return rng.choice(
                [
                    content(b"".join(self.capsule() for _ in range(rng.randrange(4)))),
                    content(self.capsule())[: rng.randrange(1, 40)] if self.is_bold else b"",
                    record(GREASE, self.bytes()),
                ]
            )
        kind = rng.choice(BOLD)
        if kind == 1:
            return self.head()
        payload = self.bytes()
        if kind == 4:
            payload = settings_frame({self.number(): self.number() for _ in range(4)})[2:]
        elif rng.random() < 0.5:
            payload = varint(self.number())
        return record(kind, payload, length=self.length())

    def stream(self, *, uni: bool) -> bytes:
        rng = self.rng
        if rng.random() < 0.5 or (self.server and not uni and not self.is_bold):
            session_id = (
                rng.choice([1, 4 * self.number()]) if self.is_bold else 4 * rng.randrange(3)
            )
            return stream_head(session_id & 2**62 - 1, uni=uni) + self.bytes()
        if uni:
            kind = rng.choice([0, 1, 2, 3, 0x40, 2**30]) if self.is_bold else GREASE
            return varint(kind) + b"".join(self.frame() for _ in range(rng.randrange(4)))
        return self.head() + b"".join(self.frame() for _ in range(rng.randrange(4)))


async def play(peer: H3Client | H3Server, junk: Junk, steps: int) -> int:
    """Do anything; for how many steps that went well."""
    rng = junk.rng
    known = [0]
    for step in range(steps):
        if peer.end is not None:
            return step
        with suppress(ValueError, RuntimeError, AssertionError):
            action = rng.randrange(10)
            stream_id = rng.choice(known)
            if action < 4:
                uni = rng.random() < 0.5
                known.append(peer.open(junk.stream(uni=uni), uni=uni, fin=rng.random() < 0.2))
            elif action < 6:
                data = junk.bytes() if stream_id & 2 else junk.frame()
                peer.tell(stream_id, data, fin=rng.random() < 0.1)
            elif action == 6:
                peer.tell(0, content(junk.capsule()), fin=rng.random() < 0.03)
            elif action == 7:
                payload = varint(rng.randrange(9)) + junk.bytes()[:900]
                payload = payload[: rng.randrange(9)] if junk.is_bold else payload
                peer.say(frame(0x31, len(payload), payload))
            elif stream_id or junk.is_bold:
                (peer.reset if action == 8 else peer.stop)(stream_id, junk.number())
        if rng.random() < 0.3:
            await trio.sleep(rng.choice([0.0001, 0.001, 0.01]))
    await trio.sleep(0.1)
    return steps


@pytest.mark.parametrize("boldness", [0, 0.01, 0.05, 0.3])
async def test_clients(boldness: float) -> None:
    rng = random.Random(boldness)
    async with attacked_h3_server(echo, memory=None, patience=8) as target:
        went = 0
        for _ in range(12):
            peer = await target.introduced()
            await peer.open_session()
            went += await play(peer, Junk(rng, boldness, server=False), 150)
            if peer.end is not None:
                assert peer.end.error_code not in INTERNAL_ERRORS, peer.end
            elif not boldness:
                await peer.still_served()
            peer.leave()
        assert went > (1700 if not boldness else 0.5 / boldness)


@pytest.mark.parametrize("boldness", [0, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
async def test_servers(seed: int, boldness: float) -> None:
    rng = random.Random(seed)
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control(CONNECT_SETTINGS)

        async def serve() -> None:
            await peer.accept()
            went = await play(peer, Junk(rng, boldness, server=True), 150)
            assert boldness or went == 150
            if peer.end is None:
                peer.say(frame(0x1D, 0x100, 0))
            else:
                assert peer.end.error_code not in INTERNAL_ERRORS, peer.end

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with suppress(trio_wt.HandshakeFailed):
                async with connection.open_session("/") as session:
                    async with trio.open_nursery() as inner:

                        async def take(channel: object) -> None:
                            with suppress(trio_wt.ConnectionClosed):
                                async for taken in channel:  # type: ignore[attr-defined]
                                    with suppress(trio_wt.StreamReset, trio_wt.ConnectionClosed):
                                        async with taken:
                                            with trio.move_on_after(0.05):
                                                await taken.receive_some()

                        inner.start_soon(take, session.incoming_streams)
                        inner.start_soon(take, session.incoming_receive_streams)
                        await session.wait_closed()
                        inner.cancel_scope.cancel()
                del session, inner
