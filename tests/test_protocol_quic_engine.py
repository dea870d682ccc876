"""The engine's life: its end, timers, and what it makes of garbage."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import (
    SERVER_ADDRESS,
    START,
    Link,
    Side,
    both_roads,
    client_config,
)
from trio_wt._protocol.quic import (
    End,
    EndKind,
    Engine,
)
from trio_wt._protocol.route import Route

# ---- the end


def assert_idle(side: Side) -> None:
    assert side.end is not None
    assert (side.end.kind, side.end.code, side.end.remote) == (EndKind.LOST, 0, True)
    assert "idle timeout" in side.end.reason.lower()


@both_roads
@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("transport", [False, True])
def test_a_close(by_client: bool, transport: bool, straight: bool) -> None:
    link = Link(straight=straight)
    closer, other = link.sides if by_client else link.sides[::-1]
    closer.shut(7, "done", transport=transport)
    kind = EndKind.TRANSPORT if transport else EndKind.APPLICATION
    assert closer.end == End(kind, 7, "done", False)
    assert not closer.engine.is_silent
    link.flush(closer)
    assert closer.engine.is_silent
    assert not closer.engine.handshake_complete
    assert len(closer.engine.close_datagrams) == 1
    assert closer.engine.timer is None
    link.run(1)
    assert other.end == End(kind, 7, "done", True)
    assert other.engine.is_silent
    assert other.engine.timer is None
    # The datagram that was kept says the same to a peer that has not heard of it.
    assert closer.engine.flush(link.now) == other.engine.flush(link.now) == []


def test_late_packets_find_nobody() -> None:
    link = Link()
    link.client.shut(1)
    link.flush(link.client)
    count = link.client.engine.packets_received
    link.client.engine.receive(link.server.packet(b"\x01"), Route(SERVER_ADDRESS), link.now)
    assert link.client.engine.packets_received == count


def test_the_first_end_is_the_end() -> None:
    link = Link()
    link.client.shut(1, "first")
    link.client.shut(2, "second", transport=True)
    link.client.engine.lose("third")
    link.run(1)
    assert link.client.end == End(EndKind.APPLICATION, 1, "first", False)
    assert link.server.end == End(EndKind.APPLICATION, 1, "first", True)
    link.server.shut(3, "fourth")
    assert link.server.end == End(EndKind.APPLICATION, 1, "first", True)


@pytest.mark.parametrize("code", [0, 2**62 - 1])
def test_the_range_of_codes(code: int) -> None:
    link = Link()
    link.client.shut(code)
    link.run(1)
    assert link.server.end == End(EndKind.APPLICATION, code, "", True)


@both_roads
@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        ("x" * 512, "x" * 512),
        ("x" * 513, "x" * 512),
        ("é" * 300, "é" * 256),
        ("x" + "é" * 300, "x" + "é" * 255),
        ("\N{GRINNING FACE}" * 200, "\N{GRINNING FACE}" * 128),
    ],
)
def test_a_long_reason_is_cut_to_512_bytes(reason: str, cut: str, straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200)
    link.client.shut(1, reason)
    link.run(1)
    assert link.server.end == End(EndKind.APPLICATION, 1, cut, True)


def test_a_reason_that_is_no_text() -> None:
    link = Link()
    link.client.shut(1, "a\ud800b")
    link.run(1)
    assert link.server.end is not None
    assert link.server.end.code == 1


def test_an_end_before_the_beginning() -> None:
    engine = Engine(client_config())
    engine.shut(5, "never mind")
    assert engine.end == End(EndKind.LOST, 0, "never mind", True)
    assert engine.is_silent
    assert engine.flush(START) == []


def test_an_end_in_the_handshake_says_little() -> None:
    """RFC 9000 section 10.2.3: the application's code and reason are for the application's peer."""
    link = Link(connect=False)
    link.start()
    link.run(0.0015)
    link.client.shut(5, "private")
    link.run(1)
    assert link.server.end is not None
    assert (link.server.end.kind, link.server.end.code) == (EndKind.TRANSPORT, 0x0C)
    assert link.server.end.reason == ""
    assert link.server.handshake is None


def test_a_lost_connection_says_nothing() -> None:
    link = Link()
    link.client.engine.lose("gone")
    assert link.client.end == End(EndKind.LOST, 0, "gone", True)
    assert link.client.engine.is_silent
    assert link.client.engine.flush(link.now) == []
    assert link.client.engine.close_datagrams == []
    link.client.engine.lose("again")
    assert link.client.end.reason == "gone"


@both_roads
@pytest.mark.parametrize(("ours", "theirs"), [(5, 60), (60, 5), (5, 5)])
def test_silence_ends_a_connection(ours: float, theirs: float, straight: bool) -> None:
    link = Link(client={"idle_timeout": ours}, server={"idle_timeout": theirs}, straight=straight)
    link.client.ping(1)
    link.run(0.1)
    link.drop = lambda sender, data: True
    link.run(4.8)
    assert link.client.end is link.server.end is None
    link.run(0.3)
    for side in link.sides:
        assert_idle(side)
        assert side.engine.is_silent
        assert side.engine.timer is None


@both_roads
def test_what_is_sent_after_something_came_puts_the_end_off_once(straight: bool) -> None:
    """RFC 9000 section 10.1: so that an answer has time to come."""
    link = Link(idle_timeout=5, straight=straight)
    link.client.ping(1)
    link.run(0.1)
    link.drop = lambda sender, data: True
    link.run(3)
    link.client.ping(2)
    link.run(3)
    assert link.client.end is None
    assert link.server.end is not None
    link.client.ping(3)
    link.run(2.2)
    assert_idle(link.client)


@both_roads
def test_pings_keep_a_connection_alive(straight: bool) -> None:
    link = Link(idle_timeout=5, straight=straight)
    for number in range(5):
        link.client.ping(number)
        link.run(4)
    assert link.client.pings == [0, 1, 2, 3, 4]
    assert link.client.end is link.server.end is None


def test_a_peer_that_vanishes_is_given_up() -> None:
    link = Link(idle_timeout=5)
    stream_id = link.client.open()
    link.drop = lambda sender, data: True
    link.client.send(stream_id, bytes(100_000))
    link.run(12)
    assert link.client.end is not None
    assert link.client.end.kind is EndKind.LOST


@pytest.mark.parametrize("started", [False, True])
def test_after_finish_nothing_happens_and_nothing_raises(started: bool) -> None:
    link = Link(connect=started)
    for side in link.sides:
        engine = side.engine
        engine.finish()
        engine.finish()
        assert engine.is_silent
        assert engine.timer is None
        engine.fire(link.now)
        engine.receive(bytes(1200), Route(SERVER_ADDRESS), link.now)
        assert engine.flush(link.now) == []
        engine.shut(1)
        engine.lose("x")
        engine.take_events()


# ---- timers


@both_roads
@pytest.mark.parametrize("now", [0.0, 1000.0, 1e6 / 3, 1.8e9])
@pytest.mark.parametrize("seed", range(3))
def test_time_does_not_stand_still(now: float, seed: int, straight: bool) -> None:
    """A timer that is due fires once, also where nothing but the timer moves the clock; `Link.run` checks it."""
    link = Link(now=now, seed=seed, loss=0.1, reorder=0.1, delay=(0.003, 0.0171), straight=straight)
    link.slack = 0.0
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, bytes(200_000))
    link.transfer(link.server, stream_id, bytes(50_000))
    link.run(40)


@both_roads
def test_an_idle_connection_has_only_its_end_to_wait_for(straight: bool) -> None:
    link = Link(straight=straight, idle_timeout=30)
    link.run(5)
    for side in link.sides:
        assert side.engine.timer == pytest.approx(START + 30, abs=1)
        if straight:
            assert not side.engine.has_work


# ---- garbage


def assert_well(link: Link) -> None:
    """Whatever happened was no harm."""
    assert link.client.end is link.server.end is None
    stream_id = link.client.open()
    link.transfer(link.client, stream_id, b"still well")
    link.transfer(link.server, stream_id, b"indeed")


@both_roads
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), min_size=1, max_size=20))
def test_bytes_from_anybody_do_no_harm(straight: bool, datagrams: list[tuple[bool, bytes]]) -> None:
    link = Link(straight=straight)
    for to_client, data in [(False, b""), (True, b""), *datagrams]:
        link.inject(link.client if to_client else link.server, data)
        cid = (link.client if to_client else link.server).engine.host_cid
        for first in (0x40, 0xC0, 0xE0, 0xF0):
            head = bytes([first]) if first == 0x40 else bytes([first, 0, 0, 0, 1, 8])
            link.inject(link.client if to_client else link.server, head + cid + data)
    assert_well(link)


def mutated(data: bytes, kind: str, at: int, value: int) -> bytes:
    at %= len(data)
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "head":
        return data[at:]
    if kind == "insert":
        return data[:at] + bytes([value]) + data[at:]
    return data + data[:at]


mutations = st.tuples(
    st.sampled_from(["flip", "cut", "head", "insert", "more"]),
    st.one_of(st.integers(0, 60), st.integers(0, 2000)),
    st.integers(1, 255),
)


@both_roads
@settings(max_examples=60, deadline=None)
@given(st.lists(mutations, min_size=1, max_size=30))
def test_damaged_copies_of_packets_do_no_harm(
    straight: bool, kinds: list[tuple[str, int, int]]
) -> None:
    """Each packet of a handshake and a transfer is followed by a damaged one."""
    link = Link(connect=False, straight=straight)
    count = 0

    def tap(sender: Side, data: bytes) -> None:
        nonlocal count
        kind, at, value = kinds[count % len(kinds)]
        count += 1
        damaged = mutated(data, kind, at, value)
        if sender is link.client or link.client.engine.route is not None:
            link._deliver_later(
                sender,
                damaged,
                Route(SERVER_ADDRESS) if sender is link.client else Route(link.addresses[0]),
            )

    link.tap = tap
    link.start()
    link.run(until=lambda: bool(link.client.handshake and link.server.handshake))
    assert_well(link)
    link.tap = lambda sender, data: None
    assert_well(link)


@both_roads
@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.booleans())
def test_frames_of_a_mad_peer_raise_nothing(
    straight: bool, payloads: list[bytes], from_client: bool
) -> None:
    """They may end the connection, and then the peer is told."""
    link = Link(straight=straight)
    mad, victim = link.sides if from_client else link.sides[::-1]
    for payload in payloads:
        link.hostile(mad, payload or b"\x00")
    link.run(1)
    if victim.end is None:
        victim.ping(1)
        link.run(1)
        assert victim.pings == [1]
    elif victim.end.remote:
        assert victim.engine.is_silent
    else:
        assert victim.end.kind is EndKind.TRANSPORT
        assert victim.end.code not in (0, 1)
        assert victim.engine.is_silent
        assert mad.end is not None
        assert (mad.end.code, mad.end.remote) == (victim.end.code, True)
