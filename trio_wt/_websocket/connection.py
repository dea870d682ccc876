"""A WebSocket connection: the pure protocol between a reader task and a writer task.

General theory of operation:

The reader awaits the transport and nothing else. It feeds the protocol, puts messages into the inbox, wakes who
waits, and lets the writer know when the protocol has something to say. When the inbox is full it stops reading,
but for 64 KiB in which it still finds pings. Whoever takes messages parses on, in his own task.

The writer awaits "something to send" or its next deadline, which is the keepalive's or, once the end has begun, the
moment to drop the connection. A send from the user's task goes straight to the transport when nothing is queued;
what does not fit is the writer's to finish, so no frame is ever cut by a cancellation.

The end: the protocol gives `Closed` once, which fixes code and reason. `_ended` wakes everybody at that moment. The
services then see the bytes out and close the transport by themselves, whether or not the user's block notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from types import TracebackType

import trio

from .._errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from .._protocol.events import Closed, Event, Pong, State
from .._protocol.extensions import ExtensionCodec
from .._protocol.frames import CloseCode
from .._protocol.websocket import WebSocketProtocol
from .._transport.services import Services
from .._transport.transport import Transport
from .._util import Wakeup
from .inbox import Inbox
from .outbox import Outbox
from .pings import PendingPing, Pings
from .reading import Readership
from .settings import Settings
from .turns import Turns

__all__ = ["Connection"]

# How far behind a full inbox pings and pongs are still found.
_LOOK_AHEAD = 65536
# How long messages may still be answered when the peer's Close, or its violation, has come behind them.
_LAST_WORDS = 0.2
_CLEAN_CODES = {CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS}


class Connection:
    """The driver that `WebSocket` puts its public face on.

    Args:
        transport: carries the bytes; owned from now on.
        client: this side's role.
        codecs: the extensions agreed on.
        settings: limits and times.
        leading: bytes that came behind the handshake.
    """

    __slots__ = (
        "_cause",
        "_client",
        "_drop_at",
        "_eof_sent",
        "_finished",
        "_gone_away",
        "_is_finished",
        "_lost",
        "_probe_at",
        "_reader_pause",
        "_readership",
        "_services",
        "_writer_scope",
        "answering",
        "bytes_received",
        "cancel_scope",
        "closed_here",
        "inbox",
        "last_heard",
        "messages_received",
        "messages_sent",
        "outbox",
        "pings",
        "protocol",
        "settings",
        "transport",
        "turns",
    )

    def __init__(
        self,
        transport: Transport,
        *,
        client: bool,
        codecs: Sequence[ExtensionCodec],
        settings: Settings,
        leading: bytes = b"",
    ) -> None:
        self.settings: Settings = settings
        self.protocol: WebSocketProtocol = WebSocketProtocol(
            client=client,
            codecs=codecs,
            max_message_size=settings.max_message_size,
            max_fragments=settings.max_fragments,
        )
        self.inbox: Inbox = Inbox(settings.max_queue_messages, settings.max_queue_bytes)
        self.cancel_scope: trio.CancelScope = trio.CancelScope()
        #: the application took something since it last waited, and may be about to answer
        self.answering: bool = False
        #: this side called close(): nothing is received any more
        self.closed_here: bool = False
        self.last_heard: float = trio.current_time()
        self.bytes_received: int = len(leading)
        self.messages_received: int = 0
        self.messages_sent: int = 0
        self._client = client
        self.transport: Transport = transport
        # The transport carries nothing more, for this reason if there is one to tell.
        self._gone_away: ConnectionClosed | None = None
        self._lost = False
        self._cause: BaseException | None = None
        self.outbox: Outbox = Outbox(self.protocol, transport)
        self._writer_scope: trio.CancelScope | None = None
        self._reader_pause = Wakeup()
        self._readership = Readership(transport)
        # When the keepalive's ping went out that nothing has come after; when to drop the connection; inf for none.
        self._probe_at = inf
        self._drop_at = inf
        self._eof_sent = False
        self._is_finished = False
        self._finished: trio.Event | None = None  # made by who waits
        self.turns: Turns = Turns(self._is_full)
        self.pings: Pings = Pings()
        if leading:
            self.protocol.receive_data(leading)

    # ---- the block

    async def __aenter__(self) -> None:
        self._services = Services(self.cancel_scope, self._goodbye, self._service_failed)
        await self._services.__aenter__()
        self._services.start_soon(self._read, name="trio_wt reader")
        self._services.start_soon(self._write, name="trio_wt writer")

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return await self._services.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102
        finally:
            with trio.CancelScope(shield=True):
                await self.transport.aclose(graceful=False)

    def _service_failed(self, exc: Exception) -> None:
        # A stream of the user's may raise anything.
        self._lose(exc)
        self._finish()

    async def _goodbye(self, exc: BaseException | None) -> None:
        """Bounded by the close timeout: the writer drops the connection then, and says so."""
        if exc is None:
            code = CloseCode.NORMAL
        elif isinstance(exc, trio.Cancelled) and not self.cancel_scope.cancel_called:
            code = CloseCode.GOING_AWAY
        else:
            code = CloseCode.INTERNAL_ERROR
        self.close_now(code, "")
        await self.wait_finished()

    # ---- reading

    async def _read(self, _: trio.CancelScope) -> None:
        protocol, readership = self.protocol, self._readership
        self.pump()
        try:
            while not self._lost:
                if protocol.end_pending:
                    await self._digest()
                elif protocol.unparsed >= _LOOK_AHEAD:
                    await self._reader_pause.park()
                elif readership.lent:
                    await readership.stand_by()
                elif self._arrived(await self.transport.receive()):
                    readership.lend()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose(exc)

    def _arrived(self, data: bytes) -> bool:
        """Take what was read; whether that woke a task that waited for it."""
        return self._take_in(data) and self.pump()

    def _take_in(self, data: bytes) -> bool:
        """Feed the protocol; whether there is something to parse."""
        if not data:
            self._lose(None)
            return False
        self.last_heard = trio.current_time()
        self._probe_at = inf
        self.bytes_received += len(data)
        if self.outbox.sending:
            self._move_deadline()
        if self.protocol.closed is not None:
            return False
        self.protocol.receive_data(data)
        return True

    async def _digest(self) -> None:
        """Before an end: give the application a moment to answer what came before."""
        with trio.move_on_after(_LAST_WORDS):
            while self.protocol.closed is None:
                await self._reader_pause.park()
        self.pump(end=True)

    def pump(self, *, end: bool = False) -> bool:
        """Parse what there is room for, hand it out, and see to it that answers are sent.

        Args:
            end: end the connection if that is what comes next, though messages were not taken yet.

        Returns:
            whether that woke a task that waited for a message.
        """
        protocol, inbox = self.protocol, self.inbox
        if protocol.closed is not None:
            return False
        arrived = woken = False
        while True:
            # What has come just now was not answered in any case.
            unanswered = arrived or (not end and (inbox.messages or self.answering))
            if protocol.end_pending and unanswered and not self.closed_here:
                break
            messages, size = inbox.room()
            if (messages <= 0 or size <= 0) and not protocol.end_pending:
                for pong in protocol.look_ahead():
                    self.pings.answered(pong.payload)
                break
            events = protocol.events(messages, size)
            if not events and not protocol.end_pending:
                break
            arrived = self._hand_out(events) or arrived
            if self.closed_here:
                inbox.clear()
            if protocol.closed is not None:
                break
            if not (protocol.unparsed or protocol.end_pending or self._lost):
                break
        if protocol.closed is not None:
            self._ended()
        elif arrived:
            woken = self._readership.wake()
            if protocol.end_pending:
                self._readership.take_back()
        if protocol.has_outgoing:
            self.outbox.flush()
        return woken

    def _hand_out(self, events: list[Event]) -> bool:
        """Put messages into the inbox, and tell pings their pongs; whether there was a message, or a piece."""
        arrived = False
        for event in events:
            if isinstance(event, Pong):
                self.pings.answered(event.payload)
            elif not isinstance(event, Closed):
                self.inbox.put(event)
                arrived = True
        return arrived

    def resume(self, *, end: bool = False) -> None:
        """After something was taken from the inbox, or found missing there: parse on, and read on.

        Args:
            end: as for `pump`: all messages before the end have been taken, and answered as far as they will be.
        """
        self.answering = not end
        if self.protocol.unparsed or self._lost or (end and self.protocol.end_pending):
            self.pump(end=end)
        if self.protocol.unparsed < _LOOK_AHEAD:
            self._reader_pause.wake()

    def take_all(self, limit: int | None) -> list[str | bytes]:
        """Whole messages that are there, after parsing on."""
        if not self.inbox.ready:
            self.resume()
        messages = self.inbox.take_all(limit)
        self.resume()
        return messages

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is there to receive, and nothing has ended."""
        return not (
            self.inbox.messages or self.closed_here or self._lost or self.protocol.has_incoming
        )

    @property
    def receiving(self) -> bool:
        """Whether a task is in `wait_arrival`."""
        return self._readership.waiting

    async def wait_arrival(self) -> None:
        """Wait until something arrives or the connection ends, for one task at a time. A checkpoint."""
        self.answering = False
        try:
            data = await self._readership.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose(exc)
            return
        if data is not None:
            self._arrived(data)

    async def wait_message(self) -> str | bytes | None:
        """`wait_arrival` when nothing is there: if just one whole message comes, it is returned past the inbox."""
        self.answering = False
        try:
            data = await self._readership.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose(exc)
            return None
        if data is None or not self._take_in(data):
            return None
        protocol = self.protocol
        events = protocol.events(1, self.settings.max_queue_bytes)
        if len(events) == 1 and isinstance(events[0], (str, bytes)):
            self.answering = True
            if protocol.unparsed or protocol.has_outgoing or protocol.end_pending:
                self.pump()
            return events[0]
        self._hand_out(events)
        self.pump()
        return None

    # ---- writing

    async def _write(self, scope: trio.CancelScope) -> None:
        """See everything out, and then close the transport. The scope's deadline is when something is due."""
        self._writer_scope = scope
        if trio.current_time() >= self._deadline():
            self._due()
        try:
            while not self._is_over():
                if not self.outbox.is_empty:
                    await self._send_unsent(scope)
                elif self.protocol.state is State.FAILED and not self._eof_sent:
                    # Closing with unread bytes would reset the connection, and our Close might never be read.
                    self._eof_sent = True
                    await self.transport.send_eof()
                else:
                    scope.deadline = self._deadline()
                    await self.outbox.idle.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose(exc)
        scope.deadline = inf
        await self.transport.aclose(graceful=self.protocol.state is State.CLOSED)
        self._lose(None)
        self._finish()

    async def _send_unsent(self, scope: trio.CancelScope) -> None:
        try:
            await self.outbox.drain(scope, self._deadline)
        except trio.Cancelled:
            self._lose(trio.TooSlowError("the peer did not take what was sent"))
            raise
        self.turns.room_changed()

    def _is_over(self) -> bool:
        """Whether nothing is left to do but to close the transport."""
        is_closed = self.protocol.state is State.CLOSED
        if self._lost and not (is_closed and self._cause is None):
            return True
        if not self.outbox.is_empty:
            # Also where the peer has ended its direction right behind its Close: ours is to be answered.
            return False
        if self._lost:
            return True
        # RFC 6455 section 7.1.1: the server closes first, and the client waits for that.
        return is_closed and not self._client

    @property
    def _patience(self) -> float:
        interval, timeout = self.settings.ping_interval, self.settings.ping_timeout
        return inf if interval is None or timeout is None else interval + timeout

    def _deadline(self) -> float:
        """When the writer has something to do though nothing happens, or is to give up."""
        interval, timeout = self.settings.ping_interval, self.settings.ping_timeout
        if self.outbox.sending:
            # While a send is stuck, progress and signs of life put it off.
            return min(
                self._drop_at, max(self.outbox.progress_at, self.last_heard) + self._patience
            )
        if self._drop_at != inf:
            return self._drop_at
        if self.protocol.state is not State.OPEN:
            return self.last_heard + self._patience  # half-closed: not even a ping may be sent
        if self._probe_at == inf:
            return inf if interval is None else self.last_heard + interval
        return inf if timeout is None else self._probe_at + timeout

    def _move_deadline(self) -> None:
        """What `_deadline` says has changed while a send is stuck."""
        if self.outbox.sending and self._writer_scope is not None:
            self._writer_scope.deadline = self._deadline()

    def _due(self) -> None:
        """The deadline has passed: ping, or give up."""
        now = trio.current_time()
        if self._drop_at != inf:
            self._lose(trio.TooSlowError("the peer did not finish the closing handshake in time"))
        elif self._reader_pause.task is not None and self.protocol.state is State.OPEN:
            # We do not listen, so silence says nothing; but a pong nobody asked for (RFC 6455 section 5.5.3) makes
            # the system find out if the peer is gone.
            self.last_heard = now
            self.protocol.send_pong(b"")
        elif self.protocol.state is not State.OPEN:
            self._lose(trio.TooSlowError("the peer did not answer Close"))
        elif self._probe_at == inf:
            self._probe_at = now
            self.begin_ping(None)
        else:
            self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
            self._ended()

    # ---- sending

    def send_error(self) -> ConnectionClosed | trio.ClosedResourceError | None:
        """Why nothing can be sent, if so."""
        if self.protocol.state is State.OPEN and not self._lost:
            return None
        if self._gone_away is not None and not self.closed_here:
            return self._gone_away
        if self.closed_here or self.protocol.closed_by_us:
            return trio.ClosedResourceError("this side has closed the connection")
        return self.end_error(sending=True)

    def _is_full(self) -> bool:
        return self.outbox.size >= self.settings.write_limit and self.send_error() is None

    @property
    def may_send_now(self) -> bool:
        """Whether a message may begin at once; a quicker `Turns.must_queue` for the common case."""
        turns = self.turns
        return not (
            self.protocol.outgoing_size
            or self.outbox.in_flight
            or turns.fragmenting
            or turns.granted
            or turns.queue
        )

    def send_prepared(
        self, payload: bytes, text: bool, frame: list[bytes] | None
    ) -> list[bytes] | None:
        """Queue a message for a broadcast.

        Args:
            payload: the message's bytes.
            text: whether it is text.
            frame: what an earlier call returned for the same message.

        Returns:
            the frame, for servers' further connections.
        """
        frame = self.protocol.send_shared(payload, text=text, frame=frame)
        self.messages_sent += 1
        self.outbox.flush()
        return frame

    def begin_ping(self, payload: bytes | None) -> PendingPing:
        """Send a ping.

        Raises:
            ValueError: the payload is too long, or belongs to a ping under way.
        """
        if payload is None:
            payload = self.pings.new_payload()
        elif payload in self.pings:
            raise ValueError("a ping with this payload is under way already")
        self.protocol.send_ping(payload)
        self._readership.take_back()
        pending = self.pings.sent(payload)
        self.outbox.flush()
        return pending

    # ---- ending

    def start_close(self, code: int, reason: str) -> None:
        """Send Close and go on receiving.

        Raises:
            ValueError: the code or the reason cannot be sent.
        """
        self.protocol.send_close(code, reason)
        self._readership.take_back()
        self._wake_senders()
        self.outbox.flush()
        self.outbox.idle.wake()

    def go_away(self, reason: str) -> None:
        """The server shuts down: send Close, and tell so whoever goes on sending."""
        if self.send_error() is None:
            self._gone_away = ConnectionClosedError(CloseCode.GOING_AWAY, reason, remote=False)
            self.start_close(CloseCode.GOING_AWAY, reason)

    def close_now(self, code: int, reason: str) -> None:
        """Send Close if that was not done, receive nothing more, and drop the connection when time is up.

        Raises:
            ValueError: the code or the reason cannot be sent.
        """
        if self.protocol.state is State.OPEN and not self._lost:
            self.start_close(code, reason)
        self.closed_here = True
        self._set_drop_deadline()
        self.inbox.clear()
        self._readership.wake()
        self.resume()
        self.outbox.idle.wake()

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7)."""
        if self.protocol.closed is None:
            self.protocol.fail(code, reason)
            self._ended()
            self.outbox.flush()

    async def wait_finished(self) -> None:
        """Wait until the transport is closed."""
        self._readership.take_back()
        if not self._is_finished:
            if self._finished is None:
                self._finished = trio.Event()
            await self._finished.wait()

    def _finish(self) -> None:
        self._is_finished = True
        if self._finished is not None:
            self._finished.set()

    def _set_drop_deadline(self) -> None:
        self._drop_at = min(self._drop_at, trio.current_time() + self.settings.close_timeout)
        self._move_deadline()

    def _ended(self) -> None:
        """The protocol has said `Closed`: from now on everybody is told so."""
        self._set_drop_deadline()
        self._wake_senders()
        self._readership.take_back()
        self._readership.wake()
        self._reader_pause.wake()
        self.outbox.idle.wake()
        closed = self.protocol.closed
        assert closed is not None
        if self.settings.cancel_on_close and (
            closed.remote or self.protocol.state is not State.CLOSED
        ):
            self.cancel_scope.cancel()

    def _lose(self, cause: BaseException | None) -> None:
        """The transport carries nothing more; what it brought can still be received."""
        if self._lost:
            return
        self._lost = True
        self._cause = cause
        self.protocol.receive_eof()
        self.pump()
        if self.settings.cancel_on_close and self.protocol.closed is None:
            self.cancel_scope.cancel()  # the end stands behind messages that nobody takes
        self._readership.take_back()
        self._reader_pause.wake()
        self._wake_senders()
        self.outbox.idle.wake()

    def _wake_senders(self) -> None:
        self.turns.room_changed()
        self.pings.give_up()

    def end_error(self, *, sending: bool = False) -> ConnectionClosed:
        """The error that tells how the connection ended.

        Args:
            sending: for a send, which an end breaks however clean it was.
        """
        closed = self.protocol.closed or Closed(CloseCode.ABNORMAL, "", remote=True)
        clean = self.protocol.state is State.CLOSED and (
            closed.code in _CLEAN_CODES or not closed.remote
        )
        kind = ConnectionClosedOK if clean and not sending else ConnectionClosedError
        error = kind(int(closed.code), closed.reason, remote=closed.remote)
        error.__cause__ = self._cause if closed.code == CloseCode.ABNORMAL else None
        return error
