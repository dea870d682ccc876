"""Background tasks that never show in the exceptions of the block they serve."""

from __future__ import annotations

import gc
import signal
import traceback
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trio_wt import InternalError
from trio_wt._transport.services import Services

Body = Callable[["Harness", Services], Awaitable[None]]


class Harness:
    """A connection in small: a service takes what the block sends, and the goodbye."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failures: list[Exception] = []
        self.said_goodbye_to: list[BaseException | None] = []
        self.scope = trio.CancelScope()
        self._channel, self._incoming = trio.open_memory_channel[str](10)

    async def send(self, text: str) -> None:
        """Hand something to the service, and wait until it has it."""
        await self._channel.send(text)
        await trio.sleep(0.01)

    async def service(self, _: trio.CancelScope) -> None:
        try:
            async for text in self._incoming:
                self.log.append(text)
        finally:
            self.log.append("service stopped")

    async def goodbye(self, exc: BaseException | None) -> None:
        self.said_goodbye_to.append(exc)
        await self.send("goodbye")

    def services(self) -> Services:
        return Services(self.scope, self.goodbye, self.failures.append)


async def run(body: Body, harness: Harness | None = None) -> Harness:
    harness = harness or Harness()
    async with harness.services() as services:
        services.start_soon(harness.service, name="service")
        await body(harness, services)
    return harness


async def test_a_block_that_ends_normally() -> None:
    async def body(harness: Harness, services: Services) -> None:
        await harness.send("hello")

    harness = await run(body)
    assert harness.log == ["hello", "goodbye", "service stopped"]
    assert harness.said_goodbye_to == [None]
    assert harness.failures == []


async def test_an_exception_comes_out_as_it_is_with_its_context() -> None:
    error = ValueError("the user's")

    async def body(harness: Harness, services: Services) -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            raise error  # noqa: B904

    harness = Harness()
    with pytest.raises(ValueError, match="the user's") as caught:
        await run(body, harness)
    assert caught.value is error
    assert isinstance(error.__context__, ZeroDivisionError)
    assert error.__cause__ is None
    assert "body" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert harness.said_goodbye_to == [error]
    assert harness.log == ["goodbye", "service stopped"]


async def test_the_context_of_the_surroundings_is_kept() -> None:
    async def body(harness: Harness, services: Services) -> None:
        raise ValueError("the user's")

    with pytest.raises(ValueError, match="the user's") as caught:
        try:
            raise OSError("handled outside")
        except OSError:
            await run(body)
    assert isinstance(caught.value.__context__, OSError)
    assert caught.value.__context__.args == ("handled outside",)


async def test_a_group_of_the_users_is_not_touched() -> None:
    group = ExceptionGroup("the user's", [KeyError(), ExceptionGroup("inner", [OSError()])])

    async def body(harness: Harness, services: Services) -> None:
        raise group

    with pytest.raises(ExceptionGroup) as caught:
        await run(body)
    assert caught.value is group
    assert [type(exc) for exc in group.exceptions] == [KeyError, ExceptionGroup]


async def test_a_cancellation_from_outside_reaches_the_block_first() -> None:
    async def body(harness: Harness, services: Services) -> None:
        try:
            await trio.sleep_forever()
        finally:
            harness.log.append("finally")
            with trio.move_on_after(1, shield=True):
                await harness.send("from finally")

    harness = Harness()
    with trio.move_on_after(1) as scope:
        await run(body, harness)
    assert scope.cancelled_caught
    assert harness.log == ["finally", "from finally", "goodbye", "service stopped"]
    assert [type(exc) for exc in harness.said_goodbye_to] == [trio.Cancelled]


async def test_a_block_that_is_cancelled_before_it_begins() -> None:
    async def body(harness: Harness, services: Services) -> None:
        await trio.lowlevel.checkpoint()
        pytest.fail("a checkpoint lets the cancellation through")

    harness = Harness()
    with trio.CancelScope() as scope:
        scope.cancel()
        await run(body, harness)
    assert scope.cancelled_caught
    assert harness.log == ["goodbye", "service stopped"]


async def test_a_service_started_while_cancelled_still_runs() -> None:
    harness = Harness()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with harness.services() as services:
            services.start_soon(harness.service, name="service")
    assert harness.log == ["goodbye", "service stopped"]


async def test_what_ends_a_service_is_told_and_hurts_nobody() -> None:
    error = OSError("the network")

    async def fails(_: trio.CancelScope) -> None:
        await trio.sleep(1)
        raise error

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(fails, name="fails")
        await trio.sleep(2)
        assert harness.failures == [error]
        await harness.send("the other one lives")

    harness = await run(body)
    assert harness.log == ["the other one lives", "goodbye", "service stopped"]


async def test_cancelling_the_blocks_scope_ends_it_without_a_word() -> None:
    async def loses(_: trio.CancelScope) -> None:
        harness.scope.cancel()

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(loses, name="loses")
        await trio.sleep_forever()

    harness = Harness()
    await run(body, harness)
    assert harness.scope.cancelled_caught
    assert harness.log == ["goodbye", "service stopped"]
    assert [type(exc) for exc in harness.said_goodbye_to] == [trio.Cancelled]


async def test_errors_next_to_the_cancellation_of_the_scope_come_out_alone() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in a task of the user's")

    async def body(harness: Harness, services: Services) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            harness.scope.cancel()

    with pytest.raises(ExceptionGroup) as caught:
        await run(body)
    (error,) = caught.value.exceptions
    assert isinstance(error, ValueError)


def test_a_keyboard_interrupt_reaches_the_users_code() -> None:
    async def body(harness: Harness, services: Services) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    harness = Harness()
    with pytest.raises(KeyboardInterrupt):
        trio.run(run, body, harness)
    assert harness.log == ["goodbye", "service stopped"]
    assert harness.failures == []


def test_a_keyboard_interrupt_in_a_service_waits_for_the_users_code() -> None:
    async def interrupted(_: trio.CancelScope) -> None:
        signal.raise_signal(signal.SIGINT)
        harness.log.append("went on")

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(interrupted, name="interrupted")
        await trio.sleep_forever()

    harness = Harness()
    with pytest.raises(KeyboardInterrupt):
        trio.run(run, body, harness)
    assert harness.log == ["went on", "goodbye", "service stopped"]
    assert harness.failures == []


class Rude(BaseException):
    """What a service must never raise."""


async def rude(_: trio.CancelScope) -> None:
    await trio.sleep(1)
    raise Rude


async def test_a_service_that_breaks_the_rules_is_an_internal_error() -> None:
    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(rude, name="rude")
        await trio.sleep_forever()

    with pytest.raises(InternalError, match="report this") as caught:
        await run(body)
    group = caught.value.__cause__
    assert isinstance(group, BaseExceptionGroup)
    assert [type(exc) for exc in group.exceptions] == [Rude]
    assert not hasattr(group, "__notes__")


async def test_an_internal_error_tells_what_the_block_raised() -> None:
    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(rude, name="rude")
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise KeyError("lost")

    with pytest.raises(InternalError) as caught:
        await run(body)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__notes__ == ["the block itself had raised KeyError('lost')"]


async def test_one_inside_another() -> None:
    inner = Harness()

    async def inner_body(harness: Harness, services: Services) -> None:
        raise KeyError(1)

    async def body(harness: Harness, services: Services) -> None:
        try:
            await run(inner_body, inner)
        finally:
            harness.log.append("outer goes on")

    outer = Harness()
    with pytest.raises(KeyError):
        await run(body, outer)
    assert inner.log == ["goodbye", "service stopped"]
    assert outer.log == ["outer goes on", "goodbye", "service stopped"]


async def test_a_goodbye_is_bounded_by_its_owner_and_shielded_from_others() -> None:
    class Slow(Harness):
        async def goodbye(self, exc: BaseException | None) -> None:
            with trio.move_on_after(7):
                await trio.sleep_forever()

    async def body(harness: Harness, services: Services) -> None:
        await trio.sleep_forever()

    harness, start = Slow(), trio.current_time()
    with trio.move_on_after(1) as scope:
        await run(body, harness)
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(8)
    assert harness.log == ["service stopped"]


class Tactless(Harness):
    error: BaseException = RuntimeError("no goodbye")

    async def goodbye(self, exc: BaseException | None) -> None:
        raise self.error


async def test_a_goodbye_that_fails_is_heard_only_after_a_good_block() -> None:
    async def fine(harness: Harness, services: Services) -> None:
        await harness.send("fine")

    async def fails(harness: Harness, services: Services) -> None:
        await harness.send("fails")
        raise KeyError("first")

    harness = Tactless()
    with pytest.raises(RuntimeError, match="no goodbye"):
        await run(fine, harness)
    assert harness.log == ["fine", "service stopped"]
    harness = Tactless()
    with pytest.raises(KeyError, match="first"):
        await run(fails, harness)
    assert harness.log == ["fails", "service stopped"]


async def test_an_interrupt_in_the_goodbye_is_always_heard() -> None:
    class Interrupted(Tactless):
        error = KeyboardInterrupt()

    error = KeyError("first")

    async def fails(harness: Harness, services: Services) -> None:
        raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        await run(fails, Interrupted())
    assert caught.value.__cause__ is error


# ---- the alarm clock


async def test_a_service_runs_again_when_its_deadline_passes() -> None:
    times: list[float] = []

    async def clock(scope: trio.CancelScope) -> None:
        times.append(trio.current_time() - start)
        scope.deadline = trio.current_time() + 10
        await trio.sleep_forever()

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(clock, name="clock")
        await trio.sleep(35)

    start = trio.current_time()
    harness = await run(body)
    assert times == pytest.approx([0, 10, 20, 30])
    assert harness.failures == []


async def test_running_again_costs_no_memory() -> None:
    scopes: list[weakref.ref[trio.CancelScope]] = []

    async def clock(scope: trio.CancelScope) -> None:
        scopes.append(weakref.ref(scope))
        scope.deadline = trio.current_time() + 1
        await trio.sleep_forever()

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(clock, name="clock")
        await trio.sleep(20.5)
        gc.collect()
        assert len([scope for scope in scopes if scope() is not None]) < 3

    await run(body)
    assert len(scopes) == 21


async def test_a_service_that_ended_does_not_run_again() -> None:
    runs = 0

    async def once(scope: trio.CancelScope) -> None:
        nonlocal runs
        runs += 1
        scope.deadline = trio.current_time() + 1

    async def fails(scope: trio.CancelScope) -> None:
        await once(scope)
        raise OSError

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(once, name="once")
        services.start_soon(fails, name="fails")
        await trio.sleep(10)

    harness = await run(body)
    assert runs == 2
    assert len(harness.failures) == 1


async def test_services_keep_their_names() -> None:
    names: list[str] = []

    async def tells(_: trio.CancelScope) -> None:
        names.append(trio.lowlevel.current_task().name)

    async def body(harness: Harness, services: Services) -> None:
        services.start_soon(tells, name="a name")
        await trio.testing.wait_all_tasks_blocked()

    await run(body)
    assert names == ["a name"]
