"""What a server logs of its handlers' errors."""

from __future__ import annotations

import logging

import pytest
import trio

from trio_wt import (
    ConnectionClosedError,
    HandshakeFailed,
    IncompleteRead,
    ReadLimitExceeded,
    StreamReset,
)
from trio_wt._transport.handlers import contain_errors
from trio_wt.app import IncompleteMessage, InvalidMessage
from trio_wt.app._message_errors import StreamEnded

PEERS = [
    StreamReset(5, remote=True),
    IncompleteRead(3),
    ReadLimitExceeded(10),
    InvalidMessage("Expected `int`", "$.age"),
    IncompleteMessage(3),
    StreamEnded(),
]


@pytest.mark.parametrize("exc", PEERS, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_what_a_peer_brings_about_is_a_line(
    exc: Exception, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with contain_errors("a handler failed", propagate=False):
        raise ExceptionGroup("as a nursery raises it", [exc]) if nested else exc
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage() == f"a handler failed: {exc}"


def test_the_end_of_a_session_is_not_worth_one(caplog: pytest.LogCaptureFixture) -> None:
    end = ConnectionClosedError(7, "", remote=True)
    opening = HandshakeFailed("it has ended")
    opening.__cause__ = end
    for exc in (end, opening, ExceptionGroup("", [end, opening])):
        with contain_errors("a handler failed", propagate=False):
            raise exc
    assert not caplog.records


@pytest.mark.parametrize(
    "exc", [ZeroDivisionError(), StreamReset(5, remote=False), HandshakeFailed("no answer")]
)
def test_a_fault_of_the_handler_has_a_traceback(
    exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = ExceptionGroup("", [exc, IncompleteRead(1)])
    for raised in (exc, mixed):
        with contain_errors("a handler failed", propagate=False):
            raise raised
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [exc, mixed]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_what_comes_out() -> None:
    with pytest.raises(ZeroDivisionError), contain_errors("", propagate=True):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), contain_errors("", propagate=False):
        raise KeyboardInterrupt


async def test_a_cancellation_beside_a_failure_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with trio.CancelScope() as scope:
        with contain_errors("a handler failed", propagate=False):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    raise ZeroDivisionError
        pytest.fail("the cancellation was lost")
    assert scope.cancelled_caught
    assert len(caplog.records) == 1
