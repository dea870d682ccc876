"""What becomes of an exception that a handler of the application's raises in a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .._errors import ConnectionClosed, HandshakeFailed, StreamReset

__all__ = ["contain_errors"]

logger = logging.getLogger("trio_wt.server")


@contextmanager
def contain_errors(message: str, *, propagate: bool) -> Iterator[None]:
    """Log what the block raises, but for cancellations and exceptions that are not `Exception`.

    A handler that merely ran into the end of its connection is not worth a line; one that a stream's reset by the peer has
    ended is worth one without a traceback.

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
    rest = _without(exc, _is_only_an_end)
    if rest is None:
        return
    if _without(rest, _is_only_a_reset) is None:
        # Any peer can bring this about as often as it likes: a line is enough.
        while isinstance(rest, BaseExceptionGroup):
            rest = rest.exceptions[0]
        logger.error("%s: %s", message, rest)
    else:
        logger.error(message, exc_info=exc)


def _without(
    exc: BaseException, is_harmless: Callable[[BaseException], bool]
) -> BaseException | None:
    """What is left of an exception, or of a group."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(is_harmless)[1]
    return None if is_harmless(exc) else exc


def _is_only_an_end(exc: BaseException) -> bool:
    """Whether this is what any peer can bring about by going away."""
    if isinstance(exc, HandshakeFailed):
        return isinstance(exc.__cause__, ConnectionClosed)
    return isinstance(exc, ConnectionClosed)


def _is_only_a_reset(exc: BaseException) -> bool:
    """Whether this is what any peer can bring about by giving a stream up."""
    return isinstance(exc, StreamReset) and exc.remote
