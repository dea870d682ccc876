"""Connecting again, with structured concurrency intact.

An async generator that yields inside a nursery or a cancel scope breaks Trio's nesting, so `reconnect` gives an
iterator object: each item is a context manager, and what lives during an attempt lives inside its block.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import trio

from .._errors import HandshakeFailed
from .._webtransport.connection import WebTransportConnection
from ._breaker import CircuitBreaker, Permit
from ._transient import is_transient, retry_after

__all__ = ["Attempt", "Previous", "Reconnect", "is_transient", "reconnect"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Previous:
    """What was before a session that `reconnect` has just opened.

    Attributes:
        sessions: how many sessions there were; 0 for the first one.
        end: what came out of the last one's block and was retried; None if it ended normally, or there was none.
        attempts: how many attempts it took to open the new one, itself included.
    """

    sessions: int
    end: Exception | None
    attempts: int


@dataclass(frozen=True, slots=True)
class _Policy(Generic[T]):
    """What `reconnect` was told."""

    retry: Callable[[Exception], bool | None] | None
    on_retry: Callable[[Exception, float], object] | None
    resume: Callable[[T, Previous], Awaitable[object]] | None
    breaker: CircuitBreaker | None
    breaker_wait: float | None
    rng: random.Random | None
    initial_delay: float
    max_delay: float
    reset_after: float
    max_failures: int | None


class Reconnect(Generic[T]):
    """The async iterator of attempts that `reconnect` gives; one loop at a time."""

    def __init__(
        self,
        opener: Callable[[], AbstractAsyncContextManager[T]],
        policy: _Policy[T],
        connection: WebTransportConnection | None,
    ) -> None:
        self._open = opener
        self._policy = policy
        # What the sessions are opened on, if that is known: when it has ended, no attempt can succeed.
        self._connection = connection
        self._failures = 0
        # What the pause grows with: failures, and sessions that ended soon after they had begun.
        self._ends = 0
        self._begun = False
        # For the next session's `Previous`.
        self._sessions = 0
        self._last_end: Exception | None = None
        self._attempts = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt[T]:
        if self._begun:
            await trio.sleep(self._delay())
        else:
            self._begun = True
            await trio.lowlevel.checkpoint()
        return Attempt(self)

    def _delay(self, exc: Exception | None = None) -> float:
        # "Full jitter": a random time below a bound that doubles, so that clients do not come back in step.
        policy = self._policy
        bound = policy.initial_delay * 2.0 ** min(max(self._ends - 1, 0), 64)
        least = 0.0 if exc is None else min(retry_after(exc), policy.max_delay)
        uniform = random.uniform if policy.rng is None else policy.rng.uniform
        return uniform(least, min(least + bound, policy.max_delay))

    # ---- what to make of a failure

    def _is_worth_retrying(self, exc: Exception, session: object, *, opening: bool) -> bool:
        policy, connection = self._policy, self._connection
        if policy.max_failures is not None and self._failures >= policy.max_failures:
            return False
        if connection is not None and (connection.closed is not None or connection.going_away):
            return False
        if isinstance(exc, ExceptionGroup):
            return all(
                self._is_worth_retrying(inner, session, opening=opening) for inner in exc.exceptions
            )
        verdict = None if policy.retry is None else policy.retry(exc)
        return is_transient(exc, session, opening=opening) if verdict is None else verdict

    def _is_endpoints_fault(self, exc: Exception, session: object, *, opening: bool) -> bool:
        """Whether a circuit breaker is to count it."""
        if isinstance(exc, ExceptionGroup):
            return any(
                self._is_endpoints_fault(inner, session, opening=opening)
                for inner in exc.exceptions
            )
        return is_transient(exc, session, opening=opening)

    # ---- for the attempts

    async def enter(self) -> tuple[AbstractAsyncContextManager[T], T, Permit | None]:
        """Open, as often as it takes."""
        while True:
            permit = await self._admit()
            self._attempts += 1
            session = None
            opening = True
            try:
                manager = self._open()
                session = await manager.__aenter__()
                opening = False
                await self._resume(manager, session)
            except Exception as exc:
                delay = self._attempt_failed(exc, session, permit, opening=opening)
            except BaseException:
                if permit is not None:
                    permit.abandoned()
                raise
            else:
                if permit is not None:
                    permit.succeeded()
                self._sessions += 1
                self._last_end = None
                self._attempts = 0
                return manager, session, permit
            await trio.sleep(delay)

    async def _admit(self) -> Permit | None:
        breaker, patience = self._policy.breaker, self._policy.breaker_wait
        if breaker is None:
            return None
        if patience is None:
            return await breaker.admit()
        permit = breaker.try_admit()
        if permit is None and patience > 0:
            with trio.move_on_after(patience):
                permit = await breaker.admit()
        if permit is None:
            await trio.lowlevel.checkpoint()
            raise breaker.error()
        return permit

    async def _resume(self, manager: AbstractAsyncContextManager[T], session: T) -> None:
        resume = self._policy.resume
        if resume is None:
            return
        try:
            await resume(session, Previous(self._sessions, self._last_end, self._attempts))
            return
        except BaseException as exc:  # noqa: ASYNC103
            # The session's block, of which this is a part, has to see what ends it.
            if not await manager.__aexit__(type(exc), exc, exc.__traceback__):  # noqa: ASYNC102
                raise
            cause = exc if isinstance(exc, Exception) else None
        raise HandshakeFailed("the session ended while it was resumed") from cause

    def _attempt_failed(
        self, exc: Exception, session: T | None, permit: Permit | None, *, opening: bool
    ) -> float:
        """The pause before the next attempt; raises what is not to be retried, as it is."""
        if permit is not None:
            if self._is_endpoints_fault(exc, session, opening=opening):
                permit.failed(exc)
            else:
                permit.abandoned()
        self._failures += 1
        self._ends += 1
        if not self._is_worth_retrying(exc, session, opening=opening):
            raise exc
        delay = self._delay(exc)
        if self._policy.on_retry is not None:
            self._policy.on_retry(exc, delay)
        return delay

    def ended(
        self, exc: Exception | None, lasted: float, session: object, permit: Permit | None
    ) -> bool:
        """A session has ended after ``lasted`` seconds; whether its exception is swallowed."""
        has_lasted = lasted >= self._policy.reset_after
        if has_lasted:
            self._failures = self._ends = 0
        if (
            permit is not None
            and exc is not None
            and not has_lasted
            and self._is_endpoints_fault(exc, session, opening=False)
        ):
            permit.failed(exc)
        self._ends += 1
        self._failures = 0 if exc is None else self._failures + 1
        self._last_end = exc
        if exc is None or not self._is_worth_retrying(exc, session, opening=False):
            return False
        if self._policy.on_retry is not None:
            self._policy.on_retry(exc, 0.0)
        return True


class Attempt(Generic[T]):
    """An item of `reconnect`: ``async with attempt as ws`` opens, as often as it takes, and runs the block once."""

    def __init__(self, owner: Reconnect[T]) -> None:
        self._owner = owner
        self._manager: AbstractAsyncContextManager[T] | None = None
        self._session: T | None = None
        self._permit: Permit | None = None
        self._opened_at = 0.0

    async def __aenter__(self) -> T:
        self._manager, value, self._permit = await self._owner.enter()
        self._session = value
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
                self._ended(None, lasted)
                return True
        except Exception as raised:
            if self._ended(raised, lasted):
                return True
            raise
        if isinstance(exc, Exception):
            return self._ended(exc, lasted)
        self._ended(None, lasted)
        return False

    def _ended(self, exc: Exception | None, lasted: float) -> bool:
        return self._owner.ended(exc, lasted, self._session, self._permit)


def _connection_of(opener: object) -> WebTransportConnection | None:
    """The connection that an opener opens its sessions on, if it is a method of one."""
    while isinstance(opener, functools.partial):
        opener = opener.func
    owner = getattr(opener, "__self__", None)
    return owner if isinstance(owner, WebTransportConnection) else None


def reconnect(
    opener: Callable[..., AbstractAsyncContextManager[T]],
    /,
    *args: Any,
    retry: Callable[[Exception], bool | None] | None = None,
    on_retry: Callable[[Exception, float], object] | None = None,
    resume: Callable[[T, Previous], Awaitable[object]] | None = None,
    breaker: CircuitBreaker | None = None,
    breaker_wait: float | None = None,
    initial_delay: float = 0.5,
    max_delay: float = 60,
    reset_after: float = 30,
    max_failures: int | None = None,
    rng: random.Random | None = None,
    **kwargs: Any,
) -> Reconnect[T]:
    """Open a session again and again::

        async for attempt in trio_wt.reconnect(trio_wt.open_websocket, "wss://example.com/feed"):
            async with attempt as ws:
                async for message in ws:
                    ...

    The block runs once per session. When it ends, also normally, the loop goes on with the next session after a
    pause; ``break`` ends it. A server that answers with Retry-After (RFC 9110 section 10.2.3) is left alone for so long, for
    ``max_delay`` at most.

    Args:
        opener: gives the session's async context manager, such as `open_websocket`, `open_webtransport`, `open_quic`, or
            ``connection.open_session`` of a `WebTransportConnection`. Once that connection has ended, or takes no more sessions,
            nothing is retried.
        args: arguments for it.
        retry: which failures to retry, of opening and of the block; any other comes out. Where it returns None, and without
            it, `is_transient` decides. A group is retried if all of its exceptions are.
        on_retry: told of each failure that is retried, with the seconds until the next attempt where they are known
            already, else 0.
        resume: awaited with each fresh session and what was before it, ahead of the block: the place to log in, and to ask for what was
            missed. What it raises is a failure of the attempt.
        breaker: a circuit breaker to ask before each attempt, and to tell what came of it. A session that was lost within
            ``reset_after`` seconds counts as a failure.
        breaker_wait: for how many seconds an attempt waits while that lets none through: 0 for not at all, None for as long as
            it takes.
        initial_delay: the bound of the first pause in seconds; it doubles with each failure.
        max_delay: the bound's maximum in seconds.
        reset_after: a session that lasted so many seconds makes the next failure count as the first.
        max_failures: so many failures in a row, the last one comes out; None for no limit.
        rng: where pauses get their randomness from; None for the module ``random``.
        kwargs: keyword arguments for ``opener``.

    Raises:
        CircuitOpen: ``breaker_wait`` is over; it is never retried.
        ValueError: a delay is negative.

    Cancellation acts as in any block, and is never retried.
    """
    if initial_delay < 0 or max_delay < 0 or reset_after < 0 or (breaker_wait or 0) < 0:
        raise ValueError("the delays of reconnect() must not be negative")
    policy = _Policy(
        # It is told more where it is the default.
        retry=None if retry is is_transient else retry,
        on_retry=on_retry,
        resume=resume,
        breaker=breaker,
        breaker_wait=breaker_wait,
        rng=rng,
        initial_delay=initial_delay,
        max_delay=max_delay,
        reset_after=reset_after,
        max_failures=max_failures,
    )
    return Reconnect(lambda: opener(*args, **kwargs), policy, _connection_of(opener))
