"""What becomes of an exception that a handler of the application's raises in a server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import ConnectionClosed

__all__ = ["contain_errors"]

logger = logging.getLogger("trio_wt.server")


@contextmanager
def contain_errors(message: str, *, propagate: bool) -> Iterator[None]:
    """Log what the block raises, but for cancellations and exceptions that are not `Exception`.

    A handler that merely ran into the end of its connection is not worth a line.

    Args:
        message: what the line says.
        propagate: let everything through instead.
    """
    try:
        yield
    except Exception as exc:
        if propagate:
            raise
        _log(message, exc)
    except BaseExceptionGroup as group:
        # Cancelled, and something failed in the cleanup.
        failed, rest = group.split(Exception)
        if failed is None or propagate:
            raise
        _log(message, failed)
        if rest is not None:
            raise rest from None


def _log(message: str, exc: Exception) -> None:
    if not _is_only_closed(exc):
        logger.error(message, exc_info=exc)


def _is_only_closed(exc: Exception) -> bool:
    if isinstance(exc, ExceptionGroup):
        return exc.split(ConnectionClosed)[1] is None
    return isinstance(exc, ConnectionClosed)
