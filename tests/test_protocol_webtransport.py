"""A session as its own stream tells it (draft-ietf-webtrans-http3-16 sections 4.7, 5 and 6): every input in every state."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wt._protocol import varint
from trio_wt._protocol.capsules import CapsuleType, encode_close, encode_drain, encode_number
from trio_wt._protocol.http3_codes import Http3Code
from trio_wt._protocol.http3_settings import Setting
from trio_wt._protocol.records import encode_record, encode_record_head
from trio_wt._protocol.session_credit import Growth, SessionCredit
from trio_wt._protocol.webtransport import (
    SESSION_TABLE,
    Action,
    CreditGrown,
    DatagramReceived,
    DrainRequested,
    Input,
    SessionEnded,
    SessionEvent,
    SessionProtocol,
    SessionState,
)

MEBIBYTE = 2**20
LIMITS = {
    Setting.WT_INITIAL_MAX_DATA: 100,
    Setting.WT_INITIAL_MAX_STREAMS_BIDI: 5,
    Setting.WT_INITIAL_MAX_STREAMS_UNI: 6,
}
BLOCKED = [
    CapsuleType.DATA_BLOCKED,
    CapsuleType.STREAMS_BLOCKED_BIDI,
    CapsuleType.STREAMS_BLOCKED_UNI,
]
GROWING = [CapsuleType.MAX_DATA, CapsuleType.MAX_STREAMS_BIDI, CapsuleType.MAX_STREAMS_UNI]
PROHIBITED = [CapsuleType.MAX_STREAM_DATA, CapsuleType.STREAM_DATA_BLOCKED]
FLOW = Http3Code.WT_FLOW_CONTROL_ERROR
MESSAGE = Http3Code.MESSAGE_ERROR
# A type that is kept free for nothing in particular (RFC 9297 section 5.4).
GREASE = 0x29 * 5 + 0x17


def session(*, limited: bool = True) -> SessionProtocol:
    return SessionProtocol(
        SessionCredit(LIMITS, LIMITS, 0, Growth(0, 0, lambda size: None)) if limited else None
    )


def receive(target: SessionProtocol, *pieces: bytes, fin: bool = False) -> list[SessionEvent]:
    return [
        event
        for n, piece in enumerate(pieces)
        for event in target.receive(piece, fin=fin and n == len(pieces) - 1)
    ]


def broken(code: Http3Code) -> list[SessionEvent]:
    return [SessionEnded(0, "", code)]


# ---- the table

O, C, P, X = (  # noqa: E741
    SessionState.OPEN,
    SessionState.CLOSING,
    SessionState.CLOSED_BY_PEER,
    SessionState.CLOSED,
)
TABLE = {
    # Section 6: "An endpoint that sends a WT_CLOSE_SESSION capsule MUST immediately send a FIN"; a session is terminated
    # when one "is either sent or received", so nothing more is said.
    (O, Input.LOCAL_CLOSE): (C, Action.SEND_CLOSE),
    (C, Input.LOCAL_CLOSE): (C, Action.IGNORE),
    (P, Input.LOCAL_CLOSE): (P, Action.IGNORE),
    (X, Input.LOCAL_CLOSE): (X, Action.IGNORE),
    # "The recipient MUST either close or reset the stream in response."
    (O, Input.CLOSE_CAPSULE): (P, Action.END),
    # Two closes that cross: ours was the end here.
    (C, Input.CLOSE_CAPSULE): (P, Action.IGNORE),
    # "If any additional stream data is received ... the stream MUST be reset with code H3_MESSAGE_ERROR."
    (P, Input.CLOSE_CAPSULE): (X, Action.FAIL),
    (P, Input.OTHER_CAPSULE): (X, Action.FAIL),
    (O, Input.OTHER_CAPSULE): (O, Action.PROCESS),
    # The peer has not heard of our close yet.
    (C, Input.OTHER_CAPSULE): (C, Action.IGNORE),
    (X, Input.CLOSE_CAPSULE): (X, Action.IGNORE),
    (X, Input.OTHER_CAPSULE): (X, Action.IGNORE),
    # "Cleanly terminating a CONNECT stream without a WT_CLOSE_SESSION capsule" is a close too.
    (O, Input.FIN): (X, Action.END),
    (C, Input.FIN): (X, Action.IGNORE),
    (P, Input.FIN): (X, Action.IGNORE),
    (X, Input.FIN): (X, Action.IGNORE),
    # "The CONNECT stream is closed, either cleanly or abruptly, on either side."
    (O, Input.RESET): (X, Action.FAIL),
    (C, Input.RESET): (X, Action.IGNORE),
    (P, Input.RESET): (X, Action.IGNORE),
    (X, Input.RESET): (X, Action.IGNORE),
    # Section 5.6: "MUST close the WebTransport session with a WT_FLOW_CONTROL_ERROR"; RFC 9297 section 3.3.
    (O, Input.VIOLATION): (X, Action.FAIL),
    (C, Input.VIOLATION): (X, Action.FAIL),
    (P, Input.VIOLATION): (X, Action.FAIL),
    (X, Input.VIOLATION): (X, Action.IGNORE),
}


def test_the_table() -> None:
    assert set(TABLE) == set(product(SessionState, Input))
    assert SESSION_TABLE == TABLE


def test_what_is_closed_stays_closed() -> None:
    for (state, _), (after, action) in SESSION_TABLE.items():
        if state is X:
            assert (after, action) == (X, Action.IGNORE)
        if action is Action.FAIL:
            assert after is X
        assert after is not O or state is O


# The ways to get into a state.
ROADS: list[tuple[str, SessionState, Callable[[SessionProtocol], object]]] = [
    ("open", O, lambda target: None),
    ("closed here", C, lambda target: target.close(1, "x")),
    ("closed there", P, lambda target: receive(target, encode_close(2, "y"))),
    (
        "closed here, then there",
        P,
        lambda target: (target.close(1, "x"), receive(target, encode_close(2, "y"))),
    ),
    ("ended there", X, lambda target: receive(target, b"", fin=True)),
    ("closed and ended there", X, lambda target: receive(target, encode_close(2, "y"), fin=True)),
    ("closed here and ended there", X, lambda target: (target.close(1, "x"), target.reset())),
    ("reset there", X, lambda target: target.reset()),
    ("broken", X, lambda target: target.violated()),
]
INPUTS: dict[Input, Callable[[SessionProtocol], object]] = {
    Input.LOCAL_CLOSE: lambda target: target.close(7, "bye"),
    Input.CLOSE_CAPSULE: lambda target: receive(target, encode_close(9, "why")),
    Input.OTHER_CAPSULE: lambda target: receive(target, encode_drain()),
    Input.FIN: lambda target: receive(target, b"", fin=True),
    Input.RESET: lambda target: target.reset(),
    Input.VIOLATION: lambda target: target.violated(),
}
ERRORS = {
    Input.CLOSE_CAPSULE: MESSAGE,
    Input.OTHER_CAPSULE: MESSAGE,
    Input.RESET: Http3Code.REQUEST_CANCELLED,
    Input.VIOLATION: FLOW,
}


@pytest.mark.parametrize(("road", "state", "take"), ROADS, ids=[road[0] for road in ROADS])
@pytest.mark.parametrize("happened", Input)
def test_every_row(
    road: str, state: SessionState, take: Callable[[SessionProtocol], object], happened: Input
) -> None:
    target = session()
    take(target)
    assert target.state is state
    after, action = TABLE[state, happened]
    found = INPUTS[happened](target)
    assert target.state is after
    if action is Action.IGNORE:
        assert not found
    elif action is Action.PROCESS:
        assert found == [DrainRequested()]
    elif action is Action.SEND_CLOSE:
        assert found == encode_close(7, "bye")
    elif action is Action.END:
        code, reason = (9, "why") if happened is Input.CLOSE_CAPSULE else (0, "")
        assert found == [SessionEnded(code, reason, None)]
    else:
        assert found == [SessionEnded(0, "", ERRORS[happened])]


def test_all_states_and_inputs_are_on_the_way() -> None:
    assert {state for _, state, _ in ROADS} == set(SessionState)
    assert set(INPUTS) == set(Input)


# ---- closing


@pytest.mark.parametrize(("code", "reason"), [(0, ""), (7, "bye"), (2**32 - 1, "é" * 512)])
def test_a_close(code: int, reason: str) -> None:
    ours, theirs = session(), session()
    said = ours.close(code, reason)
    assert said is not None
    assert ours.state is C
    assert receive(theirs, said, fin=True) == [SessionEnded(code, reason)]
    assert theirs.state is X
    # The other side answers with the end of its stream.
    assert receive(ours, b"", fin=True) == []
    assert ours.state is X


def test_an_end_without_a_close() -> None:
    for limited in (True, False):
        assert receive(session(limited=limited), b"", fin=True) == [SessionEnded(0, "")]


def test_closes_that_cross() -> None:
    sides = session(), session()
    said = [side.close(n, f"{n}") for n, side in enumerate(sides)]
    for side, heard in zip(sides, reversed(said), strict=True):
        assert heard is not None
        assert receive(side, heard, fin=True) == []
        assert side.state is X


def test_a_code_that_cannot_be_sent_changes_nothing() -> None:
    target = session()
    for code in (-1, 2**32):
        with pytest.raises(OverflowError):
            target.close(code, "")
        assert target.state is O
    assert target.close(1, "") == encode_close(1, "")


BEHIND = {
    "a close": encode_close(0, ""),
    "a drain": encode_drain(),
    "one of an unknown type": encode_record(GREASE, b"abc"),
    "one of an unknown type and nothing in it": encode_record(GREASE, b""),
    "the beginning of one": b"\x68",
    "a number cut in two": b"\x80",
    "a head": encode_record_head(GREASE, 2**40),
    "one byte": b"\0",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("crossing", [True, False])
def test_nothing_may_follow_a_close(
    behind: bytes, together: bool, fin: bool, crossing: bool
) -> None:
    """Section 6: whole or not, known or not, in the same packet or later."""
    target = session()
    if crossing:
        target.close(1, "")
    close = encode_close(5, "over")
    pieces = [close + behind] if together else [close, behind]
    expected: list[SessionEvent] = [] if crossing else [SessionEnded(5, "over")]
    assert receive(target, *pieces, fin=fin) == expected + broken(MESSAGE)
    assert target.state is X


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0\0\0", b"\0\0\0\1" + b"x" * 1025, b"\0\0\0\1\xff", b"\0\0\0\1\xc3"]
)
def test_closes_that_are_malformed(payload: bytes) -> None:
    """Section 6: too long, or not UTF-8; RFC 9297 section 3.3: too short."""
    target = session()
    assert receive(target, encode_record(CapsuleType.CLOSE_SESSION, payload)) == broken(MESSAGE)
    assert target.state is X


@pytest.mark.parametrize(
    "cut", [b"\x68", b"\x68\x43", b"\x68\x43\x04abc", b"\x17\x05abcd", b"\x40", b"\x00\x01"]
)
def test_an_end_in_the_middle_of_a_capsule(cut: bytes) -> None:
    """RFC 9297 section 3.3."""
    for pieces in ([cut], [cut[:1], cut[1:]], [encode_drain() + cut]):
        *_, ended = receive(session(), *pieces, fin=True)
        assert ended == SessionEnded(0, "", MESSAGE)


# ---- draining


def test_a_drain_is_said_while_the_session_is_open() -> None:
    target = session()
    assert target.drain() == target.drain() == encode_drain()
    assert target.state is O
    target.close(0, "")
    assert target.drain() == b""


def test_a_drain_changes_nothing() -> None:
    target = session()
    assert receive(target, encode_drain() * 2) == [DrainRequested()] * 2
    assert target.state is O
    assert target.close(0, "") is not None


def test_a_drain_with_something_in_it() -> None:
    capsule = encode_record(CapsuleType.DRAIN_SESSION, b"x")
    assert receive(session(), capsule) == broken(MESSAGE)


# ---- flow control


def test_limits_that_grow() -> None:
    target = session()
    credit = target.credit
    assert credit is not None
    assert receive(target, encode_number(CapsuleType.MAX_DATA, 200)) == [CreditGrown()]
    assert credit.room == 200
    for kind, capsule in enumerate(GROWING[1:]):
        for _ in range(5 + kind):
            credit.opened(kind)
        assert not credit.may_open(kind)
        assert receive(target, encode_number(capsule, 7)) == [CreditGrown()]
        assert credit.may_open(kind)


@pytest.mark.parametrize(
    "capsules",
    [
        [(CapsuleType.MAX_DATA, 99)],
        [(CapsuleType.MAX_DATA, 0)],
        [(CapsuleType.MAX_DATA, 300), (CapsuleType.MAX_DATA, 299)],
        [(CapsuleType.MAX_DATA, 300), (CapsuleType.MAX_DATA, 300)],
        [(CapsuleType.MAX_STREAMS_BIDI, 4)],
        [(CapsuleType.MAX_STREAMS_BIDI, 7), (CapsuleType.MAX_STREAMS_BIDI, 7)],
        [(CapsuleType.MAX_STREAMS_BIDI, 2**60 + 1)],
        [(CapsuleType.MAX_STREAMS_UNI, 5)],
        [(CapsuleType.MAX_STREAMS_UNI, 7), (CapsuleType.MAX_STREAMS_UNI, 7)],
        [(CapsuleType.MAX_STREAMS_UNI, 2**62 - 1)],
        # Sections 5.6.3
        [(CapsuleType.STREAMS_BLOCKED_BIDI, 2**60 + 1)],
        [(CapsuleType.STREAMS_BLOCKED_UNI, 2**62 - 1)],
        # Section 5.4: over HTTP/3 these limits are QUIC's.
        [(CapsuleType.MAX_STREAM_DATA, 0)],
        [(CapsuleType.STREAM_DATA_BLOCKED, 0)],
    ],
)
def test_limits_that_must_not_be(capsules: list[tuple[CapsuleType, int]]) -> None:
    target = session()
    data = b"".join(encode_number(*capsule) for capsule in capsules)
    events = receive(target, data + encode_drain())
    assert events == [CreditGrown()] * (len(capsules) - 1) + broken(FLOW)
    assert target.state is X


@pytest.mark.parametrize("kind", BLOCKED)
@pytest.mark.parametrize("number", [0, 5, 2**60])
def test_what_the_peer_waits_for_is_no_news(kind: CapsuleType, number: int) -> None:
    for limited in (True, False):
        target = session(limited=limited)
        assert receive(target, encode_number(kind, number) * 2) == []
        assert target.state is O
    assert receive(session(), encode_number(CapsuleType.DATA_BLOCKED, 2**62 - 1)) == []


@pytest.mark.parametrize("kind", [*GROWING, *BLOCKED])
def test_without_flow_control_its_capsules_mean_nothing(kind: CapsuleType) -> None:
    """Section 5.1."""
    target = session(limited=False)
    for number in (5, 4, 4, 2**62 - 1, 0):
        assert receive(target, encode_number(kind, number)) == []
    assert target.state is O
    assert target.credit is None


@pytest.mark.parametrize("kind", PROHIBITED)
def test_prohibited_capsules_without_flow_control(kind: CapsuleType) -> None:
    """Section 5.4: they are none of "the flow control capsules" of section 5.6, which are ignored; they are a session error."""
    (ended,) = receive(session(limited=False), encode_number(kind, 5))
    assert isinstance(ended, SessionEnded)
    assert ended.error in (FLOW, MESSAGE)


@pytest.mark.parametrize("kind", [*GROWING, *BLOCKED])
@pytest.mark.parametrize("payload", [b"", b"\x40", b"\x05\x00", b"\xc0" + bytes(8), bytes(1000)])
def test_limits_that_are_no_numbers(kind: CapsuleType, payload: bytes) -> None:
    """RFC 9297 section 3.3."""
    target = session()
    assert receive(target, encode_record(kind, payload)) == broken(MESSAGE)
    assert target.state is X


def test_a_limit_that_was_exceeded() -> None:
    target = session()
    assert target.violated() == broken(FLOW)
    assert target.violated() == []
    assert target.close(0, "") is None


# ---- datagrams, and what nobody knows


def test_datagrams_as_capsules() -> None:
    """RFC 9297 section 3.5."""
    target = session()
    for data in (b"", b"x", bytes(65536)):
        assert receive(target, encode_record(CapsuleType.DATAGRAM, data)) == [
            DatagramReceived(data)
        ]
    assert receive(target, encode_record_head(CapsuleType.DATAGRAM, 65537)) == broken(MESSAGE)


@pytest.mark.parametrize("kind", [GREASE, 0x17, 0x2842, 0x190B4D45, 2**62 - 1])
def test_unknown_capsules(kind: int) -> None:
    target = session()
    unknown = encode_record(kind, b"\x28\x43" * 1000)
    events = receive(target, unknown + encode_drain() + unknown, unknown, fin=True)
    assert events == [DrainRequested(), SessionEnded(0, "")]


# ---- limits


def peak(action: Callable[[], object]) -> int:
    """The most memory that an action has had at once."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (CapsuleType.CLOSE_SESSION, 4 + 32 * MEBIBYTE),
        *((kind, 2**40) for kind in CapsuleType),
        (GREASE, 2**40),
    ],
)
def test_nothing_is_held_of_a_capsule_that_is_too_long(kind: int, length: int) -> None:
    target, piece = session(), b"x" * MEBIBYTE
    events: list[SessionEvent] = []

    def take() -> None:
        events.extend(receive(target, encode_record_head(kind, length)))
        for _ in range(33):
            events.extend(receive(target, piece))

    assert peak(take) < 65536
    # At once, and only once.
    assert events == ([] if kind == GREASE else broken(MESSAGE))


