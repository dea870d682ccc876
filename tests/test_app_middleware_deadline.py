"""How long requests may take, and sessions last."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from tests.app_exchange import MemoryExchange, ask, logged, request_of
from tests.app_servers import serving_in_memory
from trio_wt import ConnectionClosed, Headers, Rejected, StreamReset, WebSocket
from trio_wt.app import App, Context, Request
from trio_wt.app._middleware.deadline import deadline

KINDS = ("websocket 1.1", "websocket 3", "webtransport")


async def end_of(session: Any) -> tuple[int, str]:
    """Code and reason of a client's session."""
    if isinstance(session, WebSocket):
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                await session.receive()
        return caught.value.code, caught.value.reason
    end = await session.wait_closed()
    return end.code, end.reason


# ---- sessions


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sessions_time_is_up(kind: Any) -> None:
    app = App()
    ended = []

    @app.session("/", middleware=[deadline(5)])
    async def session(session: Any) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            ended.append(trio.current_time())
            raise

    async with serving_in_memory(app) as served:
        with logged("trio_wt") as records:
            began = trio.current_time()
            async with served.session(kind, "/") as opened:
                expected = (0 if kind == "webtransport" else 1001, "time is up")
                assert await end_of(opened) == expected
            await trio.sleep(10)
    assert len(ended) == 1 and 5 <= ended[0] - began < 5.2
    assert not [record for record in records if record.levelname != "DEBUG"]


@pytest.mark.parametrize("kind", KINDS)
async def test_codes_and_reason_of_ones_own(kind: Any) -> None:
    app = App(middleware=[deadline(1, websocket_code=4008, webtransport_code=8, reason="too long")])

    @app.session("/")
    async def session(session: Any) -> None:
        await trio.sleep_forever()

    async with serving_in_memory(app) as served, served.session(kind, "/") as opened:
        assert await end_of(opened) == (8 if kind == "webtransport" else 4008, "too long")


