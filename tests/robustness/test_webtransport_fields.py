"""Our own API, given what must not go on the wire: `ValueError` before anything leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import trio_wt
from tests.robustness.h3_peer import (
    H3Server,
    close_capsule,
    content,
    head,
    request_fields,
    session_fields,
    websocket_fields,
)
from tests.robustness.h3_target import Watched, attacked_h3_client, attacked_h3_server, no_answer

#: Values that would be other fields, or none.
VALUES = [
    "a\r\nb: c",
    "a\nb",
    "a\rb",
    "a\0b",
    "\r\n",
    " a",
    "a\t",
    "a\x7fb",
    "a\x1b[31m",
    "€",
    "\ud800",
]
NAMES = ["", "a b", "a\r\nb", "a\n", "a:", ":path", "é", "a\0", "a\t", "a,b", "\ud800"]
TARGETS = ["/\r\nX: y", "/a b", "/é\ud800", "/\0", "/#there", "x", "", "//\n", "/\x7f", "*"]
#: What a caller may not say, because the request itself does.
RESERVED = [
    *("Host", "Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Priority"),
    *("WT-Available-Protocols", "WT-Protocol", "Sec-WebSocket-Protocol"),
]


async def nothing_leaves(
    ask: Callable[[Any], Any], *, kinds: tuple[type[Exception], ...] = (ValueError,)
) -> None:
    """It fails at once, and the server hears nothing of it."""
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()
        await trio.sleep(0.1)
        with trio.fail_after(1), pytest.raises(kinds) as caught:
            await ask(connection)
        assert not isinstance(caught.value, trio_wt.HandshakeFailed)
        del caught
        await trio.sleep(0.1)
        assert not [number for number in peer.data if not number & 2]
        assert connection.closed is None
        await still_usable(peer, connection)


async def still_usable(peer: H3Server, connection: Watched) -> None:
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            stream_id = await peer.requested()
            peer.tell(stream_id, head([(b":status", b"200")]), fin=True)

        nursery.start_soon(serve)
        response = await connection.request("GET", "/")
        assert response.status == 200


def opening(kind: str, path: str = "/", **options: Any) -> Callable[[Any], Any]:
    async def ask(connection: Any) -> None:
        if kind == "request":
            await connection.request("GET", path, **options)
            return
        opens = connection.open_session if kind == "session" else connection.open_websocket
        async with opens(path, **options):
            pass

    return ask


KINDS = ["request", "session", "websocket"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", VALUES)
async def test_header_values(value: str, kind: str) -> None:
    await nothing_leaves(opening(kind, headers=[("X-Field", value)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
async def test_header_names(name: str, kind: str) -> None:
    await nothing_leaves(opening(kind, headers=[(name, "x")]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RESERVED)
async def test_reserved_headers(name: str, kind: str) -> None:
    await nothing_leaves(opening(kind, headers={name: "x"}))


@pytest.mark.parametrize("kind", ["session", "websocket"])
@pytest.mark.parametrize("value", [*VALUES, "https://a\r\nb"])
async def test_origins(value: str, kind: str) -> None:
    await nothing_leaves(opening(kind, origin=value))


@pytest.mark.parametrize("kind", ["session", "websocket"])
@pytest.mark.parametrize("name", ["a\r\nb", "a\n", "\0", "", "é", "\ud800"])
async def test_subprotocols(name: str, kind: str) -> None:
    await nothing_leaves(opening(kind, subprotocols=["a", name]))


@pytest.mark.parametrize("kind", ["session", "websocket"])
async def test_subprotocols_that_are_repeated_or_no_list(kind: str) -> None:
    await nothing_leaves(opening(kind, subprotocols=["a", "a"]))
    await nothing_leaves(opening(kind, subprotocols="abc"), kinds=(TypeError, ValueError))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "target", [*TARGETS, "https://elsewhere.test/", "http://server.test:4433/"]
)
async def test_targets(target: str, kind: str) -> None:
    await nothing_leaves(opening(kind, target))


@pytest.mark.parametrize(
    "method", ["", "G T", "GET\r\n", "GÉT", "CONNECT", "connect", "\0", "GET:"]
)
async def test_methods(method: str) -> None:
    async def ask(connection: Any) -> None:
        await connection.request(method, "/")

    await nothing_leaves(ask)


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ([("X-Café", "x")], 0),
        ([("X-Field", "grüße")], 1),
        ([("X-Field", "")], 1),
        ([("X-Field", "a\tb c")], 1),
    ],
)
async def test_fields_that_are_well(fields: list[tuple[str, str]], at: int) -> None:
    """Latin-1 arrives as it was; a name is a token, though."""
    async with attacked_h3_client(memory=None) as (peer, connection):
        peer.open_control()
        if not at:
            with pytest.raises(ValueError, match="header name"):
                await connection.request("GET", "/", headers=fields)
            return
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                stream_id = await peer.requested()
                assert peer.fields[0][b"x-field"] == fields[0][1].encode("latin-1")
                peer.tell(
                    stream_id,
                    head([(b":status", b"200"), (b"x-back", peer.fields[0][b"x-field"])]),
                    fin=True,
                )

            nursery.start_soon(serve)
            response = await connection.request("GET", "/", headers=fields)
            assert response.headers["x-back"] == fields[0][1]


# ---- a server's answers

DECISIONS: dict[str, Callable[[trio_wt.Request], object]] = {
    **{
        f"accept with {value!r}": lambda r, v=value: r.accept(headers=[("X-Field", v)])  # type: ignore[misc]
        for value in VALUES
    },
    **{
        f"accept with a header {name!r}": lambda r, n=name: r.accept(headers=[(n, "x")])  # type: ignore[misc]
        for name in NAMES
    },
    **{
        f"accept {name!r}": lambda r, n=name: r.accept(subprotocol=n)  # type: ignore[misc]
        for name in ("a\r\nb", "\0", "é", "not offered", "")
    },
    **{
        f"reject with {value!r}": lambda r, v=value: r.reject(403, headers=[("X-Field", v)])  # type: ignore[misc]
        for value in VALUES
    },
    **{
        f"reject with status {status}": lambda r, s=status: r.reject(s)  # type: ignore[misc]
        for status in (-1, 0, 99, 100, 101, 103, 199, 200, 204, 600, 2**31)
    },
}


@pytest.mark.parametrize("fields", [session_fields, websocket_fields], ids=["session", "websocket"])
@pytest.mark.parametrize("kind", DECISIONS)
async def test_decisions(kind: str, fields: Callable[[], Any]) -> None:
    """The application is told at once; the request goes on to be decided about."""
    raised: list[bool] = []

    def on_request(request: trio_wt.Request) -> None:
        try:
            DECISIONS[kind](request)
        except ValueError:
            raised.append(True)

    async with attacked_h3_server(
        no_answer, memory=None, bystander=False, on_request=on_request
    ) as target:
        peer = await target.introduced()
        stream_id = peer.request(fields(), fin=False)
        assert await peer.answered(stream_id) == 200
        assert raised == [True]
        assert b"x-field" not in peer.heads(stream_id)[0]
        peer.tell(stream_id, content(close_capsule()), fin=True)


@pytest.mark.parametrize("body", ["grüße", b"\0\xff" * 1000, "x" * 100_000, ""])
async def test_bodies(body: str | bytes) -> None:
    """They may be what they like."""

    def on_request(request: trio_wt.Request) -> None:
        request.respond(201, body=body)

    async with attacked_h3_server(memory=None, bystander=False, on_request=on_request) as target:
        peer = await target.introduced()
        stream_id = peer.request(request_fields())
        assert await peer.answered(stream_id) == 201
        await peer.over(stream_id)
        assert peer.content(stream_id) == (body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_bodies_that_are_not_sent(status: int, method: bytes) -> None:
    def on_request(request: trio_wt.Request) -> None:
        request.respond(status, body="hello")

    async with attacked_h3_server(memory=None, bystander=False, on_request=on_request) as target:
        peer = await target.introduced()
        stream_id = peer.request(request_fields(method=method))
        assert await peer.answered(stream_id) == status
        assert await peer.over(stream_id) is None
        sent = method == b"GET" and status == 200
        assert peer.content(stream_id) == (b"hello" if sent else b"")


# ---- reasons and codes of closes


@pytest.mark.parametrize("reason", ["a\r\nb", "\0", "\ud800 alone", "é" * 5000, "\x1b[31m"])
async def test_reasons_of_closes(reason: str) -> None:
    """Any text is one: it is cut to 1024 bytes of UTF-8, and can break nothing."""

    async def handler(session: trio_wt.WebTransportSession) -> None:
        session.close_now(7, reason)

    async with attacked_h3_server(handler, memory=None, bystander=False) as target:
        peer, session_id = await target.in_session()
        assert await peer.over(session_id) is None
        ((kind, payload),) = peer.capsules(session_id)
        assert kind == 0x2843
        assert payload[:4] == b"\0\0\0\7"
        assert len(payload) <= 4 + 1024
        assert reason.encode(errors="replace").startswith(payload[4:].decode().encode())
        peer.tell(session_id, fin=True)


@pytest.mark.parametrize("code", [-1, 2**32, 2**62])
async def test_codes_of_closes(code: int) -> None:
    failed: list[bool] = []

    async def handler(session: trio_wt.WebTransportSession) -> None:
        for use in (session.close_now, session.aclose):
            try:
                result = use(code)
                if result is not None:
                    await result
            except ValueError:
                failed.append(session.closed is None)
        await session.wait_closed()

    async with attacked_h3_server(handler, memory=None, bystander=False) as target:
        peer, session_id = await target.in_session()
        await trio.sleep(0.1)
        assert failed == [True, True]
        assert not peer.capsules(session_id)
        peer.tell(session_id, content(close_capsule()), fin=True)


async def test_settings_out_of_range() -> None:
    async def opens(**settings: Any) -> None:
        async with trio_wt.open_webtransport("https://server.test/", **settings):
            pass

    async def serves(**settings: Any) -> None:
        await trio_wt.serve_webtransport(no_answer, 0, tls=None, **settings)  # type: ignore[arg-type]

    for call in (opens, serves):
        for settings in (
            {"max_sessions": 0},
            {"session_window": 0},
            {"max_session_window": 1},
            {"max_early_streams": -1},
            {"max_early_datagrams": -1},
            {"early_timeout": 0},
            {"early_timeout": -1},
            {"max_field_section": 0},
            {"max_fields": 0},
            {"cancelled_code": 2**32},
            {"failed_code": -1},
        ):
            with pytest.raises(ValueError, match="must be"):
                await call(**settings)
