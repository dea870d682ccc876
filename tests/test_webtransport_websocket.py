"""WebSockets over HTTP/3 (RFC 9220), on the connections that sessions use, from both sides."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    Http3Code,
    RawPeer,
    raw_client,
    raw_server,
    settings_of,
    ws_fields,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    URL,
    Guests,
    Visitors,
    ask,
    check_nothing_is_held,
    connect,
    echo,
    serving,
    session_pair,
    settle,
    start_serving,
    ws_echo,
)
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    Deflate,
    HandshakeFailed,
    Rejected,
    Request,
    Settings,
    StreamReset,
    WebSocket,
    WebTransportConnection,
)
from trio_wt.testing import Network


@asynccontextmanager
async def websockets(
    *,
    network: Network | None = None,
    server_settings: Settings | None = None,
    options: dict[str, Any] | None = None,
    **client_options: Any,
) -> AsyncIterator[tuple[WebSocket, WebSocket, WebTransportConnection]]:
    """Both ends of one, and the client's connection."""
    network, guests = network or Network(), Guests()
    async with serving(
        None,
        network,
        websocket_handler=guests,
        websocket_settings=server_settings,
        **(options or {}),
    ):
        async with connect(network, **(options or {})) as connection:
            async with connection.open_websocket("/chat", **client_options) as client:
                yield client, await guests.next(), connection


# ---- the handshake


async def test_what_both_sides_know() -> None:
    async with websockets(headers={"X-One": "1"}, origin=URL) as (client, server, connection):
        for websocket in (client, server):
            request = websocket.request
            assert request.is_websocket
            assert not request.is_webtransport
            assert request.method == "CONNECT"
            assert request.http_version == "3"
            assert request.target == "/chat"
            assert request.host == f"{HOST}:{PORT}"
            assert request.headers["x-one"] == "1"
            assert request.headers["sec-websocket-version"] == "13"
            assert "sec-websocket-key" not in request.headers
            assert request.origin == URL
            assert websocket.subprotocol is None
            assert websocket.close_code is None
        assert client.peer == (HOST, PORT)
        assert server.peer == connection.local_address
        assert connection.open_sessions == 0


async def test_subprotocols() -> None:
    def on_request(request: Request) -> None:
        if request.path == "/other":
            request.accept(subprotocol="c", headers={"X-Chosen": "by hand"})

    network, guests = Network(), Guests()
    async with serving(
        None, network, websocket_handler=guests, subprotocols=["b", "a"], on_request=on_request
    ):
        async with connect(network) as connection:
            for target, offered, chosen in (
                ("/", ["a", "b"], "b"),
                ("/", ["c"], None),
                ("/", [], None),
                ("/other", ["a", "c"], "c"),
            ):
                async with connection.open_websocket(target, subprotocols=offered) as client:
                    server = await guests.next()
                    assert client.subprotocol == server.subprotocol == chosen
                    if target == "/other":
                        assert client.response_headers["x-chosen"] == "by hand"


async def test_rejects() -> None:
    def on_request(request: Request) -> None:
        if request.path == "/no":
            request.reject(403, {"X-Why": "you"}, "not you")
        elif request.path == "/moved":
            request.reject(302, {"Location": "/chat"})

    network = Network()
    async with serving(None, network, websocket_handler=ws_echo, on_request=on_request):
        async with connect(network) as connection:
            for path, status, body in (("/no", 403, b"not you"), ("/moved", 302, b"")):
                with pytest.raises(Rejected) as caught:
                    async with connection.open_websocket(path):
                        pytest.fail("it was rejected")
                assert (caught.value.status, caught.value.body) == (status, body)
            with pytest.raises(Rejected) as caught:
                async with connection.open_websocket("/", origin="https://evil.example"):
                    pytest.fail("that Origin is not allowed")
            assert caught.value.status == 403
            async with connection.open_websocket("/") as websocket:
                await websocket.send("x")
                assert await websocket.receive() == "x"
            await settle()
            check_nothing_is_held(connection)
    async with serving(echo, network), connect(network) as connection:
        with pytest.raises(Rejected) as caught:
            async with connection.open_websocket("/"):
                pytest.fail("there are none")
        assert caught.value.status == 405


