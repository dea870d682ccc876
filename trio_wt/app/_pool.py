"""Sessions with several servers, kept open and shared out.

General theory of operation:

Each session has a task of its own, which enters its block, and leaves it when the session is to be closed (`Member.run`). Users only
borrow it. So nothing that a user does, raises or is cancelled by comes near the session's nursery.

Whoever wants a session stands in line. `_serve` is called whenever something has changed, and decides everything, synchronously: it
gives out what has room, opens what is missing, and turns away those for whom nothing is left to be tried. Who stands in line is turned away only
when every endpoint has failed since, or is left alone by its circuit breaker, and nobody has a session that could be given
back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import trio

from .._transport.services import Services
from ._breaker import CircuitBreaker
from ._pool_kinds import PoolSession, ping
from ._pool_members import (
    Endpoint,
    EndpointStatistics,
    Member,
    NoEndpoint,
    PoolPolicy,
    name_of,
)

__all__ = ["EndpointStatistics", "NoEndpoint", "PoolStatistics", "SessionPool"]

E = TypeVar("E", bound=Hashable)
S = TypeVar("S", bound=PoolSession)

_CLOSED: Final = "the pool is closed"


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Figures of a `SessionPool` at one moment.

    Attributes:
        endpoints: those of each endpoint, in the order in which they were added.
        sessions: sessions that are open, those of removed endpoints too.
        users: blocks that have one of them.
        waiting: tasks that wait for one.
        served: how often a session was given out.
        turned_away: how often `NoEndpoint` was raised.
    """

    endpoints: tuple[EndpointStatistics, ...]
    sessions: int
    users: int
    waiting: int
    served: int
    turned_away: int


class _Turn(Generic[E, S]):
    """A place in the line for a session."""

    __slots__ = ("done", "error", "member", "number", "scope")

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self.member: Member[E, S] | None = None
        self.error: Exception | None = None