@pytest.mark.parametrize("kind", KINDS)
async def test_cleanup_runs_and_can_say_no_more(kind: Any) -> None:
    """What the docs say about try/finally: it runs, awaits only under a shield, and the session is closed by then."""
    app = App(middleware=[deadline(1)])
    seen: list[object] = []

    @app.session("/")
    async def session(session: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("begun")
            try:
                await trio.sleep(0)
            except trio.Cancelled:
                seen.append("cancelled")
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
                try:
                    if isinstance(session, WebSocket):
                        await session.send("so long")
                    else:
                        async with session.open_stream() as stream:
                            await stream.send_all(b"so long")
                except (trio.ClosedResourceError, ConnectionClosed, StreamReset):
                    seen.append("closed")

    async with serving_in_memory(app) as served:
        async with served.session(kind, "/") as opened:
            await end_of(opened)
            # The peer does not wait for the cleanup.
            assert seen == ["begun", "cancelled"]
        await trio.sleep(10)
    assert seen == ["begun", "cancelled", "closed"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_busy_handler_sees_its_cancellation_not_the_end(kind: Any) -> None:
    """A handler that is receiving, or between two things, is cancelled; it never finds its own session closed."""
    app = App(middleware=[deadline(1)])
    outcomes: list[str] = []

    @app.session("/")
    async def session(session: Any) -> None:
        try:
            while True:
                if isinstance(session, WebSocket):
                    await session.receive()
                else:
                    await session.datagrams.receive()
                await trio.lowlevel.checkpoint()
        except BaseException as exc:
            outcomes.append(type(exc).__name__)
            raise

    async with serving_in_memory(app) as served:
        async with served.session(kind, "/") as opened, trio.open_nursery() as nursery:

            async def talk() -> None:
                with suppress(ConnectionClosed):
                    while True:
                        if isinstance(opened, WebSocket):
                            await opened.send("x")
                        else:
                            await opened.datagrams.send(b"x")
                        await trio.sleep(0.01)

            nursery.start_soon(talk)
            await opened.wait_closed()
            nursery.cancel_scope.cancel()
        await trio.sleep(5)
    assert outcomes == ["Cancelled"]


@pytest.mark.parametrize("kind", KINDS)
async def test_in_time_nothing_happens(kind: Any) -> None:
    app = App(middleware=[deadline(5)])

    @app.session("/")
    async def session(session: Any) -> None:
        await trio.sleep(4.5)

    async with serving_in_memory(app) as served, served.session(kind, "/") as opened:
        assert await end_of(opened) == (0 if kind == "webtransport" else 1000, "")


async def test_a_session_that_the_client_has_closed_is_let_be() -> None:
    app = App(middleware=[deadline(5)])
    ended: list[tuple[float, int | None]] = []

    @app.websocket("/")
    async def session(ws: WebSocket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append((trio.current_time(), ws.close_code))

    async with serving_in_memory(app) as served:
        async with served.websocket("1.1", "/") as opened:
            await opened.close(4000)
        await trio.sleep(10)
    assert ended == [(5, 4000)]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_handler_raises_meanwhile_goes_on(kind: Any) -> None:
    app = App(middleware=[deadline(1)])

    @app.session("/")
    async def session(session: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("in the cleanup")

    async with serving_in_memory(app) as served:
        with logged("trio_wt.server") as records:
            async with served.session(kind, "/") as opened:
                expected = (0 if kind == "webtransport" else 1001, "time is up")
                assert await end_of(opened) == expected
            await trio.sleep(10)
    (record,) = [record for record in records if record.levelname == "ERROR"]
    assert record.exc_info and isinstance(record.exc_info[1], LookupError)


async def test_outer_middlewares_see_nothing_and_inner_ones_are_cancelled() -> None:
    seen = []

    def watching(name: str) -> Any:
        @asynccontextmanager
        async def watch(context: Context) -> Any:
            try:
                yield
            except BaseException as exc:
                seen.append((name, type(exc).__name__))
                raise
            else:
                seen.append((name, "nothing"))

        return watch

    app = App(middleware=[watching("outer"), deadline(1), watching("inner")])

    @app.websocket("/")
    async def session(ws: WebSocket) -> None:
        await trio.sleep_forever()

    async with serving_in_memory(app) as served, served.websocket("1.1", "/") as opened:
        await end_of(opened)
        await trio.sleep(5)
    assert seen == [("inner", "Cancelled"), ("outer", "nothing")]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_that_is_not_open_in_time_is_refused(kind: Any) -> None:
    @asynccontextmanager
    async def slow(context: Context) -> Any:
        await trio.sleep(10)
        yield

    app = App(middleware=[deadline(2, status=504), slow])

    @app.session("/")
    async def session(session: Any) -> None:
        raise AssertionError

    async with serving_in_memory(app) as served:
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, "/"):
                pass
    assert caught.value.status == 504 and caught.value.body == b"time is up\n"


async def test_cancelled_from_outside_it_is_a_cancellation() -> None:
    app = App(middleware=[deadline(5)])

    @app.websocket("/")
    async def session(ws: WebSocket) -> None:
        await trio.sleep_forever()

    exchange = MemoryExchange(request_of(is_websocket=True))
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def answer() -> None:
            with scope:
                await app._answer(exchange, Headers(), raise_errors=True)

        nursery.start_soon(answer)
        await trio.testing.wait_all_tasks_blocked()
        assert exchange.block is not None and exchange.client is not None
        async with exchange.block:
            scope.cancel()
            assert await end_of(exchange.client) == (1001, "")
    assert scope.cancelled_caught and trio.current_time() < 5


async def test_an_exception_keeps_its_identity() -> None:
    error = LookupError()
    with pytest.raises(LookupError) as caught:
        async with deadline(5)(Context(request_of(), "http", App(), None, {})):
            raise error
    assert caught.value is error


# ---- plain requests


async def test_a_page_that_takes_too_long() -> None:
    app = App(middleware=[deadline(2)])
    cleaned_up = []

    @app.http("/")
    async def page(request: Request) -> str:
        try:
            await trio.sleep(3)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            cleaned_up.append(trio.current_time())
        return "late"

    response = await ask(app)
    assert (response.status, response.body) == (503, b"time is up\n")
    assert cleaned_up == [3] == [trio.current_time()]


async def test_an_answer_on_its_way_is_not_cut_off() -> None:
    class Slow(MemoryExchange):
        async def respond(self, response: Any) -> None:
            await super().respond(response)
            await trio.sleep(10)
            self.whole = True

    app = App(middleware=[deadline(2)])

    @app.http("/")
    async def page(request: Request) -> str:
        await trio.sleep(1)
        return "in time"

    exchange = Slow(request_of())
    await app._answer(exchange, Headers(), raise_errors=True)
    assert exchange.whole and exchange.response and exchange.response.status == 200


async def test_an_answer_that_is_there_when_time_is_up_goes_out() -> None:
    """A handler that does not come to a checkpoint is not interrupted, and what it returns is not lost."""
    app = App(middleware=[deadline(2)])

    @app.http("/")
    def page(request: Request) -> str:
        clock.jump(5)
        return "late, but here"

    clock: Any = trio.lowlevel.current_clock()
    assert (await ask(app)).body == b"late, but here"


# ---- how long


async def test_a_function_says_how_long() -> None:
    def until(context: Context) -> float | None:
        value = context.request.headers.get("x-seconds")
        return None if value is None else float(value)

    app = App(middleware=[deadline(until)])

    @app.http("/")
    async def page(request: Request) -> str:
        began = trio.current_time()
        await trio.sleep(50)
        return str(trio.current_time() - began)

    assert (await ask(app)).status == 200
    assert (await ask(app, headers={"X-Seconds": "inf"})).status == 200
    began = trio.current_time()
    assert (await ask(app, headers={"X-Seconds": "10"})).status == 503
    assert trio.current_time() - began == 10
    for now in ("0", "-3", "nan", "-inf"):
        assert (await ask(app, headers={"X-Seconds": now})).status == 503
    assert trio.current_time() - began == 10
    with logged("trio_wt.app"):
        assert (await ask(app, headers={"X-Seconds": "x"})).status == 500


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seconds": 0}, "seconds must be greater than 0"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": math.nan}, "seconds"),
        ({"websocket_code": 1006}, "1006"),
        ({"websocket_code": 999}, "999"),
        ({"reason": "x" * 124}, "123"),
        ({"reason": "a\nb"}, "line"),
        ({"webtransport_code": -1}, "webtransport_code"),
        ({"webtransport_code": 2**32}, "webtransport_code"),
        ({"status": 499}, "status"),
        ({"status": 600}, "status"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        deadline(**{"seconds": 1, **options})


@pytest.mark.parametrize("version", ["1.1", "3"])
async def test_what_a_shielded_handler_returns_goes_out(version: Any) -> None:
    app = App(middleware=[deadline(1)])

    @app.http("/")
    async def page(request: Request) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        return "late, but here"

    async with serving_in_memory(app) as served:
        assert (await served.ask(version, "GET", "/")).status in (200, 503)
