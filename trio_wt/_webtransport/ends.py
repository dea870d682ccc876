"""What the end of a session, or of its connection, is called."""

from __future__ import annotations

from .._errors import ConnectionClosed, ConnectionLost
from .._protocol.http3_codes import Http3Code, describe

__all__ = ["describe_end", "failure", "lost_with"]


def failure(error: Http3Code) -> str:
    """What a peer has done to a session, by the code that answers it."""
    if error is Http3Code.REQUEST_CANCELLED:
        return "the peer has reset the session"
    return f"the peer has broken the session's rules, {describe(error)}"


def lost_with(end: ConnectionClosed) -> ConnectionClosed:
    """What the end of the connection is to a session on it."""
    if isinstance(end, ConnectionLost):
        return ConnectionLost(end.code, end.reason, remote=end.remote)
    return ConnectionLost(0, f"its connection has ended: {describe_end(end)}", remote=end.remote)


def describe_end(end: ConnectionClosed) -> str:
    """How an HTTP/3 connection has ended, for people."""
    who = "the peer" if end.remote else "this side"
    because = f": {end.reason}" if end.reason else ""
    return f"{who} closed it with {describe(end.code)}{because}"
