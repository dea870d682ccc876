"""The rules of the opening handshake, RFC 6455 section 4."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deflate_peers import OPEN
from trio_wt import Deflate, ExtensionCodec, Headers
from trio_wt._protocol.extensions import Parameters
from trio_wt._protocol.handshake import (
    RESERVED,
    BadRequest,
    BadResponse,
    Origins,
    accept_key,
    check_extra_headers,
    check_request,
    check_response,
    check_subprotocols,
    choose_subprotocol,
    is_upgrade,
    new_key,
    offered_subprotocols,
    origin_allowed,
    request_headers,
    response_headers,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

# ---- keys


def test_the_example_of_section_1_3() -> None:
    assert accept_key(KEY) == ACCEPT


def test_keys_are_fresh_and_of_16_bytes() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}


# ---- names and headers a caller gives


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a;b", "é", "a\r\n", "a\n", '"a"', "a/b"])
def test_subprotocols_are_tokens(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid subprotocol name"):
        check_subprotocols(["fine", name])


def test_subprotocols_are_unique_and_in_a_sequence() -> None:
    check_subprotocols([])
    check_subprotocols(["chat", "Chat", "v1.x!"])
    with pytest.raises(ValueError, match="subprotocols are repeated"):
        check_subprotocols(["a", "b", "a"])
    with pytest.raises(TypeError, match="not one string"):
        check_subprotocols("chat")


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Content-Length",
        "Sec-WebSocket-Accept",
        "Sec-WebSocket-Extensions",
        "sec-websocket-key",
        "SEC-WEBSOCKET-PROTOCOL",
        "Sec-WebSocket-Version",
        "Transfer-Encoding",
        "Upgrade",
    ],
)
def test_the_handshakes_own_headers_cannot_be_given(name: str) -> None:
    assert name.lower() in RESERVED
    extra = Headers([("X", "y"), (name, "1")])
    with pytest.raises(ValueError, match=f"the header {name} belongs to the handshake"):
        check_extra_headers(extra)
    with pytest.raises(ValueError, match=name):
        request_headers(host="h", key=KEY, subprotocols=[], extensions=[], extra=extra)
    with pytest.raises(ValueError, match=name):
        response_headers(Headers(), key=KEY, subprotocol=None, extensions=[], extra=extra)


def test_any_other_header_may_be_given() -> None:
    check_extra_headers(Headers({"Origin": "x", "Cookie": "a=b", "Host": "h", "User-Agent": "u"}))


# ---- what a server checks

UPGRADE = Headers(
    [
        ("Host", "example.test"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ]
)


@pytest.mark.parametrize(
    ("upgrade", "connection", "wanted"),
    [
        ("websocket", "Upgrade", True),
        ("WebSocket", "keep-alive, upgrade", True),
        ("h2c, websocket", "UPGRADE", True),
        ("websocket", "keep-alive", False),
        ("websocket", None, False),
        ("h2c", "Upgrade", False),
        (None, "Upgrade", False),
        ("websockets", "Upgrade", False),
        ("web socket", "Upgrade", False),
        ("websocket", "Upgraded", False),
        (None, None, False),
    ],
)
def test_whether_a_request_is_an_upgrade(
    upgrade: str | None, connection: str | None, wanted: bool
) -> None:
    fields = [("Upgrade", upgrade), ("Connection", connection)]
    headers = Headers([(name, value) for name, value in fields if value is not None])
    assert is_upgrade(headers) is wanted


def test_tokens_of_an_upgrade_may_be_on_several_lines() -> None:
    headers = Headers(
        [
            ("Connection", "keep-alive"),
            ("Connection", "Upgrade"),
            ("Upgrade", "h2c"),
            ("upgrade", "websocket"),
        ]
    )
    assert is_upgrade(headers)


def test_a_good_request_gives_its_key() -> None:
    assert check_request("GET", "1.1", UPGRADE) == KEY
    assert check_request("GET", "1.1", UPGRADE + [("Content-Length", "0")]) == KEY


@pytest.mark.parametrize("method", ["POST", "HEAD", "get", "CONNECT", "OPTIONS"])
def test_a_handshake_is_a_get(method: str) -> None:
    with pytest.raises(BadRequest, match="GET") as caught:
        check_request(method, "1.1", UPGRADE)
    assert caught.value.status == 405
    assert caught.value.message == str(caught.value)
    assert caught.value.headers == Headers({"Allow": "GET"})


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.0", "1.2"])
def test_a_handshake_is_http_1_1(version: str) -> None:
    with pytest.raises(BadRequest, match=r"HTTP/1\.1") as caught:
        check_request("GET", version, UPGRADE)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "field",
    [
        ("Content-Length", "1"),
        ("Content-Length", "00"),
        ("Transfer-Encoding", "chunked"),
        ("Transfer-Encoding", ""),
    ],
)
def test_a_handshake_has_no_body(field: tuple[str, str]) -> None:
    with pytest.raises(BadRequest, match="no body") as caught:
        check_request("GET", "1.1", UPGRADE + [field])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "versions", [[], ["12"], ["013"], ["13, 8"], ["13", "13"], ["8", "13"], [""]]
)
def test_only_version_13_is_spoken(versions: list[str]) -> None:
    headers = UPGRADE.without("sec-websocket-version")
    headers += [("Sec-WebSocket-Version", version) for version in versions]
    with pytest.raises(BadRequest, match="version 13") as caught:
        check_request("GET", "1.1", headers)
    assert caught.value.status == 426
    # Section 4.4: the versions that are understood; RFC 9110 section 15.5.22: the protocols.
    assert caught.value.headers == Headers(
        [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")]
    )


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [""],
        [KEY, KEY],
        [KEY[:-4]],
        [base64.b64encode(bytes(15)).decode()],
        [base64.b64encode(bytes(17)).decode()],
        [base64.b64encode(bytes(16)).decode().rstrip("=")],
        ["*" * 22 + "=="],
        [KEY[:10] + " " + KEY[10:]],
        [KEY + "x"],
        ["é" * 22 + "=="],
        ["dGhlIHNhbXBsZSBub25j_-=="],
    ],
)
def test_the_key_is_one_of_16_bytes(keys: list[str]) -> None:
    headers = UPGRADE.without("sec-websocket-key") + [("Sec-WebSocket-Key", key) for key in keys]
    with pytest.raises(BadRequest, match="16 bytes in base64") as caught:
        check_request("GET", "1.1", headers)
    assert caught.value.status == 400


# ---- Origin

HOSTS: list[tuple[str, str, bool]] = [
    ("http://example.test", "example.test", True),
    ("https://example.test", "example.test", True),
    ("HTTP://EXAMPLE.test", "Example.TEST", True),
    ("http://example.test.", "example.test", True),
    ("http://example.test", "example.test.", True),
    ("http://example.test:80", "example.test", True),
    ("http://example.test", "example.test:80", True),
    ("https://example.test:443", "example.test", True),
    ("https://example.test", "example.test:443", True),
    ("http://example.test:8080", "example.test:8080", True),
    ("http://example.test:8080", "example.test", False),
    ("http://example.test", "example.test:8080", False),
    ("https://example.test:80", "example.test", False),
    ("https://example.test", "example.test:80", False),
    ("http://example.test", "example.test:443", False),
    ("http://sub.example.test", "example.test", False),
    ("http://example.test", "sub.example.test", False),
    ("http://example.test.evil.test", "example.test", False),
    ("http://evilexample.test", "example.test", False),
    ("http://example.test@evil.test", "example.test", False),
    ("http://me@example.test", "example.test", False),
    ("http://example.test/", "example.test", False),
    ("http://example.test/path", "example.test", False),
    ("http://evil.test?example.test", "example.test", False),
    ("http://example.test#", "example.test", True),
    ("http://evil.test#example.test", "example.test", False),
    ("http://example.test:bad", "example.test", False),
    ("http://example.test:99999", "example.test:99999", False),
    ("http://[::1]", "[::1]", True),
    ("http://[::1]:80", "[::1]", True),
    ("http://[::1]:8000", "[::1]:8000", True),
    ("http://[::1]:8000", "[::1]", False),
    ("http://[::1]", "[::2]", False),
    ("http://[::1", "[::1", False),
    ("http://127.0.0.1:9", "127.0.0.1:9", True),
    ("http://127.0.0.1", "localhost", False),
    ("ws://example.test", "example.test:80", True),
    ("wss://example.test", "example.test:443", True),
    ("app://example.test", "example.test", True),
    ("app://example.test", "example.test:80", False),
    ("null", "null", False),
    ("null", "example.test", False),
    ("", "", False),
    ("http://", "", False),
    ("://example.test", "example.test", True),
    ("example.test", "example.test", False),
    ("http://example.test", "", False),
    ("http://example.test", "example.test example.test", False),
]


@pytest.mark.parametrize(("origin", "host", "allowed"), HOSTS)
def test_same_host_compares_host_and_port(origin: str, host: str, allowed: bool) -> None:
    assert origin_allowed(origin, host, "same-host") is allowed


ORIGIN = "https://app.test"


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, "same-host", True),
        (None, [], True),
        (None, [ORIGIN], True),
        ("null", "any", True),
        ("whatever", "any", True),
        (ORIGIN, [], False),
        (ORIGIN, [ORIGIN], True),
        (ORIGIN, ["https://other.test", ORIGIN], True),
        (ORIGIN + ":443", [ORIGIN], False),
        (ORIGIN + ".evil", [ORIGIN], False),
        ("null", [ORIGIN], False),
        ("null", ["null"], True),
        ("https://a.app.test", [re.compile(r"https://\w+\.app\.test")], True),
        ("https://a.app.test.evil", [re.compile(r"https://\w+\.app\.test")], False),
        ("xhttps://a.app.test", [re.compile(r"https://\w+\.app\.test")], False),
        (ORIGIN, [re.compile("nothing"), ORIGIN], True),
        # A string is no pattern, and the request's own host is not let in by itself.
        ("https://a.app.test", [r"https://\w+\.app\.test"], False),
        ("https://host.test", [ORIGIN], False),
    ],
)
def test_lists_and_patterns(origin: str | None, origins: Origins, allowed: bool) -> None:
    assert origin_allowed(origin, "host.test", origins) is allowed


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_origin_or_host_raises(origin: str, host: str) -> None:
    origin_allowed(origin, host, "same-host")
    origin_allowed(f"http://{origin}", host, "same-host")


# ---- subprotocols


def test_a_server_chooses_by_its_own_preference() -> None:
    assert choose_subprotocol(["a", "b"], ["b", "a"]) == "b"
    assert choose_subprotocol(["a"], ["b", "a"]) == "a"
    assert choose_subprotocol(["a"], ["A"]) is None
    assert choose_subprotocol([], ["a"]) is None
    assert choose_subprotocol(["a"], []) is None


def test_what_a_client_offers_is_read_from_all_lines() -> None:
    headers = Headers(
        [("Sec-WebSocket-Protocol", "chat, superchat"), ("sec-websocket-protocol", "v2, a b, é,")]
    )
    assert offered_subprotocols(headers) == ["chat", "superchat", "v2"]
    assert offered_subprotocols(Headers()) == []


# ---- the server's answer


def test_an_answer_in_full() -> None:
    headers, codecs = response_headers(
        UPGRADE + [("Sec-WebSocket-Extensions", "unknown, permessage-deflate")],
        key=KEY,
        subprotocol="chat",
        extensions=[Deflate()],
        extra=Headers({"Set-Cookie": "a=b"}),
    )
    assert headers.fields == (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", ACCEPT),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=12"),
        ("Set-Cookie", "a=b"),
    )
    assert [codec.name for codec in codecs] == ["permessage-deflate"]


class Other(Deflate):
    name = "other"

    def accept(self, offer: Parameters) -> ExtensionCodec | None:
        codec = super().accept(offer)
        assert codec is not None
        codec.__class__ = type("Codec", (type(codec),), {"name": "other", "rsv": 0x20})
        return codec


def test_several_extensions_are_a_list() -> None:
    headers, codecs = response_headers(
        UPGRADE + [("Sec-WebSocket-Extensions", "permessage-deflate, other")],
        key=KEY,
        subprotocol=None,
        extensions=[OPEN, Other(server_max_window_bits=15)],
        extra=Headers(),
    )
    assert headers["sec-websocket-extensions"] == "permessage-deflate, other"
    assert [codec.name for codec in codecs] == ["permessage-deflate", "other"]
    request = request_headers(
        host="h",
        key=KEY,
        subprotocols=[],
        extensions=[OPEN, Other(client_max_window_bits=9)],
        extra=Headers(),
    )
    assert request["sec-websocket-extensions"] == (
        "permessage-deflate; client_max_window_bits, "
        "other; server_max_window_bits=12; client_max_window_bits=9"
    )


def test_an_answer_says_nothing_of_what_was_not_agreed_on() -> None:
    headers, codecs = response_headers(
        UPGRADE + [("Sec-WebSocket-Extensions", "unknown")],
        key=KEY,
        subprotocol=None,
        extensions=[Deflate()],
        extra=Headers(),
    )
    assert list(headers) == ["upgrade", "connection", "sec-websocket-accept"]
    assert codecs == []


def test_a_malformed_list_of_extensions_is_a_bad_request() -> None:
    request = UPGRADE + [("Sec-WebSocket-Extensions", "a b")]
    with pytest.raises(BadRequest, match="Sec-WebSocket-Extensions: malformed") as caught:
        response_headers(request, key=KEY, subprotocol=None, extensions=[], extra=Headers())
    assert caught.value.status == 400


def test_a_subprotocol_that_is_no_token_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not a valid subprotocol"):
        response_headers(UPGRADE, key=KEY, subprotocol="a\r\nb", extensions=[], extra=Headers())


# ---- the client's request


def test_a_request_in_full() -> None:
    headers = request_headers(
        host="example.test:81",
        key=KEY,
        subprotocols=["chat", "v2"],
        extensions=[Deflate()],
        extra=Headers({"Origin": "http://o.test"}),
    )
    assert headers.fields == (
        ("Host", "example.test:81"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", "chat, v2"),
        (
            "Sec-WebSocket-Extensions",
            "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        ("Origin", "http://o.test"),
    )
    assert check_request("GET", "1.1", headers) == KEY


def test_a_plain_request_offers_nothing_and_host_can_be_given() -> None:
    headers = request_headers(
        host="a.test", key=KEY, subprotocols=[], extensions=[], extra=Headers({"host": "b.test"})
    )
    assert headers.get_all("host") == ["b.test"]
    assert "sec-websocket-protocol" not in headers
    assert "sec-websocket-extensions" not in headers


def test_a_request_with_a_bad_subprotocol_is_not_made() -> None:
    with pytest.raises(ValueError, match="subprotocol"):
        request_headers(host="h", key=KEY, subprotocols=["a,b"], extensions=[], extra=Headers())


# ---- what a client checks

RESPONSE = Headers(
    [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
)


def check(headers: Headers, subprotocols: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    subprotocol, codecs = check_response(
        headers, key=KEY, subprotocols=subprotocols, extensions=[Deflate()]
    )
    return subprotocol, [codec.name for codec in codecs]


def test_a_good_response() -> None:
    assert check(RESPONSE) == (None, [])
    assert check(RESPONSE, ["chat"]) == (None, [])
    assert check(RESPONSE + [("Sec-WebSocket-Protocol", "b")], ["a", "b"]) == ("b", [])
    deflate = ("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=12")
    assert check(RESPONSE + [deflate]) == (None, ["permessage-deflate"])
    case = Headers([("UPGRADE", "WebSocket"), ("connection", "x, upgrade"), RESPONSE.fields[2]])
    assert check(case) == (None, [])


@pytest.mark.parametrize(
    ("without", "added", "why"),
    [
        ("upgrade", [], "does not upgrade"),
        ("upgrade", [("Upgrade", "h2c")], "does not upgrade"),
        ("connection", [], "does not upgrade"),
        ("connection", [("Connection", "close")], "does not upgrade"),
        ("sec-websocket-accept", [], "does not belong to our key"),
        ("sec-websocket-accept", [("Sec-WebSocket-Accept", KEY)], "does not belong to our key"),
        ("sec-websocket-accept", [("Sec-WebSocket-Accept", ACCEPT.lower())], "does not belong"),
        ("", [("Sec-WebSocket-Accept", ACCEPT)], "does not belong"),
        ("", [("Sec-WebSocket-Protocol", "other")], "'other', which was not offered"),
        ("", [("Sec-WebSocket-Protocol", "CHAT")], "not offered"),
        ("", [("Sec-WebSocket-Protocol", "")], "not offered"),
        ("", [("Sec-WebSocket-Protocol", "chat")] * 2, "not offered"),
        ("", [("Sec-WebSocket-Protocol", "chat, v2")], "not offered"),
        ("", [("Sec-WebSocket-Extensions", "foo")], "Sec-WebSocket-Extensions: .*not offered"),
        ("", [("Sec-WebSocket-Extensions", "a b")], "Sec-WebSocket-Extensions: malformed"),
        (
            "",
            [("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=13")],
            "larger window",
        ),
    ],
)  # fmt: skip
def test_a_bad_response(without: str, added: list[tuple[str, str]], why: str) -> None:
    with pytest.raises(BadResponse, match=why):
        check(RESPONSE.without(without) + added, ["chat", "v2"])
