"""Key updates (RFC 9001 section 6)."""

from __future__ import annotations

import itertools

import pytest

from tests.quic_engines import Link, Packet, both_roads
from tests.quic_frames import frame

DATA = bytes(range(251)) * 400  # 100,400 bytes


def phases(packets: list[Packet]) -> int:
    """How often the key phase changed."""
    ordered = sorted(packets)
    return sum(a.key_phase != b.key_phase for a, b in itertools.pairwise(ordered))


@both_roads
def test_a_key_update(straight: bool) -> None:
    link = Link(straight=straight)
    logs = [link.log(side) for side in link.sides]
    stream_id = link.client.open()
    link.client.engine.update_keys()
    link.transfer(link.client, stream_id, DATA)
    link.transfer(link.server, stream_id, DATA)
    assert {packet.key_phase for packet in logs[0]} == {True}
    assert logs[1][-1].key_phase
    link.server.engine.update_keys()
    link.transfer(link.client, link.client.open(), DATA)
    assert not logs[0][-1].key_phase
    assert not logs[1][-1].key_phase


@both_roads
@pytest.mark.parametrize("seed", range(3))
def test_keys_are_updated_by_themselves_on_bad_links(seed: int, straight: bool) -> None:
    link = Link(
        straight=straight,
        key_update_packets=50,
        max_packet_size=1200,
        seed=seed,
        delay=(0.01, 0.015),
        loss=0.02,
        reorder=0.05,
    )
    packets = link.log(link.client)
    link.transfer(link.client, link.client.open(), DATA * 4)
    assert phases(packets) >= 2
    assert link.client.end is link.server.end is None


@both_roads
def test_the_packet_budget_of_keys(straight: bool) -> None:
    link = Link(straight=straight, client={"key_update_packets": 100}, max_packet_size=1200)
    packets = link.log(link.client)
    for number in range(250):
        link.client.ping(number)
        link.run(0.01)
    changes = [b.number for a, b in itertools.pairwise(packets) if a.key_phase != b.key_phase]
    assert [later - earlier for earlier, later in itertools.pairwise(changes)] == pytest.approx(
        [100] * (len(changes) - 1), abs=2
    )
    assert len(changes) >= 2
    assert changes[0] == pytest.approx(100, abs=2)
    assert link.client.pings == list(range(250))


@both_roads
def test_a_second_update_waits_for_the_first(straight: bool) -> None:
    """RFC 9001 section 6.1: otherwise a peer that has missed the first could read nothing any more."""
    link = Link(straight=straight)
    link.client.engine.update_keys()
    link.client.ping(1)
    link.drop = lambda sender, data: sender is link.client
    link.flush(link.client)
    link.client.engine.update_keys()
    link.drop = lambda sender, data: False
    link.client.ping(2)
    link.run(5)
    assert sorted(link.client.pings) == [1, 2]
    link.transfer(link.client, link.client.open(), DATA)


def test_an_update_before_the_handshake_is_no_harm() -> None:
    link = Link(connect=False)
    link.client.engine.update_keys()
    link.connect()
    link.transfer(link.client, link.client.open(), DATA)


@both_roads
def test_packets_under_way_can_still_be_read(straight: bool) -> None:
    """RFC 9001 section 6.5: those with the keys from before an update of ours arrive after it."""
    link = Link(straight=straight, delay=0.02)
    stream_id = link.client.open()
    link.client.send(stream_id, DATA * 20, fin=True)
    link.run(0.3)
    assert stream_id not in link.server.ended
    link.server.engine.update_keys()
    link.server.ping(1)
    link.run(until=lambda: stream_id in link.server.ended)
    assert link.server.data[stream_id] == DATA * 20
    assert link.client.engine.packets_lost == 0


@both_roads
def test_late_packets_can_still_be_read(straight: bool) -> None:
    """Those with the keys from before an update of the peer's that was overtaken by its new ones."""
    link = Link(straight=straight)
    late = [link.client.packet(frame(0x30, b"%d" % number)) for number in range(3)]
    link.client.engine.update_keys()
    link.client.datagram(b"new")
    link.run(0.1)
    for data in late:
        link.inject(link.server, data)
    assert link.server.datagrams == [b"new", b"0", b"1", b"2"]
    # Once only (RFC 9000 section 12.3).
    for data in late:
        link.inject(link.server, data)
    assert len(link.server.datagrams) == 4


@both_roads
def test_an_update_whose_first_packets_are_lost(straight: bool) -> None:
    link = Link(straight=straight)
    link.server.datagram(b"lost")
    link.rebind()
    link.server.engine.update_keys()
    link.run(0)
    link.client.ping(1)
    link.run(5)
    assert link.client.pings == [1]
    assert link.server.engine.route is not None
    assert link.server.engine.route.remote == link.addresses[0]


@both_roads
def test_both_sides_update_at_once(straight: bool) -> None:
    link = Link(straight=straight, delay=0.05)
    for number in range(6):
        for side in link.sides:
            side.engine.update_keys()
            side.ping(number)
        link.run(0.2)
    for side in link.sides:
        assert side.pings == list(range(6))
    link.transfer(link.client, link.client.open(), DATA)
