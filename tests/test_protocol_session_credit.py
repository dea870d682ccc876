"""The flow control of a session (draft-ietf-webtrans-http3-16 section 5): limits, and that no credit is ever lost."""

from __future__ import annotations

import os
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_wt._protocol.capsules import CapsuleType, capsule_reader, encode_number, parse_number
from trio_wt._protocol.http3_settings import Setting
from trio_wt._protocol.session_credit import CreditViolation, Growth, SessionCredit

RTT = 0.125
KINDS = [0, 1]
MAX_STREAMS = [CapsuleType.MAX_STREAMS_BIDI, CapsuleType.MAX_STREAMS_UNI]
STREAMS_BLOCKED = [CapsuleType.STREAMS_BLOCKED_BIDI, CapsuleType.STREAMS_BLOCKED_UNI]


def limits(data: int, bidirectional: int = 0, unidirectional: int = 0) -> dict[int, int]:
    return {
        Setting.WT_INITIAL_MAX_DATA: data,
        Setting.WT_INITIAL_MAX_STREAMS_BIDI: bidirectional,
        Setting.WT_INITIAL_MAX_STREAMS_UNI: unidirectional,
    }


def boundless() -> Growth:
    return Growth(0, 2**62, lambda size: None)


def credit(
    ours: dict[int, int] | None = None,
    theirs: dict[int, int] | None = None,
    max_window: int = 0,
) -> SessionCredit:
    return SessionCredit(
        limits(100, 10, 10) if ours is None else ours,
        limits(100, 10, 10) if theirs is None else theirs,
        max_window,
        boundless(),
    )


def read(capsules: bytes) -> list[tuple[int, int | None]]:
    return [(kind, parse_number(payload)) for kind, payload in capsule_reader().feed(capsules)]


# ---- what the peer allows


def test_the_peer_s_settings_are_the_first_limits() -> None:
    target = credit(theirs=limits(1000, 1, 2))
    assert target.room == 1000
    assert target.may_open(0)
    target.opened(0)
    assert not target.may_open(0)
    for _ in range(2):
        assert target.may_open(1)
        target.opened(1)
    assert not target.may_open(1)


def test_what_the_peer_has_not_said_is_nothing() -> None:
    for theirs in ({}, limits(0)):
        target = credit(theirs=theirs)
        assert target.room == 0
        assert not target.may_open(0)
        assert not target.may_open(1)


def test_limits_are_cumulative() -> None:
    target = credit(theirs=limits(10, 1, 1))
    target.sent(10)
    assert target.room == 0
    target.max_data(25)
    assert target.room == 15
    target.sent(15)
    for kind in KINDS:
        target.opened(kind)
        target.max_streams(kind, 3)
        target.opened(kind)
        assert target.may_open(kind)
        target.opened(kind)
        assert not target.may_open(kind)
    assert target.room == 0


def test_what_was_not_sent_after_all_is_given_back() -> None:
    target = credit(theirs=limits(10, 1, 1))
    target.sent(10)
    target.sent(-4)
    assert target.room == 4
    target.opened(0)
    target.opened(0, -1)
    assert target.may_open(0)


def test_limits_that_decrease() -> None:
    """Sections 5.6.2 and 5.6.4; also those of the settings, which are the first of them."""
    target = credit(theirs=limits(10, 5, 5))
    with pytest.raises(CreditViolation):
        target.max_data(9)
    target.max_data(20)
    with pytest.raises(CreditViolation):
        target.max_data(19)
    assert target.room == 20
    for kind in KINDS:
        with pytest.raises(CreditViolation):
            target.max_streams(kind, 4)
        target.max_streams(kind, 6)
        with pytest.raises(CreditViolation):
            target.max_streams(kind, 5)


def test_limits_that_stay_the_same() -> None:
    """Sections 5.6.2 and 5.6.4: a capsule "that does not increase" its limit is an error too."""
    target = credit(theirs=limits(10, 5, 5))
    target.max_data(20)
    with pytest.raises(CreditViolation):
        target.max_data(20)
    for kind in KINDS:
        target.max_streams(kind, 6)
        with pytest.raises(CreditViolation):
            target.max_streams(kind, 6)


