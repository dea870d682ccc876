"""Path MTU discovery: what is probed, and when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import Link, Side, both_roads
from tests.quic_frames import frame
from trio_wt._protocol.path_mtu import BASE_SIZE, PathMtu
from trio_wt._protocol.quic import Engine

DATA = bytes(range(251)) * 1000  # 251,000 bytes


def sizes(link: Link, sender: Side) -> Counter[int]:
    """How many packets of which size are sent from now on."""
    counted: Counter[int] = Counter()
    before = link.tap

    def tap(origin: Side, data: bytes) -> None:
        before(origin, data)
        if origin is sender:
            counted[len(data)] += 1

    link.tap = tap
    return counted


def searching(maximum: int) -> PathMtu:
    path = PathMtu(maximum)
    path.wanted = True
    return path


def search(path: PathMtu, carries: int, now: float = 0.0) -> list[int]:
    """Probe until there is a pause; the sizes tried."""
    tried = []
    while (size := path.probe(now)) is not None:
        tried.append(size)
        if size <= carries:
            path.acknowledged(size)
        else:
            path.lost(size, now)
    return tried


def test_it_begins_with_what_every_path_carries() -> None:
    path = searching(8952)
    assert BASE_SIZE == 1200
    assert (path.size, path.maximum) == (1200, 8952)


def test_without_use_for_larger_packets_there_are_no_probes() -> None:
    path = PathMtu(8952)
    assert not path.is_due(1000.0)
    assert path.probe(1000.0) is None
    path.wanted = True
    assert path.is_due(1000.0)
    assert path.probe(1000.0) == 1452


@both_roads
def test_a_connection_that_says_little_does_not_search(straight: bool) -> None:
    link = Link(straight=straight, search=False)
    counted = sizes(link, link.client)
    for _ in range(20):
        link.client.send(link.client.open(), b"hello", fin=True)
        link.run(0.5)
    assert max(counted) < BASE_SIZE
    assert link.client.engine.mtu.size == link.server.engine.mtu.size == BASE_SIZE


@both_roads
def test_more_than_a_packet_at_once_starts_the_search_of_its_sender(straight: bool) -> None:
    link = Link(straight=straight, search=False)
    link.client.send(link.client.open(), DATA[:3000])
    link.run(0.5)
    assert link.client.engine.mtu.size == 8952
    assert link.server.engine.mtu.size == BASE_SIZE


@both_roads
def test_whoever_asks_for_the_size_of_datagrams_starts_the_search(straight: bool) -> None:
    link = Link(straight=straight, search=False)
    small = link.server.engine.max_datagram
    link.server.datagram(b"tick")
    link.run(0.5)
    assert link.server.engine.max_datagram > small
    assert link.server.engine.mtu.size == 8952
    assert link.client.engine.mtu.size == BASE_SIZE


def test_all_sizes_on_a_path_that_carries_them() -> None:
    path = searching(8952)
    assert search(path, 65507) == [1452, 1472, 4048, 8952]
    assert path.size == 8952


def test_the_maximum_is_a_candidate_itself() -> None:
    path = searching(1460)
    assert search(path, 65507) == [1452, 1460]
    assert path.size == 1460


def test_beyond_all_candidates_there_is_the_maximum() -> None:
    path = searching(16000)
    assert search(path, 65507) == [1452, 1472, 4048, 8952, 16000]
    assert path.size == 16000


@pytest.mark.parametrize("maximum", [1452, 1472, 4048])
def test_a_maximum_that_is_a_candidate_is_probed_once(maximum: int) -> None:
    path = searching(maximum)
    sizes = search(path, 65507)
    assert sizes[-1] == maximum
    assert sizes.count(maximum) == 1


@pytest.mark.parametrize("maximum", [1200, 1000])
def test_nothing_to_probe(maximum: int) -> None:
    path = searching(maximum)
    assert path.probe(0.0) is None
    assert path.probe(1e9) is None
    assert path.size == 1200


def test_a_size_above_the_base_by_one_is_probed() -> None:
    assert search(searching(1201), 65507) == [1201]


@pytest.mark.parametrize(
    ("carries", "size"), [(1451, 1200), (1452, 1452), (1472, 1472), (4047, 1472), (4048, 4048)]
)
def test_it_stops_at_what_the_path_carries(carries: int, size: int) -> None:
    path = searching(8952)
    tried = search(path, carries)
    assert path.size == size
    assert tried[-3:] == [tried[-1]] * 3
    assert tried.count(tried[-1]) == 3


def test_one_probe_at_a_time() -> None:
    path = searching(8952)
    assert path.probe(0.0) == 1452
    assert path.probe(0.0) is None
    assert path.probe(1000.0) is None
    path.acknowledged(1452)
    assert path.probe(0.0) == 1472
    path.lost(1472, 0.0)
    assert path.probe(0.0) == 1472


def test_three_losses_pause_the_search_for_ten_minutes() -> None:
    path = searching(8952)
    search(path, 1300, now=50.0)
    assert path.probe(50.0 + 599.9) is None
    assert path.probe(50.0 + 600.0) == 1452
    path.lost(1452, 650.0)
    assert path.probe(650.0) == 1452
    path.lost(1452, 650.0)
    assert path.probe(650.0) == 1452
    path.lost(1452, 650.0)
    assert path.probe(1249.9) is None
    assert path.probe(1250.0) == 1452


def test_the_pause_begins_with_the_last_loss() -> None:
    path = searching(8952)
    for now in (10.0, 20.0, 30.0):
        assert path.probe(now) == 1452
        path.lost(1452, now)
    assert path.probe(629.9) is None
    assert path.probe(630.0) == 1452


def test_a_probe_that_arrives_forgives_those_lost() -> None:
    path = searching(8952)
    for _ in range(2):
        assert path.probe(0.0) == 1452
        path.lost(1452, 0.0)
    assert path.probe(0.0) == 1452
    path.acknowledged(1452)
    for _ in range(3):
        assert path.probe(0.0) == 1472
        path.lost(1472, 0.0)
    assert path.probe(0.0) is None


def test_a_finished_search_stays_finished() -> None:
    path = searching(8952)
    search(path, 65507)
    assert path.probe(1e9) is None


def test_a_black_hole_means_the_base_and_a_pause() -> None:
    path = searching(8952)
    search(path, 65507)
    path.black_hole(100.0)
    assert path.size == 1200
    assert path.probe(100.0) is None
    assert path.probe(129.9) is None
    assert path.probe(130.0) == 1452
    path.acknowledged(1452)
    assert path.size == 1452


def test_three_large_packets_that_vanish_for_a_while_are_a_black_hole() -> None:
    path = searching(8952)
    assert not path.is_black_hole(1e9, 0.0)
    path.vanished(2, 10.0)
    assert not path.is_black_hole(1e9, 0.5)
    path.vanished(1, 10.25)
    # It counts from the first of them.
    assert not path.is_black_hole(10.25, 0.5)
    assert path.is_black_hole(10.5, 0.5)
    path.vanished(1, 11.0)
    assert path.is_black_hole(11.0, 0.5)


@pytest.mark.parametrize(
    ("size", "is_large"), [(1201, True), (8952, True), (1200, False), (30, False)]
)
def test_a_large_packet_that_gets_through_is_no_black_hole(size: int, is_large: bool) -> None:
    path = searching(8952)
    path.vanished(3, 10.0)
    path.got_through(size)
    assert path.is_black_hole(20.0, 1.0) is not is_large
    path.vanished(3 if is_large else 0, 20.0)
    assert path.is_black_hole(21.0, 1.0)


def test_what_vanished_on_another_path_does_not_count() -> None:
    path = searching(8952)
    path.vanished(2, 10.0)
    path.restart(20.0)
    path.vanished(2, 20.0)
    assert not path.is_black_hole(30.0, 1.0)
    path.vanished(1, 20.0)
    assert not path.is_black_hole(20.9, 1.0)
    assert path.is_black_hole(21.0, 1.0)
    path.black_hole(21.0)
    assert not path.is_black_hole(30.0, 1.0)


def test_a_new_path_begins_at_once() -> None:
    path = searching(8952)
    search(path, 65507)
    path.restart(7.0)
    assert path.size == 1200
    assert path.probe(6.9) is None
    assert path.probe(7.0) == 1452


def test_a_new_path_begins_without_failures() -> None:
    path = searching(8952)
    for _ in range(2):
        path.probe(0.0)
        path.lost(1452, 0.0)
    path.restart(0.0)
    for _ in range(3):
        assert path.probe(0.0) == 1452
        path.lost(1452, 0.0)
    assert path.probe(0.0) is None


def test_the_fate_of_a_probe_from_before_counts_for_nothing() -> None:
    path = searching(8952)
    assert path.probe(0.0) == 1452
    path.restart(0.0)
    path.acknowledged(1452)
    assert path.size == 1200
    for _ in range(5):
        path.lost(1452, 0.0)
    assert path.probe(0.0) == 1452


def test_the_fate_of_a_probe_from_before_is_not_that_of_the_one_under_way() -> None:
    path = searching(8952)
    for size in (1452, 1472, 4048):
        assert path.probe(0.0) == size
        path.acknowledged(size)
    assert path.probe(0.0) == 8952
    path.restart(0.0)
    assert path.probe(0.0) == 1452
    path.acknowledged(8952)
    path.lost(8952, 0.0)
    assert path.size == 1200
    assert path.probe(0.0) is None
    path.acknowledged(1452)
    assert path.size == 1452


def test_when_it_is_worth_asking() -> None:
    path = searching(1452)
    assert path.is_due(0.0)
    path.restart(10.0)
    assert not path.is_due(9.9)
    assert path.is_due(10.0)
    assert path.probe(10.0) == 1452
    assert not path.is_due(1e9)
    path.lost(1452, 10.0)
    assert path.is_due(10.0)
    assert path.probe(10.0) == 1452
    path.acknowledged(1452)
    assert path.probe(10.0) is None
    assert not path.is_due(1e9)


def test_the_peer_may_lower_the_maximum() -> None:
    path = searching(8952)
    path.maximum = 1500
    assert search(path, 65507) == [1452, 1472, 1500]


@settings(deadline=None)
@given(st.integers(1200, 16383), st.integers(1200, 16383))
def test_the_search_ends_below_both_bounds(maximum: int, carries: int) -> None:
    path = searching(maximum)
    tried = search(path, carries)
    assert len(tried) <= 5 + 3
    assert 1200 <= path.size <= min(maximum, carries)
    assert max(tried, default=0) <= maximum
    if maximum <= carries:
        assert path.size == maximum


# ---- on paths


@both_roads
@pytest.mark.parametrize("delay", [0.001, 0.01, 0.05, 0.2, 0.375])
def test_packets_grow_on_a_path_that_carries_them(delay: float, straight: bool) -> None:
    link = Link(delay=delay, connect=False, straight=straight)
    link.connect()
    link.run(10)
    for side in link.sides:
        assert side.engine.mtu.size == 8952
        assert side.engine.packets_lost == 0


@both_roads
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.375])
def test_long_round_trips_are_no_losses(delay: float, straight: bool) -> None:
    """On a perfect link, what takes long is not sent many times."""
    link = Link(delay=delay, connect=False, straight=straight)
    link.connect()
    link.run(5)
    handshake = link.sent
    assert handshake < 45
    stream_id = link.client.open()
    counted = sizes(link, link.client)
    link.transfer(link.client, stream_id, DATA)
    assert sum(size * count for size, count in counted.items()) < 1.1 * len(DATA)


@both_roads
def test_full_packets_are_of_the_size_that_was_found(straight: bool) -> None:
    link = Link(straight=straight)
    counted = sizes(link, link.client)
    link.transfer(link.client, link.client.open(), DATA)
    assert counted[8952] > 20
    assert max(counted) == 8952


@both_roads
@pytest.mark.parametrize(
    ("mtu", "size"), [(1200, 1200), (1300, 1200), (1460, 1452), (1472, 1472), (5000, 4048)]
)
def test_packets_do_not_grow_beyond_the_path(mtu: int, size: int, straight: bool) -> None:
    link = Link(mtu=mtu, straight=straight)
    window = link.client.engine.congestion_window
    for number in range(20):
        link.client.ping(number)
        link.server.ping(number)
        link.run(0.2)
    counted = sizes(link, link.client)
    link.transfer(link.client, link.client.open(), DATA)
    for side in link.sides:
        assert side.engine.mtu.size == size
        assert side.end is None
    assert max(counted) == size
    # Lost probes are no congestion (RFC 9000 section 14.4).
    assert link.client.engine.congestion_window >= window


@both_roads
def test_lost_probes_are_repeated_twice_and_then_left(straight: bool) -> None:
    link = Link(mtu=1200, connect=False, straight=straight)
    counted = sizes(link, link.client)
    link.connect()
    for number in range(50):
        link.client.ping(number)
        link.run(1)
    assert {size: count for size, count in counted.items() if size > 1200} == {1452: 3}
    link.run(0.1)
    for number in range(54):
        link.client.ping(100 + number)
        link.run(10)
    assert counted[1452] == 3
    for number in range(10):
        link.client.ping(200 + number)
        link.run(10)
    assert counted[1452] == 6


@both_roads
@pytest.mark.parametrize("maximum", [1200, 1400, 2000])
def test_the_upper_end_of_the_search(maximum: int, straight: bool) -> None:
    link = Link(client={"max_packet_size": maximum}, straight=straight)
    assert link.client.engine.mtu.size == maximum
    assert link.server.engine.mtu.size == 8952
    counted = sizes(link, link.client)
    link.transfer(link.client, link.client.open(), DATA)
    assert max(counted) == maximum


def test_the_peer_s_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_udp_payload_size (RFC 9000 section 18.2)."""
    whole = Engine._serialize_transport_parameters
    monkeypatch.setattr(
        Engine,
        "_serialize_transport_parameters",
        lambda self: (
            whole(self)
            + (frame(3, 2, (0x4000 | 1500).to_bytes(2)) if self.config.is_client else b"")
        ),
    )
    link = Link()
    assert link.server.engine.mtu.maximum == 1500
    assert link.server.engine.mtu.size == 1500
    assert link.client.engine.mtu.size == 8952


