"""What an application sees of a request, and decides about it."""

from __future__ import annotations

import pytest

from trio_wt import Headers, Request
from trio_wt._http.request import Accept, Reject, Response


def request(target: str = "/", *, is_websocket: bool = True, **fields: str) -> Request:
    return Request(
        method="GET",
        target=target,
        headers=Headers({name.replace("_", "-"): value for name, value in fields.items()}),
        http_version="1.1",
        scheme="http",
        host="example.test",
        is_websocket=is_websocket,
        subprotocols=["chat", "v2"],
    )


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", "/", ""),
        ("/a/b", "/a/b", "/a/b", ""),
        ("/a?b=c&d", "/a", "/a", "b=c&d"),
        ("/a?b?c", "/a", "/a", "b?c"),
        ("/?", "/", "/", ""),
        ("/caf%C3%A9%20x?caf%C3%A9", "/café x", "/caf%C3%A9%20x", "caf%C3%A9"),
        ("/a%3Fb?c", "/a?b", "/a%3Fb", "c"),
        ("/%ff", "/\ufffd", "/%ff", ""),
        ("*", "*", "*", ""),
        # RFC 6455 section 4.2.1, item 1, and RFC 9112 section 3.2.2: the absolute form.
        ("http://example.test/a%20b?c=d", "/a b", "/a%20b", "c=d"),
        ("HTTP://example.test:80/a", "/a", "/a", ""),
        ("http://example.test?c", "/", "/", "c"),
        ("http://example.test", "/", "/", ""),
        ("/http://example.test", "/http://example.test", "/http://example.test", ""),
    ],
)
def test_path_and_query(target: str, path: str, raw_path: str, query: str) -> None:
    seen = request(target)
    assert (seen.path, seen.raw_path, seen.query) == (path, raw_path, query)
    assert seen.target == target


def test_origin_is_the_header() -> None:
    assert request(Origin="http://o.test").origin == "http://o.test"
    assert request().origin is None


def default(_: Request) -> Accept | Reject:
    return Reject(426, Headers(), b"default")


def test_without_a_decision_the_default_decides_once() -> None:
    seen = request()
    decision = seen.decide(default)
    assert isinstance(decision, Reject)
    assert decision.status == 426
    assert seen.decide(lambda _: pytest.fail("decided already")) is decision


def test_accept() -> None:
    seen = request()
    seen.accept(subprotocol="v2", headers={"Set-Cookie": "a=b"})
    assert seen.decide(default) == Accept("v2", Headers({"Set-Cookie": "a=b"}))
    plain = request()
    plain.accept()
    assert plain.decide(default) == Accept(None, Headers())


@pytest.mark.parametrize("method", ["reject", "respond"])
def test_reject_and_respond(method: str) -> None:
    for is_websocket in (True, False):
        seen = request(is_websocket=is_websocket)
        getattr(seen, method)(503, {"Retry-After": "1"}, "später")
        assert seen.decide(default) == Reject(503, Headers({"Retry-After": "1"}), "später".encode())
    seen = request()
    getattr(seen, method)(200, body=bytearray(b"ok"))
    decision = seen.decide(default)
    assert decision == Reject(200, Headers(), b"ok")
    assert type(decision.body) is bytes


@pytest.mark.parametrize("first", ["accept", "reject", "respond"])
@pytest.mark.parametrize("second", ["accept", "reject", "respond"])
def test_a_request_is_decided_once(first: str, second: str) -> None:
    seen = request()
    for name, again in ((first, False), (second, True)):
        arguments = () if name == "accept" else (404,)
        if again:
            with pytest.raises(RuntimeError, match="accepted or rejected already"):
                getattr(seen, name)(*arguments)
        else:
            getattr(seen, name)(*arguments)
    assert isinstance(seen.decide(default), Accept if first == "accept" else Reject)


def test_only_a_websocket_can_be_accepted() -> None:
    by_default = Request("GET", "/", Headers(), "1.1", "http", "example.test")
    for seen in (by_default, request(is_websocket=False)):
        with pytest.raises(RuntimeError, match=r"use respond\(\)"):
            seen.accept()
    seen.respond(200)
    assert seen.decide(default) == Reject(200, Headers(), b"")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"subprotocol": "other"}, "does not offer subprotocol 'other'"),
        ({"headers": {"Sec-WebSocket-Protocol": "chat"}}, "belongs to the handshake"),
        ({"headers": {"X": "a\r\nb"}}, "control characters"),
    ],
)
def test_an_acceptance_that_cannot_be_sent_decides_nothing(
    arguments: dict[str, object], why: str
) -> None:
    seen = request()
    with pytest.raises(ValueError, match=why):
        seen.accept(**arguments)  # type: ignore[arg-type]
    assert seen.decide(default).status == 426  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600, -1])
def test_a_rejection_has_a_final_status(status: int) -> None:
    seen = request()
    with pytest.raises(ValueError, match=f"200 to 599, not {status}"):
        seen.reject(status)
    with pytest.raises(ValueError, match="X"):
        seen.reject(400, {"X": "a\nb"})
    seen.reject(599)
    assert seen.decide(default) == Reject(599, Headers(), b"")


def test_the_certificate_stays_out_of_logs() -> None:
    seen = request()
    seen.tls_peer_certificate = b"DER of a certificate"
    assert "DER" not in repr(seen)


def test_a_response_has_a_body_only_if_there_is_one() -> None:
    assert Response(101, Headers()).body == b""
