"""Pings on their way, and what their pongs tell."""

from __future__ import annotations

import random

import trio

__all__ = ["PendingPing", "Pings"]


class PendingPing:
    """A ping on its way, and the round-trip time in seconds once it is known."""

    __slots__ = ("done", "round_trip", "sent_at")

    def __init__(self, sent_at: float) -> None:
        self.sent_at: float = sent_at
        self.round_trip: float | None = None
        #: set when the pong has come, or never will
        self.done: trio.Event = trio.Event()


class Pings:
    """All pings of a connection that were not answered yet, oldest first.

    Attributes:
        latency: the last round-trip time in seconds; None before the first.
    """

    __slots__ = ("_pending", "latency")

    def __init__(self) -> None:
        self._pending: dict[bytes, PendingPing] = {}
        self.latency: float | None = None

    def new_payload(self) -> bytes:
        """A payload that no ping under way has."""
        payload = random.randbytes(4)
        while payload in self._pending:
            payload = random.randbytes(4)
        return payload

    def __contains__(self, payload: bytes) -> bool:
        return payload in self._pending

    def sent(self, payload: bytes) -> PendingPing:
        """A ping with this payload is going out now."""
        pending = self._pending[payload] = PendingPing(trio.current_time())
        return pending

    def answered(self, payload: bytes) -> None:
        """A pong has come. One that answers no ping is ignored (RFC 6455 section 5.5.3)."""
        if payload not in self._pending:
            return
        # A peer may answer only the newest of several pings; that answers those before it too.
        now = trio.current_time()
        for key in list(self._pending):
            pending = self._pending.pop(key)
            self.latency = pending.round_trip = now - pending.sent_at
            pending.done.set()
            if key == payload:
                return

    def give_up(self) -> None:
        """No pong will come any more."""
        for pending in self._pending.values():
            pending.done.set()
        self._pending.clear()
