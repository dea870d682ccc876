"""A pool of sessions: who gets which, what happens to endpoints that fail, and how it ends."""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from tests.quic_pairs import certificate, client_tls
from tests.webtransport_pairs import echo, stay
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    Headers,
    Rejected,
    ServerTLS,
    WebSocket,
    WebTransportConnection,
    WebTransportSession,
    open_webtransport,
    open_webtransport_connection,
    serve_webtransport,
    wrap_client_stream,
    wrap_server_stream,
)
from trio_wt.app._breaker import CircuitBreaker
from trio_wt.app._pool import SessionPool
from trio_wt.app._pool_members import NoEndpoint, name_of
from trio_wt.testing import Network

A, B, C = "ws://a.test/", "ws://b.test/", "ws://c.test/"


class World:
    """Servers by name, each of which is up unless it is said what it does instead. They echo."""

    def __init__(self) -> None:
        self.down: dict[str, Exception] = {}
        self.slow: dict[str, float] = {}
        # Sessions with it are lost after so many seconds.
        self.short: dict[str, float] = {}
        self.opened: Counter[str] = Counter()
        self.tried: list[str] = []
        self.now_open: Counter[str] = Counter()
        self.servers: dict[str, list[WebSocket]] = {}
        self.ends: list[int | None] = []
        self.received: list[str | bytes] = []
        self.settings: dict[str, Any] = {}

    def fail(self, *endpoints: str) -> None:
        for endpoint in endpoints:
            self.down[endpoint] = HandshakeFailed(f"{endpoint[5]} is down")

    @asynccontextmanager
    async def open(self, endpoint: str) -> AsyncIterator[WebSocket]:
        self.tried.append(endpoint)
        await trio.sleep(self.slow.get(endpoint, 0))
        if endpoint in self.down:
            raise self.down[endpoint]
        here, there = trio.testing.memory_stream_pair()
        # Servers are on other machines, so to speak: nothing that happens here cancels them.
        trio.lowlevel.spawn_system_task(self._serve, endpoint, there)
        async with wrap_client_stream(here, endpoint, **self.settings) as client:
            self.opened[endpoint] += 1
            self.now_open[endpoint] += 1
            try:
                yield client
            finally:
                self.now_open[endpoint] -= 1

    async def _serve(self, endpoint: str, stream: trio.abc.Stream) -> None:
        async with wrap_server_stream(stream) as server:
            self.servers.setdefault(endpoint, []).append(server)
            try:
                with trio.move_on_after(self.short.get(endpoint, math.inf)):
                    async for message in server:
                        self.received.append(message)
                        await server.send(message)
                if endpoint in self.short:
                    await server.close(1011, "too bad")
            except (ConnectionClosed, trio.ClosedResourceError):
                pass
            self.ends.append(server.close_code)

    def pool(self, *endpoints: str, **options: Any) -> SessionPool[str, WebSocket]:
        return SessionPool(endpoints or (A, B), opener=self.open, **options)


@pytest.fixture
def world() -> World:
    return World()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


def tasks() -> int:
    """How many tasks there are below this one's parent."""
    parent = trio.lowlevel.current_task().parent_nursery
    assert parent is not None

    def count(nursery: trio.Nursery) -> int:
        return sum(1 + sum(map(count, task.child_nurseries)) for task in nursery.child_tasks)

    return count(parent)


async def receive_until_closed(ws: WebSocket) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await ws.receive()


async def ask(ws: WebSocket, message: str = "hello") -> None:
    await ws.send(message)
    assert await ws.receive() == message


# ---- getting a session


async def test_a_session_is_opened_when_it_is_wanted_and_used_again(world: World) -> None:
    async with world.pool(A) as pool:
        assert not world.tried
        for _ in range(5):
            async with pool.session() as ws:
                await ask(ws)
                assert pool.statistics().users == 1
        assert pool.statistics().users == 0
        assert world.now_open[A] == 1
    assert world.opened[A] == 1
    assert world.now_open[A] == 0


async def test_a_websocket_is_used_by_one_at_a_time(world: World) -> None:
    async with world.pool(A) as pool, pool.session() as one:
        async with pool.session() as two:
            assert one is not two
        async with pool.session() as three:
            assert three is two


async def test_sessions_are_spread_over_the_endpoints(world: World) -> None:
    async with world.pool(A, B, C) as pool, trio.open_nursery() as nursery:
        started = trio.Event()
        for _ in range(9):
            nursery.start_soon(hold, pool, started)
        await settle()
        assert world.opened == {A: 3, B: 3, C: 3}
        started.set()


async def hold(pool: SessionPool[Any, Any], until: trio.Event) -> None:
    async with pool.session():
        await until.wait()


async def test_size_bounds_the_sessions_of_an_endpoint_and_the_others_wait_in_line(
    world: World,
) -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        async with pool.session() as ws:
            served.append(number)
            await ask(ws, str(number))
            await trio.sleep(1)

    async with world.pool(A, B, size=2) as pool:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(use, number)
                await settle()
            figures = pool.statistics()
            assert (figures.sessions, figures.users, figures.waiting) == (4, 4, 8)
        # Four at a time; tasks that wake together run in any order.
        assert [sorted(served[i : i + 4]) for i in (0, 4, 8)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
        ]
        assert trio.current_time() - start == pytest.approx(3)
    assert world.opened == {A: 2, B: 2}


