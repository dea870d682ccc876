"""Both sides of the devious baton.

General theory of operation:

Both sides play by the same rules, so there is one `_Player`. Its `Ledger` knows which values are due on which kind of stream, and
what comes must be among them. So a peer can neither open more streams than there are batons, nor have anything kept but
numbers; padding is read piece by piece and dropped. Whoever finds a fault closes the session then and there, which wakes all
tasks.

The end: who receives 0 closes the session if that was the last baton. Who sends the last 0 waits for the peer to do so, since a
close of its own might overtake the 0.

One rule cannot be kept to the letter: QUIC itself answers STOP_SENDING with a reset, and copies the code (RFC 9000 section 3.5),
before an application could ask for `BatonStreamError.WHATEVER`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias, TypeVarTuple
from urllib.parse import urlencode

import trio

from .._errors import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    IncompleteRead,
    StreamReset,
)
from .._http.request import Request
from .._protocol import varint
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._quic.streams import Stream
from .._webtransport.session import WebTransportSession
from ._baton_rules import (
    BATON_PATH,
    VERSION,
    BatonFailed,
    BatonMove,
    BatonResult,
    BatonSessionError,
    BatonSettings,
    BatonStreamError,
    Kind,
    Ledger,
    Query,
    encode_message,
    parse_datagram,
)

__all__ = ["baton_url", "check_baton_request", "run_baton", "serve_baton"]

_PIECE: Final = 65536
# Of a datagram's padding; the smallest packets have room for it.
_MAX_DATAGRAM_PADDING: Final = 1000
# The most that a query can say.
_ANY_COUNT: Final = 10**9
_DEFAULTS: Final = BatonSettings()

_AnyStream: TypeAlias = ReceiveStream | SendStream
Ts = TypeVarTuple("Ts")


def baton_url(base: str, *, count: int = 1, baton: int | None = None) -> str:
    """The URL of a session.

    Args:
        base: the server, such as ``https://localhost:4433``.
        count: how many batons to ask for.
        baton: their first value, 1 to 255; None leaves it to the server.
    """
    query = {"version": VERSION, "count": count}
    if baton is not None:
        query["baton"] = baton
    return f"{base.rstrip('/')}{BATON_PATH}?{urlencode(query)}"


def check_baton_request(request: Request, settings: BatonSettings = _DEFAULTS) -> None:
    """For a server's ``on_request``: refuse what is no valid request for batons, with status 404 or 400.

    What is no request for a WebTransport session is left alone.

    Args:
        request: the request.
        settings: how the server plays.
    """
    if not request.is_webtransport:
        return
    if request.path != BATON_PATH:
        request.reject(404)
        return
    try:
        Query.parse(request.query, settings.max_count)
    except ValueError as exc:
        request.reject(400, body=f"{exc}\n")


async def serve_baton(
    session: WebTransportSession, settings: BatonSettings = _DEFAULTS
) -> BatonResult:
    """A handler for `serve_webtransport`: play the server's part, and see to the session's end.

    Nothing that a client does makes it raise. The session's ``closed`` says how it ended.

    Args:
        session: the session; its query says how many batons there are.
        settings: how to play.

    Returns:
        what became of the batons.
    """
    try:
        query = Query.parse(session.request.query, settings.max_count)
    except ValueError as exc:
        await session.aclose(BatonSessionError.BRUH, str(exc))
        return BatonResult()
    player = _Player(session, settings, query, is_server=True)
    await player.play()
    return player.result


async def run_baton(
    session: WebTransportSession,
    settings: BatonSettings = _DEFAULTS,
    *,
    on_move: Callable[[BatonMove], object] | None = None,
) -> BatonResult:
    """Play the client's part, until all batons are at their end and the session is closed.

    Args:
        session: a session that was opened with a `baton_url`.
        settings: how to play.
        on_move: is told of each message that has come or is about to be sent, and of batons that are lost. What it raises
            ends the game, and comes out in a group.

    Returns:
        what became of the batons.

    Raises:
        BatonFailed: one of the sides has closed the session before that.
        ConnectionLost: its connection was lost.
        ValueError: its URL is not valid.
    """
    query = Query.parse(session.request.query, _ANY_COUNT)
    player = _Player(session, settings, query, is_server=False, on_move=on_move)
    await player.play()
    player.check()
    return player.result


class _Player:
    """One side of a session.

    Args:
        session: the session.
        settings: how to play.
        query: what the client has asked for.
        is_server: which side.
        on_move: is told what happens to the batons.

    Attributes:
        result: what has become of the batons.
    """

    def __init__(
        self,
        session: WebTransportSession,
        settings: BatonSettings,
        query: Query,
        *,
        is_server: bool,
        on_move: Callable[[BatonMove], object] | None = None,
    ) -> None:
        self.result = BatonResult()
        self._session = session
        self._settings = settings
        self._query = query
        self._is_server = is_server
        self._on_move = on_move
        self._ledger = Ledger(query, settings.max_count, is_server=is_server)
        self._nursery: trio.Nursery

    async def play(self) -> None:
        """Until the session is closed."""
        session = self._session
        async with trio.open_nursery() as self._nursery:
            self._be_patient()
            self._start(self._accept_uni)
            self._start(self._accept_bidi)
            self._start(self._accept_datagrams)
            if self._is_server:
                value = self._query.baton or random.randint(1, 255)
                for _ in range(self._query.count):
                    self._start(self._send_uni, value)
        if session.closed is None:
            if self._ledger.active:
                self._fail(BatonSessionError.BORED, "no message came")
            else:
                await session.aclose()

    def check(self) -> None:
        """Raise why the batons are not at their end, if they are not."""
        closed = self._session.closed
        assert closed is not None
        if isinstance(closed, ConnectionLost):
            raise ConnectionLost(closed.code, closed.reason, remote=True) from closed
        if isinstance(closed, ConnectionClosedOK):
            # The peer has had the last one, and its close was faster than its zeros.
            self.result.finished += self._ledger.settle_zeros()
            if not self._ledger.active:
                return
        reason = closed.reason or f"{self._ledger.active} batons were on their way"
        raise BatonFailed(closed.code, reason, remote=closed.remote) from closed

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
        self._session.close_now(code, reason)
        self._nursery.cancel_scope.cancel()

    def _settle(self, *, peer_closes: bool = False) -> None:
        """A baton is at its end."""
        self._ledger.active -= 1
        if self._ledger.active:
            return
        if peer_closes:
            self._be_patient()
        else:
            self._nursery.cancel_scope.cancel()

    def _lose(self, stream: _AnyStream, value: int | None = None) -> None:
        """A baton is lost with its stream."""
        self._tell("lost", value, stream)
        self.result.reset += 1
        self._settle()

    def _tell(
        self,
        what: Literal["received", "sent", "lost"],
        value: int | None,
        stream: _AnyStream | None,
    ) -> None:
        """Tell what happens to a baton; on no stream, it is in a datagram."""
        if self._on_move is None:
            return
        if stream is None:
            move = BatonMove(what, value, "datagram", None)
        elif isinstance(stream, Stream):
            move = BatonMove(what, value, "bidirectional stream", stream.stream_id)
        else:
            move = BatonMove(what, value, "unidirectional stream", stream.stream_id)
        self._on_move(move)

    # ---- receiving

    def _admit(self, kind: Kind) -> bool:
        if self._ledger.opened(kind):
            return True
        self._fail(BatonSessionError.SUS, f"no baton is due on a {kind.value} stream")
        return False

    async def _accept_uni(self) -> None:
        async for stream in self._session.incoming_receive_streams:
            if not self._admit(Kind.UNI):
                return
            self._start(self._receive_uni, stream)

    async def _accept_bidi(self) -> None:
        async for stream in self._session.incoming_streams:
            if not self._admit(Kind.BIDI):
                return
            self._start(self._receive_bidi, stream)

    async def _accept_datagrams(self) -> None:
        async for data in self._session.datagrams:
            value = parse_datagram(data)
            if value is None:
                self._fail(BatonSessionError.BRUH, "a datagram is malformed")
                return
            if not self._ledger.echoed(value):
                self._fail(BatonSessionError.SUS, f"{value} is not what a datagram may bring")
                return
            self._tell("received", value, None)
            self.result.datagrams_received += 1

    async def _receive_uni(self, stream: ReceiveStream) -> None:
        value: int | None = None
        async with stream:
            value = await self._read_due(stream, Kind.UNI)
        if value is not None:
            answer = await self._take(value, stream)
            if answer is not None:
                await self._send_bidi(answer)

    async def _receive_bidi(self, stream: Stream) -> None:
        async with stream:
            value = await self._read_due(stream, Kind.BIDI)
            if value is None:
                stream.reset(BatonStreamError.WHATEVER)
                return
            answer = await self._take(value, stream)
            if answer is not None:
                await self._send(stream, answer, Kind.UNI)

    async def _read_due(self, stream: ReceiveStream, kind: Kind) -> int | None:
        """The baton that was due on a stream of the peer's; None if there is none, which was dealt with."""
        try:
            value = await self._read(stream)
        except StreamReset:
            if self._ledger.was_reset(kind):
                self._lose(stream)
            return None
        finally:
            self._ledger.ended(kind)
        if value is not None and not self._ledger.came(kind, value):
            self._fail(BatonSessionError.SUS, f"{value} is not what was due")
            return None
        return value

    async def _read(self, stream: ReceiveStream) -> int | None:
        """The baton that a stream brings; None if it is malformed, which was dealt with.

        Raises:
            StreamReset: it brings none.
        """
        try:
            head = await stream.receive_exactly(1)
            head += await stream.receive_exactly((1 << (head[0] >> 6)) - 1)
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
                self._fail(BatonSessionError.BRUH, "more than a message came on a stream")
                return None
        except IncompleteRead:
            self._fail(BatonSessionError.BRUH, "a message is incomplete")
            return None
        except trio.Cancelled:
            stream.stop(BatonStreamError.IDC)
            raise
        return value[0]

    async def _take(self, value: int, stream: ReceiveStream) -> int | None:
        """A baton has come as it should: what to send in its place; None if it is at its end."""
        self._tell("received", value, stream)
        self.result.received += 1
        self._be_patient()
        # Section 4.4.
        if value % 7 == (0 if self._is_server else 1):
            await self._send_datagram(value)
        if value:
            return (value + 1) % 256
        self._ledger.zero_came()
        self.result.finished += 1
        self._settle()
        return None

    # ---- sending

    def _check_credit(self, scope: trio.CancelScope) -> None:
        if scope.cancelled_caught:
            self._fail(BatonSessionError.DA_YAMN, "there is no credit for another stream")

    async def _send_uni(self, value: int) -> None:
        with trio.move_on_after(self._settings.credit_patience) as scope:
            async with self._session.open_send_stream() as stream:
                scope.deadline = math.inf
                await self._send(stream, value, Kind.BIDI)
        self._check_credit(scope)

    async def _send_bidi(self, value: int) -> None:
        """Send on a stream that is opened for it, and receive the answer on the same."""
        answer: int | None = None
        with trio.move_on_after(self._settings.credit_patience) as scope:
            async with self._session.open_stream() as stream:
                scope.deadline = math.inf
                if await self._send(stream, value) and value:
                    try:
                        answer = await self._read(stream)
                    except StreamReset:
                        self._lose(stream)
                # Without effect where it has ended.
                stream.stop(BatonStreamError.IDC)
        self._check_credit(scope)
        if answer is None:
            return
        if answer != (value + 1) % 256:
            self._fail(BatonSessionError.SUS, f"{answer} is not what was due")
            return
        next_value = await self._take(answer, stream)
        if next_value is not None:
            await self._send_uni(next_value)

    async def _send(self, stream: SendStream, value: int, answer_on: Kind | None = None) -> bool:
        """Send a baton, and end the stream. Whether it went, as far as is known; if not, that was dealt with."""
        # Before it is sent: the answer may be faster than send_all.
        self._ledger.sending(value, answer_on)
        self._tell("sent", value, stream)
        try:
            await stream.send_all(encode_message(value, self._settings.padding), eof=True)
        except StreamReset:
            stream.reset(BatonStreamError.WHATEVER)
            self._ledger.sending(value, answer_on, undo=True)
            self._lose(stream, value)
            return False
        except trio.Cancelled:
            stream.reset(BatonStreamError.I_LIED)
            raise
        self.result.sent += 1
        if not value:
            self.result.finished += 1
            self._settle(peer_closes=True)
        return True

    async def _send_datagram(self, value: int) -> None:
        datagrams = self._session.datagrams
        # What the padding's length and the baton take at most.
        room = datagrams.max_size - 3
        if room < 0:
            return
        padding = min(self._settings.padding, _MAX_DATAGRAM_PADDING, room)
        self._tell("sent", value, None)
        await datagrams.send(encode_message(value, padding))
        self.result.datagrams_sent += 1
