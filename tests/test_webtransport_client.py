"""The client's side: what it asks for, what it makes of the answer, trust, resumption, and moving."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import make
from tests.http3_peers import (
    CapsuleType,
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
    certificate,
    check_nothing_is_held,
    connect,
    echo,
    one_way_pair,
    serving,
    session_pair,
    settle,
    stay,
    stream_pair,
    visit,
)
from trio_wt import (
    Certificate,
    CertificateRejected,
    ClientTLS,
    ConnectionClosedOK,
    ConnectionLost,
    HandshakeFailed,
    Priority,
    Rejected,
    Request,
    ServerTLS,
    SessionStore,
    WebTransportConnection,
    WebTransportSession,
    WebTransportSettings,
    __version__,
    open_quic_endpoint,
    open_webtransport,
    open_webtransport_connection,
    serve_webtransport,
)
from trio_wt._protocol.quic import Engine
from trio_wt._protocol.varint import encode
from trio_wt.testing import Network

RawHandler = Callable[[RawPeer], Awaitable[object]]


async def no_session(network: Network, match: str, **options: object) -> HandshakeFailed:
    """Why there was none."""
    with pytest.raises(HandshakeFailed, match=match) as caught:
        async with visit(network, **options):
            pytest.fail("there is no session")
    return caught.value


# ---- mistakes are found before anything is sent


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
        assert type(connection.closed) is not None


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


# ---- trust


async def test_certificate_hashes() -> None:
    network = Network()
    async with serving(echo, network):
        right, wrong = certificate().sha256, bytes(32)
        for hashes in ([right], [wrong, right]):
            tls = ClientTLS(server_certificate_hashes=hashes)
            async with visit(network, tls=tls) as session:
                assert await ask(session, b"x") == b"x"
        with pytest.raises(CertificateRejected):
            async with visit(network, tls=ClientTLS(server_certificate_hashes=[wrong])):
                pytest.fail("the hash is wrong")
        with pytest.raises(CertificateRejected):
            async with visit(network, tls=ClientTLS()):
                pytest.fail("nobody knows it")
        assert trio.current_time() < 1


async def test_names_and_authorities() -> None:
    made = make(("other.test",))
    tls = ServerTLS(Certificate.from_pem(made.pem, made.key_pem))
    network = Network()
    async with serving(echo, network, tls=tls):
        with pytest.raises(CertificateRejected, match=r"server\.test"):
            async with visit(network, tls=ClientTLS(ca=made.pem)):
                pytest.fail("the name is wrong")
        named = ClientTLS(ca=made.pem, server_name="other.test")
        async with visit(network, tls=named) as session:
            assert await ask(session, b"x") == b"x"


async def test_a_client_s_certificate_is_known_to_handlers() -> None:
    made = make(("client",), purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    network, visitors = Network(), Visitors()
    server = ServerTLS(certificate(), client_certificates="require", client_ca=made.pem)
    async with serving(visitors, network, tls=server):
        tls = ClientTLS(
            server_certificate_hashes=[certificate().sha256],
            certificate=Certificate.from_pem(made.pem, made.key_pem),
        )
        async with visit(network, tls=tls):
            session = await visitors.next()
            assert session.connection.peer_certificate is not None
            assert session.request.tls_peer_certificate == session.connection.peer_certificate


# ---- resumption, and no early data


class Tickets(SessionStore):
    """Tells what the tickets allow."""

    def __init__(self) -> None:
        super().__init__()
        self.early_data: list[int | None] = []

    def put(self, key: Any, ticket: Any, **kwargs: Any) -> None:
        self.early_data.append(ticket.max_early_data_size)
        super().put(key, ticket, **kwargs)


def was_resumed(connection: WebTransportConnection) -> bool:
    handshake = connection._driver.handshake
    assert handshake is not None
    assert not handshake.early_data_accepted
    return handshake.session_resumed


async def test_tls_sessions_are_resumed() -> None:
    network, store = Network(), SessionStore()
    async with serving(echo, network):
        resumed = []
        for _ in range(3):
            async with visit(network, session_store=store) as session:
                assert await ask(session, b"x") == b"x"
                resumed.append(was_resumed(session.connection))
        assert resumed == [False, True, True]
        assert session.connection.peer_certificate is None
        async with visit(network) as session:
            assert not was_resumed(session.connection)


async def test_a_request_is_never_sent_as_early_data() -> None:
    """Not even to a server that would take it, and whose tickets say so."""
    kinds: list[int] = []

    def watch(data: bytes, source: object, to: object) -> bool:
        if to == (HOST, PORT):
            kinds.append(data[0] >> 4 & 3 if data[0] & 0x80 else -1)
        return True

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        assert peer.connection.handshake_complete
        assert not peer.connection.early_data_accepted
        await exchange.receive_capsule()

    network, store = Network(delay=0.1), Tickets()
    async with raw_server(network, handler, early_data=True):
        async with visit(network, session_store=store) as session:
            await session.connection.ping()
        assert store.early_data
        assert all(store.early_data)
        await settle()
        network.drop = watch
        async with visit(network, session_store=store) as session:
            assert was_resumed(session.connection)
    assert 0 in kinds
    assert 1 not in kinds


async def test_a_session_takes_two_round_trips() -> None:
    """One for the handshake, and one for the request; the server's SETTINGS come with its part of the handshake."""
    network, store = Network(delay=0.1), SessionStore()
    async with serving(stay, network):
        for _ in range(2):
            started = trio.current_time()
            async with visit(network, session_store=store) as session:
                assert trio.current_time() - started == pytest.approx(0.4, abs=0.01)
                await session.connection.ping()


