"""Servers that our client must survive: it says what is wrong, in bounded time and memory."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme

import trio_wt
from tests.robustness.peer import RawPeer, close_frame, key_of, switching
from tests.robustness.target import bounded_memory, nothing_left, reset

Script = Callable[[RawPeer], Awaitable[object]]


async def opening(script: Script, **options: object) -> None:
    """Have our client try to open a WebSocket at a scripted server, and nothing else."""
    ours, theirs = trio.testing.memory_stream_pair()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script, RawPeer(theirs, client=False))
        try:
            async with trio_wt.wrap_client_stream(ours, "ws://localhost/", **options):  # type: ignore[arg-type]
                pass
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def says(*pieces: bytes, leaves: bool = True) -> Script:
    """A server that says this whatever was asked, and then leaves or hangs."""

    async def script(peer: RawPeer) -> None:
        await peer.head()
        for piece in pieces:
            await peer.try_send(piece)
        if leaves:
            await peer.aclose()
        else:
            await trio.sleep_forever()

    return script


def upgrades(*extra: str, accept: str | None = None, replace: tuple[str, str] = ("", "")) -> Script:
    """A server that answers 101 with something wrong in it."""

    async def script(peer: RawPeer) -> None:
        key = key_of(await peer.head())
        response = switching(key, *extra, accept=accept).decode("latin-1")
        if replace[0]:
            response = response.replace(*replace)
        await peer.send(response.encode("latin-1"))
        await trio.sleep_forever()

    return script


OK = b"HTTP/1.1 101 Switching Protocols\r\n"
GARBAGE = {
    "nothing": b"",
    "text": b"hello, world\r\n\r\n",
    "binary": bytes(range(256)) * 4 + b"\r\n\r\n",
    "zeros": bytes(1000) + b"\r\n\r\n",
    "half a status line": b"HTTP/1.1 10",
    "half a head": OK + b"Upgrade: webso",
    "no status": b"HTTP/1.1\r\n\r\n",
    "odd status": b"HTTP/1.1 1O1 Switching\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 Switching\r\n\r\n",
    "status 99": b"HTTP/1.1 099 Switching\r\n\r\n",
    "HTTP/2 status": b"HTTP/2 101\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "bad header": OK + b"Upgrade websocket\r\n\r\n",
    "NUL": OK + b"Upgrade: web\0socket\r\n\r\n",
    "bare CR": OK + b"Upgrade: web\rsocket\r\n\r\n",
    "no headers": OK + b"\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "frames": b"\x81\x05hello" * 50,
    "long head": OK + b"X: " + b"a" * 20000 + b"\r\n\r\n",
    "many fields": OK + b"X: a\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage(name: str) -> None:
    with pytest.raises(trio_wt.HandshakeFailed) as caught:
        await opening(says(GARBAGE[name]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    assert not isinstance(caught.value, trio_wt.Rejected) or name == "two lengths"


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_byte_by_byte(name: str) -> None:
    data = GARBAGE[name]
    step = max(1, len(data) // 2000)
    with pytest.raises(trio_wt.HandshakeFailed):
        await opening(says(*(data[i : i + step] for i in range(0, len(data), step))))


WRONG = {
    "accept of another key": upgrades(accept="s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "accept empty": upgrades(accept=""),
    "accept missing": upgrades(replace=("Sec-WebSocket-Accept", "X-Accept")),
    "accept twice": upgrades("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    "no upgrade": upgrades(replace=("Upgrade: websocket", "X: a")),
    "another upgrade": upgrades(replace=("Upgrade: websocket", "Upgrade: h2c")),
    "no connection": upgrades(replace=("Connection: Upgrade", "X: a")),
    "connection close": upgrades(replace=("Connection: Upgrade", "Connection: close")),
    "subprotocol not offered": upgrades("Sec-WebSocket-Protocol: chat"),
    "two subprotocols": upgrades("Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: a"),
    "list of subprotocols": upgrades("Sec-WebSocket-Protocol: a, b"),
    "subprotocol in other case": upgrades("Sec-WebSocket-Protocol: A"),
    "extension not offered": upgrades("Sec-WebSocket-Extensions: x-webkit-deflate-frame"),
    "extension twice": upgrades("Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate"),
    "unknown parameter": upgrades("Sec-WebSocket-Extensions: permessage-deflate; x=1"),
    "window too large": upgrades(
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=15"
    ),
    "window missing": upgrades("Sec-WebSocket-Extensions: permessage-deflate"),
    "window absurd": upgrades(
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=7"
    ),
    "client window without value": upgrades(
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; "
        "client_max_window_bits"
    ),
    "parameter twice": upgrades(
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12; "
        "server_max_window_bits=12"
    ),
    "malformed extensions": upgrades('Sec-WebSocket-Extensions: permessage-deflate; a="'),
    "non-ASCII extensions": upgrades("Sec-WebSocket-Extensions: \xe9"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_answer(name: str) -> None:
    start = trio.current_time()
    with pytest.raises(trio_wt.HandshakeFailed) as caught:
        await opening(WRONG[name], subprotocols=["a", "b"])
    assert not isinstance(caught.value, trio_wt.Rejected)
    assert str(caught.value).isprintable()
    assert trio.current_time() - start < 1


async def test_deflate_not_offered() -> None:
    with pytest.raises(trio_wt.HandshakeFailed):
        await opening(upgrades("Sec-WebSocket-Extensions: permessage-deflate"), compression=None)


async def test_endless_head() -> None:
    async def script(peer: RawPeer) -> None:
        await peer.head()
        await peer.send(OK)
        while True:
            await peer.try_send(b"X-Endless: " + b"a" * 10000)
            await trio.lowlevel.checkpoint()

    with bounded_memory(4), pytest.raises(trio_wt.HandshakeFailed, match="16384"):
        await opening(script)


async def test_a_thousand_interim_responses() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with pytest.raises(trio_wt.HandshakeFailed, match="interim"):
        await opening(says(interim * 1000, leaves=False))
    with pytest.raises(trio_wt.HandshakeFailed, match="interim"):
        await opening(says(*[interim] * 1000, leaves=False))


async def test_a_few_interim_responses() -> None:
    async def script(peer: RawPeer) -> None:
        key = key_of(await peer.head())
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        await peer.send(switching(key) + close_frame(1000, masked=False))
        await peer.rest()

    await opening(script)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 ", OK + b"Upgrade: websocket\r\n"])
async def test_hang(said: bytes) -> None:
    start = trio.current_time()
    with pytest.raises(trio_wt.HandshakeFailed, match="10 seconds"):
        await opening(says(said, leaves=False))
    assert trio.current_time() - start == pytest.approx(10)


async def test_dribble() -> None:
    """Each byte in time does not make the whole in time: the limit is absolute."""

    async def script(peer: RawPeer) -> None:
        await peer.head()
        for byte in OK * 10:
            await peer.try_send(bytes([byte]))
            await trio.sleep(0.5)

    start = trio.current_time()
    with pytest.raises(trio_wt.HandshakeFailed, match="10 seconds"):
        await opening(script)
    assert trio.current_time() - start == pytest.approx(10)


# ---- rejections and their bodies

HUGE = b"b" * 2_000_000
BODIES = {
    "with length": (b"Content-Length: 2000000\r\n\r\n" + HUGE, HUGE[:65536]),
    "until the end": (b"Connection: close\r\n\r\n" + HUGE, HUGE[:65536]),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n1e8480\r\n" + HUGE, HUGE[:65536]),
    "small": (b"Content-Length: 3\r\n\r\nwhy", b"why"),
    "cut off": (b"Content-Length: 300\r\n\r\nwhy", b"why"),
    "none": (b"Content-Length: 0\r\n\r\n", b""),
    "exactly the limit": (b"Content-Length: 65536\r\n\r\n" + HUGE[:65536], HUGE[:65536]),
    "bad chunk": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nwhy\r\nzzz\r\n", b"why"),
    "lying length": (b"Content-Length: 99999999999999999999\r\n\r\nwhy", b"why"),
}


@pytest.mark.parametrize("piece", [2**22, 1000])
@pytest.mark.parametrize("name", BODIES)
async def test_rejection(name: str, piece: int) -> None:
    said, wanted = BODIES[name]
    data = b"HTTP/1.1 403 Forbidden\r\nX-Why: because\r\n" + said
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)]
    with pytest.raises(trio_wt.Rejected) as caught:
        await opening(says(*pieces))
    assert caught.value.status == 403
    assert caught.value.headers["x-why"] == "because"
    assert caught.value.body == wanted


@pytest.mark.parametrize("name", ["with length", "small", "chunked"])
async def test_body_comes_after_its_head(name: str) -> None:
    """Many servers send a response's head and body apart."""
    said, wanted = BODIES[name]
    head, _, body = (b"HTTP/1.1 403 Forbidden\r\n" + said).partition(b"\r\n\r\n")

    async def script(peer: RawPeer) -> None:
        await peer.head()
        await peer.send(head + b"\r\n\r\n")
        await trio.sleep(0.1)
        await peer.try_send(body)
        await peer.rest()

    with pytest.raises(trio_wt.Rejected) as caught:
        await opening(script)
    assert caught.value.body == wanted


