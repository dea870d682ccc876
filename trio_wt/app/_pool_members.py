"""The endpoints of a pool, and its sessions, each of which has a task that keeps its block open."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import trio

from .._errors import ConnectionClosed, HandshakeFailed, TrioWTError
from .._util import safe_text
from ._breaker import CircuitBreaker, CircuitState, CircuitStatistics, Permit
from ._pool_kinds import PoolSession, has_ended, is_clean, is_leaving, loss_of, users_of

__all__ = ["Endpoint", "EndpointStatistics", "Member", "NoEndpoint", "PoolPolicy", "name_of"]

logger = logging.getLogger("trio_wt.pool")

E = TypeVar("E", bound=Hashable)
S = TypeVar("S", bound=PoolSession)


class NoEndpoint(HandshakeFailed, trio.BrokenResourceError):
    """No endpoint of a `SessionPool` can be reached; nothing was sent.

    What the last failures were is chained as ``__cause__``, as a group.

    Attributes:
        reasons: the name of each endpoint, and why there is no session with it.
    """

    def __init__(self, reasons: tuple[tuple[str, str], ...]) -> None:
        super().__init__(reasons)
        self.reasons: tuple[tuple[str, str], ...] = reasons

    def __str__(self) -> str:
        if not self.reasons:
            return "the pool has no endpoints; add one"
        return "no endpoint can be reached: " + "; ".join(f"{n}: {why}" for n, why in self.reasons)


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """Figures of one endpoint of a `SessionPool` at one moment.

    Attributes:
        name: what errors call it: without user, password and query.
        state: "up"; "down" while its circuit is not closed; "draining" once it takes no new users.
        sessions: sessions that are open, those that wait for their last user to leave among them.
        opening: sessions that are being opened.
        users: blocks that have one of the sessions.
        opened: sessions that were ever open.
        failed: attempts to open one that failed.
        unhealthy: sessions that did not pass a health check.
        ended: sessions that ended by themselves: they were lost, or closed by one side or the other.
        circuit: the figures of its circuit breaker.
    """

    name: str
    state: Literal["up", "down", "draining"]
    sessions: int
    opening: int
    users: int
    opened: int
    failed: int
    unhealthy: int
    ended: int
    circuit: CircuitStatistics


def name_of(endpoint: object) -> str:
    """What to call an endpoint where everybody can read it: without user, password and query."""
    text = re.sub(r"(?<=//)[^/?#]*@", "", str(endpoint))
    return safe_text(re.split(r"[?#]", text, maxsplit=1)[0])


def _told(exc: Exception) -> str:
    """What an error says; of one that is not made for people, also its kind."""
    if isinstance(exc, TrioWTError | OSError) and str(exc):
        return str(exc)
    return f"{type(exc).__name__}: {exc}" if str(exc) else repr(exc)


@dataclass(frozen=True, slots=True)
class PoolPolicy(Generic[E, S]):
    """What a pool was told about its sessions."""

    opener: Callable[[E], AbstractAsyncContextManager[S]]
    max_users: int | None
    health: Callable[[S], Awaitable[object]]
    health_interval: float
    health_timeout: float
    reset_after: float


class Endpoint(Generic[E, S]):
    """A server of a pool.

    Args:
        key: what the opener gets.
        breaker: says when it is to be left alone.
        last_user: the number of the last user who has come.

    Attributes:
        key: what the opener gets.
        breaker: says when it is to be left alone.
        members: its sessions, those that are being opened too.
        is_draining: it takes no new users.
        failed_at: the number of the last user who was there when it failed.
        failure: what its last attempt failed with; None once one has succeeded.
    """

    def __init__(self, key: E, breaker: CircuitBreaker, last_user: Callable[[], int]) -> None:
        self.key: E = key
        self.name: str = name_of(key)
        self.breaker: CircuitBreaker = breaker
        self.members: list[Member[E, S]] = []
        self.is_draining = False
        self.failed_at = -1
        self.failure: Exception | None = None
        self.opened = self.failed = self.unhealthy = self.ended = 0
        self._last_user = last_user

    def fail(self, exc: Exception) -> None:
        """An attempt has failed, or a session of its was lost too soon or is not healthy."""
        self.failure = exc
        self.failed_at = self._last_user()

    @property
    def load(self) -> int:
        """How many sessions count for the pool's size: not those that only wait for their last user."""
        return sum(not (member.is_retired and member.users) for member in self.members)

    @property
    def users(self) -> int:
        return sum(member.users for member in self.members)

    @property
    def is_opening(self) -> bool:
        return any(member.session is None for member in self.members)

    def drain(self) -> None:
        """Let in nobody new."""
        self.is_draining = True
        for member in list(self.members):
            member.retire()

    def why_not(self) -> str:
        """Why there is no session with it."""
        if self.is_draining:
            return "it is draining"
        breaker = self.breaker
        last = self.failure or breaker.last_failure
        said = "nothing was tried" if last is None else safe_text(_told(last), 400)
        if breaker.state is CircuitState.OPEN:
            return f"left alone for {breaker.retry_in:.3g} s more, since {said}"
        return said

    def statistics(self) -> EndpointStatistics:
        opening = sum(member.session is None for member in self.members)
        state: Literal["up", "down", "draining"] = "up"
        if self.is_draining:
            state = "draining"
        elif self.breaker.state is not CircuitState.CLOSED:
            state = "down"
        return EndpointStatistics(
            name=self.name,
            state=state,
            sessions=len(self.members) - opening,
            opening=opening,
            users=self.users,
            opened=self.opened,
            failed=self.failed,
            unhealthy=self.unhealthy,
            ended=self.ended,
            circuit=self.breaker.statistics(),
        )


