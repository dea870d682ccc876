"""Through a proxy: HTTP CONNECT, TLS to the proxy, SOCKS, what they do wrong, and cancellation."""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from unittest import mock

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt import HandshakeFailed
from trio_wt._transport.proxy import (
    MAX_FIELDS,
    MAX_HEAD,
    Proxy,
    _LeadingStream,
    open_through_proxy,
)

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
SOCKS4_OK = b"\x00\x5a" + bytes(6)
SOCKS5_BOUND = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


# --- through a proxy whose every word is written down here, in memory


@contextmanager
def instead_of_tcp(stream: trio.abc.Stream) -> Iterator[list[trio.abc.Stream]]:
    """Connecting gives a stream; the list has it from then on."""
    opened = []

    async def open_tcp_stream(*_: object, **__: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        opened.append(stream)
        return stream

    with mock.patch("trio.open_tcp_stream", open_tcp_stream):
        yield opened


async def received(stream: trio.abc.ReceiveStream) -> bytes:
    """All until the end: fails if the other side did not close."""
    with trio.fail_after(1):
        return b"".join([bytes(data) async for data in stream])


async def attempt(
    url: str, reply: bytes, host: str = "example.com", port: int = 443
) -> tuple[bytes, bytes]:
    """Connect: what the proxy got, and what the stream gives."""
    client, proxy = trio.testing.memory_stream_pair()
    await proxy.send_all(reply)
    await proxy.send_eof()
    with instead_of_tcp(client):
        stream = await open_through_proxy(Proxy.parse(url), host, port)
    async with stream:
        assert isinstance(stream, _LeadingStream) or stream is client
        rest = await received(stream)
        await stream.wait_send_all_might_not_block()
        await stream.send_all(b"<sent>")
    sent = await received(proxy)
    assert sent.endswith(b"<sent>")
    return sent.removesuffix(b"<sent>"), rest


async def failure(url: str, reply: bytes, host: str = "example.com") -> HandshakeFailed:
    """Connect in vain: the error, after a look whether the socket is closed."""
    client, proxy = trio.testing.memory_stream_pair()
    await proxy.send_all(reply)
    await proxy.send_eof()
    with instead_of_tcp(client), pytest.raises(HandshakeFailed) as caught:
        await open_through_proxy(Proxy.parse(url), host, 443)
    await received(proxy)
    return caught.value


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("http://p", "a.test", b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"),
        ("http://p", "::1", b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n"),
        (
            "http://Aladdin:open%20sesame@p",
            "a.test",
            b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"
            b"Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n",
        ),
    ],
)
async def test_connect_request(url: str, host: str, expected: bytes) -> None:
    assert await attempt(url, OK, host) == (expected + b"\r\n", b"")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 299\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    ],
)
async def test_connect_accepted(reply: bytes) -> None:
    assert (await attempt("http://p", reply))[1] == b""
    assert (await attempt("http://p", reply + b"early bytes"))[1] == b"early bytes"


