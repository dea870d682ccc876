"""WebSocket URLs, and where redirects lead."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._websocket.url import WebSocketURL

PLAIN: list[tuple[str, tuple[str, str, int, str, tuple[str, str] | None, str | None]]] = [
    ("ws://example.test", ("ws", "example.test", 80, "/", None, None)),
    ("wss://example.test", ("wss", "example.test", 443, "/", None, None)),
    ("WS://Example.TEST/Path", ("ws", "example.test", 80, "/Path", None, None)),
    ("WSS://example.test", ("wss", "example.test", 443, "/", None, None)),
    ("ws://example.test:8080/a/b?c=d&e", ("ws", "example.test", 8080, "/a/b?c=d&e", None, None)),
    ("ws://example.test:/", ("ws", "example.test", 80, "/", None, None)),
    ("wss://example.test:80", ("wss", "example.test", 80, "/", None, None)),
    ("ws://example.test?a=b", ("ws", "example.test", 80, "/?a=b", None, None)),
    ("ws://example.test/?a?b/c", ("ws", "example.test", 80, "/?a?b/c", None, None)),
    ("ws://example.test//a", ("ws", "example.test", 80, "//a", None, None)),
    ("ws://example.test/%7Efoo%2F", ("ws", "example.test", 80, "/%7Efoo%2F", None, None)),
    ("ws://example.test/é?ü=€", ("ws", "example.test", 80, "/%C3%A9?%C3%BC=%E2%82%AC", None, None)),
    ('ws://example.test/"<>?"\\', ("ws", "example.test", 80, "/%22%3C%3E?%22%5C", None, None)),
    ("ws://[::1]/", ("ws", "::1", 80, "/", None, None)),
    ("ws://[2001:DB8::1]:9", ("ws", "2001:db8::1", 9, "/", None, None)),
    ("ws://127.0.0.1:1", ("ws", "127.0.0.1", 1, "/", None, None)),
    (f"ws://{'a' * 63}.test.", ("ws", f"{'a' * 63}.test.", 80, "/", None, None)),
    ("ws://under_score.test", ("ws", "under_score.test", 80, "/", None, None)),
    ("ws://bücher.test", ("ws", "xn--bcher-kva.test", 80, "/", None, None)),
    ("ws://BÜCHER.test", ("ws", "xn--bcher-kva.test", 80, "/", None, None)),
    ("ws://ｅｘａｍｐｌｅ。test", ("ws", "example.test", 80, "/", None, None)),
    ("ws://faß.test", ("ws", "xn--fa-hia.test", 80, "/", None, None)),
    ("ws://例え.テスト:8", ("ws", "xn--r8jz45g.xn--zckzah", 8, "/", None, None)),
    ("ws://me:pw@h.test", ("ws", "h.test", 80, "/", ("me", "pw"), None)),
    ("ws://me@h.test", ("ws", "h.test", 80, "/", ("me", ""), None)),
    ("ws://me:@h.test", ("ws", "h.test", 80, "/", ("me", ""), None)),
    ("ws://m%40e:p%3Aw%2F@h.test", ("ws", "h.test", 80, "/", ("m@e", "p:w/"), None)),
    ("ws://me:p:w@h.test", ("ws", "h.test", 80, "/", ("me", "p:w"), None)),
    ("ws://m%C3%A9:p@h.test", ("ws", "h.test", 80, "/", ("mé", "p"), None)),
    ("ws+unix://%2Frun%2Fapp.sock", ("ws+unix", "localhost", 0, "/", None, "/run/app.sock")),
    ("ws+unix://%2FRun%2Fa%20b/x?y", ("ws+unix", "localhost", 0, "/x?y", None, "/Run/a b")),
    ("ws+unix://here.sock/x", ("ws+unix", "localhost", 0, "/x", None, "here.sock")),
]


@pytest.mark.parametrize(("url", "expected"), PLAIN)
def test_parse(
    url: str, expected: tuple[str, str, int, str, tuple[str, str] | None, str | None]
) -> None:
    assert WebSocketURL.parse(url) == WebSocketURL(*expected)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with ws://"),
        ("example.test", "must begin with ws://"),
        ("http://example.test", "must begin with ws://"),
        ("https://example.test", "must begin with ws://"),
        ("//example.test", "must begin with ws://"),
        ("ftp://example.test", "must begin with"),
        ("ws:", "has no host"),
        ("ws://", "has no host"),
        ("ws:example.test", "has no host"),
        ("ws:///path", "has no host"),
        ("ws://:80", "has no host"),
        ("ws://me:pw@/", "has no host"),
        ("ws://h.test/#", "fragment"),
        ("ws://h.test/#a", "fragment"),
        ("ws://h.test#a", "fragment"),
        ("ws://h.test:65536", "not a number from 0 to 65535"),
        ("ws://h.test:-1", "not a number from 0 to 65535"),
        ("ws://h.test:http", "not a number from 0 to 65535"),
        ("ws://h.test/a b", "white space or control"),
        (" ws://h.test", "white space or control"),
        ("ws://h.test/\r\nX: y", "white space or control"),
        ("ws://h.test/\0", "white space or control"),
        ("ws://h.test/\x7f", "white space or control"),
        ("ws://h.te\tst/", "white space or control"),
        ("ws://[::1", "Invalid IPv6"),
        ("ws://h<.test", "host with characters"),
        ("ws://h\\.test", "host with characters"),
        ('ws://h".test', "host with characters"),
        ("ws://\u06dd.test", "no valid name"),
        ("ws://a..test", "no valid name"),
        ("ws://.test", "no valid name"),
        (f"ws://{'a' * 64}.test", "no valid name"),
        (f"ws://{'ü' * 64}.test", "no valid name"),
        ("ws+unix://", "no socket path"),
        ("ws+unix:///x", "no socket path"),
        # RFC 7617 section 2: it could not be told apart from the password.
        ("ws://m%3Ae:pw@h.test", "colon"),
    ],
)
def test_parse_refuses(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        WebSocketURL.parse(url)


def test_only_str_is_a_url() -> None:
    with pytest.raises(TypeError, match="a URL is a str, not bytes"):
        WebSocketURL.parse(b"ws://h.test")  # type: ignore[arg-type]


PARTS = st.lists(
    st.sampled_from(
        [
            "ws://",
            "wss://",
            "ws+unix://",
            "//",
            "http:",
            "h.test",
            "[::1]",
            "[",
            "]",
            ":",
            "80",
            "@",
        ]
        + ["/", "?", "#", "%2F", "%", "ü", "\ud800", "%ff", "..", "\\", "xn--", "~", "a", "\u06dd"]
    ),
    max_size=8,
).map("".join)
URLS = st.one_of(
    st.text(max_size=20), PARTS, PARTS.map(lambda rest: "ws://h" + rest), PARTS.map("ws://".__add__)
)


@settings(deadline=None, max_examples=300)
@given(URLS)
@example("WS://[::]@[:")
def test_any_text_is_a_url_or_a_value_error(url: str) -> None:
    try:
        parsed = WebSocketURL.parse(url)
    except ValueError:
        return
    assert parsed.target.startswith("/")
    assert (parsed.target + parsed.authority).isascii()
    assert (parsed.target + parsed.authority).isprintable()
    assert " " not in parsed.target
    assert 0 <= parsed.port <= 65535
    if parsed.unix_path is None:
        # What goes out in the request leads to the same place.
        again = WebSocketURL.parse(f"{parsed.scheme}://{parsed.authority}{parsed.target}")
        assert (again.origin, again.target) == (parsed.origin, parsed.target)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("ws://h.test:80", "h.test"),
        ("ws://h.test:443", "h.test:443"),
        ("wss://h.test:443", "h.test"),
        ("wss://h.test:80", "h.test:80"),
        ("ws://[::1]", "[::1]"),
        ("ws://[::1]:81", "[::1]:81"),
        ("ws://me:pw@h.test:8", "h.test:8"),
        ("ws+unix://%2Frun%2Fapp.sock", "localhost"),
    ],
)
def test_the_host_header(url: str, authority: str) -> None:
    assert WebSocketURL.parse(url).authority == authority


def test_secure_and_origin() -> None:
    assert WebSocketURL.parse("wss://h").secure
    assert not WebSocketURL.parse("ws://h").secure
    assert not WebSocketURL.parse("ws+unix://h").secure
    origin = WebSocketURL.parse("ws://h/a").origin
    assert WebSocketURL.parse("ws://x:y@H:80/b?c").origin == origin
    for other in ("wss://h", "ws://h:81", "ws://g", "wss://h:80", "ws+unix://h"):
        assert WebSocketURL.parse(other).origin != origin
    sockets = [WebSocketURL.parse(f"ws+unix://{path}").origin for path in ("a", "b")]
    assert sockets[0] != sockets[1]


def test_passwords_stay_out_of_logs() -> None:
    assert "secret" not in repr(WebSocketURL.parse("ws://me:secret@h.test"))


@pytest.mark.parametrize(
    "url",
    [
        "ws://me:secret@h.test:x",
        "ws://me:secret@h.test/#a",
        "ws://me:secret@h<.test",
        "ws://me:secret@\u06dd.test",
        "ws://me:secret@",
        "ws://me:secret@h.test/a b",
        "http://me:secret@h.test/",
    ],
)
def test_messages_hide_passwords(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        WebSocketURL.parse(url)
    assert "secret" not in str(caught.value)


# ---- redirects

WS = "ws://h.test/a/b?c"
WSS = "wss://h.test/a/b?c"
UNIX = "ws+unix://%2Fs/a/b?c"


@pytest.mark.parametrize(
    ("url", "location", "expected"),
    [
        (WS, "/x", "ws://h.test/x"),
        (WS, "x", "ws://h.test/a/x"),
        (WS, "../x?y", "ws://h.test/x?y"),
        (WS, "?y", "ws://h.test/a/b?y"),
        (WS, "", "ws://h.test/a/b?c"),
        (WS, "/x#fragment", "ws://h.test/x"),
        (WS, "//g.test/x", "ws://g.test/x"),
        (WS, "ws://g.test:8/x", "ws://g.test:8/x"),
        (WS, "wss://g.test/x", "wss://g.test/x"),
        (WS, "http://g.test/x", "ws://g.test/x"),
        (WS, "https://g.test/x", "wss://g.test/x"),
        (WS, "HTTP://g.test/x", "ws://g.test/x"),
        (WS, "HTTPS://g.test/x", "wss://g.test/x"),
        (WS, "WSS://g.test/x", "wss://g.test/x"),
        (WS, "http://me:pw@g.test/x", "ws://me:pw@g.test/x"),
        (WS, "http://bücher.test/é", "ws://xn--bcher-kva.test/%C3%A9"),
        (WS, "http://g.test?http://x", "ws://g.test/?http://x"),
        ("ws://h.test:81/", "/x", "ws://h.test:81/x"),
        ("ws://[::1]:81/", "/x", "ws://[::1]:81/x"),
        ("ws://me:pw@h.test/", "/x", "ws://h.test/x"),
        (WSS, "/x", "wss://h.test/x"),
        (WSS, "//g.test/x", "wss://g.test/x"),
        (WSS, "https://g.test:8/x", "wss://g.test:8/x"),
        (WSS, "wss://g.test/x", "wss://g.test/x"),
        (UNIX, "/x", "ws+unix://%2Fs/x"),
        (UNIX, "x?y", "ws+unix://%2Fs/a/x?y"),
        (UNIX, "http://localhost/x", "ws+unix://%2Fs/x"),
        (UNIX, "http://localhost:8080/x", "ws://localhost:8080/x"),
        (UNIX, "http://g.test/x", "ws://g.test/x"),
        (UNIX, "https://g.test/x", "wss://g.test/x"),
    ],
)
def test_where_a_redirect_leads(url: str, location: str, expected: str) -> None:
    assert WebSocketURL.parse(url).redirected(location) == WebSocketURL.parse(expected)


@pytest.mark.parametrize(
    ("url", "location", "why"),
    [
        (WSS, "ws://h.test/x", "from wss to ws is not followed"),
        (WSS, "http://h.test/x", "from wss to ws is not followed"),
        (WSS, "HTTP://h.test/x", "from wss to ws is not followed"),
        (WSS, "ws+unix://%2Fs/", r"from wss to ws\+unix is not followed"),
        (WS, "ws+unix://%2Fs/", "to a Unix socket is not followed"),
        (UNIX, "ws+unix://%2Fother/", "to a Unix socket is not followed"),
        (WS, "ftp://h.test/x", "must begin"),
        (WS, "javascript:alert(1)", "must begin"),
        (WS, "file:///etc/passwd", "must begin"),
        (WS, "http://h.test:x/", "port"),
        (WS, "/a b", "white space"),
        (WS, "http://m%3Ae:pw@g.test/", "colon"),
    ],
)
def test_redirects_that_are_not_followed(url: str, location: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        WebSocketURL.parse(url).redirected(location)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([WS, WSS, UNIX, "ws://[::1]:8/"]), URLS)
def test_any_location_is_followed_or_a_value_error(url: str, location: str) -> None:
    base = WebSocketURL.parse(url)
    try:
        target = base.redirected(location)
    except ValueError:
        return
    assert target.secure or not base.secure
    assert target.unix_path in (None, base.unix_path)
