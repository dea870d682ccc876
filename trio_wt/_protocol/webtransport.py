"""A WebTransport session as its own stream tells it (draft-ietf-webtrans-http3-16 sections 4.7, 5 and 6): a pure object.

The session's streams and datagrams go other ways; here is what is said about them, and about the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from .capsules import (
    CapsuleType,
    capsule_reader,
    encode_close,
    encode_drain,
    parse_close,
    parse_number,
)
from .http3_codes import Http3Code
from .records import OVERSIZE
from .session_credit import MAX_STREAMS, CreditViolation, SessionCredit

__all__ = [
    "SESSION_TABLE",
    "Action",
    "CreditGrown",
    "DatagramReceived",
    "DrainRequested",
    "Input",
    "SessionEnded",
    "SessionEvent",
    "SessionProtocol",
    "SessionState",
]


class SessionState(Enum):
    """How far a session has come."""

    OPEN = auto()
    #: this side has closed, and the peer has not answered
    CLOSING = auto()
    #: the peer has said CLOSE_SESSION, and its FIN has not come
    CLOSED_BY_PEER = auto()
    CLOSED = auto()


class Input(Enum):
    """What can happen to a session."""

    LOCAL_CLOSE = auto()
    CLOSE_CAPSULE = auto()
    OTHER_CAPSULE = auto()
    FIN = auto()
    RESET = auto()
    VIOLATION = auto()


class Action(Enum):
    """What is to be done about it."""

    IGNORE = auto()
    #: act on the capsule
    PROCESS = auto()
    #: CLOSE_SESSION and FIN go out
    SEND_CLOSE = auto()
    #: the peer has ended it: FIN goes out
    END = auto()
    #: the stream is reset both ways with an error
    FAIL = auto()


#: What follows from what, by the sections of draft-ietf-webtrans-http3-16.
SESSION_TABLE: Final[dict[tuple[SessionState, Input], tuple[SessionState, Action]]] = {
    # 6: "an endpoint ... sends a CLOSE_SESSION capsule", and FIN at once.
    (SessionState.OPEN, Input.LOCAL_CLOSE): (SessionState.CLOSING, Action.SEND_CLOSE),
    (SessionState.CLOSING, Input.LOCAL_CLOSE): (SessionState.CLOSING, Action.IGNORE),
    (SessionState.CLOSED_BY_PEER, Input.LOCAL_CLOSE): (
        SessionState.CLOSED_BY_PEER,
        Action.IGNORE,
    ),
    (SessionState.CLOSED, Input.LOCAL_CLOSE): (SessionState.CLOSED, Action.IGNORE),
    # 6: the receiver answers with FIN; of two closes that cross, each side has its own.
    (SessionState.OPEN, Input.CLOSE_CAPSULE): (SessionState.CLOSED_BY_PEER, Action.END),
    (SessionState.CLOSING, Input.CLOSE_CAPSULE): (SessionState.CLOSED_BY_PEER, Action.IGNORE),
    # 6: "If any additional stream data is received ... after" the close, H3_MESSAGE_ERROR.
    (SessionState.CLOSED_BY_PEER, Input.CLOSE_CAPSULE): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSED, Input.CLOSE_CAPSULE): (SessionState.CLOSED, Action.IGNORE),
    # 5.6 and 4.7
    (SessionState.OPEN, Input.OTHER_CAPSULE): (SessionState.OPEN, Action.PROCESS),
    (SessionState.CLOSING, Input.OTHER_CAPSULE): (SessionState.CLOSING, Action.IGNORE),
    (SessionState.CLOSED_BY_PEER, Input.OTHER_CAPSULE): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSED, Input.OTHER_CAPSULE): (SessionState.CLOSED, Action.IGNORE),
    # 6: without a capsule, it is a close with code 0 and no reason.
    (SessionState.OPEN, Input.FIN): (SessionState.CLOSED, Action.END),
    (SessionState.CLOSING, Input.FIN): (SessionState.CLOSED, Action.IGNORE),
    (SessionState.CLOSED_BY_PEER, Input.FIN): (SessionState.CLOSED, Action.IGNORE),
    (SessionState.CLOSED, Input.FIN): (SessionState.CLOSED, Action.IGNORE),
    # 6: the abrupt end.
    (SessionState.OPEN, Input.RESET): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSING, Input.RESET): (SessionState.CLOSED, Action.IGNORE),
    (SessionState.CLOSED_BY_PEER, Input.RESET): (SessionState.CLOSED, Action.IGNORE),
    (SessionState.CLOSED, Input.RESET): (SessionState.CLOSED, Action.IGNORE),
    # 5.1, RFC 9297 section 3.3
    (SessionState.OPEN, Input.VIOLATION): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSING, Input.VIOLATION): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSED_BY_PEER, Input.VIOLATION): (SessionState.CLOSED, Action.FAIL),
    (SessionState.CLOSED, Input.VIOLATION): (SessionState.CLOSED, Action.IGNORE),
}


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The peer has ended the session, or broken it.

    Attributes:
        code, reason: what it said, if it has closed it.
        error: what to reset the session's stream with; None if the end is to be answered by FIN.
    """

    code: int
    reason: str
    error: Http3Code | None = None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The peer would like the session to come to its end."""


@dataclass(frozen=True, slots=True)
class CreditGrown:
    """The peer allows more data, or more streams."""


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram that came as a capsule (RFC 9297 section 3.5)."""

    data: bytes


