"""The straight road leads where the general one does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import Link, Side, both_roads
from tests.quic_frames import ack_frame, frame, reset_at_frame, stream_frame
from trio_wt._protocol.quic import Engine, established, packets

ROADS = ["straight", "straight in Python", "general"]


@contextmanager
def on(road: str) -> Iterator[bool]:
    """Go one of the ways; whether it is a straight one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_packet", "read_frames", "seal_packet") if "Python" in road else ():
            patch.setattr(established, name, getattr(packets, f"{name}_python"))
        yield road != "general"


def takes_the_straight_road(engine: Engine) -> bool:
    return engine._road is not None


def outcome(link: Link, steps: list[tuple[str, int, int]]) -> list[object]:
    """What two applications are told while these things are done, and how their engines stand at the end."""
    for name, number, size in steps:
        side = link.client if number & 1 else link.server
        if name == "open" and side.engine.openable(unidirectional=bool(size & 1)):
            side.open(unidirectional=bool(size & 1))
        elif name == "datagram":
            side.datagram(bytes(size % side.engine.max_datagram))
        elif name == "ping":
            side.ping(number)
        elif name == "wait":
            # Longer than anything takes here: when exactly a packet goes is not the same on both roads.
            link.run(0.3)
        elif side.engine._streams:
            streams = sorted(side.engine._streams)
            stream_id = streams[number % len(streams)]
            if name in ("send", "fin") and side.engine.is_sendable(stream_id):
                side.send(stream_id, bytes(size), fin=name == "fin")
            elif name == "reset":
                side.reset(stream_id, number, size if size & 2 else 0)
            elif name == "stop":
                side.stop(stream_id, number)
            elif name == "priority":
                side.engine.prioritise(stream_id, size % 3)
    link.run(20)
    return [
        (
            side.end,
            {stream_id: bytes(data) for stream_id, data in side.data.items()},
            side.ended,
            side.resets,
            side.stops,
            side.datagrams,
            side.pings,
            side.engine.datagrams_dropped,
            side.engine.packets_lost,
            side.engine._local_max_data.used,
            side.engine._window.consumed,
            sorted(side.engine._streams),
            [side.engine.openable(unidirectional=flag) for flag in (False, True)],
        )
        for side in link.sides
    ]


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "open", "send", "send", "send", "fin", "reset", "stop", "datagram", "ping"]
            + ["priority", "wait", "wait", "wait"]
        ),
        st.integers(0, 50),
        st.integers(0, 20_000),
    ),
    min_size=5,
    max_size=40,
)


def compare(chosen: list[tuple[str, int, int]], **options: Any) -> None:
    outcomes = []
    for road in ROADS:
        with on(road) as straight:
            link = Link(straight=straight, **options)
            for side in link.sides:
                assert takes_the_straight_road(side.engine) is straight
            outcomes.append(outcome(link, chosen))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([1200, 8952]))
def test_both_roads_have_the_same_outcome(
    chosen: list[tuple[str, int, int]], max_packet_size: int
) -> None:
    compare(chosen, max_packet_size=max_packet_size)


@pytest.mark.parametrize("seed", range(8))
def test_both_roads_have_the_same_outcome_in_the_long_run(seed: int) -> None:
    chance = random.Random(seed)
    names = ["open", "send", "send", "fin", "reset", "stop", "datagram", "ping", "wait", "wait"]
    chosen = [
        (chance.choice(names), chance.randrange(50), chance.choice([10, 500, 20_000]))
        for _ in range(150)
    ]
    compare(
        chosen,
        stream_window=8000 if seed & 2 else 2**18,
        max_streams=4 if seed & 4 else 128,
    )


def test_the_straight_road_is_taken() -> None:
    """Else nothing that is said of it here would be tested."""
    link = Link()
    calls: Counter[str] = Counter()
    for side in link.sides:
        for name in ("receive_datagram", "datagrams_to_send"):
            whole = getattr(side.engine, name)

            def counting(*args: Any, name: str = name, whole: Any = whole) -> Any:
                calls[name] += 1
                return whole(*args)

            setattr(side.engine, name, counting)
    link.transfer(link.client, link.client.open(), bytes(1_000_000))
    assert link.client.engine.packets_sent > 100
    assert calls["receive_datagram"] == 0
    assert calls["datagrams_to_send"] < 30  # credit


FRAMES = {
    "stream": stream_frame(0, 0, b"data"),
    "a stream's end": stream_frame(0, 0, b"data", fin=True),
    "a stream's end alone": stream_frame(0, 0, b"", fin=True),
    "nothing": stream_frame(0, 0, b""),
    "out of order": stream_frame(0, 5, b"data") + stream_frame(0, 0, b"first"),
    "overlapping": stream_frame(0, 0, b"data") + stream_frame(0, 2, b"tail"),
    "again": stream_frame(0, 0, b"data") * 2,
    "behind a gap": stream_frame(0, 8, b"end", fin=True) + stream_frame(0, 0, b"8 bytes!"),
    "a reset": stream_frame(0, 0, b"data") + frame(0x04, 0, 9, 6),
    "data after a reset": frame(0x04, 0, 9, 6) + stream_frame(0, 0, b"data"),
    "a late reset": reset_at_frame(0, 9, 6, 4) + stream_frame(0, 0, b"data"),
    "a datagram": frame(0x31, 3, b"abc") + frame(0x30, b"def"),
    "a ping between": frame(0x01) + stream_frame(0, 0, b"data") + bytes(5) + frame(0x01),
    "frames of every kind": b"".join([
        ack_frame(3, first_range=1),
        frame(0x10, 2**30),
        frame(0x12, 200),
        frame(0x13, 200),
        frame(0x14, 7),
        frame(0x16, 7),
        frame(0x17, 7),
        frame(0x1A, b"8 bytes!"),
        frame(0x1B, b"8 bytes!"),
        stream_frame(2, 0, b"data", fin=True),
        frame(0x15, 0, 7),
    ]),
}  # fmt: skip


