"""A circuit breaker: who keeps failing is left alone for a while.

General theory of operation:

`TRANSITIONS` is all there is to the state. A breaker knows no network: whoever makes an attempt takes a `Permit` first, and tells it
what came of the attempt. Time passes by being looked at, so an open circuit needs no task and no timer.

An attempt may succeed and turn out to have been none: the session opens, and is lost at once. The permit then is told of a
failure after the success, which takes the success back: the row of failures goes on where it was. Only the last success can be taken back,
so that a server that drops many sessions at once has failed once.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import trio

from .._errors import HandshakeFailed
from .._util import safe_text

__all__ = [
    "TRANSITIONS",
    "CircuitBreaker",
    "CircuitEvent",
    "CircuitOpen",
    "CircuitState",
    "CircuitStatistics",
    "Permit",
]


class CircuitState(enum.Enum):
    """What a `CircuitBreaker` lets through: all attempts, none, or a single one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitEvent(enum.Enum):
    """What moves a circuit: what came of an attempt, and time."""

    SUCCEEDED = "an attempt has succeeded"
    FAILED = "an attempt has failed"
    FAILED_ENOUGH = "an attempt has failed, and with it enough in a row"
    PAUSE_OVER = "the pause is over"


#: Every transition there is. Attempts that were let through earlier may end in any state.
TRANSITIONS: Final[Mapping[tuple[CircuitState, CircuitEvent], CircuitState]] = {
    (CircuitState.CLOSED, CircuitEvent.SUCCEEDED): CircuitState.CLOSED,
    (CircuitState.CLOSED, CircuitEvent.FAILED): CircuitState.CLOSED,
    (CircuitState.CLOSED, CircuitEvent.FAILED_ENOUGH): CircuitState.OPEN,
    (CircuitState.OPEN, CircuitEvent.SUCCEEDED): CircuitState.CLOSED,
    (CircuitState.OPEN, CircuitEvent.FAILED_ENOUGH): CircuitState.OPEN,
    (CircuitState.OPEN, CircuitEvent.PAUSE_OVER): CircuitState.HALF_OPEN,
    (CircuitState.HALF_OPEN, CircuitEvent.SUCCEEDED): CircuitState.CLOSED,
    (CircuitState.HALF_OPEN, CircuitEvent.FAILED_ENOUGH): CircuitState.OPEN,
}


class CircuitOpen(HandshakeFailed):
    """Nothing was tried: too many attempts in a row have failed, and the pause after them is not over.

    The last failure is chained as ``__cause__``.

    Attributes:
        retry_in: in how many seconds an attempt is let through again; infinite while another attempt finds out.
    """

    def __init__(self, message: str, retry_in: float) -> None:
        super().__init__(message, retry_in)
        self.message: str = message
        self.retry_in: float = retry_in

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class CircuitStatistics:
    """Figures of a circuit breaker at one moment.

    Attributes:
        state: the state.
        failures_in_row: failures since the last success that lasted.
        retry_in: in how many seconds an attempt is let through: 0 for now, infinite while another attempt finds out.
        waiting: tasks that wait for their attempt.
        attempts: attempts that were let through.
        successes: those of them that succeeded, and did not turn out to have failed.
        failures: those of them that failed.
        refused: attempts that were not let through at once.
        times_opened: how often the circuit has opened.
    """

    state: CircuitState
    failures_in_row: int
    retry_in: float
    waiting: int
    attempts: int
    successes: int
    failures: int
    refused: int
    times_opened: int