class SessionPool(Generic[E, S]):
    """Sessions with several servers of the same service, kept open and shared out::

        async with SessionPool(["wss://a.example/", "wss://b.example/"], opener=open_websocket) as pool:
            async with pool.session() as ws:
                await ws.send("hello")

    A user gets the session with the fewest users; sessions are opened when there are none with room. An endpoint that fails
    is passed over while there are others, and left alone while its circuit breaker is open.

    A WebSocket is used by one at a time, and goes to the next user if nothing of the last one's is left on it: it is closed instead
    if the block was left by an exception or a cancellation, or if there is a message that was not received. Every other session is
    shared, since its users have streams of their own. Leave the block of a WebSocket only when every answer has come: one that comes later is
    received by the next user. An opener such as `open_webtransport_connection` pools connections, on which
    users open sessions.

    A session that ends while somebody has it raises its own errors there. Cancelling its ``cancel_scope``, which
    ``cancel_on_close=True`` does, cancels the blocks of all who have it.

    Args:
        endpoints: whatever the opener takes, mostly URLs; each once.
        opener: gives the async context manager of a session with an endpoint, such as `open_websocket`, or
            ``functools.partial(open_webtransport, tls=tls)``.
        size: how many sessions to have with each endpoint at most.
        max_users: how many may use a session at a time; None for 1 with a WebSocket, and 64 otherwise.
        health: awaited with a session now and then; what it raises closes the session, and counts against the endpoint. None for a
            ping. Sessions that are used by one at a time are looked at while nobody has them.
        health_interval: seconds between two looks, and between two attempts to reach an endpoint that has failed; infinite
            for none. Below ``idle_timeout``, it keeps sessions over QUIC from being lost for want of traffic.
        health_timeout: how many seconds a look may take.
        reset_after: a session that was lost within so many seconds counts as a failure of the endpoint.
        breaker: makes the circuit breaker of an endpoint, or hands out one that is shared; None for one with the defaults.
        close_timeout: how many seconds the end of the pool's block waits for those who still have sessions, and then again for the
            sessions to be closed.

    Raises:
        ValueError: an endpoint is given twice, or a number is out of its range.

    The pool is an async context manager. Leaving its block normally closes the sessions gracefully, leaving it by an exception
    or a cancellation closes them at once, as leaving their own blocks would. Nothing is left running.
    """

    def __init__(
        self,
        endpoints: Iterable[E],
        *,
        opener: Callable[[E], AbstractAsyncContextManager[S]],
        size: int = 8,
        max_users: int | None = None,
        health: Callable[[S], Awaitable[object]] | None = None,
        health_interval: float = 20,
        health_timeout: float = 10,
        reset_after: float = 30,
        breaker: Callable[[E], CircuitBreaker] | None = None,
        close_timeout: float = 5,
    ) -> None:
        if size < 1 or (max_users is not None and max_users < 1):
            raise ValueError("size and max_users must be 1 or more")
        if not (health_interval > 0 and health_timeout > 0):
            raise ValueError("health_interval and health_timeout must be greater than 0")
        if not (reset_after >= 0 and close_timeout >= 0):
            raise ValueError("reset_after and close_timeout must not be negative")
        self._size = size
        self._policy: PoolPolicy[E, S] = PoolPolicy(
            opener=opener,
            max_users=max_users,
            health=health or ping,
            health_interval=health_interval,
            health_timeout=health_timeout,
            reset_after=reset_after,
        )
        self._make_breaker = breaker or _own_breaker
        self._close_timeout = close_timeout
        self._endpoints: dict[E, Endpoint[E, S]] = {}
        self._members: dict[Member[E, S], None] = {}
        self._turns: deque[_Turn[E, S]] = deque()
        self._turn_count = 0
        # How many may use a session, once one was open.
        self._capacity = max_users
        self._changes = trio.lowlevel.ParkingLot()
        self._alarm = trio.Event()
        self._services: Services | None = None
        self._is_closed = False
        self._served = self._turned_away = 0
        for endpoint in endpoints:
            self.add(endpoint)

    def __repr__(self) -> str:
        figures = self.statistics()
        return (
            f"<SessionPool of {len(self._endpoints)} endpoints, "
            f"{figures.sessions} sessions, {figures.users} users>"
        )

    # ---- its block

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        if self._services is not None:
            raise RuntimeError("a pool can be entered once")
        self._services = Services(trio.CancelScope(), self._goodbye, _never)
        await self._services.__aenter__()
        self._services.start_soon(self._tend, name="trio_wt pool")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._services is not None
        return await self._services.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102

    async def _goodbye(self, exc: BaseException | None) -> None:
        self._is_closed = True
        self._serve()
        if exc is None:
            with trio.move_on_after(self._close_timeout):
                while any(member.users for member in self._members):
                    await self._changes.park()
        for member in self._members:
            # Who still has one is to be told by an error that it is closed.
            member.scopes.clear()
            if exc is None:
                member.leave()
        if exc is None:
            with trio.move_on_after(self._close_timeout):
                while self._members:
                    await self._changes.park()
        await trio.lowlevel.checkpoint()

    # ---- for users

    @asynccontextmanager
    async def session(self) -> AsyncIterator[S]:
        """A session: ``async with pool.session() as session:``.

        Entering waits until there is one with room; users are served in the order in which they have come. How many may
        wait is up to the caller, as is for how long: ``trio.fail_after`` bounds it.

        Yields:
            the session. Leaving the block gives it back, and does not close it.

        Raises:
            NoEndpoint: every endpoint has failed, or is left alone because it did.
            trio.ClosedResourceError: the pool is closed.
            RuntimeError: the pool's block was not entered.
        """
        turn = await self._wait_turn()
        member = turn.member
        assert member is not None
        failed = True
        try:
            with turn.scope:
                assert member.session is not None
                yield member.session
                failed = False
        finally:
            member.give_back(turn.scope, failed=failed)

    async def _wait_turn(self) -> _Turn[E, S]:
        await trio.lowlevel.checkpoint()
        if self._services is None:
            raise RuntimeError("the pool is used before its block: write `async with pool:`")
        self._turn_count += 1
        turn: _Turn[E, S] = _Turn(self._turn_count)
        self._turns.append(turn)
        self._serve()
        if not turn.done.is_set():
            try:
                await turn.done.wait()
            except BaseException:
                if turn.member is not None:
                    # In the very moment in which it was served.
                    turn.member.give_back(turn.scope, failed=False)
                elif turn.error is None:
                    self._turns.remove(turn)
                raise
        if turn.error is not None:
            raise turn.error
        return turn

    # ---- endpoints

    def add(self, endpoint: E) -> None:
        """Use an endpoint from now on; one that is draining is taken back into use.

        Args:
            endpoint: for the opener.

        Raises:
            ValueError: it is in use already.
        """
        known = self._endpoints.get(endpoint)
        if known is None:
            breaker = self._make_breaker(endpoint)
            self._endpoints[endpoint] = Endpoint(endpoint, breaker, lambda: self._turn_count)
        elif known.is_draining:
            known.is_draining = False
        else:
            raise ValueError(f"{name_of(endpoint)} is an endpoint of the pool already")
        self._serve()

    def remove(self, endpoint: E) -> None:
        """Use an endpoint no more: its sessions are closed when their users have left, as by `drain`, and it is forgotten at once.

        Args:
            endpoint: as it was given.

        Raises:
            ValueError: it is none of the pool's.
        """
        self._find(endpoint).drain()
        del self._endpoints[endpoint]
        self._serve()

    async def drain(self, endpoint: E) -> None:
        """Let nobody new use an endpoint, and wait until its last user has left and its sessions are closed.

        Cancelled, the endpoint goes on draining; `add` takes it back into use.

        Args:
            endpoint: as it was given.

        Raises:
            ValueError: it is none of the pool's.
        """
        try:
            found = self._find(endpoint)
        except ValueError:
            await trio.lowlevel.checkpoint()
            raise
        found.drain()
        self._serve()
        await trio.lowlevel.checkpoint()
        while found.is_draining and found.members:
            await self._changes.park()

    def _find(self, endpoint: E) -> Endpoint[E, S]:
        try:
            return self._endpoints[endpoint]
        except KeyError:
            raise ValueError(f"{name_of(endpoint)} is no endpoint of the pool") from None

    def statistics(self) -> PoolStatistics:
        """Figures of this moment."""
        return PoolStatistics(
            endpoints=tuple(endpoint.statistics() for endpoint in self._endpoints.values()),
            sessions=sum(member.session is not None for member in self._members),
            users=sum(member.users for member in self._members),
            waiting=len(self._turns),
            served=self._served,
            turned_away=self._turned_away,
        )

    # ---- who gets what

    def _serve(self) -> None:
        """Give out what there is, open what is missing, and turn away whom nothing can help."""
        if self._is_closed:
            while self._turns:
                self._end_turn(error=trio.ClosedResourceError(_CLOSED))
            return
        for member in list(self._members):
            member.look()
        while self._turns and (free := self._least_loaded()) is not None:
            self._end_turn(free)
        self._spread()
        while self._turns:
            self._open_missing()
            if self._may_hope():
                self._alarm.set()
                return
            self._turned_away += 1
            self._end_turn(error=self._no_endpoint())

    def _may_hope(self) -> bool:
        """Whether something will come for the first in line: a session is opened, or given back, or makes room for another."""
        if any(not member.is_retired for member in self._members):
            return True
        return any(endpoint.load >= self._size for endpoint in self._untried())

    def _untried(self) -> list[Endpoint[E, S]]:
        """Endpoints that have not failed since the first in line has come: each is tried once for them."""
        first = self._turns[0].number
        endpoints = self._endpoints.values()
        return [e for e in endpoints if not e.is_draining and e.failed_at < first]

    def _end_turn(self, member: Member[E, S] | None = None, error: Exception | None = None) -> None:
        turn = self._turns.popleft()
        turn.member, turn.error = member, error
        if member is not None:
            member.take(turn.scope)
            self._served += 1
        turn.done.set()

    def _least_loaded(self) -> Member[E, S] | None:
        free = [member for member in self._members if member.has_room]
        return min(free, key=lambda m: (m.users, m.endpoint.users, m.used_at), default=None)

    def _open_missing(self) -> None:
        """Open sessions for those who wait, beside those that are being opened."""
        each = self._capacity or 1
        coming = sum(each for member in self._members if self._is_coming(member))
        while coming < len(self._turns) and self._open_one():
            coming += each

    def _is_coming(self, member: Member[E, S]) -> bool:
        return not member.is_retired and (member.session is None or member.is_checked)

    def _open_one(self) -> bool:
        candidates = [
            endpoint
            for endpoint in self._untried()
            if endpoint.load < self._size
            # As long as nobody knows how many may share a session, one each has to do.
            and not (self._capacity is None and endpoint.is_opening)
        ]
        candidates.sort(key=lambda e: (e.breaker.failures_in_row, e.load, e.users))
        return any(self._open(endpoint) for endpoint in candidates)

    def _spread(self) -> None:
        """Sessions that are shared must not all be with one endpoint."""
        if any(member.users > 1 for member in self._members):
            for endpoint in self._endpoints.values():
                if not (endpoint.members or endpoint.failure or endpoint.is_draining):
                    self._open(endpoint)

    def _open(self, endpoint: Endpoint[E, S]) -> bool:
        """Begin to open a session, unless the endpoint is to be left alone."""
        breaker = endpoint.breaker
        if breaker.retry_at > trio.current_time():
            return False
        permit = breaker.try_admit()
        assert permit is not None
        assert self._services is not None
        member = Member(endpoint, permit, self._policy, self._member_changed)
        endpoint.members.append(member)
        self._members[member] = None

        async def keep(_: trio.CancelScope) -> None:
            await member.run()

        self._services.start_soon(keep, name=f"trio_wt pool session with {endpoint.name}")
        return True

    def _member_changed(self, member: Member[E, S]) -> None:
        if member.session is not None:
            self._capacity = member.capacity
        if member not in member.endpoint.members:
            self._members.pop(member, None)
        self._changes.unpark_all()
        self._serve()

    def _no_endpoint(self) -> NoEndpoint:
        endpoints = self._endpoints.values()
        error = NoEndpoint(tuple((endpoint.name, endpoint.why_not()) for endpoint in endpoints))
        failures = [
            failure
            for endpoint in endpoints
            if (failure := endpoint.failure or endpoint.breaker.last_failure) is not None
        ]
        if failures:
            error.__cause__ = ExceptionGroup("the last failure of each endpoint", failures)
        return error

    # ---- as time goes by

    async def _tend(self, _: trio.CancelScope) -> None:
        """See whether endpoints that have failed are back."""
        look_at = trio.current_time() + self._policy.health_interval
        while True:
            self._alarm = trio.Event()
            with trio.move_on_at(min(look_at, self._next_retry())) as sleep:
                await self._alarm.wait()
            if not sleep.cancelled_caught:
                continue
            now = trio.current_time()
            if now >= look_at:
                look_at = now + self._policy.health_interval
            for endpoint in self._endpoints.values():
                if endpoint.failure and not endpoint.load and not endpoint.is_draining:
                    self._open(endpoint)
            self._serve()

    def _next_retry(self) -> float:
        """When the next pause of an endpoint is over, if somebody waits."""
        if not self._turns:
            return math.inf
        now = trio.current_time()
        times = [endpoint.breaker.retry_at for endpoint in self._endpoints.values()]
        return min((at for at in times if at > now), default=math.inf)


def _own_breaker(endpoint: object) -> CircuitBreaker:
    return CircuitBreaker(name=name_of(endpoint))


def _never(exc: Exception) -> None:
    """For tasks that see to their failures themselves."""
    raise exc
