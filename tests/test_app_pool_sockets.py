"""A pool of sessions, over real sockets."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio

from tests.quic_pairs import certificate, client_tls
from tests.webtransport_pairs import echo, ws_echo
from trio_wt import (
    ConnectionClosed,
    ServerTLS,
    open_websocket,
    open_webtransport,
    reconnect,
    serve_websocket,
    serve_webtransport,
)
from trio_wt.app._breaker import CircuitBreaker
from trio_wt.app._pool import SessionPool
from trio_wt.app._pool_members import NoEndpoint

pytestmark = pytest.mark.real_clock


def sockets() -> int:
    """How many sockets of Trio's there are that are open."""
    gc.collect()
    return sum(
        isinstance(thing, trio.socket.SocketType) and thing.fileno() >= 0
        for thing in gc.get_objects()
    )


async def start(nursery: trio.Nursery) -> tuple[str, trio.CancelScope]:
    """A server of WebSockets on loopback: its URL, and what ends it."""
    scope = trio.CancelScope()

    async def serve(task_status: Any) -> None:
        with scope:
            await serve_websocket(ws_echo, 0, host="127.0.0.1", task_status=task_status)

    listeners = await nursery.start(serve)
    return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/", scope


async def test_one_of_two_servers_goes_away_for_good() -> None:
    before = sockets()
    answered: Counter[str] = Counter()
    failed = 0

    async with trio.open_nursery() as nursery:
        (one, end_one), (two, end_two) = [await start(nursery) for _ in range(2)]

        async def use() -> None:
            nonlocal failed
            for number in range(40):
                try:
                    async with pool.session() as ws:
                        await ws.send(str(number))
                        assert await ws.receive() == str(number)
                        answered[ws.request.host] += 1
                        await trio.sleep(0.001)
                except ConnectionClosed:
                    failed += 1
                if number == 20:
                    end_one.cancel()

        opener = partial(open_websocket, proxy=None)
        async with SessionPool([one, two], opener=opener, size=3) as pool:
            async with trio.open_nursery() as users:
                for _ in range(6):
                    users.start_soon(use)
            assert sum(answered.values()) + failed == 240
            assert failed <= 3
            assert len(answered) == 2
            end_two.cancel()
            # Refused, or, a moment before, accepted by the system and reset.
            gone = "(cannot connect|the connection broke)"
            with pytest.raises(NoEndpoint, match=f"ws://.*{gone}.*; ws://.*{gone}"):
                while True:
                    with suppress(ConnectionClosed):
                        async with pool.session() as ws:
                            await ws.receive()
    assert sockets() == before


async def test_a_pool_under_a_loop_waits_for_a_server_to_come_back() -> None:
    """A pool turns away at once; who would rather wait puts `reconnect` around it."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    told: list[type[Exception]] = []

    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            while len(told) < 3:
                await trio.sleep(0.01)
            listener.listen()
            await serve_websocket(ws_echo, listeners=[trio.SocketListener(listener)])

        nursery.start_soon(come_back)
        async with SessionPool(
            [url],
            opener=partial(open_websocket, proxy=None),
            breaker=lambda endpoint: CircuitBreaker(failures=100),
        ) as pool:
            async for attempt in reconnect(
                pool.session,
                initial_delay=0.02,
                max_delay=0.02,
                on_retry=lambda exc, delay: told.append(type(exc)),
            ):
                async with attempt as ws:
                    await ws.send("there you are")
                    assert await ws.receive() == "there you are"
                    break
        nursery.cancel_scope.cancel()
    assert told[:3] == [NoEndpoint] * 3


async def test_webtransport_users_share_and_leave_nothing() -> None:
    before = sockets()
    async with trio.open_nursery() as nursery:
        urls = []
        for _ in range(2):
            serve = partial(
                serve_webtransport, echo, 0, host="127.0.0.1", tls=ServerTLS(certificate())
            )
            bound = await nursery.start(serve)
            urls.append(f"https://127.0.0.1:{bound[0].local_address[1]}/")
        used = set()

        async def use() -> None:
            async with pool.session() as session, session.open_stream() as stream:
                used.add(session)
                await stream.send_all(b"x" * 10_000)
                await stream.send_eof()
                assert await stream.receive_all() == b"x" * 10_000

        opener = partial(open_webtransport, tls=client_tls())
        async with SessionPool(urls, opener=opener, health_interval=0.05) as pool:
            for _ in range(3):
                async with trio.open_nursery() as users:
                    for _ in range(10):
                        users.start_soon(use)
                await trio.sleep(0.06)
            assert len(used) <= 3
            assert all(not figures.failed for figures in pool.statistics().endpoints)
        nursery.cancel_scope.cancel()
    assert sockets() == before
