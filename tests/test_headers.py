"""Header fields as a mapping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wt import Headers

LINES = [("Host", "a.test"), ("X-Many", "1"), ("x-many", "2"), ("Empty", "")]


def test_names_compare_without_case() -> None:
    headers = Headers(LINES)
    assert headers["HOST"] == headers["host"] == "a.test"
    assert "hOST" in headers
    assert "nothing" not in headers
    assert 3 not in headers  # type: ignore[comparison-overlap]
    assert headers.get("nothing") is None
    assert headers.get("nothing", "else") == "else"
    with pytest.raises(KeyError, match="nothing"):
        headers["nothing"]


def test_repeated_fields_are_joined_as_a_mapping_and_kept_as_lines() -> None:
    headers = Headers(LINES)
    assert headers["X-MANY"] == "1, 2"
    assert headers.get_all("X-MANY") == ["1", "2"]
    assert headers.get_all("nothing") == []
    assert list(headers) == ["host", "x-many", "empty"]
    assert len(headers) == 3
    assert dict(headers) == {"host": "a.test", "x-many": "1, 2", "empty": ""}
    assert headers.fields == tuple(LINES)


def test_empty_headers_are_falsy() -> None:
    assert not Headers()
    assert Headers([("A", "")])


def test_lists_are_split_over_all_lines_and_stripped() -> None:
    headers = Headers([("Connection", "keep-alive,Upgrade"), ("connection", " , \tx y ,".strip())])
    assert headers.tokens("CONNECTION") == ["keep-alive", "Upgrade", "x y"]
    assert headers.tokens("nothing") == []


def test_they_are_made_of_pairs_mappings_and_each_other() -> None:
    expected = Headers([("A", "1"), ("B", "2")])
    assert Headers({"A": "1", "B": "2"}) == expected
    assert Headers(iter([("A", "1"), ("B", "2")])) == expected
    assert Headers(expected) == expected
    assert Headers(expected).fields == expected.fields
    # Not through the mapping, which would join the lines.
    assert Headers(Headers(LINES)).fields == tuple(LINES)


def test_adding_and_leaving_out_give_new_headers() -> None:
    headers = Headers(LINES)
    assert (headers + {"New": "n"}).fields == (*LINES, ("New", "n"))
    assert (headers + [("Host", "b.test")]).get_all("host") == ["a.test", "b.test"]
    assert headers.without("X-MANY", "empty", "nothing").fields == (("Host", "a.test"),)
    assert headers.fields == tuple(LINES)
    with pytest.raises(ValueError, match="header"):
        headers + [("a b", "")]


def test_equality_ignores_the_case_of_names_only() -> None:
    assert Headers([("A", "x")]) == Headers([("a", "x")])
    assert hash(Headers([("A", "x")])) == hash(Headers([("a", "x")]))
    assert Headers([("A", "x")]) != Headers([("a", "X")])
    assert Headers([("A", "1"), ("A", "2")]) != Headers([("A", "2"), ("A", "1")])
    assert Headers([("A", "1"), ("A", "2")]) != Headers([("A", "1, 2")])
    assert Headers([("a", "x")]) != {"a": "x"}


def test_the_repr_can_be_read_back() -> None:
    headers = Headers(LINES)
    assert repr(headers) == f"Headers({LINES!r})"
    assert eval(repr(headers)) == headers


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "a\0", "é", "(a)", "a\n", '"a"', "a/b"])
def test_names_are_tokens(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid header name"):
        Headers([(name, "x")])


@pytest.mark.parametrize(
    "value",
    ["a\r\nb", "a\nb", "a\rb", "a\0b", "a\x7fb", "\x1b", " a", "a ", "\ta", "a\t", "a\n", "€", " "],
)
def test_values_cannot_split_a_message(value: str) -> None:
    with pytest.raises(ValueError, match="the value of header Name has control characters"):
        Headers({"Name": value})


@pytest.mark.parametrize("value", ["", "a", "a b", "a\tb", "é", "\xff", "~!", '"q, \\" x"'])
def test_values_that_are_fine(value: str) -> None:
    assert Headers({"Name": value})["name"] == value


@given(st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_accepted_stays_one_line(name: str, value: str) -> None:
    try:
        headers = Headers([(name, value)])
    except ValueError:
        return
    assert not set(f"{name}: {value}".encode("latin-1")) & {0, 10, 13}
    assert headers.fields == ((name, value),)


def test_from_raw_keeps_bytes_as_latin_1() -> None:
    headers = Headers.from_raw([(b"X", b"\xe9"), (b"x", b"b")])
    assert headers.fields == (("X", "é"), ("x", "b"))
    assert headers.get_all("X") == ["é", "b"]
