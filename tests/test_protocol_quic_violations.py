"""Peers that break the rules: the limits that they pass, and the frames that they must not send."""

from __future__ import annotations

from typing import Any

import pytest
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quic_engines import Link, Side, both_roads
from tests.quic_frames import ack_frame, crypto_frame, frame, reset_at_frame, stream_frame
from trio_wt._protocol.quic import EndKind

PROTOCOL_VIOLATION = 0x0A
FLOW_CONTROL, STREAM_LIMIT, STREAM_STATE, FINAL_SIZE, FRAME_ENCODING = 3, 4, 5, 6, 7


def assert_whole(side: Side) -> None:
    """Nothing of the connection's receive window has been lost: what was used is given back."""
    engine = side.engine
    assert engine._window.consumed == engine._local_max_data.used
    assert engine._window.limit - engine._window.consumed > engine._window.size // 2


def ended(side: Side) -> tuple[EndKind, int] | None:
    return None if side.end is None else (side.end.kind, side.end.code)


def assert_violation(link: Link, victim: Side, code: int) -> None:
    """The victim has closed the connection for this reason, and the other side is told."""
    assert ended(victim) == (EndKind.TRANSPORT, code)
    assert victim.end is not None
    assert not victim.end.remote
    link.run(1)
    other = link.other(victim)
    assert ended(other) == (EndKind.TRANSPORT, code)
    assert other.end is not None
    assert other.end.remote
    assert victim.engine.is_silent


# ---- limits that a hostile peer passes


@both_roads
@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("offset", [999, 1000, 2**40, 2**62 - 2])
def test_data_beyond_the_stream_s_window(offset: int, by_client: bool, straight: bool) -> None:
    link = Link(stream_window=1000, straight=straight)
    mad, victim = link.sides if by_client else link.sides[::-1]
    stream_id = 0 if by_client else 1
    link.hostile(mad, stream_frame(stream_id, offset - offset % 1000, bytes(offset % 1000)))
    if offset < 1001:
        assert victim.end is None
    link.hostile(mad, stream_frame(stream_id, offset, b"x"))
    if offset == 999:
        assert victim.end is None
    else:
        assert_violation(link, victim, FLOW_CONTROL)


@both_roads
@pytest.mark.parametrize("limit", ["stream", "connection"])
def test_data_in_order_beyond_a_window(limit: str, straight: bool) -> None:
    link = Link(
        stream_window=1000 if limit == "stream" else 2000,
        connection_window=1000 if limit == "connection" else 2000,
        straight=straight,
    )
    link.server.reading = False
    for offset in range(0, 1000, 250):
        link.hostile(link.client, stream_frame(0, offset, bytes(250)))
    assert link.server.end is None
    assert len(link.server.data[0]) == 1000
    link.hostile(link.client, stream_frame(0, 1000, b"x"))
    assert_violation(link, link.server, FLOW_CONTROL)
    assert len(link.server.data[0]) == 1000


@both_roads
def test_data_beyond_the_connection_s_window(straight: bool) -> None:
    link = Link(stream_window=1000, connection_window=2500, straight=straight)
    link.server.reading = False
    link.hostile(link.client, stream_frame(0, 0, bytes(1000)) + stream_frame(4, 999, b"x"))
    assert link.server.engine._local_max_data.used == 2000
    link.hostile(link.client, stream_frame(8, 0, bytes(500)))
    assert link.server.end is None
    link.hostile(link.client, stream_frame(8, 500, b"x"))
    assert_violation(link, link.server, FLOW_CONTROL)


@both_roads
def test_data_that_comes_twice_counts_once(straight: bool) -> None:
    link = Link(stream_window=1000, connection_window=1000, straight=straight)
    link.server.reading = False
    for _ in range(5):
        link.hostile(link.client, stream_frame(0, 0, bytes(1000)))
        link.hostile(link.client, stream_frame(0, 500, bytes(500)))
    assert link.server.end is None
    assert link.server.engine._local_max_data.used == 1000
    assert len(link.server.data[0]) == 1000


