"""What the engine knows of its path and of itself, in figures."""

from __future__ import annotations

from .established import Established

__all__ = ["Figures"]


class Figures(Established):
    """The engine's figures."""

    @property
    def rtt(self) -> float | None:
        """The smoothed round-trip time in seconds; None before the first measurement."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def min_rtt(self) -> float | None:
        """The smallest round-trip time measured."""
        return self._loss._rtt_min if self._loss._rtt_initialized else None

    @property
    def congestion_window(self) -> int:
        """Bytes that may be under way."""
        return self._loss.congestion_window

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that are under way."""
        return self._loss.bytes_in_flight

    @property
    def probe_timeout(self) -> float:
        """How long to wait for an answer before asking again, in seconds (RFC 9002 section 6.2)."""
        return self._loss.get_probe_timeout()

    @property
    def open_streams(self) -> int:
        """Streams whose state is held."""
        return len(self._streams)