SessionEvent: TypeAlias = SessionEnded | DrainRequested | CreditGrown | DatagramReceived

_BLOCKED: Final = {CapsuleType.STREAMS_BLOCKED_BIDI, CapsuleType.STREAMS_BLOCKED_UNI}
_FORBIDDEN: Final = {CapsuleType.MAX_STREAM_DATA, CapsuleType.STREAM_DATA_BLOCKED}


class SessionProtocol:
    """The state of one session.

    Args:
        credit: the session's flow control; None where it is off.

    Attributes:
        credit: see there.
        state: how far it has come.
    """

    def __init__(self, credit: SessionCredit | None) -> None:
        self.credit: SessionCredit | None = credit
        self.state: SessionState = SessionState.OPEN
        self._capsules = capsule_reader()

    def _step(self, happened: Input) -> Action:
        self.state, action = SESSION_TABLE[self.state, happened]
        return action

    # ---- what to send

    def close(self, code: int, reason: str) -> bytes | None:
        """Close the session: what to send, with FIN; None if it has ended already."""
        capsule = encode_close(code, reason)
        return None if self._step(Input.LOCAL_CLOSE) is Action.IGNORE else capsule

    def drain(self) -> bytes:
        """What asks the peer to come to an end."""
        return encode_drain() if self.state is SessionState.OPEN else b""

    # ---- what arrives

    def receive(self, data: bytes, *, fin: bool) -> list[SessionEvent]:
        """Content of the session's stream. Never raises."""
        events: list[SessionEvent] = []
        if data and self.state is SessionState.CLOSED_BY_PEER:
            return self._end(Input.VIOLATION, 0, "", Http3Code.MESSAGE_ERROR)
        for kind, payload in self._capsules.feed(data):
            events += self._receive_capsule(kind, payload)
            if self.state is SessionState.CLOSED:
                return events
            if self.state is SessionState.CLOSED_BY_PEER and self._capsules.unread:
                # Of whatever kind, whole or not.
                return events + self._end(Input.VIOLATION, 0, "", Http3Code.MESSAGE_ERROR)
        if fin:
            if not self._capsules.is_between:
                # RFC 9297 section 3.3
                events += self._end(Input.VIOLATION, 0, "", Http3Code.MESSAGE_ERROR)
            else:
                events += self._end(Input.FIN, 0, "", None)
        return events

    def reset(self) -> list[SessionEvent]:
        """The peer has reset the session's stream, or asked us to stop."""
        return self._end(Input.RESET, 0, "", Http3Code.REQUEST_CANCELLED)

    def violated(self) -> list[SessionEvent]:
        """The peer has exceeded a limit of the session's."""
        return self._end(Input.VIOLATION, 0, "", Http3Code.WT_FLOW_CONTROL_ERROR)

    def _end(
        self, happened: Input, code: int, reason: str, error: Http3Code | None
    ) -> list[SessionEvent]:
        action = self._step(happened)
        if action is Action.IGNORE:
            return []
        return [SessionEnded(code, reason, error if action is Action.FAIL else None)]

    def _receive_capsule(self, kind: int, payload: bytes) -> list[SessionEvent]:
        broken = Http3Code.MESSAGE_ERROR
        if kind == OVERSIZE:
            return self._end(Input.VIOLATION, 0, "", broken)
        if kind == CapsuleType.CLOSE_SESSION:
            close = parse_close(payload)
            if close is None:
                return self._end(Input.VIOLATION, 0, "", broken)
            return self._end(Input.CLOSE_CAPSULE, *close, broken)
        action = self._step(Input.OTHER_CAPSULE)
        if action is Action.FAIL:
            return [SessionEnded(0, "", broken)]
        if action is Action.IGNORE:
            return []
        if kind == CapsuleType.DRAIN_SESSION:
            return [DrainRequested()]
        if kind == CapsuleType.DATAGRAM:
            return [DatagramReceived(payload)]
        number = parse_number(payload)
        if number is None:
            return self._end(Input.VIOLATION, 0, "", broken)
        return self._receive_number(CapsuleType(kind), number)

    def _receive_number(self, kind: CapsuleType, number: int) -> list[SessionEvent]:
        if kind in _FORBIDDEN:
            # Over HTTP/3 these limits are QUIC's, whether or not sessions have others.
            return self.violated()
        if self.credit is None:
            return []
        try:
            if kind is CapsuleType.MAX_DATA:
                self.credit.max_data(number)
            elif kind is CapsuleType.MAX_STREAMS_BIDI:
                self.credit.max_streams(0, number)
            elif kind is CapsuleType.MAX_STREAMS_UNI:
                self.credit.max_streams(1, number)
            else:
                # The peer waits for what it will get when the application takes more.
                return self.violated() if kind in _BLOCKED and number > MAX_STREAMS else []
        except CreditViolation:
            return self.violated()
        return [CreditGrown()]
