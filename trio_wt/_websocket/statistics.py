"""Figures of a connection."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of one connection at one moment; bytes are those on the wire, framing included.

    Attributes:
        bytes_received: bytes read from the transport since the handshake.
        bytes_sent: bytes handed to the transport since the handshake.
        messages_received: whole messages that arrived.
        messages_sent: whole messages that were queued for sending.
        queued_messages: messages that wait to be received by the application.
        queued_bytes: their bytes.
        unparsed_bytes: bytes read from the transport and not looked at yet.
        unsent_bytes: bytes that wait to be sent.
        latency: the last round-trip time measured by a ping, in seconds; None before the first.
        last_heard: when something arrived last, on Trio's clock.
    """

    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    queued_messages: int
    queued_bytes: int
    unparsed_bytes: int
    unsent_bytes: int
    latency: float | None
    last_heard: float
