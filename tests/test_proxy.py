"""Proxies: their URLs, and which one the environment's variables choose."""

from __future__ import annotations

import urllib.request
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._transport.proxy import Proxy, proxy_for

SECRET = "open-sesame"


# --- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.test:3128", ("http", "proxy.test", 3128, None, None)),
        ("HTTP://Proxy.TEST/", ("http", "proxy.test", 80, None, None)),
        ("https://proxy.test", ("https", "proxy.test", 443, None, None)),
        ("socks5://[::1]:9050", ("socks5", "::1", 9050, None, None)),
        ("socks5h://127.0.0.1", ("socks5h", "127.0.0.1", 1080, None, None)),
        ("socks://127.0.0.1:1", ("socks5h", "127.0.0.1", 1, None, None)),
        ("socks4://proxy.test", ("socks4", "proxy.test", 1080, None, None)),
        ("socks4a://me@proxy.test", ("socks4a", "proxy.test", 1080, "me", None)),
        ("http://me@proxy.test", ("http", "proxy.test", 80, "me", "")),
        ("http://proxy.test:", ("http", "proxy.test", 80, None, None)),
        ("http://@proxy.test", ("http", "proxy.test", 80, None, None)),
        ("http://m%C3%A9:p%3A%40w@proxy.test", ("http", "proxy.test", 80, "mé", "p:@w")),
        ("http://bücher.test:8", ("http", "xn--bcher-kva.test", 8, None, None)),
    ],
)
def test_parse(url: str, expected: tuple[str, str, int, str | None, str | None]) -> None:
    assert Proxy.parse(url) == Proxy(*expected)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with one of http://, https://, socks5://"),
        ("proxy.test:3128", "must begin with"),
        ("ftp://proxy.test", "must begin with"),
        ("http:proxy.test", "must begin with"),
        ("http://", "host is missing"),
        ("http://:80", "host is missing"),
        ("http://proxy.test:0", "port must be"),
        ("http://proxy.test:65536", "port must be"),
        ("http://proxy.test:http", "port must be"),
        ("http://[::1", "cannot be parsed"),
        ("http://\u2260.test\u2100", "cannot be parsed"),
        ("http://\u06dd.test", "no valid name"),
        (f"http://{'a' * 256}", "host is missing or has characters"),
        ("http://proxy.test/path", "means nothing"),
        ("http://proxy.test/?a=b", "means nothing"),
        ("http://proxy.test/#a", "means nothing"),
        ("http://pro xy.test", "white space"),
        ("http://proxy.test\r\nX: y", "control characters"),
        ("http://me:%00@proxy.test", "control characters"),
        ("http://me:%ff@proxy.test", "percent-encoded UTF-8"),
        ("http://m%3Ae:pw@proxy.test", "colon"),
        ("socks4://me:pw@proxy.test", "no password"),
        ("socks4://m%C3%A9@proxy.test", "in ASCII"),
        ("socks5://me@proxy.test", "a user and a password"),
        ("socks5://:pw@proxy.test", "a user and a password"),
        ("socks5://me:p%C3%A9@proxy.test", "of ASCII"),
        (f"socks5://me:{'p' * 256}@proxy.test", "1 to 255"),
    ],
)
def test_parse_refuses(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        Proxy.parse(url)
    assert caught.value.__suppress_context__


def test_a_password_needs_a_user() -> None:
    with pytest.raises(ValueError, match="no user"):
        Proxy("http", "proxy.test", 80, None, "pw")
    with pytest.raises(ValueError, match="scheme must be one of"):
        Proxy("gopher", "proxy.test", 70)


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@proxy.test:x",
        f"http://me:{SECRET}@[::1",
        f"http://me:{SECRET}@proxy.test\u2100",
        f"http://me:{SECRET}/@proxy.test",
        f"http://me:\n{SECRET}@proxy.test",
        f"me:{SECRET}@proxy.test",
        f"http:/me:{SECRET}@proxy.test",
        f"socks4://me:{SECRET}@proxy.test",
    ],
)
def test_messages_hide_credentials(url: str) -> None:
    with pytest.raises(ValueError, match=r"\*\*\*@") as caught:
        Proxy.parse(url)
    assert SECRET not in str(caught.value)


