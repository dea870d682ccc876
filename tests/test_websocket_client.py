"""Opening WebSockets: URLs, headers, credentials, TLS, Unix sockets and redirects."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from trio_wt import (
    HandshakeFailed,
    Headers,
    Rejected,
    Request,
    WebSocket,
    open_websocket,
    serve_websocket,
)
from trio_wt.testing import websocket_pair

pytestmark = pytest.mark.real_clock


class Site:
    """A server that keeps the requests it got and answers them as told."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.redirects: dict[str, str] = {}
        self.port = 0

    def on_request(self, request: Request) -> None:
        self.requests.append(request)
        if request.target in self.redirects:
            request.reject(307, [("Location", self.redirects[request.target])])

    @staticmethod
    async def echo(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)


@asynccontextmanager
async def site(**options: object) -> AsyncIterator[Site]:
    one = Site()
    options = {"port": 0, "host": "127.0.0.1", **options}
    if "unix_path" in options:
        del options["port"], options["host"]
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: serve_websocket(
                one.echo,
                on_request=one.on_request,
                task_status=task_status,
                **options,  # type: ignore[arg-type]
            )
        )
        if "port" in options:
            one.port = listeners[0].socket.getsockname()[1]
        yield one
        nursery.cancel_scope.cancel()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_the_request_says_what_was_asked_for() -> None:
    async with (
        site() as server,
        open_websocket(
            f"ws://127.0.0.1:{server.port}/a%20b?c=d",
            headers=[("Cookie", "a=1"), ("X-Mine", "yes"), ("X-Mine", "twice")],
            origin=f"http://127.0.0.1:{server.port}",
            user_agent="mine/1",
        ) as ws,
    ):
        (request,) = server.requests
        assert (request.path, request.query) == ("/a b", "c=d")
        assert request.host == f"127.0.0.1:{server.port}"
        assert request.headers["cookie"] == "a=1"
        assert request.headers.get_all("x-mine") == ["yes", "twice"]
        assert request.headers["user-agent"] == "mine/1"
        assert request.origin == f"http://127.0.0.1:{server.port}"
        assert ws.request.headers["cookie"] == "a=1"
        assert ws.response_headers["upgrade"] == "websocket"
        assert ws.peer == ("127.0.0.1", server.port)
        assert ws.local == request.peer


async def test_no_user_agent_if_none_is_wanted() -> None:
    async with (
        site() as server,
        open_websocket(f"ws://127.0.0.1:{server.port}/", user_agent=None),
    ):
        assert "user-agent" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("userinfo", "auth", "expected"),
    [
        ("", None, None),
        ("me:s%20cret@", None, basic("me", "s cret")),
        ("", ("you", "pass"), basic("you", "pass")),
        ("me:secret@", ("you", "pass"), basic("you", "pass")),
    ],
)
async def test_credentials(
    userinfo: str, auth: tuple[str, str] | None, expected: str | None
) -> None:
    async with (
        site() as server,
        open_websocket(f"ws://{userinfo}127.0.0.1:{server.port}/", auth=auth),
    ):
        assert server.requests[0].headers.get("authorization") == expected
        assert "@" not in server.requests[0].host


async def test_redirects_are_followed_and_keep_credentials_at_home() -> None:
    async with site() as server:
        server.redirects = {"/1": "2", "/2": f"ws://127.0.0.1:{server.port}/3?x"}
        url = f"ws://127.0.0.1:{server.port}/1"
        async with open_websocket(url, auth=("me", "secret"), headers={"Cookie": "a=1"}) as ws:
            await ws.send("arrived")
            assert await ws.receive() == "arrived"
        assert [request.target for request in server.requests] == ["/1", "/2", "/3?x"]
        assert {request.headers["authorization"] for request in server.requests} == {
            basic("me", "secret")
        }
        assert {request.headers["cookie"] for request in server.requests} == {"a=1"}
        with pytest.raises(HandshakeFailed, match="more than 1 times"):
            async with open_websocket(url, max_redirects=1):
                pass
        with pytest.raises(HandshakeFailed, match="more than 0 times"):
            async with open_websocket(url, max_redirects=0):
                pass


