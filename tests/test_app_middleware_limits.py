"""How often, how many at a time, and from which pages."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.app_exchange import MemoryExchange, ask, request_of
from tests.app_servers import serving_in_memory
from trio_wt import Headers, Rejected, WebSocket
from trio_wt.app import App, Context, Request
from trio_wt.app._middleware.limits import (
    ConcurrencyStatistics,
    RateLimitStatistics,
    by_peer,
    limit_concurrency,
    rate_limit,
)
from trio_wt.app._middleware.origins import allow_origins

KINDS = ("websocket 1.1", "websocket 3", "webtransport")


def app_with(*middleware: Any) -> App:
    app = App(middleware=middleware, origins="any")

    @app.http("/")
    def page(request: Request) -> str:
        return "ok"

    @app.session("/session")
    async def session(session: Any) -> None:
        await session.wait_closed()

    return app


def context_of(peer: Any) -> Context:
    return Context(request_of(peer=peer), "http", App(), None, {})


# ---- whom it counts for


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("192.0.2.1", 50000), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 50000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 1), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.1", 1), "192.0.2.1"),
        (("somewhere", 1), "somewhere"),
        ("/run/socket", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_by_peer(peer: Any, key: str) -> None:
    assert by_peer(context_of(peer)) == key


# ---- how often


async def test_a_burst_and_then_the_rate() -> None:
    limit = rate_limit(2, 3)
    app = app_with(limit)
    statuses = [(await ask(app)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert (await ask(app)).headers["retry-after"] == "1"
    await trio.sleep(0.5)
    assert [(await ask(app)).status for _ in range(2)] == [200, 429]
    await trio.sleep(100)  # no more than the burst is saved up
    statuses = [(await ask(app)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert limit.statistics() == RateLimitStatistics(keys=1, admitted=7, refused=4, forgotten=0)


async def test_it_may_be_slow() -> None:
    app = app_with(rate_limit(1 / 60, 1))
    assert (await ask(app)).status == 200
    await trio.sleep(10.5)
    assert (await ask(app)).headers["retry-after"] == "50"
    await trio.sleep(49.5)
    assert (await ask(app)).status == 200


async def test_who_comes_when_told_is_let_in() -> None:
    app = app_with(rate_limit(3, 2))
    for _ in range(50):
        response = await ask(app)
        if response.status == 429:
            await trio.sleep(int(response.headers["retry-after"]))
            assert (await ask(app)).status == 200


async def test_who_keeps_to_the_rate_is_never_refused() -> None:
    """Though neither the pauses nor what they add up to can be told exactly in binary."""
    app = app_with(rate_limit(10, 1))
    began = trio.current_time()
    for number in range(200):
        await trio.sleep_until(began + number / 10)
        assert (await ask(app)).status == 200


async def test_each_client_has_a_bucket() -> None:
    app = app_with(rate_limit(1, 1))
    for peer in (("192.0.2.1", 1), ("192.0.2.2", 1), ("2001:db8::1", 1), ("2001:db8:0:1::1", 1)):
        assert (await ask(app, peer=peer)).status == 200
    for peer in (("192.0.2.1", 2), ("::ffff:192.0.2.1", 2), ("2001:db8::2", 1)):
        assert (await ask(app, peer=peer)).status == 429


async def test_any_key_or_none() -> None:
    app = app_with(rate_limit(1, 1, key=lambda context: context.request.headers.get("x-user")))
    assert [(await ask(app, headers={"X-User": "a"})).status for _ in range(2)] == [200, 429]
    assert (await ask(app, headers={"X-User": "b"})).status == 200
    assert [(await ask(app)).status for _ in range(3)] == [200, 200, 200]


async def test_a_key_that_fails_is_a_failure() -> None:
    def key(context: Context) -> str:
        raise LookupError

    for middleware in (rate_limit(1, 1, key=key), limit_concurrency(1, key=key)):
        assert (await ask(app_with(middleware))).status == 500


async def test_the_table_is_bounded() -> None:
    limit = rate_limit(1, 2, max_keys=3)
    app = app_with(limit)

    async def come(number: int) -> int:
        return (await ask(app, peer=(f"192.0.2.{number}", 1))).status

    for number in (1, 1, 2, 3, 1):
        await come(number)
    assert limit.statistics().keys == 3
    await come(4)  # 2 is the one that has not come for longest
    assert limit.statistics() == RateLimitStatistics(keys=3, admitted=5, refused=1, forgotten=1)
    assert await come(1) == 429
    await trio.sleep(60)  # full buckets need no memory
    await come(9)
    assert limit.statistics().keys == 1 and limit.statistics().forgotten == 1


@given(
    st.floats(0.01, 1000), st.integers(1, 20), st.lists(st.floats(0, 50), min_size=1, max_size=60)
)
def test_never_more_than_it_says(rate: float, burst: int, pauses: list[float]) -> None:
    """In any stretch of time no more come in than the burst and what the rate has made meanwhile."""

    async def main() -> None:
        limit = rate_limit(rate, burst)
        let_in = []
        for pause in pauses:
            clock.jump(pause)
            if not limit._take("x"):
                let_in.append(trio.current_time())
        for first in range(len(let_in)):
            for last in range(first, len(let_in)):
                most = burst + (let_in[last] - let_in[first]) * rate
                assert last - first + 1 <= most + 1e-4

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_are_limited_too(kind: Any) -> None:
    app = app_with(rate_limit(1, 1, key=lambda context: "all"))
    async with serving_in_memory(app) as served:
        async with served.session(kind, "/session"):
            pass
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/session"):
                pass
    assert caught.value.status == 429
    assert caught.value.headers["retry-after"] == "1"


# ---- how many at a time


class Held:
    """Requests of plain pages that take until they are let go."""

    def __init__(self, nursery: trio.Nursery, limit: Any) -> None:
        self.nursery = nursery
        self.inside: list[str] = []
        self.answers: dict[str, tuple[float, int]] = {}
        self.app = App(middleware=[limit])
        self.leave: dict[str, trio.Event] = {}

        @self.app.http("/{name}")
        async def page(request: Request, name: str) -> str:
            self.inside.append(name)
            try:
                await self.leave.setdefault(name, trio.Event()).wait()
            finally:
                self.inside.remove(name)
            return name

    async def come(self, name: str, peer: str = "192.0.2.1") -> trio.CancelScope:
        scope = trio.CancelScope()

        async def ask_in_scope() -> None:
            with scope:
                response = await ask(self.app, f"/{name}", peer=(peer, 1))
                self.answers[name] = (trio.current_time(), response.status)

        self.nursery.start_soon(ask_in_scope)
        await trio.testing.wait_all_tasks_blocked()
        return scope

    async def go(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
        await trio.testing.wait_all_tasks_blocked()


async def test_so_many_at_a_time() -> None:
    limit = limit_concurrency(2, retry_after=6.2)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        await held.come("a")
        await held.come("b")
        await held.come("c")
        assert held.inside == ["a", "b"] and held.answers == {"c": (0, 503)}
        assert (await ask(held.app, "/x")).headers["retry-after"] == "7"
        await held.go("a")
        await held.come("d")
        assert held.inside == ["b", "d"]
        assert limit.statistics() == ConcurrencyStatistics(
            active=2, waiting=0, keys=1, admitted=3, refused=2
        )
        await held.go("b", "d")
    assert limit.statistics() == ConcurrencyStatistics(0, 0, 0, 3, 2)


async def test_for_each_key() -> None:
    limit = limit_concurrency(1, key=by_peer)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        await held.come("a", "192.0.2.1")
        await held.come("b", "192.0.2.2")
        await held.come("c", "192.0.2.1")
        assert held.inside == ["a", "b"] and held.answers["c"] == (0, 429)
        assert limit.statistics().keys == 2
        await held.go("a", "b")
    assert limit.statistics().keys == 0


async def test_no_key_no_limit() -> None:
    limit = limit_concurrency(1, key=lambda context: None)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        for name in "abc":
            await held.come(name)
        assert held.inside == ["a", "b", "c"]
        await held.go("a", "b", "c")


async def test_waiting_in_order() -> None:
    limit = limit_concurrency(1, wait=10, max_waiting=3)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        for name in "abcd":
            await held.come(name)
        await held.come("e")  # one too many
        assert held.answers == {"e": (0, 503)}
        assert limit.statistics().waiting == 3
        await trio.sleep(4)
        await held.go("a")
        assert held.inside == ["b"]
        await trio.sleep(20)  # c and d have waited long enough
        assert held.answers["c"] == held.answers["d"] == (10, 503)
        await held.come("f")
        await held.go("b")
        assert held.inside == ["f"]
        await held.go("f")
    assert limit.statistics() == ConcurrencyStatistics(0, 0, 0, 3, 3)


async def test_who_gives_up_waiting_loses_nothing_for_others() -> None:
    limit = limit_concurrency(1, wait=10)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        await held.come("a")
        scope = await held.come("b")
        await held.come("c")
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert limit.statistics().waiting == 1
        await held.go("a")
        assert held.inside == ["c"]
        await held.go("c")
        assert "b" not in held.answers
    assert limit.statistics() == ConcurrencyStatistics(0, 0, 0, 2, 0)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelled_in_the_moment_of_the_turn(cancel_first: bool) -> None:
    limit = limit_concurrency(1, wait=10)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        first = await held.come("a")
        second = await held.come("b")
        third = await held.come("c")
        for scope in (second, first) if cancel_first else (first, second):
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert held.inside == ["c"]
        third.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert held.inside == []
    assert limit.statistics().active == limit.statistics().keys == 0


async def test_time_is_up_in_the_moment_of_the_turn() -> None:
    limit = limit_concurrency(1, wait=5)
    async with trio.open_nursery() as nursery:
        held = Held(nursery, limit)
        await held.come("a")
        await held.come("b")
        with trio.CancelScope() as scope:
            scope.deadline = 5
            await trio.sleep_forever()
        await held.go("a")
        if held.inside:
            await held.go("b")
        assert "b" in held.answers
    assert limit.statistics().active == limit.statistics().keys == 0


async def test_a_failure_gives_the_place_back() -> None:
    limit = limit_concurrency(1)
    app = App(middleware=[limit])

    @app.http("/")
    async def page(request: Request) -> str:
        raise RuntimeError

    for _ in range(3):
        assert (await ask(app)).status == 500
    assert limit.statistics() == ConcurrencyStatistics(0, 0, 0, 3, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_sessions_hold_their_place_until_they_are_closed(kind: Any) -> None:
    limit = limit_concurrency(1)
    async with serving_in_memory(app_with(limit)) as served:
        async with served.session(kind, "/session"):
            with pytest.raises(Rejected) as caught:
                async with served.session(kind, "/session"):
                    pass
            assert caught.value.status == 503
            assert limit.statistics().active == 1
        await trio.sleep(1)
        assert limit.statistics().active == 0
        async with served.session(kind, "/session"):
            pass


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: rate_limit(0, 1), ValueError, "rate must be greater than 0"),
        (lambda: rate_limit(-1, 1), ValueError, "rate"),
        (lambda: rate_limit(math.nan, 1), ValueError, "rate"),
        (lambda: rate_limit(math.inf, 1), ValueError, "rate"),
        (lambda: rate_limit(1, 0), ValueError, "burst must be 1 or more"),
        (lambda: rate_limit(1, 1, max_keys=0), ValueError, "max_keys"),
        (lambda: rate_limit(1, 1, key="peer"), TypeError, "by_peer"),  # type: ignore[arg-type]
        (lambda: limit_concurrency(0), ValueError, "limit must be 1 or more"),
        (lambda: limit_concurrency(1.5), TypeError, "an int"),  # type: ignore[arg-type]
        (lambda: limit_concurrency(1, wait=0), ValueError, "wait"),
        (lambda: limit_concurrency(1, wait=math.nan), ValueError, "wait"),
        (lambda: limit_concurrency(1, wait=1, max_waiting=0), ValueError, "max_waiting"),
        (lambda: limit_concurrency(1, retry_after=0), ValueError, "retry_after"),
        (lambda: limit_concurrency(1, key=3), TypeError, "by_peer"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_with_limits(make: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


# ---- origins

PAGES: list[Any] = [
    "https://example.com",
    "http://localhost:8000",
    re.compile(r"https://[a-z]+\.test"),
]


async def status_of(app: App, origin: str | None, *, is_websocket: bool = True) -> int:
    headers = {} if origin is None else {"Origin": origin}
    target = "/session" if is_websocket else "/"
    exchange = MemoryExchange(request_of(target, headers, is_websocket=is_websocket))
    with trio.move_on_after(1):
        await app._answer(exchange, Headers(), raise_errors=False)
    return 101 if exchange.response is None else exchange.response.status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://example.com", 101),
        ("http://localhost:8000", 101),
        ("https://abc.test", 101),
        (None, 101),
        ("https://example.com:8443", 403),
        ("http://example.com", 403),
        ("https://example.com.evil.test", 403),
        ("https://abc.test.evil", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_origins(origin: str | None, status: int) -> None:
    app = app_with(allow_origins(PAGES))
    assert await status_of(app, origin) == status
    assert await status_of(app, origin, is_websocket=False) == 200
    app = app_with(allow_origins(PAGES, plain=True))
    assert await status_of(app, origin, is_websocket=False) == (403 if status == 403 else 200)


async def test_the_applications_own_list_holds_as_well() -> None:
    app = App(
        middleware=[allow_origins(["https://a.test", "https://b.test"])], origins=["https://b.test"]
    )

    @app.websocket("/session")
    async def session(ws: WebSocket) -> None:
        pass

    assert await status_of(app, "https://a.test") == 403
    assert await status_of(app, "https://b.test") == 101


async def test_no_page_at_all() -> None:
    app = app_with(allow_origins([]))
    assert await status_of(app, "https://example.com") == 403
    assert await status_of(app, None) == 101


@pytest.mark.parametrize("kind", KINDS)
async def test_origins_of_sessions(kind: Any) -> None:
    async with serving_in_memory(app_with(allow_origins(PAGES))) as served:
        async with served.session(kind, "/session", origin="https://example.com"):
            pass
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/session", origin="https://evil.test.x"):
                pass
        assert caught.value.status == 403


@pytest.mark.parametrize(
    ("origins", "kind", "says"),
    [
        ("https://example.com", TypeError, "a sequence"),
        ([b"https://example.com"], TypeError, "a string or a compiled pattern"),
        ([re.compile(b"x")], TypeError, "a string or a compiled pattern"),
        (["https://example.com/"], ValueError, "write 'https://example.com'"),
        (["https://example.com/path?x#y"], ValueError, "write 'https://example.com'"),
        (["HTTPS://Example.com"], ValueError, "write 'https://example.com'"),
        (["https://example.com:443"], ValueError, "write 'https://example.com'"),
        (["http://u@[::1]:80"], ValueError, re.escape("write 'http://[::1]'")),
        (["example.com"], ValueError, "write scheme and host"),
        (["*"], ValueError, "write scheme and host"),
        ([""], ValueError, "write scheme and host"),
        (["https://"], ValueError, "write scheme and host"),
        (["https://[::1"], ValueError, "write scheme and host"),
        (["https://example.com:x"], ValueError, "write scheme and host"),
        (["https://exämple.com"], ValueError, "xn--"),
    ],
)
def test_origins_that_no_browser_sends(origins: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        allow_origins(origins)


@pytest.mark.parametrize(
    "origin", ["null", "https://example.com", "http://[::1]:8000", "chrome-extension://abc"]
)
def test_origins_that_browsers_send(origin: str) -> None:
    allow_origins([origin])
