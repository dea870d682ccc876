"""Whom a server lets in, and what it answers otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    Http3Code,
    raw_client,
    settings_of,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    URL,
    Visitors,
    connect,
    serving,
    settle,
    stay,
    visit,
)
from trio_wt import (
    HandshakeFailed,
    Rejected,
    Request,
    WebSocket,
)
from trio_wt.testing import Network


async def rejection(network: Network, path: str = "/", **options: object) -> Rejected:
    """How a session was refused."""
    with pytest.raises(Rejected) as caught:
        async with visit(network, path, **options):
            pytest.fail("it was let in")
    return caught.value


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
