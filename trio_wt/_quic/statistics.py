"""Figures of a QUIC connection."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QuicStatistics"]


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
