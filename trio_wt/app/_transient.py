"""Which failures are worth another attempt, and how long a server wants to be left alone."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final

from .._errors import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    Rejected,
    TransportClosed,
)
from .._quic.connection import Connection
from .._quic.verification import CertificateRejected
from .._webtransport.connection import WebTransportConnection
from .._webtransport.session import WebTransportSession

__all__ = ["is_transient", "retry_after"]

_TRANSIENT_STATUS: Final = {408, 425, 429, 500, 502, 503, 504}
# Close codes after which the same attempt would end the same way (RFC 6455 section 7.4.1).
_FATAL_CODES: Final = {1002, 1003, 1007, 1008, 1009, 1010}
_CLOSE_CODES: Final = range(1000, 3000)
# TLS alerts as QUIC carries them (RFC 9001 section 4.8).
_TLS_ERRORS: Final = range(0x100, 0x200)


def is_transient(exc: Exception, session: object = None, *, opening: bool = False) -> bool:
    """Whether a failure is worth another attempt: the default policy of `reconnect`.

    What an attempt to open met, or how a session ended:

    - the connection could not be made: yes, but not with a certificate that was not accepted, nor another TLS alert (RFC 9001
      section 4.8)
    - a rejection: with status 408, 425, 429, 500, 502, 503 or 504 only
    - a WebSocket was lost or closed: yes, but not with a code that blames this side (1002, 1003, 1007 to 1010) or that an
      application defines (3000 to 4999)
    - a QUIC connection or a WebTransport session was lost, was ended by QUIC itself, or was closed with code 0: yes, but not with
      another code, whose meaning only the application knows
    - a WebTransport session, which the server had asked to come to its end before, was ended by it in any way: yes
    - an HTTP/3 connection ended: yes

    What else a block raises is not: a stream that was reset, an `OSError`, or a mistake.

    Args:
        exc: the failure.
        session: the session that was open. Without it, codes are taken for those of a WebSocket.
        opening: whether it comes from opening. An `OSError` is worth another attempt then, unless it is about a file: the host
            was not found, or cannot be reached now.
    """
    if isinstance(exc, Rejected):
        return exc.status in _TRANSIENT_STATUS
    if _is_final(exc):
        return False
    if isinstance(exc, ConnectionClosed):
        return _is_end_transient(exc, session)
    if isinstance(exc, HandshakeFailed):
        return True
    return opening and isinstance(exc, OSError) and _is_of_network(exc)


def _is_end_transient(exc: ConnectionClosed, session: object) -> bool:
    if isinstance(exc, ConnectionLost | TransportClosed) or isinstance(
        session, WebTransportConnection
    ):
        return True
    if isinstance(session, WebTransportSession):
        # A server that shuts down says so first, and then with whatever code cancelled handlers have.
        return exc.code == 0 or (exc.remote and session.draining)
    if isinstance(session, Connection):
        return exc.code == 0
    if exc.code == 0:
        return isinstance(exc, ConnectionClosedOK)  # no WebSocket's
    return exc.code in _CLOSE_CODES and exc.code not in _FATAL_CODES


def _is_of_network(exc: OSError) -> bool:
    # Certificates and keys come from files, and those do not appear by waiting.
    return exc.filename is None and not isinstance(exc, ssl.SSLError | PermissionError)


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__


def _is_final(exc: Exception) -> bool:
    """Whether TLS stands behind it."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError | CertificateRejected):
            return True
        if isinstance(cause, TransportClosed) and cause.code in _TLS_ERRORS:
            return True
        if isinstance(cause, ExceptionGroup):
            # Of several endpoints, one is enough that may come back.
            return all(_is_final(inner) for inner in cause.exceptions)
    return False


def retry_after(exc: BaseException) -> float:
    """For how many seconds a server that has rejected a request wants to be left alone (RFC 9110 section 10.2.3); 0 if it says nothing."""
    if isinstance(exc, BaseExceptionGroup):
        return max(map(retry_after, exc.exceptions))
    if not isinstance(exc, Rejected):
        return 0.0
    value = exc.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value[:12]) if len(value) <= 12 else 1e12
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=dt.UTC)
        seconds = (when - dt.datetime.now(dt.UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return max(seconds, 0.0)
