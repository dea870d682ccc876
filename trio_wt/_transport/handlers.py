"""What becomes of an exception that a handler of the application's raises in a server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import ConnectionClosed, HandshakeFailed

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
    rest: BaseException | None = exc
    if isinstance(exc, ExceptionGroup):
        rest = exc.split(_is_only_an_end)[1]
    elif _is_only_an_end(exc):
        rest = None
    if rest is not None:
        logger.error(message, exc_info=exc)


def _is_only_an_end(exc: BaseException) -> bool:
    """Whether this is what any peer can bring about by going away."""
    if isinstance(exc, HandshakeFailed):
        return isinstance(exc.__cause__, ConnectionClosed)
    return isinstance(exc, ConnectionClosed)
