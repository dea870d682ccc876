"""The devious baton, which implementations of WebTransport try each other out with (draft-frindell-webtrans-devious-baton-00).

A baton is a byte. It goes back and forth between client and server, one more at each pass, over streams of all kinds, until it is 0::

    await serve_webtransport(serve_baton, 4433, tls=..., on_request=check_baton_request)

    async with open_webtransport(baton_url("https://localhost:4433", count=3)) as session:
        result = await run_baton(session)

General theory of operation:

Both sides play by the same rules, so there is one `_Player`. It knows which values are due on which kind of stream: what comes
must be among them. So a peer can neither open more streams than there are batons, nor have anything kept but a few numbers;
padding is read piece by piece and dropped. Whoever finds a fault closes the session then and there, which wakes all tasks.

The end: who receives a baton of 0 closes the session when it was the last one. Who sends the last 0 waits for that, since a close
of its own might overtake the 0.

One rule of the draft cannot be kept to the letter: QUIC itself answers STOP_SENDING with a reset, and copies the code (RFC 9000
section 3.5), before an application could ask for `BatonStreamError.WHATEVER`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, TypeVarTuple
from urllib.parse import parse_qsl, urlencode

import trio

from ._errors import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    IncompleteRead,
    StreamReset,
    TrioWTError,
)
from ._http.request import Request
from ._protocol import varint
from ._quic.receive_stream import ReceiveStream
from ._quic.send_stream import SendStream
from ._quic.streams import Stream
from ._util import safe_text
from ._webtransport.session import WebTransportSession

__all__ = [
    "BATON_PATH",
    "BatonFailed",
    "BatonResult",
    "BatonSessionError",
    "BatonSettings",
    "BatonStreamError",
    "baton_url",
    "check_baton_request",
    "run_baton",
    "serve_baton",
]

#: Where the draft wants servers to have it.
BATON_PATH: Final = "/webtransport/devious-baton"

_VERSION: Final = 0
_MAX_FIELDS: Final = 16
_PIECE: Final = 65536
# Of a datagram's padding; what is left of the smallest packets holds it.
_MAX_DATAGRAM_PADDING: Final = 1000

Ts = TypeVarTuple("Ts")


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
    """The batons did not come to their end.

    Attributes:
        code: what the session was closed with, one of `BatonSessionError` where both sides keep to the draft; 0 if the peer
            closed it without an error, too early.
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
        names = {error.value: error.name for error in BatonSessionError}
        name = f"{names[self.code]} ({self.code})" if self.code in names else f"code {self.code}"
        because = f": {safe_text(self.reason)}" if self.reason else ""
        return (
            f"{'the peer' if self.remote else 'this side'} closed the session with {name}{because}"
        )


def _rebuild(code: int, reason: str, remote: bool) -> BatonFailed:
    return BatonFailed(code, reason, remote=remote)


@dataclass(frozen=True, slots=True)
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

    received: int
    sent: int
    datagrams_received: int
    datagrams_sent: int
    finished: int
    reset: int


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
        max_count: how many batons a client may ask for. It may also start some of its own on unidirectional streams where it
            owes no answer on one, which the draft does not forbid, until there were so many.

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
        for name in ("padding", "max_padding", "max_count"):
            least, value = int(name == "max_count"), getattr(self, name)
            if not least <= value < 2**30:
                raise ValueError(f"{name} must be from {least} to {2**30 - 1}, and is {value}")


# ---- requests


@dataclass(frozen=True, slots=True)
class _Query:
    """What a client asks for (section 3.1).

    Attributes:
        count: how many batons.
        baton: their first value; None for any.
    """

    count: int
    baton: int | None

    @classmethod
    def parse(cls, query: str) -> _Query:
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
        if values.get("version", _VERSION) != _VERSION:
            raise ValueError(f"the only version is {_VERSION}")
        count, baton = values.get("count", 1), values.get("baton")
        if not count:
            raise ValueError("count must be at least 1")
        if baton is not None and not 1 <= baton <= 255:
            raise ValueError("baton must be from 1 to 255")
        return cls(count, baton)


def baton_url(base: str, *, count: int = 1, baton: int | None = None) -> str:
    """The URL of a session.

    Args:
        base: the server, such as ``https://localhost:4433``.
        count: how many batons to ask for.
        baton: their first value, 1 to 255; None leaves it to the server.
    """
    query = {"version": _VERSION, "count": count}
    if baton is not None:
        query["baton"] = baton
    return f"{base.rstrip('/')}{BATON_PATH}?{urlencode(query)}"


