"""Where a datagram goes, or came from."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

__all__ = ["Route", "Sockaddr"]

#: A peer's address as sockets give it: (host, port), and for IPv6 (host, port, flow info, scope id).
Sockaddr: TypeAlias = tuple[Any, ...]


class Route(NamedTuple):
    """A way between two sockets.

    Attributes:
        remote: the peer's address.
        local: which of this side's sockets it goes through, counted from 0.
    """

    remote: Sockaddr
    local: int = 0