def test_many_small_capsules_at_once() -> None:
    target = session()
    data = encode_number(CapsuleType.DATA_BLOCKED, 0) * 20_000
    assert peak(lambda: receive(target, data)) < 65536
    assert target.state is O


def seconds(size: int, times: int) -> float:
    pieces = [encode_record_head(CapsuleType.DATAGRAM, size), *[b"x"] * size]
    best = float("inf")
    for _ in range(times):
        target = session()
        begun = time.thread_time()
        for piece in pieces:
            target.receive(piece, fin=False)
        best = min(best, time.thread_time() - begun)
    return best


def test_a_capsule_byte_by_byte() -> None:
    """16 times the work of a sixteenth of it; if it were quadratic, 256 times."""
    assert seconds(65536, 2) < 64 * seconds(4096, 5)


# ---- any chunking, any bytes


def split(whole: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Data cut at these offsets, in pieces of any length, none perhaps."""
    places = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in zip(places, places[1:], strict=False)]


def run(
    pieces: Sequence[bytes], *, limited: bool, closing: bool, fin: bool
) -> tuple[list[SessionEvent], SessionState]:
    target = session(limited=limited)
    if closing:
        target.close(1, "")
    return receive(target, *pieces, fin=fin), target.state


numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**62 - 1))
capsules = st.one_of(
    st.builds(encode_number, st.sampled_from([*GROWING, *BLOCKED]), numbers),
    st.builds(encode_number, st.sampled_from(PROHIBITED), numbers),
    st.builds(encode_close, st.integers(0, 2**32 - 1), st.text(max_size=10)),
    st.builds(encode_record, st.sampled_from([*CapsuleType, GREASE]), st.binary(max_size=10)),
    st.just(encode_drain()),
    st.just(encode_record(GREASE, b"abc")),
    st.binary(max_size=6),
)


@given(
    st.lists(capsules, max_size=6).map(b"".join),
    st.lists(st.integers(0, 2**10), max_size=10),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example(encode_close(1, "") + encode_record(GREASE, b""), [], True, False, True)
@example(encode_close(1, "") + encode_drain() + encode_close(2, ""), [], True, False, True)
@example(encode_drain() + encode_close(1, ""), [], True, True, False)
@settings(deadline=None, max_examples=300)
def test_any_content_in_any_chunking(
    whole: bytes, cuts: list[int], limited: bool, closing: bool, fin: bool
) -> None:
    """It never raises, and ends at most once, but for what is wrong behind a close."""
    expected = run([whole], limited=limited, closing=closing, fin=fin)
    for pieces in (split(whole, cuts), [*(bytes([byte]) for byte in whole), b""]):
        assert run(pieces, limited=limited, closing=closing, fin=fin) == expected
    events, state = expected
    ends = [event for event in events if isinstance(event, SessionEnded)]
    assert len(ends) <= (1 if closing else 2)
    assert ends == events[len(events) - len(ends) :]
    if ends and ends[-1].error is not None:
        assert state is X
    if len(ends) == 2:
        assert ends[0].error is None
        assert ends[1] == SessionEnded(0, "", MESSAGE)
    if fin:
        assert state is X


# ---- two sides


class Pipe:
    """One direction of a session's stream."""

    def __init__(self, target: SessionProtocol) -> None:
        self.target = target
        self.data = b""
        self.fin = False
        self.is_over = False
        self.events: list[SessionEvent] = []

    def write(self, data: bytes, *, fin: bool = False) -> None:
        assert not self.fin, "something was said behind the end"
        self.data += data
        self.fin = fin

    def deliver(self, count: int) -> list[SessionEvent]:
        piece, self.data = self.data[:count], self.data[count:]
        fin = self.fin and not self.data and not self.is_over
        self.is_over = self.is_over or fin
        found = self.target.receive(piece, fin=fin) if piece or fin else []
        self.events += found
        return found


steps = st.one_of(
    st.tuples(st.just("drain"), st.booleans(), st.just(0)),
    st.tuples(st.just("close"), st.booleans(), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("end"), st.booleans(), st.just(0)),
    st.tuples(st.just("grow"), st.booleans(), st.integers(1, 100)),
    st.tuples(st.just("deliver"), st.booleans(), st.integers(1, 20)),
)


@given(st.lists(steps, max_size=25))
@settings(deadline=None, max_examples=200)
def test_two_sides(happening: list[tuple[str, bool, int]]) -> None:
    """Whatever both do, and in whichever order it arrives: each learns how it has ended, and both streams have ends."""
    sides = {True: session(), False: session()}
    pipes = {by: Pipe(sides[not by]) for by in sides}
    closes: dict[bool, tuple[int, str]] = {}
    granted = {True: 100, False: 100}

    def deliver(by: bool, count: int) -> None:
        for event in pipes[by].deliver(count):
            if isinstance(event, SessionEnded):
                assert event.error is None
                answer = pipes[not by]
                if not answer.fin:
                    answer.write(b"", fin=True)

    for what, by, number in happening:
        side, pipe = sides[by], pipes[by]
        if what == "drain":
            pipe.write(said) if (said := side.drain()) else None
        elif what == "close":
            capsule = side.close(number, f"{number}")
            if capsule is not None:
                pipe.write(capsule, fin=True)
                closes[by] = number, f"{number}"
        elif what == "end" and side.state is O:
            side.close(0, "")
            pipe.write(b"", fin=True)
            closes[by] = 0, ""
        elif what == "grow" and side.state is O:
            granted[by] += number
            pipe.write(encode_number(CapsuleType.MAX_DATA, granted[by]))
        elif what == "deliver":
            deliver(by, number)
    for by in (True, False, True, False):
        deliver(by, 2**30)
    if not closes:
        assert all(side.state is O for side in sides.values())
        return
    for by, side in sides.items():
        assert side.state is X
        assert pipes[by].is_over
        ends = [event for event in pipes[not by].events if isinstance(event, SessionEnded)]
        if by in closes:
            assert ends == []
        else:
            assert ends == [SessionEnded(*closes[not by])]


def test_a_capsule_in_every_length_of_head() -> None:
    for size in (1, 2, 4, 8):
        length = (2 | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size)
        capsule = varint.encode(CapsuleType.DATAGRAM) + length + b"ab"
        assert receive(session(), capsule) == [DatagramReceived(b"ab")]
