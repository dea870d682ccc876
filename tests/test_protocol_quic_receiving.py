"""What a peer may send: windows that grow with consumption, and what is given back."""

from __future__ import annotations

import pytest

from tests.quic_engines import Link, Side, both_roads
from trio_wt._protocol.quic import EndKind


def assert_whole(side: Side) -> None:
    """Nothing of the connection's receive window has been lost: what was used is given back."""
    engine = side.engine
    assert engine._window.consumed == engine._local_max_data.used
    assert engine._window.limit - engine._window.consumed > engine._window.size // 2


def ended(side: Side) -> tuple[EndKind, int] | None:
    return None if side.end is None else (side.end.kind, side.end.code)


# ---- windows


@both_roads
@pytest.mark.parametrize("window", [1000, 1001, 5000])
def test_a_peer_gets_no_further_than_the_stream_s_window(window: int, straight: bool) -> None:
    link = Link(stream_window=window, max_stream_window=window, straight=straight)
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(50_000))
    link.run(2)
    assert len(link.server.data[stream_id]) == window
    # Not before half of it is consumed, it gets any further.
    half = window - window // 2
    link.server.read(stream_id, half - 1)
    link.run(2)
    assert len(link.server.data[stream_id]) == window
    link.server.read(stream_id, 1)
    link.run(2)
    assert len(link.server.data[stream_id]) == window + half


@both_roads
def test_a_peer_gets_no_further_than_the_connection_s_window(straight: bool) -> None:
    link = Link(connection_window=3000, max_connection_window=3000, straight=straight)
    link.server.reading = False
    stream_ids = [link.client.open(unidirectional=bool(number & 1)) for number in range(4)]
    for stream_id in stream_ids:
        link.client.send(stream_id, bytes(2000), fin=True)
    link.run(2)
    assert sum(map(len, link.server.data.values())) == 3000
    for _ in range(10):
        for stream_id in stream_ids:
            link.server.read(stream_id)
        link.run(1)
    assert link.server.ended == set(stream_ids)
    assert_whole(link.server)


@both_roads
def test_credit_counts_that_another_stream_has_consumed(straight: bool) -> None:
    """One stream that nobody reads does not hold up the others, while the connection's window has room."""
    link = Link(
        stream_window=2000,
        max_stream_window=2000,
        connection_window=4000,
        max_connection_window=4000,
        straight=straight,
    )
    link.server.reading = False
    stuck, moving = link.client.open(), link.client.open()
    link.client.send(stuck, bytes(10_000))
    link.run(1)
    link.client.send(moving, bytes(20_000), fin=True)
    for _ in range(100):
        link.server.read(moving)
        link.run(0.1)
    assert moving in link.server.ended
    assert len(link.server.data[stuck]) == 2000


@both_roads
def test_windows_grow_with_a_fast_reader(straight: bool) -> None:
    link = Link(
        stream_window=2**14,
        max_stream_window=2**18,
        connection_window=2**14,
        max_connection_window=2**18,
        delay=0.02,
        straight=straight,
    )
    link.transfer(link.client, link.client.open(), bytes(2_000_000))
    assert link.server.engine._window.size == 2**18
    assert_whole(link.server)


@both_roads
def test_windows_do_not_grow_with_a_slow_reader(straight: bool) -> None:
    link = Link(stream_window=2**14, connection_window=2**14, delay=0.001, straight=straight)
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(100_000), fin=True)
    while stream_id not in link.server.ended:
        link.run(0.05)
        link.server.read(stream_id, 2**13)
    assert link.server.engine._window.size == 2**14
    assert link.server.engine._windows[stream_id].size == 2**14


@both_roads
def test_lost_credit_is_granted_again(straight: bool) -> None:
    link = Link(
        stream_window=1000,
        max_stream_window=1000,
        connection_window=1000,
        max_connection_window=1000,
        straight=straight,
    )
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(3000), fin=True)
    link.run(1)
    link.drop = lambda sender, data: sender is link.server
    link.server.read(stream_id)
    link.flush(link.server)
    link.drop = lambda sender, data: False
    link.run(2)
    assert len(link.server.data[stream_id]) == 2000