class Member(Generic[E, S]):
    """A session of a pool, from the first attempt to open it to the end of its block.

    Args:
        endpoint: whom it is with.
        permit: leave to try that.
        policy: what the pool was told.
        changed: called when there is something new: it is open, it is over, or it has room.

    Attributes:
        session: the session, once it is open.
        users: how many blocks have it.
        scopes: those of the blocks that have it.
        capacity: how many may.
        is_retired: nobody new gets it.
        is_checked: its health is being looked at.
        used_at: when somebody took it or gave it back last, on Trio's clock.
    """

    def __init__(
        self,
        endpoint: Endpoint[E, S],
        permit: Permit,
        policy: PoolPolicy[E, S],
        changed: Callable[[Member[E, S]], None],
    ) -> None:
        self.endpoint: Endpoint[E, S] = endpoint
        self.session: S | None = None
        self.users = 0
        self.scopes: set[trio.CancelScope] = set()
        self.capacity = 1
        self.is_retired = False
        self.is_checked = False
        self.used_at = -math.inf
        self._permit = permit
        self._policy = policy
        self._changed = changed
        self._opening = trio.CancelScope()
        self._over = trio.Event()
        self._opened_at = 0.0
        self._has_noted_end = False

    # ---- who has it

    @property
    def has_room(self) -> bool:
        if self.session is None or self.is_retired or self.users >= self.capacity:
            return False
        return not (self.is_checked and self.capacity == 1) and not has_ended(self.session)

    def take(self, scope: trio.CancelScope) -> S:
        """One more user."""
        assert self.session is not None
        self.users += 1
        self.scopes.add(scope)
        self.used_at = trio.current_time()
        return self.session

    def give_back(self, scope: trio.CancelScope, *, failed: bool) -> None:
        """One user less, whose block has failed perhaps: who has a session alone may leave it in the middle of something."""
        assert self.session is not None
        self.users -= 1
        self.scopes.discard(scope)
        self.used_at = trio.current_time()
        if self.capacity == 1 and (failed or not is_clean(self.session)):
            self.retire()
        if self.is_retired:
            self.retire()
        self._changed(self)

    def retire(self) -> None:
        """Nobody new gets it; when nobody has it any more, it is closed."""
        self.is_retired = True
        if self.session is None:
            self._opening.cancel()
        elif not self.users:
            self._over.set()

    def leave(self) -> None:
        """Close it, whoever has it."""
        self.is_retired = True
        if self.session is None:
            self._opening.cancel()
        else:
            self._over.set()

    def look(self) -> None:
        """Retire it if it is on its way out."""
        session = self.session
        if session is not None and (has_ended(session) or is_leaving(session)):
            self.retire()

    # ---- its task

    async def run(self) -> None:
        """Open it, and keep its block open until it is over."""
        endpoint = self.endpoint
        try:
            with self._opening:
                async with self._policy.opener(endpoint.key) as session:
                    self._opened(session)
                    await self._stay(session)
        except Exception as exc:
            self._failed(exc)
        except BaseExceptionGroup as group:
            cancelled, failures = group.split(trio.Cancelled)
            if cancelled is None or not isinstance(failures, ExceptionGroup):
                raise
            # It was cut short, and something failed beside that.
            self._tell(failures)
            raise cancelled from None
        finally:
            self._permit.abandoned()
            self.is_retired = True
            endpoint.members.remove(self)
            self._changed(self)

    def _opened(self, session: S) -> None:
        endpoint = self.endpoint
        self.session = session
        self.capacity = self._policy.max_users or users_of(session)
        self._opened_at = trio.current_time()
        self._permit.succeeded()
        endpoint.failure = None
        endpoint.opened += 1
        self._changed(self)

    def _failed(self, exc: Exception) -> None:
        endpoint = self.endpoint
        if self.session is None:
            endpoint.failed += 1
            endpoint.fail(exc)
            self._permit.failed(exc)
        else:
            self._tell(exc)

    def _tell(self, exc: Exception) -> None:
        logger.error("closing a session with %s failed", self.endpoint.name, exc_info=exc)

    async def _stay(self, session: S) -> None:
        is_cut_off = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, session)
                if self._policy.health_interval < math.inf:
                    nursery.start_soon(self._check_now_and_then, session)
                await self._over.wait()
                nursery.cancel_scope.cancel()
            is_cut_off = False
        finally:
            if has_ended(session):
                self._note_end(session)
            if is_cut_off:
                # The session's scope covers what its users do, in whichever tasks.
                for scope in self.scopes:
                    scope.cancel()

    async def _watch(self, session: S) -> None:
        await session.wait_closed()
        self._note_end(session)
        self.retire()
        self._changed(self)

    def _note_end(self, session: S) -> None:
        """It has ended by itself: by the peer, by what lies between, or by a user."""
        if self._has_noted_end:
            return
        self._has_noted_end = True
        self.endpoint.ended += 1
        loss = loss_of(session)
        if loss is not None and not self._has_lasted():
            # A server that takes sessions and drops them would otherwise get all of them: it always has room.
            self._permit.failed(loss)
            self.endpoint.fail(loss)

    def _has_lasted(self) -> bool:
        if trio.current_time() - self._opened_at < self._policy.reset_after:
            return False
        self._permit.lasted()
        return True

    async def _check_now_and_then(self, session: S) -> None:
        policy = self._policy
        while not self.is_retired:
            await trio.sleep(policy.health_interval)
            if self.capacity == 1 and self.users:
                continue  # nothing may come between its user and the session
            self.is_checked = True
            try:
                with trio.fail_after(policy.health_timeout):
                    await policy.health(session)
            except (ConnectionClosed, trio.ClosedResourceError):
                self.retire()  # that it has ended says nothing about its health
            except Exception as exc:
                if isinstance(exc, trio.TooSlowError) and not exc.args:
                    exc = trio.TooSlowError(f"no sign of health within {policy.health_timeout:g} s")
                self.endpoint.unhealthy += 1
                self.endpoint.fail(exc)
                self._has_lasted()
                self._permit.failed(exc)
                self.retire()
            finally:
                self.is_checked = False
            self._changed(self)
