"""The pacer: bursts of two milliseconds, and few wake-ups."""

from __future__ import annotations

import pytest

from trio_wt._protocol.quic.pacer import BurstPacer

NOW = 1000.0


def pacer(window: int, rtt: float, *, size: int = 1200) -> BurstPacer:
    made = BurstPacer(max_datagram_size=size)
    made.update_rate(window, rtt)
    return made


def burst(pacer: BurstPacer, now: float) -> int:
    """How many packets go before there is a pause."""
    count = 0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        count += 1
        assert count < 10_000
    return count


def test_before_the_first_measurement_everything_goes() -> None:
    made = BurstPacer(max_datagram_size=1200)
    assert made.packet_time is None
    assert made.next_send_time(NOW) is None
    made.update_after_send(NOW)
    assert made.next_send_time(NOW) is None


def test_the_rate_is_that_of_the_window_over_the_round_trip() -> None:
    made = pacer(120_000, 0.1)
    assert made.packet_time == pytest.approx(0.001)


def test_slow_paths_send_bursts_of_16_packets() -> None:
    made = pacer(12_000, 0.1)  # 10 ms a packet
    assert made.bucket_max == pytest.approx(0.16)
    assert burst(made, NOW) == pytest.approx(16, abs=1)


def test_fast_paths_send_bursts_of_two_milliseconds() -> None:
    made = pacer(12_000_000, 0.1)  # 10 us a packet
    assert made.bucket_max == 0.002
    assert burst(made, NOW) == pytest.approx(200, abs=2)


@pytest.mark.parametrize(("window", "rtt"), [(12_000, 0.1), (12_000_000, 0.1)])
def test_over_time_the_rate_is_kept(window: int, rtt: float) -> None:
    made = pacer(window, rtt)
    assert made.packet_time is not None
    now, sent = NOW, burst(made, NOW)
    first = sent
    for _ in range(100):
        due = made.next_send_time(now)
        assert due is not None
        now = due
        sent += burst(made, now)
    assert sent - first == pytest.approx((now - NOW) / made.packet_time, rel=0.02, abs=2)


def test_wake_ups_are_a_millisecond_apart_at_least() -> None:
    fast = pacer(12_000_000, 0.1)
    burst(fast, NOW)
    assert fast.next_send_time(NOW) == NOW + 0.001
    slow = pacer(12_000, 0.1)
    burst(slow, NOW)
    assert slow.next_send_time(NOW) == pytest.approx(NOW + 0.01)


def test_what_was_asked_for_is_enough_for_a_packet() -> None:
    """Otherwise a wake-up would be for nothing."""
    for window, rtt in ((12_000, 0.1), (12_000_000, 0.1), (4800, 3.0)):
        made = pacer(window, rtt)
        burst(made, NOW)
        due = made.next_send_time(NOW)
        assert due is not None
        assert due > NOW
        assert made.next_send_time(due) is None


def test_an_idle_pacer_saves_no_more_than_a_burst() -> None:
    made = pacer(12_000, 0.1)
    burst(made, NOW)
    assert burst(made, NOW + 1000) == pytest.approx(16, abs=1)


def test_a_faster_rate_shortens_what_was_saved() -> None:
    made = pacer(12_000, 0.1)
    assert made.next_send_time(NOW) is None
    assert made.bucket_time == pytest.approx(0.16)
    made.update_rate(12_000_000, 0.1)
    assert made.bucket_time == 0.002
    assert burst(made, NOW) == pytest.approx(200, abs=2)


def test_larger_packets_take_longer() -> None:
    made = BurstPacer(max_datagram_size=1200)
    made.max_datagram_size = 8952
    made.update_rate(89_520, 0.1)
    assert made.packet_time == pytest.approx(0.01)


def test_a_round_trip_of_nothing_is_no_division_by_zero() -> None:
    made = pacer(12_000, 0.0)
    assert made.packet_time == pytest.approx(1e-7)