async def test_mistakes_are_found_before_anything_is_sent() -> None:
    network = Network()
    async with serving(None, network, websocket_handler=ws_echo), connect(network) as connection:
        await settle()
        before = network.statistics.sent
        wrong: list[dict[str, Any]] = [
            {"subprotocols": ["a b"]},
            {"subprotocols": [""]},
            {"subprotocols": ["a", "a"]},
            {"headers": {"X": "a\r\nb"}},
            {"headers": {"Sec-WebSocket-Key": "x"}},
            {"headers": {":path": "/"}},
            {"headers": {"Host": "x"}},
            {"max_message_size": 0},
            {"close_timeout": -1},
            {"origin": "a\nb"},
        ]
        for options in wrong:
            with pytest.raises(ValueError):
                async with connection.open_websocket("/", **options):
                    pytest.fail("that is no request")
        with pytest.raises(TypeError):
            async with connection.open_websocket("/", unknown=5):  # type: ignore[call-arg]
                pytest.fail("there is no such setting")
        await settle()
        assert network.statistics.sent == before


async def test_servers_that_do_not_take_them() -> None:
    async def handler(peer: RawPeer) -> None:
        await trio.sleep_forever()

    network = Network()
    async with raw_server(network, handler, settings=settings_of(ENABLE_CONNECT_PROTOCOL=None)):
        async with connect(network) as connection:
            with pytest.raises(HandshakeFailed, match="does not take WebSockets"):
                async with connection.open_websocket("/"):
                    pytest.fail("the server has not said that it does")
    async with raw_server(network, handler), connect(network) as connection:
        with pytest.raises(HandshakeFailed, match="no WebSocket within 2 s"):
            async with connection.open_websocket("/", handshake_timeout=2):
                pytest.fail("there is no answer")


@pytest.mark.parametrize(
    ("headers", "match"),
    [
        ([(b"sec-websocket-protocol", b"b")], "not offered"),
        ([(b"sec-websocket-extensions", b"permessage-deflate; unknown=1")], "Extensions"),
        ([(b"sec-websocket-extensions", b"x-other")], "Extensions"),
    ],
)
async def test_answers_that_do_not_fit(headers: list[tuple[bytes, bytes]], match: str) -> None:
    codes: list[int] = []

    async def handler(peer: RawPeer) -> None:
        exchange, head = await peer.next_request()
        assert head[b":protocol"] == b"websocket"
        await exchange.send_head([(b":status", b"200"), *headers])
        with pytest.raises(StreamReset) as caught:
            await exchange.receive_frame()
        codes.append(caught.value.wire_code)

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with pytest.raises(HandshakeFailed, match=match):
            async with connection.open_websocket("/", subprotocols=["a"]):
                pytest.fail("that is no answer")
        await settle()
        assert codes == [Http3Code.REQUEST_CANCELLED]
        assert connection.closed is None
        check_nothing_is_held(connection)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ((), b"200"),
        (((b"sec-websocket-version", b"8"),), b"426"),
        (((b"sec-websocket-version", b""),), b"400"),
        (((b"sec-websocket-extensions", b"=;="),), b"400"),
    ],
)
async def test_requests_of_every_kind(more: Any, status: bytes) -> None:
    network, guests = Network(), Guests()
    async with serving(None, network, websocket_handler=guests), raw_client(network) as peer:
        exchange = await peer.request(ws_fields(peer, *more))
        head = await exchange.receive_head()
        # Which of the refusals it is, is the server's own choice; that it is one is not.
        if status == b"200":
            assert head[b":status"] == b"200"
            assert b"sec-websocket-accept" not in head
        else:
            assert head[b":status"][:1] == b"4"


# ---- messages