@both_roads
@pytest.mark.parametrize("kind", ["stream", "reset", "reset at"])
def test_a_final_size_beyond_the_window(kind: str, straight: bool) -> None:
    frames = {
        "stream": stream_frame(0, 1001, b"", fin=True),
        "reset": frame(0x04, 0, 1, 1001),
        "reset at": reset_at_frame(0, 1, 1001, 0),
    }
    link = Link(stream_window=1000, straight=straight)
    link.hostile(link.client, frames[kind])
    assert_violation(link, link.server, FLOW_CONTROL)


@both_roads
@pytest.mark.parametrize("kind", ["reset", "reset at"])
def test_final_sizes_count_for_the_connection(kind: str, straight: bool) -> None:
    link = Link(stream_window=1000, connection_window=1500, straight=straight)
    link.server.reading = False
    link.hostile(link.client, stream_frame(4, 0, bytes(600)))
    for final_size in (900, 901):
        frames = {
            "reset": frame(0x04, 0, 1, final_size),
            "reset at": reset_at_frame(0, 1, final_size, 0),
        }
        if final_size == 900:
            other = Link(stream_window=1000, connection_window=1500, straight=straight)
            other.server.reading = False
            other.hostile(other.client, stream_frame(4, 0, bytes(600)))
            other.hostile(other.client, frames[kind])
            assert other.server.end is None
            assert other.server.resets == {0: 1}
        else:
            link.hostile(link.client, frames[kind])
            assert_violation(link, link.server, FLOW_CONTROL)


@both_roads
@pytest.mark.parametrize("unidirectional", [True, False])
def test_more_streams_than_are_allowed(unidirectional: bool, straight: bool) -> None:
    link = Link(max_streams=3, max_receive_streams=3, straight=straight)
    kind = 2 if unidirectional else 0
    link.hostile(link.client, stream_frame(8 + kind, 0, b"x"))
    assert link.server.end is None
    # All lower-numbered ones are open with it (RFC 9000 section 2.1).
    assert link.server.engine.open_streams == 3
    link.hostile(link.client, stream_frame(12 + kind, 0, b"x"))
    assert_violation(link, link.server, STREAM_LIMIT)


@both_roads
@pytest.mark.parametrize("gaps", [3, 1000])
def test_gaps_in_what_was_received(gaps: int, straight: bool) -> None:
    link = Link(max_gaps=gaps, straight=straight)
    per_packet = 250
    count = 0
    while count < gaps:
        chosen = range(count, min(count + per_packet, gaps))
        link.hostile(link.client, b"".join(stream_frame(0, 2 * n + 1, b"x") for n in chosen))
        count = chosen.stop
    assert link.server.end is None
    # They are filled again, and the data is whole.
    for start in range(0, gaps, per_packet):
        frames = [stream_frame(0, 2 * n, b"y") for n in range(start, min(start + per_packet, gaps))]
        link.hostile(link.client, b"".join(frames))
    assert link.server.data[0] == b"yx" * gaps
    for start in range(0, gaps + 1, per_packet):
        chosen = range(start, min(start + per_packet, gaps + 1))
        link.hostile(
            link.client, b"".join(stream_frame(0, 2 * gaps + 2 * n + 1, b"x") for n in chosen)
        )
    assert ended(link.server) == (EndKind.TRANSPORT, FLOW_CONTROL)


def test_gaps_are_a_thousand_by_default() -> None:
    assert Link(connect=False).server.engine.config.max_gaps == 1000


@both_roads
@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.ONE_RTT])
def test_crypto_data_that_is_held(epoch: Epoch, straight: bool) -> None:
    link = Link(connect=epoch is Epoch.ONE_RTT, straight=straight)
    if epoch is Epoch.INITIAL:
        link.start()
        link.run(until=lambda: link.server.engine.route is not None)
    # A datagram with an Initial packet has 1200 bytes (RFC 9000 section 14.1).
    padding = bytes(1150) if epoch is Epoch.INITIAL else b""
    limit = 65536 + link.server.engine._crypto_streams[epoch].receiver.starting_offset()
    link.hostile(link.client, crypto_frame(limit - 1, b"x") + padding, epoch)
    assert link.server.end is None
    link.hostile(link.client, crypto_frame(limit, b"x") + padding, epoch)
    assert ended(link.server) == (EndKind.TRANSPORT, 0x0D)


