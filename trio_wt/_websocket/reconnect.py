"""Connecting again, with structured concurrency intact.

An async generator that yields inside a nursery or a cancel scope breaks Trio's nesting, so `reconnect` gives an
iterator object: each item is a context manager, and what lives during an attempt lives inside its block.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import trio

from .._errors import ConnectionClosed, HandshakeFailed, Rejected

__all__ = ["Attempt", "Reconnect", "is_transient", "reconnect"]

T = TypeVar("T")

_TRANSIENT_STATUS: Final = {408, 425, 429, 500, 502, 503, 504}
# Close codes after which the same attempt would end the same way (RFC 6455 section 7.4.1).
_FATAL_CODES: Final = {1002, 1003, 1007, 1008, 1009, 1010}


def is_transient(exc: Exception) -> bool:
    """Whether a failure is worth another attempt: the default policy of `reconnect`.

    A connection that could not be made, or was lost or closed, is; but a rejection only with status 408, 425, 429, 500,
    502, 503 or 504, a close not with a code that blames this side (1002, 1003, 1007 to 1010) or that an application
    defines (3000 to 4999), and a certificate that does not verify never. What else a block raises is not.
    """
    if isinstance(exc, Rejected):
        return exc.status in _TRANSIENT_STATUS
    if isinstance(exc, ConnectionClosed):
        return exc.code not in _FATAL_CODES and exc.code < 3000
    if not isinstance(exc, HandshakeFailed):
        return False
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__
    return True


class Reconnect(Generic[T]):
    """The async iterator of attempts that `reconnect` gives; one loop at a time."""

    def __init__(
        self,
        opener: Callable[[], AbstractAsyncContextManager[T]],
        *,
        retry: Callable[[Exception], bool],
        on_retry: Callable[[Exception, float], object] | None,
        initial_delay: float,
        max_delay: float,
        reset_after: float,
        max_failures: int | None,
    ) -> None:
        self._open = opener
        self._retry = retry
        self._on_retry = on_retry
        self._initial_delay = initial_delay
        self._max_delay = max_delay
        self._reset_after = reset_after
        self._max_failures = max_failures
        self._failures = 0
        # What the pause grows with: failures, and sessions that ended soon after they had begun.
        self._ends = 0
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt[T]:
        if self._begun:
            await trio.sleep(self._delay())
        else:
            self._begun = True
            await trio.lowlevel.checkpoint()
        return Attempt(self)

    def _delay(self) -> float:
        # "Full jitter": a random time below a bound that doubles, so that clients do not come back in step.
        bound = self._initial_delay * 2.0 ** min(max(self._ends - 1, 0), 64)
        return random.uniform(0, min(bound, self._max_delay))

    def _is_worth_retrying(self, exc: Exception) -> bool:
        if self._max_failures is not None and self._failures >= self._max_failures:
            return False
        if isinstance(exc, ExceptionGroup):
            return all(self._is_worth_retrying(inner) for inner in exc.exceptions)
        return self._retry(exc)

    async def enter(self) -> tuple[AbstractAsyncContextManager[T], T]:
        """Open, as often as it takes."""
        while True:
            manager = self._open()
            try:
                return manager, await manager.__aenter__()
            except Exception as exc:
                self._failures += 1
                self._ends += 1
                if not self._is_worth_retrying(exc):
                    raise
                delay = self._delay()
                if self._on_retry is not None:
                    self._on_retry(exc, delay)
            await trio.sleep(delay)

    def ended(self, exc: Exception | None, lasted: float) -> bool:
        """A session has ended after ``lasted`` seconds; whether its exception is swallowed."""
        if lasted >= self._reset_after:
            self._failures = self._ends = 0
        self._ends += 1
        self._failures = 0 if exc is None else self._failures + 1
        if exc is None or not self._is_worth_retrying(exc):
            return False
        if self._on_retry is not None:
            self._on_retry(exc, 0.0)
        return True


class Attempt(Generic[T]):
    """An item of `reconnect`: ``async with attempt as ws`` opens, as often as it takes, and runs the block once."""

    def __init__(self, owner: Reconnect[T]) -> None:
        self._owner = owner
        self._manager: AbstractAsyncContextManager[T] | None = None
        self._opened_at = 0.0

    async def __aenter__(self) -> T:
        self._manager, value = await self._owner.enter()
        self._opened_at = trio.current_time()
        return value

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._manager is not None
        lasted = trio.current_time() - self._opened_at
        try:
            if await self._manager.__aexit__(exc_type, exc, traceback):  # noqa: ASYNC102
                self._owner.ended(None, lasted)
                return True
        except Exception as raised:
            if self._owner.ended(raised, lasted):
                return True
            raise
        if isinstance(exc, Exception):
            return self._owner.ended(exc, lasted)
        self._owner.ended(None, lasted)
        return False


def reconnect(
    opener: Callable[..., AbstractAsyncContextManager[T]],
    /,
    *args: Any,
    retry: Callable[[Exception], bool] = is_transient,
    on_retry: Callable[[Exception, float], object] | None = None,
    initial_delay: float = 0.5,
    max_delay: float = 60,
    reset_after: float = 30,
    max_failures: int | None = None,
    **kwargs: Any,
) -> Reconnect[T]:
    """Open a session again and again::

        async for attempt in trio_wt.reconnect(trio_wt.open_websocket, "wss://example.com/feed"):
            async with attempt as ws:
                async for message in ws:
                    ...

    The block runs once per session. When it ends, also normally, the loop goes on with the next session after a
    pause; ``break`` ends it.

    Args:
        opener: gives the session's async context manager, such as `open_websocket`.
        args: arguments for it.
        retry: which failures to retry, of opening and of the block; any other comes out. The default is
            `is_transient`. A group is retried if all of its exceptions are.
        on_retry: told of each failure that is retried, with the seconds until the next attempt where they are known
            already, else 0.
        initial_delay: the bound of the first pause in seconds; it doubles with each failure.
        max_delay: the bound's maximum in seconds.
        reset_after: a session that lasted so many seconds makes the next failure count as the first.
        max_failures: so many failures in a row, the last one comes out; None for no limit.
        kwargs: keyword arguments for ``opener``.

    Raises:
        ValueError: a delay is negative.

    Cancellation acts as in any block, and is never retried.
    """
    if initial_delay < 0 or max_delay < 0 or reset_after < 0:
        raise ValueError("the delays of reconnect() must not be negative")
    return Reconnect(
        lambda: opener(*args, **kwargs),
        retry=retry,
        on_retry=on_retry,
        initial_delay=initial_delay,
        max_delay=max_delay,
        reset_after=reset_after,
        max_failures=max_failures,
    )