def without_reason(parsed: tuple[Any, ...]) -> tuple[Any, ...]:
    """A frame of `parse_frames`; what is said to people about an end may differ."""
    return parsed[:-1] if parsed[0] in (0x1C, 0x1D) else parsed


def story(road: str, payloads: list[bytes]) -> object:
    """What a server is told, and answers, when packets of this come: some of them while its own are under way."""
    with on(road) as straight:
        link = Link(straight=straight)
        link.transfer(link.server, link.server.open(unidirectional=True), bytes(3000))
        stream_id = link.server.open()
        del link.server.events[:]
        sent = link.log(link.server)
        for payload in payloads:
            link.server.send(stream_id, b"under way")
            link.flush(link.server)
            link.hostile(link.client, payload)
        link.run(1)
        engine = link.server.engine
        return (
            [(type(event), vars(event)) for event in link.server.events],
            [[without_reason(each) for each in packet.frames] for packet in sent],
            link.server.end and replace(link.server.end, reason=""),
            engine._local_max_data.used,
            engine.bytes_in_flight,
            engine._loss._pto_count,
            sorted(engine._streams),
            engine.is_undelivered(stream_id),
        )


@pytest.mark.parametrize("name", FRAMES)
def test_frames_mean_the_same(name: str) -> None:
    stories = [story(road, [FRAMES[name]]) for road in ROADS]
    assert stories[0] == stories[1] == stories[2]


small = st.integers(0, 80)
any_frame = st.one_of(
    st.sampled_from([*FRAMES.values(), b"\0\0", b"\x01", b"\x40\x01", b"\x3f"]),
    st.builds(lambda *fields: frame(2, *fields), small, small, st.integers(0, 1), small),
    st.builds(stream_frame, st.integers(0, 9), small, st.binary(max_size=9), fin=st.booleans()),
    st.builds(stream_frame, small, st.just(0), st.binary(max_size=9), fin=st.booleans()),
    st.builds(stream_frame, small, st.just(2**62 - 3), st.binary(max_size=9)),
    st.builds(lambda kind, rest: frame(kind, rest), st.integers(0, 0x40), st.binary(max_size=9)),
    st.builds(lambda data: frame(0x31, len(data), data), st.binary(max_size=9)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(any_frame, min_size=1, max_size=5).map(b"".join), min_size=1, max_size=3))
def test_any_frames_mean_the_same(payloads: list[bytes]) -> None:
    stories = [story(road, payloads) for road in ROADS]
    assert stories[0] == stories[1] == stories[2]


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=30))
def test_any_bytes_mean_the_same(payload: bytes) -> None:
    stories = [story(road, [payload]) for road in ROADS]
    assert stories[0] == stories[1] == stories[2]


@both_roads
def test_packets_that_come_twice_count_once(straight: bool) -> None:
    """RFC 9000 section 12.3."""
    link = Link(straight=straight)
    data = link.client.packet(frame(0x30, b"once"))
    for _ in range(3):
        link.inject(link.server, data)
    assert link.server.datagrams == [b"once"]


@both_roads
def test_only_so_many_ranges_are_acknowledged(straight: bool) -> None:
    link = Link(straight=straight)
    for _ in range(200):
        link.client.packet(frame(0x01))  # lost
        link.hostile(link.client, frame(0x01))
    packets = link.log(link.server)
    link.run(0.1)
    (ack,) = (each for packet in packets for each in packet.frames if each[0] == 2)
    assert len(ack[3]) + 1 <= 64
    assert ack[1] == link.client.engine._packet_number - 1


@both_roads
def test_acknowledgements_end(straight: bool) -> None:
    """Those of acknowledgements are asked for now and then, so that ranges are forgotten, and not for ever."""
    link = Link(straight=straight)
    for _ in range(100):
        link.client.packet(frame(0x01))  # lost
        link.hostile(link.client, frame(0x01))
        link.run(0.01)
    assert len(link.server.engine._spaces[Epoch.ONE_RTT].ack_queue) < 20
    link.run(5)
    sent = link.sent
    link.run(5)
    assert link.sent == sent


@both_roads
def test_packet_numbers_go_far(straight: bool) -> None:
    """Two bytes of each are sent (RFC 9000 section 17.1)."""
    link = Link(straight=straight)
    for side in link.sides:
        side.engine._packet_number = 2**16 - 50
    for number in range(100):
        link.client.ping(number)
        link.server.datagram(b"%d" % number)
        link.run(0.01)
    assert link.client.pings == list(range(100))
    assert len(link.client.datagrams) == 100


@both_roads
def test_the_spin_bit_spins(straight: bool) -> None:
    """RFC 9000 section 17.4: once in a round trip, as the server sends back what the client turns round."""
    link = Link(straight=straight, delay=0.05)
    bits: list[bool] = []
    space = link.server.engine._spaces

    def tap(sender: Side, data: bytes) -> None:
        if sender is link.client and not data[0] & 0x80:
            crypto = link.server.engine._cryptos[list(space)[-1]]
            header, *_ = crypto.recv.decrypt_packet(data, 9, 0)
            bits.append(bool(header[0] & 0x20))

    link.tap = tap
    for number in range(100):
        link.client.ping(number)
        link.run(0.01)
    turns = sum(a != b for a, b in zip(bits, bits[1:], strict=False))
    assert 8 <= turns <= 12
