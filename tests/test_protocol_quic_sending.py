"""What an application may send: limits, order of service, datagrams, and figures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import Link, Packet, Side, both_roads
from tests.quic_frames import frame, stream_frame
from trio_wt._protocol.quic import EndKind

DATA = bytes(range(251)) * 400  # 100,400 bytes

STREAM, DATAGRAM = 0x08, 0x30


def fields(packets: list[Packet], kind: int) -> list[tuple[Any, ...]]:
    return [each[1:] for packet in packets for each in packet.frames if each[0] == kind]


# ---- how much may be sent


@both_roads
def test_how_many_streams_may_be_opened(straight: bool) -> None:
    link = Link(server={"max_streams": 3, "max_receive_streams": 2}, straight=straight)
    engine = link.client.engine
    for unidirectional, limit in ((False, 3), (True, 2)):
        for count in range(limit, 0, -1):
            assert engine.openable(unidirectional=unidirectional) == count
            link.client.send(link.client.open(unidirectional=unidirectional), b"x")
        assert engine.openable(unidirectional=unidirectional) == 0
    assert link.server.engine.openable(unidirectional=False) == 128
    assert link.server.engine.openable(unidirectional=True) == 128


@both_roads
def test_a_stream_beyond_the_limit_waits(straight: bool) -> None:
    """Applications are to look at `openable` first; who does not is no harm to the connection."""
    link = Link(max_receive_streams=1, straight=straight)
    first, second = (link.client.open(unidirectional=True) for _ in range(2))
    assert link.client.engine.openable(unidirectional=True) == -1
    link.client.send(second, b"waits", fin=True)
    link.client.send(first, b"data")
    link.run(1)
    assert link.server.data == {first: b"data"}
    link.client.send(first, fin=True)
    link.run(1)
    assert link.server.data == {first: b"data", second: b"waits"}
    assert link.server.end is None


@both_roads
def test_a_stream_makes_room_for_another_once_the_application_released_it(straight: bool) -> None:
    link = Link(server={"max_streams": 1, "max_receive_streams": 1}, straight=straight)
    link.server.reading = False
    for unidirectional in (True, False):
        stream_id = link.client.open(unidirectional=unidirectional)
        link.client.send(stream_id, b"data", fin=True)
        link.run(1)
        if not unidirectional:
            link.server.send(stream_id, b"answer", fin=True)
            link.run(1)
        assert link.server.engine.open_streams == 0
        assert link.client.engine.openable(unidirectional=unidirectional) == 0
        link.server.read(stream_id)
        link.run(1)
        assert link.client.engine.openable(unidirectional=unidirectional) == 1


@both_roads
def test_a_stream_that_is_released_early_makes_no_room_before_it_is_over(straight: bool) -> None:
    link = Link(server={"max_receive_streams": 1}, straight=straight)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.run(1)
    link.server.engine.release(stream_id)
    link.server.touched = True
    link.run(1)
    assert link.client.engine.openable(unidirectional=True) == 0
    link.client.send(stream_id, fin=True)
    link.run(1)
    assert link.client.engine.openable(unidirectional=True) == 1


@both_roads
@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("unidirectional", [True, False])
def test_streams_one_after_another_never_run_out(
    limit: int, unidirectional: bool, straight: bool
) -> None:
    link = Link(max_streams=limit, max_receive_streams=limit, straight=straight)
    for number in range(40):
        link.run(5, until=lambda: link.client.engine.openable(unidirectional=unidirectional) > 0)
        stream_id = link.client.open(unidirectional=unidirectional)
        link.transfer(link.client, stream_id, b"%d" % number)
        if not unidirectional:
            link.server.send(stream_id, b"done", fin=True)
    link.run(1)
    # Room is announced when there is more of it than the peer has left.
    assert limit / 2 <= link.client.engine.openable(unidirectional=unidirectional) <= limit
    assert link.client.engine.open_streams == link.server.engine.open_streams == 0


@both_roads
def test_bytes_that_were_not_sent_yet(straight: bool) -> None:
    link = Link(server={"stream_window": 10_000}, straight=straight)
    link.server.reading = False
    stream_id = link.client.open()
    engine = link.client.engine
    assert engine.unsent(stream_id) == 0
    link.client.send(stream_id, bytes(30_000))
    assert engine.unsent(stream_id) == 30_000
    link.run(1)
    assert engine.unsent(stream_id) == 20_000
    link.client.send(stream_id, bytes(5), fin=True)
    assert engine.unsent(stream_id) == 20_005
    link.server.reading = True
    link.server.read(stream_id)
    link.run(1)
    assert engine.unsent(stream_id) == 0


@both_roads
def test_lost_bytes_do_not_count_as_unsent(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open()
    link.drop = lambda sender, data: True
    link.client.send(stream_id, bytes(5000))
    link.run(3)
    assert link.client.engine.unsent(stream_id) == 0


@both_roads
def test_what_is_undelivered(straight: bool) -> None:
    link = Link(straight=straight, delay=0.1)
    engine = link.client.engine
    first, second, third = (link.client.open() for _ in range(3))
    for stream_id in (first, second, third):
        link.client.send(stream_id, b"data")
    assert not engine.undelivered  # nothing was ended
    link.client.send(first, fin=True)
    assert engine.undelivered
    link.run(0.15)
    assert engine.undelivered
    link.run(0.15)
    assert not engine.undelivered
    link.client.reset(second, 1)
    assert engine.undelivered
    link.run(0.3)
    assert not engine.undelivered
    fourth = link.client.open()
    link.client.send(fourth, b"data")
    link.client.reset(fourth, 1, 4)
    assert engine.undelivered
    link.run(0.15)
    assert engine.undelivered
    link.run(0.3)
    assert not engine.undelivered
    link.client.reset(third, 1, 4)  # all of it has arrived
    assert engine.undelivered
    link.run(0.3)
    assert not engine.undelivered


# ---- order of service


@both_roads
def test_streams_take_turns(straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200)
    packets = link.log(link.client)
    stream_ids = [link.client.open() for _ in range(4)]
    for stream_id in stream_ids:
        link.client.send(stream_id, bytes(10_000), fin=True)
    link.run(1)
    order = [stream_id for stream_id, *_ in fields(packets, STREAM)]
    # Nobody is served a second time before all were served.
    first = order[: len(order) // 2]
    counts = {stream_id: first.count(stream_id) for stream_id in stream_ids}
    assert max(counts.values()) - min(counts.values()) <= 2


@both_roads
def test_priorities(straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200)
    packets = link.log(link.client)
    low, usual, high = (link.client.open() for _ in range(3))
    link.client.engine.prioritise(low, -1)
    link.client.engine.prioritise(high, 3)
    for stream_id in (low, usual, high):
        link.client.send(stream_id, bytes(20_000), fin=True)
    link.run(1)
    order = [stream_id for stream_id, *_ in fields(packets, STREAM)]
    assert [each for each, _ in itertools.groupby(order)] == [high, usual, low]


@both_roads
def test_a_priority_may_change(straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200, delay=0.05)
    first, second = link.client.open(), link.client.open()
    for stream_id in (first, second):
        link.client.send(stream_id, bytes(60_000), fin=True)
    link.client.engine.prioritise(first, 1)
    link.flush(link.client)
    assert link.client.engine.unsent(second) == 60_000
    link.client.engine.prioritise(first, 0)
    link.client.engine.prioritise(second, 1)
    packets = link.log(link.client)
    link.run(until=lambda: second in link.server.ended)
    assert fields(packets, STREAM)[0][0] == second
    assert first not in link.server.ended


@both_roads
def test_nothing_is_kept_of_streams_that_are_over(straight: bool) -> None:
    link = Link(straight=straight)
    for number in range(5):
        stream_id = link.client.open()
        link.client.engine.prioritise(stream_id, 1)
        link.transfer(link.client, stream_id, DATA[:5000])
        link.server.engine.prioritise(stream_id, 1)
        link.transfer(link.server, stream_id, DATA[:5000])
    link.run(1)
    for side in link.sides:
        engine = side.engine
        assert not engine._streams
        assert not engine._streams.dirty
        assert not len(engine._active)
        assert not engine._active.priorities
        assert not engine._windows
        assert not engine._resets.awaited
        assert not engine._reliable_resets


# ---- datagrams


@both_roads
@pytest.mark.parametrize("max_packet_size", [1200, 1452, 8952])
def test_the_largest_datagram(max_packet_size: int, straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=max_packet_size)
    largest = link.client.engine.max_datagram
    # A short header of 11 bytes, a tag of 16, a frame's type and length of 3 (RFC 9000 section 17.3, RFC 9221 section 4).
    assert largest == max_packet_size - 11 - 16 - 3
    sizes: list[int] = []
    link.tap = lambda sender, data: sizes.append(len(data)) if sender is link.client else None
    link.client.datagram(bytes(largest))
    link.run(0.1)
    assert link.server.datagrams == [bytes(largest)]
    assert max(sizes) == max_packet_size
    # One byte more fits no packet of this size.
    link.client.datagram(bytes(largest + 1))
    link.run(1)
    assert len(link.server.datagrams) == 1
    assert link.client.engine.datagrams_queued == 1


@pytest.mark.parametrize(("advertised", "largest"), [(20, 18), (64, 62), (100, 97), (1000, 997)])
def test_the_largest_datagram_that_the_peer_takes(
    advertised: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is advertised counts the whole frame (RFC 9221 section 3)."""
    monkeypatch.setattr("trio_wt._protocol.quic.config.MAX_DATAGRAM_FRAME", advertised)
    link = Link()
    assert link.client.engine.max_datagram == largest
    link.client.datagram(bytes(largest))
    link.run(1)
    assert link.server.datagrams == [bytes(largest)]
    assert link.server.end is None
    link.client.datagram(bytes(largest + 1))
    link.run(1)
    assert link.server.end is not None
    assert link.server.end.code == 0x0A


