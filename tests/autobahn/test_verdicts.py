"""The harness itself: what it runs, what it lets pass, and what it prints."""

from __future__ import annotations

import pytest

from .plan import Batch, parse_groups, plan
from .verdicts import Verdict, failures, missing, table


def _verdict(behavior: str, behavior_close: str = "OK", case: str = "1.1.1") -> Verdict:
    return Verdict(
        side="server",
        case=case,
        behavior=behavior,
        behavior_close=behavior_close,
        remote_close_code=1002,
        duration=7,
        result="Actual events differ.",
        result_close="Closed.",
        expectation="Receive an\n echo.",
        wire_log=[f"entry {number}" for number in range(9)],
    )


@pytest.mark.parametrize("behavior", ["OK", "INFORMATIONAL"])
@pytest.mark.parametrize("behavior_close", ["OK", "INFORMATIONAL"])
def test_passes(behavior: str, behavior_close: str) -> None:
    assert _verdict(behavior, behavior_close).passed
    assert _verdict(behavior, behavior_close).label == behavior


@pytest.mark.parametrize(
    "bad",
    [
        "NON-STRICT",
        "FAILED",
        "FAILED BY CLIENT",
        "UNCLEAN",
        "WRONG CODE",
        "UNIMPLEMENTED",
        "ERROR",
        "MISSING",
    ],
)
def test_does_not_pass_in_either_half(bad: str) -> None:
    assert not _verdict(bad).passed
    assert _verdict(bad).label == bad
    assert not _verdict("OK", bad).passed
    assert _verdict("INFORMATIONAL", bad).label == f"close {bad}"


def test_a_case_without_a_verdict_does_not_pass() -> None:
    assert not missing("client", "9.1.1").passed


def test_group_is_a_number() -> None:
    assert _verdict("OK", case="10.1.1").group == 10


def test_table() -> None:
    verdicts = [_verdict("OK"), _verdict("INFORMATIONAL"), _verdict("OK", "UNCLEAN", "12.1.1")]
    assert table(verdicts).splitlines() == [
        "group      cases  OK  INFORMATIONAL  close UNCLEAN",
        "server 1       2   1              1",
        "server 12      1                                 1",
        "all            3   1              1              1",
    ]


def test_failures() -> None:
    assert failures([_verdict("OK")]) == ""
    assert failures([_verdict("FAILED"), missing("client", "2.1")]).splitlines() == [
        "server 1.1.1: FAILED / close OK (peer's close code 1002, 7 ms)",
        "    Actual events differ. Closed.",
        "    expected: Receive an echo.",
        *[f"    entry {number}" for number in range(3, 9)],
        "client 2.1: MISSING / close MISSING (peer's close code None, 0 ms)",
        "    The fuzzer reported nothing: no connection came to its end in time.",
    ]


def test_parse_groups() -> None:
    assert parse_groups("1-3,9,12-13") == [1, 2, 3, 9, 12, 13]
    for text in ("", "a", "1,,2", "-3"):
        with pytest.raises(ValueError, match="invalid literal"):
            parse_groups(text)


def test_plan() -> None:
    known = ["1.1.1", "1.1.2", "2.1", "13.1.1", "13.2.1"]
    assert plan("server", known, {1, 13}, []) == [
        Batch("server", ("1.1.1", "1.1.2")),
        Batch("server", ("13.1.1", "13.2.1")),
    ]
    assert plan("client", known, {1, 13}, ["1.1.2", "13.*"]) == [
        Batch("client", ("1.1.2",)),
        Batch("client", ("13.1.1",)),
        Batch("client", ("13.2.1",), offer_no_context=True),
    ]
    assert plan("client", known, {9}, []) == []
