"""Figures of a WebTransport session."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SessionStatistics"]


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Figures of one session at one moment.

    Attributes:
        open_streams: streams that the application has, or could take.
        unaccepted_streams: streams of the peer's that the application has not taken yet.
        unread_bytes: bytes of streams that have arrived in order and were not received by the application yet.
        unsent_bytes: bytes of streams that were never in a packet yet.
        datagrams_unread: datagrams that wait to be received.
        datagrams_dropped: received datagrams that were dropped because too many waited.
        send_credit: how many bytes the session's flow control still lets this side send; None where it is off.
        dialect: the drafts of WebTransport over HTTP/3 that the peer was spoken to in.
    """

    open_streams: int
    unaccepted_streams: int
    unread_bytes: int
    unsent_bytes: int
    datagrams_unread: int
    datagrams_dropped: int
    send_credit: int | None
    dialect: str