def check_baton_request(
    request: Request,
    settings: BatonSettings = BatonSettings(),
) -> None:
    """For a server's ``on_request``: refuse what is not a valid request for batons, with status 404 or 400.

    What is no request for a WebTransport session is left alone.
    """
    if not request.is_webtransport:
        return
    if request.path != BATON_PATH:
        request.reject(404)
        return
    try:
        query = _Query.parse(request.query)
        if query.count > settings.max_count:
            raise ValueError(f"count must be at most {settings.max_count}")
    except ValueError as exc:
        request.reject(400, body=f"{exc}\n")


# ---- messages


def _message(value: int, padding: int) -> bytes:
    return varint.encode(padding) + bytes(padding) + value.to_bytes(1)


def _parse_datagram(data: bytes) -> int | None:
    """The baton in it; None if it is malformed."""
    padding = varint.decode(data)
    if padding is None or sum(padding) + 1 != len(data):
        return None
    return data[-1]


# ---- both sides


async def serve_baton(
    session: WebTransportSession,
    settings: BatonSettings = BatonSettings(),
) -> None:
    """A handler for `serve_webtransport`: play the server's part, and close the session.

    It never raises for what a client does; the session is closed with one of `BatonSessionError` then.

    Args:
        session: the session; its request's query says how many batons there are.
        settings: how to play.
    """
    try:
        query = _Query.parse(session.request.query)
    except ValueError as exc:
        await session.aclose(BatonSessionError.BRUH, str(exc))
        return
    if query.count > settings.max_count:
        await session.aclose(BatonSessionError.BRUH, "too many batons")
        return
    await _Player(session, settings, query, is_server=True).play()


async def run_baton(
    session: WebTransportSession,
    settings: BatonSettings = BatonSettings(),
) -> BatonResult:
    """Play the client's part, until all batons are at their end and the session is closed.

    Args:
        session: a session that was opened with a `baton_url`.
        settings: how to play.

    Returns:
        what became of the batons.

    Raises:
        BatonFailed: one side has closed the session before.
        ConnectionLost: its connection was lost.
        ValueError: its URL is not valid.
    """
    player = _Player(session, settings, _Query.parse(session.request.query), is_server=False)
    await player.play()
    player.check(session.closed)
    return player.result()


class _Kind(Enum):
    """Streams that the peer opens."""

    UNI = "unidirectional"
    BIDI = "bidirectional"


