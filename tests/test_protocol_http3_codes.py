"""Error codes, and how an application's 32 bits become one of HTTP/3's (draft-ietf-webtrans-http3-16 section 4.4)."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wt._protocol.http3_codes import (
    MAX_APPLICATION_CODE,
    Http3Code,
    Http3Error,
    describe,
    from_http3_code,
    to_http3_code,
)

FIRST, LAST = 0x52E4A40FA8DB, 0x52E5AC983162
EDGES = sorted(
    {
        code
        for middle in (0, 29, 30, 31, 59, 60, 61, 255, 256, 2**16, 2**31, 2**32 - 16, 2**32 - 1)
        for code in range(middle - 2, middle + 3)
        if 0 <= code < 2**32
    }
)


def is_reserved(code: int) -> bool:
    """RFC 9114 section 8.1: codes of the form 0x1f * N + 0x21."""
    return code >= 0x21 and (code - 0x21) % 0x1F == 0


# ---- numbers of the RFCs


def test_the_codes_are_those_of_the_registry() -> None:
    assert {code.name: code.value for code in Http3Code} == {
        # RFC 9297 section 5.2
        "DATAGRAM_ERROR": 0x33,
        # RFC 9114 section 8.1
        "NO_ERROR": 0x100,
        "GENERAL_PROTOCOL_ERROR": 0x101,
        "INTERNAL_ERROR": 0x102,
        "STREAM_CREATION_ERROR": 0x103,
        "CLOSED_CRITICAL_STREAM": 0x104,
        "FRAME_UNEXPECTED": 0x105,
        "FRAME_ERROR": 0x106,
        "EXCESSIVE_LOAD": 0x107,
        "ID_ERROR": 0x108,
        "SETTINGS_ERROR": 0x109,
        "MISSING_SETTINGS": 0x10A,
        "REQUEST_REJECTED": 0x10B,
        "REQUEST_CANCELLED": 0x10C,
        "REQUEST_INCOMPLETE": 0x10D,
        "MESSAGE_ERROR": 0x10E,
        "CONNECT_ERROR": 0x10F,
        "VERSION_FALLBACK": 0x110,
        # RFC 9204 section 6
        "QPACK_DECOMPRESSION_FAILED": 0x200,
        "QPACK_ENCODER_STREAM_ERROR": 0x201,
        "QPACK_DECODER_STREAM_ERROR": 0x202,
        # draft-ietf-webtrans-http3-16 section 9.5
        "WT_BUFFERED_STREAM_REJECTED": 0x3994BD84,
        "WT_SESSION_GONE": 0x170D7B68,
        "WT_FLOW_CONTROL_ERROR": 0x045D4487,
        "WT_ALPN_ERROR": 0x0817B3DD,
        "WT_REQUIREMENTS_NOT_MET": 0x212C0D48,
    }


def test_no_code_of_a_protocol_is_one_of_an_application_or_reserved() -> None:
    for code in Http3Code:
        assert from_http3_code(code) is None
        assert not is_reserved(code)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x100, "H3_NO_ERROR (0x100)"),
        (0x33, "H3_DATAGRAM_ERROR (0x33)"),
        (Http3Code.ID_ERROR, "H3_ID_ERROR (0x108)"),
        (0x200, "QPACK_DECOMPRESSION_FAILED (0x200)"),
        (0x170D7B68, "WT_SESSION_GONE (0x170d7b68)"),
        (0x0, "HTTP/3 error 0x0"),
        (0x21, "HTTP/3 error 0x21"),
        (2**62 - 1, "HTTP/3 error 0x3fffffffffffffff"),
    ],
)
def test_codes_have_names(code: int, name: str) -> None:
    assert describe(code) == name


def test_an_error_says_what_was_wrong() -> None:
    error = Http3Error(Http3Code.FRAME_ERROR, "a frame that is cut off")
    assert (error.code, error.reason) == (0x106, "a frame that is cut off")
    assert str(error) == "a frame that is cut off (H3_FRAME_ERROR (0x106))"
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.code, copied.reason) == (error.code, error.reason)


# ---- codes of applications


def to_wire(code: int) -> int:
    """The pseudocode of the draft's figure, word by word."""
    return FIRST + code + code // 0x1E


def from_wire(code: int) -> int:
    assert FIRST <= code <= LAST
    assert (code - 0x21) % 0x1F != 0
    shifted = code - FIRST
    return shifted - shifted // 0x1F


def test_the_ends_of_the_range() -> None:
    assert MAX_APPLICATION_CODE == 2**32 - 1
    assert to_http3_code(0) == FIRST
    assert to_http3_code(MAX_APPLICATION_CODE) == LAST
    assert from_http3_code(FIRST) == 0
    assert from_http3_code(LAST) == MAX_APPLICATION_CODE
    assert from_http3_code(FIRST - 1) is None
    assert from_http3_code(LAST + 1) is None


@pytest.mark.parametrize("code", EDGES)
def test_edges_both_ways(code: int) -> None:
    wire = to_http3_code(code)
    assert wire == to_wire(code)
    assert not is_reserved(wire)
    assert from_http3_code(wire) == from_wire(wire) == code


@pytest.mark.parametrize(
    "start", [FIRST - 100, FIRST + 0x1F * 2**20, (FIRST + LAST) // 2, LAST - 1000]
)
def test_every_code_of_a_stretch_is_reserved_or_an_application_s(start: int) -> None:
    """Neighbours of a reserved one are neighbours to the application."""
    last: int | None = None
    for code in range(start, start + 1100):
        found = from_http3_code(code)
        if is_reserved(code) or not FIRST <= code <= LAST:
            assert found is None
            continue
        assert found is not None
        assert to_http3_code(found) == code
        assert last is None or found == last + 1
        last = found


def test_the_reserved_codes_of_the_range() -> None:
    # The first of them, and the last.
    for code in (FIRST + 30, FIRST + 61, LAST - (LAST - 0x21) % 0x1F):
        assert is_reserved(code)
        assert from_http3_code(code) is None
        assert from_http3_code(code - 1) is not None
    assert to_http3_code(29) == FIRST + 29
    assert to_http3_code(30) == FIRST + 31


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_any_code_comes_back(code: int) -> None:
    wire = to_http3_code(code)
    assert wire == to_wire(code)
    assert FIRST <= wire <= LAST
    assert not is_reserved(wire)
    assert from_http3_code(wire) == code


@given(st.one_of(st.integers(FIRST, LAST), st.integers(0, 2**62 - 1)))
@settings(deadline=None)
def test_any_code_of_the_wire(code: int) -> None:
    found = from_http3_code(code)
    if not FIRST <= code <= LAST or is_reserved(code):
        assert found is None
    else:
        assert found == from_wire(code)
        assert to_http3_code(found) == code


@given(st.integers(0, (LAST - 0x21) // 0x1F + 1000))
@settings(deadline=None)
def test_no_reserved_code_is_an_application_s(n: int) -> None:
    assert from_http3_code(0x1F * n + 0x21) is None
