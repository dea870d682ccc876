"""What can be set on a QUIC connection, the same for clients and servers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from .._protocol.path_mtu import BASE_SIZE
from .._protocol.quic import VERSIONS

__all__ = ["QuicSettings", "QuicSettingsKwargs", "check_alpn", "check_port"]

_MAX_CODE = 2**62 - 1
# Ten years; the wire has milliseconds in 62 bits.
_MAX_TIME = 315_360_000
#: Larger packets would need longer length fields than the engine writes.
_MAX_PACKET_SIZE = 16383


def check_alpn(alpn: Sequence[str]) -> None:
    """Raise `ValueError` or `TypeError` for what are no application protocols (RFC 7301 section 3.1)."""
    if isinstance(alpn, str):
        raise TypeError(f"alpn must be a sequence of protocols, not one of them: {alpn!r}")
    if not alpn:
        raise ValueError("alpn must name at least one application protocol (RFC 9001 section 8.1)")
    for protocol in alpn:
        if not (protocol.isascii() and 0 < len(protocol) < 256):
            raise ValueError(
                f"an application protocol is 1 to 255 ASCII characters, not {protocol!r}"
            )


def check_port(port: int) -> None:
    """Raise `ValueError` for what is no UDP port: the system would take it modulo 65536."""
    if not 0 <= port < 2**16:
        raise ValueError(f"a port is from 0 to 65535, not {port}")


class QuicSettingsKwargs(TypedDict, total=False):
    """Keyword arguments that every way to open or serve QUIC takes; `QuicSettings` says what they mean."""

    max_streams: int
    max_receive_streams: int
    stream_window: int
    max_stream_window: int
    connection_window: int
    max_connection_window: int
    send_buffer: int
    datagrams: bool
    max_datagram_queue: int
    idle_timeout: float
    keep_alive: float | None
    close_timeout: float
    max_packet_size: int
    congestion_control: Literal["cubic", "reno"]
    versions: Sequence[Literal[1, 2]]
    key_update_packets: int
    qlog_dir: str | os.PathLike[str] | None
    cancelled_code: int
    failed_code: int
    cancel_on_close: bool


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """A connection's settings. Sizes are in bytes, times in seconds.

    Args:
        max_streams: how many bidirectional streams of the peer's may be open; a stream counts until the application is
            done with it.
        max_receive_streams: how many unidirectional ones.
        stream_window: what a peer may send on a stream ahead of what the application has taken, to start with; it grows
            while it is what limits the peer.
        max_stream_window: what it may grow to.
        connection_window: the same for all streams of the connection together.
        max_connection_window: what that may grow to.
        send_buffer: how much of a stream may wait to be sent for the first time before ``send_all`` waits.
        datagrams: whether DATAGRAM frames (RFC 9221) are supported.
        max_datagram_queue: how many datagrams may wait to be sent, and how many to be received; past it the oldest is
            dropped and counted.
        idle_timeout: after how long a connection on which nothing is heard is lost; the smaller of both sides' counts.
        keep_alive: send a ping when nothing was sent or heard for so long; None for never.
        close_timeout: how long the end of a block may take to see out what was sent.
        max_packet_size: the upper end of path MTU discovery (RFC 8899), in bytes of UDP payload; 1200 turns it off.
        congestion_control: "cubic" (RFC 9438) or "reno" (RFC 9002).
        versions: the versions of QUIC to speak, best first.
        key_update_packets: after how many packets sent the keys are updated (RFC 9001 section 6).
        qlog_dir: a folder for a qlog file per connection; None for none.
        cancelled_code: the error code that a cancelled block gives its stream, or its connection.
        failed_code: the one of a block that ended by an exception.
        cancel_on_close: cancel the connection's block as soon as the peer closes, or the connection is lost.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_streams: int = 128
    max_receive_streams: int = 128
    stream_window: int = 2**18
    max_stream_window: int = 2**22
    connection_window: int = 2**20
    max_connection_window: int = 2**24
    send_buffer: int = 2**18
    datagrams: bool = True
    max_datagram_queue: int = 256
    idle_timeout: float = 30
    keep_alive: float | None = None
    close_timeout: float = 5
    max_packet_size: int = 8952
    congestion_control: Literal["cubic", "reno"] = "cubic"
    versions: Sequence[Literal[1, 2]] = (1, 2)
    key_update_packets: int = 2**22
    qlog_dir: str | os.PathLike[str] | None = None
    cancelled_code: int = 1
    failed_code: int = 2
    cancel_on_close: bool = False

    def __post_init__(self) -> None:
        for name in ("max_streams", "max_receive_streams"):
            self._check(name, 0, 2**60)
        for name in ("stream_window", "connection_window", "send_buffer", "max_datagram_queue"):
            self._check(name, 1, _MAX_CODE)
        self._check("max_stream_window", self.stream_window, _MAX_CODE)
        self._check("max_connection_window", self.connection_window, _MAX_CODE)
        self._check("max_packet_size", BASE_SIZE, _MAX_PACKET_SIZE)
        self._check("key_update_packets", 1, _MAX_CODE)
        self._check("cancelled_code", 0, _MAX_CODE)
        self._check("failed_code", 0, _MAX_CODE)
        for name in ("idle_timeout", "keep_alive", "close_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, and is {value}")
        if self.idle_timeout > _MAX_TIME:
            raise ValueError(
                f"idle_timeout must be at most {_MAX_TIME}, and is {self.idle_timeout}"
            )
        if self.congestion_control not in ("cubic", "reno"):
            raise ValueError(
                f'congestion_control is "cubic" or "reno", not {self.congestion_control!r}'
            )
        if not self.versions or not set(self.versions) <= set(VERSIONS):
            raise ValueError(f"versions are some of {sorted(VERSIONS)}, not {self.versions!r}")
        if self.qlog_dir is not None and not os.path.isdir(self.qlog_dir):
            raise ValueError(f"qlog_dir is not a folder: {os.fspath(self.qlog_dir)!r}")

    def _check(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, and is {value}")

    def engine_kwargs(self) -> dict[str, Any]:
        """Those of the settings that the engine takes, by the names of `EngineConfig`."""
        return {
            "versions": [VERSIONS[number] for number in self.versions],
            "idle_timeout": self.idle_timeout,
            "stream_window": self.stream_window,
            "max_stream_window": self.max_stream_window,
            "connection_window": self.connection_window,
            "max_connection_window": self.max_connection_window,
            "max_streams": self.max_streams,
            "max_receive_streams": self.max_receive_streams,
            "datagrams": self.datagrams,
            "max_datagram_queue": self.max_datagram_queue,
            "max_packet_size": self.max_packet_size,
            "congestion_control": self.congestion_control,
            "key_update_packets": self.key_update_packets,
            "qlog_dir": None if self.qlog_dir is None else os.fspath(self.qlog_dir),
        }
