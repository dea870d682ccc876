"""What a pool has to know of a session, kind by kind."""

from __future__ import annotations

from typing import Final, Protocol

import trio

from .._errors import ConnectionClosed, ConnectionClosedError
from .._quic.connection import Connection
from .._websocket.websocket import WebSocket
from .._webtransport.connection import WebTransportConnection
from .._webtransport.session import WebTransportSession
from ._transient import is_transient

__all__ = [
    "PoolSession",
    "has_ended",
    "is_clean",
    "is_leaving",
    "loss_of",
    "ping",
    "users_of",
]

_SHARED: Final = 64
_CLEAN_CODES: Final = {1000, 1001, 1005}


class PoolSession(Protocol):
    """What a `SessionPool` can hold: every kind of session of this package, and whatever else has an end."""

    async def wait_closed(self) -> object:
        """Wait for its end."""


def users_of(session: PoolSession) -> int:
    """How many may use it at a time, where nobody has said so: the messages of two would mix on a WebSocket."""
    return 1 if isinstance(session, WebSocket) else _SHARED


async def ping(session: PoolSession) -> None:
    """Wait for a sign of life from the other end, where the kind of session can ask for one.

    Raises:
        ConnectionClosed: it has ended.
        trio.ClosedResourceError: it was closed on this side.
    """
    if isinstance(session, WebTransportSession):
        await session.connection.ping()
    elif isinstance(session, WebSocket | WebTransportConnection | Connection):
        await session.ping()
    else:
        await trio.lowlevel.checkpoint()


def has_ended(session: PoolSession) -> bool:
    """Whether it is known to be over, or as good as that."""
    if isinstance(session, WebSocket):
        return session._connection.send_error() is not None
    if isinstance(session, WebTransportSession | WebTransportConnection | Connection):
        return session.closed is not None
    return False


def is_leaving(session: PoolSession) -> bool:
    """Whether the peer has asked for its end."""
    if isinstance(session, WebTransportSession):
        return session.draining
    return isinstance(session, WebTransportConnection) and session.going_away


def is_clean(session: PoolSession) -> bool:
    """Whether the next user will meet nothing of the last one's."""
    if not isinstance(session, WebSocket):
        return True
    try:
        session.receive_nowait()
    except trio.WouldBlock:
        return True
    except (ConnectionClosed, trio.ClosedResourceError, trio.BusyResourceError):
        return False
    return False  # an answer that nobody has waited for


def loss_of(session: PoolSession) -> ConnectionClosed | None:
    """How it was lost; None if it was closed by an application, or not known to have ended."""
    end: Exception | None = None
    if isinstance(session, WebSocket):
        end = session._connection.send_error()
        if isinstance(end, ConnectionClosed) and end.code in _CLEAN_CODES:
            return None
    elif isinstance(session, WebTransportSession | WebTransportConnection | Connection):
        end = session.closed
    if not isinstance(end, ConnectionClosedError) or not end.remote:
        return None
    return end if is_transient(end, session) else None
