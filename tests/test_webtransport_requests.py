"""Plain HTTP/3 beside sessions: what a server answers, what a client makes of that, and GOAWAY."""

from __future__ import annotations

import contextlib
import re
from email.utils import parsedate_to_datetime

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    FrameType,
    Http3Code,
    RawPeer,
    ask_raw,
    raw_client,
    raw_server,
    settings_of,
)
from tests.webtransport_pairs import (
    HOST,
    PORT,
    Visitors,
    check_nothing_is_held,
    connect,
    echo,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
)
from trio_wt import HandshakeFailed, Request, Response, StreamReset
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network

PAGE = b"<h1>hello</h1>"


def on_request(request: Request) -> None:
    if request.path == "/health":
        request.respond(200, body="ok")
    elif request.path == "/page":
        request.respond(200, {"Content-Type": "text/html", "X-Method": request.method}, PAGE)
    elif request.path == "/empty":
        request.respond(204)
    elif request.path == "/big":
        request.respond(200, body=bytes(200_000))
    elif request.path == "/unchanged":
        request.respond(304, {"ETag": '"x"'}, b"ignored")


# ---- answers


async def test_a_server_answers_what_its_application_says() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        response = await connection.request("GET", "/health")
        assert isinstance(response, Response)
        assert (response.status, response.body) == (200, b"ok")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["content-length"] == "2"
        assert parsedate_to_datetime(response.headers["date"])
        response = await connection.request("POST", f"https://{HOST}:{PORT}/page?x=1")
        assert (response.status, response.body) == (200, PAGE)
        assert response.headers["content-type"] == "text/html"
        assert response.headers["x-method"] == "POST"
        await settle()
        check_nothing_is_held(connection)


async def test_head_and_statuses_without_a_body() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        response = await connection.request("HEAD", "/page")
        assert (response.status, response.body) == (200, b"")
        assert response.headers["content-length"] == str(len(PAGE))
        response = await connection.request("GET", "/empty")
        assert (response.status, response.body) == (204, b"")
        # RFC 9110 section 8.6: "MUST NOT send a Content-Length header field in any response with a status code of ... 204".
        assert "content-length" not in response.headers
        response = await connection.request("GET", "/unchanged")
        assert (response.status, response.body) == (304, b"")
        assert response.headers["etag"] == '"x"'
        await settle()
        check_nothing_is_held(connection)


async def test_a_body_is_cut_at_64_kib() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        response = await connection.request("GET", "/big")
        assert response.headers["content-length"] == "200000"
        assert response.body == bytes(65536)
        await settle()
        check_nothing_is_held(connection)


async def test_a_raw_client_gets_all_of_it() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), raw_client(network) as peer:
        head, body = await ask_raw(peer, peer.plain_fields(path=b"/big"))
        assert head[b":status"] == b"200"
        assert body == bytes(200_000)
        assert all(name == name.lower() for name in head)


async def test_what_is_not_there() -> None:
    network = Network()
    async with serving(stay, network), connect(network) as connection:
        response = await connection.request("GET", "/nowhere")
        assert response.status == 404
        assert response.body == b"there is nothing here\n"


async def test_what_a_request_looks_like() -> None:
    seen: list[Request] = []

    def note(request: Request) -> None:
        seen.append(request)
        request.respond(200)

    network = Network()
    async with serving(stay, network, on_request=note), connect(network) as connection:
        await connection.request("PUT", "/a%20b?c=d", headers={"X-One": "1"})
    (request,) = seen
    assert (request.method, request.target, request.path) == ("PUT", "/a%20b?c=d", "/a b")
    assert (request.scheme, request.host) == ("https", f"{HOST}:{PORT}")
    assert request.http_version == "3"
    assert request.headers["x-one"] == "1"
    assert request.headers["user-agent"].startswith("trio-wt/")
    assert not request.asks_for_session
    assert request.peer is not None
    with pytest.raises(RuntimeError):
        request.accept()


