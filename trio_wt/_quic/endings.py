"""What a block that ended by an exception means to the peer."""

from __future__ import annotations

import trio

from .._errors import StreamAbort
from .settings import QuicSettings

__all__ = ["error_code", "without_aborts"]


def error_code(exc: BaseException, settings: QuicSettings) -> int:
    """The application error code for a block that ``exc`` has ended, alone or among others in a group."""
    if isinstance(exc, BaseExceptionGroup):
        aborts = exc.subgroup(StreamAbort)
        if aborts is not None:
            return _first(aborts, settings)
        cancelled = exc.split(trio.Cancelled)[1] is None
    elif isinstance(exc, StreamAbort):
        return exc.code
    else:
        cancelled = isinstance(exc, trio.Cancelled)
    return settings.cancelled_code if cancelled else settings.failed_code


def _first(aborts: BaseExceptionGroup[StreamAbort], settings: QuicSettings) -> int:
    return error_code(aborts.exceptions[0], settings)


def without_aborts(exc: BaseException | None) -> BaseException | None:
    """What of an exception goes on after the block of a stream, where a `StreamAbort` ends."""
    if isinstance(exc, StreamAbort):
        return None
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(StreamAbort)[1]
    return exc
