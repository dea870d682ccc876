"""The errors: what each of them also is, and what they say."""

from __future__ import annotations

import pickle

import pytest
import trio

import trio_wt
from trio_wt import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeFailed,
    Headers,
    InternalError,
    Rejected,
    TrioWTError,
)


def test_each_is_also_what_a_trio_user_catches() -> None:
    assert ConnectionClosedOK.__mro__[1:3] == (ConnectionClosed, TrioWTError)
    assert issubclass(ConnectionClosedOK, trio.EndOfChannel)
    assert not issubclass(ConnectionClosedOK, trio.BrokenResourceError)
    assert issubclass(ConnectionClosedError, ConnectionClosed)
    assert issubclass(ConnectionClosedError, trio.BrokenResourceError)
    assert not issubclass(ConnectionClosedError, trio.EndOfChannel)
    assert issubclass(Rejected, HandshakeFailed)
    assert not issubclass(HandshakeFailed, ConnectionClosed)


def test_all_have_one_root() -> None:
    errors = [
        value
        for name in trio_wt.__all__
        if isinstance(value := getattr(trio_wt, name), type) and issubclass(value, Exception)
    ]
    assert {InternalError, HandshakeFailed, ConnectionClosedOK} < set(errors)
    # ExtensionError is what extensions raise; it never comes out.
    assert {e for e in errors if not issubclass(e, TrioWTError)} == {trio_wt.ExtensionError}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConnectionClosedOK(1000, remote=True),
            "the peer closed the connection with code 1000",
        ),
        (
            ConnectionClosedOK(1001, "bye", remote=False),
            "this side closed the connection with code 1001: bye",
        ),
        (
            ConnectionClosedError(1006, remote=True),
            "the connection was lost without a closing handshake (1006)",
        ),
        (
            ConnectionClosedError(4000, "a\r\n\x1b[31m", remote=True),
            "the peer closed the connection with code 4000: a\\r\\n\\x1b[31m",
        ),
    ],
)
def test_what_the_end_of_a_connection_says(error: ConnectionClosed, text: str) -> None:
    assert str(error) == text


def test_code_reason_and_side() -> None:
    error = ConnectionClosedError(4000, "why\n", remote=True)
    assert (error.code, error.reason, error.remote) == (4000, "why\n", True)


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "credentials"), (403, "Origin"), (404, "nothing at this path"), (426, "version")],
)
def test_a_rejection_says_what_may_be_wrong(status: int, hint: str) -> None:
    error = Rejected(status, Headers({"X": "y"}), b"body")
    assert str(error).startswith(f"the server answered with HTTP status {status}; ")
    assert hint in str(error)
    assert (error.status, error.headers["x"], error.body) == (status, "y", b"body")


def test_another_rejection_says_its_status_only() -> None:
    assert str(Rejected(500, Headers())) == "the server answered with HTTP status 500"
    assert Rejected(500, Headers()).body == b""


def test_errors_can_be_pickled() -> None:
    for error in (HandshakeFailed("no"), InternalError("bug"), Rejected(500, Headers(), b"x")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    closed = pickle.loads(pickle.dumps(ConnectionClosedError(4000, "why", remote=True)))
    assert (closed.code, closed.reason, closed.remote) == (4000, "why", True)
