"""Which route a path takes."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt import Headers
from trio_wt.app import App, Converter, HTTPError, Request
from trio_wt.app._routing import Routes

UUID = "6f1c2b52-0a0f-4d3c-9a54-1d2e3f405162"


def routes(*patterns: str, converters: Mapping[str, Converter] | None = None) -> Routes[str]:
    found: Routes[str] = Routes(converters)
    for pattern in patterns:
        found.add(pattern, lambda pattern=pattern: pattern)  # type: ignore[misc]
    return found


def first(table: Routes[str], path: str) -> tuple[str, dict[str, Any]] | None:
    return next(table.match(path), None)


# ---- what matches


@pytest.mark.parametrize(
    ("pattern", "path", "params"),
    [
        ("/", "/", {}),
        ("/a", "/a", {}),
        ("/a/", "/a/", {}),
        ("/a//b", "/a//b", {}),
        ("/{x}", "/hello", {"x": "hello"}),
        ("/{x:str}", "/hello", {"x": "hello"}),
        ("/{x}/", "/hello/", {"x": "hello"}),
        ("/{x}/{y}", "/1/2", {"x": "1", "y": "2"}),
        ("/{n:int}", "/0", {"n": 0}),
        ("/{n:int}", "/007", {"n": 7}),
        ("/{n:int}", "/999999999999999999", {"n": 10**18 - 1}),
        ("/{n:float}", "/1.5", {"n": 1.5}),
        ("/{n:float}", "/2", {"n": 2.0}),
        ("/{u:uuid}", f"/{UUID}", {"u": uuid.UUID(UUID)}),
        ("/{u:uuid}", f"/{UUID.upper()}", {"u": uuid.UUID(UUID)}),
        ("/files/{p:path}", "/files/", {"p": ""}),
        ("/files/{p:path}", "/files/a", {"p": "a"}),
        ("/files/{p:path}", "/files/a/b//c/", {"p": "a/b//c/"}),
        ("/{p:path}", "/", {"p": ""}),
        ("/{x}/{p:path}", "/a/b/c", {"x": "a", "p": "b/c"}),
        ("/{_x1}", "/a", {"_x1": "a"}),
    ],
)
def test_patterns_that_match(pattern: str, path: str, params: dict[str, object]) -> None:
    assert first(routes(pattern), path) == (pattern, params)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/", ""),
        ("/", "//"),
        ("/", "*"),
        ("/", "example.test:443"),
        ("/a", "/a/"),
        ("/a/", "/a"),
        ("/a", "/A"),
        ("/{x}", "/"),
        ("/{x}", "/a/"),
        ("/{x}/b", "//b"),
        ("/{n:int}", "/-1"),
        ("/{n:int}", "/+1"),
        ("/{n:int}", "/1_0"),
        ("/{n:int}", "/1.0"),
        ("/{n:int}", "/%D9%A1"),  # ARABIC-INDIC DIGIT ONE
        ("/{n:int}", "/1%0A"),
        ("/{n:int}", "/1000000000000000000"),
        ("/{n:float}", "/nan"),
        ("/{n:float}", "/inf"),
        ("/{n:float}", "/1e5"),
        ("/{n:float}", "/.5"),
        ("/{u:uuid}", f"/{UUID}0"),
        ("/{u:uuid}", f"/{{{UUID}}}"),
        ("/files/{p:path}", "/files"),
        ("/a/{x}", "/a"),
    ],
)
def test_paths_that_do_not_match(pattern: str, path: str) -> None:
    assert first(routes(pattern), path) is None


# ---- percent-encoding


@pytest.mark.parametrize(
    ("pattern", "path", "params"),
    [
        ("/café", "/caf%C3%A9", {}),
        ("/caf%C3%A9", "/caf%c3%a9", {}),
        ("/a b", "/a%20b", {}),
        ("/a%2Fb", "/a%2fb", {}),
        ("/abc", "/%61bc", {}),
        ("/{x}", "/a%2Fb", {"x": "a/b"}),
        ("/{x}", "/100%25", {"x": "100%"}),
        ("/{x}", "/%", {"x": "%"}),
        ("/{x}", "/%zz", {"x": "%zz"}),
        ("/{x}", "/a+b", {"x": "a+b"}),
        ("/{x}", "/%00", {"x": "\0"}),
        ("/{x}", "/%0A", {"x": "\n"}),
        ("/{x}", "/%FF", {"x": "\ufffd"}),
        ("/{p:path}", "/a%2Fb/c", {"p": "a/b/c"}),
        ("/{x}/b", "/%2e%2e/b", {"x": ".."}),
    ],
)
def test_segments_are_decoded_after_they_were_separated(
    pattern: str, path: str, params: dict[str, object]
) -> None:
    assert first(routes(pattern), path) == (pattern, params)


def test_an_encoded_slash_separates_nothing() -> None:
    table = routes("/a/b", "/{x}")
    assert first(table, "/a%2Fb") == ("/{x}", {"x": "a/b"})


# ---- specificity


@pytest.mark.parametrize("turned", [False, True])
def test_what_takes_less_goes_first_in_whatever_order_it_was_added(turned: bool) -> None:
    patterns = ["/{p:path}", "/{s}", "/{hex:hex}", "/{u:uuid}", "/{f:float}", "/{i:int}", "/7"]
    converters = {"hex": Converter("[0-9a-f-]+", str)}
    table = routes(*(reversed(patterns) if turned else patterns), converters=converters)

    def all_of(path: str) -> list[str]:
        return [pattern for pattern, _ in table.match(path)]

    assert all_of("/7") == [p for p in reversed(patterns) if p != "/{u:uuid}"]
    assert all_of("/8") == ["/{i:int}", "/{f:float}", "/{hex:hex}", "/{s}", "/{p:path}"]
    assert all_of("/8.5") == ["/{f:float}", "/{s}", "/{p:path}"]
    assert all_of(f"/{UUID}") == ["/{u:uuid}", "/{hex:hex}", "/{s}", "/{p:path}"]
    assert all_of("/z") == ["/{s}", "/{p:path}"]
    assert all_of("/z/z") == all_of("/") == ["/{p:path}"]


def test_the_earlier_segment_decides_first() -> None:
    table = routes("/a/{x}", "/{x}/b")
    assert [pattern for pattern, _ in table.match("/a/b")] == ["/a/{x}", "/{x}/b"]


def test_a_better_beginning_that_leads_nowhere_is_left_again() -> None:
    table = routes("/a/b/c", "/a/{x}/d", "/{p:path}")
    assert first(table, "/a/b/d") == ("/a/{x}/d", {"x": "b"})
    assert first(table, "/a/b/e") == ("/{p:path}", {"p": "a/b/e"})


# ---- converters


def test_an_applications_own_converter() -> None:
    table = routes(
        "/{when:month}", converters={"month": Converter("[0-9]{4}-[0-9]{2}", lambda s: s[:4])}
    )
    assert first(table, "/2024-05") == ("/{when:month}", {"when": "2024"})
    assert first(table, "/2024-055") is None


def test_a_converter_may_say_that_it_is_none() -> None:
    def even(text: str) -> int:
        if int(text) % 2:
            raise ValueError("odd")
        return int(text)

    table = routes("/{n:even}", "/{s}", converters={"even": Converter("[0-9]+", even)})
    assert first(table, "/4") == ("/{n:even}", {"n": 4})
    assert first(table, "/5") == ("/{s}", {"s": "5"})


def test_a_converter_of_ones_own_instead_of_a_known_one() -> None:
    signed = {"int": Converter("-?[0-9]{1,9}", int)}
    table = routes("/{n:int}", "/{s}", converters=signed)
    assert first(table, "/-5") == ("/{n:int}", {"n": -5})


def test_also_instead_of_the_one_for_the_rest() -> None:
    def parts(text: str) -> list[str]:
        if ".." in text:
            raise ValueError("goes up")
        return text.split("/")

    table = routes("/f/{p:path}", converters={"path": Converter("[a-z/.]+", parts)})
    assert first(table, "/f/a/b") == ("/f/{p:path}", {"p": ["a", "b"]})
    assert first(table, "/f/a/../b") is None
    assert first(table, "/f/A") is None


# ---- mistakes


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "must begin with /"),
        ("a", "must begin with /"),
        ("{x}", "must begin with /"),
        ("/{}", "no parameter"),
        ("/{x", "no parameter"),
        ("/x}", "no parameter"),
        ("/a{x}", "no parameter"),
        ("/{x}-{y}", "no parameter"),
        ("/{1}", "no parameter"),
        ("/{x:}", "no parameter"),
        ("/{x: int}", "no parameter"),
        ("/{*x}", "no parameter"),
        ("/{x:integer}", "no converter 'integer'; there are float, int, path, str, uuid"),
        ("/{x}/{x}", "the parameter x twice"),
        ("/{p:path}/a", "a path parameter must be the last"),
        ("/{p:path}/", "a path parameter must be the last"),
        ("/a?b", "characters that no path has"),
        ("/a#b", "characters that no path has"),
        ("/a\nb", "characters that no path has"),
    ],
)
def test_a_wrong_pattern_is_told(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        routes(pattern)
    with pytest.raises(ValueError, match=re.escape(says)):
        App().websocket(pattern)(lambda ws, **params: None)  # type: ignore[arg-type, return-value]


def test_the_same_path_with_other_names_is_told() -> None:
    table = routes("/a/{x}")
    with pytest.raises(ValueError, match=r"has the parameters y; the same path is there with x"):
        table.add("/a/{y}", str)
    # With another converter it is another path.
    table.add("/a/{y:int}", lambda: "/a/{y:int}")
    assert first(table, "/a/1") == ("/a/{y:int}", {"y": 1})


def test_a_converter_with_a_wrong_expression_or_name_is_told() -> None:
    with pytest.raises(ValueError, match="the pattern of the converter .x.: unterminated"):
        App(converters={"x": Converter("[", str)})
    with pytest.raises(ValueError, match="'no-name' is no name for a converter"):
        App(converters={"no-name": Converter("a", str)})


# ---- any path


segments = st.text(st.characters(codec="latin-1"), max_size=8)
paths = st.one_of(
    st.text(max_size=40),
    st.lists(segments, max_size=70).map(lambda parts: "/" + "/".join(parts)),
    st.lists(st.sampled_from(["a", "1", "1.5", UUID, "%2F", "%", "", "é", "..", "%FF"])).map(
        lambda parts: "/" + "/".join(parts)
    ),
)
TABLE = routes(
    "/", "/a", "/a/{x}", "/{n:int}", "/{n:int}/{f:float}/{u:uuid}", "/{s}/{t}", "/{p:path}"
)


@given(paths)
def test_no_path_raises(path: str) -> None:
    for pattern, params in TABLE.match(path):
        assert set(re.findall(r"{(\w+)", pattern)) == set(params)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6))
def test_what_is_quoted_comes_back(values: list[str]) -> None:
    """Lone surrogates excepted, which no URL has."""
    try:
        path = "/" + "/".join(quote(value, safe="") for value in values)
    except UnicodeEncodeError:
        return
    pattern = "/" + "/".join(f"{{p{n}}}" for n in range(len(values)))
    found = first(routes(pattern), path)
    assert found is not None
    assert list(found[1].values()) == values


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "{}", "{}:int"]), min_size=1, max_size=4),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.sampled_from(["a", "b", "1", "2"]), min_size=1, max_size=4),
)
def test_the_tree_finds_what_looking_at_each_pattern_finds(
    shapes: list[list[str]], path: list[str]
) -> None:
    def build(shape: list[str]) -> str:
        parts = []
        for number, part in enumerate(shape):
            name, _, kind = part.partition(":")
            parts.append(f"{{p{number}:{kind or 'str'}}}" if name == "{}" else name)
        return "/" + "/".join(parts)

    def fits(shape: list[str]) -> bool:
        return len(shape) == len(path) and all(
            part == "{}" or (part == "{}:int" and have.isdigit()) or part == have
            for part, have in zip(shape, path, strict=True)
        )

    table = routes(*map(build, shapes))
    found = [pattern for pattern, _ in table.match("/" + "/".join(path))]
    assert sorted(found) == sorted({build(shape) for shape in shapes if fits(shape)})


APP = App()
for pattern in ("/", "/a", "/a/{x}", "/{p:path}"):
    APP.http(pattern, methods=["GET", "POST"])(lambda request, **params: None)
    APP.websocket(pattern)(lambda ws, **params: None)  # type: ignore[arg-type, return-value]
OTHER = App()
OTHER.webtransport("/w/{n:int}")(lambda session, n: None)  # type: ignore[arg-type, return-value]
APP.mount("/a/b", OTHER)
OTHER.mount("/é", App())


@given(
    st.one_of(paths, paths.map(lambda path: f"http://a{path}"), st.just("*")),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "CONNECT", "X"]),
    st.sampled_from(["1.1", "1.0", "3"]),
    st.sampled_from(["websocket", "webtransport", "http"]),
)
def test_no_request_raises(target: str, method: str, version: str, kind: str) -> None:
    request = Request(
        method,
        target,
        Headers(),
        version,
        "https",
        "a",
        is_websocket=kind == "websocket",
        is_webtransport=kind == "webtransport",
    )
    found = APP._find(request)
    if isinstance(found, HTTPError):
        assert found.status in (204, 404, 405, 426, 501)
        if found.status == 405 and version != "3":
            assert method not in found.headers["allow"].split(", ") or request.asks_for_session


# ---- cost


def cost(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best


@pytest.mark.parametrize(
    "path",
    [
        "/" * 16000,
        "/a" * 8000,
        "/" + "a" * 16000,
        "/" + "1" * 16000,
        "/" + "%" * 16000,
        "/" + "%2F" * 5000,
        "/1" * 63,
        "/a" * 63,
        "/" + "1." * 8000,
        "/" + "0-" * 8000,
    ],
)
def test_the_longest_path_costs_little(path: str) -> None:
    table = routes(*("/a" * n + "/{x}/{n:int}" + "/a" * n for n in range(30)), "/{p:path}")
    assert cost(lambda: list(table.match(path))) < 0.05


def test_more_segments_than_any_route_has_match_nothing() -> None:
    assert first(routes("/{p:path}"), "/a" * 64) is not None
    assert first(routes("/{p:path}"), "/a" * 65) is None


def test_many_routes_cost_no_more_than_few() -> None:
    few = routes("/room/1", "/room/{x}")
    many = routes(*(f"/room/{n}" for n in range(5000)), "/room/{x}")

    def look(table: Routes[str]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(200):
                first(table, "/room/z")

        return run

    assert cost(look(many)) < 20 * cost(look(few))
