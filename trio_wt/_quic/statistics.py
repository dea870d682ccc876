"""Figures of a QUIC connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .driver import Driver

__all__ = ["QuicStatistics", "statistics_of"]


@dataclass(frozen=True, slots=True)
class QuicStatistics:
    """Figures of one connection at one moment; bytes are those of UDP payloads where nothing else is said.

    Attributes:
        rtt: the smoothed round-trip time in seconds; None before the first measurement.
        min_rtt: the smallest one measured.
        congestion_window: how many bytes may be under way.
        bytes_in_flight: how many are.
        packet_size: the size of a full packet, as path MTU discovery has found it.
        packets_sent: datagrams sent.
        packets_received: datagrams received.
        packets_lost: packets declared lost.
        bytes_sent: bytes sent.
        bytes_received: bytes received.
        open_streams: streams whose state is held.
        unaccepted_streams: streams of the peer's that the application has not taken yet.
        unread_bytes: bytes of streams that have arrived in order and were not received by the application yet.
        unsent_bytes: bytes of streams that were never in a packet yet.
        datagrams_unread: datagrams that wait to be received.
        datagrams_unsent: datagrams that wait to be sent.
        datagrams_dropped_receiving: received datagrams dropped because too many waited.
        datagrams_dropped_sending: datagrams dropped before they were sent, because too many waited or the path's packets
            became smaller.
        last_heard: when something arrived last, on Trio's clock.
    """

    rtt: float | None
    min_rtt: float | None
    congestion_window: int
    bytes_in_flight: int
    packet_size: int
    packets_sent: int
    packets_received: int
    packets_lost: int
    bytes_sent: int
    bytes_received: int
    open_streams: int
    unaccepted_streams: int
    unread_bytes: int
    unsent_bytes: int
    datagrams_unread: int
    datagrams_unsent: int
    datagrams_dropped_receiving: int
    datagrams_dropped_sending: int
    last_heard: float


def statistics_of(
    driver: Driver, *, unaccepted_streams: int, datagrams_unread: int, datagrams_dropped: int
) -> QuicStatistics:
    """The figures of a connection, with those that only what stands on it knows."""
    engine = driver.engine
    unread, unsent = driver.stream_figures
    return QuicStatistics(
        rtt=engine.rtt,
        min_rtt=engine.min_rtt,
        congestion_window=engine.congestion_window,
        bytes_in_flight=engine.bytes_in_flight,
        packet_size=engine.mtu.size,
        packets_sent=engine.packets_sent,
        packets_received=engine.packets_received,
        packets_lost=engine.packets_lost,
        bytes_sent=engine.bytes_sent,
        bytes_received=engine.bytes_received,
        open_streams=engine.open_streams,
        unaccepted_streams=unaccepted_streams,
        unread_bytes=unread,
        unsent_bytes=unsent,
        datagrams_unread=datagrams_unread,
        datagrams_unsent=engine.datagrams_queued,
        datagrams_dropped_receiving=datagrams_dropped,
        datagrams_dropped_sending=engine.datagrams_dropped,
        last_heard=driver.last_heard,
    )