class CircuitBreaker:
    """Leaves an endpoint alone that keeps failing; several `reconnect` loops and pools may share it::

        breaker = CircuitBreaker(failures=5, pause=30)
        async for attempt in reconnect(open_websocket, url, breaker=breaker):
            ...

    *Closed*, it lets every attempt through. After ``failures`` failures in a row it is *open*, and lets none through for
    ``pause`` seconds. Then it is *half-open*: a single attempt is let through, whose success closes the circuit, and whose failure opens
    it again.

    Args:
        failures: so many failures in a row open it.
        pause: for how many seconds it stays open.
        name: what errors call it.

    Raises:
        ValueError: ``failures`` is less than 1, or ``pause`` is negative.
    """

    def __init__(self, failures: int = 5, pause: float = 30, *, name: str = "") -> None:
        if failures < 1:
            raise ValueError(f"failures must be 1 or more, not {failures}")
        if not pause >= 0:
            raise ValueError(f"pause must not be negative, and is {pause}")
        self.name: str = name
        self._limit = failures
        self._pause = pause
        self._state = CircuitState.CLOSED
        self._retry_at = -math.inf
        self._row = 0
        self._probe: Permit | None = None
        self._last: Exception | None = None
        self._last_success: Permit | None = None
        self._waiters = trio.lowlevel.ParkingLot()
        self._attempts = self._successes = self._failures = self._refused = self._opened = 0

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self._state.value}, {self._row} failures in a row>"

    @property
    def state(self) -> CircuitState:
        """The state now."""
        self._look_at_clock()
        return self._state

    @property
    def retry_at(self) -> float:
        """When an attempt is let through, on Trio's clock: not later than now, or infinite while another attempt finds out."""
        if self.state is CircuitState.HALF_OPEN and self._probe is not None:
            return math.inf
        return self._retry_at

    @property
    def retry_in(self) -> float:
        """In how many seconds an attempt is let through: 0 for now, infinite while another attempt finds out."""
        return max(self.retry_at - trio.current_time(), 0.0)

    @property
    def last_failure(self) -> Exception | None:
        """What the last failure was; None if there was none since the last success."""
        return self._last

    @property
    def failures_in_row(self) -> int:
        """Failures since the last success that lasted."""
        return self._row

    def statistics(self) -> CircuitStatistics:
        """Figures of this moment."""
        return CircuitStatistics(
            state=self.state,
            failures_in_row=self._row,
            retry_in=self.retry_in,
            waiting=len(self._waiters),
            attempts=self._attempts,
            successes=self._successes,
            failures=self._failures,
            refused=self._refused,
            times_opened=self._opened,
        )

    # ---- asking

    def try_admit(self) -> Permit | None:
        """A permit for an attempt now; None if none is to be made. Whoever takes one must tell it what came of the attempt."""
        permit = self._take()
        if permit is None:
            self._refused += 1
        return permit

    async def admit(self) -> Permit:
        """Wait until an attempt may be made.

        Cancelled, it was not: there is no permit that anybody would have to give back.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        permit = self.try_admit()
        if permit is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return permit
        while permit is None:
            with trio.move_on_at(self.retry_at):
                await self._waiters.park()
            permit = self._take()
        return permit

    def error(self) -> CircuitOpen:
        """The error for whoever is not let through, with the last failure as its cause."""
        of = f" of {self.name}" if self.name else ""
        last = "" if self._last is None else f", the last with: {safe_text(str(self._last))}"
        wait = self.retry_in
        then = (
            "another one finds out" if math.isinf(wait) else f"the next may be made in {wait:.3g} s"
        )
        error = CircuitOpen(
            f"the circuit{of} is {self.state.value}: {self._row} attempts in a row have failed{last}; {then}",
            wait,
        )
        error.__cause__ = self._last
        return error

    def _take(self) -> Permit | None:
        state = self.state
        if state is CircuitState.OPEN or (
            state is CircuitState.HALF_OPEN and self._probe is not None
        ):
            return None
        permit = Permit(self)
        if state is CircuitState.HALF_OPEN:
            self._probe = permit
        self._attempts += 1
        return permit

    def _look_at_clock(self) -> None:
        if self._state is CircuitState.OPEN and trio.current_time() >= self._retry_at:
            self._move(CircuitEvent.PAUSE_OVER)

    # ---- hearing from permits

    def _move(self, event: CircuitEvent) -> None:
        before = self._state
        self._state = TRANSITIONS[before, event]
        if self._state is CircuitState.OPEN and before is not CircuitState.OPEN:
            self._retry_at = trio.current_time() + self._pause
            self._opened += 1
        if self._state is not before:
            self._probe = None
            self._waiters.unpark_all()

    def _succeeded(self, permit: Permit) -> int:
        """An attempt has succeeded; the row of failures that it has ended."""
        row, self._row = self._row, 0
        self._last_success = permit
        self._last = None
        self._successes += 1
        self._retry_at = -math.inf
        self._move(CircuitEvent.SUCCEEDED)
        return row

    def _failed(self, failure: Exception, row: int = 0) -> None:
        self._last = failure
        self._failures += 1
        self._row = max(self._row, row) + 1
        enough = self._row >= self._limit
        self._look_at_clock()
        self._move(CircuitEvent.FAILED_ENOUGH if enough else CircuitEvent.FAILED)

    def _revoked(self, permit: Permit, failure: Exception, row: int) -> None:
        """An attempt has succeeded in appearance only."""
        self._successes -= 1
        if self._last_success is permit:
            self._last_success = None
            self._failed(failure, row)
        else:
            self._failures += 1

    def _abandoned(self, permit: Permit) -> None:
        if self._probe is permit:
            self._probe = None
            self._waiters.unpark_all()


class Permit:
    """Leave for one attempt, from a `CircuitBreaker`; tell it what came of the attempt."""

    __slots__ = ("_breaker", "_has_lasted", "_is_over", "_row")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        # The row of failures that the attempt has ended, once it has succeeded.
        self._row: int | None = None
        self._has_lasted = False
        self._is_over = False

    def succeeded(self) -> None:
        """The session is open."""
        if not self._is_over and self._row is None:
            self._row = self._breaker._succeeded(self)

    def lasted(self) -> None:
        """The session was open for long enough: what fails from now on is a failure of its own."""
        self._has_lasted = self._row is not None

    def failed(self, failure: Exception) -> None:
        """The attempt has failed; after `succeeded`, and not after `lasted`, it was a success in appearance only.

        Args:
            failure: what happened.
        """
        if self._is_over:
            return
        self._is_over = True
        if self._row is None or self._has_lasted:
            self._breaker._failed(failure)
        else:
            self._breaker._revoked(self, failure, self._row)

    def abandoned(self) -> None:
        """Nothing was found out: the attempt was cancelled, or failed for a reason of this side. Without effect after the others."""
        if not self._is_over and self._row is None:
            self._is_over = True
            self._breaker._abandoned(self)
