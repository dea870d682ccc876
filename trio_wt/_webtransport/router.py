"""Which session a stream or a datagram belongs to, also where that session is not open yet, or not any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from .._errors import ConnectionClosed
from .._http.h3 import Http3, SessionRouter
from .._http.priority import Priority
from .._protocol.dialects import allows_session_limits
from .._protocol.http3_codes import Http3Code
from .._protocol.session_credit import Growth, SessionCredit
from .._protocol.stream_heads import StreamHead, StreamType
from .._transport.services import Services
from .._websocket.connection import Connection as WebSocketConnection
from .carrier import SessionCarrier
from .leftovers import refuse_stream
from .settings import WebTransportSettings

__all__ = ["Sessions"]

_GOODBYE: Final = "the server is shutting down"
_LARGEST_EARLY_DATAGRAM: Final = 65536
# How late a timer may be that is set while another is waited for, in seconds.
_TIMER_STEP: Final = 0.25


class Sessions(SessionRouter):
    """The sessions of a connection.

    A stream or a datagram may overtake the request that opens its session, or the response. A few of them are kept for a while
    (draft-ietf-webtrans-http3-16 section 4.6).

    Args:
        http3: the connection.
        settings: limits and times.
        ours: the SETTINGS that we have sent.

    Attributes:
        http3: see there.
        open: the sessions that are open.
        services: where the task runs that gives up on what has waited too long; None until there is one.
    """

    def __init__(
        self, http3: Http3, settings: WebTransportSettings, ours: Mapping[int, int]
    ) -> None:
        self.open: dict[int, SessionCarrier] = {}
        self.services: Services | None = None
        self.http3: Http3 = http3
        self._websockets: dict[int, WebSocketConnection] = {}
        # Requests that may become sessions.
        self._pending: set[int] = set()
        self._settings = settings
        self._ours = ours
        quic = http3.driver.settings
        self._growth = Growth(
            quic.connection_window, quic.max_connection_window, http3.driver.engine.widen
        )
        self._early: dict[int, _EarlyStream] = {}
        self._early_datagrams: list[tuple[int, bytes, float]] = []
        self._early_priorities: dict[int, Priority] = {}
        self._expiring = False
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._timer_count = 0
        self._is_timing = False

    def serve(self, services: Services) -> None:
        """Tasks may be started from now on."""
        self.services = services
        if self._early or self._early_datagrams:
            self._expire_later()

    # ---- sessions

    @property
    def have_credit(self) -> bool:
        """Whether sessions have flow control: both sides must take part in it (draft-ietf-webtrans-http3-16 section 5)."""
        theirs = self.http3.protocol.peer_settings or {}
        return allows_session_limits(self._ours) and allows_session_limits(theirs)

    def new_credit(self) -> SessionCredit | None:
        """The flow control of a new session; None where there is none."""
        if not self.have_credit:
            return None
        theirs = self.http3.protocol.peer_settings or {}
        return SessionCredit(self._ours, theirs, self._settings.max_session_window, self._growth)

    def opened(self, session: SessionCarrier) -> None:
        """A session is open; what came before it is its own from now on."""
        session_id = session.session_id
        self._pending.discard(session_id)
        self.open[session_id] = session
        session.start()
        priority = self._early_priorities.pop(session_id, None)
        if priority is not None:
            session.set_priority(priority)
        for stream_id, early in list(self._early.items()):
            if early.head.session_id == session_id:
                del self._early[stream_id]
                early.hand_over(session)
        end = self.http3.driver.end
        if end is not None:
            session.lost(end)
        waiting, self._early_datagrams = self._early_datagrams, []
        for entry in waiting:
            if entry[0] == session_id:
                session.datagrams.arrived(entry[1])
            else:
                self._early_datagrams.append(entry)

    def request_opened(self, stream_id: int) -> None:
        self._pending.add(stream_id)

    def websocket_opened(self, stream_id: int, connection: WebSocketConnection) -> None:
        """A server's WebSocket is open, and is to be told when the server shuts down."""
        self._websockets[stream_id] = connection
        if self.http3.going_away:
            connection.go_away(_GOODBYE)

    def request_over(self, stream_id: int) -> None:
        self.open.pop(stream_id, None)
        self._websockets.pop(stream_id, None)
        self._pending.discard(stream_id)
        self._early_priorities.pop(stream_id, None)
        if self._early_datagrams:
            self._early_datagrams = [e for e in self._early_datagrams if e[0] != stream_id]
        for early_id, early in list(self._early.items()):
            if early.head.session_id == stream_id:
                del self._early[early_id]
                early.refuse(Http3Code.WT_SESSION_GONE)

    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended."""
        for session in list(self.open.values()):
            session.lost(end)
        self.open.clear()
        self._early.clear()
        self._early_datagrams.clear()
        self._timers.clear()

    def shutting_down(self) -> None:
        """Sessions are to come to their ends: by GOAWAY, or by us."""
        for session in self.open.values():
            if self.http3.driver.is_client:
                session.asked_to_drain()
            else:
                session.drain_both()
        for websocket in self._websockets.values():
            websocket.go_away(_GOODBYE)

    def give_up(self, reason: str) -> None:
        for session in list(self.open.values()):
            session.shut(self._settings.cancelled_code, reason)

    def priority_updated(self, stream_id: int, value: bytes) -> None:
        """A client has thought again about a session's priority."""
        session = self.open.get(stream_id)
        if session is not None:
            session.set_priority(Priority.parse(value))
        elif not self._is_gone(stream_id) and (
            stream_id in self._early_priorities
            or len(self._early_priorities) < self._settings.max_early_streams
        ):
            # It may overtake the request (RFC 9218 section 7).
            self._early_priorities[stream_id] = Priority.parse(value)

    # ---- what arrives

    def _is_gone(self, session_id: int) -> bool:
        """Whether the request was there and is no session, or is none any more."""
        return self.http3.has_begun(session_id) and session_id not in self._pending

    def stream_opened(self, stream_id: int, head: StreamHead, *, fin: bool) -> None:
        session = self.open.get(head.session_id)
        if session is not None:
            session.stream_opened(stream_id, head, fin=fin)
            return
        driver = self.http3.driver
        if self._is_gone(head.session_id):
            refuse_stream(driver, stream_id, head, Http3Code.WT_SESSION_GONE, fin=fin)
        elif len(self._early) >= self._settings.max_early_streams:
            refuse_stream(driver, stream_id, head, Http3Code.WT_BUFFERED_STREAM_REJECTED, fin=fin)
        else:
            early = _EarlyStream(self, stream_id, head, self._due_at())
            self._early[stream_id] = early
            driver.adopt(stream_id, early)
            early.fin = fin
            self._expire_later()

    def abandoned(self, stream_id: int) -> None:
        for session in self.open.values():
            session.abandoned(stream_id)

    def datagram_arrived(self, stream_id: int, data: bytes) -> None:
        session = self.open.get(stream_id)
        if session is not None:
            session.datagrams.arrived(data)
        elif (
            not self._is_gone(stream_id)
            and len(self._early_datagrams) < self._settings.max_early_datagrams
            and len(data) <= _LARGEST_EARLY_DATAGRAM
        ):
            self._early_datagrams.append((stream_id, data, self._due_at()))
            self._expire_later()

    def forget_early(self, stream_id: int) -> None:
        """A stream has been reset before its session was open."""
        self._early.pop(stream_id, None)

    # ---- waiting for too long

    def later(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Call something after some seconds, while the connection lasts; what takes that back."""
        self._timer_count += 1
        number = self._timer_count
        self._timers[number] = (trio.current_time() + seconds, action)
        if not self._is_timing and self.services is not None:
            self._is_timing = True
            self.services.start_soon(self._run_timers, name="trio_wt WebTransport timers")

        def take_back() -> None:
            self._timers.pop(number, None)

        return take_back

    async def _run_timers(self, _: trio.CancelScope) -> None:
        while self._timers:
            due = min(due for due, _ in self._timers.values())
            # A later one may be due earlier.
            await trio.sleep_until(min(due, trio.current_time() + _TIMER_STEP))
            now = trio.current_time()
            for number, (due, action) in list(self._timers.items()):
                if due <= now:
                    self._timers.pop(number, None)
                    action()
        self._is_timing = False

    def _due_at(self) -> float:
        return trio.current_time() + self._settings.early_timeout

    def _expire_later(self) -> None:
        if not self._expiring and self.services is not None:
            self._expiring = True
            self.services.start_soon(self._expire, name="trio_wt early streams")

    async def _expire(self, _: trio.CancelScope) -> None:
        while self._early or self._early_datagrams:
            due = min(
                [early.due for early in self._early.values()]
                + [entry[2] for entry in self._early_datagrams]
            )
            await trio.sleep_until(due)
            for stream_id, early in list(self._early.items()):
                if early.due <= due:
                    del self._early[stream_id]
                    early.refuse(Http3Code.WT_BUFFERED_STREAM_REJECTED)
            while self._early_datagrams and self._early_datagrams[0][2] <= due:
                self._early_datagrams.pop(0)
        self._expiring = False


class _EarlyStream:
    """A stream that came before its session; what it carries is held, and its window keeps that small."""

    __slots__ = ("_data", "_sessions", "_stopped", "_stream_id", "due", "fin", "head")

    def __init__(self, sessions: Sessions, stream_id: int, head: StreamHead, due: float) -> None:
        self._sessions = sessions
        self._stream_id = stream_id
        self.head = head
        self.due = due
        self.fin = False
        self._data = bytearray(head.rest)
        self._stopped: int | None = None

    def _whole(self) -> StreamHead:
        head = self.head
        return StreamHead(head.kind, head.session_id, bytes(self._data), head.size)

    def hand_over(self, session: SessionCarrier) -> None:
        """Its session is open."""
        session.stream_opened(self._stream_id, self._whole(), fin=self.fin)
        taker = session.driver.sink(self._stream_id)
        if self._stopped is not None and taker is not None and taker is not self:
            taker.was_stopped(self._stopped)

    def refuse(self, code: Http3Code) -> None:
        """Its session will not open."""
        driver = self._sessions.http3.driver
        refuse_stream(driver, self._stream_id, self._whole(), code, fin=self.fin)

    def arrived(self, data: bytes, *, fin: bool) -> None:
        self._data += data
        self.fin = fin

    def was_reset(self, code: int) -> None:
        driver = self._sessions.http3.driver
        self._sessions.forget_early(self._stream_id)
        if self.head.kind is StreamType.SESSION and not self._stream_id & 2:
            driver.reset(self._stream_id, Http3Code.REQUEST_CANCELLED)
        driver.release(self._stream_id)
        driver.settle(self._stream_id)

    def was_stopped(self, code: int) -> None:
        # For whoever takes it.
        self._stopped = code

    def lost(self, end: ConnectionClosed) -> None:
        """Nobody waits for it."""
