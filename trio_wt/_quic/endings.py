"""What a block that ended by an exception means to the peer."""

from __future__ import annotations

import trio

from .._errors import StreamAbort
from .carrier import Carrier

__all__ = ["error_code", "without_aborts"]


def error_code(exc: BaseException, carrier: Carrier) -> int:
    """The application error code for a block that ``exc`` has ended, alone or among others in a group."""
    settings = carrier.settings
    aborts: BaseException | None = exc
    if isinstance(exc, BaseExceptionGroup):
        aborts = exc.subgroup(StreamAbort)
        cancelled = exc.split(trio.Cancelled)[1] is None
    else:
        cancelled = isinstance(exc, trio.Cancelled)
    while isinstance(aborts, BaseExceptionGroup):
        aborts = aborts.exceptions[0]
    if isinstance(aborts, StreamAbort):
        return aborts.code if aborts.code <= carrier.max_code else settings.failed_code
    return settings.cancelled_code if cancelled else settings.failed_code


def without_aborts(exc: BaseException | None, carrier: Carrier) -> BaseException | None:
    """What of an exception goes on after the block of a stream, where a `StreamAbort` ends, unless its code cannot be sent."""

    def ends_here(part: BaseException) -> bool:
        return isinstance(part, StreamAbort) and part.code <= carrier.max_code

    if isinstance(exc, BaseExceptionGroup):
        return exc.split(ends_here)[1]
    return None if exc is not None and ends_here(exc) else exc
