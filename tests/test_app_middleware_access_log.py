"""One safe line for each request."""

from __future__ import annotations

import json
import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.app_exchange import MemoryExchange, ask, logged, request_of
from tests.app_servers import serving_in_memory
from trio_wt import ConnectionClosedOK, ConnectionLost, Headers, WebSocket
from trio_wt.app import App, Context, HTTPError, Request, Response, StateKey
from trio_wt.app._middleware.access_log import access_log, format_access

NAME = "trio_wt.access"
KINDS = ("websocket 1.1", "websocket 3", "webtransport")
USER = StateKey[str]("user")


def lines(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records]


def app_with(*middleware: Any) -> App:
    app = App(middleware=middleware or [access_log()])

    @app.http("/page", methods=["GET", "POST"])
    async def page(request: Request) -> Response:
        await trio.sleep(1.5)
        return Response(201, Headers())

    @app.http("/fails")
    async def fails(request: Request) -> str:
        raise LookupError("s3cret")

    @app.http("/sleeps")
    async def sleeps(request: Request) -> None:
        await trio.sleep_forever()

    @app.session("/session")
    async def session(session: Any) -> None:
        if isinstance(session, WebSocket):
            async for message in session:
                await session.send(message)
        else:
            await session.wait_closed()

    return app


async def test_a_plain_request() -> None:
    with logged(NAME) as records:
        await ask(app_with(), "/page?token=s3cret", method="POST")
    assert lines(records) == [
        "peer=192.0.2.1:50000 kind=http method=POST target=/page http=1.1 status=201 seconds=1.500"
    ]
    assert records[0].levelno == logging.INFO


async def test_what_no_route_takes() -> None:
    with logged(NAME) as records:
        await ask(app_with(), "/nope", peer=("2001:db8::1", 7, 0, 0))
        await ask(app_with(), "/session", peer=None)
        await ask(app_with(), "*", method="OPTIONS", peer="/run/socket")
    assert lines(records) == [
        "peer=[2001:db8::1]:7 kind=http method=GET target=/nope http=1.1 status=404 seconds=0.000",
        "kind=http method=GET target=/session http=1.1 status=426 seconds=0.000",
        "peer=/run/socket kind=http method=OPTIONS target=* http=1.1 status=204 seconds=0.000",
    ]


async def test_the_query_if_asked_for() -> None:
    with logged(NAME) as records:
        await ask(app_with(access_log(query=True)), "/page?a=b&c")
        await ask(app_with(access_log(query=True)), "/page")
        await ask(app_with(access_log(query=True)), "http://u:pw@server.test/page?x")
    targets = [re.search(r"target=(\S+)", line) for line in lines(records)]
    assert [match and match[1] for match in targets] == ['"/page?a=b&c"', "/page", '"/page?x"']


async def test_a_websocket_closed_by_the_client() -> None:
    async with serving_in_memory(app_with()) as served:
        with logged(NAME) as records:
            async with served.session("websocket 1.1", "/session?token=s3cret") as ws:
                assert isinstance(ws, WebSocket)
                await ws.send("hello")
                await ws.receive()
                await trio.sleep(2)
                await ws.close(4001, 'so long\x1b status=500 "and thanks"')
            await trio.sleep(1)
    (line,) = lines(records)
    assert re.fullmatch(
        r"kind=websocket method=GET target=/session http=1\.1 status=101 seconds=2\.\d\d\d code=4001 "
        r'reason="so long\\u001b status=500 \\"and thanks\\"" received=\d+ sent=\d+ messages_received=1 messages_sent=1',
        line,
    )