async def test_the_session_that_was_unused_for_longest_is_next(world: World) -> None:
    async with world.pool(A, size=3) as pool:
        async with pool.session() as one, pool.session() as two, pool.session() as three:
            pass
        await trio.sleep(1)
        order = []
        for _ in range(6):
            async with pool.session() as ws:
                order.append([one, two, three].index(ws))
                await trio.sleep(1)
        assert sorted(order[:3]) == [0, 1, 2]
        assert order[:3] == order[3:]


async def test_entering_is_a_checkpoint(world: World) -> None:
    async with world.pool(A) as pool:
        for _ in range(2):
            manager = pool.session()
            with trio.testing.assert_checkpoints():
                await manager.__aenter__()
            await manager.__aexit__(None, None, None)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.session():
                pytest.fail("it was cancelled")
        assert scope.cancelled_caught
        assert pool.statistics().users == 0


async def test_who_does_not_want_to_wait_any_longer_leaves_the_line(world: World) -> None:
    async with world.pool(A, size=1) as pool:
        async with pool.session():
            with trio.move_on_after(3) as scope:
                async with pool.session():
                    pytest.fail("there is one only")
            assert scope.cancelled_caught
            assert pool.statistics().waiting == 0
        async with pool.session() as ws:
            await ask(ws)


async def test_who_gives_up_in_the_moment_of_being_served_gives_the_session_back(
    world: World,
) -> None:
    async with world.pool(A, size=1) as pool:
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                async with pool.session():
                    pytest.fail("it was cancelled before")

        async with trio.open_nursery() as nursery:
            async with pool.session():
                nursery.start_soon(wait)
                await settle()
                scope.cancel()
            # Nothing has run since; leaving the block serves whoever waits.
        assert scope.cancelled_caught
        assert pool.statistics().users == 0
        with trio.fail_after(1):
            async with pool.session() as ws:
                await ask(ws)


async def test_a_fault_of_an_opener_is_told_with_its_kind(world: World) -> None:
    world.down[A] = KeyError("port")
    async with world.pool(A) as pool:
        with pytest.raises(NoEndpoint, match="KeyError: 'port'"):
            async with pool.session():
                pytest.fail("nothing was opened")


async def test_who_leaves_the_line_while_it_is_opened_leaves_it_for_the_next(
    world: World,
) -> None:
    world.slow[A] = 5
    async with world.pool(A) as pool:
        with trio.move_on_after(3):
            async with pool.session():
                pytest.fail("it takes five seconds")
        start = trio.current_time()
        async with pool.session() as ws:
            assert trio.current_time() - start == 2
            await ask(ws)
    assert world.opened[A] == 1