async def test_a_server_never_says_that_it_takes_early_data() -> None:
    network, store = Network(), Tickets()
    async with serving(stay, network), visit(network, session_store=store) as session:
        await session.connection.ping()
    assert store.early_data
    assert not any(store.early_data)


# ---- moving, and sharing a socket


async def test_a_connection_moves_with_its_sessions() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with (
            session_pair(connection, visitors) as one,
            session_pair(connection, visitors) as two,
            stream_pair(*one) as (a, b),
        ):
            secret = one[0].export_keying_material(b"x", b"", 16)
            for _ in range(3):
                socket = network.socket()
                await connection.migrate(socket=socket)
                assert connection.local_address == socket.local_address
                await a.send_all(b"x")
                assert await b.receive_some() == b"x"
                await settle()
                for session in (one[1], two[1]):
                    assert session.peer_address == socket.local_address
                await b.send_all(b"y")
                assert await a.receive_some() == b"y"
                await two[1].datagrams.send(b"z")
                assert await two[0].datagrams.receive() == b"z"
                async with stream_pair(two[1], two[0]), one_way_pair(*two):
                    pass
            assert one[1].export_keying_material(b"x", b"", 16) == secret


async def test_a_connection_moves_in_the_middle_of_a_transfer() -> None:
    network = Network(delay=0.01, rate=10**6)
    content = bytes(i % 251 for i in range(500_000))
    async with serving(echo, network), visit(network) as session, trio.open_nursery() as nursery:
        answers: list[bytes] = []

        @nursery.start_soon
        async def transfer() -> None:
            answers.append(await ask(session, content))

        for _ in range(2):
            await trio.sleep(0.2)
            await session.connection.migrate(socket=network.socket())
        await trio.sleep(10)
        assert answers == [content]


async def test_a_new_address_given_by_a_nat_is_followed() -> None:
    network, visitors = Network(), Visitors()
    socket = network.socket()
    async with serving(visitors, network), visit(network, socket=socket) as client:
        server = await visitors.next()
        async with stream_pair(client, server) as (a, b):
            socket.rebind()
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
            await b.send_all(b"y")
            assert await a.receive_some() == b"y"
            await settle()
            assert server.peer_address == socket.local_address


async def test_connections_share_a_socket() -> None:
    network, visitors = Network(), Visitors()
    async with (
        serving(visitors, network),
        open_quic_endpoint(socket=network.socket()) as endpoint,
        visit(network, endpoint=endpoint) as one,
        visit(network, endpoint=endpoint) as two,
    ):
        their_one, their_two = await visitors.next(), await visitors.next()
        assert their_one.peer_address == their_two.peer_address
        assert one.session_id == two.session_id == 0
        async with stream_pair(one, their_one), stream_pair(two, their_two):
            one.close_now(1)
            await settle()
        async with stream_pair(two, their_two):
            pass


# ---- the life of connections


async def test_several_sessions_on_one_connection() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        with ExitStack():
            async with (
                session_pair(connection, visitors, "/one") as one,
                session_pair(connection, visitors, "/two") as two,
                session_pair(connection, visitors, "/three") as three,
            ):
                assert [ours.session_id for ours, _ in (one, two, three)] == [0, 4, 8]
                assert connection.open_sessions == one[1].connection.open_sessions == 3
                for ours, theirs in (one, two, three):
                    assert ours.session_id == theirs.session_id
                    assert ours.request.path == theirs.request.path
                    assert ours.connection is connection
                    assert theirs.connection is one[1].connection
                    async with stream_pair(ours, theirs) as (a, b), one_way_pair(theirs, ours):
                        await a.send_all(ours.request.path.encode(), eof=True)
                        assert await b.receive_all() == theirs.request.path.encode()
                    await ours.datagrams.send(ours.request.path.encode())
                for ours, theirs in (three, one, two):
                    assert await theirs.datagrams.receive() == ours.request.path.encode()
        assert connection.open_sessions == 0
        assert connection.closed is None