@both_roads
def test_the_answer_of_consume_tells_whether_there_is_something_to_announce(straight: bool) -> None:
    link = Link(
        stream_window=1000,
        max_stream_window=1000,
        connection_window=10_000,
        max_connection_window=10_000,
        straight=straight,
    )
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(3000))
    link.run(1)
    engine = link.server.engine
    assert engine.consume(stream_id, 499) is False
    assert engine.flush(link.now) == []
    assert engine.consume(stream_id, 1) is True
    assert engine.has_work
    packets = link.log(link.server)
    link.flush(link.server)
    assert [each for packet in packets for each in packet.frames] == [(0x11, stream_id, 1500)]


@both_roads
def test_no_credit_for_a_stream_that_has_ended(straight: bool) -> None:
    link = Link(stream_window=1000, max_stream_window=1000, straight=straight)
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(900), fin=True)
    link.run(1)
    packets = link.log(link.server)
    link.server.read(stream_id)
    link.run(1)
    assert not any(each[0] == 0x11 for packet in packets for each in packet.frames)


# ---- giving back what is not consumed


@both_roads
@pytest.mark.parametrize("unidirectional", [True, False])
@pytest.mark.parametrize("read", [0, 100, 700])
def test_a_reset_gives_back_what_was_not_read(
    unidirectional: bool, read: int, straight: bool
) -> None:
    link = Link(straight=straight)
    link.server.reading = False
    stream_id = link.client.open(unidirectional=unidirectional)
    link.client.send(stream_id, bytes(700))
    link.run(1)
    link.server.read(stream_id, read)
    assert link.server.engine._window.consumed == read
    link.client.reset(stream_id, 1)
    link.run(1)
    assert link.server.engine._window.consumed == 700
    assert_whole(link.server)


@both_roads
def test_a_reset_gives_back_what_never_arrived(straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200)
    stream_id = link.client.open(unidirectional=True)
    link.drop = lambda sender, data: sender is link.client
    link.client.send(stream_id, bytes(5000))
    link.flush(link.client)
    link.drop = lambda sender, data: False
    link.client.reset(stream_id, 1)
    link.run(2)
    assert link.server.resets == {stream_id: 1}
    assert link.server.engine._local_max_data.used == 5000
    assert_whole(link.server)


@both_roads
def test_what_an_application_discards_is_given_back(straight: bool) -> None:
    link = Link(
        stream_window=1000, max_stream_window=1000, connection_window=2000, straight=straight
    )
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(5000))
    link.run(1)
    engine = link.server.engine
    assert engine.discard(stream_id, 999) is False
    assert engine.discard(stream_id, 1) is True
    link.server.touched = True
    link.run(1)
    # The connection has its credit, but the stream gets no further.
    assert_whole(link.server)
    assert len(link.server.data[stream_id]) == 1000
    link.server.unread[stream_id] = 0
    link.client.reset(stream_id, 1)
    link.run(1)
    assert engine._window.consumed == engine._local_max_data.used == 1000


@both_roads
def test_what_arrives_after_a_stop_is_given_back(straight: bool) -> None:
    link = Link(straight=straight, delay=0.05)
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(5000))
    link.run(until=lambda: stream_id in link.server.data)
    link.server.stop(stream_id, 1)
    link.client.send(stream_id, bytes(5000))
    link.run(1)
    assert link.server.resets == {stream_id: 1}
    assert_whole(link.server)


def test_settling_answers_whether_there_is_something_to_announce() -> None:
    link = Link(connection_window=1000, max_connection_window=1000)
    link.server.reading = False
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(1000))
    link.run(1)
    engine = link.server.engine
    assert engine.highest_received(stream_id) == 1000
    assert engine.settle(stream_id, 1000) is True
    assert engine._window.limit == 2000
    assert engine.settle(stream_id, 0) is False


def test_settling_a_stream_that_was_read_gives_nothing() -> None:
    link = Link()
    stream_id = link.client.open()
    link.client.send(stream_id, bytes(1000))
    link.run(1)
    assert link.server.engine._window.consumed == 1000
    assert link.server.engine.settle(stream_id, 1000) is False
    assert link.server.engine._window.consumed == 1000