@pytest.mark.parametrize(("url", "reply"), [("http://p", OK), ("socks4a://p", SOCKS4_OK)])
async def test_the_answer_may_take_its_time(url: str, reply: bytes) -> None:
    client, proxy = trio.testing.memory_stream_pair()

    async def answer() -> None:
        for byte in reply:
            await trio.sleep(100)
            await proxy.send_all(bytes([byte]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with instead_of_tcp(client):
            assert await open_through_proxy(Proxy.parse(url), "a.test", 443) is client


@pytest.mark.parametrize(
    ("url", "reply", "message"),
    [
        ("http://p", b"", "closed the connection without an answer"),
        ("http://p", OK[:-1], "closed the connection in the middle of its answer"),
        ("http://p", b"HTTP/1.1 100 Continue\r\n\r\n", "in the middle of its answer"),
        ("http://p", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not valid HTTP"),
        ("http://p", b"\x15\x03\x01\x00\x02\x02\x16", "not valid HTTP"),
        ("http://p", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "not valid HTTP"),
        ("http://p", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not valid HTTP"),
        ("http://p", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "not valid HTTP"),
        ("http://p", b"HTTP/1.1 403 Nope\r\n\r\n", "example.com:443: HTTP status 403 Nope$"),
        ("http://p", b"HTTP/1.1 302 \r\nLocation: /\r\n\r\n", "HTTP status 302$"),
        ("http://p", b"HTTP/1.1 407 Auth\r\n\r\n", "407 Auth; it wants credentials"),
        ("http://u:pw@p", b"HTTP/1.1 407 Auth\r\n\r\n", "does not take these credentials"),
        ("http://p", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", "fields"),
        ("http://p", b"HTTP/1.1 100 OK\r\nA: b\r\n\r\n" * (MAX_FIELDS + 1), "100 fields"),
        ("http://p", b"HTTP/1.1 100 OK\r\n\r\n" * 1000, "more than 16384 bytes"),
        ("http://p", b"HTTP/1.1 200 OK\r\nA: " + b"b" * 2**20, "more than 16384 bytes"),
    ],
)
async def test_connect_refused(url: str, reply: bytes, message: str) -> None:
    error = await failure(url, reply)
    with pytest.raises(HandshakeFailed, match=message):
        raise error
    assert str(error).startswith(("the proxy http://p:80", "the answer of the proxy http://p:80"))
    assert len(str(error)) < 400


async def test_the_bounds_are_exact() -> None:
    fields = b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_FIELDS + b"\r\n"
    assert (await attempt("http://p", fields + b"!"))[1] == b"!"
    start = b"HTTP/1.1 200 OK\r\nA: "
    longest = start + b"b" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n"
    assert (await attempt("http://p", longest + b"!"))[1] == b"!"
    await failure("http://p", longest.replace(b"A: ", b"A: b") + b"!")


@pytest.mark.parametrize("url", ["http://p", "socks5h://p"])
async def test_a_connection_that_breaks(url: str) -> None:
    client, proxy = trio.testing.memory_stream_pair()
    await proxy.aclose()
    with instead_of_tcp(client), pytest.raises(HandshakeFailed) as caught:
        await open_through_proxy(Proxy.parse(url), "example.com", 443)
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


_PIECES = st.sampled_from(
    [
        *(b"HTTP/1.1 ", b"HTTP/1.0 ", b"100", b"101", b"200", b"407", b" OK", b"\r\n", b"\r\n\r\n"),
        *(b"\n", b" ", b"\0", b"\xff", b"A: b", b"Content-Length: 5", b"Connection: close"),
        *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    ]
)


@settings(deadline=None)
@given(
    st.binary(max_size=60) | st.lists(_PIECES | st.binary(max_size=4), max_size=12).map(b"".join)
)
def test_hostile_answers_to_connect(reply: bytes) -> None:
    trio.run(_survives, "http://p", reply)


@settings(deadline=None)
@given(
    st.sampled_from(["socks5h://p", "socks5h://u:pw@p", "socks4a://p"]),
    st.tuples(
        st.sampled_from([b"", b"\x05\x00", b"\x05\x02\x01\x00", b"\x05\x00\x05\x00\x00\x03"]),
        st.binary(max_size=30),
    ).map(b"".join),
)
def test_hostile_answers_from_socks(url: str, reply: bytes) -> None:
    trio.run(_survives, url, reply)


async def _survives(url: str, reply: bytes) -> None:
    client, proxy = trio.testing.memory_stream_pair()
    await proxy.send_all(reply)
    await proxy.send_eof()
    with instead_of_tcp(client), suppress(HandshakeFailed):
        async with await open_through_proxy(Proxy.parse(url), "example.com", 443) as stream:
            assert reply.endswith(await received(stream))
    await received(proxy)


@pytest.mark.parametrize("host", ["", "a b", "a\r\nb", "bücher.test", "a" * 256])
@pytest.mark.parametrize("url", ["http://p", "socks5h://p"])
async def test_a_server_that_cannot_be_asked_for(url: str, host: str) -> None:
    with pytest.raises(ValueError, match="valid host"):
        await open_through_proxy(Proxy.parse(url), host, 443)
    with pytest.raises(ValueError, match="valid port"):
        await open_through_proxy(Proxy.parse(url), "a.test", 65536)


async def test_the_leading_stream_is_a_stream() -> None:
    async def make() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        left, right = trio.testing.memory_stream_pair()
        return _LeadingStream(b"", left), _LeadingStream(b"", right)

    async def make_clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        left, right = trio.testing.lockstep_stream_pair()
        return _LeadingStream(b"", left), _LeadingStream(b"", right)

    await trio.testing.check_two_way_stream(make, make_clogged)


async def test_the_leading_stream_gives_bytes_once() -> None:
    client, proxy = trio.testing.memory_stream_pair()
    stream = _LeadingStream(b"abcdef", client)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert scope.cancelled_caught
    with trio.testing.assert_checkpoints():
        assert await stream.receive_some(2) == b"ab"
    with pytest.raises(ValueError, match="max_bytes"):
        await stream.receive_some(0)
    await proxy.send_all(b"later")
    assert await stream.receive_some() == b"cdef"
    assert await stream.receive_some() == b"later"
    stream = _LeadingStream(b"abcdef", client)
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


# --- SOCKS, byte for byte (RFC 1928, RFC 1929)


class Resolver(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: object, port: object, *_: object) -> list[object]:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        if host != b"example.com":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", port))]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


NAME = "example.com"
HELLO, HELLO_AUTH = b"\x05\x01\x00", b"\x05\x02\x00\x02"
SOCKS5_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
SOCKS5_ADDRESS = b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"
SOCKS5_V6 = b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb"


@pytest.mark.parametrize(
    ("url", "host", "sent", "reply"),
    [
        ("socks5h://p", NAME, HELLO + SOCKS5_NAME, b"\x05\x00" + SOCKS5_BOUND),
        ("socks5h://p", NAME, HELLO + SOCKS5_NAME, b"\x05\x00\x05\x00\x00\x03\x01p\x00\x01"),
        (
            "socks5h://me:pw@p",
            NAME,
            HELLO_AUTH + b"\x01\x02me\x02pw" + SOCKS5_NAME,
            b"\x05\x02" + b"\x01\x00" + SOCKS5_BOUND,
        ),
        # The proxy does not ask for the credentials.
        ("socks5h://me:pw@p", NAME, HELLO_AUTH + SOCKS5_NAME, b"\x05\x00" + SOCKS5_BOUND),
        ("socks5://p", NAME, HELLO + SOCKS5_ADDRESS, b"\x05\x00" + SOCKS5_BOUND),
        ("socks5h://p", "192.0.2.7", HELLO + SOCKS5_ADDRESS, b"\x05\x00" + SOCKS5_BOUND),
        ("socks5h://p", "::1", HELLO + SOCKS5_V6, b"\x05\x00\x05\x00\x00\x04" + bytes(18)),
        ("socks4://p", NAME, b"\x04\x01\x01\xbb\xc0\x00\x02\x07\x00", SOCKS4_OK),
        ("socks4a://me@p", NAME, b"\x04\x01\x01\xbb\0\0\0\x01me\0example.com\0", SOCKS4_OK),
    ],
)
async def test_socks(url: str, host: str, sent: bytes, reply: bytes) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    assert await attempt(url, reply + b"early bytes", host) == (sent, b"early bytes")


@pytest.mark.parametrize(
    ("url", "reply", "message"),
    [
        ("socks5h://p", b"", "Connection closed"),
        ("socks5h://p", b"\x05", "Connection closed"),
        ("socks5h://p", b"\x05\x00\x05\x00\x00\x01", "Connection closed"),
        ("socks5h://p", b"\x04\x00", "version"),
        ("socks5h://p", b"\x05\xff", "No acceptable authentication"),
        ("socks5h://p", b"\x05\x02", "Unexpected SOCKS authentication method"),
        ("socks5h://me:pw@p", b"\x05\x02\x01\x01", "authentication failure"),
        ("socks5h://p", b"\x05\x00\x05\x02\x00\x01" + bytes(6), "not allowed by ruleset"),
        ("socks5h://p", b"\x05\x00\x05\x05\x00\x01" + bytes(6), "Connection refused"),
        ("socks5h://p", b"\x05\x00\x05\x63\x00\x01" + bytes(6), "Invalid reply code"),
        ("socks5h://p", b"\x05\x00\x05\x00\x00\x03\x01\xff\x00\x01", "can't decode"),
        ("socks4a://p", b"\x00\x5b" + bytes(6), "rejected or failed"),
        ("socks4a://p", b"HTTP/1.1", "Unexpected reply version"),
    ],
)
async def test_socks_refused(url: str, reply: bytes, message: str) -> None:
    error = await failure(url, reply)
    with pytest.raises(HandshakeFailed, match=message):
        raise error
    assert f"proxy {Proxy.parse(url)} did not connect to example.com:443" in str(error)
    assert error.__cause__ is not None


async def test_socks_with_a_name_that_is_not_there() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    error = await failure("socks5://p", b"\x05\x00", "nowhere.test")
    assert isinstance(error.__cause__, socket.gaierror)
    error = await failure("socks5h://p", b"\x05\x00", "a" * 64 + ".test")
    assert isinstance(error.__cause__, UnicodeError)


async def test_socks4_has_no_ipv6() -> None:
    with (
        pytest.raises(HandshakeFailed, match=r"\[::1\]:443: use a socks5 proxy"),
        trio.testing.assert_checkpoints(),
    ):
        await open_through_proxy(Proxy.parse("socks4://p"), "::1", 443)


async def test_socks_without_python_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with (
        pytest.raises(HandshakeFailed, match=r'pip install "trio-wt\[socks\]"') as caught,
        trio.testing.assert_checkpoints(),
    ):
        await open_through_proxy(Proxy.parse("socks5h://p"), "example.com", 443)
    assert isinstance(caught.value.__cause__, ImportError)


# --- cancellation


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when the current task is about to run for the nth time."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize(
    ("url", "replies", "least"),
    [
        ("http://localhost", [OK], 3),
        ("https://localhost", [OK], 5),
        ("socks5h://u:pw@localhost", [b"\x05\x02", b"\x01\x00", SOCKS5_BOUND], 7),
        ("socks4a://localhost", [SOCKS4_OK], 3),
    ],
)
async def test_cancelled_at_every_checkpoint(
    url: str, replies: list[bytes], least: int, authority: trustme.CA
) -> None:
    server_context, client_context = contexts(authority)

    async def proxy_side(stream: trio.abc.Stream) -> None:
        if url.startswith("https"):
            stream = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            for reply in replies:
                if await stream.receive_some():
                    await stream.send_all(reply)
            await received(stream)

    for step in itertools.count(1):
        client, proxy = trio.testing.memory_stream_pair()
        with trio.fail_after(5):  # the proxy's side ends when the client's is closed
            async with trio.open_nursery() as nursery:
                nursery.start_soon(proxy_side, proxy)
                with trio.CancelScope() as scope, instead_of_tcp(client) as opened:
                    instrument = CancelAt(scope, step)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        stream = await open_through_proxy(
                            Proxy.parse(url), "a.test", 80, ssl_context_for_proxy=client_context
                        )
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
                    await trio.aclose_forcefully(stream)
                if not opened:
                    await client.aclose()
        if not scope.cancelled_caught:
            break
    assert step > least


# --- real sockets


Handler = Callable[[trio.SocketStream], Awaitable[object]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server on loopback: its port."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
            yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.abc.Stream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def exactly(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, "the client left"
        data += more
    return data


async def until(stream: trio.abc.Stream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += await exactly(stream, 1)
    return data


async def relay(stream: trio.abc.Stream, host: str, port: int, answer: bytes) -> None:
    upstream = await trio.open_tcp_stream(host, port)

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):  # a client that leaves without a word
            async for data in source:
                await sink.send_all(data)

    async with upstream, trio.open_nursery() as nursery:
        await stream.send_all(answer)
        nursery.start_soon(pump, upstream, stream)
        await pump(stream, upstream)
        nursery.cancel_scope.cancel()


async def connect_proxy(stream: trio.abc.Stream) -> None:
    head = await until(stream, b"\r\n\r\n")
    if b"\r\nProxy-Authorization: Basic dTpwdw==\r\n" not in head:
        await stream.send_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        return
    host, _, port = head.split()[1].decode().rpartition(":")
    await relay(stream, host, int(port), OK)


async def socks_proxy(stream: trio.abc.Stream) -> None:
    if await exactly(stream, 1) == b"\x04":
        _, port, zeros, _ = struct.unpack("!BH3sB", await exactly(stream, 7))
        assert zeros == bytes(3)
        assert await until(stream, b"\x00") == b"u\x00"
        host = (await until(stream, b"\x00"))[:-1].decode()
        await relay(stream, host, port, SOCKS4_OK)
        return
    methods = await exactly(stream, (await exactly(stream, 1))[0])
    assert 2 in methods
    await stream.send_all(b"\x05\x02")
    good = await exactly(stream, 6) == b"\x01\x01u\x02pw"
    await stream.send_all(b"\x01\x00" if good else b"\x01\x01")
    if good:
        assert await exactly(stream, 4) == b"\x05\x01\x00\x03"
        host = (await exactly(stream, (await exactly(stream, 1))[0])).decode()
        (port,) = struct.unpack("!H", await exactly(stream, 2))
        await relay(stream, host, port, SOCKS5_BOUND)


async def check_echo(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"through " * 4000)
        assert await exactly(stream, 32000) == b"through " * 4000


@pytest.mark.real_clock
@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://u:pw@127.0.0.1", "http://u:xx@127.0.0.1"),
        ("socks5h://u:pw@127.0.0.1", "socks5h://u:xx@127.0.0.1"),
        ("socks4a://u@127.0.0.1", None),
    ],
)
async def test_through_a_real_proxy(url: str, wrong: str | None) -> None:
    handler = connect_proxy if url.startswith("http") else socks_proxy
    async with serving(echo) as port, serving(handler) as proxy_port:
        proxy = Proxy.parse(f"{url}:{proxy_port}")
        stream = await open_through_proxy(proxy, "localhost", port)
        assert isinstance(stream, trio.SocketStream)
        await check_echo(stream)
        if wrong is not None:
            with pytest.raises(HandshakeFailed, match=r"authentication failure|credentials"):
                await open_through_proxy(Proxy.parse(f"{wrong}:{proxy_port}"), "localhost", port)


@pytest.mark.real_clock
async def test_tls_in_tls(authority: trustme.CA) -> None:
    server_context, client_context = contexts(authority)

    def over_tls(handler: Callable[[trio.abc.Stream], Awaitable[None]]) -> Handler:
        async def handle(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):  # a client that does not trust us
                await handler(
                    trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
                )

        return handle

    async with serving(over_tls(echo)) as port, serving(over_tls(connect_proxy)) as proxy_port:
        proxy = Proxy.parse(f"https://u:pw@localhost:{proxy_port}")
        stream = await open_through_proxy(
            proxy, "127.0.0.1", port, ssl_context_for_proxy=client_context
        )
        await check_echo(
            trio.SSLStream(
                stream, client_context, server_hostname="localhost", https_compatible=True
            )
        )
        with pytest.raises(HandshakeFailed, match=r"TLS with the proxy .* verify failed"):
            await open_through_proxy(proxy, "127.0.0.1", port)


@pytest.mark.real_clock
@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks4a"])
async def test_no_proxy_there(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: refused
        port = taken.getsockname()[1]
        with trio.fail_after(5), pytest.raises(HandshakeFailed, match="cannot connect") as caught:
            await open_through_proxy(Proxy(scheme, "127.0.0.1", port), "example.com", 80)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(HandshakeFailed, match="label too long"):
        await open_through_proxy(Proxy(scheme, "a" * 64, 80), "example.com", 80)


@pytest.mark.real_clock
@pytest.mark.parametrize("url", ["http://127.0.0.1", "https://localhost", "socks5h://127.0.0.1"])
async def test_a_proxy_that_resets(url: str) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    async with serving(reset) as port:
        with pytest.raises(HandshakeFailed) as caught:
            await open_through_proxy(Proxy.parse(f"{url}:{port}"), "example.com", 80)
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
