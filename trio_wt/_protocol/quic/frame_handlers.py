"""Which method handles which frame: one table for all connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch

from .reset_at import RESET_STREAM_AT

__all__ = ["SHORT_HANDLERS", "FrameHandlers"]

#: The names of the methods for frames of 1-RTT packets.
SHORT_HANDLERS: Final[dict[int, str]] = {}

_STREAM_EPOCHS: Final = frozenset((Epoch.ZERO_RTT, Epoch.ONE_RTT))
_HANDLERS: Final[dict[int, tuple[str, frozenset[Epoch]]]] = {}


class FrameHandlers:
    """In place of aioquic's table of bound methods, of which each connection would have its own: 13 KiB.

    Args:
        connection: whose methods they are.
        own: aioquic's table, which the first connection fills ours from.
    """

    __slots__ = ("_connection",)

    def __init__(
        self,
        connection: QuicConnection,
        own: dict[int, tuple[Callable[..., None], frozenset[Epoch]]],
    ) -> None:
        self._connection = connection
        if not _HANDLERS:
            _HANDLERS.update(
                {kind: (method.__name__, epochs) for kind, (method, epochs) in own.items()}
            )
            _HANDLERS[RESET_STREAM_AT] = ("_handle_reset_stream_at", _STREAM_EPOCHS)
            for kind, (name, epochs) in _HANDLERS.items():
                if Epoch.ONE_RTT in epochs:
                    SHORT_HANDLERS[kind] = name

    def __getitem__(self, kind: int) -> tuple[Any, frozenset[Epoch]]:
        name, epochs = _HANDLERS[kind]
        return getattr(self._connection, name), epochs