@pytest.mark.parametrize("at", range(12))
async def test_cancellation_at_every_step_loses_nothing(world: World, at: int) -> None:
    """A session is taken or it is not; after it there are as many as before."""
    async with world.pool(A, size=1) as pool:
        steps = 0
        scope = trio.CancelScope()

        class Count(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal steps
                steps += 1
                if steps == at:
                    scope.cancel()

        counter = Count()
        trio.lowlevel.add_instrument(counter)
        try:
            with scope:
                async with pool.session() as ws:
                    await ask(ws)
        finally:
            trio.lowlevel.remove_instrument(counter)
        await settle()
        assert pool.statistics().users == 0
        assert pool.statistics().waiting == 0
        with trio.fail_after(10):
            async with pool.session() as ws:
                await ask(ws)
    assert world.now_open[A] == 0


# ---- what the last user leaves behind


async def test_a_websocket_whose_user_has_failed_is_closed(world: World) -> None:
    async with world.pool(A) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.session() as one:
                await one.send("an answer comes late")
                raise ZeroDivisionError
        with trio.move_on_after(1):
            async with pool.session() as two:
                await trio.sleep_forever()
        async with pool.session() as three:
            assert len({one, two, three}) == 3
            await ask(three)
        await settle()
        assert pool.statistics().sessions == 1


async def test_a_websocket_with_an_answer_left_on_it_is_closed(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session() as one:
            await one.send("who reads this?")
            await settle()
        async with pool.session() as two:
            assert one is not two
            await ask(two)
        async with trio.open_nursery() as nursery:
            async with pool.session() as three:
                # Somebody else is still at it.
                nursery.start_soon(receive_until_closed, three)
                await settle()
            async with pool.session() as four:
                assert three is two is not four


@pytest.mark.parametrize("how", ["close", "send_close"])
async def test_a_websocket_that_its_user_has_closed_is_not_used_again(
    world: World, how: str
) -> None:
    async with world.pool(A, size=1) as pool:
        for _ in range(3):
            async with pool.session() as ws:
                await ask(ws)
                await getattr(ws, how)()
    assert world.opened[A] == 3
    assert pool.statistics().endpoints[0].circuit.failures == 0


async def test_the_exception_of_a_block_comes_out_as_it_is(world: World) -> None:
    error = ValueError("mine")
    async with world.pool(A) as pool:
        with pytest.raises(ValueError, match="mine") as caught:
            async with pool.session():
                raise error
    assert caught.value is error


# ---- sessions that are shared


HOSTS = ("a.test", "b.test")
SERVERS = tuple(f"https://{host}:4433/" for host in HOSTS)


def shared(network: Network, **options: Any) -> SessionPool[str, WebTransportSession]:
    def opener(url: str) -> Any:
        return open_webtransport(url, tls=client_tls(), socket=network.socket())

    return SessionPool(SERVERS, opener=opener, **options)


@asynccontextmanager
async def servers(
    network: Network, handler: Callable[[WebTransportSession], Awaitable[object]] = echo
) -> AsyncIterator[list[trio.CancelScope]]:
    scopes = []
    async with trio.open_nursery() as nursery:
        for host in HOSTS:
            scope = trio.CancelScope()

            async def serve(
                host: str = host, scope: trio.CancelScope = scope, **kwargs: Any
            ) -> None:
                with scope:
                    await serve_webtransport(
                        handler,
                        tls=ServerTLS(certificate()),
                        sockets=[network.socket((host, 4433))],
                        **kwargs,
                    )

            await nursery.start(serve)
            scopes.append(scope)
        yield scopes
        nursery.cancel_scope.cancel()


async def ask_stream(session: WebTransportSession) -> None:
    async with session.open_stream() as stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await stream.receive_all() == b"hello"


async def test_webtransport_sessions_are_shared_over_all_endpoints() -> None:
    network = Network()
    async with servers(network), shared(network) as pool:
        seen: Counter[WebTransportSession] = Counter()
        leave = trio.Event()

        async def use() -> None:
            async with pool.session() as session:
                seen[session] += 1
                await ask_stream(session)
                await leave.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
            await trio.sleep(1)
            for _ in range(17):
                nursery.start_soon(use)
            await trio.sleep(1)
            assert [figures.sessions for figures in pool.statistics().endpoints] == [1, 1]
            assert sorted(seen.values()) == [10, 10]
            leave.set()


async def test_so_many_share_a_session_as_they_may() -> None:
    network = Network()
    async with servers(network), shared(network, max_users=2, size=2) as pool:
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(hold, pool, leave)
            await trio.sleep(1)
            figures = pool.statistics()
            assert (figures.sessions, figures.users, figures.waiting) == (4, 8, 1)
            leave.set()


async def test_a_session_that_is_shared_outlives_its_users_failures() -> None:
    network = Network()
    async with servers(network), shared(network) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.session() as one:
                raise ZeroDivisionError
        async with pool.session() as two:
            assert one is two
            await ask_stream(two)


async def test_a_webtransport_session_may_be_used_by_one_at_a_time() -> None:
    network = Network()
    async with servers(network), shared(network, max_users=1) as pool:
        async with pool.session() as one, pool.session() as two:
            assert one is not two
        async with pool.session() as three:
            assert three in (one, two)
        with pytest.raises(ZeroDivisionError):
            async with pool.session() as four:
                raise ZeroDivisionError
        await trio.sleep(1)
        assert four.closed is not None
        assert pool.statistics().sessions == 1


async def test_connections_may_be_pooled() -> None:
    network = Network()

    def opener(url: str) -> Any:
        return open_webtransport_connection(url, tls=client_tls(), socket=network.socket())

    pool: SessionPool[str, WebTransportConnection]
    async with servers(network), SessionPool(SERVERS, opener=opener, health_interval=1) as pool:
        async with pool.session() as connection, connection.open_session("/x") as session:
            await ask_stream(session)
            await trio.sleep(5)
        assert pool.statistics().endpoints[0].unhealthy == 0


async def test_a_session_that_is_asked_to_drain_gets_no_new_users() -> None:
    network, sessions = Network(), []

    async def handler(session: WebTransportSession) -> None:
        sessions.append(session)
        await echo(session)

    async with servers(network, handler), shared(network) as pool:
        async with pool.session() as one:
            sessions[0].drain()
            await trio.sleep(1)
            async with pool.session() as two:
                assert one is not two
            await ask_stream(one)
        await trio.sleep(1)
        assert one.closed is not None
        assert two.closed is None


# ---- sessions that end


async def test_a_session_that_ends_tells_its_user_itself(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session() as ws:
            await world.servers[A][0].close(1011, "overload")
            with pytest.raises(ConnectionClosedError, match="overload"):
                await ws.receive()
        with pytest.raises(ConnectionClosedOK):
            async with pool.session() as ws:
                await world.servers[A][1].close(1001, "restart")
                await ws.receive()
        async with pool.session() as ws:
            await ask(ws)
        assert pool.statistics().endpoints[0].ended == 2


async def test_a_session_that_ends_while_nobody_has_it_is_given_to_nobody(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session() as one:
            pass
        await world.servers[A][0].close(1001)
        async with pool.session() as two:
            assert one is not two
            await ask(two)


async def test_the_scope_of_a_session_covers_its_user(world: World) -> None:
    world.settings = {"cancel_on_close": True}
    async with world.pool(A) as pool:
        async with pool.session() as ws:
            await world.servers[A][0].close(1001)
            await trio.sleep_forever()
        async with pool.session() as ws:
            ws.cancel_scope.cancel()
            await trio.sleep_forever()
        async with pool.session() as ws:
            await ask(ws)
    assert world.opened[A] == 3


async def test_the_scope_of_a_shared_session_covers_all_its_users() -> None:
    network, left = Network(), []

    async def use(number: int) -> None:
        async with pool.session():
            await trio.sleep_forever()
        left.append(number)

    async with servers(network), shared(network) as pool:
        async with pool.session() as session, trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(use, number)
            await trio.sleep(1)
            before = pool.statistics().users
            session.cancel_scope.cancel()
            await trio.sleep(1)
            assert before > pool.statistics().users
            nursery.cancel_scope.cancel()


# ---- endpoints that fail


async def test_another_endpoint_is_taken_where_one_is_down(world: World) -> None:
    world.fail(A)
    async with world.pool() as pool:
        for _ in range(3):
            async with pool.session() as one, pool.session() as two:
                await ask(one)
                await ask(two)
    assert world.opened == {B: 2}
    # It was tried once, and passed over from then on.
    assert world.tried.count(A) == 1


async def test_one_of_two_endpoints_dies_under_load(world: World) -> None:
    done = failed = 0

    async def use(rng: random.Random) -> None:
        nonlocal done, failed
        for number in range(20):
            try:
                async with pool.session() as ws:
                    await ask(ws, str(number))
                    await trio.sleep(rng.random())
            except ConnectionClosed:
                failed += 1
            else:
                done += 1

    async with world.pool(size=4) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(use, random.Random(number))
            await trio.sleep(3)
            world.fail(A)
            for server in world.servers[A]:
                server.cancel_scope.cancel()
        assert done + failed == 160
        # Only who had a session of its is hurt.
        assert failed <= 4
        assert pool.statistics().endpoints[1].opened == 4


async def test_when_all_are_down_the_error_says_why_of_each(world: World) -> None:
    world.fail(A)
    world.down[B] = Rejected(503, Headers())
    async with world.pool() as pool:
        with pytest.raises(NoEndpoint) as caught:
            async with pool.session():
                pytest.fail("they are down")
        error = caught.value
        assert isinstance(error, HandshakeFailed)
        assert isinstance(error, trio.BrokenResourceError)
        assert error.reasons == (
            (A, "a is down"),
            (B, "the server answered with HTTP status 503"),
        )
        assert str(error) == (
            "no endpoint can be reached: ws://a.test/: a is down; "
            "ws://b.test/: the server answered with HTTP status 503"
        )
        assert isinstance(error.__cause__, ExceptionGroup)
        assert set(error.__cause__.exceptions) == set(world.down.values())
        assert pool.statistics().turned_away == 1
        assert sorted(world.tried) == [A, B]
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        world.down.clear()
        async with pool.session() as ws:
            await ask(ws)


async def test_all_who_wait_are_turned_away_together(world: World) -> None:
    world.fail(A, B)
    world.slow = {A: 2, B: 3}
    errors = []

    async def use() -> None:
        with pytest.raises(NoEndpoint) as caught:
            async with pool.session():
                pytest.fail("they are down")
        errors.append(caught.value)

    async with world.pool() as pool, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(use)
    assert len(set(map(id, errors))) == 20
    assert len(world.tried) == 2


async def test_what_is_no_failure_of_the_network_is_told_too(world: World) -> None:
    world.down[A] = ValueError("that is no URL")
    async with world.pool(A) as pool:
        with pytest.raises(NoEndpoint, match="that is no URL"):
            async with pool.session():
                pytest.fail("it is down")


async def test_an_endpoint_that_fails_again_and_again_is_left_alone(world: World) -> None:
    world.fail(A)
    async with world.pool(A, health_interval=math.inf) as pool:
        for _ in range(8):
            with pytest.raises(NoEndpoint) as caught:
                async with pool.session():
                    pytest.fail("it is down")
        assert len(world.tried) == 5
        assert str(caught.value).endswith("left alone for 30 s more, since a is down")
        assert pool.statistics().endpoints[0].state == "down"
        world.down.clear()
        await trio.sleep(29)
        with pytest.raises(NoEndpoint, match="for 1 s more"):
            async with pool.session():
                pytest.fail("it is left alone")
        await trio.sleep(1)
        async with pool.session() as ws:
            await ask(ws)
        assert pool.statistics().endpoints[0].state == "up"


async def test_one_finds_out_for_all_whether_it_is_back(world: World) -> None:
    world.fail(A)
    breaker = CircuitBreaker(failures=1, pause=10)
    async with world.pool(A, breaker=lambda endpoint: breaker, health_interval=math.inf) as pool:
        with pytest.raises(NoEndpoint):
            async with pool.session():
                pytest.fail("it is down")
        await trio.sleep(10)
        world.down.clear()
        world.slow[A] = 1
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(hold, pool, leave)
            await trio.sleep(0.5)
            assert len(world.tried) == 2
            await trio.sleep(2)
            assert pool.statistics().users == 4
            leave.set()


async def test_breakers_are_shared_with_whoever_else_knows_the_endpoint(world: World) -> None:
    breakers = {A: CircuitBreaker(failures=1, name="a"), B: CircuitBreaker()}
    permit = breakers[A].try_admit()
    assert permit is not None
    permit.failed(HandshakeFailed("found out elsewhere"))
    async with world.pool(breaker=breakers.__getitem__) as pool:
        async with pool.session(), pool.session():
            pass
        assert world.tried == [B, B]
        await pool.drain(B)
        with pytest.raises(NoEndpoint, match="found out elsewhere; ws://b.test/: it is draining"):
            async with pool.session():
                pytest.fail("there is none")


async def test_who_waits_for_a_session_gets_that_of_an_endpoint_that_is_back(
    world: World,
) -> None:
    world.fail(A)
    async with world.pool(size=1, breaker=lambda e: CircuitBreaker(1, pause=4)) as pool:
        async with pool.session():
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
                async with pool.session():
                    pytest.fail("the other is down")
            world.down.clear()
            start = trio.current_time()
            async with pool.session() as ws:
                await ask(ws)
            assert trio.current_time() - start < 4
    assert world.opened == {A: 1, B: 1}


async def test_an_endpoint_that_has_failed_is_looked_at_now_and_then(world: World) -> None:
    world.fail(A)
    async with world.pool(health_interval=20) as pool:
        async with pool.session():
            pass
        await trio.sleep(15)
        assert world.tried == [A, B]
        world.down.clear()
        await trio.sleep(6)
        assert world.tried == [A, B, A]
        assert pool.statistics().sessions == 2
        async with pool.session(), pool.session():
            assert [figures.users for figures in pool.statistics().endpoints] == [1, 1]


async def test_an_endpoint_that_takes_sessions_and_drops_them_is_left_alone(
    world: World,
) -> None:
    """It would get them all: it always has room."""
    world.short[A] = 0.1
    hurt = 0
    async with world.pool(size=1, health_interval=math.inf) as pool:
        for _ in range(50):
            try:
                async with pool.session() as ws:
                    await trio.sleep(0.5)
                    await ask(ws)
            except ConnectionClosed:
                hurt += 1
        figures = pool.statistics().endpoints
        assert hurt <= 5
        assert figures[0].circuit.failures_in_row == hurt
        assert figures[1].opened == 1


async def test_a_flapping_endpoint_is_used_while_it_is_up(world: World) -> None:
    async def flap() -> None:
        for _ in range(10):
            await trio.sleep(20)
            world.fail(A)
            for server in world.servers.get(A, []):
                server.cancel_scope.cancel()
            await trio.sleep(15)
            world.down.clear()

    answered = 0
    pool = world.pool(size=1, health_interval=5, breaker=lambda e: CircuitBreaker(pause=7))
    async with pool, trio.open_nursery() as nursery:
        nursery.start_soon(flap)
        for _ in range(400):
            with suppress(ConnectionClosed):
                async with pool.session() as ws:
                    await ask(ws)
                    answered += 1
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert answered >= 390
    assert world.opened[A] > 3
    assert world.opened[B] == 1


async def test_sessions_that_are_closed_cleanly_are_no_failures(world: World) -> None:
    async with world.pool(A) as pool:
        for number in range(8):
            async with pool.session() as ws:
                await world.servers[A][number].close(1000)
                with pytest.raises(ConnectionClosedOK):
                    await ws.receive()
        assert pool.statistics().endpoints[0].circuit.failures == 0


async def test_webtransport_fails_over_when_a_server_is_gone() -> None:
    network, errors = Network(), []
    async with servers(network) as scopes, shared(network, health_interval=5) as pool:
        async with pool.session() as session:
            host = session.request.host.partition(":")[0]
            scopes[HOSTS.index(host)].cancel()
            try:
                await session.incoming_streams.receive()
            except ConnectionClosed as exc:
                errors.append(exc)
        assert len(errors) == 1
        for _ in range(10):
            async with pool.session() as session:
                assert not session.request.host.startswith(host)
                await ask_stream(session)


# ---- health


async def test_a_session_that_does_not_answer_pings_is_closed() -> None:
    network = Network()
    async with servers(network, stay), shared(network) as pool:
        async with pool.session() as one:
            pass
        await trio.sleep(100)
        assert one.closed is None
        network.blackhole(50)
        await trio.sleep(50)
        figures = pool.statistics().endpoints[0]
        assert (figures.unhealthy + figures.ended, figures.sessions) == (1, 0)
        assert one.closed is not None
        async with pool.session() as two:
            assert one is not two


@pytest.mark.parametrize("kind", ["raises", "hangs"])
async def test_health_is_the_caller_s_to_define(world: World, kind: str) -> None:
    looked: list[WebSocket] = []

    async def health(ws: WebSocket) -> None:
        looked.append(ws)
        await ask(ws, "are you well?")
        if len(looked) == 3:
            if kind == "hangs":
                await trio.sleep_forever()
            raise ValueError("I feel sick")

    async with world.pool(A, health=health, health_interval=10, health_timeout=4) as pool:
        async with pool.session() as one:
            pass
        await trio.sleep(25)
        assert looked == [one, one]
        await trio.sleep(10)
        assert looked == [one, one, one]
        figures = pool.statistics().endpoints[0]
        assert (figures.unhealthy, figures.sessions) == (1, 0)
        assert figures.circuit.failures == 1
        async with pool.session() as two:
            assert two is not one
            await ask(two)


async def test_nothing_comes_between_a_websocket_and_its_user(world: World) -> None:
    busy = 0

    async def health(ws: WebSocket) -> None:
        nonlocal busy
        assert not pool.statistics().users
        busy += 1
        await trio.sleep(2)
        await ask(ws, "health")
        busy -= 1

    async with world.pool(A, size=1, health=health, health_interval=3) as pool:
        for _ in range(40):
            async with pool.session() as ws:
                assert not busy
                await trio.sleep(1.3)
                await ask(ws)
            await trio.sleep(0.4)
    assert world.opened[A] == 1


async def test_no_session_is_opened_for_the_time_that_a_look_takes(world: World) -> None:
    async def health(ws: WebSocket) -> None:
        await trio.sleep(1)

    async with world.pool(A, health=health, health_interval=10) as pool:
        async with pool.session() as one:
            pass
        await trio.sleep(10.5)
        async with pool.session() as two:
            assert one is two
    assert world.opened[A] == 1


async def test_a_session_that_ends_while_it_is_looked_at_is_no_failure(world: World) -> None:
    async def health(ws: WebSocket) -> None:
        await ws.receive()

    async with world.pool(A, health=health, health_interval=10, health_timeout=5) as pool:
        async with pool.session():
            pass
        await trio.sleep(12)
        await world.servers[A][0].close(1001)
        await settle()
        figures = pool.statistics().endpoints[0]
        assert (figures.unhealthy, figures.sessions, figures.circuit.failures) == (0, 0, 0)


async def test_whatever_has_an_end_can_be_pooled() -> None:
    class Thing:
        def __init__(self) -> None:
            self.over = trio.Event()

        async def wait_closed(self) -> None:
            await self.over.wait()

    @asynccontextmanager
    async def opener(number: int) -> AsyncIterator[Thing]:
        yield Thing()

    async with SessionPool([1, 2], opener=opener, health_interval=1) as pool:
        async with pool.session() as one, pool.session() as two:
            assert one is two  # it is shared, and the other endpoint's is opened meanwhile
            await trio.sleep(5)
            async with pool.session() as three:
                assert three is not one
            one.over.set()
            await settle()
            async with pool.session() as four:
                assert four is three


# ---- draining, adding and removing


async def test_draining_lets_users_finish_and_nobody_new_in(world: World) -> None:
    log: list[str] = []

    async with world.pool(size=2) as pool, trio.open_nursery() as nursery:
        leave = trio.Event()
        async with trio.open_nursery() as users:
            for _ in range(2):
                users.start_soon(hold, pool, leave)
            await settle()
            assert [figures.users for figures in pool.statistics().endpoints] == [1, 1]

            @nursery.start_soon
            async def drain() -> None:
                await pool.drain(A)
                log.append("drained")

            await trio.sleep(5)
            assert not log
            assert pool.statistics().endpoints[0].state == "draining"
            async with pool.session():
                assert [figures.users for figures in pool.statistics().endpoints] == [1, 2]
            leave.set()
        await settle()
        assert log == ["drained"]
        assert world.now_open == {A: 0, B: 2}


async def test_idle_sessions_are_closed_at_once_and_gracefully(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session() as one, pool.session():
            pass
        await pool.drain(A)
        assert world.ends == [1000, 1000]
        with pytest.raises(NoEndpoint, match="it is draining"):
            async with pool.session():
                pytest.fail("it drains")
        pool.add(A)
        async with pool.session() as two:
            assert one is not two
            await ask(two)


async def test_draining_cuts_short_what_is_being_opened(world: World) -> None:
    world.slow[A] = 1000
    async with world.pool() as pool:
        async with trio.open_nursery() as nursery:
            leave = trio.Event()
            nursery.start_soon(hold, pool, leave)
            await settle()
            assert world.tried == [A]
            start = trio.current_time()
            await pool.drain(A)
            assert trio.current_time() == start
            await settle()
            assert pool.statistics().endpoints[1].users == 1
            leave.set()


async def test_draining_may_be_cancelled_and_goes_on(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session():
            with trio.move_on_after(3) as scope:
                await pool.drain(A)
            assert scope.cancelled_caught
            assert pool.statistics().endpoints[0].state == "draining"
        await settle()
        assert pool.statistics().sessions == 0


async def test_an_endpoint_that_is_taken_back_ends_the_wait(world: World) -> None:
    async with world.pool(A, size=1) as pool, trio.open_nursery() as nursery:
        async with pool.session() as one:
            nursery.start_soon(pool.drain, A)
            await settle()
            pool.add(A)
            # Who waits only for its last user does not count for the size.
            async with pool.session() as two:
                assert one is not two


async def test_drain_under_load_loses_nothing(world: World) -> None:
    done: list[str] = []

    async def use(name: int) -> None:
        rng = random.Random(name)
        for number in range(10):
            async with pool.session() as ws:
                await trio.sleep(rng.random())
                await ask(ws, f"{name} {number}")
                await trio.sleep(rng.random())
            done.append(f"{name} {number}")

    async with world.pool(A, B, C, size=3) as pool:
        async with trio.open_nursery() as nursery:
            for name in range(12):
                nursery.start_soon(use, name)
            for endpoint in (A, B, A, C):
                await trio.sleep(1.3)
                await pool.drain(endpoint)
                assert world.now_open[endpoint] == 0
                await trio.sleep(1)
                pool.add(endpoint)
    assert len(done) == len(set(done)) == 120
    assert sorted(map(str, world.received)) == sorted(done)
    assert set(world.ends) == {1000}


async def test_endpoints_come_and_go(world: World) -> None:
    async with world.pool(A, size=1) as pool:
        async with trio.open_nursery() as nursery:
            leave = trio.Event()
            for _ in range(2):
                nursery.start_soon(hold, pool, leave)
            await settle()
            assert pool.statistics().waiting == 1
            pool.add(B)
            await settle()
            assert pool.statistics().waiting == 0
            pool.remove(A)
            assert [figures.name for figures in pool.statistics().endpoints] == [B]
            assert pool.statistics().sessions == 2
            leave.set()
        await settle()
        assert world.now_open == {A: 0, B: 1}
        pool.remove(B)
        with pytest.raises(NoEndpoint, match="the pool has no endpoints; add one"):
            async with pool.session():
                pytest.fail("there is none")
        pool.add(A)
        async with pool.session() as ws:
            await ask(ws)


async def test_who_waits_for_an_endpoint_that_is_removed_is_told(world: World) -> None:
    world.slow[A] = 1000
    async with world.pool(A) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(world_removes, pool)
        with pytest.raises(NoEndpoint, match="no endpoints"):
            async with pool.session():
                pytest.fail("there is none")
        assert trio.current_time() < 100


async def world_removes(pool: SessionPool[str, WebSocket]) -> None:
    await trio.sleep(1)
    pool.remove(A)


async def test_endpoints_that_are_not_there_or_there_already(world: World) -> None:
    with pytest.raises(ValueError, match="is an endpoint of the pool already"):
        world.pool(A, A)
    async with world.pool(A) as pool:
        with pytest.raises(ValueError, match=r"ws://a\.test/ is an endpoint of the pool already"):
            pool.add(A)
        with pytest.raises(ValueError, match="is no endpoint of the pool"):
            pool.remove(B)
        with pytest.raises(ValueError, match="is no endpoint of the pool"):
            with trio.testing.assert_checkpoints():
                await pool.drain(B)


# ---- the end


async def test_the_end_closes_all_of_them_gracefully(world: World) -> None:
    before = tasks()
    async with world.pool() as pool:
        async with pool.session() as one, pool.session() as two:
            await one.send("last words")
            await two.send("last words")
            await one.receive()
            await two.receive()
        assert tasks() > before
    assert tasks() == before
    assert world.ends == [1000, 1000]
    assert world.received == ["last words"] * 2
    assert pool.statistics().sessions == 0


async def test_a_message_that_was_accepted_is_delivered(world: World) -> None:
    async with world.pool(A) as pool:
        async with pool.session() as ws:
            for number in range(50):
                await ws.send(str(number))
    assert world.received == [str(number) for number in range(50)]


@pytest.mark.parametrize("how", ["exception", "cancellation"])
async def test_the_end_by_an_exception_closes_them_at_once(world: World, how: str) -> None:
    before = tasks()
    error = ZeroDivisionError()
    start = trio.current_time()
    with trio.CancelScope() as scope:
        try:
            async with world.pool() as pool:
                async with pool.session(), pool.session():
                    pass
                world.slow[A] = 1000
                async with pool.session(), pool.session():
                    if how == "exception":
                        raise error
                    scope.cancel()
                    await trio.sleep_forever()
        except ZeroDivisionError as caught:
            assert caught is error
    assert scope.cancelled_caught == (how == "cancellation")
    assert tasks() == before
    assert sum(world.now_open.values()) == 0
    assert trio.current_time() - start < 1


async def test_who_still_has_a_session_is_waited_for_a_while(world: World) -> None:
    log: list[object] = []

    async def use() -> None:
        async with pool.session() as ws:
            got.set()
            await trio.sleep(3)
            await ask(ws)
            log.append("in time")

    async with trio.open_nursery() as nursery:
        got = trio.Event()
        async with world.pool(A, close_timeout=5) as pool:
            nursery.start_soon(use)
            await got.wait()
        assert log == ["in time"]
    assert world.ends == [1000]


@pytest.mark.parametrize("how", ["normal", "exception"])
async def test_who_has_one_for_longer_gets_an_error(world: World, how: str) -> None:
    log: list[type[BaseException]] = []

    async def use() -> None:
        try:
            async with pool.session() as ws:
                got.set()
                await ws.receive()
        except (ConnectionClosed, trio.ClosedResourceError) as exc:
            log.append(type(exc))

    async with trio.open_nursery() as nursery:
        got = trio.Event()
        with suppress(ZeroDivisionError):
            async with world.pool(A, close_timeout=5) as pool:
                nursery.start_soon(use)
                await got.wait()
                start = trio.current_time()
                if how == "exception":
                    raise ZeroDivisionError
        assert trio.current_time() - start == (5 if how == "normal" else 0)
        await settle()
        assert log == [trio.ClosedResourceError]


async def test_a_closed_pool_gives_out_nothing(world: World) -> None:
    world.slow[A] = 100
    log = []

    async def use() -> None:
        try:
            async with pool.session():
                pytest.fail("it is closed")
        except trio.ClosedResourceError:
            log.append("closed")

    async with trio.open_nursery() as nursery:
        async with world.pool(A) as pool:
            nursery.start_soon(use)
            await settle()
        assert trio.current_time() < 10
    await use()
    pool.add(B)
    await pool.drain(B)
    await use()
    assert log == ["closed"] * 3
    assert "0 sessions" in repr(pool)


async def test_a_peer_that_does_not_answer_bounds_the_end() -> None:
    """It takes the end of a session, and not for ever."""
    network = Network()
    async with servers(network, stay):
        async with shared(network, close_timeout=3) as pool:
            async with pool.session() as session:
                async with session.open_send_stream() as stream:
                    network.blackhole(1000)
                    await stream.send_all(b"never arrives")
            start = trio.current_time()
        assert trio.current_time() - start < 15


@pytest.mark.parametrize("at", range(0, 60, 4))
async def test_cancellation_at_every_step_of_the_end_leaves_nothing(world: World, at: int) -> None:
    before, steps, leaving = tasks(), 0, False
    scope = trio.CancelScope()

    class Count(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += leaving
            if steps == at and leaving:
                scope.cancel()

    counter = Count()
    trio.lowlevel.add_instrument(counter)
    with scope:
        async with world.pool() as pool:
            async with pool.session(), pool.session():
                pass
            leaving = True
    trio.lowlevel.remove_instrument(counter)
    assert tasks() == before
    assert sum(world.now_open.values()) == 0


async def test_closing_that_fails_is_logged_and_hurts_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def opener(endpoint: str) -> AsyncIterator[WebSocket]:
        async with world.open(endpoint) as ws:
            yield ws
        raise RuntimeError("on the way out")

    async with SessionPool([A], opener=opener) as pool:
        async with pool.session() as ws:
            await ask(ws)
    (record,) = caplog.records
    assert record.name == "trio_wt.pool"
    assert record.exc_info is not None
    assert "on the way out" in str(record.exc_info[1])


async def test_closing_that_fails_when_it_is_cut_short_is_logged_too(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_in_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("on the way out")

    @asynccontextmanager
    async def opener(endpoint: str) -> AsyncIterator[WebSocket]:
        async with trio.open_nursery() as nursery, world.open(endpoint) as ws:
            nursery.start_soon(fail_in_the_end)
            yield ws

    before = tasks()
    with pytest.raises(ZeroDivisionError):
        async with SessionPool([A], opener=opener) as pool, pool.session():
            raise ZeroDivisionError
    assert tasks() == before
    assert [record.name for record in caplog.records] == ["trio_wt.pool"]


async def test_a_pool_is_entered_once(world: World) -> None:
    pool = world.pool(A)
    with pytest.raises(RuntimeError, match="async with pool"):
        async with pool.session():
            pytest.fail("it is not open")
    async with pool:
        with pytest.raises(RuntimeError, match="entered once"):
            async with pool:
                pytest.fail("again")


# ---- names, figures and mistakes


def test_names_hide_what_is_secret() -> None:
    assert name_of("wss://user:secret@host:8/path?token=x#y") == "wss://host:8/path"
    assert name_of("https://host/@me") == "https://host/@me"
    assert name_of(("host", 4433)) == "('host', 4433)"
    assert "\x1b" not in name_of("ws://host/\x1b[2J")


async def test_figures(world: World) -> None:
    world.fail(B)
    async with world.pool() as pool:
        async with pool.session(), pool.session():
            figures = pool.statistics()
            assert (figures.sessions, figures.users, figures.waiting) == (2, 2, 0)
            assert (figures.served, figures.turned_away) == (2, 0)
            one, two = figures.endpoints
            assert (one.name, one.state, one.sessions, one.users, one.opened) == (A, "up", 2, 2, 2)
            assert (two.name, two.state, two.sessions, two.failed) == (B, "up", 0, 1)
            assert two.circuit.failures_in_row == 1
            world.slow[A] = 1
            async with trio.open_nursery() as nursery:
                leave = trio.Event()
                nursery.start_soon(hold, pool, leave)
                await settle()
                assert pool.statistics().endpoints[0].opening == 1
                assert pool.statistics().waiting == 1
                leave.set()
            assert repr(pool) == "<SessionPool of 2 endpoints, 3 sessions, 2 users>"


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"max_users": 0},
        {"health_interval": 0},
        {"health_timeout": -1},
        {"health_interval": math.nan},
        {"reset_after": -1},
        {"close_timeout": -0.1},
    ],
    ids=repr,
)
def test_bad_numbers(world: World, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* must"):
        world.pool(A, **options)