async def test_a_plain_request_cannot_be_accepted(caplog: pytest.LogCaptureFixture) -> None:
    network = Network()
    async with serving(stay, network, on_request=lambda request: request.accept()):
        async with connect(network) as connection:
            assert (await connection.request("GET", "/")).status == 500
    assert "only a request for a session can be accepted" in caplog.text


async def test_applications_may_take_their_time_and_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def slow(request: Request) -> None:
        await trio.sleep(float(request.query))
        if request.path == "/fail":
            raise ZeroDivisionError
        request.respond(200, body=request.query)

    network = Network()
    answers: list[tuple[int, bytes, float]] = []
    async with serving(stay, network, on_request=slow), connect(network) as connection:

        async def get(path: str) -> None:
            response = await connection.request("GET", path)
            answers.append((response.status, response.body, round(trio.current_time())))

        async with trio.open_nursery() as nursery:
            for path in ("/x?3", "/fail?2", "/x?1"):
                nursery.start_soon(get, path)
    assert answers == [(200, b"1", 1), (500, b"internal server error\n", 2), (200, b"3", 3)]
    assert "ZeroDivisionError" in caplog.text


async def test_origins_do_not_matter_to_plain_requests() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        headers = {"Origin": "https://evil.example"}
        assert (await connection.request("GET", "/health", headers=headers)).status == 200


async def test_many_requests_at_once_beside_sessions() -> None:
    network, visitors = Network(seed=2, loss=0.02), Visitors()
    async with serving(visitors, network, on_request=on_request), connect(network) as connection:
        async with session_pair(connection, visitors) as pair:
            statuses: list[int] = []

            async def get() -> None:
                statuses.append((await connection.request("GET", "/page")).status)

            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(get)
            assert statuses == [200] * 300
            async with stream_pair(*pair):
                pass
            server = pair[1].connection
        await settle()
        for side in (connection, server):
            check_nothing_is_held(side)
            assert side.closed is None


async def test_nothing_is_kept_of_a_thousand_requests() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, on_request=on_request), connect(network) as connection:
        async with session_pair(connection, visitors) as (_, theirs):
            for _ in range(10):
                async with trio.open_nursery() as nursery:
                    for number in range(100):
                        method = "HEAD" if number % 2 else "GET"
                        nursery.start_soon(connection.request, method, "/health")
            server = theirs.connection
        await settle()
        for side in (connection, server):
            check_nothing_is_held(side)
            for table in vars(side._driver.engine).values():
                if isinstance(table, dict | set | list):
                    assert len(table) < 50


# ---- bodies of requests


@pytest.mark.parametrize("ended", [True, False])
async def test_bodies_of_requests_are_not_wanted(ended: bool) -> None:
    """The answer comes at once, and the rest of the request is stopped without an error (RFC 9114 section 4.1)."""
    network = Network()
    async with serving(stay, network, on_request=on_request), raw_client(network) as peer:
        exchange = await peer.request(peer.plain_fields(b"POST", b"/page"))
        await exchange.send_data(b"some of it", eof=ended)
        assert (await exchange.receive_head())[b":status"] == b"200"
        assert await exchange.receive_body() == PAGE
        if not ended:
            with pytest.raises(StreamReset) as caught:
                while True:
                    await exchange.send_data(bytes(1000))
                    await trio.sleep(0.01)
            assert caught.value.wire_code == Http3Code.NO_ERROR
        assert peer.connection.closed is None


async def test_bodies_that_nobody_reads_cost_no_credit() -> None:
    window = 30_000
    limits = {"connection_window": window, "max_connection_window": window}
    network = Network()
    async with (
        serving(stay, network, on_request=on_request, **limits),
        raw_client(network) as peer,
    ):
        for number in range(20):
            exchange = await peer.request(peer.plain_fields(b"POST", b"/health"))
            with contextlib.suppress(StreamReset):
                await exchange.send_data(bytes(8000), eof=number % 2 == 0)
            with trio.fail_after(5):
                assert (await exchange.receive_head())[b":status"] == b"200"
                assert await exchange.receive_body() == b"ok"