async def test_endless_body_costs_no_memory() -> None:
    async def script(peer: RawPeer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            await peer.try_send(HUGE[:60000])
            await trio.lowlevel.checkpoint()

    with bounded_memory(4), pytest.raises(trio_wt.Rejected) as caught:
        await opening(script)
    assert len(caught.value.body) == 65536


async def test_body_that_never_ends() -> None:
    start = trio.current_time()
    with pytest.raises(trio_wt.HandshakeFailed):
        await opening(
            says(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nabc", leaves=False),
        )
    assert trio.current_time() - start == pytest.approx(10)


async def test_violation_right_behind_the_response() -> None:
    """The Close frame reaches a server that breaks the rules in the same segment as its 101."""
    ours, theirs = trio.testing.memory_stream_pair()
    peer = RawPeer(theirs, client=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: peer.accept(behind=b"\xff\xff\xff"))
        async with trio_wt.wrap_client_stream(ours, "ws://localhost/") as ws:
            with pytest.raises(trio_wt.ConnectionClosedError) as caught:
                await ws.receive()
            assert (caught.value.code, caught.value.remote) == (1002, False)
            with trio.fail_after(1):
                await peer.expect_failure(1002)
            await peer.aclose()


# ---- redirects, which need sockets


@asynccontextmanager
async def scripted(
    script: Callable[[RawPeer, int], Awaitable[object]], context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A scripted server on a loopback port; gives the port and the heads of all requests."""
    heads: list[bytes] = []
    port = 0

    async def serve(stream: trio.abc.Stream) -> None:
        if context is not None:
            stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        peer = RawPeer(stream, client=False)
        try:
            heads.append(await peer.head())
            await script(peer, port)
            await peer.rest()
        except (trio.BrokenResourceError, AssertionError):
            heads.append(b"")
        finally:
            with trio.CancelScope(shield=True):
                await peer.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(serve, 0, host="127.0.0.1", task_status=task_status)
        )
        port = listeners[0].socket.getsockname()[1]
        yield port, heads
        nursery.cancel_scope.cancel()


def redirect(location: str) -> Callable[[RawPeer, int], Awaitable[object]]:
    async def script(peer: RawPeer, port: int) -> None:
        where = location.replace("PORT", str(port))
        await peer.send(
            f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    return script


@pytest.mark.real_clock
@pytest.mark.parametrize("location", ["/", "ws://127.0.0.1:PORT/again", "//127.0.0.1:PORT/", "?x"])
async def test_redirect_loop(location: str) -> None:
    with trio.fail_after(10):
        async with nothing_left(), scripted(redirect(location)) as (port, heads):
            with pytest.raises(trio_wt.HandshakeFailed, match="more than 3 times"):
                async with trio_wt.open_websocket(
                    f"ws://127.0.0.1:{port}/", proxy=None, max_redirects=3
                ):
                    pass
            assert len(heads) == 4


@pytest.mark.real_clock
@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1:PORT/",
        "ws://",
        "ws://[::1",
        "ws://127.0.0.1:99999/",
        "ws://127.0.0.1:PORT/a b",
        "ws+unix://%2Ftmp%2Fsocket/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "ws://a\x1b[31mb/",
        "ws://" + "a" * 5000 + ":x/",
    ],
)
async def test_redirect_to_a_bad_place(location: str) -> None:
    with trio.fail_after(10):
        async with scripted(redirect(location)) as (port, heads):
            with pytest.raises(trio_wt.HandshakeFailed) as caught:
                async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/", proxy=None):
                    pass
            assert len(heads) == 1
            assert str(caught.value).isprintable()
            assert not re.search(r"[\x00-\x1f\x7f]", repr(caught.value))


@pytest.mark.real_clock
@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_redirect_out_of_tls(scheme: str) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    with trio.fail_after(10):
        async with (
            nothing_left(),
            scripted(redirect("/")) as (plain, plain_heads),
            scripted(redirect(f"{scheme}://127.0.0.1:{plain}/"), server_context) as (port, heads),
        ):
            with pytest.raises(trio_wt.HandshakeFailed, match="wss to ws"):
                async with trio_wt.open_websocket(
                    f"wss://127.0.0.1:{port}/", proxy=None, ssl_context=client_context
                ):
                    pass
            assert len(heads) == 1
            assert plain_heads == []


@pytest.mark.real_clock
async def test_redirect_elsewhere_drops_credentials() -> None:
    """The headers and the user's name and password stay with the origin they are for."""
    with trio.fail_after(10):
        async with (
            scripted(redirect("/")) as (other, other_heads),
            scripted(redirect(f"ws://127.0.0.1:{other}/")) as (port, heads),
        ):
            for url, options in [
                (f"ws://user:secret@127.0.0.1:{port}/", {}),
                (f"ws://127.0.0.1:{port}/", {"auth": ("user", "secret")}),
                (
                    f"ws://127.0.0.1:{port}/",
                    {"headers": {"Authorization": "secret", "Cookie": "secret"}},
                ),
            ]:
                heads.clear()
                other_heads.clear()
                with pytest.raises(trio_wt.HandshakeFailed):
                    async with trio_wt.open_websocket(url, proxy=None, **options):  # type: ignore[arg-type]
                        pass
                assert b"authorization" in heads[0].lower()
                assert len(other_heads) == 5
                for head in other_heads:
                    assert b"authorization" not in head.lower()
                    assert b"cookie" not in head.lower()


@pytest.mark.real_clock
async def test_reset_at_every_stage() -> None:
    """A server that resets the connection after so many bytes of its answer."""
    for cut in (0, 10, 40, 10**6):

        async def script(peer: RawPeer, port: int, cut: int = cut) -> None:
            response = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            await peer.send(response[:cut])
            reset(peer)

        with trio.fail_after(10):
            async with nothing_left(), scripted(script) as (port, _):
                with pytest.raises(trio_wt.HandshakeFailed):
                    async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/", proxy=None):
                        pass


@pytest.mark.real_clock
async def test_not_a_tls_server() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example.com ESMTP\r\n")
        await stream.receive_some()

    with trio.fail_after(10):
        async with nothing_left(), trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                lambda task_status: trio.serve_tcp(
                    greet, 0, host="127.0.0.1", task_status=task_status
                )
            )
            port = listener.socket.getsockname()[1]
            with pytest.raises(trio_wt.HandshakeFailed, match="TLS") as caught:
                async with trio_wt.open_websocket(f"wss://127.0.0.1:{port}/", proxy=None):
                    pass
            assert str(caught.value).isprintable()
            nursery.cancel_scope.cancel()


async def test_cancelled_while_the_server_hangs() -> None:
    """The stream is closed though the caller went away."""
    ours, theirs = trio.testing.memory_stream_pair()
    with trio.move_on_after(1) as scope:
        async with trio_wt.wrap_client_stream(ours, "ws://localhost/"):
            raise AssertionError("nobody answered")
    assert scope.cancelled_caught
    peer = RawPeer(theirs, client=False)
    with trio.fail_after(1):
        assert (await peer.rest()).startswith(b"GET / HTTP/1.1\r\n")