@pytest.mark.parametrize("by_client", [True, False])
def test_a_peer_without_datagrams(by_client: bool) -> None:
    link = Link(**{"client" if by_client else "server": {"datagrams": False}})
    without, other = link.sides if by_client else link.sides[::-1]
    assert other.engine.max_datagram == 0
    assert without.engine.max_datagram > 0
    link.hostile(other, frame(0x30, b"unasked"))
    assert without.end is not None
    assert (without.end.kind, without.end.code) == (EndKind.TRANSPORT, 0x0A)
    assert not without.datagrams


@both_roads
def test_many_datagrams_share_packets(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    sent = [b"%03d" % number for number in range(200)]
    for data in sent:
        link.client.datagram(data)
    assert link.client.engine.datagrams_queued == 200
    link.run(0.1)
    assert link.server.datagrams == sent
    assert len([packet for packet in packets if any(f[0] == DATAGRAM for f in packet.frames)]) == 1
    assert link.client.engine.datagrams_queued == 0


@both_roads
def test_an_empty_datagram(straight: bool) -> None:
    link = Link(straight=straight)
    link.client.datagram(b"")
    link.run(0.1)
    assert link.server.datagrams == [b""]


def test_the_oldest_datagram_makes_room() -> None:
    link = Link(max_datagram_queue=3)
    for number in range(5):
        link.client.engine.queue_datagram(b"%d" % number)
        assert link.client.engine.datagrams_queued == min(number + 1, 3)
    assert link.client.engine.datagrams_dropped == 2
    link.client.touched = True
    link.run(0.1)
    assert link.server.datagrams == [b"2", b"3", b"4"]


@both_roads
def test_datagrams_are_not_sent_again(straight: bool) -> None:
    link = Link(straight=straight)
    link.drop = lambda sender, data: sender is link.client
    link.client.datagram(b"lost")
    link.flush(link.client)
    link.drop = lambda sender, data: False
    link.run(5)
    assert link.server.datagrams == []
    assert link.client.end is None


@both_roads
def test_datagrams_wait_for_the_congestion_window(straight: bool) -> None:
    link = Link(straight=straight, delay=0.1, max_datagram_queue=1000)
    size = link.client.engine.max_datagram
    for _ in range(300):
        link.client.datagram(bytes(size))
    link.flush(link.client)
    assert link.client.engine.bytes_in_flight <= link.client.engine.congestion_window
    assert 0 < link.client.engine.datagrams_queued < 300
    link.run(10)
    assert len(link.server.datagrams) == 300


@both_roads
def test_datagrams_and_streams_share_the_connection(straight: bool) -> None:
    link = Link(straight=straight, delay=0.01)
    stream_id = link.client.open()
    link.client.send(stream_id, DATA * 5, fin=True)
    for number in range(100):
        link.client.datagram(b"%d" % number)
        link.run(0.005)
    link.run(until=lambda: stream_id in link.server.ended)
    link.run(1)
    assert link.server.data[stream_id] == DATA * 5
    assert link.server.datagrams == [b"%d" % number for number in range(100)]


# ---- figures


@both_roads
def test_packets_are_counted(straight: bool) -> None:
    link = Link(straight=straight)
    counted: dict[Side, list[int]] = {side: [] for side in link.sides}
    before = {side: (side.engine.packets_sent, side.engine.bytes_sent) for side in link.sides}
    arrived = {
        side: (side.engine.packets_received, side.engine.bytes_received) for side in link.sides
    }
    link.tap = lambda sender, data: counted[sender].append(len(data))
    link.transfer(link.client, link.client.open(), DATA)
    link.run(1)
    for side in link.sides:
        engine, sizes = side.engine, counted[side]
        assert engine.packets_sent == before[side][0] + len(sizes)
        assert engine.bytes_sent == before[side][1] + sum(sizes)
        other = link.other(side).engine
        assert other.packets_received == arrived[link.other(side)][0] + len(sizes)
        assert other.bytes_received == arrived[link.other(side)][1] + sum(sizes)
        assert engine.packets_lost == 0
        assert engine.bytes_in_flight == 0
        assert engine.congestion_window >= 10 * 1200


# ---- any way


@both_roads
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5000), st.floats(0, 0.01)),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 2**32),
    st.sampled_from([1200, 8952]),
)
def test_bytes_are_those_that_were_sent(
    straight: bool, sends: list[tuple[int, int, float]], seed: int, size: int
) -> None:
    link = Link(
        seed=seed,
        loss=0.1,
        reorder=0.1,
        straight=straight,
        max_packet_size=size,
        stream_window=4000,
    )
    stream_ids = [link.client.open(unidirectional=bool(number & 1)) for number in range(4)]
    wanted = dict.fromkeys(stream_ids, b"")
    for number, size, pause in sends:
        stream_id = stream_ids[number]
        data = link.random.randbytes(size)
        wanted[stream_id] += data
        link.client.send(stream_id, data)
        link.run(pause)
    for stream_id in stream_ids:
        link.client.send(stream_id, fin=True)
    link.run(until=lambda: link.server.ended.issuperset(stream_ids))
    assert {stream_id: link.server.data.get(stream_id, b"") for stream_id in stream_ids} == wanted


def test_a_stream_frame_without_a_length_goes_to_the_end_of_its_packet() -> None:
    link = Link()
    link.hostile(link.client, frame(0x01) + frame(0x08, 0, b"no length"))
    assert link.server.data[0] == b"no length"
    link.hostile(link.client, stream_frame(0, 9, b"", fin=True))
    assert 0 in link.server.ended