async def test_trailers_and_frames_that_nobody_knows() -> None:
    network = Network()
    async with serving(stay, network, on_request=on_request), raw_client(network) as peer:
        exchange = await peer.request(peer.plain_fields(b"POST", b"/health"))
        await exchange.send_frame(0x21, b"x" * 1000)
        await exchange.send_data(b"body")
        await exchange.send_frame(0x1F * 9 + 0x21, b"")
        await exchange.send_head([(b"x-checksum", b"1")], eof=True)
        assert (await exchange.receive_head())[b":status"] == b"200"


# ---- what a client puts up with


async def test_pushes_and_requests_from_a_server() -> None:
    async def push(peer: RawPeer) -> None:
        stream = await peer.open_send_stream()
        await stream.send_all(b"\x01\x00")

    async def ask(peer: RawPeer) -> None:
        await peer.request(peer.plain_fields())

    async def promise(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        await exchange.send_frame(FrameType.PUSH_PROMISE, b"\x00\x00\x00")

    for handler, code in (
        (push, Http3Code.ID_ERROR),
        (ask, Http3Code.STREAM_CREATION_ERROR),
        (promise, Http3Code.ID_ERROR),
    ):
        network = Network()
        async with raw_server(network, handler), connect(network) as connection:
            with contextlib.suppress(HandshakeFailed):
                with trio.move_on_after(1):
                    await connection.request("GET", "/")
            end = await connection.wait_closed()
            assert end.code == code
            assert not end.remote


async def test_answers_of_every_shape() -> None:
    async def handler(peer: RawPeer) -> None:
        while True:
            exchange, head = await peer.next_request()
            path = head[b":path"]
            if path == b"/pieces":
                await exchange.send_head([(b":status", b"200"), (b"content-length", b"6")])
                for piece in (b"one", b"", b"two"):
                    await exchange.send_data(piece)
                    await settle()
                await exchange.send_head([(b"x-trailer", b"y")], eof=True)
            elif path == b"/short":
                await exchange.send_head([(b":status", b"200"), (b"content-length", b"6")])
                await exchange.send_data(b"one", eof=True)
            elif path == b"/reset":
                await exchange.send_head([(b":status", b"200")])
                await exchange.send_data(b"one")
                await settle()
                exchange.stream.reset(Http3Code.INTERNAL_ERROR)
            elif path == b"/none":
                exchange.stream.reset(Http3Code.INTERNAL_ERROR)
            else:
                await exchange.send_head(
                    [(b":status", b"200"), (b"content-length", b"6")], eof=True
                )

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        response = await connection.request("GET", "/pieces")
        assert response.body == b"onetwo"
        assert "x-trailer" not in response.headers
        response = await connection.request("HEAD", "/head")
        assert (response.status, response.body) == (200, b"")
        with pytest.raises(HandshakeFailed):
            await connection.request("GET", "/none")
        for path in ("/short", "/reset"):
            # Either it says that something is missing, or gives what there was; it does not hang.
            with trio.fail_after(1), contextlib.suppress(HandshakeFailed):
                assert b"one".startswith((await connection.request("GET", path)).body)
        assert connection.closed is None
        await settle()
        check_nothing_is_held(connection)


@pytest.mark.parametrize("method", ["", "CONNECT", "connect", "GET /", "GET\r\n", "G\u00c4T", "1"])
async def test_methods_that_are_none(method: str) -> None:
    network = Network()
    async with serving(stay, network), connect(network) as connection:
        await settle()
        before = network.statistics.sent
        with pytest.raises(ValueError):
            await connection.request(method, "/")
        for headers in ([("X", "a\r\nb")], [(":path", "/")], [("Host", "x")]):
            with pytest.raises(ValueError):
                await connection.request("GET", "/", headers=headers)
        await settle()
        assert network.statistics.sent == before


async def test_requests_wait_while_there_are_too_many() -> None:
    async def slow(request: Request) -> None:
        await trio.sleep(1)
        request.respond(200)

    network = Network()
    limits = {"max_streams": 1, "max_sessions": 1}
    async with serving(stay, network, on_request=slow, **limits), connect(network) as connection:
        times: list[float] = []

        async def get() -> None:
            await connection.request("GET", "/")
            times.append(round(trio.current_time()))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(get)
    # Two sessions' streams, and one for a request.
    assert times == [1, 1, 1, 2, 2, 2]


async def test_a_cancelled_request_is_taken_back() -> None:
    codes: list[int] = []

    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        with pytest.raises(StreamReset) as caught:
            while True:
                await exchange.send_frame(0x21, b"x")
                await trio.sleep(0.01)
        codes.append(caught.value.wire_code)

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with trio.move_on_after(1):
            await connection.request("GET", "/")
        await settle()
        assert codes == [Http3Code.REQUEST_CANCELLED]
        check_nothing_is_held(connection)


# ---- going away


async def test_a_goaway_of_the_client_s_is_heard_and_nothing_else() -> None:
    """It says that no pushes are wanted, which there are none of (RFC 9114 section 5.2)."""
    network = Network()
    async with serving(echo, network, on_request=on_request), raw_client(network) as peer:
        await peer.send_control(FrameType.GOAWAY, b"\x00")
        assert (await ask_raw(peer, peer.plain_fields(path=b"/health")))[0][b":status"] == b"200"
        await peer.open_session()
        await peer.send_control(FrameType.GOAWAY, b"\x00")
        await settle()
        assert peer.connection.closed is None


@pytest.mark.parametrize(
    ("numbers", "code"),
    [([8, 4, 4, 0], None), ([4, 8], Http3Code.ID_ERROR), ([1], Http3Code.ID_ERROR)],
)
async def test_goaways_of_a_server(numbers: list[int], code: int | None) -> None:
    async def handler(peer: RawPeer) -> None:
        for number in numbers:
            await peer.send_control(FrameType.GOAWAY, encode(number))
        await trio.sleep_forever()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        await settle()
        if code is None:
            assert connection.going_away
            with pytest.raises(HandshakeFailed, match="GOAWAY"):
                await connection.request("GET", "/")
            assert connection.closed is None
        else:
            assert connection.closed is not None
            assert connection.closed.code == code


async def test_requests_that_a_goaway_leaves_out_are_not_waited_for() -> None:
    """RFC 9114 section 5.2: those from the number on were not, and will not be, processed."""

    async def handler(peer: RawPeer) -> None:
        first, _ = await peer.next_request()
        await peer.next_request()
        await peer.send_control(FrameType.GOAWAY, b"\x04")
        await trio.sleep(1)
        await first.send_head([(b":status", b"200")], eof=True)
        await trio.sleep_forever()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        outcomes: list[tuple[str, float]] = []

        async def get(path: str) -> None:
            try:
                with trio.fail_after(20):
                    outcomes.append(
                        (str((await connection.request("GET", path)).status), trio.current_time())
                    )
            except (HandshakeFailed, trio.TooSlowError) as exc:
                outcomes.append((type(exc).__name__, trio.current_time()))

        async with trio.open_nursery() as nursery:
            for path in ("/first", "/second"):
                nursery.start_soon(get, path)
                await settle()
        assert [outcome for outcome, _ in outcomes] == ["HandshakeFailed", "200"]
        assert outcomes[0][1] < 1


async def test_the_date_is_one() -> None:
    network = Network()
    async with (
        serving(stay, network, on_request=on_request),
        raw_client(network, settings=settings_of(ENABLE_CONNECT_PROTOCOL=None)) as peer,
    ):
        head, body = await ask_raw(peer, peer.plain_fields(path=b"/health"))
        assert body == b"ok"
        date = rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
        assert re.fullmatch(date, head[b"date"])
