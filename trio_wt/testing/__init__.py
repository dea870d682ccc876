"""Helpers for tests of applications: connected pairs in memory, fit for Trio's autojump clock."""

from ._websocket import websocket_pair

__all__ = ["websocket_pair"]