@both_roads
def test_a_message_of_the_handshake_that_never_ends(straight: bool) -> None:
    """In order, so that nothing waits for a gap, but TLS waits for the rest of the message."""
    link = Link(straight=straight)
    sent = frame(b"\x04\xff\xff\xff")  # NewSessionTicket of 2^24 bytes
    offset = link.client.engine._crypto_streams[Epoch.ONE_RTT].receiver.starting_offset()
    count = 0
    while link.client.end is None and count < 100:
        link.hostile(link.server, crypto_frame(offset, sent))
        offset += len(sent)
        sent = bytes(1000)
        count += 1
    assert 64 <= count <= 67
    assert_violation(link, link.client, 0x0D)


# ---- frames that break the rules


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "an unknown frame": (frame(0x40), FRAME_ENCODING),
    "an unknown frame with a long type": (frame(0x1234567), FRAME_ENCODING),
    "a type that is cut": (b"\x01\x40", FRAME_ENCODING),
    "a STREAM frame that is cut": (frame(0x0E, 0, 0, 10, b"five"), FRAME_ENCODING),
    "a STREAM frame without anything": (b"\x01\x01\x08", FRAME_ENCODING),
    "an ACK that is cut": (b"\x02\x05", FRAME_ENCODING),
    "an ACK of less than nothing": (ack_frame(3, first_range=4), FRAME_ENCODING),
    "a RESET_STREAM_AT that is cut": (b"\x24\x00\x01", FRAME_ENCODING),
    "an offset beyond all": (frame(0x0E, 0, 2**62 - 1, 1, b"x"), FRAME_ENCODING),
    "a reliable size beyond the final": (reset_at_frame(0, 1, 5, 6), FRAME_ENCODING),
    "MAX_STREAMS beyond all": (frame(0x12, 2**60 + 1), FRAME_ENCODING),
    "data on a stream of ours that is not open": (stream_frame(1, 0, b"x"), STREAM_STATE),
    "data on a stream on which only we send": (stream_frame(3, 0, b"x"), STREAM_STATE),
    "a reset of a stream on which only we send": (frame(0x04, 3, 1, 0), STREAM_STATE),
    "a reset at of a stream on which only we send": (reset_at_frame(3, 1, 0, 0), STREAM_STATE),
    "a reset at of a stream of ours that is not open": (reset_at_frame(1, 1, 0, 0), STREAM_STATE),
    "a stop of a stream on which only the peer sends": (frame(0x05, 2, 1), STREAM_STATE),
    "HANDSHAKE_DONE from a client": (frame(0x1E), PROTOCOL_VIOLATION),
    "NEW_TOKEN from a client": (frame(0x07, 1, b"t"), PROTOCOL_VIOLATION),
    "an id retired that was not given out": (frame(0x19, 100), PROTOCOL_VIOLATION),
    "another final size": (
        stream_frame(0, 5, b"", fin=True) + stream_frame(0, 6, b"", fin=True),
        FINAL_SIZE,
    ),
    "a final size below the data": (
        stream_frame(0, 5, b"x") + stream_frame(0, 5, b"", fin=True),
        FINAL_SIZE,
    ),
    "data behind the end": (
        stream_frame(0, 0, b"end", fin=True) + stream_frame(0, 3, b"x"),
        FINAL_SIZE,
    ),
    "a reset below the data": (stream_frame(0, 5, b"x") + frame(0x04, 0, 1, 5), FINAL_SIZE),
    "a reset at another end": (
        stream_frame(0, 5, b"x", fin=True) + frame(0x04, 0, 1, 7),
        FINAL_SIZE,
    ),
}


