"""The client's side: what it asks for, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.http3_peers import (
    FrameType,
    Http3Code,
    RawPeer,
    Setting,
    close_capsule,
    raw_server,
    settings_of,
)
from tests.quic_pairs import echo as quic_echo
from tests.quic_pairs import serving as serving_quic
from tests.webtransport_pairs import (
    HOST,
    PORT,
    URL,
    Visitors,
    ask,
    check_nothing_is_held,
    connect,
    echo,
    serving,
    session_pair,
    settle,
    stay,
    visit,
)
from trio_wt import (
    HandshakeFailed,
    Priority,
    Rejected,
    Request,
    __version__,
)
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network

RawHandler = Callable[[RawPeer], Awaitable[object]]


async def no_session(network: Network, match: str, **options: object) -> HandshakeFailed:
    """Why there was none."""
    with pytest.raises(HandshakeFailed, match=match) as caught:
        async with visit(network, **options):
            pytest.fail("there is no session")
    return caught.value


# ---- what is asked for


async def test_what_a_request_says() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network, origins="any"):
        async with visit(
            network,
            "/caf\u00e9/a%2Fb?q=\u2603&r",
            headers={"X-One": "1", "Cookie": "a=b"},
            origin="https://a.example",
            subprotocols=["chat-2", 'we"ird \\ one'],
            priority=Priority(1, incremental=True),
        ) as session:
            theirs = (await visitors.next()).request
            assert theirs.target == "/caf%C3%A9/a%2Fb?q=%E2%98%83&r"
            assert theirs.path == "/caf\u00e9/a/b"
            assert theirs.query == "q=%E2%98%83&r"
            assert theirs.headers["x-one"] == "1"
            assert theirs.headers["cookie"] == "a=b"
            assert theirs.origin == "https://a.example"
            assert theirs.headers["priority"] == "u=1, i"
            assert theirs.headers["user-agent"] == f"trio-wt/{__version__}"
            assert list(theirs.subprotocols) == ["chat-2", 'we"ird \\ one']
            assert theirs.host == f"{HOST}:{PORT}"
            assert session.request.target == theirs.target
            assert session.request.headers["x-one"] == "1"


async def test_a_user_agent_may_be_given() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        async with visit(network, headers=[("User-Agent", "mine/1")]):
            request = (await visitors.next()).request
            assert request.headers.get_all("user-agent") == ["mine/1"]


async def test_a_target_may_be_a_url_of_the_server() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        for target in ("/a?b", f"{URL}/a?b"):
            async with session_pair(connection, visitors, target) as (_, theirs):
                assert theirs.request.target == "/a?b"


HEADS: dict[str, tuple[dict[str, int | None], bytes, str]] = {
    "all": ({}, b"webtransport", "13-14"),
    "newest": (
        {
            "WT_ENABLED_DRAFT_02": None,
            "WT_MAX_SESSIONS_DRAFT_07": None,
            "WT_MAX_SESSIONS_DRAFT_13": None,
        },
        b"webtransport-h3",
        "15-16",
    ),
    "13": (
        {"WT_ENABLED": None, "WT_ENABLED_DRAFT_02": None, "WT_MAX_SESSIONS_DRAFT_07": None},
        b"webtransport",
        "13-14",
    ),
    "07": (
        {"WT_ENABLED": None, "WT_ENABLED_DRAFT_02": None, "WT_MAX_SESSIONS_DRAFT_13": None},
        b"webtransport",
        "07-12",
    ),
    "02": (
        {
            "WT_ENABLED": None,
            "WT_MAX_SESSIONS_DRAFT_07": None,
            "WT_MAX_SESSIONS_DRAFT_13": None,
            "ENABLE_CONNECT_PROTOCOL": None,
        },
        b"webtransport",
        "02-06",
    ),
}


@pytest.mark.parametrize("name", HEADS)
async def test_each_server_is_spoken_to_as_it_speaks(name: str) -> None:
    changes, token, drafts = HEADS[name]
    heads: list[dict[bytes, bytes]] = []

    async def handler(peer: RawPeer) -> None:
        exchange, head = await peer.next_request()
        heads.append(head)
        await exchange.send_head([(b":status", b"200")])
        assert await exchange.receive_capsule() is not None

    network = Network()
    async with raw_server(network, handler, settings=settings_of(**changes)):
        async with visit(network) as session:
            assert session.statistics().dialect == drafts
    assert heads == [
        {
            b":method": b"CONNECT",
            b":scheme": b"https",
            b":authority": f"{HOST}:{PORT}".encode(),
            b":path": b"/",
            b":protocol": token,
            b"user-agent": f"trio-wt/{__version__}".encode(),
        }
    ]


async def test_the_client_says_what_it_can_before_it_asks() -> None:
    """Nor does it ask before the server has said what it can."""
    said: list[bytes] = []
    asked: list[float] = []

    async def handler(peer: RawPeer) -> None:
        await trio.sleep(2)
        said.append(peer.control_heard)
        await peer.open_control(settings_of())
        exchange = await peer.accept_session()
        asked.append(trio.current_time())
        await exchange.receive_capsule()

    network = Network()
    async with raw_server(network, handler, settings=None), visit(network):
        pass
    assert asked == [pytest.approx(2, abs=0.1)]
    assert said[0][:1] == bytes([FrameType.SETTINGS])
    for setting in (Setting.WT_ENABLED, Setting.H3_DATAGRAM, Setting.ENABLE_CONNECT_PROTOCOL):
        assert encode(setting) + b"\x01" in said[0]


# ---- answers


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (404, {}, b""),
        (403, {"X-Why": "you"}, b"not you\n"),
        (500, {}, b"\x00\xff" * 100),
        (301, {"Location": f"{URL}/elsewhere"}, b""),
        (307, {"Location": "/elsewhere"}, b"go away"),
    ],
)
async def test_rejections_are_reported_and_redirects_not_followed(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    paths: list[str] = []

    def on_request(request: Request) -> None:
        paths.append(request.path)
        if request.path != "/yes":
            request.reject(status, headers, body)

    network = Network()
    async with serving(stay, network, on_request=on_request), connect(network) as connection:
        with pytest.raises(Rejected, match=f"status {status}") as caught:
            async with connection.open_session("/no"):
                pytest.fail("it was rejected")
        assert caught.value.status == status
        assert caught.value.body == body
        for name, value in headers.items():
            assert caught.value.headers[name] == value
        assert isinstance(caught.value, HandshakeFailed)
        await settle()
        assert paths == ["/no"]
        check_nothing_is_held(connection)
        async with connection.open_session("/yes"):
            pass
    assert paths == ["/no", "/yes"]


async def test_a_long_rejection_is_cut() -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        await exchange.send_head([(b":status", b"503")])
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await exchange.send_data(bytes(1000))

    network = Network()
    async with raw_server(network, handler):
        failure = await no_session(network, "503")
        assert isinstance(failure, Rejected)
        assert failure.body == bytes(65536)


async def test_a_rejection_whose_body_does_not_end_is_bounded_in_time() -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        await exchange.send_head([(b":status", b"503")])
        await exchange.send_data(b"because")

    network = Network()
    async with raw_server(network, handler):
        await no_session(network, "503|no session within", handshake_timeout=3)
        assert trio.current_time() < 5


async def test_interim_responses_are_no_answer() -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        for status in (b"103", b"100", b"199"):
            await exchange.send_head([(b":status", status), (b"link", b"x")])
            await settle()
        await exchange.send_head([(b":status", b"200"), (b"x-mine", b"y")])
        await exchange.receive_capsule()

    network = Network()
    async with raw_server(network, handler), visit(network) as session:
        assert session.response_headers["x-mine"] == "y"
        assert "link" not in session.response_headers


@pytest.mark.parametrize("status", [b"201", b"204", b"299"])
async def test_any_status_of_success_is_one(status: bytes) -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        await exchange.send_head([(b":status", status)])
        await exchange.send_data(close_capsule(3))

    network = Network()
    async with raw_server(network, handler), visit(network) as session:
        assert (await session.wait_closed()).code == 3


BAD_HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "no status": [(b"x", b"y")],
    "two": [(b":status", b"200"), (b":status", b"200")],
    "no number": [(b":status", b"abc")],
    "too short": [(b":status", b"20")],
    "101": [(b":status", b"101")],
    "upper case": [(b":status", b"200"), (b"X-Y", b"z")],
    "of HTTP/1.1": [(b":status", b"200"), (b"connection", b"close")],
    "a request's": [(b":status", b"200"), (b":path", b"/")],
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_answers_that_are_not_valid(name: str) -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        await exchange.send_head(BAD_HEADS[name])

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with pytest.raises(HandshakeFailed):
            async with connection.open_session():
                pytest.fail("that is no answer")
        assert trio.current_time() < 5
        # It costs the stream only (RFC 9114 section 4.1.2).
        await settle()
        assert connection.closed is None
        check_nothing_is_held(connection)


async def reset(peer: RawPeer) -> None:
    exchange, _ = await peer.next_request()
    exchange.stream.reset(Http3Code.REQUEST_REJECTED)
    exchange.stream.stop(Http3Code.REQUEST_REJECTED)


async def end_at_once(peer: RawPeer) -> None:
    exchange, _ = await peer.next_request()
    await exchange.stream.send_eof()


async def send_data_first(peer: RawPeer) -> None:
    exchange, _ = await peer.next_request()
    await exchange.send_data(b"no head")


async def send_nonsense(peer: RawPeer) -> None:
    exchange, _ = await peer.next_request()
    await exchange.send_frame(FrameType.SETTINGS, b"")


async def send_too_many_fields(peer: RawPeer) -> None:
    exchange, _ = await peer.next_request()
    await exchange.send_head([(b":status", b"200"), *[(b"x", b"y")] * 200])


async def close_connection(peer: RawPeer) -> None:
    await peer.next_request()
    peer.connection.close_now(Http3Code.INTERNAL_ERROR, "broken")


async def go_away(peer: RawPeer) -> None:
    await peer.send_control(FrameType.GOAWAY, b"\x00")
    await trio.sleep_forever()


async def say_nothing(peer: RawPeer) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "match"),
    [
        (reset, "H3_REQUEST_REJECTED"),
        (end_at_once, "gave no answer"),
        (send_data_first, "H3_FRAME_UNEXPECTED"),
        (send_nonsense, "H3_FRAME_UNEXPECTED"),
        (send_too_many_fields, "gave no answer"),
        (close_connection, "broken"),
        (go_away, "GOAWAY"),
        (say_nothing, "no session within 3 s"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_there_is_no_answer(handler: RawHandler, match: str) -> None:
    network = Network()
    async with raw_server(network, handler):
        async with connect(network) as connection:
            await settle()
            with pytest.raises(HandshakeFailed, match=match):
                async with connection.open_session(handshake_timeout=3):
                    pytest.fail("there is no session")
        assert trio.current_time() < 5
        assert connection.closed is not None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "does not speak WebTransport"),
        (settings_of(ENABLE_CONNECT_PROTOCOL=0), "does not speak WebTransport"),
        (
            settings_of(
                WT_ENABLED=0,
                WT_ENABLED_DRAFT_02=0,
                WT_MAX_SESSIONS_DRAFT_07=0,
                WT_MAX_SESSIONS_DRAFT_13=0,
            ),
            "does not speak WebTransport",
        ),
        (None, "no session within 3 s"),
    ],
    ids=["nothing", "no CONNECT", "zeros", "silence"],
)
async def test_servers_that_do_not_speak_it(settings: dict[int, int] | None, match: str) -> None:
    network = Network()
    async with raw_server(network, say_nothing, settings=settings):
        failure = await no_session(network, match, handshake_timeout=3)
        assert not isinstance(failure, Rejected)


async def test_a_server_of_another_protocol() -> None:
    network = Network()
    async with serving_quic(quic_echo, network, alpn=["other"]):
        await no_session(network, "ALPN")


@pytest.mark.parametrize("seed", range(5))
async def test_a_session_over_a_network_that_loses_a_third(seed: int) -> None:
    network = Network(seed=seed, loss=0.3, delay=0.02)
    async with serving(echo, network, idle_timeout=100):
        async with visit(network, handshake_timeout=60, idle_timeout=100) as session:
            assert await ask(session, b"x") == b"x"


async def test_nobody_answers() -> None:
    network = Network()
    await no_session(network, "no answer within 2 s", handshake_timeout=2)
    assert trio.current_time() == pytest.approx(2, abs=0.1)


async def test_a_server_that_takes_no_datagrams_of_quic_or_http() -> None:
    """Sessions work without them, as far as there is such a server."""
    network = Network()

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        await exchange.receive_capsule()

    async with raw_server(network, handler, datagrams=False), visit(network) as session:
        assert session.datagrams.max_size == 0


# ---- subprotocols


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        (b'"b"', "b"),
        (b'"a";param=1', "a"),
        (None, None),
        (b"b", None),
        (b'"c"', None),
        (b"1", None),
        (b'("a" "b")', None),
        (b'"a", "b"', None),
        (b'"', None),
        (b"\xff", None),
    ],
)
async def test_what_a_server_may_choose(answer: bytes | None, chosen: str | None) -> None:
    async def handler(peer: RawPeer) -> None:
        exchange, head = await peer.next_request()
        assert head[b"wt-available-protocols"] == b'"a", "b"'
        extra = [] if answer is None else [(b"wt-protocol", answer)]
        await exchange.send_head([(b":status", b"200"), *extra])
        await exchange.receive_capsule()

    network = Network()
    async with raw_server(network, handler), visit(network, subprotocols=["a", "b"]) as session:
        assert session.subprotocol == chosen