@pytest.mark.parametrize("compression", [None, Deflate()])
async def test_messages_of_every_kind_arrive_as_they_were(compression: Deflate | None) -> None:
    messages: list[str | bytes] = [
        "text",
        "",
        b"",
        b"bytes",
        "é" * 50_000,
        bytes(500_000),
        random.Random(1).randbytes(700_000),
    ]
    async with websockets(
        server_settings=Settings(compression=compression), compression=compression
    ) as (client, server, _):
        expected = ["permessage-deflate"] if compression else []
        assert list(client.extensions) == list(server.extensions) == expected
        for a, b in ((client, server), (server, client)):
            for message in messages:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(a.send, message)
                    assert await b.receive() == message


async def test_iterables_are_sent_as_fragments() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for part in (b"x" * 10_000, b"", b"y" * 200_000):
            await trio.sleep(1)
            yield part

    async with websockets() as (client, server, _):
        await client.send(["a", "b", "c"])
        assert await server.receive() == "abc"
        await server.send(slowly())
        assert await client.receive() == b"x" * 10_000 + b"y" * 200_000
        async with client.send_stream(text=True) as stream:
            await stream.send("über")
            await stream.send(" drei Stücke")
        async with server.receive_stream() as incoming:
            assert "".join([part async for part in incoming]) == "über drei Stücke"


async def test_many_messages_over_a_bad_network() -> None:
    network = Network(seed=3, loss=0.05, reorder=0.1, duplicate=0.05, delay=(0.005, 0.02))
    rng = random.Random(5)
    messages = [rng.randbytes(rng.choice([1, 10, 1000, 30_000])) for _ in range(150)]
    async with websockets(network=network, options={"idle_timeout": 300}) as (client, server, _):
        got: list[list[str | bytes]] = [[], []]

        async def send(websocket: WebSocket) -> None:
            for message in messages:
                await websocket.send(message)

        async def receive(websocket: WebSocket, into: list[str | bytes]) -> None:
            while len(into) < len(messages):
                into.append(await websocket.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client)
            nursery.start_soon(send, server)
            nursery.start_soon(receive, client, got[0])
            nursery.start_soon(receive, server, got[1])
        assert got == [messages, messages]


async def test_pings() -> None:
    network = Network(delay=0.05)
    async with websockets(network=network) as (client, server, _):
        for websocket in (client, server):
            assert await websocket.ping() == pytest.approx(0.1, abs=0.02)
            assert websocket.latency == pytest.approx(0.1, abs=0.02)
            await websocket.pong(b"alive")
        await client.send("after")
        assert await server.receive() == "after"


async def test_keep_alive_of_both_layers() -> None:
    """WebSocket's pings keep QUIC's connection too."""
    async with websockets(options={"idle_timeout": 30}) as (client, server, connection):
        await trio.sleep(300)
        await client.send("x")
        assert await server.receive() == "x"
        assert connection.closed is None


async def test_backpressure() -> None:
    """A receiver that takes nothing holds up the sender, within stated bounds, and nobody else."""
    window = 100_000
    options: dict[str, Any] = {
        "stream_window": window,
        "max_stream_window": window,
        "send_buffer": 50_000,
    }
    network, guests = Network(), Guests()
    async with serving(echo, network, websocket_handler=guests, **options):
        async with connect(network, **options) as connection:
            async with connection.open_websocket("/", compression=None) as client:
                server = await guests.next()
                for a, b in ((client, server), (server, client)):
                    sent = 0
                    with trio.move_on_after(10) as scope:
                        while True:
                            await a.send(bytes(10_000))
                            sent += 1
                    assert scope.cancelled_caught
                    held = b.statistics()
                    assert held.queued_messages <= 16
                    # The receiver's queue and look-ahead, the window, the send buffer, and WebSocket's own.
                    assert 160_000 <= sent * 10_000 <= 700_000
                    # Pings are answered all the same, if there is room for them.
                    async with connection.open_session("/") as session:
                        assert await ask(session, bytes(300_000)) == bytes(300_000)
                    for _ in range(sent):
                        assert await b.receive() == bytes(10_000)