@both_roads
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations(name: str, known: bool, straight: bool) -> None:
    frames, code = VIOLATIONS[name]
    link = Link(straight=straight)
    if known:
        link.hostile(link.client, stream_frame(0, 0, b""))
    link.hostile(link.client, frames)
    assert_violation(link, link.server, code)
    assert not link.server.datagrams


@both_roads
def test_a_packet_without_frames(straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    number = client._packet_number
    header = bytes([0x43]) + client._peer_cid.cid + number.to_bytes(4)
    crypto = client._cryptos[Epoch.ONE_RTT]
    link.inject(link.server, crypto.encrypt_packet(header, b"", number))
    assert_violation(link, link.server, PROTOCOL_VIOLATION)


@both_roads
@pytest.mark.parametrize("bits", [0x08, 0x10])
def test_reserved_bits(bits: int, straight: bool) -> None:
    link = Link(straight=straight)
    client = link.client.engine
    number = client._packet_number
    header = bytes([0x41 | bits]) + client._peer_cid.cid + number.to_bytes(2)
    data = client._cryptos[Epoch.ONE_RTT].encrypt_packet(header, bytes([1, 0, 0, 0]), number)
    link.inject(link.server, data)
    assert_violation(link, link.server, PROTOCOL_VIOLATION)


@both_roads
@pytest.mark.parametrize("by_client", [True, False])
def test_an_acknowledgement_of_a_packet_never_sent(by_client: bool, straight: bool) -> None:
    link = Link(straight=straight)
    mad, victim = link.sides if by_client else link.sides[::-1]
    link.hostile(mad, ack_frame(victim.engine._packet_number - 1))
    assert victim.end is None
    link.hostile(mad, ack_frame(victim.engine._packet_number))
    assert_violation(link, victim, PROTOCOL_VIOLATION)


def test_an_acknowledgement_of_a_packet_never_sent_in_the_handshake() -> None:
    link = Link(connect=False)
    link.start()
    link.run(until=lambda: bool(link.server.engine.route))
    link.hostile(link.client, ack_frame(100) + bytes(1180), Epoch.INITIAL)
    assert ended(link.server) == (EndKind.TRANSPORT, PROTOCOL_VIOLATION)


# ---- floods


@both_roads
def test_a_peer_that_acknowledges_nothing(straight: bool) -> None:
    """What we must remember of the packets that we answer with is bounded."""
    link = Link(straight=straight)
    space = link.server.engine._spaces[Epoch.ONE_RTT]
    most = 0
    for number in range(2000):
        if number % 3 == 0:
            link.client.packet(frame(0x01))  # lost, so that ranges are to be acknowledged
        link.drop = lambda sender, data: True
        link.hostile(link.client, frame(0x01))
        link.run(0.002)
        most = max(most, len(space.sent_packets))
    assert link.server.end is None
    assert link.server.engine.packets_sent > 1800
    assert most < 1500


@both_roads
def test_a_flood_of_path_challenges_is_answered_in_part(straight: bool) -> None:
    link = Link(straight=straight)
    sent = link.server.engine.packets_sent
    link.hostile(link.client, b"".join(frame(0x1A, bytes(7) + bytes([n])) for n in range(200)))
    assert link.server.end is None
    assert link.server.engine.packets_sent - sent <= 2


@both_roads
def test_a_flood_of_connection_ids(straight: bool) -> None:
    link = Link(straight=straight)
    for number in range(100, 400):
        link.hostile(
            link.client,
            frame(0x18, number, number, b"\x08", number.to_bytes(8), number.to_bytes(16)),
        )
        if link.server.end is not None:
            break
    engine = link.server.engine
    assert len(engine._retire_connection_ids) <= 100
    assert len(engine._peer_cid_available) <= 8


@both_roads
def test_streams_that_open_and_end_leave_nothing(straight: bool) -> None:
    """A rapid reset: each stream is opened, and reset or ended, in one packet."""
    link = Link(straight=straight)
    for number in range(300):
        stream_id = 4 * number + 2
        frames = stream_frame(stream_id, 0, b"x") + frame(0x04, stream_id, 1, 20)
        if number % 3 == 0:
            frames += reset_at_frame(stream_id, 1, 20, 10)
        if number % 3 == 1:
            frames = reset_at_frame(stream_id, 1, 20, 10) + frames
        link.hostile(link.client, frames)
        link.run(0.01)
    link.run(1)
    assert link.server.end is None
    engine = link.server.engine
    assert not engine._streams
    assert not engine._windows
    assert not engine._resets.awaited
    assert not len(engine._active)
    assert_whole(link.server)


numbers = st.one_of(st.integers(0, 40), st.sampled_from([2**14, 2**20, 2**40, 2**62 - 1]))
frames = st.one_of(
    st.builds(
        lambda kind, values: frame(kind, *values),
        st.sampled_from([0x01, 0x04, 0x05, *range(0x10, 0x18), 0x19, 0x1E, 0x24]),
        st.lists(numbers, max_size=5),
    ),
    st.builds(stream_frame, st.integers(0, 12), numbers, st.binary(max_size=20), fin=st.booleans()),
    st.builds(reset_at_frame, st.integers(0, 12), numbers, st.integers(0, 60), st.integers(0, 60)),
    st.builds(crypto_frame, numbers, st.binary(max_size=20)),
    st.builds(lambda data: frame(0x30, data), st.binary(max_size=20)),
    st.builds(ack_frame, numbers, first_range=numbers),
    st.builds(
        lambda *parts: frame(0x18, *parts),
        numbers,
        numbers,
        st.binary(min_size=1, max_size=9),
        st.binary(min_size=16, max_size=24),
    ),
    st.binary(max_size=10),
)


@both_roads
@settings(max_examples=120, deadline=None)
@given(st.lists(frames, min_size=1, max_size=12), st.booleans(), st.booleans())
def test_any_frames_in_any_order(
    straight: bool, chosen: list[bytes], by_client: bool, together: bool
) -> None:
    """They break the rules or not; no bug of ours is found, and the peer is told what it did."""
    link = Link(straight=straight, max_streams=4, max_receive_streams=4)
    mad, victim = link.sides if by_client else link.sides[::-1]
    stream_id = victim.open()
    victim.send(stream_id, b"hello")
    link.run(0.1)
    for each in [b"".join(chosen)] if together else chosen:
        link.hostile(mad, each or b"\x00")
        if victim.end is not None:
            break
    link.run(1)
    # It may have asked for packets to an id that it does not know itself.
    reaches = victim.engine._peer_cid.cid in mad.engine.connection_ids
    if victim.end is None:
        victim.ping(1)
        link.run(5)
        assert victim.pings or mad.end is not None or not reaches
    else:
        assert victim.end.kind is not EndKind.LOST
        assert victim.end.remote or victim.end.code not in (0, 1)
        assert victim.engine.is_silent
        assert mad.end is not None or not reaches


@both_roads
@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 200), st.booleans())
def test_stream_data_in_any_pieces(
    straight: bool, data: st.DataObject, size: int, fin: bool
) -> None:
    """Pieces in any order, overlapping and repeated, give the bytes once and in order."""
    link = Link(straight=straight)
    whole = bytes(range(size))
    cuts: Any = st.tuples(st.integers(0, size), st.integers(0, size))
    pieces = [tuple(sorted(cut)) for cut in data.draw(st.lists(cuts, max_size=12))]
    for start, stop in data.draw(st.permutations([*pieces, (0, size // 2), (size // 2, size)])):
        end = fin and stop == size
        link.hostile(link.client, stream_frame(0, start, whole[start:stop], fin=end))
        assert whole.startswith(bytes(link.server.data.get(0, b"")))
    assert link.server.end is None
    assert link.server.data[0] == whole
    assert (0 in link.server.ended) == fin
    assert link.server.engine._local_max_data.used == size
