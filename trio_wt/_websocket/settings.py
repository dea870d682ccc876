"""What can be set on a WebSocket connection, the same for clients and servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from .._protocol.deflate import Deflate
from .._protocol.extensions import Extension

__all__ = ["DEFAULTS", "Settings", "SettingsKwargs"]


class SettingsKwargs(TypedDict, total=False):
    """Keyword arguments that every way to open or serve a WebSocket takes; `Settings` says what they mean."""

    compression: Deflate | None
    extensions: Sequence[Extension]
    max_message_size: int | None
    max_fragments: int
    max_queue_messages: int
    max_queue_bytes: int
    write_limit: int
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float
    cancel_on_close: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """A connection's settings.

    Args:
        compression: how to use permessage-deflate (RFC 7692); None to go without.
        extensions: further extensions, in order of preference, after compression.
        max_message_size: the largest message to receive, in bytes after inflation; past it the connection fails
            with 1009. None for no limit.
        max_fragments: how many frames a received message may come in, an empty last one not counted; past it 1008.
        max_queue_messages: how many received messages may wait for the application. Past it the socket is no
            longer read, but for pings and pongs within 64 KiB, or 256 KiB where one read brings as much.
        max_queue_bytes: how many bytes of received messages may wait.
        write_limit: `WebSocket.send` waits while so many bytes, or more, have not gone to the system yet.
        ping_interval: seconds without anything from the peer after which a ping is sent; None for never.
        ping_timeout: seconds after such a ping without anything from the peer after which the connection fails
            with 1011; None for never.
        close_timeout: seconds that the closing handshake and the last bytes may take before the connection is
            dropped.
        cancel_on_close: cancel the block as soon as the peer closes or the connection is lost.

    Raises:
        ValueError: a limit or a time is not positive.
    """

    compression: Deflate | None = field(default_factory=Deflate)
    extensions: Sequence[Extension] = ()
    max_message_size: int | None = 2**20
    max_fragments: int = 65536
    max_queue_messages: int = 16
    max_queue_bytes: int = 2**20
    write_limit: int = 65536
    ping_interval: float | None = 20
    ping_timeout: float | None = 20
    close_timeout: float = 5
    cancel_on_close: bool = False

    def __post_init__(self) -> None:
        for name in (
            "max_message_size",
            "max_fragments",
            "max_queue_messages",
            "max_queue_bytes",
            "write_limit",
            "ping_interval",
            "ping_timeout",
            "close_timeout",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, and is {value}")

    def all_extensions(self) -> list[Extension]:
        """Every extension to offer or to accept, compression first."""
        compression = [] if self.compression is None else [self.compression]
        return [*compression, *self.extensions]


DEFAULTS = Settings()
