"""What becomes of an exception that a handler of the application's raises in a server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

from .._errors import ConnectionClosed, HandshakeFailed, PeersDoing, StreamReset

__all__ = ["contain_errors"]

logger = logging.getLogger("trio_wt.server")


class contain_errors:  # noqa: N801  # it reads as what it does: with contain_errors(...):
    """Log what the block raises, but for cancellations and exceptions that are not `Exception`.

    A handler that merely ran into the end of its connection is not worth a line; one that a stream's reset by the peer has
    ended is worth one without a traceback.

    Args:
        message: what the line says.
        propagate: let everything through instead.
    """

    # No generator, which would cost each idle connection half a kilobyte.
    __slots__ = ("_message", "_propagate")

    def __init__(self, message: str, *, propagate: bool) -> None:
        self._message = message
        self._propagate = propagate

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._propagate:
            return False
        if isinstance(exc, Exception):
            _log(self._message, exc)
            return True
        if isinstance(exc, BaseExceptionGroup):
            # Cancelled, and something failed in the cleanup.
            failed, rest = exc.split(Exception)
            if failed is not None:
                _log(self._message, failed)
                if rest is not None:
                    raise rest from None
                return True
        return False


def _log(message: str, exc: Exception) -> None:
    rest = _without(exc, _is_only_an_end)
    if rest is None:
        return
    if _without(rest, _is_peers_doing) is None:
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


def _is_peers_doing(exc: BaseException) -> bool:
    """Whether this is what any peer can bring about, as by giving a stream up: a line is enough."""
    return isinstance(exc, PeersDoing) or (isinstance(exc, StreamReset) and exc.remote)