async def test_a_message_that_is_too_large_is_1009() -> None:
    async with websockets(
        server_settings=Settings(max_message_size=1000, compression=None), compression=None
    ) as (client, server, connection):
        await client.send(bytes(1001))
        with pytest.raises(ConnectionClosedError) as caught:
            await client.receive()
        assert caught.value.code == 1009
        with pytest.raises(ConnectionClosedError) as caught:
            await server.receive()
        assert caught.value.code == 1009
        assert connection.closed is None


# ---- endings


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "moving"), (3000, "é" * 61), (4999, "x"), (1005, "")]
)
async def test_close_codes_both_ways(code: int, reason: str, by_client: bool) -> None:
    async with websockets() as (client, server, connection):
        a, b = (client, server) if by_client else (server, client)
        await a.close(code, reason)
        assert trio.current_time() < 1
        kind = ConnectionClosedOK if code in (1000, 1001, 1005) else ConnectionClosedError
        with pytest.raises(kind) as caught:
            await b.receive()
        assert (caught.value.code, caught.value.reason) == (code, reason)
        await b.wait_closed()
        for websocket in (a, b):
            assert (websocket.close_code, websocket.close_reason) == (code, reason)
        assert connection.closed is None
        await settle()
        check_nothing_is_held(connection)


@pytest.mark.parametrize("end", ["return", "raise", "cancel"])
async def test_how_the_client_s_block_ends(end: str) -> None:
    codes: list[int] = []

    async def handler(websocket: WebSocket) -> None:
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.receive()
        codes.append(caught.value.code)

    network = Network()
    async with serving(None, network, websocket_handler=handler), connect(network) as connection:
        try:
            async with connection.open_websocket("/") as websocket:
                await websocket.ping()
                if end == "raise":
                    raise ZeroDivisionError
                if end == "cancel":
                    websocket.cancel_scope.cancel()
                    await trio.sleep_forever()
        except ZeroDivisionError:
            assert end == "raise"
        await settle()
        assert len(codes) == 1
        assert (codes[0] == 1000) == (end == "return")
        assert connection.closed is None
        check_nothing_is_held(connection)


