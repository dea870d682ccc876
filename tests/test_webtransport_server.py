"""The server's side: whom it lets in, its handlers and how they end, priorities, and shutting down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.certificates import make
from tests.http3_peers import (
    CapsuleType,
    FrameType,
    Http3Code,
    RawPeer,
    close_capsule,
    raw_client,
    settings_of,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    URL,
    Handler,
    Visitors,
    ask,
    certificate,
    check_nothing_is_held,
    connect,
    echo,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    Certificate,
    ClientTLS,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    Priority,
    Rejected,
    Request,
    SendStream,
    ServerTLS,
    StreamReset,
    WebSocket,
    WebTransportSession,
    serve_webtransport,
)
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network

CANCELLED, FAILED = 71, 72
CODES = {"cancelled_code": CANCELLED, "failed_code": FAILED}


async def rejection(network: Network, path: str = "/", **options: object) -> Rejected:
    """How a session was refused."""
    with pytest.raises(Rejected) as caught:
        async with visit(network, path, **options):
            pytest.fail("it was let in")
    return caught.value


# ---- handlers


async def test_how_a_handler_ends_decides_the_code(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: WebTransportSession) -> None:
        how = session.request.path
        if how == "/raise":
            raise ZeroDivisionError
        if how == "/cancel":
            session.cancel_scope.cancel()
            await trio.sleep_forever()
        if how == "/close":
            await session.aclose(5, "mine")
        if how == "/group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ZeroDivisionError
        if how == "/stay":
            await session.wait_closed()

    network = Network()
    async with serving(handler, network, **CODES), connect(network) as connection:
        async with connection.open_session("/stay") as other:
            for how, code, reason in (
                ("/return", 0, ""),
                ("/raise", FAILED, ""),
                ("/group", FAILED, ""),
                ("/cancel", CANCELLED, ""),
                ("/close", 5, "mine"),
            ):
                async with connection.open_session(how) as session:
                    end = await session.wait_closed()
                    assert (end.code, end.reason, end.remote) == (code, reason, True)
                    kind = ConnectionClosedError if code else ConnectionClosedOK
                    assert type(end) is kind
            # Neither their connection, nor another session on it.
            assert other.closed is connection.closed is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "a handler failed; its session was closed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_that_returns_sees_out_what_it_has_sent() -> None:
    async def handler(session: WebTransportSession) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(bytes(100_000))

    network = Network(seed=1, loss=0.1)
    async with serving(handler, network, close_timeout=60), visit(network) as session:
        async with await session.incoming_receive_streams.receive() as stream:
            assert await stream.receive_all() == bytes(100_000)
        assert type(await session.wait_closed()) is ConnectionClosedOK


async def test_running_into_the_end_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: WebTransportSession) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.datagrams.receive)
            async for stream in session.incoming_streams:
                await stream.receive_some()
                await stream.receive_some()

    network = Network()
    async with serving(handler, network, idle_timeout=5):
        for how in ("clean", "code", "gone"):
            async with visit(network) as session, session.open_stream() as stream:
                await stream.send_all(b"x")
                await settle()
                if how == "code":
                    session.close_now(5)
                elif how == "gone":
                    network.blackhole(20)
                    await trio.sleep(10)
        await trio.sleep(20)
    assert not caplog.records


async def test_handler_errors_may_go_on_to_the_nursery() -> None:
    async def handler(session: WebTransportSession) -> None:
        await session.incoming_streams.receive()
        raise ZeroDivisionError

    network = Network()
    ends: list[ConnectionClosed] = []

    async def visitor(*, fails: bool) -> None:
        async with visit(network) as session:
            if fails:
                await trio.sleep(1)
                # To open one is enough: it has a head.
                async with session.open_stream():
                    await session.wait_closed()
            ends.append(await session.wait_closed())

    async with trio.open_nursery() as nursery:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with serving(handler, network, handler_errors="raise", **CODES):
                nursery.start_soon(partial(visitor, fails=True))
                nursery.start_soon(partial(visitor, fails=False))
                await trio.sleep_forever()
    assert sorted(end.code for end in ends) == [CANCELLED, FAILED]


async def test_handlers_run_under_the_nursery_that_was_given() -> None:
    ancestors: list[set[object]] = []

    async def handler(session: WebTransportSession) -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        found: set[object] = set()
        while nursery is not None:
            found.add(nursery)
            nursery = nursery.parent_task.parent_nursery
        ancestors.append(found)
        await echo(session)

    network = Network()
    async with trio.open_nursery() as handlers:
        async with serving(handler, network, handler_nursery=handlers):
            async with visit(network) as session:
                assert await ask(session, b"x") == b"x"
            await settle()
            assert len(ancestors) == 1
            assert handlers in ancestors[0]
            async with visit(network) as session:
                assert await ask(session, b"x") == b"x"
                lost = session
        await settle()
        assert not handlers.child_tasks
        assert lost.closed is not None


async def test_a_client_that_leaves_at_once_leaves_nothing() -> None:
    network, visitors = Network(), Visitors()
    async with shutting_down(visitors, network) as (shutdown, returned):
        for _ in range(20):
            async with visit(network):
                pass
        await settle()
        # Nobody is there to wait for.
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


async def test_what_was_sent_before_leaving_is_handled() -> None:
    """Connect, say one thing, leave: fifty times."""
    got: list[bytes] = []

    async def handler(session: WebTransportSession) -> None:
        async for stream in session.incoming_receive_streams:
            async with stream:
                got.append(await stream.receive_all())

    network = Network()
    async with serving(handler, network):
        for number in range(50):
            async with visit(network) as session:
                async with session.open_send_stream() as stream:
                    await stream.send_all(b"%d" % number)
        await settle()
    assert got == [b"%d" % number for number in range(50)]


async def test_handlers_of_one_connection_run_at_once_and_end_alone() -> None:
    running: list[str] = []

    async def handler(session: WebTransportSession) -> None:
        running.append(session.request.path)
        try:
            async for stream in session.incoming_streams:
                async with stream:
                    if await stream.receive_all() == b"fail":
                        raise ZeroDivisionError
                    await stream.send_all(session.request.path.encode())
        finally:
            running.remove(session.request.path)

    network = Network()
    async with serving(handler, network), connect(network) as connection:
        async with connection.open_session("/a") as a, connection.open_session("/b") as b:
            for session in (a, b, a):
                assert await ask(session, b"x") == session.request.path.encode()
            assert sorted(running) == ["/a", "/b"]
            with pytest.raises((ConnectionClosedError, StreamReset)):
                await ask(a, b"fail")
            assert (await a.wait_closed()).code == 2
            assert running == ["/b"]
            assert await ask(b, b"x") == b"/b"
    assert not running


async def test_a_cancelled_server_closes_its_sessions() -> None:
    network = Network()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[object]) -> None:
            with scope:
                await serve_webtransport(
                    stay,
                    tls=ServerTLS(certificate()),
                    sockets=[network.socket((HOST, PORT))],
                    task_status=task_status,
                    cancelled_code=CANCELLED,
                )

        await nursery.start(serve)
        async with visit(network) as one, connect(network) as connection:
            async with connection.open_session() as two, connection.open_session() as three:
                scope.cancel()
                started = trio.current_time()
                for session in (one, two, three):
                    end = await session.wait_closed()
                    assert (end.code, end.remote) == (CANCELLED, True)
                assert trio.current_time() - started < 1
                end = await connection.wait_closed()
                assert end.code == Http3Code.NO_ERROR
    network.socket((HOST, PORT)).close()  # it is free again


async def test_a_handler_is_needed_or_something_else() -> None:
    with pytest.raises(ValueError, match="give a handler"):
        await serve_webtransport(None, 0, tls=ServerTLS(certificate()))
    with pytest.raises(ValueError, match="exactly one of port and sockets"):
        await serve_webtransport(stay, tls=ServerTLS(certificate()))
    with pytest.raises(ValueError, match="origins"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), origins="same")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not one string"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), subprotocols="chat")
    with pytest.raises(ValueError, match="repeated"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), subprotocols=["a", "a"])
    with pytest.raises(ValueError, match="handler_errors"):
        await serve_webtransport(stay, 0, tls=ServerTLS(certificate()), handler_errors="no")  # type: ignore[arg-type]


async def test_certificates_may_be_renewed() -> None:
    made = make((HOST,))
    new = Certificate.from_pem(made.pem, made.key_pem)
    current = [ServerTLS(certificate())]
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, tls=lambda: current[0]):
        async with visit(network) as session:
            assert session.connection.closed is None
            current[0] = ServerTLS(new)
            async with visit(network, tls=ClientTLS(server_certificate_hashes=[new.sha256])):
                pass


# ---- who is let in


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("same-host", None, True),
        ("same-host", URL, True),
        ("same-host", f"https://{HOST}", False),
        ("same-host", f"https://{HOST}:{PORT + 1}", False),
        ("same-host", "https://evil.example", False),
        ("same-host", f"https://{HOST}:{PORT}.evil.example", False),
        ("same-host", "null", False),
        ("same-host", "", False),
        ("any", "https://evil.example", True),
        ("any", "null", True),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example"], "https://b.example", False),
        (["https://a.example"], "http://a.example", False),
        (["https://a.example"], None, True),
        ([], "https://a.example", False),
        ([], None, True),
    ],
)
async def test_origins(origins: Any, origin: str | None, allowed: bool) -> None:
    asked: list[str | None] = []
    network = Network()
    async with serving(
        stay, network, origins=origins, on_request=lambda request: asked.append(request.origin)
    ):
        if allowed:
            async with visit(network, origin=origin):
                pass
            assert asked == [origin]
        else:
            refused = await rejection(network, origin=origin)
            assert refused.status == 403
            # The application is not even asked.
            assert asked == []


async def test_two_origins_are_none() -> None:
    network = Network()
    async with serving(stay, network, origins=[URL]), raw_client(network) as peer:
        fields = peer.session_fields(b"/", (b"origin", b"https://evil.example"))
        exchange = await peer.request([*fields, (b"origin", URL.encode())])
        assert (await exchange.receive_head())[b":status"] in (b"400", b"403")


async def test_a_request_may_be_accepted_with_headers_and_a_subprotocol() -> None:
    def on_request(request: Request) -> None:
        assert request.is_webtransport
        assert not request.decided
        request.accept(subprotocol=request.subprotocols[1], headers=[("X-Room", "5"), ("a", "b")])
        assert request.decided

    network, visitors = Network(), Visitors()
    async with serving(visitors, network, on_request=on_request, subprotocols=["x"]):
        async with visit(network, subprotocols=["x", "y"]) as session:
            theirs = await visitors.next()
            assert session.subprotocol == theirs.subprotocol == "y"
            for headers in (session.response_headers, theirs.response_headers):
                assert headers["x-room"] == "5"
                assert headers["wt-protocol"] == '"y"'


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("respond", [True, False])
async def test_a_request_may_be_rejected(respond: bool, is_async: bool) -> None:
    def decide(request: Request) -> None:
        answer = request.respond if respond else request.reject
        answer(503, {"Retry-After": "30"}, "full\n")
        with pytest.raises(RuntimeError, match="already"):
            request.accept()

    async def decide_later(request: Request) -> None:
        await trio.sleep(2)
        decide(request)

    network = Network()
    async with serving(stay, network, on_request=decide_later if is_async else decide):
        refused = await rejection(network)
        assert (refused.status, refused.body) == (503, b"full\n")
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["content-type"] == "text/plain; charset=utf-8"
        assert refused.headers["content-length"] == "5"
        assert trio.current_time() == pytest.approx(2 if is_async else 0, abs=0.1)


async def test_a_session_answered_with_200_and_a_body_is_no_session() -> None:
    """respond(200) to a request for a session: what a client makes of that is an end, and nothing hangs."""
    network = Network()
    async with serving(stay, network, on_request=lambda request: request.respond(200, body="hi")):
        with trio.fail_after(5):
            try:
                async with visit(network) as session:
                    await session.wait_closed()
            except HandshakeFailed:
                pass


async def test_an_on_request_that_fails_costs_its_request_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_request(request: Request) -> None:
        if request.path == "/fail\n":
            raise ZeroDivisionError
        if request.path == "/wrong":
            request.accept(subprotocol="never offered")

    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        async with connection.open_session("/fine") as session:
            for path in ("/fail%0A", "/wrong"):
                with pytest.raises(Rejected) as caught:
                    async with connection.open_session(path):
                        pytest.fail("it fails")
                assert caught.value.status == 500
                assert b"ZeroDivision" not in caught.value.body
            assert session.closed is None
    assert "ZeroDivisionError" in caplog.text
    assert "on_request failed for /fail%0A" in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Evil", "a\r\nb: c")],
        [("X-Evil", "a\x00")],
        [("X Evil", "a")],
        [(":status", "201")],
        [("Content-Length", "5")],
        [("Connection", "close")],
    ],
    ids=str,
)
async def test_headers_that_must_not_be_sent(headers: Any) -> None:
    """A mistake of the server's application is its error, not its client's."""
    failures: list[BaseException] = []

    def on_request(request: Request) -> None:
        try:
            request.accept(headers=headers)
        except ValueError as exc:
            failures.append(exc)
            request.reject(500)

    network = Network()
    async with serving(stay, network, on_request=on_request):
        refused = await rejection(network)
        assert refused.status == 500
    assert len(failures) == 1


async def test_what_is_not_served() -> None:
    async def websocket_handler(websocket: WebSocket) -> None:
        pytest.fail("nobody asks for one")

    network = Network()
    async with serving(None, network, websocket_handler=websocket_handler):
        refused = await rejection(network)
        assert refused.status == 405
    async with serving(None, network, on_request=lambda request: request.respond(200)):
        refused = await rejection(network)
        assert refused.status == 405


async def test_subprotocols_are_chosen_in_the_server_s_order() -> None:
    network = Network()
    async with serving(stay, network, subprotocols=["one", "two"]):
        for offered, chosen in (
            (["two", "one"], "one"),
            (["three", "two"], "two"),
            (["three"], None),
            ([], None),
        ):
            async with visit(network, subprotocols=offered) as session:
                assert session.subprotocol == chosen


@pytest.mark.parametrize(
    ("value", "offered"),
    [
        (b'"a", "b"', ["a", "b"]),
        (b'"a";x=1, "b"', ["a", "b"]),
        (b'"a"', ["a"]),
        (b"a, b", []),
        (b'"a", b', []),
        (b'"a", 5', []),
        (b'"a", ("b")', []),
        (b'"a', []),
        (b"", []),
        (b"\xff\xfe", []),
    ],
)
async def test_offers_of_any_kind(value: bytes, offered: list[str]) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, subprotocols=["b", "a"]), raw_client(network) as peer:
        exchange = await peer.request(peer.session_fields(b"/", (b"wt-available-protocols", value)))
        head = await exchange.receive_head()
        assert head[b":status"] == b"200"
        session = await visitors.next()
        assert list(session.request.subprotocols) == offered
        chosen = next((name for name in ("b", "a") if name in offered), None)
        assert session.subprotocol == chosen
        assert head.get(b"wt-protocol") == (None if chosen is None else b'"%s"' % chosen.encode())


async def test_offers_in_several_lines_are_one_list() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        name = b"wt-available-protocols"
        await peer.open_session(b"/", (name, b'"a"'), (name, b'"b", "c"'))
        assert list((await visitors.next()).request.subprotocols) == ["a", "b", "c"]


@pytest.mark.parametrize("token", [b"webtransport", b"webtransport-h3"])
async def test_both_tokens_are_taken(token: bytes) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.request(peer.session_fields(token=token))
        assert (await exchange.receive_head())[b":status"] == b"200"
        await visitors.next()


async def test_the_client_s_settings_are_waited_for() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, handshake_timeout=5):
        async with raw_client(network, settings=None) as peer:
            exchange = await peer.request(peer.session_fields())
            await trio.sleep(3)
            assert exchange.stream.buffered == 0
            await peer.open_control(settings_of())
            assert (await exchange.receive_head())[b":status"] == b"200"
            await visitors.next()
        async with raw_client(network, settings=None) as peer:
            started = trio.current_time()
            exchange = await peer.request(peer.session_fields())
            assert (await exchange.receive_head())[b":status"] == b"400"
            assert trio.current_time() - started == pytest.approx(5, abs=0.1)


async def test_a_client_that_thinks_better_of_it_while_the_application_thinks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []

    async def on_request(request: Request) -> None:
        asked.append(request.path)
        await trio.sleep(1)

    network, visitors = Network(), Visitors()
    async with serving(visitors, network, on_request=on_request), raw_client(network) as peer:
        exchange = await peer.request(peer.session_fields(b"/gone"))
        await settle()
        exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
        exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
        await trio.sleep(2)
        await peer.open_session(b"/stays")
        session = await visitors.next()
        # No handler has run for the first.
        assert asked == ["/gone", "/stays"]
        assert session.request.path == "/stays"
        assert session.connection.open_sessions == 1
        assert len(session.connection._driver._streams) <= 2
    assert not caplog.records


# ---- the ends of sessions, as a peer sees them


async def test_a_close_of_the_server_s_is_a_capsule_and_the_end() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        stream = await peer.open_session_stream(exchange.stream_id, b"x")
        one_way = await peer.open_session_send_stream(exchange.stream_id, b"x")
        async with session.open_stream() as theirs:
            await theirs.send_all(b"y")
            number, ours = await peer.next_session_stream()
            assert number == exchange.stream_id
            session.close_now(0x01020304, "grün")
            assert await exchange.receive_capsule() == (
                CapsuleType.CLOSE_SESSION,
                b"\x01\x02\x03\x04gr\xc3\xbcn",
            )
            assert await exchange.receive_capsule() is None
            await settle()
            # All streams are given up in both directions.
            for use in (
                stream.receive_some(),
                stream.send_all(b"x"),
                one_way.send_all(b"x"),
                ours.send_all(b"x"),
            ):
                with pytest.raises(StreamReset) as caught:
                    await use
                assert caught.value.wire_code == Http3Code.WT_SESSION_GONE
            with pytest.raises(StreamReset) as caught:
                while True:
                    await ours.receive_some()
            assert caught.value.wire_code == Http3Code.WT_SESSION_GONE
        # The request's stream itself ends in order, whoever answers it.
        await exchange.stream.send_eof()
        await settle()
        assert peer.connection.closed is None
        check_nothing_is_held(session.connection)


ENDS: dict[str, tuple[type[ConnectionClosed], int, str]] = {
    "capsule": (ConnectionClosedError, 7, "why"),
    "capsule and fin": (ConnectionClosedError, 7, "why"),
    "capsule of 0": (ConnectionClosedOK, 0, "fine"),
    "fin": (ConnectionClosedOK, 0, ""),
    "not UTF-8": (ConnectionClosedError, 7, "a\ufffdb"),
    "longest": (ConnectionClosedError, 7, "x" * 1024),
    "largest": (ConnectionClosedError, 2**32 - 1, ""),
    "reset": (ConnectionLost, 0, ""),
    "stop": (ConnectionLost, 0, ""),
    "too long": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
    "too short": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
    "cut off": (ConnectionLost, 0, "H3_MESSAGE_ERROR"),
}


@pytest.mark.parametrize("how", ENDS)
async def test_ends_that_a_client_may_give(how: str) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        other = await peer.open_session(b"/other")
        their_other = await visitors.next()
        exchange = await peer.open_session()
        session = await visitors.next()
        if how.startswith("capsule"):
            capsule = close_capsule(0, b"fine") if "0" in how else close_capsule(7, b"why")
            await exchange.send_data(capsule, eof="fin" in how)
        elif how == "fin":
            await exchange.stream.send_eof()
        elif how == "not UTF-8":
            await exchange.send_data(close_capsule(7, b"a\xffb"))
        elif how == "longest":
            await exchange.send_data(close_capsule(7, b"x" * 1024))
        elif how == "largest":
            await exchange.send_data(close_capsule(2**32 - 1))
        elif how == "reset":
            exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
        elif how == "stop":
            exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
        elif how == "too long":
            await exchange.send_data(close_capsule(7, b"x" * 1025))
        elif how == "too short":
            await exchange.send_data(encode(CapsuleType.CLOSE_SESSION) + b"\x03abc")
        else:
            await exchange.send_data(close_capsule(7, b"why")[:-1], eof=True)
        kind, code, reason = ENDS[how]
        with trio.fail_after(1):
            end = await session.wait_closed()
        assert type(end) is kind
        assert end.remote
        assert end.code == code
        if kind is ConnectionLost:
            assert reason in end.reason
            # Both directions are over, whoever has ended them.
            with pytest.raises((StreamReset, trio.ClosedResourceError)):
                while await exchange.receive_capsule():
                    pass
            with pytest.raises((StreamReset, trio.ClosedResourceError)):
                while True:
                    await exchange.stream.send_all(b"\x00\x00")
                    await trio.sleep(0.01)
        else:
            assert end.reason == reason
            # FIN is what it is answered with.
            assert await exchange.receive_capsule() is None
        assert their_other.closed is None
        await peer.open_session_stream(other.stream_id, b"x")
        await their_other.incoming_streams.receive()


async def test_more_behind_a_close_is_an_error_of_the_message() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        for more in (close_capsule(8), b"\x21\x00", b"\x21"):
            exchange = await peer.open_session()
            session = await visitors.next()
            await exchange.send_data(close_capsule(7))
            assert (await session.wait_closed()).code == 7
            await exchange.send_data(more)
            with pytest.raises(StreamReset) as caught:
                while True:
                    await exchange.stream.send_all(b"\x00\x00")
                    await trio.sleep(0.01)
            assert caught.value.wire_code == Http3Code.MESSAGE_ERROR
            assert session.closed is not None
            assert session.closed.code == 7
        assert peer.connection.closed is None


async def test_what_a_session_says_that_nobody_knows_is_skipped() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        # GREASE, as browsers send it; a capsule of 1 MiB; frames that nobody knows; a datagram as a capsule.
        await exchange.send_data(encode(0x1F * 7 + 0x17) + b"\x05hello")
        await exchange.send_data(encode(0x3FFF_1234) + encode(2**20))
        for _ in range(2**4):
            await exchange.send_data(bytes(2**16))
        await exchange.send_frame(0x21, b"a frame of no kind")
        await exchange.send_frame(FrameType.DATA, b"")
        await exchange.send_data(b"\x00\x05hello")
        assert await session.datagrams.receive() == b"hello"
        await exchange.send_data(encode(CapsuleType.DRAIN_SESSION) + b"\x00")
        await session.wait_draining()
        assert session.closed is None


async def test_frames_that_must_not_be_on_a_session_s_stream_cost_the_connection() -> None:
    for kind, code in (
        (FrameType.SETTINGS, Http3Code.FRAME_UNEXPECTED),
        (FrameType.HEADERS, Http3Code.FRAME_UNEXPECTED),
        (FrameType.WT_STREAM, Http3Code.FRAME_ERROR),
        (0x06, Http3Code.FRAME_UNEXPECTED),
    ):
        network, visitors = Network(), Visitors()
        async with serving(visitors, network), raw_client(network) as peer:
            exchange = await peer.open_session()
            session = await visitors.next()
            await exchange.send_frame(kind, b"")
            assert (await peer.connection.wait_closed()).code == code
            end = await session.wait_closed()
            assert isinstance(end, ConnectionLost)


async def test_trailers_behind_a_session_are_the_connection_s_error_or_the_session_s_end() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session()
        session = await visitors.next()
        await exchange.send_head([(b"x", b"y")], eof=True)
        with trio.fail_after(1):
            await session.wait_closed()


# ---- priority


async def order_of(
    streams: list[tuple[WebTransportSession, bytes]], peers: list[WebTransportSession]
) -> list[bytes]:
    """In which order streams of 100 kB, begun in the given order, come to their ends."""
    finished: list[bytes] = []

    async def send(session: WebTransportSession, name: bytes) -> None:
        async with session.open_send_stream() as stream:
            await stream.send_all(bytes(100_000) + name, eof=True)

    async def receive(session: WebTransportSession) -> None:
        async for stream in session.incoming_receive_streams:
            nursery.start_soon(read, stream)

    async def read(stream: Any) -> None:
        finished.append((await stream.receive_all()).strip(b"\0"))
        if len(finished) == len(streams):
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(receive, peer)
        for session, name in streams:
            nursery.start_soon(send, session, name)
    return finished


async def test_sessions_are_served_by_their_urgency() -> None:
    network, visitors = Network(rate=200_000), Visitors()
    async with serving(visitors, network, send_buffer=2**20), connect(network) as connection:
        async with (
            session_pair(connection, visitors, priority=Priority(6)) as (low, their_low),
            session_pair(connection, visitors) as (plain, their_plain),
            session_pair(connection, visitors, priority=Priority(0)) as (high, their_high),
        ):
            got = await order_of(
                [(their_low, b"low"), (their_plain, b"plain"), (their_high, b"high")],
                [low, plain, high],
            )
            assert got == [b"high", b"plain", b"low"]
            # The client keeps to what it has said, too.
            got = await order_of(
                [(low, b"low"), (plain, b"plain"), (high, b"high")],
                [their_low, their_plain, their_high],
            )
            assert got == [b"high", b"plain", b"low"]


async def test_priorities_of_streams_count_within_their_session() -> None:
    network, visitors = Network(rate=200_000), Visitors()
    async with serving(visitors, network, send_buffer=2**20), connect(network) as connection:
        async with (
            session_pair(connection, visitors, priority=Priority(5)) as (low, their_low),
            session_pair(connection, visitors, priority=Priority(1)) as (high, their_high),
            trio.open_nursery() as nursery,
        ):
            finished: list[bytes] = []

            async def read(session: WebTransportSession) -> None:
                async for stream in session.incoming_receive_streams:
                    nursery.start_soon(read_one, stream)

            async def read_one(stream: Any) -> None:
                finished.append((await stream.receive_all()).strip(b"\0"))

            nursery.start_soon(read, low)
            nursery.start_soon(read, high)
            async with (
                their_low.open_send_stream(priority=1000) as a,
                their_low.open_send_stream() as b,
                their_high.open_send_stream(priority=-1000) as c,
                their_high.open_send_stream() as d,
            ):
                for stream, name in ((b, b"b"), (a, b"a"), (c, b"c"), (d, b"d")):
                    await stream.send_all(bytes(100_000) + name, eof=True)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
            assert finished == [b"d", b"c", b"a", b"b"]


@pytest.mark.parametrize("when", ["before", "at once", "later", "while sending"])
async def test_a_client_may_think_again_about_a_session_s_priority(when: str) -> None:
    """PRIORITY_UPDATE on the control stream, RFC 9218 section 7.2."""
    network, visitors = Network(rate=200_000, queue=16_000), Visitors()
    async with (
        serving(visitors, network, send_buffer=2**20),
        raw_client(network, connection_window=2**24, stream_window=2**20) as peer,
    ):
        if when == "before":
            await update(peer, 4, b"u=0")
            await settle()
        first = await peer.open_session(b"/first")
        one = await visitors.next()
        second = await peer.open_session(b"/second", (b"priority", b"u=7"))
        assert second.stream_id == 4
        if when == "at once":
            await update(peer, 4, b"u=0")
        two = await visitors.next()
        if when == "later":
            await update(peer, 4, b"u=0")
        await settle()
        finished: list[int] = []

        async def read() -> None:
            session_id, stream = await peer.next_session_receive_stream()
            async for _ in stream:
                pass
            finished.append(session_id)

        async def send(session: WebTransportSession) -> None:
            stream: SendStream
            async with session.open_send_stream() as stream:
                await stream.send_all(bytes(200_000))

        async with trio.open_nursery() as nursery:
            for session in (one, two):
                nursery.start_soon(read)
                nursery.start_soon(send, session)
            if when == "while sending":
                await trio.sleep(0.2)
                await update(peer, 4, b"u=0")
        assert finished == [second.stream_id, first.stream_id]
        assert two.request.headers["priority"] == "u=7"


async def update(peer: RawPeer, stream_id: int, value: bytes) -> None:
    await peer.send_control(FrameType.PRIORITY_UPDATE, encode(stream_id) + value)


async def test_priorities_that_make_no_sense_are_the_default() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), raw_client(network) as peer:
        exchange = await peer.open_session(b"/", (b"priority", b"u=9, \xff?"))
        await visitors.next()
        for value in (b"u=8", b"u=-1", b"u", b"u=1.5", b'u="0"', b"(((", b"", b"\xff", b"u=(0 1)"):
            await update(peer, exchange.stream_id, value)
        # Of a session that is not there, of one that has ended, and of pushes, which there are none of.
        await update(peer, 400, b"u=1")
        await peer.send_control(0xF0701, encode(1) + b"u=1")
        await settle()
        assert peer.connection.closed is None
    async with raw_client_of_another(network, visitors) as peer:
        await update(peer, 1, b"u=1")
        assert (await peer.connection.wait_closed()).code == Http3Code.ID_ERROR


@asynccontextmanager
async def raw_client_of_another(network: Network, visitors: Visitors) -> AsyncIterator[RawPeer]:
    async with serving(visitors, network), raw_client(network) as peer:
        yield peer


# ---- shutting down


@asynccontextmanager
async def shutting_down(
    handler: Handler, network: Network, **options: object
) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    """A server with an event that shuts it down, and one that is set when it has returned."""
    shutdown, returned = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        await serve_webtransport(
            handler,
            tls=ServerTLS(certificate()),
            sockets=[network.socket((HOST, PORT))],
            shutdown=shutdown,
            task_status=task_status,
            **options,  # type: ignore[arg-type]
        )
        returned.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield shutdown, returned
        nursery.cancel_scope.cancel()


async def test_a_shutdown_drains_sessions_and_accepts_nobody() -> None:
    network = Network()
    async with shutting_down(echo, network, shutdown_timeout=100) as (shutdown, returned):
        async with connect(network) as connection:
            async with connection.open_session() as one, connection.open_session() as two:
                assert await ask(one, b"x") == b"x"
                shutdown.set()
                for session in (one, two):
                    await session.wait_draining()
                    assert session.draining
                assert trio.current_time() < 1
                assert connection.going_away
                # What is there goes on.
                await trio.sleep(20)
                assert not returned.is_set()
                assert await ask(one, b"y") == b"y"
                with pytest.raises(HandshakeFailed, match="GOAWAY"):
                    async with connection.open_session():
                        pytest.fail("it is shutting down")
                with pytest.raises(HandshakeFailed):
                    async with visit(network, handshake_timeout=3):
                        pytest.fail("it is shutting down")
                two.close_now()
                await settle()
                assert not returned.is_set()
            await settle()
        await settle()
        assert returned.is_set()
        network.socket((HOST, PORT)).close()  # it is free again


async def test_a_connection_without_sessions_does_not_hold_up_a_shutdown() -> None:
    """Its client is told by GOAWAY, and its connection closed."""
    network = Network()
    async with shutting_down(echo, network, shutdown_timeout=100) as (shutdown, returned):
        async with connect(network) as connection:
            async with connection.open_session() as session:
                assert await ask(session, b"x") == b"x"
            await settle()
            shutdown.set()
            with trio.fail_after(10):
                end = await connection.wait_closed()
            assert type(end) is ConnectionClosedOK
            await settle()
            assert returned.is_set()


async def test_a_peer_is_told_by_goaway_and_drain() -> None:
    network = Network()
    async with shutting_down(stay, network, shutdown_timeout=20) as (shutdown, returned):
        async with raw_client(network) as peer:
            for _ in range(3):
                exchange = await peer.open_session()
            await settle()
            before = len(peer.control_heard)
            shutdown.set()
            assert await exchange.receive_capsule() == (CapsuleType.DRAIN_SESSION, b"")
            await settle()
            # Requests 0, 4 and 8 are served still.
            assert peer.control_heard[before:] == b"\x07\x01\x0c"
            late = await peer.request(peer.session_fields())
            with pytest.raises(StreamReset) as caught:
                await late.receive_head()
            assert caught.value.wire_code == Http3Code.REQUEST_REJECTED
            assert not returned.is_set()


async def test_a_session_that_is_accepted_late_is_drained_at_once() -> None:
    async def on_request(_: Request) -> None:
        await trio.sleep(2)

    network = Network()
    async with shutting_down(stay, network, on_request=on_request) as (shutdown, returned):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def shut_down() -> None:
                await trio.sleep(1)
                shutdown.set()

            async with visit(network) as session:
                assert trio.current_time() > 2
                with trio.fail_after(1):
                    await session.wait_draining()
        await settle()
        assert returned.is_set()


async def test_a_shutdown_is_bounded_and_sessions_are_told() -> None:
    cancelled = 0

    async def handler(_: WebTransportSession) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1

    network = Network()
    async with shutting_down(handler, network, shutdown_timeout=7, cancelled_code=CANCELLED) as (
        shutdown,
        returned,
    ):
        async with visit(network) as one, connect(network) as connection:
            async with connection.open_session() as two, connection.open_session() as three:
                await connection.ping()
                started = trio.current_time()
                shutdown.set()
                for session in (one, two, three):
                    end = await session.wait_closed()
                    # A close of the session's own, as a browser can understand it.
                    assert type(end) is ConnectionClosedError
                    assert (end.code, end.remote) == (CANCELLED, True)
                    assert trio.current_time() - started == pytest.approx(7, abs=0.2)
                end = await connection.wait_closed()
                assert end.code == Http3Code.NO_ERROR
                await settle()
        assert returned.is_set()
        assert cancelled == 3


async def test_handlers_may_end_sessions_that_drain() -> None:
    """What a handler does about a shutdown itself: it sees nothing but its own session, and the client leaves."""
    network = Network()
    async with shutting_down(stay, network, shutdown_timeout=100) as (shutdown, returned):
        async with visit(network) as session, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def leave() -> None:
                await session.wait_draining()
                await session.aclose(3, "as you wish")

            await trio.sleep(1)
            shutdown.set()
        await settle()
        assert returned.is_set()
        assert trio.current_time() < 5


async def test_a_shutdown_without_connections_is_immediate() -> None:
    network = Network()
    async with shutting_down(echo, network) as (shutdown, returned):
        async with visit(network) as session:
            assert await ask(session, b"x") == b"x"
        await settle()
        shutdown.set()
        await trio.testing.wait_all_tasks_blocked()
        assert returned.is_set()


# ---- clients that leave their connections


async def test_a_connection_that_can_have_no_more_sessions_is_closed() -> None:
    """As of browsers, which leave them to idle otherwise; those that can have more are kept."""
    none = {
        "WT_INITIAL_MAX_DATA": None,
        "WT_INITIAL_MAX_STREAMS_BIDI": None,
        "WT_INITIAL_MAX_STREAMS_UNI": None,
    }
    for changes, closes in ((none, True), ({}, False)):
        network = Network()
        async with serving(stay, network):
            async with raw_client(network, settings=settings_of(**changes)) as peer:
                exchange = await peer.open_session()
                await exchange.send_data(close_capsule(0), eof=True)
                started = trio.current_time()
                with trio.move_on_after(10):
                    end = await peer.connection.wait_closed()
                    assert end.code == Http3Code.NO_ERROR
                assert (peer.connection.closed is not None) == closes
                if closes:
                    assert trio.current_time() - started == pytest.approx(2, abs=0.5)


async def test_nor_is_one_closed_on_which_a_session_follows_in_time() -> None:
    none = {
        "WT_INITIAL_MAX_DATA": None,
        "WT_INITIAL_MAX_STREAMS_BIDI": None,
        "WT_INITIAL_MAX_STREAMS_UNI": None,
    }
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        async with raw_client(network, settings=settings_of(**none)) as peer:
            for _ in range(3):
                exchange = await peer.open_session()
                session = await visitors.next()
                await trio.sleep(5)
                assert session.closed is None
                await exchange.send_data(close_capsule(0), eof=True)
                await trio.sleep(1)
            assert peer.connection.closed is None


async def test_many_clients_at_once() -> None:
    network = Network(seed=1, loss=0.02, delay=(0.005, 0.02))
    answers: list[bytes] = []

    async def client(number: int) -> None:
        async with visit(network, f"/{number}", idle_timeout=100) as session:
            for _ in range(3):
                answers.append(await ask(session, b"%d" % number))

    async with serving(echo, network, idle_timeout=100, retry="always"):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(client, number)
    assert sorted(answers) == sorted(b"%d" % number for number in range(40) for _ in range(3))


async def test_a_server_cannot_ask() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), visit(network) as session:
        theirs = await visitors.next()
        connection = theirs.connection
        with pytest.raises(RuntimeError, match="server"):
            async with connection.open_session():
                pytest.fail("it is the server")
        with pytest.raises(RuntimeError, match="server"):
            await connection.request("GET", "/")
        assert await connection.ping() > 0
        async with stream_pair(session, theirs):
            pass
