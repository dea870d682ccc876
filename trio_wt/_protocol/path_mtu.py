"""Packetization layer path MTU discovery (RFC 8899, RFC 9000 section 14.3): upward by probes, downward on loss."""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["BASE_SIZE", "PathMtu"]

#: What every path that carries QUIC carries (RFC 9000 section 14).
BASE_SIZE: Final = 1200

# UDP payloads that common links carry: Ethernet over IPv6 and over IPv4, and jumbo frames of two sizes. A packet of 16384
# bytes and more would need longer length fields than the engine writes.
_CANDIDATES: Final = (1452, 1472, 4048, 8952)
_MAX_PROBES: Final = 3  # RFC 8899 section 5.1.2
_RAISE_INTERVAL: Final = 600.0  # RFC 8899 section 5.1.1: PMTU_RAISE_TIMER
_BLACK_HOLE_PAUSE: Final = 30.0


class PathMtu:
    """The size of packets on one path: which is in use, and what to probe next.

    Args:
        maximum: no packet becomes larger than this, in bytes of UDP payload.

    Attributes:
        size: what the path is known to carry.
        maximum: the bound, which the peer's may lower.
        wanted: whether larger packets would be of use. Until then there are no probes: of a connection that says little
            they would be most of the traffic.
    """

    __slots__ = (
        "_failures",
        "_pending",
        "_probe_at",
        "_vanished",
        "_vanishing_since",
        "maximum",
        "size",
        "wanted",
    )

    def __init__(self, maximum: int) -> None:
        self.maximum: int = maximum
        self.size: int = BASE_SIZE
        self.wanted: bool = False
        self._failures = 0
        # Large packets that were lost since the last one that got through, and since when.
        self._vanished = 0
        self._vanishing_since: float | None = None
        self._pending: int | None = None
        self._probe_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether `probe` may have something to send now."""
        return self.wanted and self._pending is None and now >= self._probe_at

    def probe(self, now: float) -> int | None:
        """The size of a probe to send now, which then is under way; None for none."""
        if not self.is_due(now):
            return None
        larger = [size for size in (*_CANDIDATES, self.maximum) if self.size < size <= self.maximum]
        if not larger:
            self._probe_at = inf
            return None
        self._pending = min(larger)
        return self._pending

    def acknowledged(self, size: int) -> None:
        """A probe of ``size`` bytes arrived."""
        if size != self._pending:
            return  # a black hole was found, or the path changed, while it was under way
        self._pending = None
        self._failures = 0
        self.size = size

    def lost(self, size: int, now: float) -> None:
        """A probe of ``size`` bytes was lost."""
        if size != self._pending:
            return
        self._pending = None
        self._failures += 1
        if self._failures >= _MAX_PROBES:
            self._failures = 0
            self._probe_at = now + _RAISE_INTERVAL

    def vanished(self, count: int, now: float) -> None:
        """Packets larger than the base were lost."""
        self._vanished += count
        if self._vanishing_since is None:
            self._vanishing_since = now

    def got_through(self, size: int) -> None:
        """A packet of ``size`` bytes was acknowledged."""
        if size > BASE_SIZE:
            self._vanished = 0
            self._vanishing_since = None

    def is_black_hole(self, now: float, patience: float) -> bool:
        """Whether large packets have vanished for that long, and none got through, whatever became of small ones."""
        since = self._vanishing_since
        return since is not None and self._vanished >= _MAX_PROBES and now - since >= patience

    def black_hole(self, now: float) -> None:
        """Full packets vanish: back to the base, and search again after a while (RFC 8899 section 4.3)."""
        self.restart(now + _BLACK_HOLE_PAUSE)

    def restart(self, at: float) -> None:
        """The path has changed: nothing is known of it, and the search begins at ``at``."""
        self.size = BASE_SIZE
        self._failures = self._vanished = 0
        self._vanishing_since = None
        self._pending = None
        self._probe_at = at
