"""What a WebSocket connection reports, and the states it goes through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

__all__ = ["TRANSITIONS", "Closed", "Event", "Fragment", "Input", "Pong", "State", "Violation"]


class State(Enum):
    """Where the connection stands in RFC 6455 section 7."""

    OPEN = auto()
    CLOSING = auto()  # we sent Close and await the peer's
    CLOSED = auto()  # Close frames have gone both ways
    FAILED = auto()  # section 7.1.7: we sent Close for a violation and ignore what still comes
    LOST = auto()  # the bytes ended without a Close from the peer


class Input(Enum):
    LOCAL_CLOSE = auto()
    REMOTE_CLOSE = auto()
    FAILURE = auto()
    EOF = auto()


# All transitions there are; what is not here cannot happen or is ignored by the caller's check.
TRANSITIONS: Final = {
    (State.OPEN, Input.LOCAL_CLOSE): State.CLOSING,
    (State.OPEN, Input.REMOTE_CLOSE): State.CLOSED,  # section 5.5.1: answered at once
    (State.OPEN, Input.FAILURE): State.FAILED,
    (State.OPEN, Input.EOF): State.LOST,
    (State.CLOSING, Input.REMOTE_CLOSE): State.CLOSED,
    (State.CLOSING, Input.FAILURE): State.FAILED,
    (State.CLOSING, Input.EOF): State.LOST,
}


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a message: some bytes of a frame, or all of one.

    Attributes:
        data: the bytes; of a text message they are checked UTF-8, but may end inside a character.
        text: whether the message is text.
        first: whether it begins a message.
        final: whether it ends one.
    """

    data: bytes
    text: bool
    first: bool
    final: bool


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong arrived."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The last event: no message comes after it.

    Attributes:
        code: the close code; 1005 if the peer's Close had none, 1006 if there was no Close frame.
        reason: the close reason.
        remote: whether the peer began it.
    """

    code: int
    reason: str
    remote: bool


Event: TypeAlias = "str | bytes | Fragment | Pong | Closed"


class Violation(Exception):
    """The peer broke a rule; the connection fails with this code (RFC 6455 section 7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