def test_the_largest_limits() -> None:
    target = credit(theirs=limits(0))
    target.max_data(2**62 - 1)
    assert target.room == 2**62 - 1
    for kind in KINDS:
        with pytest.raises(CreditViolation):
            target.max_streams(kind, 2**60 + 1)
        with pytest.raises(CreditViolation):
            target.max_streams(kind, 2**62 - 1)
        assert not target.may_open(kind)
        target.max_streams(kind, 2**60)
        assert target.may_open(kind)


def test_the_two_kinds_of_streams_have_nothing_in_common() -> None:
    target = credit(theirs=limits(0, 1, 0))
    assert target.may_open(0)
    assert not target.may_open(1)
    target.max_streams(1, 1)
    target.opened(0)
    assert not target.may_open(0)
    assert target.may_open(1)


# ---- saying that a limit is in the way


def test_the_peer_is_told_once_for_each_limit() -> None:
    target = credit(theirs=limits(10, 5, 6))
    assert read(target.data_blocked()) == [(CapsuleType.DATA_BLOCKED, 10)]
    assert target.data_blocked() == b""
    target.max_data(20)
    assert read(target.data_blocked()) == [(CapsuleType.DATA_BLOCKED, 20)]
    assert target.data_blocked() == b""
    for kind, limit in ((0, 5), (1, 6)):
        assert read(target.streams_blocked(kind)) == [(STREAMS_BLOCKED[kind], limit)]
        assert target.streams_blocked(kind) == b""
    target.max_streams(1, 7)
    assert target.streams_blocked(0) == b""
    assert read(target.streams_blocked(1)) == [(STREAMS_BLOCKED[1], 7)]


def test_a_limit_of_nothing_is_told_too() -> None:
    target = credit(theirs={})
    assert read(target.data_blocked()) == [(CapsuleType.DATA_BLOCKED, 0)]
    for kind in KINDS:
        assert read(target.streams_blocked(kind)) == [(STREAMS_BLOCKED[kind], 0)]


# ---- what we allow


def test_data_up_to_the_limit_and_no_byte_more() -> None:
    target = credit(limits(100))
    target.received(0)
    target.received(60)
    target.received(40)
    target.received(0)
    with pytest.raises(CreditViolation):
        target.received(1)
    with pytest.raises(CreditViolation):
        credit(limits(100)).received(101)


def test_data_is_allowed_as_it_is_consumed() -> None:
    target = credit(limits(100))
    target.received(100)
    assert target.consumed(49, 1.0, RTT) == b""
    assert read(target.consumed(1, 1.0, RTT)) == [(CapsuleType.MAX_DATA, 150)]
    target.received(50)
    with pytest.raises(CreditViolation):
        target.received(1)


def test_the_window_grows_up_to_its_maximum() -> None:
    target = credit(limits(100), max_window=300)
    found, total = [], 0
    for size in (100, 100, 200, 300, 300):
        target.received(size)
        total += size
        found.append(read(target.consumed(size, 1.0, RTT))[0][1])
    assert found == [200, 400, 700, 1000, 1300]


def test_a_maximum_below_the_window_is_the_window() -> None:
    target = credit(limits(100), max_window=10)
    target.received(100)
    assert read(target.consumed(100, 1.0, RTT)) == [(CapsuleType.MAX_DATA, 200)]