class _Player:
    def __init__(
        self,
        session: WebTransportSession,
        settings: BatonSettings,
        query: _Query,
        *,
        is_server: bool,
    ) -> None:
        self._session = session
        self._settings = settings
        self._is_server = is_server
        self._first = query.baton
        self._count = query.count
        # Batons that are on their way, and all that ever were.
        self._active = query.count
        self._started = query.count
        # The values that are to come on streams that the peer opens, and how many of them will not.
        self._due: dict[_Kind, Counter[int]] = {kind: Counter() for kind in _Kind}
        self._missing = dict.fromkeys(_Kind, 0)
        # How many may come on unidirectional streams with whatever value.
        self._any_due = 0
        if not is_server:
            if query.baton is None:
                self._any_due = query.count
            else:
                self._due[_Kind.UNI][query.baton] = query.count
        self._reading = dict.fromkeys(_Kind, 0)
        # The values that may come in datagrams.
        self._echoes: Counter[int] = Counter()
        self._zeros_due = 0
        self._failure: BatonFailed | None = None
        self._nursery: trio.Nursery
        self._received = self._sent = self._finished = self._reset = 0
        self._datagrams_received = self._datagrams_sent = 0

    def result(self) -> BatonResult:
        return BatonResult(
            received=self._received,
            sent=self._sent,
            datagrams_received=self._datagrams_received,
            datagrams_sent=self._datagrams_sent,
            finished=self._finished,
            reset=self._reset,
        )

    def check(self, closed: ConnectionClosed | None) -> None:
        """Raise why the batons did not come to their end, if they did not."""
        if self._failure is not None:
            raise self._failure
        if isinstance(closed, ConnectionClosedOK) and self._active <= self._zeros_due:
            # The last ones did at the peer, whose close was faster than their zeros.
            self._finished += self._active
            self._active = 0
        if not self._active and isinstance(closed, ConnectionClosedOK):
            return
        if closed is None or isinstance(closed, ConnectionLost):
            raise closed or ConnectionLost(0, "the session has not ended", remote=True)
        reason = closed.reason or f"{self._active} batons were on their way"
        raise BatonFailed(closed.code, reason, remote=closed.remote) from closed

    async def play(self) -> None:
        session = self._session
        async with trio.open_nursery() as self._nursery:
            self._be_patient()
            self._start(self._accept_uni)
            self._start(self._accept_bidi)
            self._start(self._accept_datagrams)
            if self._is_server:
                value = self._first or random.randint(1, 255)
                for _ in range(self._count):
                    self._start(self._send_uni, value)
        if session.closed is None:
            if self._active:
                self._fail(BatonSessionError.BORED, "no message came")
            else:
                await session.aclose()

    # ---- tasks and ends

    def _start(self, work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        self._nursery.start_soon(self._until_closed, work, *args)

    async def _until_closed(self, work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        try:
            await work(*args)
        except (ConnectionClosed, trio.ClosedResourceError):
            if self._session.closed is None:
                raise

    def _be_patient(self) -> None:
        """Begin to wait for the next message."""
        self._nursery.cancel_scope.deadline = trio.current_time() + self._settings.patience

    def _fail(self, code: BatonSessionError, reason: str) -> None:
        if self._session.closed is None:
            self._failure = BatonFailed(code, reason, remote=False)
            self._session.close_now(code, reason)
        self._nursery.cancel_scope.cancel()

    def _settle(self, *, peer_closes: bool) -> None:
        """A baton is at its end."""
        self._active -= 1
        if self._active:
            return
        if peer_closes:
            self._be_patient()
        else:
            self._nursery.cancel_scope.cancel()

    def _lose(self) -> None:
        """A baton is lost with its stream."""
        self._reset += 1
        self._settle(peer_closes=False)

    # ---- what is due

    def _still_due(self, kind: _Kind) -> int:
        any_due = self._any_due if kind is _Kind.UNI else 0
        return self._due[kind].total() + any_due - self._missing[kind]

    def _spare(self, kind: _Kind) -> int:
        """How many batons the client may start."""
        if not self._is_server or kind is not _Kind.UNI:
            return 0
        return self._settings.max_count - self._started

    def _admit(self, kind: _Kind) -> bool:
        """Whether a stream that the peer has opened may carry a baton."""
        if self._reading[kind] < self._still_due(kind) + self._spare(kind):
            self._reading[kind] += 1
            return True
        self._fail(BatonSessionError.SUS, f"no baton is due on a {kind.value} stream")
        return False

    def _is_due(self, kind: _Kind, value: int) -> bool:
        """Whether a message is; then it is not any more."""
        due = self._due[kind]
        if due[value]:
            due[value] -= 1
        elif kind is _Kind.UNI and self._any_due and value:
            self._any_due -= 1
        elif value and not self._still_due(kind) and self._spare(kind):
            self._started += 1
            self._active += 1
        else:
            self._fail(BatonSessionError.SUS, f"{value} is not what was due")
            return False
        return True

    def _lost_on(self, kind: _Kind) -> None:
        """A stream that the peer had opened was reset: a baton is lost, if one was due."""
        if self._still_due(kind):
            self._missing[kind] += 1
            self._lose()

    # ---- receiving

    async def _accept_uni(self) -> None:
        async for stream in self._session.incoming_receive_streams:
            if not self._admit(_Kind.UNI):
                return
            self._start(self._receive_uni, stream)

    async def _accept_bidi(self) -> None:
        async for stream in self._session.incoming_streams:
            if not self._admit(_Kind.BIDI):
                return
            self._start(self._receive_bidi, stream)

    async def _accept_datagrams(self) -> None:
        async for data in self._session.datagrams:
            value = _parse_datagram(data)
            if value is None:
                self._fail(BatonSessionError.BRUH, "a datagram is malformed")
                return
            if not self._echoes[value]:
                self._fail(BatonSessionError.SUS, f"{value} is not what a datagram may hold")
                return
            self._echoes[value] -= 1
            self._datagrams_received += 1

    async def _receive_uni(self, stream: ReceiveStream) -> None:
        try:
            async with stream:
                value = await self._read(stream)
        except StreamReset:
            self._lost_on(_Kind.UNI)
            return
        finally:
            self._reading[_Kind.UNI] -= 1
        if value is None or not self._is_due(_Kind.UNI, value):
            return
        answer = await self._take(value)
        if answer is not None:
            await self._send_bidi(answer)

    async def _receive_bidi(self, stream: Stream) -> None:
        async with stream:
            try:
                value = await self._read(stream)
            except StreamReset:
                stream.reset(BatonStreamError.WHATEVER)
                self._lost_on(_Kind.BIDI)
                return
            finally:
                self._reading[_Kind.BIDI] -= 1
            if value is None or not self._is_due(_Kind.BIDI, value):
                return
            answer = await self._take(value)
            if answer is not None:
                await self._send(stream, answer, self._due[_Kind.UNI])
            else:
                await stream.send_eof()

    async def _read(self, stream: ReceiveStream) -> int | None:
        """The baton that a stream brings; None if it is malformed."""
        try:
            head = await stream.receive_exactly(1)
            size = 1 << (head[0] >> 6)
            head += await stream.receive_exactly(size - 1)
            decoded = varint.decode(head)
            assert decoded is not None
            padding = decoded[0]
            if padding > self._settings.max_padding:
                self._fail(BatonSessionError.BRUH, f"{padding} bytes of padding are too many")
                return None
            while padding:
                piece = await stream.receive_some(min(padding, _PIECE))
                if not piece:
                    raise IncompleteRead(0)
                padding -= len(piece)
            value = await stream.receive_exactly(1)
            if await stream.receive_some(1):
                self._fail(BatonSessionError.BRUH, "something came behind a baton")
                return None
        except IncompleteRead:
            self._fail(BatonSessionError.BRUH, "a message is incomplete")
            return None
        except trio.Cancelled:
            stream.stop(BatonStreamError.IDC)
            raise
        return value[0]

    async def _take(self, value: int) -> int | None:
        """A baton has come: what to send in its place; None if it is at its end."""
        self._received += 1
        self._be_patient()
        if value % 7 == (0 if self._is_server else 1):
            await self._send_datagram(value)
        if value:
            return (value + 1) % 256
        self._zeros_due -= 1
        self._finished += 1
        self._settle(peer_closes=False)
        return None

    # ---- sending

    async def _send_uni(self, value: int) -> None:
        with self._credit_patience() as scope:
            async with self._session.open_send_stream() as stream:
                scope.deadline = math.inf
                await self._send(stream, value, self._due[_Kind.BIDI])
        self._check_credit(scope)

    async def _send_bidi(self, value: int) -> None:
        """Send on a stream that is opened for it, and receive the answer on the same."""
        answer = None
        with self._credit_patience() as scope:
            async with self._session.open_stream() as stream:
                scope.deadline = math.inf
                if await self._send(stream, value) and value:
                    try:
                        answer = await self._read(stream)
                    except StreamReset:
                        self._lose()
                # No effect where it has ended.
                stream.stop(BatonStreamError.IDC)
        self._check_credit(scope)
        if answer is None:
            return
        if answer != (value + 1) % 256:
            self._fail(BatonSessionError.SUS, f"{answer} is not what was due")
            return
        value = await self._take(answer)
        if value is not None:
            await self._send_uni(value)

    def _credit_patience(self) -> trio.CancelScope:
        return trio.move_on_after(self._settings.credit_patience)

    def _check_credit(self, scope: trio.CancelScope) -> None:
        if scope.cancelled_caught:
            self._fail(BatonSessionError.DA_YAMN, "there is no credit for another stream")

    async def _send(self, stream: SendStream, value: int, due: Counter[int] | None = None) -> bool:
        """Send a baton, which ends the stream. Whether it was sent, and is not lost.

        Args:
            stream: where to send it.
            value: the baton.
            due: where the answer will be due, if not on the same stream.
        """
        # All that before it is sent: the answer may be faster than send_all.
        follower = (value + 1) % 256
        if value and due is not None:
            due[follower] += 1
        self._zeros_due += value == 255
        self._echoes[value] += value % 7 == (1 if self._is_server else 0)
        try:
            await stream.send_all(_message(value, self._settings.padding), eof=True)
        except StreamReset:
            stream.reset(BatonStreamError.WHATEVER)
            if value and due is not None:
                due[follower] -= 1
            self._zeros_due -= value == 255
            self._lose()
            return False
        except trio.Cancelled:
            stream.reset(BatonStreamError.I_LIED)
            raise
        self._sent += 1
        if not value:
            self._finished += 1
            self._settle(peer_closes=True)
        return True

    async def _send_datagram(self, value: int) -> None:
        datagrams = self._session.datagrams
        # Room for the padding's length, in two bytes at most, and for the baton.
        room = datagrams.max_size - 3
        if room < 0:
            return  # the peer takes none
        padding = min(self._settings.padding, _MAX_DATAGRAM_PADDING, room)
        await datagrams.send(_message(value, padding))
        self._datagrams_sent += 1