@both_roads
def test_a_black_hole(straight: bool) -> None:
    """The path carries less than before: back to the base, and nothing is lost."""
    link = Link(straight=straight)
    stream_id = link.client.open()
    counted = sizes(link, link.client)
    link.mtu = 1400
    began = link.now
    link.transfer(link.client, stream_id, DATA)
    assert link.now - began < 5
    assert link.client.engine.mtu.size == 1200
    counted.clear()
    link.transfer(link.client, link.client.open(), DATA)
    assert max(counted) == 1200


@both_roads
def test_after_a_black_hole_the_search_begins_again(straight: bool) -> None:
    link = Link(straight=straight)
    link.mtu = 1400
    link.transfer(link.client, link.client.open(), DATA)
    link.mtu = 65507
    for number in range(29):
        link.client.ping(number)
        link.run(1)
    assert link.client.engine.mtu.size == 1200
    for number in range(10):
        link.client.ping(100 + number)
        link.run(1)
    assert link.client.engine.mtu.size == 8952


@both_roads
def test_a_black_hole_beside_packets_that_get_through(straight: bool) -> None:
    """Small packets are acknowledged all the time, so that no timer tells that large ones vanish."""
    link = Link(straight=straight, delay=0.02)
    stream_id = link.client.open(unidirectional=True)
    link.mtu = 1400
    link.client.send(stream_id, DATA, fin=True)
    count = 0
    while stream_id not in link.server.ended and count < 400:
        link.server.send(link.server.open(unidirectional=True), b"news", fin=True)
        link.run(0.025)
        link.client.datagram(b"tick")
        count += 1
        link.run(0.025)
    assert link.server.data[stream_id] == DATA


