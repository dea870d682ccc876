"""How many requests and sessions an application has, and had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .._errors import ConnectionClosed
from ._context import Context, Kind
from ._message_errors import StreamEnded

__all__ = ["AppStatistics", "Figures", "is_failure"]


@dataclass(frozen=True, slots=True)
class AppStatistics:
    """Figures of an application, since it was made.

    Attributes:
        requests: requests that came, for sessions and plain ones.
        refused: those that were answered with a status of 400 or more.
        failed: those whose handler or middleware raised something that was not the end of a session.
        websockets: WebSockets that were opened.
        webtransport_sessions: WebTransport sessions that were.
        open_websockets: those of them that are open now.
        open_webtransport_sessions: the same of sessions.
    """

    requests: int
    refused: int
    failed: int
    websockets: int
    webtransport_sessions: int
    open_websockets: int
    open_webtransport_sessions: int


class Figures:
    """What `AppStatistics` is made of."""

    def __init__(self) -> None:
        self._requests = self._refused = self._failed = 0
        self._opened: dict[Kind, int] = {"websocket": 0, "webtransport": 0}
        self._ended: dict[Kind, int] = {"websocket": 0, "webtransport": 0}

    @contextmanager
    def counting(self, context: Context) -> Iterator[None]:
        """Covers the answer to a request, and what its handler raises."""
        self._requests += 1
        try:
            yield
        except BaseException as exc:
            if is_failure(exc):
                self._failed += 1
            raise
        finally:
            if context.status is not None and context.status >= 400:
                self._refused += 1

    def failed(self) -> None:
        """What a handler or a middleware raised was answered with status 500."""
        self._failed += 1

    def opened(self, kind: Kind) -> None:
        """A session is open."""
        self._opened[kind] += 1

    def ended(self, kind: Kind) -> None:
        """It is not any more."""
        self._ended[kind] += 1

    def statistics(self) -> AppStatistics:
        """The figures at this moment."""
        opened, ended = self._opened, self._ended
        return AppStatistics(
            requests=self._requests,
            refused=self._refused,
            failed=self._failed,
            websockets=opened["websocket"],
            webtransport_sessions=opened["webtransport"],
            open_websockets=opened["websocket"] - ended["websocket"],
            open_webtransport_sessions=opened["webtransport"] - ended["webtransport"],
        )


def is_failure(exc: BaseException) -> bool:
    """Whether an exception is more than the end of a session, or a cancellation."""
    if isinstance(exc, BaseExceptionGroup):
        return any(map(is_failure, exc.exceptions))
    return isinstance(exc, Exception) and not isinstance(exc, ConnectionClosed | StreamEnded)
