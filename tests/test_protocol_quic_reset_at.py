"""RESET_STREAM_AT: a reset that spares the first bytes of its stream (draft-ietf-quic-reliable-stream-reset)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import Link, Packet, both_roads
from tests.quic_frames import frame, reset_at_frame, stream_frame
from trio_wt._protocol.quic import EndKind
from trio_wt._protocol.quic.reset_at import (
    RESET_STREAM_AT,
    RESET_STREAM_AT_CAPACITY,
    OutgoingReset,
    ReliableReset,
    ReliableResets,
)

RESET_STREAM, STREAM = 0x04, 0x08
FRAME_ENCODING, FINAL_SIZE = 7, 6


def fields(packets: list[Packet], kind: int) -> list[tuple[Any, ...]]:
    return [each[1:] for packet in packets for each in packet.frames if each[0] == kind]


def assert_gone(link: Link) -> None:
    """Nothing is left of any stream on either side, and no credit is lost."""
    assert link.client.end is link.server.end is None
    for side in link.sides:
        engine = side.engine
        assert not engine._streams
        assert not engine._reliable_resets
        assert not engine._resets.awaited
        assert not engine._windows
        assert not engine.undelivered
        assert engine._window.consumed == engine._local_max_data.used


def assert_cut(link: Link, stream_id: int, reliable: int, end: int | None) -> None:
    """The server has the reliable part, and the reset; or all of it, up to the end, if that was quicker."""
    size = len(link.server.data.get(stream_id, b""))
    if stream_id in link.server.ended:
        assert size == end
        assert stream_id not in link.server.resets
    else:
        assert size >= reliable
        assert stream_id in link.server.resets


# ---- bookkeeping


def test_the_frame() -> None:
    """Section 4: a type of one byte, and four integers of up to eight."""
    assert RESET_STREAM_AT == 0x24
    assert RESET_STREAM_AT_CAPACITY == 33


def test_a_reset_is_to_be_sent_to_begin_with() -> None:
    reset = OutgoingReset(1, 10)
    assert reset.pending
    assert not reset.acknowledged


def test_it_is_due_when_the_reliable_part_has_arrived() -> None:
    resets = ReliableResets()
    assert resets.expect(4, 7, 20, 10)
    assert resets.due(4, 9) is None
    assert 4 in resets.awaited
    due = resets.due(4, 10)
    assert due is not None
    assert (due.code, due.final_size, due.reliable_size) == (7, 20, 10)
    assert resets.awaited == {}
    assert resets.due(4, 10) is None


def test_it_may_be_due_at_once() -> None:
    resets = ReliableResets()
    assert resets.expect(4, 7, 20, 0)
    assert resets.due(4, 0) is not None


def test_streams_do_not_know_of_each_other() -> None:
    resets = ReliableResets()
    assert resets.expect(0, 1, 20, 10)
    assert resets.expect(4, 2, 30, 5)
    assert resets.due(8, 100) is None
    due = resets.due(4, 100)
    assert due is not None
    assert due.code == 2
    assert set(resets.awaited) == {0}


def test_the_smallest_reliable_size_counts() -> None:
    resets = ReliableResets()
    assert resets.expect(4, 7, 20, 10)
    assert resets.expect(4, 7, 20, 15)
    assert resets.awaited[4].reliable_size == 10
    assert resets.expect(4, 7, 20, 5)
    assert resets.awaited[4].reliable_size == 5
    assert resets.due(4, 5) is not None


def test_the_same_frame_again_changes_nothing() -> None:
    resets = ReliableResets()
    assert resets.expect(4, 7, 20, 10)
    assert resets.expect(4, 7, 20, 10)
    assert resets.due(4, 9) is None


def test_another_final_size_does_not_agree() -> None:
    resets = ReliableResets()
    assert resets.expect(4, 7, 20, 10)
    assert not resets.expect(4, 7, 21, 10)
    assert not resets.expect(4, 7, 19, 10)


@pytest.mark.parametrize(
    ("highest", "final_size", "fits"),
    [(0, None, True), (20, None, True), (21, None, False), (20, 20, True), (5, 19, False)],
)
def test_what_agrees_with_a_reset(highest: int, final_size: int | None, fits: bool) -> None:
    assert ReliableReset(1, 20, 10).fits(highest, final_size) is fits


# ---- on the wire


@both_roads
@pytest.mark.parametrize("unidirectional", [True, False])
@pytest.mark.parametrize("fin", [True, False])
def test_the_reliable_part_arrives_and_then_the_reset(
    unidirectional: bool, fin: bool, straight: bool
) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=unidirectional)
    link.client.send(stream_id, b"reliable, and not", fin=fin)
    link.client.reset(stream_id, 77, 8)
    assert not link.client.engine.is_sendable(stream_id)
    link.run(1)
    assert link.server.data[stream_id] == b"reliable"
    assert link.server.resets == {stream_id: 77}
    assert stream_id not in link.server.ended
    assert fields(packets, RESET_STREAM_AT) == [(stream_id, 77, 8, 8)]
    assert not fields(packets, RESET_STREAM)
    if not unidirectional:
        link.transfer(link.server, stream_id, b"answer")
        link.run(1)
    assert_gone(link)


@both_roads
def test_nothing_beyond_the_reliable_part_is_sent_again(straight: bool) -> None:
    link = Link(straight=straight, max_packet_size=1200)
    stream_id = link.client.open(unidirectional=True)
    link.drop = lambda sender, data: sender is link.client
    link.client.send(stream_id, bytes(4000), fin=True)
    link.flush(link.client)
    link.drop = lambda sender, data: False
    link.client.reset(stream_id, 7, 1000)
    packets = link.log(link.client)
    link.run(5)
    assert link.server.data[stream_id] == bytes(1000)
    assert link.server.resets == {stream_id: 7}
    assert {offset + len(data) <= 1000 for _, offset, data, _ in fields(packets, STREAM)} == {True}
    assert not any(fin for *_, fin in fields(packets, STREAM))
    assert set(fields(packets, RESET_STREAM_AT)) == {(stream_id, 7, 4000, 1000)}
    assert_gone(link)


@both_roads
@pytest.mark.parametrize("lost", range(5))
@pytest.mark.parametrize("fin", [True, False])
def test_any_packet_may_be_lost(lost: int, fin: bool, straight: bool) -> None:
    """Also one whose data no longer matters, and whose loss is found out only after the reset was acknowledged."""
    link = Link(straight=straight, max_packet_size=1200, delay=0.02)
    stream_id = link.client.open(unidirectional=True)
    count = -1

    def drop(sender: Any, data: bytes) -> bool:
        nonlocal count
        count += sender is link.client
        return sender is link.client and count == lost

    link.drop = drop
    link.client.send(stream_id, bytes(3300), fin=fin)
    link.flush(link.client)
    link.client.reset(stream_id, 7, 1000)
    link.run(5)
    assert_cut(link, stream_id, 1000, 3300 if fin else None)
    assert_gone(link)


@both_roads
@pytest.mark.parametrize("lost", range(5))
def test_what_is_late_no_longer_matters_to_a_stream_with_two_ways(
    lost: int, straight: bool
) -> None:
    """The stream lives on for its other direction when the fate of old packets becomes known."""
    link = Link(straight=straight, max_packet_size=1200, delay=0.02)
    stream_id = link.client.open()
    count = -1

    def drop(sender: Any, data: bytes) -> bool:
        nonlocal count
        count += sender is link.client
        return sender is link.client and count == lost

    link.drop = drop
    link.client.send(stream_id, bytes(3300), fin=True)
    link.flush(link.client)
    packets = link.log(link.client)
    link.client.reset(stream_id, 7, 1000)
    link.run(5)
    assert {offset + len(data) <= 1000 for _, offset, data, _ in fields(packets, STREAM)} <= {True}
    link.transfer(link.server, stream_id, bytes(5000))
    link.run(5)
    assert_cut(link, stream_id, 1000, 3300)
    assert_gone(link)


@both_roads
@pytest.mark.parametrize("seed", range(10))
def test_over_bad_links(seed: int, straight: bool) -> None:
    link = Link(
        seed=seed,
        loss=0.2,
        reorder=0.2,
        duplicate=0.1,
        delay=(0.01, 0.02),
        max_packet_size=1200,
        straight=straight,
    )
    stream_ids = []
    for number in range(6):
        stream_id = link.client.open(unidirectional=bool(number & 1))
        link.client.send(stream_id, bytes([number]) * 5000, fin=number % 3 == 0)
        link.run(0.01 * number)
        link.client.reset(stream_id, number, 1000 * number)
        stream_ids.append(stream_id)
    link.run(until=lambda: len(link.server.resets) + len(link.server.ended) == 6)
    for number, stream_id in enumerate(stream_ids):
        assert_cut(link, stream_id, 1000 * number, 5000 if number % 3 == 0 else None)
        assert set(link.server.data.get(stream_id, b"")) <= {number}
        if not stream_id & 2:
            link.server.send(stream_id, fin=True)
    link.run(20)
    assert_gone(link)


@both_roads
def test_all_of_it_may_be_reliable(straight: bool) -> None:
    link = Link(straight=straight)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"all of it")
    link.client.reset(stream_id, 5, 10**6)
    link.run(1)
    assert link.server.data[stream_id] == b"all of it"
    assert link.server.resets == {stream_id: 5}
    assert_gone(link)


@both_roads
def test_without_a_reliable_part_it_is_an_ordinary_reset(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.client.reset(stream_id, 5, 0)
    link.run(1)
    assert fields(packets, RESET_STREAM) == [(stream_id, 5, 0)]
    assert not fields(packets, RESET_STREAM_AT)


@both_roads
def test_a_reliable_part_that_has_arrived_needs_an_ordinary_reset_only(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.run(1)
    link.client.reset(stream_id, 5, 4)
    link.run(1)
    assert fields(packets, RESET_STREAM) == [(stream_id, 5, 4)]
    assert link.server.data[stream_id] == b"data"
    assert link.server.resets == {stream_id: 5}
    assert_gone(link)


@both_roads
def test_to_a_peer_without_support_it_is_an_ordinary_reset(
    straight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aioquic.quic.connection import QuicConnection

    from trio_wt._protocol.quic import Engine

    monkeypatch.setattr(
        Engine,
        "_serialize_transport_parameters",
        lambda self: QuicConnection._serialize_transport_parameters(self),
    )
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"reliable, and not")
    link.client.reset(stream_id, 77, 8)
    link.run(1)
    assert fields(packets, RESET_STREAM) == [(stream_id, 77, 0)]
    assert not fields(packets, RESET_STREAM_AT)
    assert link.server.resets == {stream_id: 77}
    assert stream_id not in link.server.data
    assert_gone(link)


@both_roads
def test_the_final_size_waits_for_the_peer_s_windows(straight: bool) -> None:
    """A frame with a final size beyond them would be a violation."""
    link = Link(straight=straight, stream_window=1000, max_stream_window=1000)
    link.server.reading = False
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, bytes(3000))
    link.client.reset(stream_id, 7, 2000)
    assert link.client.engine.unsent(stream_id) == 2000
    link.run(1)
    assert link.server.end is None
    assert link.server.resets == {}
    assert link.client.engine.unsent(stream_id) == 1000
    assert link.client.engine.undelivered
    link.server.reading = True
    link.server.read(stream_id)
    link.run(1)
    assert link.server.data[stream_id] == bytes(2000)
    assert link.server.resets == {stream_id: 7}
    assert_gone(link)


@both_roads
@pytest.mark.parametrize("window", [1000, 10_000])
def test_a_peer_that_wants_none_of_it(window: int, straight: bool) -> None:
    """STOP_SENDING is answered by RESET_STREAM, which must not tell another final size."""
    link = Link(straight=straight, stream_window=window, max_stream_window=window)
    link.server.reading = False
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, bytes(3000))
    link.flush(link.client)
    link.client.reset(stream_id, 7, 2000)
    link.run(1 if window == 1000 else 0)
    link.server.engine._streams or link.run(0.0015)
    link.server.stop(stream_id, 9)
    link.run(2)
    sizes = {size for _, _, size, *_ in fields(packets, RESET_STREAM_AT)}
    sizes |= {size for _, _, size in fields(packets, RESET_STREAM)}
    assert len(sizes) == 1
    assert stream_id in link.server.resets
    assert_gone(link)


@both_roads
def test_resetting_again_changes_nothing(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"reliable, and not")
    for code, size in ((1, 8), (2, 8), (3, 0), (4, 12)):
        link.client.reset(stream_id, code, size)
        link.client.send(stream_id, b"more", fin=True)
    link.run(1)
    for code, size in ((5, 8), (6, 0)):
        link.client.reset(stream_id, code, size)
    link.run(1)
    assert fields(packets, RESET_STREAM_AT) == [(stream_id, 1, 8, 8)]
    assert not fields(packets, RESET_STREAM)
    assert link.server.resets == {stream_id: 1}
    assert link.server.data[stream_id] == b"reliable"
    assert_gone(link)


@both_roads
def test_an_ordinary_reset_is_not_made_reliable(straight: bool) -> None:
    link = Link(straight=straight)
    packets = link.log(link.client)
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"data")
    link.client.reset(stream_id, 1)
    link.client.reset(stream_id, 2, 4)
    link.run(1)
    assert fields(packets, RESET_STREAM) == [(stream_id, 1, 0)]
    assert not fields(packets, RESET_STREAM_AT)
    assert_gone(link)


def test_a_reset_before_the_handshake() -> None:
    """Whether the peer supports it is not known yet."""
    link = Link(connect=False)
    link.start()
    stream_id = link.client.open(unidirectional=True)
    link.client.send(stream_id, b"reliable, and not")
    link.client.reset(stream_id, 77, 8)
    link.run(5)
    assert link.client.handshake is not None
    assert link.server.resets == {stream_id: 77}
    assert link.server.end is None


# ---- received


@both_roads
@pytest.mark.parametrize("order", ["data first", "reset first", "reset between"])
def test_the_reset_waits_for_the_reliable_part(order: str, straight: bool) -> None:
    link = Link(straight=straight)
    data = [stream_frame(2, 0, b"reli"), stream_frame(2, 4, b"able, and not")]
    reset = reset_at_frame(2, 77, 17, 8)
    if order == "data first":
        for each in (*data, reset):
            assert not link.server.resets
            link.hostile(link.client, each)
        assert link.server.data[2] == b"reliable, and not"
    elif order == "reset first":
        for each in (reset, *data):
            assert not link.server.resets
            link.hostile(link.client, each)
        assert bytes(link.server.data[2]).startswith(b"reliable")
    else:
        for each in (data[1], reset, data[0]):
            assert not link.server.resets
            link.hostile(link.client, each)
    assert link.server.resets == {2: 77}
    assert link.server.engine._local_max_data.used == 17
    link.run(1)
    assert_gone(link)


@both_roads
def test_a_reset_without_a_reliable_part_is_due_at_once(straight: bool) -> None:
    link = Link(straight=straight)
    link.hostile(link.client, reset_at_frame(2, 77, 17, 0))
    assert link.server.resets == {2: 77}
    assert link.server.engine._local_max_data.used == 17
    link.run(1)
    assert_gone(link)


@both_roads
def test_a_frame_that_comes_again_is_no_other_reset(straight: bool) -> None:
    link = Link(straight=straight)
    reset = reset_at_frame(0, 77, 17, 8)
    for each in (reset, stream_frame(0, 0, b"reli"), reset, stream_frame(0, 4, b"able"), reset):
        link.hostile(link.client, each)
    link.hostile(link.client, stream_frame(0, 0, b"reliable, "))
    link.hostile(link.client, frame(0x04, 0, 78, 17))
    assert link.server.resets == {0: 77}
    assert link.server.data[0] == b"reliable"
    assert not link.server.engine._resets.awaited
    assert link.server.end is None


@both_roads
def test_a_smaller_reliable_size_replaces_a_larger_one(straight: bool) -> None:
    link = Link(straight=straight)
    link.hostile(link.client, stream_frame(0, 0, b"abc") + reset_at_frame(0, 7, 17, 8))
    assert not link.server.resets
    link.hostile(link.client, reset_at_frame(0, 7, 17, 3))
    assert link.server.resets == {0: 7}


@both_roads
def test_a_reset_stream_replaces_it(straight: bool) -> None:
    link = Link(straight=straight)
    link.hostile(link.client, stream_frame(2, 0, b"abc") + reset_at_frame(2, 7, 17, 8))
    link.hostile(link.client, frame(0x04, 2, 7, 17))
    assert link.server.resets == {2: 7}
    link.run(1)
    assert_gone(link)


@both_roads
def test_it_is_nothing_new_once_all_has_arrived(straight: bool) -> None:
    link = Link(straight=straight)
    link.hostile(link.client, stream_frame(2, 0, b"all", fin=True) + reset_at_frame(2, 7, 3, 3))
    link.hostile(link.client, reset_at_frame(2, 7, 3, 1))
    assert link.server.resets == {}
    assert link.server.ended == {2}
    link.run(1)
    assert_gone(link)


@both_roads
def test_after_a_reset_stream_it_leaves_nothing(straight: bool) -> None:
    link = Link(straight=straight)
    link.hostile(link.client, frame(0x04, 2, 7, 17) + reset_at_frame(2, 7, 17, 8))
    assert link.server.resets == {2: 7}
    link.run(1)
    assert_gone(link)


VIOLATIONS = {
    "reliable beyond final": ([reset_at_frame(0, 1, 5, 6)], FRAME_ENCODING),
    "another final size": ([reset_at_frame(0, 1, 9, 6), reset_at_frame(0, 1, 8, 6)], FINAL_SIZE),
    "below the data": ([stream_frame(0, 0, b"data"), reset_at_frame(0, 1, 3, 0)], FINAL_SIZE),
    "data beyond it": ([reset_at_frame(0, 1, 9, 6), stream_frame(0, 8, b"xx")], FINAL_SIZE),
    "data beyond it, behind the reset": (
        [reset_at_frame(0, 1, 9, 0), stream_frame(0, 8, b"xx")],
        FINAL_SIZE,
    ),
    "another end before it": (
        [stream_frame(0, 5, b"end", fin=True), reset_at_frame(0, 1, 12, 0)],
        FINAL_SIZE,
    ),
    "another end behind it": (
        [reset_at_frame(0, 1, 12, 6), stream_frame(0, 5, b"end", fin=True)],
        FINAL_SIZE,
    ),
    "another end than the one that was reached": (
        [stream_frame(0, 0, b"end", fin=True), reset_at_frame(0, 1, 12, 0)],
        FINAL_SIZE,
    ),
    "another final size in a RESET_STREAM": (
        [reset_at_frame(0, 1, 12, 6), frame(0x04, 0, 1, 13)],
        FINAL_SIZE,
    ),
}


@both_roads
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations(name: str, together: bool, straight: bool) -> None:
    frames, code = VIOLATIONS[name]
    link = Link(straight=straight)
    for each in [b"".join(frames)] if together else frames:
        assert link.server.end is None
        link.hostile(link.client, each)
    assert link.server.end is not None
    assert (link.server.end.kind, link.server.end.code) == (EndKind.TRANSPORT, code)
    link.run(1)
    assert link.client.end is not None
    assert (link.client.end.code, link.client.end.remote) == (code, True)


@both_roads
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 30_000),
    st.integers(0, 30_000),
    st.booleans(),
    st.floats(0, 0.05),
    st.integers(0, 2**32),
    st.sampled_from([500, 5000, 10**6]),
)
def test_any_reset_at_any_time(
    straight: bool, size: int, reliable: int, fin: bool, pause: float, seed: int, window: int
) -> None:
    link = Link(
        seed=seed,
        loss=0.1,
        reorder=0.2,
        delay=(0.005, 0.01),
        stream_window=window,
        connection_window=2 * window,
        max_packet_size=1200,
        straight=straight,
    )
    stream_id = link.client.open(unidirectional=True)
    data = bytes(n % 251 for n in range(size))
    link.client.send(stream_id, data, fin=fin)
    link.run(pause)
    link.client.reset(stream_id, 7, reliable)
    link.run(25)
    assert data.startswith(bytes(link.server.data.get(stream_id, b"")))
    assert_cut(link, stream_id, min(reliable, size), size if fin else None)
    assert_gone(link)
