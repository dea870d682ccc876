"""Receive windows and stream counts, which only consumption raises."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import QuicFrameType
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol.quic.credit import ReceiveWindow, StreamsLimit

RTT = 0.1


def test_a_window_to_begin_with() -> None:
    window = ReceiveWindow(100, 400)
    assert (window.size, window.limit, window.consumed) == (100, 100, 0)


def test_the_limit_is_raised_when_half_of_the_window_is_consumed() -> None:
    window = ReceiveWindow(100, 400)
    assert not window.consume(49, 1.0, RTT)
    assert (window.limit, window.consumed) == (100, 49)
    assert window.consume(1, 1.0, RTT)
    assert (window.limit, window.consumed, window.size) == (150, 50, 100)


def test_half_of_an_odd_window() -> None:
    window = ReceiveWindow(101, 101)
    assert not window.consume(50, 1.0, RTT)
    assert window.consume(1, 1.0, RTT)
    assert window.limit == 51 + 101


def test_all_of_the_window_at_once() -> None:
    window = ReceiveWindow(100, 400)
    assert window.consume(100, 1.0, RTT)
    assert (window.limit, window.size) == (200, 100)


def test_the_next_grant_counts_from_the_one_before() -> None:
    window = ReceiveWindow(100, 100)
    assert window.consume(60, 1.0, RTT)
    assert window.limit == 160
    assert not window.consume(49, 2.0, RTT)
    assert window.consume(1, 2.0, RTT)
    assert window.limit == 210


def test_nothing_consumed_raises_nothing() -> None:
    window = ReceiveWindow(100, 400)
    assert not window.consume(0, 1.0, RTT)
    assert window.limit == 100


def test_the_first_grant_never_doubles() -> None:
    window = ReceiveWindow(100, 400)
    assert window.consume(100, 0.0, 1e9)
    assert window.size == 100


@pytest.mark.parametrize(
    ("pause", "size"), [(0.0, 200), (0.125, 200), (0.25, 100), (0.375, 100), (100.0, 100)]
)
def test_the_window_doubles_when_half_of_it_went_within_two_round_trips(
    pause: float, size: int
) -> None:
    window = ReceiveWindow(100, 400)
    assert window.consume(50, 1.0, 0.125)
    assert window.consume(50, 1.0 + pause, 0.125)
    assert window.size == size
    assert window.limit == 100 + size


def test_calls_that_grant_nothing_do_not_count_as_grants() -> None:
    window = ReceiveWindow(100, 400)
    assert window.consume(50, 1.0, 0.125)
    assert not window.consume(49, 2.0, 0.125)
    assert window.consume(1, 2.0, 0.125)
    assert window.size == 100


def test_without_a_measured_round_trip_it_does_not_double() -> None:
    window = ReceiveWindow(100, 400)
    assert window.consume(50, 1.0, 0.0)
    assert window.consume(50, 1.0, 0.0)
    assert window.size == 100


def test_the_window_grows_to_its_maximum_and_no_further() -> None:
    window = ReceiveWindow(100, 350)
    sizes = []
    for _ in range(5):
        assert window.consume(window.size, 1.0, RTT)
        sizes.append(window.size)
        assert window.limit == window.consumed + window.size
    assert sizes == [100, 200, 350, 350, 350]


def test_a_large_window_waits_for_half_of_its_new_size() -> None:
    window = ReceiveWindow(100, 200)
    window.consume(50, 1.0, RTT)
    assert window.consume(50, 1.0, RTT)
    assert (window.size, window.limit) == (200, 300)
    assert not window.consume(99, 1.0, RTT)
    assert window.consume(1, 1.0, RTT)
    assert window.limit == 400


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.integers(0, 3000),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100), st.floats(0, 1)), max_size=40),
)
def test_the_peer_is_never_held_up_nor_let_past_the_window(
    size: int, room: int, steps: list[tuple[float, int, float]]
) -> None:
    window = ReceiveWindow(size, size + room)
    now, total = 0.0, 0
    for share, percent, pause in steps:
        now += pause
        # No more can be consumed than the peer was let send.
        count = int(share * (window.limit - window.consumed) * percent / 100)
        before = window.limit
        granted = window.consume(count, now, RTT)
        total += count
        assert window.consumed == total
        assert granted == (window.limit > before)
        assert window.limit >= before
        assert window.size // 2 < window.limit - window.consumed <= window.size or size == 1
        assert size <= window.size <= size + room


# ---- what aioquic sees of them


def test_stream_counts_wait_for_the_transport_and_the_application() -> None:
    limit = StreamsLimit(QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", 3)
    assert (limit.value, limit.sent, limit.used, limit.released) == (3, 3, 0, 0)
    assert (limit.frame_type, limit.name) == (QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni")
    limit.value += 1  # aioquic discards a stream
    assert limit.value == 3
    limit.released += 1
    assert limit.value == 4
    limit.released += 2
    assert limit.value == 4
    limit.value += 1
    limit.value += 1
    assert limit.value == 6
    limit.value += 1
    assert limit.value == 6
    limit.released += 1
    assert limit.value == 7


@settings(deadline=None)
@given(st.integers(0, 200), st.lists(st.booleans(), max_size=60))
def test_stream_counts_in_any_order(base: int, steps: list[bool]) -> None:
    limit = StreamsLimit(QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", base)
    counts = [0, 0]
    for by_application in steps:
        counts[by_application] += 1
        if by_application:
            limit.released += 1
        else:
            limit.value += 1
        assert limit.value == base + min(counts)
