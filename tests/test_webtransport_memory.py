"""What is left of streams and sessions that are over: nothing."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.webtransport_pairs import (
    Visitors,
    check_nothing_is_held,
    connect,
    one_way_pair,
    open_loose,
    serving,
    session_pair,
    settle,
    stream_pair,
)
from trio_wt import (
    ConnectionClosedError,
    Stream,
    StreamAbort,
    StreamReset,
    WebTransportConnection,
    WebTransportSession,
)
from trio_wt.testing import Network, webtransport_pair


@asynccontextmanager
async def counted() -> AsyncIterator[list[float]]:
    """How much of this process's time, in seconds, the block has taken."""
    figures: list[float] = []
    started = time.process_time()
    yield figures
    figures.append(time.process_time() - started)


async def test_a_close_with_a_thousand_streams_open() -> None:
    """It is over within a second on the network, for both sides, and costs little time here."""
    network, visitors = Network(delay=0.02), Visitors()
    limits = {"max_streams": 1000, "max_receive_streams": 1000}
    async with serving(visitors, network, **limits), connect(network, **limits) as connection:
        async with session_pair(connection, visitors) as (other, their_other):
            async with session_pair(connection, visitors) as (ours, theirs):
                for a in (ours, theirs):
                    for _ in range(500):
                        await (await open_loose(a)).send_all(bytes(200))
                await trio.sleep(1)
                woken: list[float] = []
                outcomes: set[tuple[type[BaseException], object]] = set()

                async def wait(stream: Stream) -> None:
                    try:
                        while True:
                            await stream.receive_some()
                    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                        outcomes.add((type(exc), getattr(exc, "code", None)))
                    woken.append(trio.current_time())

                assert len(theirs.incoming_streams) == len(ours.incoming_streams) == 500
                async with trio.open_nursery() as nursery:
                    for b in (ours, theirs):
                        while len(b.incoming_streams):
                            nursery.start_soon(wait, b.incoming_streams.receive_nowait())
                    await trio.testing.wait_all_tasks_blocked()
                    async with counted() as seconds:
                        started = trio.current_time()
                        theirs.close_now(9)
                        with trio.fail_after(1):
                            await ours.wait_closed()
                        await trio.testing.wait_all_tasks_blocked()
                assert seconds[0] < 2
                assert len(woken) == 1000
                assert max(woken) - started < 1
                assert outcomes == {(ConnectionClosedError, 9), (trio.ClosedResourceError, None)}
            await trio.sleep(1)
            # Another session is none the worse.
            async with stream_pair(other, their_other):
                pass
            server = theirs.connection
        await settle()
        check_nothing_is_held(connection)
        check_nothing_is_held(server)


async def test_nothing_is_kept_of_ten_thousand_streams() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors) as (ours, theirs):

            async def answer(stream: Stream) -> None:
                with contextlib.suppress(StreamReset):
                    async with stream:
                        await stream.send_all(await stream.receive_all(), eof=True)

            async def take(session: WebTransportSession) -> None:
                async for stream in session.incoming_streams:
                    nursery.start_soon(answer, stream)

            async def take_one_way(session: WebTransportSession) -> None:
                async for stream in session.incoming_receive_streams:
                    with contextlib.suppress(StreamReset):
                        async with stream:
                            await stream.receive_all()

            async def use(session: WebTransportSession, number: int) -> None:
                async with session.open_stream() as both, session.open_send_stream() as one_way:
                    if number % 4:
                        await both.send_all(b"x", eof=True)
                        await one_way.send_all(b"y")
                    if number % 4 == 1:
                        assert await both.receive_all() == b"x"
                    elif number % 4 == 2:
                        raise StreamAbort(3)

            async with trio.open_nursery() as nursery:
                for session in (ours, theirs):
                    nursery.start_soon(take, session)
                    nursery.start_soon(take_one_way, session)
                for _ in range(50):
                    async with trio.open_nursery() as using:
                        for number in range(50):
                            using.start_soon(use, ours, number)
                            using.start_soon(use, theirs, number)
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            for session in (ours, theirs):
                carrier, driver = session._carrier, session.connection._driver
                assert not carrier.streams
                assert not carrier._counted
                # Delivered ones may wait to be swept up.
                assert len(carrier._sending) <= 512
                assert not any(carrier._openers)
                assert len(driver._streams) <= 2
                assert driver.engine.open_streams <= 3
                for name, table in vars(driver.engine).items():
                    if isinstance(table, dict | set | list):
                        assert len(table) < 50, name
            server = theirs.connection
        await settle()
        check_nothing_is_held(connection)
        check_nothing_is_held(server)


async def test_nothing_is_kept_of_three_hundred_sessions() -> None:
    """They end in every way, with streams open on both sides and data that nobody has read."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, max_sessions=40), connect(network) as connection:

        async def use(number: int) -> None:
            with trio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
                async with session_pair(connection, visitors) as (ours, theirs):
                    for session in (ours, theirs):
                        await (await open_loose(session)).send_all(bytes(3000))
                        session.datagrams.send_nowait(b"x")
                    if number % 5 == 1:
                        theirs.close_now(number)
                    elif number % 5 == 2:
                        ours.close_now(number)
                    elif number % 5 == 3:
                        scope.cancel()
                    elif number % 5 == 4:
                        raise ZeroDivisionError

        async with session_pair(connection, visitors) as (_, theirs):
            for _ in range(10):
                async with trio.open_nursery() as nursery:
                    for number in range(30):
                        nursery.start_soon(use, number)
                await settle()
            server = theirs.connection
        await trio.sleep(2)
        for side in (connection, server):
            check_nothing_is_held(side)
            for name, table in vars(side._driver.engine).items():
                if isinstance(table, dict | set | list):
                    assert len(table) < 50, name
            for name, value in vars(side._sessions).items():
                if isinstance(value, dict | set | list):
                    assert len(value) < 50, name


async def test_sessions_are_garbage_when_they_are_over() -> None:
    network, visitors = Network(), Visitors()
    refs: list[weakref.ref[object]] = []

    async def use(connection: WebTransportConnection) -> None:
        async with session_pair(connection, visitors) as (ours, theirs):
            refs.extend((weakref.ref(ours._carrier), weakref.ref(theirs._carrier)))
            async with stream_pair(ours, theirs), one_way_pair(theirs, ours):  # type: ignore[arg-type]
                pass

    async with serving(visitors, network), connect(network) as connection:
        for _ in range(3):
            await use(connection)
        await settle()
        gc.collect()
        assert [ref() for ref in refs] == [None] * 6


async def test_a_stream_that_is_held_by_nobody_is_the_session_s_until_its_end() -> None:
    """Taken and dropped without a block: it goes with its session, not before."""
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors) as (ours, theirs):
            async with ours.open_stream() as stream:
                await stream.send_all(b"x")
                await theirs.incoming_streams.receive()
                gc.collect()
                await settle()
                assert theirs.statistics().open_streams == 1
                theirs.close_now(4)
                with pytest.raises(ConnectionClosedError):
                    await stream.receive_some()
        await settle()
        check_nothing_is_held(connection)


async def test_what_each_session_has_one_of_is_small() -> None:
    """CPython keeps up to 29 attributes in the object itself; with one more it takes a kilobyte and a half longer."""
    async with webtransport_pair() as (client, _):
        driver = client.connection._driver
        for part in (client._carrier, driver, driver.upper, driver.upper.router):  # type: ignore[attr-defined]
            assert len(vars(part)) < 30, part
