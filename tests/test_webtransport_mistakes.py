"""Mistakes of applications are told before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webtransport_pairs import (
    URL,
    Visitors,
    certificate,
    connect,
    serving,
    session_pair,
    settle,
    stay,
    visit,
)
from trio_wt import (
    Priority,
    ServerTLS,
    WebTransportSettings,
    open_webtransport,
    open_webtransport_connection,
    serve_webtransport,
)
from trio_wt.testing import Network


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://server.test/", "must begin with https://"),
        ("wss://server.test/", "must begin with https://"),
        ("server.test", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://server.test/#x", "fragment"),
        ("https://server.test/#", "fragment"),
        ("https://user@server.test/", "user's name"),
        ("https://user:secret@server.test/", "user's name"),
        ("https://server.test:port/", "port"),
        ("https://server.test:65536/", "port"),
        ("https://server.test/a b", "white space"),
        ("https://server.test/a\r\nb", "white space"),
        ("https://serv er.test/", "white space"),
        ("https://serv\x00er.test/", "white space"),
        ("https://" + "a" * 64 + ".test/", "labels"),
        ("https://[::1/", "not a valid URL"),
        ("https://a_\\b/", "host"),
    ],
)
async def test_urls_that_are_none(url: str, match: str) -> None:
    network = Network()
    for opener in (open_webtransport, open_webtransport_connection):
        with pytest.raises(ValueError, match=match) as caught:
            async with opener(url, socket=network.socket()):
                pytest.fail("that is no URL")
        assert "secret" not in str(caught.value)
    assert network.statistics.sent == 0
    with pytest.raises(TypeError):
        async with open_webtransport(b"https://server.test/"):  # type: ignore[arg-type]
            pytest.fail("a URL is a str")


BAD_HEADERS: list[Any] = [
    [("X-Evil", "a\r\nb: c")],
    [("X-Evil", "a\nb")],
    [("X-Evil", "a\x00b")],
    [("X-Evil", "snow \u2603")],
    [("X Evil", "a")],
    [("X-Evil\r\n", "a")],
    [("", "a")],
    [(":path", "/other")],
    [("Host", "other.test")],
    [("Connection", "close")],
    [("Transfer-Encoding", "chunked")],
    [("Content-Length", "5")],
    [("Upgrade", "websocket")],
    [("WT-Available-Protocols", '"a"')],
    [("WT-Protocol", '"a"')],
    [("Priority", "u=0")],
    [("Sec-WebSocket-Protocol", "a")],
]
BAD_REQUESTS: dict[str, dict[str, Any]] = {
    **{f"header {headers[0]}": {"headers": headers} for headers in BAD_HEADERS},
    "subprotocol empty": {"subprotocols": [""]},
    "subprotocol not ASCII": {"subprotocols": ["gr\u00fcn"]},
    "subprotocol with CR": {"subprotocols": ["a\r\n"]},
    "subprotocol twice": {"subprotocols": ["a", "b", "a"]},
    "origin with CR": {"origin": "https://a.example\r\nX: y"},
    "origin not latin-1": {"origin": "https://\u2603"},
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_requests_that_must_not_be_sent(name: str) -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors) as (one, _):
            await settle()
            before = network.statistics.sent
            with pytest.raises(ValueError):
                async with connection.open_session("/", **BAD_REQUESTS[name]):
                    pytest.fail("that is no request")
            await settle()
            assert network.statistics.sent == before
            assert one.closed is connection.closed is None


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_mistakes_in_a_request_are_found_before_connecting(name: str) -> None:
    """Also where the connection is made for the session."""
    network = Network()
    with pytest.raises(ValueError):
        async with visit(network, **BAD_REQUESTS[name]):
            pytest.fail("that is no request")
    assert network.statistics.sent == 0


async def test_one_string_is_no_list_of_subprotocols() -> None:
    network = Network()
    with pytest.raises(TypeError, match="not one string"):
        async with visit(network, subprotocols="chat"):
            pytest.fail("that is no list")
    assert network.statistics.sent == 0


@pytest.mark.parametrize(
    "target", ["", "room", "?x", "https://other.test:4433/", URL + "0/", "a:b"]
)
async def test_targets_that_are_none_of_this_server_s(target: str) -> None:
    network = Network()
    async with serving(stay, network), connect(network) as connection:
        await settle()
        before = network.statistics.sent
        for use in (connection.open_session(target), connection.open_websocket(target)):
            with pytest.raises(ValueError):
                async with use:
                    pytest.fail("that is no target")
        with pytest.raises(ValueError):
            await connection.request("GET", target)
        await settle()
        assert network.statistics.sent == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_sessions": 0},
        {"session_window": 0},
        {"session_window": 2**62},
        {"max_session_window": 1000},
        {"max_early_streams": -1},
        {"max_early_datagrams": -1},
        {"early_timeout": 0},
        {"max_field_section": 0},
        {"max_fields": 0},
        {"cancelled_code": 2**32},
        {"failed_code": -1},
        {"max_streams": -1},
        {"idle_timeout": 0},
    ],
    ids=str,
)
async def test_settings_out_of_their_range(wrong: dict[str, Any]) -> None:
    network = Network()
    with pytest.raises(ValueError):
        WebTransportSettings(**wrong)
    with pytest.raises(ValueError):
        async with visit(network, **wrong):
            pytest.fail("that is no setting")
    with pytest.raises(ValueError):
        await serve_webtransport(
            stay, sockets=[network.socket()], tls=ServerTLS(certificate()), **wrong
        )
    assert network.statistics.sent == 0


async def test_unknown_settings_are_type_errors() -> None:
    with pytest.raises(TypeError, match="max_rooms"):
        async with visit(Network(), max_rooms=5):
            pytest.fail("there is no such setting")


def test_urgency_has_a_range() -> None:
    for urgency in (-1, 8):
        with pytest.raises(ValueError, match="0 to 7"):
            Priority(urgency)
