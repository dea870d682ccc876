"""A congestion window that grows only where it is used (RFC 9002 section 7.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic.quic.congestion.base import QuicCongestionControl

__all__ = ["hold_unused_window"]


def hold_unused_window(
    controller: QuicCongestionControl, acknowledged: Callable[[int], None]
) -> None:
    """Keep a controller's window from growing while it is not what limits the sender.

    aioquic lets it grow with every acknowledgement, which after a while of slow sending allows a burst that no path has
    been tried with. Half of the window under way counts as using it, as slow start doubles it in a round trip.

    Args:
        controller: aioquic's.
        acknowledged: gets the size of each packet that was acknowledged.
    """
    on_packet_acked = controller.on_packet_acked

    def hold(*, now: float, packet: Any) -> None:
        window, used = controller.congestion_window, controller.bytes_in_flight
        on_packet_acked(now=now, packet=packet)
        acknowledged(packet.sent_bytes)
        if 2 * used < window < controller.congestion_window:
            controller.congestion_window = window

    controller.on_packet_acked = hold  # type: ignore[method-assign]