@pytest.mark.parametrize("kind", KINDS)
def test_streams_up_to_the_limit_and_no_more(kind: int) -> None:
    target = credit(limits(0, 3, 3))
    for _ in range(3):
        target.peer_opened(kind)
    target.peer_opened(1 - kind)
    with pytest.raises(CreditViolation):
        target.peer_opened(kind)
    with pytest.raises(CreditViolation):
        credit(limits(100)).peer_opened(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("window", "grants"),
    [
        (1, [2, 3, 4, 5, 6, 7]),
        (2, [3, 4, 5, 6, 7, 8]),
        (3, [4, 5, 6, 7, 8, 9]),
        (4, [None, 6, None, 8, None, 10]),
        (7, [None, None, 10, None, None, 13]),
        (10, [None, None, None, None, 15, None]),
    ],
)
def test_streams_are_allowed_in_steps_as_others_are_over(
    kind: int, window: int, grants: list[int | None]
) -> None:
    target = credit(limits(0, window, window))
    for limit in grants:
        target.peer_opened(kind)
        expected = [] if limit is None else [(MAX_STREAMS[kind], limit)]
        assert read(target.released(kind)) == expected


def test_settings_that_are_missing_are_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        SessionCredit({}, {}, 0, boundless())


# ---- windows that grow


def eat(target: SessionCredit) -> int:
    """Send and take a window full, at once, again and again; what window this comes to."""
    for _ in range(10):
        window = target.window
        target.received(window)
        target.consumed(window, 0.0, 1.0)
    return target.window


def test_sessions_grow_by_what_the_connection_has_room_for() -> None:
    widened: list[int] = []
    growth = Growth(400, 1000, widened.append)
    ours = limits(100, 1, 1)
    one, two = (SessionCredit(ours, ours, 10_000, growth) for _ in range(2))
    assert eat(one) == 700
    assert widened == [500, 700, 1000]
    assert eat(two) == 100
    one.over()
    one.over()
    assert eat(two) == 700
    assert widened == [500, 700, 1000, 500, 700, 1000]


def test_a_session_does_not_grow_beyond_its_own_maximum() -> None:
    widened: list[int] = []
    ours = limits(100, 1, 1)
    target = SessionCredit(ours, ours, 250, Growth(0, 1000, widened.append))
    assert eat(target) == 250
    assert widened == [100, 150]


def test_where_there_is_no_room_windows_stay() -> None:
    target = SessionCredit(limits(100, 1, 1), limits(100), 10_000, Growth(10, 10, pytest.fail))
    assert eat(target) == 100


# ---- in any order


@given(
    st.integers(0, 2**62 - 1),
    st.lists(st.one_of(st.integers(0, 2**62 - 1), st.integers(0, 20)), max_size=20),
)
@settings(deadline=None)
def test_any_limits_grow_or_are_refused(first: int, sent: list[int]) -> None:
    target, most = credit(theirs=limits(first)), first
    streams, most_streams = credit(theirs=limits(0, 5, 5)), [5, 5]
    for n, limit in enumerate(sent):
        try:
            target.max_data(limit)
        except CreditViolation:
            assert limit <= most
        else:
            assert limit > most
            most = limit
        assert target.room == most
        kind = n % 2
        try:
            streams.max_streams(kind, limit)
        except CreditViolation:
            assert limit <= most_streams[kind] or limit > 2**60
        else:
            assert most_streams[kind] < limit <= 2**60
            most_streams[kind] = limit


class Side:
    """One end of a session, and what has come to it and to its application.

    Attributes:
        credit: what is tested.
        arriving: the capsules that are under way to it.
        data: bytes that are under way to it.
        unread: bytes that its application has not taken.
        unsent: bytes that were charged, and are in no packet yet.
        opening, open: the other side's streams that are under way to it, and that it has, by kind.
        window, max_window, windows: what it allows at once: data, at first and at most, and streams.
        granted: the limits that it has announced last.
    """

    def __init__(self, ours: dict[int, int], theirs: dict[int, int], max_window: int) -> None:
        self.credit = SessionCredit(ours, theirs, max_window, boundless())
        self.window = ours[Setting.WT_INITIAL_MAX_DATA]
        self.max_window = max(self.window, max_window)
        self.windows = [
            ours[Setting.WT_INITIAL_MAX_STREAMS_BIDI],
            ours[Setting.WT_INITIAL_MAX_STREAMS_UNI],
        ]
        self.arriving: deque[tuple[int, int]] = deque()
        self.data = 0
        self.unread = 0
        self.unsent = 0
        self.opening = [0, 0]
        self.open = [0, 0]
        self.granted = {CapsuleType.MAX_DATA: self.window}
        self.granted |= dict(zip(MAX_STREAMS, self.windows, strict=True))


