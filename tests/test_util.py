"""The small helpers."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_wt._util import Wakeup, safe_text


async def test_a_parked_task_goes_on_when_it_is_woken() -> None:
    wakeup = Wakeup()
    order: list[str] = []

    async def wait() -> None:
        await wakeup.park()
        order.append("woken")

    assert not wakeup.parked
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert wakeup.parked
        wakeup.wake()
        assert not wakeup.parked
        wakeup.wake()  # it is woken once
        order.append("waker")
    assert order == ["waker", "woken"]


async def test_a_wake_up_with_nobody_there_is_not_remembered() -> None:
    wakeup = Wakeup()
    wakeup.wake()
    with trio.move_on_after(1) as scope:
        await wakeup.park()
    assert scope.cancelled_caught


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    wakeup = Wakeup()
    with trio.move_on_after(1):
        await wakeup.park()
    assert not wakeup.parked
    wakeup.wake()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            await wakeup.park()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert wakeup.parked
        wakeup.wake()


async def test_parking_is_a_checkpoint() -> None:
    wakeup = Wakeup()
    with trio.CancelScope() as scope:
        scope.cancel()
        await wakeup.park()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("", ""),
        ("plain é €", "plain é €"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\0\x7f\x85\u2028\u202e", "\\x00\\x7f\\x85\\u2028\\u202e"),
        ("\ud800", "\\ud800"),
    ],
)
def test_safe_text(text: str, safe: str) -> None:
    assert safe_text(text) == safe


def test_safe_text_is_cut() -> None:
    assert safe_text("x" * 200) == "x" * 200
    assert safe_text("x" * 201) == "x" * 200 + "..."
    assert safe_text("abcdef", 3) == "abc..."
    assert safe_text("abc", 3) == "abc"


@given(st.text(), st.integers(0, 20))
def test_safe_text_is_one_short_printable_line(text: str, limit: int) -> None:
    safe = safe_text(text, limit)
    assert safe.isprintable()
    assert len(safe) <= 10 * limit + 3
    if text.isprintable() and len(text) <= limit:
        assert safe == text
