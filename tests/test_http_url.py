"""The https URLs that lead to an HTTP/3 server (RFC 3986, RFC 9110 section 4.2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._http.url import (
    ServerURL,
    format_authority,
    parse_https_url,
    split_url,
    target_of,
    to_server_url,
)


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://example.test", "example.test", 443, "/"),
        ("https://example.test/", "example.test", 443, "/"),
        ("HTTPS://Example.TEST/Path", "example.test", 443, "/Path"),
        ("https://example.test:4433/a/b?c=d&e", "example.test", 4433, "/a/b?c=d&e"),
        ("https://example.test:/", "example.test", 443, "/"),
        ("https://example.test:443", "example.test", 443, "/"),
        ("https://example.test?a=b", "example.test", 443, "/?a=b"),
        ("https://example.test/?", "example.test", 443, "/"),
        ("https://example.test/?a?b/c", "example.test", 443, "/?a?b/c"),
        ("https://example.test//a", "example.test", 443, "//a"),
        ("https://example.test/%7Efoo%2F", "example.test", 443, "/%7Efoo%2F"),
        ("https://example.test/é?ü=€", "example.test", 443, "/%C3%A9?%C3%BC=%E2%82%AC"),
        ("https://127.0.0.1:1", "127.0.0.1", 1, "/"),
        ("https://[::1]/", "::1", 443, "/"),
        ("https://[2001:DB8::1]:9", "2001:db8::1", 9, "/"),
        ("https://under_score.test", "under_score.test", 443, "/"),
        ("https://example.test.", "example.test.", 443, "/"),
        ("https://bücher.test", "xn--bcher-kva.test", 443, "/"),
        ("https://例え.テスト:8", "xn--r8jz45g.xn--zckzah", 8, "/"),
        ("https://example.test/webtransport:x@y", "example.test", 443, "/webtransport:x@y"),
    ],
)
def test_urls_of_servers(url: str, host: str, port: int, target: str) -> None:
    assert parse_https_url(url) == ServerURL("https", host, port, target, None)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with https://"),
        ("example.test", "must begin with https://"),
        ("//example.test", "must begin with https://"),
        ("http://example.test", "is not a WebTransport URL: it must begin with https://"),
        ("wss://example.test", "must begin with https://"),
        ("https:", "has no host"),
        ("https://", "has no host"),
        ("https:example.test", "has no host"),
        ("https:///path", "has no host"),
        ("https://:443", "has no host"),
        ("https://h.test/#", "fragment, which a WebTransport URL must not have"),
        ("https://h.test#a", "fragment"),
        ("https://h.test:65536", "not a number from 0 to 65535"),
        ("https://h.test:-1", "not a number from 0 to 65535"),
        ("https://h.test:http", "not a number from 0 to 65535"),
        ("https://h.test/a b", "white space or control"),
        (" https://h.test", "white space or control"),
        ("https://h.test\n", "white space or control"),
        ("https://h.test/\r\nX: y", "white space or control"),
        ("https://h.test/\0", "white space or control"),
        ("https://h.te\tst/", "white space or control"),
        ("https://[::1", "Invalid IPv6"),
        ("https://h<.test", "host with characters"),
        ("https://h\\.test", "host with characters"),
        ("https://a..test", "no valid name"),
        (f"https://{'a' * 64}.test", "no valid name"),
        ("https://\u06dd.test", "no valid name"),
        # The WebTransport API of browsers has no credentials either.
        ("https://me@h.test", "user's name, which browsers refuse too"),
        ("https://me:pw@h.test", "user's name"),
        ("https://@h.test", "user's name"),
        ("https://m%3Ae:pw@h.test", "colon"),
    ],
)
def test_urls_that_lead_nowhere(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_https_url(url)


@pytest.mark.parametrize("url", [b"https://h.test", None, 5])
def test_only_str_is_a_url(url: object) -> None:
    with pytest.raises(TypeError, match="a URL is a str, not"):
        parse_https_url(url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@h.test/",
        "https://me:secret@h.test:x",
        "https://me:secret@h.test/#a",
        "https://me:secret@h<.test",
        "https://me:secret@\u06dd.test",
        "https://me:secret@",
        "https://me:secret@h.test/a b",
        "http://me:secret@h.test/",
        "https://me:secret@[::1/",
        "https://m%3Ae:secret@h.test",
    ],
)
def test_messages_hide_passwords(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_https_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://h.test", "h.test"),
        ("https://h.test:443", "h.test"),
        ("https://h.test:80", "h.test:80"),
        ("https://[::1]", "[::1]"),
        ("https://[::1]:4433", "[::1]:4433"),
        ("https://127.0.0.1:4433", "127.0.0.1:4433"),
        ("https://BÜCHER.test", "xn--bcher-kva.test"),
    ],
)
def test_the_authority_of_a_request(url: str, authority: str) -> None:
    assert parse_https_url(url).authority == authority


def test_hosts_and_ports_together() -> None:
    assert format_authority("h.test", None) == "h.test"
    assert format_authority("h.test", 443) == "h.test:443"
    assert format_authority("::1", None) == "[::1]"
    assert format_authority("::1", 0) == "[::1]:0"


# ---- what other schemes need of it


def test_schemes_are_those_that_were_asked_for() -> None:
    schemes = {"ws": 80, "wss": 443, "ws+unix": None}
    parts, shown = split_url("WS://me:pw@h.test/a", "a WebSocket", schemes)
    assert parts.scheme == "ws"
    assert shown == "'WS://h.test/a'"
    with pytest.raises(ValueError, match="is not a WebSocket URL: it must begin with") as caught:
        split_url("https://h.test", "a WebSocket", schemes)
    assert str(caught.value).endswith("must begin with ws://, wss:// or ws+unix://")


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ("me:pw@", ("me", "pw")),
        ("me@", ("me", "")),
        ("m%40e:p%3Aw%2F@", ("m@e", "p:w/")),
        ("me:p:w@", ("me", "p:w")),
        ("", None),
    ],
)
def test_users_and_passwords(credentials: str, expected: tuple[str, str] | None) -> None:
    parts, shown = split_url(f"http://{credentials}h.test/x", "a", {"http": 80})
    assert to_server_url(parts, shown, 80) == ServerURL("http", "h.test", 80, "/x", expected)


@pytest.mark.parametrize(
    ("rest", "target"),
    [("", "/"), ("?", "/"), ("/a;b=c,d", "/a;b=c,d"), ('/"<>"', "/%22%3C%3E%22"), ("/%", "/%")],
)
def test_targets(rest: str, target: str) -> None:
    assert target_of(split_url(f"http://h.test{rest}", "a", {"http": 80})[0]) == target


# ---- any text

PARTS = st.lists(
    st.sampled_from(["https://", "//", "http:", "h.test", "[::1]", "[", "]", ":", "80", "@"])
    | st.sampled_from(["/", "?", "#", "%2F", "%", "ü", "\ud800", "%ff", "..", "\\", "xn--", "~"])
    | st.sampled_from(["a", "\u06dd", "\u3002", "\u2100", "65536", "&", "=", "'", '"']),
    max_size=8,
).map("".join)
URLS = st.one_of(
    st.text(max_size=20),
    PARTS,
    PARTS.map("https://h".__add__),
    PARTS.map("https://".__add__),
    PARTS.map("https://h.test/".__add__),
)


@given(URLS)
@settings(deadline=None, max_examples=400)
def test_any_text_is_a_url_or_a_value_error(url: str) -> None:
    try:
        parsed = parse_https_url(url)
    except ValueError:
        return
    assert parsed.scheme == "https"
    assert parsed.auth is None
    assert parsed.target.startswith("/")
    assert (parsed.target + parsed.authority).isascii()
    assert (parsed.target + parsed.authority).isprintable()
    assert " " not in parsed.target + parsed.authority
    assert "#" not in parsed.target
    assert 0 <= parsed.port <= 65535
    # What goes out in the request leads to the same place.
    assert parse_https_url(f"https://{parsed.authority}{parsed.target}") == parsed
