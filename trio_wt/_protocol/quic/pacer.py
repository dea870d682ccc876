"""Pacing in bursts: a program in Python cannot afford a wake-up for each packet."""

from __future__ import annotations

from typing import Final

from aioquic.quic.recovery import QuicPacketPacer

__all__ = ["BurstPacer"]

# RFC 9002 section 7.7 leaves the burst to the sender, but asks it to stay within the initial window at a time.
_QUANTUM: Final = 0.002
_PAUSE: Final = 0.001
_BURST: Final = 16


class BurstPacer(QuicPacketPacer):
    """A leaky bucket that holds two milliseconds, or 16 packets, and asks for a wake-up once a millisecond at most.

    Args:
        max_datagram_size: the size of a full packet, in bytes.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.max_datagram_size: int = max_datagram_size

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Take over the rate that the congestion controller allows, in bytes and seconds."""
        self.packet_time = self.max_datagram_size * max(smoothed_rtt, 1e-6) / congestion_window
        self.bucket_max = max(_BURST * self.packet_time, _QUANTUM)
        self.bucket_time = min(self.bucket_time, self.bucket_max)

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]
        """When the next packet may go; None for now."""
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        if self.bucket_time > 0:
            return None
        return now + max(self.packet_time, _PAUSE)
