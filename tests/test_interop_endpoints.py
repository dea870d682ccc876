"""The interop endpoints, over each version of HTTP, as a client sees them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import trio_wt
from tests.app_servers import BOTH, Served, Version, serving_in_memory
from tests.shown_code import ROOT, free_port, loaded
from trio_wt import (
    ConnectionClosedError,
    ConnectionClosedOK,
    Headers,
    Rejected,
    Request,
    StreamReset,
    WebSocket,
    WebTransportSession,
)
from trio_wt._cli.certificate import make_certificate
from trio_wt.app import App
from trio_wt.interop import (
    BATON_PATH,
    BatonMove,
    BatonSettings,
    add_endpoints,
    run_baton,
)
from trio_wt.interop._stats import stats_of_request

KINDS = ("websocket 1.1", "websocket 3", "webtransport")


@asynccontextmanager
async def endpoints(**options: Any) -> AsyncIterator[Served]:
    """A server of them."""
    app = App()
    async with serving_in_memory(app) as served:
        add_endpoints(app, **options)
        yield served


# ---- /echo


@pytest.mark.parametrize("version", BOTH)
async def test_messages_come_back(version: Version) -> None:
    async with endpoints() as served, served.websocket(version, "/echo") as websocket:
        for message in ("text", "", b"\x00\xff", b"", "x" * 70_000):
            await websocket.send(message)
            assert await websocket.receive() == message


async def test_streams_come_back_on_themselves() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        for data in (b"", b"text", bytes(2**18)):
            async with session.open_stream() as stream, trio.open_nursery() as nursery:
                nursery.start_soon(partial(stream.send_all, data, eof=True))
                assert await stream.receive_all() == data


async def test_streams_come_back_while_they_are_received() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        async with session.open_stream() as one, session.open_stream() as two:
            for stream in (one, two, one):
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"


async def test_one_way_streams_come_back_on_new_ones() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        for data in (b"one", b"", b"two"):
            async with session.open_send_stream() as sending:
                await sending.send_all(data)
            async with await session.incoming_receive_streams.receive() as receiving:
                assert await receiving.receive_all() == data


async def test_datagrams_come_back() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        for data in (b"once", b""):
            await session.datagrams.send(data)
            assert await session.datagrams.receive() == data


async def test_a_reset_comes_back_with_its_code() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        async with session.open_stream() as stream:
            await stream.send_all(b"x")
            await stream.receive_some()
            stream.reset(77)
            with pytest.raises(StreamReset) as caught:
                await stream.receive_some()
            assert caught.value.code == 77
        async with session.open_send_stream() as sending:
            await sending.send_all(b"x")
            async with await session.incoming_receive_streams.receive() as receiving:
                assert await receiving.receive_some() == b"x"
                sending.reset(78)
                with pytest.raises(StreamReset) as caught:
                    await receiving.receive_some()
                assert caught.value.code == 78


async def test_a_stream_that_the_client_stops_harms_no_other() -> None:
    async with endpoints() as served, served.webtransport("/echo") as session:
        async with session.open_stream() as stopped, session.open_stream() as other:
            await stopped.send_all(b"x")
            await stopped.receive_some()
            stopped.stop(5)
            with pytest.raises(StreamReset):
                while True:
                    await stopped.send_all(bytes(2**16))
            await other.send_all(b"y")
            assert await other.receive_some() == b"y"


@pytest.mark.parametrize("path", ["/echo", "/stats"])
async def test_shutdown_waits_for_streams_under_way_only(path: str) -> None:
    async with endpoints() as served, served.webtransport(path) as session:
        async with session.open_stream() as stream:
            await stream.send_all(b"under way")
            assert await stream.receive_some()
            begin = trio.current_time()
            served.shutdown.set()
            await session.wait_draining()
            await stream.send_all(b", still", eof=True)
            assert path != "/echo" or await stream.receive_all() == b", still"
        end = await session.wait_closed()
        assert (type(end), end.code, end.reason) == (ConnectionClosedOK, 0, "")
        assert trio.current_time() - begin < 1


async def test_a_handler_lasts_as_long_as_its_client() -> None:
    app = App()
    add_endpoints(app)
    async with serving_in_memory(app) as served:
        for path in ("/echo", "/stats"):
            async with served.webtransport(path) as session:
                async with session.open_stream() as stream:
                    await stream.send_all(b"x", eof=True)
                    assert await stream.receive_all()
                await session.aclose(9)
        # What the ends of the sessions have set off.
        await trio.sleep(3)
        figures = app.statistics()
        assert (figures.webtransport_sessions, figures.open_webtransport_sessions) == (2, 0)
        assert figures.failed == 0


@pytest.mark.parametrize("path", ["/echo", "/stats"])
async def test_a_client_that_vanishes_leaves_nothing(path: str) -> None:
    async with endpoints() as served:
        for version in BOTH:
            async with served.websocket(version, path) as websocket:
                websocket.cancel_scope.cancel()
        async with served.webtransport(path) as session, session.open_stream() as stream:
            await stream.send_all(b"x")
            session.cancel_scope.cancel()
        await trio.sleep(5)
        figures = served.app.statistics()
        assert (figures.open_websockets, figures.open_webtransport_sessions) == (0, 0)
        assert figures.failed == 0


# ---- /stats


@pytest.mark.parametrize("version", BOTH)
async def test_stats_of_a_plain_request(version: Version) -> None:
    async with endpoints() as served:
        headers = {"Cookie": "secret=1", "Authorization": "Bearer secret", "Origin": "https://a.b"}
        response = await served.ask(version, "GET", "/stats?x=1", headers)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert b"secret" not in response.body
    told = json.loads(response.body)
    assert told["kind"] == "http"
    assert told["http_version"] == version
    assert told["alpn"] == ("h3" if version == "3" else None)
    assert told["scheme"] == ("https" if version == "3" else "http")
    assert (told["method"], told["target"]) == ("GET", "/stats?x=1")
    assert told["origin"] == "https://a.b"
    assert told["client_certificate"] is False


@pytest.mark.parametrize("version", BOTH)
async def test_stats_of_a_websocket(version: Version) -> None:
    async with endpoints(subprotocols=["b", "a"]) as served:
        async with served.websocket(version, "/stats", subprotocols=["a", "b"]) as websocket:
            message = await websocket.receive()
            with pytest.raises(ConnectionClosedOK):
                await websocket.receive()
            assert websocket.close_code == 1000
    assert isinstance(message, str)
    told = json.loads(message)
    assert (told["kind"], told["http_version"]) == ("websocket", version)
    assert told["method"] == ("CONNECT" if version == "3" else "GET")
    assert told["subprotocols_offered"] == ["a", "b"]
    assert told["subprotocol"] == websocket.subprotocol is not None
    assert told["extensions"] == list(websocket.extensions)
    assert 0 <= told["rtt"] < 1
    assert told["session"]["messages_sent"] == 0
    assert told["session"]["bytes_sent"] > 0


async def test_stats_of_a_websocket_that_answers_no_pings() -> None:
    async with endpoints() as served:
        stream = served.listener.connect()
        async with stream:
            await stream.send_all(
                b"GET /stats HTTP/1.1\r\nHost: server.test:4433\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            begin = trio.current_time()
            received = b""
            while b'"rtt": ' not in received:
                received += await stream.receive_some()
            assert trio.current_time() - begin == pytest.approx(1)
            assert b'"rtt": null' in received


async def told_first(session: WebTransportSession) -> dict[str, Any]:
    """What a session is told unasked."""
    async with await session.incoming_receive_streams.receive() as stream:
        told: dict[str, Any] = json.loads(await stream.receive_all())
    return told


async def test_stats_of_a_webtransport_session() -> None:
    settings = {"session_window": 70_000, "max_streams": 7, "max_receive_streams": 8}
    async with endpoints(subprotocols=["a", "b"]) as served:
        async with served.webtransport("/stats", subprotocols=["b"], **settings) as session:
            first = await told_first(session)
            async with session.open_stream() as stream:
                await stream.send_all(b"anything at all", eof=True)
                second = json.loads(await stream.receive_all())
            async with session.open_send_stream() as sending:
                await sending.send_all(b"anything")
            third = await told_first(session)
            await session.connection.ping()
            assert session.closed is None
            address = session.local_address
    assert address is not None
    for told in (first, second, third):
        assert (told["kind"], told["http_version"], told["alpn"]) == ("webtransport", "3", "h3")
        assert told["peer"] == {"host": address[0], "port": address[1]}
        assert (told["subprotocols_offered"], told["subprotocol"]) == (["b"], "b")
        assert told["drafts"] == told["session"]["dialect"] == session.statistics().dialect
        assert told["session_id"] == session.session_id
        assert told["max_datagram_size"] > 1000
        assert told["peer_settings"]["WT_INITIAL_MAX_DATA"] == 70_000
        assert told["peer_settings"]["H3_DATAGRAM"] == 1
        assert told["flow_control"]["enabled"] is True
        assert told["flow_control"]["client"] == {
            "max_data": 70_000,
            "max_streams": 7,
            "max_receive_streams": 8,
        }
        ours = trio_wt.WebTransportSettings()
        assert told["flow_control"]["server"] == {
            "max_data": ours.session_window,
            "max_streams": ours.max_streams,
            "max_receive_streams": ours.max_receive_streams,
        }
        assert 0 < told["rtt"] < 1
        assert told["connection"]["packets_sent"] > 0
        assert "last_heard" not in told["connection"]
    assert second["connection"]["bytes_received"] > first["connection"]["bytes_received"]


async def test_stats_without_credit_for_the_first_stream() -> None:
    async with endpoints() as served:
        async with served.webtransport("/stats", max_receive_streams=0) as session:
            async with session.open_stream() as stream:
                await stream.send_all(b"x")
                # It does not wait for the end of what it does not look at.
                assert json.loads(await stream.receive_all())["kind"] == "webtransport"


async def test_streams_that_are_given_up_do_not_end_the_session() -> None:
    async with endpoints() as served, served.webtransport("/stats") as session:
        await told_first(session)
        for _ in range(3):
            async with session.open_stream() as stream:
                await stream.send_all(b"x")
                stream.reset(1)
                stream.stop(1)
        async with session.open_send_stream() as sending:
            await sending.send_all(b"x")
            sending.reset(1)
        async with session.open_stream() as stream:
            await stream.send_all(b"x", eof=True)
            assert json.loads(await stream.receive_all())["session_id"] == session.session_id


@given(
    target=st.text(st.characters(codec="latin-1")),
    host=st.text(st.characters(codec="latin-1")),
    origin=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])),
    peer=st.none() | st.text() | st.tuples(st.text(), st.integers(0, 65535)),
)
def test_any_request_can_be_told(
    target: str, host: str, origin: str, peer: tuple[str, int] | str | None
) -> None:
    request = Request(
        method="GET",
        target=target,
        headers=Headers([("Origin", origin.strip())]),
        http_version="1.1",
        scheme="http",
        host=host,
        peer=peer,
    )
    told = json.loads(json.dumps(stats_of_request(request)))
    assert (told["target"], told["host"]) == (target, host)
    assert told["peer"] is None or tuple(told["peer"].values()) == peer


# ---- /status and /health


@pytest.mark.parametrize("version", BOTH)
async def test_status(version: Version) -> None:
    async with endpoints() as served:
        async with served.webtransport("/echo"), served.websocket("3", "/echo"):
            assert (await served.ask(version, "GET", "/nowhere")).status == 404
            response = await served.ask(version, "GET", "/status")
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    told = json.loads(response.body)
    assert told["healthy"] is True
    assert told["version"] == trio_wt.__version__
    assert 0 <= told["uptime"] < 60
    assert told["totals"] == {
        "requests": 4,
        "refused": 1,
        "failed": 0,
        "websockets": 1,
        "webtransport_sessions": 1,
        "open_websockets": 1,
        "open_webtransport_sessions": 1,
    }


@pytest.mark.parametrize("version", BOTH)
async def test_health(version: Version) -> None:
    async with endpoints() as served:
        response = await served.ask(version, "GET", "/health")
        assert (response.status, response.body) == (200, b"ok\n")
        response = await served.ask(version, "HEAD", "/health")
        assert (response.status, response.body) == (200, b"")


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize("path", ["/echo", BATON_PATH])
async def test_what_is_for_sessions_is_no_page(version: Version, path: str) -> None:
    async with endpoints() as served:
        response = await served.ask(version, "GET", path)
    assert response.status in (405, 426)


# ---- the baton


@pytest.mark.parametrize("query", ["", "?version=0&count=3&baton=250", "?count=16&baton=255"])
async def test_batons(query: str) -> None:
    async with endpoints() as served, served.webtransport(f"{BATON_PATH}{query}") as session:
        result = await run_baton(session)
        assert result.finished >= 1
        assert result.reset == 0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("version=1", b"the only version is 0\n"),
        ("count=0", b"count must be from 1 to 16\n"),
        ("count=17", b"count must be from 1 to 16\n"),
        ("baton=0", b"baton must be from 1 to 255\n"),
        ("baton=256", b"baton must be from 1 to 255\n"),
        ("baton=x", b"baton is not a number\n"),
    ],
)
async def test_bad_batons_are_refused(query: str, said: bytes) -> None:
    async with endpoints() as served:
        with pytest.raises(Rejected) as caught:
            async with served.webtransport(f"{BATON_PATH}?{query}"):
                pass
    assert (caught.value.status, caught.value.body) == (400, said)


async def test_how_the_baton_is_played_can_be_set() -> None:
    async with endpoints(baton=BatonSettings(max_count=1, patience=3)) as served:
        with pytest.raises(Rejected, match="400"):
            async with served.webtransport(f"{BATON_PATH}?count=2"):
                pass
        async with served.webtransport(BATON_PATH) as session:
            begin = trio.current_time()
            assert type(await session.wait_closed()) is ConnectionClosedError
            assert trio.current_time() - begin == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize("version", BOTH)
async def test_a_websocket_plays_no_baton(version: Version) -> None:
    async with endpoints() as served:
        with pytest.raises(Rejected) as caught:
            async with served.websocket(version, BATON_PATH):
                pass
    assert 400 <= caught.value.status <= 501


async def test_moves_are_told() -> None:
    moves: list[BatonMove] = []
    async with endpoints() as served, served.webtransport(f"{BATON_PATH}?baton=253") as session:
        result = await run_baton(session, on_move=moves.append)
    in_datagrams = [move for move in moves if move.by == "datagram"]
    on_streams = [move for move in moves if move.by != "datagram"]
    assert [(move.what, move.value, move.by) for move in on_streams] == [
        ("received", 253, "unidirectional stream"),
        ("sent", 254, "bidirectional stream"),
        ("received", 255, "bidirectional stream"),
        ("sent", 0, "unidirectional stream"),
    ]
    assert on_streams[1].stream_id == on_streams[2].stream_id
    assert BatonMove("sent", 253, "datagram", None) in in_datagrams
    assert len(in_datagrams) == result.datagrams_sent + result.datagrams_received


async def test_what_a_listener_to_moves_raises_comes_out() -> None:
    def fail(move: BatonMove) -> None:
        raise ZeroDivisionError

    async with endpoints() as served:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with served.webtransport(f"{BATON_PATH}?baton=1") as session:
                await run_baton(session, on_move=fail)


# ---- around them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/echo", "/stats"])
async def test_origins_are_those_of_the_application(kind: Any, path: str) -> None:
    async with endpoints() as served:
        with pytest.raises(Rejected) as caught:
            async with served.session(kind, path, headers={"Origin": "https://elsewhere.test"}):
                pass
    assert caught.value.status == 403


def test_an_application_has_them_once() -> None:
    app = App()
    add_endpoints(app)
    with pytest.raises(ValueError, match="/echo"):
        add_endpoints(app)
    with pytest.raises(ValueError):
        add_endpoints(App(), subprotocols=["not a token"])


async def test_below_a_prefix() -> None:
    inner, outer = App(), App()
    add_endpoints(inner)
    outer.mount("/interop", inner)
    async with serving_in_memory(outer) as served:
        async with served.websocket("1.1", "/interop/echo") as websocket:
            await websocket.send("x")
            assert await websocket.receive() == "x"
        async with served.webtransport(f"/interop{BATON_PATH}") as session:
            assert (await run_baton(session)).finished == 1


async def test_no_session_waits_for_another() -> None:
    left, all_here = 10, trio.Event()

    async def visit(served: Served, number: int) -> None:
        nonlocal left
        async with served.webtransport("/echo") as session, session.open_stream() as stream:
            await stream.send_all(b"%d" % number)
            assert await stream.receive_some() == b"%d" % number
            left -= 1
            if not left:
                all_here.set()
            await all_here.wait()

    async with endpoints() as served, trio.open_nursery() as nursery:
        for number in range(left):
            nursery.start_soon(visit, served, number)


# ---- the page about them


def test_the_page_has_every_endpoint() -> None:
    page = (ROOT / "docs" / "app" / "interop.rst").read_text()
    for path in ("/echo", "/stats", "/status", "/health", BATON_PATH):
        assert f"   * - ``{path}``\n" in page


@pytest.mark.parametrize("kind", KINDS)
async def test_the_page_has_every_field(kind: Any) -> None:
    page = (ROOT / "docs" / "app" / "interop.rst").read_text()
    async with endpoints() as served, served.session(kind, "/stats") as session:
        if isinstance(session, WebSocket):
            told = json.loads(await session.receive())
        else:
            told = await told_first(session)
        status = json.loads((await served.ask("1.1", "GET", "/status")).body)
    control = told.get("flow_control", {})
    for name in (*told, *control, *control.get("client", {}), *status):
        assert f"``{name}``" in page, name


@pytest.mark.real_clock
async def test_the_code_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_certificate()
    (tmp_path / "cert.pem").write_bytes(made.certificate)
    (tmp_path / "key.pem").write_bytes(made.key)
    monkeypatch.chdir(tmp_path)
    port = str(free_port())
    file = ROOT / "docs" / "code" / "app_interop.py"
    with loaded(file, replace={"4433": port}) as code:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(code.main)
            while True:
                try:
                    await (await trio.open_tcp_stream("localhost", int(port))).aclose()
                    break
                except OSError:
                    await trio.sleep(0.02)
            await code.play()
            nursery.cancel_scope.cancel()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 batons have come to 0"
    assert lines[0].startswith("BatonMove(what='received', ")