@both_roads
def test_a_black_hole_into_which_only_datagrams_fall(straight: bool) -> None:
    """Nothing of theirs is sent again, and small packets are acknowledged all the time."""
    link = Link(straight=straight, delay=0.02)
    engine = link.client.engine
    link.mtu = 1400
    for _ in range(100):
        link.client.datagram(bytes(engine.max_datagram))
        link.run(0.05)
    assert engine.max_datagram == 1170
    assert len(link.server.datagrams) > 50


@both_roads
def test_datagrams_that_no_longer_fit_are_dropped(straight: bool) -> None:
    link = Link(straight=straight)
    engine = link.client.engine
    largest = engine.max_datagram
    link.mtu = 1400
    stream_id = link.client.open()
    link.client.send(stream_id, DATA, fin=True)
    link.flush(link.client)
    for number in range(200):
        link.client.datagram(bytes(largest) if number & 1 else b"small %d" % number)
    link.run(until=lambda: stream_id in link.server.ended)
    link.run(1)
    assert engine.max_datagram == 1170
    assert engine.datagrams_queued == 0
    assert engine.datagrams_dropped > 0
    assert all(data.startswith(b"small") for data in link.server.datagrams)
    assert b"small 198" in link.server.datagrams


@both_roads
def test_an_outage_is_survived(straight: bool) -> None:
    link = Link(straight=straight, delay=0.01)
    stream_id = link.client.open()
    link.client.send(stream_id, DATA, fin=True)
    link.run(0.03)
    link.blackhole(5)
    link.run(until=lambda: stream_id in link.server.ended)
    assert link.server.data[stream_id] == DATA