async def test_leaving_the_connection_closes_it_cleanly() -> None:
    network, visitors = Network(), Visitors()
    async with serving(visitors, network):
        async with connect(network) as connection:
            async with session_pair(connection, visitors) as (_, theirs):
                pass
            server = theirs.connection
            assert server.closed is None
        end = await server.wait_closed()
        assert type(end) is ConnectionClosedOK
        assert end.code == Http3Code.NO_ERROR
        assert end.remote
        ours = await connection.wait_closed()
        assert not ours.remote
        assert repr(connection).startswith("<WebTransportConnection closed")
        with pytest.raises(HandshakeFailed, match="has ended"):
            async with connection.open_session():
                pytest.fail("it is closed")
        with pytest.raises(HandshakeFailed):
            await connection.request("GET", "/")
        with pytest.raises(trio.ClosedResourceError):
            await connection.ping()


@pytest.mark.parametrize("how", ["raise", "cancel"])
async def test_a_connection_whose_block_fails_lets_sessions_say_so(how: str) -> None:
    network, visitors = Network(), Visitors()
    codes = {"cancelled_code": 71, "failed_code": 72}
    async with serving(visitors, network):
        theirs: WebTransportSession | None = None
        with trio.CancelScope() as scope:
            with (
                pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True)
                if how == "raise"
                else ExitStack()
            ):
                async with connect(network, **codes) as connection:
                    async with session_pair(connection, visitors) as (_, theirs):
                        if how == "raise":
                            raise ZeroDivisionError
                        scope.cancel()
                        await trio.sleep_forever()
        assert theirs is not None
        end = await theirs.wait_closed()
        assert (end.code, end.remote) == (72 if how == "raise" else 71, True)
        end = await theirs.connection.wait_closed()
        assert end.code == Http3Code.NO_ERROR


async def test_goaway_drains_sessions_and_stops_new_ones() -> None:
    told = trio.Event()

    async def handler(peer: RawPeer) -> None:
        exchange = await peer.accept_session()
        await told.wait()
        await peer.send_control(FrameType.GOAWAY, b"\x04")
        await settle()
        stream = await peer.open_session_stream(exchange.stream_id, b"still open")
        await stream.send_eof()
        assert await exchange.receive_capsule() == (CapsuleType.CLOSE_SESSION, bytes(4))
        await exchange.stream.send_eof()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        async with connection.open_session() as session:
            assert not connection.going_away
            told.set()
            await session.wait_draining()
            assert session.draining
            assert connection.going_away
            with pytest.raises(HandshakeFailed, match="GOAWAY"):
                async with connection.open_session():
                    pytest.fail("it takes no more")
            async with await session.incoming_streams.receive() as stream:
                assert await stream.receive_all() == b"still open"
            assert session.closed is None


async def test_who_waits_for_an_answer_hears_of_the_connection_s_end() -> None:
    async def handler(peer: RawPeer) -> None:
        await peer.next_request()
        await trio.sleep(1)
        peer.connection.close_now(Http3Code.NO_ERROR, "enough")

    network = Network()
    async with raw_server(network, handler):
        await no_session(network, "enough")
        assert trio.current_time() < 1.5


async def test_figures_of_a_connection() -> None:
    network, visitors = Network(delay=0.05), Visitors()
    async with serving(visitors, network), connect(network) as connection:
        async with session_pair(connection, visitors):
            assert await connection.ping() == pytest.approx(0.1, abs=0.01)
            figures = connection.statistics()
            assert figures.rtt == pytest.approx(0.1, abs=0.02)
            assert figures.packets_sent > 0
            assert figures.packets_lost == 0
            assert connection.peer_settings[Setting.WT_ENABLED] == 1
            assert connection.peer_settings[Setting.MAX_FIELD_SECTION_SIZE] == 65536


async def test_a_cancelled_opening_takes_its_request_back() -> None:
    resets: list[int] = []

    async def handler(peer: RawPeer) -> None:
        exchange, _ = await peer.next_request()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await exchange.stream.receive_some()
        resets.append(getattr(caught.value, "code", -1))
        # Too late: there is nobody.
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await exchange.send_head([(b":status", b"200")])
                await trio.sleep(0.01)
        second = await peer.accept_session()
        await second.receive_capsule()

    network = Network()
    async with raw_server(network, handler), connect(network) as connection:
        with trio.move_on_after(1) as scope:
            async with connection.open_session():
                pytest.fail("it was never answered")
        assert scope.cancelled_caught
        await settle()
        assert resets == [Http3Code.REQUEST_CANCELLED]
        check_nothing_is_held(connection)
        async with connection.open_session():
            pass


async def test_the_engine_of_these_tests_is_the_real_one() -> None:
    network = Network()
    async with serving(stay, network), visit(network) as session:
        assert isinstance(session._carrier.driver.engine, Engine)
        network.loss = 1
        session.connection._driver.engine.lose("torn apart")
        session.connection._driver.process()
        end = await session.wait_closed()
        assert isinstance(end, ConnectionLost)
        assert "torn apart" in str(end)
