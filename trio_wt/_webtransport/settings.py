"""What can be set where WebTransport is opened or served."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from .._protocol.http3_codes import MAX_APPLICATION_CODE, Http3Code
from .._quic.settings import QuicSettings, QuicSettingsKwargs

__all__ = ["WebTransportSettings", "WebTransportSettingsKwargs"]

_MAX: Final = 2**62 - 1
_CRITICAL_STREAMS: Final = 3


class WebTransportSettingsKwargs(QuicSettingsKwargs, total=False):
    """Keyword arguments that every way to open or serve WebTransport takes; `WebTransportSettings` says what they mean."""

    max_sessions: int
    session_window: int
    max_session_window: int
    max_early_streams: int
    max_early_datagrams: int
    early_timeout: float
    max_field_section: int
    max_fields: int


@dataclass(frozen=True, slots=True)
class WebTransportSettings(QuicSettings):
    """A connection's settings, and those of its sessions: what `QuicSettings` has, and more. Sizes are in bytes, times in seconds.

    ``cancelled_code`` and ``failed_code`` are those of streams and sessions, below 2^32; ``max_streams`` and
    ``max_receive_streams`` count for each session too.

    Args:
        max_sessions: how many sessions a connection may have at a time; past it, requests are answered with status 429.
        session_window: what a peer may send on all streams of a session ahead of what the application has taken, to start
            with; it grows while it is what limits the peer.
        max_session_window: what it may grow to.
        max_early_streams: how many streams may wait on a connection for sessions that are not open yet.
        max_early_datagrams: how many datagrams may.
        early_timeout: for how long they may.
        max_field_section: the largest head of a request or response, in bytes as RFC 9114 section 4.2.2 counts them.
        max_fields: how many fields it may have.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_sessions: int = 16
    session_window: int = 2**18
    max_session_window: int = 2**24
    max_early_streams: int = 16
    max_early_datagrams: int = 16
    early_timeout: float = 5
    max_field_section: int = 65536
    max_fields: int = 128

    def __post_init__(self) -> None:
        # Without arguments, super() does not find its way in a dataclass with slots.
        super(WebTransportSettings, self).__post_init__()
        for name in ("max_sessions", "session_window", "max_field_section", "max_fields"):
            self._check(name, 1, _MAX)
        for name in ("max_early_streams", "max_early_datagrams"):
            self._check(name, 0, _MAX)
        for name in ("cancelled_code", "failed_code"):
            self._check(name, 0, MAX_APPLICATION_CODE)
        self._check("max_session_window", self.session_window, _MAX)
        if not self.early_timeout > 0:
            raise ValueError(f"early_timeout must be greater than 0, and is {self.early_timeout}")

    def for_connection(self) -> WebTransportSettings:
        """The same for the connection itself, and for requests, which have HTTP/3's codes."""
        return replace(
            self,
            # Requests, and the streams that HTTP/3 itself needs, come on top (RFC 9114 section 6.2).
            # A session whose streams nobody takes must not keep the others from theirs.
            max_streams=2 * self.max_streams + self.max_sessions,
            max_receive_streams=2 * self.max_receive_streams + _CRITICAL_STREAMS,
            # Nor may what nobody reads of some sessions stop the others.
            connection_window=min(
                self.connection_window + self.max_sessions * self.session_window,
                self.max_connection_window,
            ),
            cancelled_code=Http3Code.REQUEST_CANCELLED,
            failed_code=Http3Code.INTERNAL_ERROR,
            # It is the sessions' blocks that are cancelled.
            cancel_on_close=False,
        )
