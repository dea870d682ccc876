"""Async tests run under Trio: on its autojump clock, or on the real one where they are marked so."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Generator

import pytest
import trio
import trio.testing

# In seconds of the test's own clock; a test that needs longer is broken.
REAL_LIMIT = 30
VIRTUAL_LIMIT = 10_000


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):
        real = pyfuncitem.get_closest_marker("real_clock") is not None
        clock = None if real else trio.testing.MockClock(autojump_threshold=0)

        @functools.wraps(test)
        def run(**kwargs: object) -> None:
            async def main() -> None:
                with trio.fail_after(REAL_LIMIT if real else VIRTUAL_LIMIT):
                    await test(**kwargs)

            trio.run(main, clock=clock)

        pyfuncitem.obj = run
    return (yield)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies are no business of tests on loopback."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Generator[None]:
    """Trio keeps idle worker threads for a while; any other thread must end with its test."""
    before = set(threading.enumerate())
    yield
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith("Trio thread") and thread.is_alive() and not thread.daemon
    ]
    assert not left, f"threads were left behind: {left}"