sides = st.booleans()
amounts = st.one_of(st.integers(0, 10), st.integers(0, 3000))
kinds = st.sampled_from(KINDS)


class Session(RuleBasedStateMachine):
    """Two ends, whose applications do what they like; the network keeps the order of capsules only."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1.0
        self.ends: dict[bool, Side] = {}

    @initialize(
        data=st.tuples(*[st.sampled_from([1, 2, 3, 10, 1000])] * 2),
        growth=st.sampled_from([1, 4]),
        streams=st.tuples(*[st.sampled_from([1, 2, 3, 5, 10])] * 4),
    )
    def begin(self, data: tuple[int, int], growth: int, streams: tuple[int, int, int, int]) -> None:
        ours, theirs = limits(data[0], *streams[:2]), limits(data[1], *streams[2:])
        self.ends = {
            True: Side(ours, theirs, data[0] * growth),
            False: Side(theirs, ours, data[1] * growth),
        }

    def tell(self, by: bool, capsules: bytes) -> None:
        """What one end says arrives at the other, later."""
        for kind, number in read(capsules):
            assert number is not None
            end = self.ends[by]
            if kind in end.granted:
                assert number > end.granted[CapsuleType(kind)], "a limit that does not grow"
                end.granted[CapsuleType(kind)] = number
            self.ends[not by].arriving.append((kind, number))

    # ---- what applications do

    @rule(by=sides, amount=amounts)
    def send(self, by: bool, amount: int) -> None:
        """Into the send buffer, as far as there is room."""
        end = self.ends[by]
        count = min(amount, end.credit.room)
        end.credit.sent(count)
        end.unsent += count
        if count < amount:
            self.tell(by, end.credit.data_blocked())

    @rule(by=sides, amount=amounts)
    def packets(self, by: bool, amount: int) -> None:
        end = self.ends[by]
        count = min(amount, end.unsent)
        end.unsent -= count
        self.ends[not by].data += count

    @rule(by=sides, amount=amounts)
    def reset(self, by: bool, amount: int) -> None:
        """What no packet had is not of the final size, and so not of what the peer counts."""
        end = self.ends[by]
        count = min(amount, end.unsent)
        end.unsent -= count
        end.credit.sent(-count)

    @rule(by=sides, amount=amounts)
    def read(self, by: bool, amount: int) -> None:
        """Or give up, for what will never be read."""
        end = self.ends[by]
        count = min(amount, end.unread)
        end.unread -= count
        self.tell(by, end.credit.consumed(count, self.now, RTT))

    @rule(by=sides, kind=kinds)
    def open_stream(self, by: bool, kind: int) -> None:
        end = self.ends[by]
        if end.credit.may_open(kind):
            end.credit.opened(kind)
            self.ends[not by].opening[kind] += 1
        else:
            self.tell(by, end.credit.streams_blocked(kind))

    @rule(by=sides, kind=kinds)
    def take_a_turn_and_be_cancelled(self, by: bool, kind: int) -> None:
        end = self.ends[by]
        if end.credit.may_open(kind):
            end.credit.opened(kind)
            end.credit.opened(kind, -1)

    @rule(by=sides, kind=kinds)
    def leave_stream(self, by: bool, kind: int) -> None:
        end = self.ends[by]
        if end.open[kind]:
            end.open[kind] -= 1
            self.tell(by, end.credit.released(kind))

    # ---- what the network does

    @rule(pause=st.sampled_from([0.0, 0.01, 1.0]))
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule(to=sides, amount=amounts)
    def data_arrives(self, to: bool, amount: int) -> None:
        end = self.ends[to]
        count = min(amount, end.data)
        end.data -= count
        end.unread += count
        end.credit.received(count)

    @rule(to=sides, kind=kinds)
    def stream_arrives(self, to: bool, kind: int) -> None:
        end = self.ends[to]
        if end.opening[kind]:
            end.opening[kind] -= 1
            end.open[kind] += 1
            end.credit.peer_opened(kind)

    @precondition(lambda self: any(end.arriving for end in self.ends.values()))
    @rule(to=sides)
    def capsule_arrives(self, to: bool) -> None:
        end = self.ends[to]
        if end.arriving:
            kind, number = end.arriving.popleft()
            if kind == CapsuleType.MAX_DATA:
                end.credit.max_data(number)
            elif kind in MAX_STREAMS:
                end.credit.max_streams(MAX_STREAMS.index(CapsuleType(kind)), number)

    # ---- what must be true at any time

    @invariant()
    def credit_is_somewhere(self) -> None:
        for by, end in self.ends.items():
            other = self.ends[not by]
            told = {kind for kind, _ in end.arriving}
            # All that was charged is in the buffer, under way, unread, or consumed.
            under_way = end.unsent + other.data + other.unread
            assert 0 <= end.credit.room + under_way <= other.max_window
            if CapsuleType.MAX_DATA not in told:
                assert end.credit.room + under_way >= (other.window + 1) // 2
            for kind in KINDS:
                if MAX_STREAMS[kind] not in told:
                    assert end.credit.may_open(kind) or other.opening[kind] + other.open[kind]

    def teardown(self) -> None:
        """Everything arrives and is read and left: then there is room, and as much as there was at first."""
        if not self.ends:
            return
        for by, end in self.ends.items():
            self.packets(by, end.unsent)
            self.data_arrives(not by, self.ends[not by].data)
            for kind in KINDS:
                while self.ends[not by].opening[kind]:
                    self.stream_arrives(not by, kind)
        for by, end in self.ends.items():
            self.now += 100
            self.read(by, end.unread)
            for kind in KINDS:
                while end.open[kind]:
                    self.leave_stream(by, kind)
        for by, end in self.ends.items():
            while end.arriving:
                self.capsule_arrives(by)
            other = self.ends[not by]
            # A grant may wait until half of the window is used up.
            assert end.credit.room >= (other.window + 1) // 2
            for kind in KINDS:
                streams = 0
                while end.credit.may_open(kind):
                    end.credit.opened(kind)
                    streams += 1
                assert other.windows[kind] // 2 < streams <= other.windows[kind]


TestSession = Session.TestCase
TestSession.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize="CI" in os.environ,
)


@pytest.mark.parametrize("window", [1, 2, 3, 10, 101])
def test_a_session_goes_on_for_ever(window: int) -> None:
    """As much as fits is sent and read, and streams come and go, many times over what the first limits allow."""
    ours, theirs = limits(window, window, window), limits(1)
    receiver = SessionCredit(ours, theirs, window, boundless())
    sender = SessionCredit(theirs, ours, 1, boundless())
    for turn in range(200):
        count = sender.room
        assert count > window // 2
        sender.sent(count)
        receiver.received(count)
        for _, number in read(receiver.consumed(count, turn * 100.0, RTT)):
            assert number is not None
            sender.max_data(number)
        for kind in KINDS:
            opened = 0
            while sender.may_open(kind):
                sender.opened(kind)
                receiver.peer_opened(kind)
                opened += 1
            assert opened > window // 2
            for _ in range(opened):
                for _, number in read(receiver.released(kind)):
                    assert number is not None
                    sender.max_streams(kind, number)


def test_capsules_are_those_of_the_draft() -> None:
    target = credit(limits(2, 1, 1))
    target.received(2)
    assert target.consumed(2, 0.0, RTT) == encode_number(CapsuleType.MAX_DATA, 4)
    target.peer_opened(0)
    target.peer_opened(1)
    assert target.released(0) == encode_number(CapsuleType.MAX_STREAMS_BIDI, 2)
    assert target.released(1) == encode_number(CapsuleType.MAX_STREAMS_UNI, 2)