def test_repr_and_str_hide_the_password() -> None:
    proxy = Proxy.parse(f"http://me:{SECRET}@[::1]:8")
    assert proxy.password == SECRET
    assert SECRET not in repr(proxy)
    assert str(proxy) == "http://[::1]:8"


@settings(deadline=None)
@given(st.text() | st.builds("{}://{}".format, st.sampled_from(["http", "socks5"]), st.text()))
def test_parse_raises_nothing_but_value_error(text: str) -> None:
    try:
        proxy = Proxy.parse(text)
    except ValueError:
        return
    assert 0 < proxy.port < 65536


_PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)


@settings(deadline=None)
@given(
    scheme=st.sampled_from(["http", "https", "socks5", "socks5h"]),
    host=st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?", fullmatch=True)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str),
    port=st.integers(1, 65535),
    auth=st.none() | st.tuples(_PRINTABLE.filter(lambda user: ":" not in user), _PRINTABLE),
)
def test_parse_gives_back_what_was_put_together(
    scheme: str, host: str, port: int, auth: tuple[str, str] | None
) -> None:
    userinfo = f"{quote(auth[0], safe='')}:{quote(auth[1], safe='')}@" if auth else ""
    bracketed = f"[{host}]" if ":" in host else host
    proxy = Proxy.parse(f"{scheme}://{userinfo}{bracketed}:{port}")
    assert proxy == Proxy(scheme, host, port, *(auth or (None, None)))


# --- which proxy


def test_a_setting_goes_before_the_environment() -> None:
    environ = {"all_proxy": "http://env.test"}
    assert proxy_for("ws", "a.test", 80, None, environ) is None
    assert str(proxy_for("ws", "a.test", 80, "http://arg.test", environ)) == "http://arg.test:80"
    assert str(proxy_for("ws", "a.test", 80, "environment", environ)) == "http://env.test:80"