async def test_certificates_are_verified_unless_told_otherwise() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.test").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with site(ssl_context=context) as server:
        url = f"wss://127.0.0.1:{server.port}/"
        with pytest.raises(HandshakeFailed, match=r"(?i)certificate") as caught:
            async with open_websocket(url):
                pass
        cause = caught.value.__cause__
        assert cause is not None
        assert isinstance(cause.__cause__, ssl.SSLCertVerificationError)
        with pytest.raises(HandshakeFailed, match=r"(?i)mismatch"):
            async with open_websocket(url, ssl_context=trusting):
                pass
        async with open_websocket(url, ssl_context=trusting, server_hostname="example.test") as ws:
            await ws.send("x" * 200_000)
            assert await ws.receive() == "x" * 200_000
        assert server.requests[0].scheme == "https"


async def test_client_certificates_reach_the_request() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    mine = ssl.create_default_context()
    authority.configure_trust(mine)
    certificate = authority.issue_cert("client@example.test")
    certificate.configure_cert(mine)
    async with site(ssl_context=context) as server:
        async with open_websocket(f"wss://127.0.0.1:{server.port}/", ssl_context=mine):
            pass
        shown = server.requests[0].tls_peer_certificate
        assert shown is not None
        pem = certificate.cert_chain_pems[0].bytes().decode()
        assert shown == ssl.PEM_cert_to_DER_cert(pem)


async def test_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    quoted = str(path).replace("/", "%2F").replace(" ", "%20")
    async with site(unix_path=path) as server:
        async with open_websocket(f"ws+unix://{quoted}/inside?y") as ws:
            await ws.send("x")
            assert await ws.receive() == "x"
        assert server.requests[0].target == "/inside?y"
        assert server.requests[0].host == "localhost"
        server.redirects = {"/old": "/new"}
        async with open_websocket(f"ws+unix://{quoted}/old"):
            assert server.requests[-1].target == "/new"
    assert not path.exists()
    with pytest.raises(HandshakeFailed, match="cannot connect"):
        async with open_websocket(f"ws+unix://{quoted}/"):
            pass


async def test_a_refused_connection_is_one_clear_error() -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        message = f"cannot connect to 127.0.0.1:{port}: Connection refused"
        with pytest.raises(HandshakeFailed, match=message) as caught:
            async with open_websocket(f"ws://127.0.0.1:{port}/"):
                pass
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_silent_server_is_given_up() -> None:
    async def silent(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            lambda task_status: trio.serve_tcp(silent, 0, host="127.0.0.1", task_status=task_status)
        )
        port = listener.socket.getsockname()[1]
        with pytest.raises(HandshakeFailed, match="within 0.1 seconds"):
            async with open_websocket(f"ws://127.0.0.1:{port}/", handshake_timeout=0.1):
                pass
        nursery.cancel_scope.cancel()


async def test_rejections_tell_all() -> None:
    def decide(request: Request) -> None:
        request.reject(401, [("WWW-Authenticate", 'Basic realm="here"')], "who are you?")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            lambda task_status: serve_websocket(
                Site.echo, 0, host="127.0.0.1", on_request=decide, task_status=task_status
            )
        )
        port = listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        with pytest.raises(Rejected, match="401; the server wants credentials") as caught:
            async with open_websocket(f"ws://127.0.0.1:{port}/"):
                pass
        nursery.cancel_scope.cancel()
    assert caught.value.body == b"who are you?"
    assert caught.value.headers["www-authenticate"] == 'Basic realm="here"'


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://example.test/"},
        {"url": "ws://[::1/"},
        {"headers": {"Upgrade": "x"}},
        {"headers": {"X": "a\r\nb"}},
        {"subprotocols": ["a b"]},
        {"subprotocols": ["a", "a"]},
        {"auth": ("a:b", "c")},
        {"max_message_size": 0},
        {"ping_interval": -1},
        {"proxy": "gopher://example.test"},
    ],
    ids=str,
)
async def test_mistakes_are_value_errors_before_anything_is_sent(wrong: dict[str, object]) -> None:
    url = str(wrong.pop("url", "ws://192.0.2.1/"))
    with pytest.raises(ValueError, match="."):
        async with open_websocket(url, **wrong):  # type: ignore[arg-type]
            pass


async def test_one_string_is_no_list_of_subprotocols() -> None:
    with pytest.raises(TypeError, match="not one string"):
        async with open_websocket("ws://192.0.2.1/", subprotocols="chat"):
            pass


async def test_headers_may_be_a_mapping_pairs_or_headers() -> None:
    for headers in ({"X": "1"}, [("X", "1")], Headers([("X", "1")])):
        async with websocket_pair(headers=headers) as (_, server):
            assert server.request.headers["x"] == "1"
