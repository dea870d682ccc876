"""Connecting again and again."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from trio_wt import (
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    Headers,
    Rejected,
    is_transient,
    reconnect,
)
from trio_wt.app import _reconnect as module

LOST = ConnectionClosedError(1006, remote=True)


class Opener:
    """Opens sessions, or fails, as it was told; at the end it opens for ever."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.outcomes = list(outcomes)
        self.called_at: list[float] = []
        self.arguments: list[tuple[object, ...]] = []
        self.now_open = 0

    @asynccontextmanager
    async def __call__(self, *args: object, **kwargs: object) -> AsyncIterator[int]:
        self.called_at.append(trio.current_time())
        self.arguments.append((*args, kwargs))
        await trio.lowlevel.checkpoint()
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        self.now_open += 1
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)  # as a session's reader does
                try:
                    yield len(self.called_at)
                except BaseException as exc:
                    failure = exc  # out of the nursery's sight, as sessions do it
                nursery.cancel_scope.cancel()
        finally:
            self.now_open -= 1
        if failure is not None:
            raise failure

    @property
    def pauses(self) -> list[float]:
        return [b - a for a, b in zip(self.called_at, self.called_at[1:], strict=False)]


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause is as long as it may be."""

    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    monkeypatch.setattr(module, "random", Longest())


def failures(count: int) -> list[HandshakeFailed]:
    return [HandshakeFailed(f"failure {number}") for number in range(1, count + 1)]


# ---- sessions


async def test_a_session_after_the_other_until_break() -> None:
    opener, seen = Opener(), []
    async for attempt in reconnect(opener, "url", option=1):
        async with attempt as session:
            assert opener.now_open == 1
            seen.append(session)
            if session == 3:
                break
    assert seen == [1, 2, 3]
    assert opener.now_open == 0
    assert opener.arguments == [("url", {"option": 1})] * 3


async def test_return_ends_it_too() -> None:
    opener = Opener()

    async def first_session() -> int:
        async for attempt in reconnect(opener):
            async with attempt as session:
                return session
        raise AssertionError

    assert await first_session() == 1
    assert opener.now_open == 0
    assert len(opener.called_at) == 1


async def test_nothing_is_open_between_two_sessions() -> None:
    opener = Opener()
    task = trio.lowlevel.current_task()
    nurseries, rounds = list(task.child_nurseries), 0
    with trio.CancelScope() as scope:
        async for attempt in reconnect(opener):
            # No nursery and no cancel scope of the loop's own is entered here.
            assert task.child_nurseries == nurseries
            assert opener.now_open == 0
            with trio.move_on_after(5) as inner:
                async with attempt:
                    assert len(task.child_nurseries) == len(nurseries) + 1
                    await trio.sleep_forever()
            assert inner.cancelled_caught
            assert task.child_nurseries == nurseries
            rounds += 1
            if rounds == 3:
                scope.cancel()
    assert scope.cancelled_caught
    assert rounds == 3


async def test_a_loop_may_be_left_anywhere_without_misnesting() -> None:
    """What breaks `async for` over a generator that yields inside a nursery."""
    opener = Opener(None, None, *failures(1))
    async with trio.open_nursery() as nursery:
        with trio.CancelScope():
            async for attempt in reconnect(opener):
                break  # an attempt that nobody enters
        nursery.start_soon(trio.sleep, 1)
        for _ in range(2):
            with trio.CancelScope():
                async for attempt in reconnect(opener):
                    with trio.CancelScope():
                        async with attempt, trio.open_nursery() as inner:
                            inner.start_soon(trio.sleep_forever)
                            inner.cancel_scope.cancel()
                            break
            await trio.sleep(0.1)
            assert opener.now_open == 0
        with trio.move_on_after(0.001) as scope:
            async for attempt in reconnect(opener, initial_delay=1000):
                async with attempt:
                    pytest.fail("it waits for the next attempt")
        assert scope.cancelled_caught


async def test_the_first_attempt_is_made_at_once_and_is_a_checkpoint() -> None:
    start = trio.current_time()
    attempts = reconnect(Opener(), initial_delay=100)
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(attempts)
    assert scope.cancelled_caught
    await anext(reconnect(Opener(), initial_delay=100))
    assert trio.current_time() == start


# ---- pauses


@pytest.mark.usefixtures("longest")
async def test_pauses_double_up_to_their_maximum() -> None:
    opener = Opener(*failures(9))
    async for attempt in reconnect(opener, initial_delay=0.5, max_delay=60):
        async with attempt:
            break
    assert opener.pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60])


@pytest.mark.usefixtures("longest")
async def test_the_default_pauses_are_the_documented_ones() -> None:
    opener = Opener(*failures(9))
    async for attempt in reconnect(opener):
        async with attempt:
            break
    assert opener.pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60])


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize(("lasting", "pause"), [(29, 2), (31, 0.5)])
async def test_by_default_a_session_has_lasted_after_30_seconds(
    lasting: float, pause: float
) -> None:
    opener, ended = Opener(*failures(2)), 0.0
    async for attempt in reconnect(opener):
        async with attempt as session:
            if session == 4:
                break
            await trio.sleep(lasting)
            ended = trio.current_time()
    assert opener.called_at[-1] - ended == pytest.approx(pause)


async def test_pauses_are_spread_over_all_of_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "random", random.Random(7))
    opener = Opener(*failures(300))
    async for attempt in reconnect(opener, initial_delay=1, max_delay=8):
        async with attempt:
            break
    bounds = [1, 2, 4, *[8] * 297]
    assert all(0 <= pause <= bound for pause, bound in zip(opener.pauses, bounds, strict=True))
    late = opener.pauses[3:]
    assert min(late) < 0.5
    assert max(late) > 7.5
    assert 3.5 < sum(late) / len(late) < 4.5


@pytest.mark.usefixtures("longest")
async def test_any_number_of_failures_has_a_pause() -> None:
    opener = Opener(*failures(1200))
    async for attempt in reconnect(opener, initial_delay=0.001, max_delay=0.002):
        async with attempt:
            break
    assert opener.pauses[-1] == pytest.approx(0.002)


@pytest.mark.usefixtures("longest")
async def test_a_session_that_lasted_begins_the_pauses_anew() -> None:
    opener, lasting = Opener(*failures(2)), [29.9, 30, 1, 31, 0]
    ended: list[float] = []
    async for attempt in reconnect(opener, initial_delay=1, reset_after=30):
        async with attempt:
            await trio.sleep(lasting.pop(0))
            ended.append(trio.current_time())
            if not lasting:
                break
    assert opener.pauses[:2] == pytest.approx([1, 2])
    after = [called - end for called, end in zip(opener.called_at[3:], ended, strict=False)]
    assert after == pytest.approx([4, 1, 2, 1])


@pytest.mark.usefixtures("longest")
async def test_a_session_that_fails_is_followed_by_a_pause() -> None:
    opener, rounds = Opener(), 0
    with pytest.raises(ValueError, match="enough"):
        async for attempt in reconnect(opener, initial_delay=3):
            async with attempt:
                rounds += 1
                if rounds == 4:
                    raise ValueError("enough")
                raise LOST
    assert opener.pauses == pytest.approx([3, 6, 12])


async def test_no_pause_at_all() -> None:
    opener = Opener(*failures(20))
    async for attempt in reconnect(opener, initial_delay=0):
        async with attempt:
            break
    assert opener.pauses == [0] * 20


@pytest.mark.parametrize("name", ["initial_delay", "max_delay", "reset_after"])
async def test_delays_are_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        reconnect(Opener(), **{name: -0.1})  # type: ignore[arg-type]
    reconnect(Opener(), **{name: 0})  # type: ignore[arg-type]


# ---- what is retried


def rejected(status: int) -> Rejected:
    return Rejected(status, Headers())


def certificate_failure(*, depth: int = 2) -> HandshakeFailed:
    cause: Exception = ssl.SSLCertVerificationError(1, "self-signed")
    for _ in range(depth):
        outer = trio.BrokenResourceError()
        outer.__cause__ = cause
        cause = outer
    failure = HandshakeFailed("TLS failed")
    failure.__cause__ = cause
    return failure


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (HandshakeFailed("no answer"), True),
        *[(rejected(status), True) for status in (408, 425, 429, 500, 502, 503, 504)],
        *[(rejected(status), False) for status in (200, 301, 400, 401, 403, 404, 426, 501, 505)],
        *[(ConnectionClosedOK(c, remote=True), True) for c in (1000, 1001, 1005)],
        *[(ConnectionClosedError(c, remote=True), True) for c in (1006, 1011, 1012, 1013, 1014)],
        *[
            (ConnectionClosedError(c, remote=True), False)
            for c in (1002, 1003, 1007, 1008, 1009, 1010, 3000, 4000, 4999)
        ],
        (certificate_failure(), False),
        (certificate_failure(depth=0), False),
        (OSError("what a block does"), False),
        (trio.BrokenResourceError(), False),
        (trio.TooSlowError(), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_what_is_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


async def test_other_failures_of_opening_come_out_as_they_are() -> None:
    error = rejected(403)
    opener = Opener(*failures(2), error)
    with pytest.raises(Rejected) as caught:
        async for attempt in reconnect(opener):
            async with attempt:
                pytest.fail("nothing was opened")
    assert caught.value is error
    assert len(opener.called_at) == 3


async def test_other_failures_of_the_block_come_out_as_they_are() -> None:
    opener, error = Opener(), ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        async for attempt in reconnect(opener):
            async with attempt:
                try:
                    raise KeyError
                except KeyError:
                    raise error  # noqa: B904
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)
    assert len(opener.called_at) == 1
    assert opener.now_open == 0


async def test_the_policy_is_a_parameter() -> None:
    asked: list[Exception] = []

    def retry(exc: Exception) -> bool:
        asked.append(exc)
        return isinstance(exc, ZeroDivisionError)

    opener = Opener(ZeroDivisionError("opening"))
    with pytest.raises(HandshakeFailed, match="in the block"):
        async for attempt in reconnect(opener, retry=retry):
            async with attempt as session:
                if session == 2:
                    raise ZeroDivisionError("in the block")
                raise HandshakeFailed("in the block")
    assert [str(exc) for exc in asked] == ["opening", "in the block", "in the block"]
    assert len(opener.called_at) == 3


async def test_a_group_is_retried_if_all_of_it_is() -> None:
    groups = [
        ExceptionGroup("", [LOST, ExceptionGroup("", [HandshakeFailed("a"), LOST])]),
        ExceptionGroup("", [LOST, ExceptionGroup("", [HandshakeFailed("a"), KeyError()])]),
    ]
    opener, last = Opener(), groups[1]
    with pytest.raises(ExceptionGroup) as caught:
        async for attempt in reconnect(opener):
            async with attempt:
                raise groups.pop(0)
    assert caught.value is last
    assert len(opener.called_at) == 2


async def test_a_group_from_opening_is_retried_too() -> None:
    opener = Opener(ExceptionGroup("", [HandshakeFailed("a"), HandshakeFailed("b")]))
    async for attempt in reconnect(opener):
        async with attempt as session:
            assert session == 2
            break


@pytest.mark.usefixtures("longest")
async def test_who_wants_to_know_is_told_of_each_failure() -> None:
    told: list[tuple[str, float]] = []
    opener = Opener(*failures(2))
    async for attempt in reconnect(
        opener, on_retry=lambda exc, delay: told.append((str(exc), delay))
    ):
        async with attempt as session:
            if session == 4:
                break
            raise LOST
    assert told == [("failure 1", 0.5), ("failure 2", 1.0), (str(LOST), 0.0)]


# ---- when to stop


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_so_many_failures_in_a_row_are_enough(limit: int) -> None:
    opener = Opener(*failures(10))
    with pytest.raises(HandshakeFailed, match=f"failure {limit}$"):
        async for attempt in reconnect(opener, max_failures=limit):
            async with attempt:
                pytest.fail("nothing was opened")
    assert len(opener.called_at) == limit


async def test_failures_of_opening_and_of_sessions_count_together() -> None:
    opener = Opener(failures(1)[0], None, failures(2)[1], None)
    with pytest.raises(ConnectionClosedError) as caught:
        async for attempt in reconnect(opener, max_failures=4):
            async with attempt:
                raise LOST
    assert caught.value is LOST
    assert len(opener.called_at) == 4


async def test_a_session_that_lasted_ends_the_row() -> None:
    opener, lasting = Opener(), [0, 40, 0, 0, 0]
    with pytest.raises(ConnectionClosedError):
        async for attempt in reconnect(opener, max_failures=3, reset_after=30):
            async with attempt:
                await trio.sleep(lasting.pop(0))
                raise LOST
    assert len(opener.called_at) == 4


async def test_sessions_that_end_normally_are_no_failures() -> None:
    opener, sessions = Opener(), 0
    with pytest.raises(ConnectionClosedError):
        async for attempt in reconnect(opener, max_failures=2):
            async with attempt:
                sessions += 1
                if sessions >= 6:
                    raise LOST
    assert sessions == 7


# ---- cancellation and other things that are never retried


@pytest.mark.parametrize(
    "where", ["opening", "block", "pause after a failure", "pause after a session"]
)
async def test_cancellation_ends_it_wherever_it_comes(where: str) -> None:
    entered = 0

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        nonlocal entered
        entered += 1
        if where == "opening":
            await trio.sleep_forever()
        elif where == "pause after a failure":
            raise HandshakeFailed("no")
        yield

    with trio.move_on_after(1) as scope:
        async for attempt in reconnect(
            opener, retry=lambda exc: True, initial_delay=10**6, max_delay=10**6
        ):
            async with attempt:
                if where == "block":
                    await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() >= 1
    assert entered == 1


async def test_an_interrupt_is_never_retried() -> None:
    for error in (KeyboardInterrupt(), SystemExit(), BaseExceptionGroup("", [KeyboardInterrupt()])):
        opener = Opener()
        with pytest.raises(type(error)):
            async for attempt in reconnect(opener, retry=lambda exc: True):
                async with attempt:
                    raise error
        opener = Opener(error)
        with pytest.raises(type(error)):
            async for attempt in reconnect(opener, retry=lambda exc: True):
                async with attempt:
                    pytest.fail("nothing was opened")


async def test_what_the_session_swallows_stays_swallowed() -> None:
    rounds = 0

    @asynccontextmanager
    async def forgiving() -> AsyncIterator[None]:
        with suppress(ZeroDivisionError):
            yield

    async for attempt in reconnect(forgiving):
        async with attempt:
            rounds += 1
            if rounds == 3:
                break
            raise ZeroDivisionError
    assert rounds == 3


@pytest.mark.usefixtures("longest")
async def test_a_session_that_was_swallowed_is_followed_by_a_pause() -> None:
    started: list[float] = []

    @asynccontextmanager
    async def forgiving() -> AsyncIterator[None]:
        started.append(trio.current_time())
        with suppress(ZeroDivisionError):
            yield

    async for attempt in reconnect(forgiving, initial_delay=1):
        async with attempt:
            if len(started) == 4:
                break
            raise ZeroDivisionError
    pauses = [b - a for a, b in zip(started, started[1:], strict=False)]
    assert pauses == pytest.approx([1, 2, 4])


async def test_the_session_may_turn_one_failure_into_another() -> None:
    rounds = 0

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError as exc:
            raise HandshakeFailed("transient") from exc

    with pytest.raises(KeyError):
        async for attempt in reconnect(opener):
            async with attempt:
                rounds += 1
                raise ZeroDivisionError if rounds < 3 else KeyError
    assert rounds == 3


async def test_what_leaving_the_session_raises_is_judged() -> None:
    outcomes: list[Exception | None] = [LOST, HandshakeFailed("x"), ValueError("fatal")]

    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    with pytest.raises(ValueError, match="fatal"):
        async for attempt in reconnect(opener):
            async with attempt:
                pass
    assert outcomes == []
