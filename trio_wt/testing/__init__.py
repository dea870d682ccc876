"""Helpers for tests of applications: connected pairs in memory, fit for Trio's autojump clock."""

from ._network import Network, NetworkSocket, NetworkStatistics
from ._quic import quic_pair
from ._websocket import websocket_pair
from ._webtransport import webtransport_pair

__all__ = [
    "Network",
    "NetworkSocket",
    "NetworkStatistics",
    "quic_pair",
    "websocket_pair",
    "webtransport_pair",
]
