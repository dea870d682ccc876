"""The priority of a request (RFC 9218)."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt import Priority

DEFAULT = Priority()


def test_the_defaults_are_those_of_section_4() -> None:
    assert (DEFAULT.urgency, DEFAULT.incremental) == (3, False)


def test_it_is_a_value() -> None:
    assert Priority(1) == Priority(urgency=1, incremental=False)
    assert Priority(1) != Priority(1, True)
    assert len({Priority(1), Priority(1), Priority(2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.urgency = 1  # type: ignore[misc]


@pytest.mark.parametrize("urgency", [-1, 8, 100])
def test_urgencies_that_there_are_not(urgency: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 7, not {urgency}"):
        Priority(urgency)


@pytest.mark.parametrize(
    ("priority", "value"),
    [
        (Priority(0), "u=0"),
        (Priority(3), "u=3"),
        (Priority(7), "u=7"),
        (Priority(2, incremental=True), "u=2, i"),
    ],
)
def test_how_it_is_written(priority: Priority, value: str) -> None:
    assert priority.encode() == value


@pytest.mark.parametrize(("urgency", "incremental"), list(product(range(8), (False, True))))
def test_every_priority_comes_back(urgency: int, incremental: bool) -> None:
    priority = Priority(urgency, incremental)
    assert Priority.parse(priority.encode().encode()) == priority


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", DEFAULT),
        (b"u=1", Priority(1)),
        (b"i", Priority(3, True)),
        (b"u=5,i", Priority(5, True)),
        (b"i,u=0", Priority(0, True)),
        (b"  u=2 ,\ti ", Priority(2, True)),
        (b"i=?1", Priority(3, True)),
        (b"i=?0", DEFAULT),
        # of two, the last (RFC 9651 section 4.2.2)
        (b"u=1, u=2", Priority(2)),
        (b"i, i=?0", DEFAULT),
        # parameters and members that nobody knows
        (b"u=1;a=b, i;x", Priority(1, True)),
        (b"u=1, q=0.5, x=y, z=(1 2), i", Priority(1, True)),
        # values out of range or of another type are as if they were not there (section 4)
        (b"u=8, i", Priority(3, True)),
        (b"u=-1", DEFAULT),
        (b"u=1.0", DEFAULT),
        (b'u="1"', DEFAULT),
        (b"u=a", DEFAULT),
        (b"u", DEFAULT),
        (b"u=?1", DEFAULT),
        (b"u=(1 2)", DEFAULT),
        (b"u=@1", DEFAULT),
        (b"u=:MQ==:", DEFAULT),
        (b"u=999999999999999", DEFAULT),
        (b"u=1, i=1", Priority(1)),
        (b"u=1, i=a", Priority(1)),
        (b'u=1, i="?1"', Priority(1)),
        (b"u=1, i=()", Priority(1)),
        # what is no dictionary is nothing at all
        (b"u=1, i=", DEFAULT),
        (b"u=1,", DEFAULT),
        (b"U=1", DEFAULT),
        (b"u=1;", DEFAULT),
        (b"u=1 i", DEFAULT),
        (b"u=9999999999999999", DEFAULT),
        (b"\xff", DEFAULT),
        (b"u=1\0", DEFAULT),
        (b"u=1\r\n", DEFAULT),
    ],
)
def test_what_a_field_says(value: bytes, expected: Priority) -> None:
    assert Priority.parse(value) == expected


members = st.one_of(
    st.sampled_from(
        [b"u", b"i", b"u=1", b"u=7", b"u=8", b"i=?1", b"i=?0", b"a=(1 b", b"x=:", b")"]
    ),
    st.integers(-2, 10).map(lambda urgency: b"u=%d" % urgency),
    st.binary(max_size=6),
)


@given(st.one_of(st.binary(max_size=40), st.lists(members, max_size=6).map(b", ".join)))
@example(b"u=" + b"(" * 5000)
@example(b'u="' + b"\\" * 5000)
@example(b"u=" + b"1" * 5000)
@example(b"u=:" + b"=" * 100 + b":")
@example(b"u=@9999999999999999999")
@example(b'u=%"%ff"')
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_priority(value: bytes) -> None:
    priority = Priority.parse(value)
    assert 0 <= priority.urgency <= 7
    assert type(priority.incremental) is bool
    assert Priority.parse(priority.encode().encode()) == priority


def test_more_urgent_ones_come_first_whatever_their_streams_say() -> None:
    bases = [Priority(urgency).base for urgency in range(8)]
    assert bases == sorted(bases, reverse=True)
    assert DEFAULT.base == 0
    # Streams' own priorities order those of one urgency.
    assert all(above - below > 2 * 1000 for above, below in zip(bases, bases[1:], strict=False))
    assert Priority(1, incremental=True).base == Priority(1).base