@pytest.mark.parametrize("end", ["return", "raise", "cancel", "close"])
async def test_how_the_handler_ends(end: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.send("hello")
        if end == "raise":
            raise ZeroDivisionError
        if end == "cancel":
            websocket.cancel_scope.cancel()
            await trio.sleep_forever()
        if end == "close":
            await websocket.close(3001, "mine")

    network = Network()
    async with serving(None, network, websocket_handler=handler), connect(network) as connection:
        async with connection.open_websocket("/") as websocket:
            assert await websocket.receive() == "hello"
            with pytest.raises(ConnectionClosed) as caught:
                await websocket.receive()
            expected = {"return": 1000, "raise": 1011, "cancel": 1011, "close": 3001}
            assert caught.value.code == expected[end]
        assert connection.closed is None
    assert ("ZeroDivisionError" in caplog.text) == (end == "raise")


async def test_a_reset_of_its_stream_is_its_end_and_no_more() -> None:
    network, guests, visitors = Network(), Guests(), Visitors()
    async with serving(visitors, network, websocket_handler=guests), raw_client(network) as peer:
        await peer.open_session()
        session = await visitors.next()
        for how in ("reset", "stop", "both", "fin"):
            exchange = await peer.request(ws_fields(peer))
            assert (await exchange.receive_head())[b":status"] == b"200"
            websocket = await guests.next()
            if how in ("reset", "both"):
                exchange.stream.reset(Http3Code.REQUEST_CANCELLED)
            if how in ("stop", "both"):
                exchange.stream.stop(Http3Code.REQUEST_CANCELLED)
            if how == "fin":
                await exchange.stream.send_eof()
            with trio.fail_after(10):
                if how == "stop":
                    # What still comes can be received; what is sent is noticed.
                    with pytest.raises(ConnectionClosed):
                        while True:
                            await websocket.send("x")
                            await trio.sleep(0.01)
                else:
                    with pytest.raises(ConnectionClosedError) as caught:
                        await websocket.receive()
                    assert caught.value.code == 1006
                await websocket.wait_closed()
        assert session.closed is None
        assert peer.connection.closed is None
        await settle()
        assert len(session.connection._driver._streams) <= 3


async def test_the_connection_s_loss_is_theirs() -> None:
    network = Network()
    async with websockets(network=network, options={"idle_timeout": 5}) as (client, server, _):
        network.loss = 1
        for websocket in (client, server):
            with pytest.raises(ConnectionClosedError) as caught:
                await websocket.receive()
            assert caught.value.code == 1006
        assert trio.current_time() == pytest.approx(5, abs=0.5)


async def test_leaving_the_connection_s_block_closes_them() -> None:
    network, guests = Network(), Guests()
    async with serving(None, network, websocket_handler=guests):
        with pytest.raises(ZeroDivisionError):
            async with connect(network) as connection:
                async with connection.open_websocket("/"):
                    server = await guests.next()
                    raise ZeroDivisionError
        with trio.fail_after(10):
            await server.wait_closed()
        assert server.close_code == 1011


async def test_a_shutdown_says_1001() -> None:
    """As `serve_websocket` does."""
    network, guests = Network(), Guests()
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        await start_serving(
            nursery,
            None,
            network,
            websocket_handler=guests,
            shutdown=shutdown,
            shutdown_timeout=8,
        )
        async with connect(network) as connection:
            async with connection.open_websocket("/") as client:
                await guests.next()
                shutdown.set()
                with trio.fail_after(9):
                    with pytest.raises(ConnectionClosedOK) as caught:
                        await client.receive()
                assert caught.value.code == 1001
                assert connection.going_away


async def test_a_cancelled_server_closes_them() -> None:
    network, guests = Network(), Guests()
    async with trio.open_nursery() as nursery:
        scope = await start_serving(nursery, None, network, websocket_handler=guests)
        async with connect(network) as connection:
            async with connection.open_websocket("/") as client:
                await guests.next()
                scope.cancel()
                with trio.fail_after(1):
                    with pytest.raises(ConnectionClosed) as caught:
                        await client.receive()
                assert caught.value.code in (1001, 1011)


# ---- beside sessions


async def test_beside_sessions_and_requests() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, websocket_handler=ws_echo, max_sessions=1):
        async with connect(network) as connection:
            # They are no sessions, and do not count as such.
            async with (
                connection.open_websocket("/a") as a,
                session_pair(connection, visitors) as (ours, theirs),
                connection.open_websocket("/b") as b,
            ):
                for websocket in (a, b):
                    await websocket.send(websocket.request.target)
                    assert await websocket.receive() == websocket.request.target
                assert (await connection.request("GET", "/")).status == 404
                await theirs.datagrams.send(b"x")
                assert await ours.datagrams.receive() == b"x"
                assert connection.open_sessions == 1
            await settle()
            check_nothing_is_held(connection)


async def test_fifty_at_once() -> None:
    network = Network()
    async with serving(None, network, websocket_handler=ws_echo), connect(network) as connection:
        got: list[int] = []

        async def talk(number: int) -> None:
            async with connection.open_websocket("/") as websocket:
                for _ in range(5):
                    await websocket.send(b"%d" % number)
                    assert await websocket.receive() == b"%d" % number
                got.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(talk, number)
        assert sorted(got) == list(range(50))
        await settle()
        check_nothing_is_held(connection)


async def test_streams_and_datagrams_of_a_websocket_are_refused() -> None:
    """It is no session: whoever names it so gets nothing."""
    network, guests = Network(), Guests()
    async with serving(echo, network, websocket_handler=guests), raw_client(network) as peer:
        exchange = await peer.request(ws_fields(peer))
        assert (await exchange.receive_head())[b":status"] == b"200"
        websocket = await guests.next()
        stream = await peer.open_session_stream(exchange.stream_id, b"x")
        peer.send_datagram(exchange.stream_id, b"x")
        with trio.fail_after(10):
            with pytest.raises(StreamReset):
                await stream.receive_some()
        await websocket.send("still here")
        assert await exchange.receive_frame() is not None
        assert websocket.close_code is None
