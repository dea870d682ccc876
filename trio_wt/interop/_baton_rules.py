"""The rules of the devious baton: codes, requests, messages, and which batons are due where.

Sections are those of draft-frindell-webtrans-devious-baton-00.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, Literal
from urllib.parse import parse_qsl

from .._errors import TrioWTError
from .._protocol import varint
from .._util import safe_text

__all__ = [
    "BATON_PATH",
    "VERSION",
    "BatonFailed",
    "BatonMove",
    "BatonResult",
    "BatonSessionError",
    "BatonSettings",
    "BatonStreamError",
    "Kind",
    "Ledger",
    "Query",
    "encode_message",
    "parse_datagram",
]

#: Where the draft wants servers to have it.
BATON_PATH: Final = "/webtransport/devious-baton"
#: The one that there is (section 3.2).
VERSION: Final = 0

_MAX_FIELDS: Final = 16


class BatonSessionError(IntEnum):
    """Codes that a session is closed with (section 4.6.2).

    Attributes:
        DA_YAMN: there is no stream credit to go on with.
        BRUH: a message was malformed.
        SUS: a message was not expected.
        BORED: the next message, or credit to send one, took too long.
    """

    DA_YAMN = 1
    BRUH = 2
    SUS = 3
    BORED = 4


class BatonStreamError(IntEnum):
    """Codes that streams are reset and stopped with (section 4.6.1).

    Attributes:
        IDC: of STOP_SENDING.
        WHATEVER: of a reset that the peer has asked for, by STOP_SENDING or by a reset of its own.
        I_LIED: of any other reset.
    """

    IDC = 1
    WHATEVER = 2
    I_LIED = 3


class BatonFailed(TrioWTError):
    """The session was closed before the batons were at their end.

    Attributes:
        code: what it was closed with, one of `BatonSessionError` where both sides keep to the draft; 0 if the peer saw
            no error.
        reason: why, for people.
        remote: whether the peer closed it.
    """

    def __init__(self, code: int, reason: str = "", *, remote: bool) -> None:
        super().__init__(code, reason, remote)
        self.code = code
        self.reason = reason
        self.remote = remote

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.code, self.reason, self.remote)

    def __str__(self) -> str:
        names = {error.value: f"{error.name} ({error.value})" for error in BatonSessionError}
        who = "the peer" if self.remote else "this side"
        because = f": {safe_text(self.reason)}" if self.reason else ""
        return f"{who} closed the session with {names.get(self.code, self.code)}{because}"


def _rebuild(code: int, reason: str, remote: bool) -> BatonFailed:
    return BatonFailed(code, reason, remote=remote)


@dataclass(slots=True)
class BatonResult:
    """What became of a session's batons.

    Attributes:
        received: messages that came on streams.
        sent: messages that were sent on streams.
        datagrams_received: messages that came in datagrams.
        datagrams_sent: messages that were sent in datagrams.
        finished: batons that came to 0.
        reset: batons that were lost with a stream that was reset or stopped.
    """

    received: int = 0
    sent: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    finished: int = 0
    reset: int = 0


@dataclass(frozen=True, slots=True)
class BatonMove:
    """Something that happened to a baton.

    Attributes:
        what: "received", "sent", or "lost" with its stream, which was reset or stopped.
        value: the baton; None if it was lost before it came.
        by: what it went by: "unidirectional stream", "bidirectional stream" or "datagram".
        stream_id: the stream's number; None for datagrams.
    """

    what: Literal["received", "sent", "lost"]
    value: int | None
    by: Literal["unidirectional stream", "bidirectional stream", "datagram"]
    stream_id: int | None


@dataclass(frozen=True, slots=True)
class BatonSettings:
    """How to play. Times are in seconds, sizes in bytes.

    Args:
        patience: how long to wait for a message, or until one is sent; then the session is closed with
            `BatonSessionError.BORED`.
        credit_patience: how long to wait where a stream cannot be opened at once, since credit may be on its way; then it is closed
            with `BatonSessionError.DA_YAMN`.
        padding: of the messages sent. Datagrams have as much of it as fits a packet.
        max_padding: of the messages received; a longer one is malformed.
        max_count: how many batons a client may have. Besides those that it asks for, it may start some by unidirectional
            streams while it owes no answer on one, which the draft leaves open.

    Raises:
        ValueError: a setting is out of its range.
    """

    patience: float = 10
    credit_patience: float = 1
    padding: int = 2000
    max_padding: int = 2**20
    max_count: int = 16

    def __post_init__(self) -> None:
        for name in ("patience", "credit_patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, and is {getattr(self, name)}")
        for name, least in (("padding", 0), ("max_padding", 0), ("max_count", 1)):
            value = getattr(self, name)
            if not least <= value < 2**30:
                raise ValueError(f"{name} must be from {least} to {2**30 - 1}, and is {value}")


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asks for (section 3.1).

    Attributes:
        count: how many batons.
        baton: their first value; None for any.
    """

    count: int
    baton: int | None

    @classmethod
    def parse(cls, query: str, max_count: int) -> Query:
        """Raises `ValueError` for what is not valid."""
        values: dict[str, int] = {}
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        for name, value in fields:
            if name not in ("version", "count", "baton"):
                continue
            if name in values:
                raise ValueError(f"{name} is repeated")
            if not (value.isascii() and value.isdigit() and len(value) < 10):
                raise ValueError(f"{name} is not a number")
            values[name] = int(value)
        if values.get("version", VERSION) != VERSION:
            raise ValueError(f"the only version is {VERSION}")
        count, baton = values.get("count", 1), values.get("baton")
        if not 1 <= count <= max_count:
            raise ValueError(f"count must be from 1 to {max_count}")
        if baton is not None and not 1 <= baton <= 255:
            raise ValueError("baton must be from 1 to 255")
        return cls(count, baton)