async def test_a_webtransport_session() -> None:
    async with serving_in_memory(app_with()) as served:
        with logged(NAME) as records:
            async with served.webtransport("/session?token=s3cret") as session:
                await trio.sleep(2)
                await session.aclose(7, "so long\r\nstatus=500")
            await trio.sleep(1)
    (line,) = lines(records)
    assert re.fullmatch(
        r"peer=\S+:\d+ kind=webtransport method=CONNECT target=/session http=3 status=200 seconds=2\.\d\d\d code=7 "
        r'reason="so long\\r\\nstatus=500"',
        line,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_fails(kind: Any) -> None:
    app = App(middleware=[access_log()])

    @app.session("/")
    async def session(session: Any) -> None:
        raise LookupError("s3cret")

    async with serving_in_memory(app) as served:
        with logged(NAME) as records, logged("trio_wt.server"):
            async with served.session(kind, "/") as opened:
                await opened.wait_closed()
            await trio.sleep(10)
    (line,) = lines(records)
    assert " error=LookupError" in line and "s3cret" not in line
    assert f" code={2 if kind == 'webtransport' else 1011}" in line


async def test_a_page_that_fails() -> None:
    with logged(NAME) as records, logged("trio_wt.app"):
        await ask(app_with(), "/fails")
    assert " status=500 " in lines(records)[0] and " error=LookupError" in lines(records)[0]


async def test_a_request_that_is_cancelled() -> None:
    with logged(NAME) as records, trio.move_on_after(3):
        await ask(app_with(), "/sleeps")
    assert lines(records) == [
        "peer=192.0.2.1:50000 kind=http method=GET target=/sleeps http=1.1 seconds=3.000 error=Cancelled"
    ]


async def test_a_client_that_is_gone() -> None:
    async with serving_in_memory(app_with()) as served:
        with logged(NAME) as records:
            stream = served.listener.connect()
            await stream.send_all(
                b"GET /session HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(stream)
            await trio.sleep(30)
    (line,) = lines(records)
    assert " status=101 " in line and " code=1006 " in line and " lost=True" in line


async def test_a_client_that_is_gone_before_its_session_is_open() -> None:
    class Gone(MemoryExchange):
        async def accept(self, accepted: Any) -> Any:
            await trio.lowlevel.checkpoint()
            self.answered = True
            raise trio.BrokenResourceError

    with logged("trio_wt") as records:
        exchange = Gone(request_of("/session", is_websocket=True))
        await app_with()._answer(exchange, Headers(), raise_errors=True)
    assert lines(records) == [
        "peer=192.0.2.1:50000 kind=websocket method=GET target=/session http=1.1 seconds=0.000 error=ClientGone"
    ]


async def test_fields_of_ones_own_and_the_record() -> None:
    def who(context: Context) -> dict[str, Any]:
        return {"user": context.state.get(USER), "route": context.route}

    with logged(NAME) as records:
        app = app_with(access_log(fields=who))
        await ask(app, "/page")
    (line,) = lines(records)
    assert line.endswith(" seconds=1.500 route=/page")
    record: Any = records[0]
    assert (record.status, record.seconds, record.target, record.route) == (
        201,
        1.5,
        "/page",
        "/page",
    )
    assert record.code is None and record.user is None and record.error is None


async def test_another_logger_and_level() -> None:
    own = logging.getLogger("own")
    with logged("own") as records, logged(NAME) as others:
        await ask(app_with(access_log(own, level=logging.DEBUG)), "/nope")
        await ask(app_with(access_log("own", level=logging.WARNING)), "/nope")
    assert [record.levelname for record in records] == ["DEBUG", "WARNING"] and not others


async def test_nothing_is_done_where_nobody_listens() -> None:
    def never(context: Context) -> dict[str, object]:
        raise AssertionError

    with logged("quiet", logging.ERROR) as records, logged("trio_wt.app") as problems:
        await ask(app_with(access_log("quiet", fields=never)), "/nope")
    assert not records and not problems


# ---- it never raises


def failing_fields(context: Context) -> dict[str, object]:
    raise LookupError


class Unprintable:
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    "fields",
    [
        failing_fields,
        lambda context: {"user": Unprintable()},
        lambda context: {"name": "taken by the record"},
        lambda context: {"message": "taken as well"},
        lambda context: {"not a name": 1},
        lambda context: {"x=1\n": 1},
        lambda context: None,
    ],
)
async def test_fields_that_fail(fields: Any) -> None:
    with logged(NAME) as records, logged("trio_wt.app") as problems:
        assert (await ask(app_with(access_log(fields=fields)), "/page")).status == 201
    assert not records
    assert lines(problems) == ["a line of the access log was lost"] and problems[0].exc_info


async def test_loggers_that_fail() -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise LookupError

    broken = Broken()
    for names in ([NAME], [NAME, "trio_wt.app"]):
        for name in names:
            logging.getLogger(name).addFilter(broken)
        try:
            with logged(NAME) as records, logged("trio_wt.app") as problems:
                assert (await ask(app_with(), "/page")).status == 201
        finally:
            for name in names:
                logging.getLogger(name).removeFilter(broken)
        assert not records and len(problems) == 2 - len(names)


async def test_what_fails_inside_goes_on_as_it_was() -> None:
    with logged(NAME, logging.INFO) as records:
        context = Context(request_of(), "http", App(), None, {})
        with pytest.raises(KeyError) as caught:
            async with access_log(fields=failing_fields)(context):
                raise (error := KeyError("x"))
        assert caught.value is error and error.__context__ is None
    assert not records


@pytest.mark.parametrize("logger", [None, 3, print])
def test_mistakes(logger: Any) -> None:
    with pytest.raises(TypeError, match="a name or a logger"):
        access_log(logger)


# ---- lines that cannot be forged


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("\r\n", '"\\r\\n"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("\x7f\x85\u2028\u202e", '"\\u007f\\u0085\\u2028\\u202e"'),
        ("\ud800", '"\\ud800"'),
        (True, "True"),
        (0.12345, "0.123"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_values(value: object, shown: str) -> None:
    assert format_access({"a": 1, "b": None, "c": value}) == f"a=1 c={shown}"


@given(st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), st.text(max_size=250)))
def test_a_line_can_be_read_back(fields: dict[str, str]) -> None:
    line = format_access(fields)
    assert line.isascii() and line.isprintable()
    found = re.findall(r'(?:^| )([a-z]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)', line)
    read = {name: json.loads(v) if v.startswith('"') else v for name, v in found}
    assert read == {n: v if len(v) <= 200 else v[:200] + "..." for n, v in fields.items()}
    assert " ".join(f"{name}={shown}" for name, shown in found) == line


@given(st.text(max_size=300), st.text(max_size=300))
def test_whatever_is_asked_is_one_line(target: str, method: str) -> None:
    async def main() -> None:
        context = Context(request_of(f"/{target}", method=method), "http", App(), None, {})
        async with access_log(query=True)(context):
            pass

    with logged(NAME) as records, logged("trio_wt.app") as problems:
        trio.run(main)
    assert not problems
    (line,) = lines(records)
    assert line.isascii() and line.isprintable() and line.count(" status=500 ") == 1


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (ConnectionClosedOK(0, "", remote=True), {"code": 0, "reason": None, "lost": None}),
        (
            ConnectionLost(0, "idle", remote=True),
            {"code": None, "reason": "idle", "lost": True},
        ),
        (None, {"code": None, "reason": None, "lost": None}),
    ],
)
async def test_ends_of_sessions(end: Any, shown: dict[str, object]) -> None:
    context = Context(request_of(), "webtransport", App(), None, {})
    context.session = SimpleNamespace(closed=end)  # type: ignore[assignment]
    context.status = 200
    with logged(NAME) as records:
        async with access_log()(context):
            pass
    assert {name: getattr(records[0], name) for name in shown} == shown


async def test_inside_of_others_it_sees_what_is_inside() -> None:
    """A refusal by a middleware outside of it is none of its business; one inside is."""

    def refuse(context: Context) -> Any:
        raise HTTPError(418)

    with logged(NAME) as records:
        assert (await ask(app_with(refuse, access_log()), "/page")).status == 418
        assert not records
        assert (await ask(app_with(access_log(), refuse), "/page")).status == 418
    assert " status=418 " in lines(records)[0]


async def test_a_memory_exchange_has_its_line_too() -> None:
    exchange = MemoryExchange(request_of("/session", is_websocket=True))
    with logged(NAME) as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: app_with()._answer(exchange, Headers(), raise_errors=True))
            await trio.testing.wait_all_tasks_blocked()
            assert exchange.block is not None and exchange.client is not None
            async with exchange.block:
                await exchange.client.close()
    assert " code=1000 " in lines(records)[0]
