"""The circuit breaker: its table, its clock, and whoever waits for it."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_wt import HandshakeFailed
from trio_wt.app import reconnect
from trio_wt.app._breaker import (
    TRANSITIONS,
    CircuitBreaker,
    CircuitEvent,
    CircuitOpen,
    CircuitState,
    Permit,
)

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
LOST = HandshakeFailed("nobody is there")


def permit(breaker: CircuitBreaker) -> Permit:
    given = breaker.try_admit()
    assert given is not None
    return given


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        permit(breaker).failed(LOST)


# ---- the table


async def in_state(state: CircuitState, failures: int) -> tuple[CircuitBreaker, Permit]:
    """A breaker in a state, and a permit from before it, whose attempt is under way."""
    breaker = CircuitBreaker(failures=failures, pause=10)
    earlier = permit(breaker)
    if state is not CLOSED:
        fail(breaker, failures)
        if state is HALF_OPEN:
            await trio.sleep(10)
    assert breaker.state is state
    return breaker, earlier


async def test_the_table_is_walked() -> None:
    walked = set()
    for state, event in itertools.product(CircuitState, CircuitEvent):
        breaker, earlier = await in_state(state, 2 if event is CircuitEvent.FAILED else 1)
        if event is CircuitEvent.PAUSE_OVER:
            await trio.sleep(10)
            if state is not OPEN:
                assert breaker.state is state  # time changes nothing there
                continue
        elif event is CircuitEvent.SUCCEEDED:
            earlier.succeeded()
        elif event is CircuitEvent.FAILED and state is not CLOSED:
            continue  # there were enough already
        else:
            earlier.failed(LOST)
        assert breaker.state is TRANSITIONS[state, event], (state, event)
        walked.add((state, event))
    assert walked == set(TRANSITIONS)


async def test_so_many_failures_in_a_row_open_it() -> None:
    breaker = CircuitBreaker(failures=3, pause=30)
    fail(breaker, 2)
    assert breaker.state is CLOSED
    permit(breaker).succeeded()
    fail(breaker, 2)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN
    assert breaker.try_admit() is None


async def test_the_defaults_are_the_documented_ones() -> None:
    breaker = CircuitBreaker()
    fail(breaker, 4)
    assert breaker.state is CLOSED
    fail(breaker)
    assert breaker.state is OPEN
    await trio.sleep(29.9)
    assert breaker.state is OPEN
    await trio.sleep(0.1)
    assert breaker.state is HALF_OPEN


async def test_half_open_lets_one_through() -> None:
    breaker = CircuitBreaker(failures=1, pause=5)
    fail(breaker)
    await trio.sleep(5)
    probe = permit(breaker)
    assert breaker.try_admit() is None
    assert breaker.retry_in == math.inf
    probe.succeeded()
    assert breaker.state is CLOSED
    assert breaker.retry_in == 0
    for _ in range(10):
        permit(breaker)


async def test_a_probe_that_fails_begins_the_pause_anew() -> None:
    breaker = CircuitBreaker(failures=3, pause=5)
    fail(breaker, 3)
    await trio.sleep(5)
    fail(breaker)
    assert breaker.state is OPEN
    assert breaker.retry_in == 5
    await trio.sleep(5)
    assert breaker.state is HALF_OPEN


async def test_a_probe_that_is_abandoned_makes_room_for_another() -> None:
    breaker = CircuitBreaker(failures=1, pause=5)
    stranger = permit(breaker)
    fail(breaker)
    await trio.sleep(5)
    probe = permit(breaker)
    stranger.abandoned()
    assert breaker.try_admit() is None
    probe.abandoned()
    assert breaker.state is HALF_OPEN
    permit(breaker)


async def test_late_failures_do_not_make_the_pause_longer() -> None:
    breaker = CircuitBreaker(failures=1, pause=5)
    late = permit(breaker)
    fail(breaker)
    await trio.sleep(4)
    late.failed(LOST)
    assert breaker.retry_in == 1


async def test_a_permit_hears_of_one_end() -> None:
    breaker = CircuitBreaker(failures=3)
    one = permit(breaker)
    one.failed(LOST)
    one.failed(LOST)
    one.succeeded()
    one.abandoned()
    two = permit(breaker)
    two.abandoned()
    two.failed(LOST)
    two.succeeded()
    figures = breaker.statistics()
    assert (figures.failures_in_row, figures.failures, figures.successes) == (1, 1, 0)
    three = permit(breaker)
    three.succeeded()
    three.succeeded()
    three.abandoned()
    assert breaker.statistics().successes == 1


# ---- sessions that open and are lost at once


async def test_a_success_can_be_taken_back() -> None:
    breaker = CircuitBreaker(failures=3)
    for _ in range(2):
        flapping = permit(breaker)
        flapping.succeeded()
        flapping.failed(LOST)
        assert breaker.state is CLOSED
    flapping = permit(breaker)
    flapping.succeeded()
    assert breaker.failures_in_row == 0
    flapping.failed(LOST)
    assert breaker.state is OPEN
    assert breaker.statistics().successes == 0
    assert breaker.statistics().failures == 3


async def test_a_probe_whose_success_is_taken_back_opens_it_at_once() -> None:
    breaker = CircuitBreaker(failures=4, pause=5)
    fail(breaker, 4)
    await trio.sleep(5)
    probe = permit(breaker)
    probe.succeeded()
    assert breaker.state is CLOSED
    probe.failed(LOST)
    assert breaker.state is OPEN


async def test_many_sessions_that_are_lost_at_once_are_one_failure() -> None:
    breaker = CircuitBreaker(failures=3)
    permits = [permit(breaker) for _ in range(10)]
    for one in permits:
        one.succeeded()
    for one in permits:
        one.failed(LOST)
    assert breaker.failures_in_row == 1
    assert breaker.statistics().failures == 10


async def test_what_fails_after_it_has_lasted_begins_a_new_row() -> None:
    breaker = CircuitBreaker(failures=3)
    fail(breaker, 2)
    one = permit(breaker)
    one.lasted()  # it does not even run
    one.succeeded()
    one.lasted()
    one.failed(LOST)
    assert breaker.failures_in_row == 1


# ---- waiting


async def test_waiting_goes_on_until_the_pause_is_over() -> None:
    breaker = CircuitBreaker(failures=1, pause=7)
    assert await breaker.admit()
    fail(breaker)
    start = trio.current_time()
    await breaker.admit()
    assert trio.current_time() - start == 7


async def test_waiting_is_a_checkpoint_and_leaves_no_permit_behind() -> None:
    breaker = CircuitBreaker(failures=1, pause=7)
    with trio.testing.assert_checkpoints():
        (await breaker.admit()).abandoned()
    with trio.CancelScope() as scope:
        scope.cancel()
        await breaker.admit()
    assert scope.cancelled_caught
    fail(breaker)
    with trio.move_on_after(3) as scope:
        await breaker.admit()
    assert scope.cancelled_caught
    assert breaker.statistics().waiting == 0
    await trio.sleep(4)
    permit(breaker)  # it is nobody's


async def test_those_who_wait_are_let_through_one_by_one_and_then_all() -> None:
    breaker = CircuitBreaker(failures=1, pause=10)
    fail(breaker)
    start, log = trio.current_time(), []

    async def attempt(name: str, outcome: bool) -> None:
        one = await breaker.admit()
        log.append((name, trio.current_time() - start))
        await trio.sleep(1)
        if outcome:
            one.succeeded()
        else:
            one.failed(LOST)

    async with trio.open_nursery() as nursery:
        for name, outcome in (("a", False), ("b", True), ("c", True), ("d", True)):
            nursery.start_soon(attempt, name, outcome)
            await trio.testing.wait_all_tasks_blocked()
        assert breaker.statistics().waiting == 4
    outcomes = {"a": False, "b": True, "c": True, "d": True}
    first, rest = log[0], log[1:]
    # Whoever was first alone had it for itself for a second.
    assert first[1] == 10
    if outcomes[first[0]]:
        assert {at for _, at in rest} == {11}
    else:
        assert rest[0][1] == 21
        assert {at for _, at in rest[1:]} == {22}


async def test_a_probe_that_is_cancelled_lets_the_next_one_through() -> None:
    breaker = CircuitBreaker(failures=1, pause=10)
    fail(breaker)
    await trio.sleep(10)
    probe = permit(breaker)
    got = trio.Event()

    async def wait() -> None:
        await breaker.admit()
        got.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not got.is_set()
        probe.abandoned()
        await got.wait()


# ---- what it says


async def test_the_error_says_what_happened_and_when_to_come_back() -> None:
    breaker = CircuitBreaker(failures=2, pause=30, name="wss://a.test")
    fail(breaker, 2)
    await trio.sleep(10)
    error = breaker.error()
    assert isinstance(error, HandshakeFailed)
    assert error.retry_in == 20
    assert error.__cause__ is LOST
    assert str(error) == (
        "the circuit of wss://a.test is open: 2 attempts in a row have failed, "
        "the last with: nobody is there; the next may be made in 20 s"
    )
    await trio.sleep(20)
    permit(breaker)
    assert "half-open" in str(breaker.error())
    assert "another one finds out" in str(breaker.error())
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CircuitOpen
    assert (str(again), again.retry_in) == (str(error), 20)


async def test_what_a_server_said_is_made_fit_for_a_log() -> None:
    breaker = CircuitBreaker(failures=1)
    permit(breaker).failed(HandshakeFailed("bad\x1b[2J" + "x" * 1000))
    assert "\x1b" not in str(breaker.error())
    assert len(str(breaker.error())) < 500


async def test_figures() -> None:
    breaker = CircuitBreaker(failures=2, pause=4, name="x")
    permit(breaker).succeeded()
    fail(breaker, 2)
    assert breaker.try_admit() is None
    figures = breaker.statistics()
    assert figures.state is OPEN
    assert (figures.attempts, figures.successes, figures.failures) == (3, 1, 2)
    assert (figures.refused, figures.times_opened, figures.waiting) == (1, 1, 0)
    assert (figures.failures_in_row, figures.retry_in) == (2, 4)
    assert repr(breaker) == "<CircuitBreaker 'x' open, 2 failures in a row>"
    assert breaker.last_failure is LOST


@pytest.mark.parametrize(
    ("failures", "pause"), [(0, 1), (-1, 1), (1, -0.1), (1, math.nan)], ids=repr
)
def test_bad_numbers(failures: int, pause: float) -> None:
    with pytest.raises(ValueError, match=r"failures|pause"):
        CircuitBreaker(failures=failures, pause=pause)


STEPS = st.sampled_from(["admit", "succeed", "fail", "abandon", "lasted", "wait"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 5)), max_size=60), st.integers(1, 4))
def test_any_course_of_events_keeps_the_rules(steps: list[tuple[str, int]], failures: int) -> None:
    async def main() -> None:
        breaker = CircuitBreaker(failures=failures, pause=3)
        out: list[Permit] = []
        for step, which in steps:
            state = breaker.state
            if step == "admit":
                one = breaker.try_admit()
                if state is CLOSED:
                    assert one is not None
                elif state is OPEN:
                    assert one is None
                if one is not None:
                    out.append(one)
            elif step == "wait":
                await trio.sleep(which)
            elif out:
                one = out[which % len(out)]
                if step == "succeed":
                    one.succeeded()
                elif step == "fail":
                    one.failed(LOST)
                elif step == "lasted":
                    one.lasted()
                else:
                    one.abandoned()
            figures = breaker.statistics()
            assert figures.successes >= 0
            if figures.state is CLOSED:
                assert figures.failures_in_row < failures
                assert figures.retry_in == 0
            elif figures.state is OPEN:
                assert 0 < figures.retry_in <= 3
        # Whatever was, an attempt gets through in the end.
        for one in out:
            one.abandoned()
        await trio.sleep(3)
        with trio.fail_after(3):
            await breaker.admit()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_opener_that_raises_at_once_is_an_attempt_that_failed() -> None:
    breaker = CircuitBreaker(failures=1, pause=1)
    calls = 0

    def opener() -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("no route")
        return opened()

    @asynccontextmanager
    async def opened() -> AsyncIterator[str]:
        yield "session"

    with trio.fail_after(10):
        async for attempt in reconnect(opener, breaker=breaker, initial_delay=0):
            async with attempt as session:
                assert session == "session"
                break
    assert calls == 3
    assert breaker.state is CircuitState.CLOSED