@pytest.mark.parametrize(
    ("environ", "ws", "wss"),
    [
        ({}, None, None),
        ({"http_proxy": "http://h"}, "http://h:80", None),
        ({"HTTP_PROXY": "http://h"}, "http://h:80", None),
        ({"HTTP_PROXY": "http://h", "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": "http://h", "REQUEST_METHOD": "GET"}, "http://h:80", None),
        ({"HTTPS_PROXY": "http://s", "REQUEST_METHOD": "GET"}, "http://s:80", "http://s:80"),
        ({"http_proxy": "http://h", "https_proxy": "http://s"}, "http://s:80", "http://s:80"),
        ({"https_proxy": "http://s", "HTTPS_PROXY": "http://S"}, "http://s:80", "http://s:80"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://s"}, None, None),
        ({"https_proxy": " ", "all_proxy": "http://a"}, "http://a:80", "http://a:80"),
        ({"all_proxy": "http://a", "http_proxy": "http://h"}, "http://h:80", "http://a:80"),
        ({"ALL_PROXY": "socks://a/"}, "socks5h://a:1080", "socks5h://a:1080"),
        ({"socks_proxy": "s:1", "https_proxy": "http://h"}, "socks5h://s:1", "socks5h://s:1"),
        ({"https_proxy": "s:3128"}, "http://s:3128", "http://s:3128"),
        ({"ws_proxy": "http://w", "socks_proxy": "s"}, "http://w:80", "socks5h://s:1080"),
        ({"WSS_PROXY": "http://w", "https_proxy": "http://h"}, "http://h:80", "http://w:80"),
    ],
)
def test_environment(environ: dict[str, str], ws: str | None, wss: str | None) -> None:
    for scheme, expected in (("ws", ws), ("wss", wss)):
        proxy = proxy_for(scheme, "example.com", 80, "environment", environ)
        assert (None if proxy is None else str(proxy)) == expected, scheme


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("wss_proxy", "http://process.test")
    monkeypatch.setenv("no_proxy", "direct.test")
    assert str(proxy_for("wss", "a.test", 443, "environment")) == "http://process.test:80"
    assert proxy_for("wss", "direct.test", 443, "environment") is None


def test_a_bad_variable_is_named() -> None:
    environ = {"HTTPS_PROXY": f"http://me:{SECRET}@proxy.test:x"}
    with pytest.raises(ValueError, match="environment variable HTTPS_PROXY") as caught:
        proxy_for("wss", "a.test", 443, "environment", environ)
    assert SECRET not in str(caught.value)
    assert proxy_for("wss", "a.test", 443, "environment", {**environ, "no_proxy": "*"}) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("", "", "example.com:80 127.0.0.1:80"),
        ("*", "example.com:80 [::1]:80", ""),
        ("a.test, *", "example.com:80", ""),
        ("example.com", "example.com:80 EXAMPLE.com.:80 a.b.example.com:1", "notexample.com:80"),
        (".Example.com", "example.com:80 a.example.com:80", "example.com.evil.test:80"),
        ("*.example.com", "a.example.com:80", "example.org:80"),
        ("a.test,b.test c.test", "a.test:80 b.test:80 c.test:80", "d.test:80"),
        ("example.com:8080", "example.com:8080 a.example.com:8080", "example.com:80"),
        ("127.0.0.1", "127.0.0.1:80", "127.0.0.2:80 1.127.0.0.1.test:80"),
        (".0.0.1", "", "127.0.0.1:80"),
        ("127.0.0.1:81", "127.0.0.1:81", "127.0.0.1:80"),
        ("10.0.0.0/8", "10.1.2.3:80", "11.0.0.1:80 [::a00:1]:80 10.test:80"),
        ("10.1.2.3/8", "10.9.9.9:80", "11.0.0.1:80"),
        ("10.0.0.0/8:81", "10.1.2.3:81", "10.1.2.3:80"),
        ("::1", "[::1]:80 [0:0::1]:80", "[::2]:80 127.0.0.1:80"),
        ("[::1]", "[::1]:80", "[::2]:80"),
        ("[::1]:81", "[::1]:81", "[::1]:80"),
        ("fd00::/8", "[fd12::1]:80", "[fe80::1]:80"),
        ("10.0.0.0/99,300.1.1.1,[,],:,::,.,example.com:99999", "", "10.0.0.1:80 example.com:80"),
    ],
)
def test_no_proxy(no_proxy: str, direct: str, proxied: str) -> None:
    environ = {"all_proxy": "http://proxy.test", "NO_PROXY": no_proxy}
    for servers, expected in ((direct, True), (proxied, False)):
        for server in servers.split():
            host, _, port = server.rpartition(":")
            proxy = proxy_for("ws", host.strip("[]"), int(port), "environment", environ)
            assert (proxy is None) is expected, server


# typeshed knows it on some systems only
_bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined,unused-ignore]
_NAMES = st.from_regex(r"[ab](\.[ab]){0,2}", fullmatch=True)
_ENTRIES = st.builds(
    "{}{}{}".format, st.sampled_from(["", "."]), _NAMES, st.sampled_from(["", ":8"])
)


@settings(deadline=None)
@given(_NAMES, st.lists(_ENTRIES, max_size=4).map(",".join))
def test_no_proxy_means_what_it_means_to_urllib(host: str, no_proxy: str) -> None:
    environ = {"all_proxy": "http://proxy.test", "no_proxy": no_proxy}
    expected = _bypass(f"{host}:8", {"no": no_proxy})
    assert (proxy_for("ws", host, 8, "environment", environ) is None) is bool(expected)


@settings(deadline=None)
@given(st.text(), st.sampled_from(["example.com", "10.0.0.1", "::1", "fe80::1%eth0"]))
def test_no_proxy_may_be_nonsense(no_proxy: str, host: str) -> None:
    proxy_for("ws", host, 80, "environment", {"all_proxy": "http://p", "no_proxy": no_proxy})