def encode_message(value: int, padding: int) -> bytes:
    """A message (section 4.3)."""
    return varint.encode(padding) + bytes(padding) + value.to_bytes(1)


def parse_datagram(data: bytes) -> int | None:
    """The baton of the message that a datagram is; None if it is malformed."""
    padding = varint.decode(data)
    if padding is None or sum(padding) + 1 != len(data):
        return None
    return data[-1]


class Kind(Enum):
    """The streams that a peer opens."""

    UNI = "unidirectional"
    BIDI = "bidirectional"


class Ledger:
    """Which batons are on their way, and where they are due.

    It is a few numbers, whatever the peer does: there are 256 values, and no more batons than were asked for.

    Args:
        query: what the client has asked for.
        max_count: how many batons there may ever be.
        is_server: whose ledger it is.

    Attributes:
        active: how many batons are on their way.
    """

    def __init__(self, query: Query, max_count: int, *, is_server: bool) -> None:
        self.active: int = query.count
        self._due: dict[Kind, Counter[int]] = {kind: Counter() for kind in Kind}
        # How many of those will not come, since their streams were reset: nobody knows what they would have brought.
        self._missing = dict.fromkeys(Kind, 0)
        # How many may come on unidirectional streams with any value but 0.
        self._any_due = 0
        self._reading = dict.fromkeys(Kind, 0)
        # How many batons the client may still start.
        self._spare = max_count - query.count if is_server else 0
        # The values that may come in datagrams, and which of those sent may (section 4.4).
        self._echoes: Counter[int] = Counter()
        self._echoed = 1 if is_server else 0
        self._zeros_due = 0
        if not is_server:
            if query.baton is None:
                self._any_due = query.count
            else:
                self._due[Kind.UNI][query.baton] = query.count

    def _still_due(self, kind: Kind) -> int:
        any_due = self._any_due if kind is Kind.UNI else 0
        return self._due[kind].total() + any_due - self._missing[kind]

    def opened(self, kind: Kind) -> bool:
        """The peer has opened a stream: whether it may bring a baton."""
        spare = self._spare if kind is Kind.UNI else 0
        if self._reading[kind] >= self._still_due(kind) + spare:
            return False
        self._reading[kind] += 1
        return True

    def ended(self, kind: Kind) -> None:
        """Such a stream is read to its end, whatever that was."""
        self._reading[kind] -= 1

    def came(self, kind: Kind, value: int) -> bool:
        """Such a stream has brought a baton: whether it was due."""
        due = self._due[kind]
        if due[value]:
            due[value] -= 1
        elif kind is Kind.UNI and self._any_due and value:
            self._any_due -= 1
        elif kind is Kind.UNI and self._spare and value and not self._still_due(kind):
            self._spare -= 1
            self.active += 1
        else:
            return False
        return True

    def was_reset(self, kind: Kind) -> bool:
        """Such a stream was reset: whether a baton is lost with it."""
        if not self._still_due(kind):
            return False
        self._missing[kind] += 1
        return True

    def echoed(self, value: int) -> bool:
        """A datagram has brought a baton: whether it may."""
        if not self._echoes[value]:
            return False
        self._echoes[value] -= 1
        return True

    def sending(self, value: int, answer_on: Kind | None, *, undo: bool = False) -> None:
        """A baton is about to be sent, or could not be.

        Args:
            value: the baton.
            answer_on: where the answer is due; None for the same stream.
            undo: it could not be sent.
        """
        change = -1 if undo else 1
        if value and answer_on is not None:
            self._due[answer_on][(value + 1) % 256] += change
        if value == 255:
            self._zeros_due += change
        if value % 7 == self._echoed:
            self._echoes[value] += change

    def zero_came(self) -> None:
        """A baton has come to 0, on whatever stream."""
        self._zeros_due -= 1

    def settle_zeros(self) -> int:
        """The peer has closed without an error: how many batons are at their end that were on their way to us as 0."""
        if self.active > self._zeros_due:
            return 0
        settled, self.active = self.active, 0
        return settled
