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
from .._protocol.extensions import ExtensionCodec
from .._protocol.frames import CloseCode
from .._protocol.events import Closed, Pong, State
from .._protocol.websocket import WebSocketProtocol
from .._transport.services import Services
from .._transport.transport import Pieces, Transport
from .._util import Wakeup
from .inbox import Inbox
from .pings import PendingPing, Pings
from .settings import Settings
from .statistics import Statistics
from .turns import Turns

__all__ = ["Connection"]

# How far behind a full inbox pings and pongs are still found.
_LOOK_AHEAD = 65536
# How long messages may still be answered when the peer's Close, or its violation, has come behind them.
_LAST_WORDS = 0.2
# A send that has waited so long makes older pongs superfluous.
_STUCK = 0.1
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
        "_is_finished",
        "_in_flight",
        "_lost",
        "_probe_at",
        "_progress_at",
        "_reader_pause",
        "_receiver",
        "_sending",
        "_services",
        "_unsent",
        "_writer_idle",
        "_writer_scope",
        "answering",
        "bytes_received",
        "bytes_sent",
        "cancel_scope",
        "closed_here",
        "inbox",
        "last_heard",
        "messages_received",
        "messages_sent",
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
        self.settings = settings
        self.protocol = WebSocketProtocol(
            client=client,
            codecs=codecs,
            max_message_size=settings.max_message_size,
            max_fragments=settings.max_fragments,
        )
        self.inbox = Inbox(settings.max_queue_messages, settings.max_queue_bytes)
        self.cancel_scope = trio.CancelScope()
        #: the application took something since it last waited, and may be about to answer
        self.answering = False
        #: this side called close(): nothing is received any more
        self.closed_here = False
        self.last_heard = trio.current_time()
        self.bytes_received = len(leading)
        self.bytes_sent = 0
        self.messages_received = 0
        self.messages_sent = 0
        self._client = client
        self.transport = transport
        # The transport carries nothing more, for this reason if there is one to tell.
        self._lost = False
        self._cause: BaseException | None = None
        # What the writer has taken from the protocol and not sent yet, and how many bytes that is.
        self._unsent: Pieces = []
        self._in_flight = 0
        self._writer_idle = Wakeup()
        self._writer_scope: trio.CancelScope | None = None
        # Whether the writer waits for the transport to take something, and since when it has.
        self._sending = False
        self._progress_at = -inf
        self._reader_pause = Wakeup()
        self._receiver = Wakeup()
        # When the keepalive's ping went out that nothing has come after; when to drop the connection.
        self._probe_at = -inf
        self._drop_at = inf
        self._eof_sent = False
        self._is_finished = False
        self._finished: trio.Event | None = None  # made by who waits
        self.turns = Turns(self._is_full)
        self.pings = Pings()
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
            return await self._services.__aexit__(exc_type, exc, traceback)
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
        protocol, transport = self.protocol, self.transport
        cause: BaseException | None = None
        await self._digest()
        try:
            while True:
                while protocol.unparsed >= _LOOK_AHEAD:
                    await self._reader_pause.park()
                data = await transport.receive()
                if not data:
                    break
                self.last_heard = trio.current_time()
                self.bytes_received += len(data)
                self._move_deadline()
                if protocol.closed is None:
                    protocol.receive_data(data)
                    self.pump()
                    if protocol.end_pending:
                        await self._digest()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            cause = exc
        self._lose(cause)

    async def _digest(self) -> None:
        """Hand out what has arrived; before an end, give the application a moment for what came before."""
        self.pump()
        if self.protocol.end_pending and self.protocol.closed is None:
            with trio.move_on_after(_LAST_WORDS):
                await self._reader_pause.park()
            self.pump(end=True)

    def pump(self, *, end: bool = False) -> None:
        """Parse what there is room for, hand it out, and see to it that answers are sent.

        Args:
            end: end the connection if that is what comes next, though messages were not taken yet.
        """
        protocol, inbox = self.protocol, self.inbox
        if protocol.closed is not None:
            return
        arrived = False
        while True:
            if protocol.end_pending and not self.closed_here:
                # What has come just now was not answered in any case.
                if arrived or (not end and (inbox.messages or self.answering)):
                    break
            messages, size = inbox.room()
            if (messages <= 0 or size <= 0) and not protocol.end_pending:
                for pong in protocol.look_ahead():
                    self.pings.answered(pong.payload)
                break
            events = protocol.events(messages, size)
            if not events and not protocol.end_pending:
                break
            for event in events:
                if isinstance(event, Pong):
                    self.pings.answered(event.payload)
                elif not isinstance(event, Closed):
                    inbox.put(event)
                    arrived = True
            if self.closed_here:
                inbox.clear()
            if protocol.closed is not None:
                break
            if not (protocol.unparsed or protocol.end_pending or self._lost):
                break
        if protocol.closed is not None:
            self._ended()
        elif arrived:
            self._receiver.wake()
        if protocol.has_outgoing:
            self.flush()

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
        protocol = self.protocol
        return (
            not (self.inbox.messages or protocol.unparsed or self.closed_here or self._lost)
            and protocol.closed is None
            and not protocol.end_pending
        )

    @property
    def receiving(self) -> bool:
        """Whether a task is in `wait_arrival`."""
        return self._receiver.parked

    async def wait_arrival(self) -> None:
        """Wait until something arrives or the connection ends, for one task at a time. A checkpoint."""
        self.answering = False
        await self._receiver.park()

    # ---- writing

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return self.protocol.outgoing_size + self._in_flight

    def flush(self) -> None:
        """Send what the protocol has, at once if nothing is queued, and leave the rest to the writer."""
        protocol = self.protocol
        if self._writer_idle.parked and not self._unsent:
            self._take_outgoing()
            self.transport.send_nowait(self._unsent)
            left = sum(map(len, self._unsent)) if self._unsent else 0
            self.bytes_sent += self._in_flight - left
            self._in_flight = left
            if not left and protocol.closed is None:
                return
        elif self._sending and trio.current_time() > self._progress_at + _STUCK:
            protocol.forget_old_pongs()
        self._writer_idle.wake()

    def _take_outgoing(self) -> None:
        self._in_flight += self.protocol.take_outgoing(self._unsent)

    async def _write(self, scope: trio.CancelScope) -> None:
        """See everything out, and then close the transport. The scope's deadline is when something is due."""
        self._writer_scope = scope
        if trio.current_time() >= self._deadline():
            self._due()
        try:
            while not self._is_over():
                if self._unsent or self.protocol.has_outgoing:
                    await self._send_unsent(scope)
                elif self.protocol.state is State.FAILED and not self._eof_sent:
                    # Closing with unread bytes would reset the connection, and our Close might never be read.
                    self._eof_sent = True
                    await self.transport.send_eof()
                else:
                    scope.deadline = self._deadline()
                    await self._writer_idle.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose(exc)
        scope.deadline = inf
        await self.transport.aclose(graceful=self.protocol.state is State.CLOSED)
        self._lose(None)
        self._finish()

    async def _send_unsent(self, scope: trio.CancelScope) -> None:
        self._take_outgoing()
        self._sending = True
        try:
            while self._unsent:
                self._progress_at = trio.current_time()
                scope.deadline = self._deadline()
                await self.transport.send_some(self._unsent)
                left = sum(map(len, self._unsent))
                self.bytes_sent += self._in_flight - left
                self._in_flight = left
        except trio.Cancelled:
            # Part of a frame may have gone: nothing can follow it.
            self._lose(trio.TooSlowError("the peer did not take what was sent"))
            raise
        finally:
            self._sending = False
        self.turns.room_changed()

    def _is_over(self) -> bool:
        """Whether nothing is left to do but to close the transport."""
        if self._lost:
            return True
        if self.unsent or self.protocol.has_outgoing:
            return False
        # RFC 6455 section 7.1.1: the server closes first, and the client waits for that.
        return self.protocol.state is State.CLOSED and not self._client

    @property
    def _patience(self) -> float:
        interval, timeout = self.settings.ping_interval, self.settings.ping_timeout
        return inf if interval is None or timeout is None else interval + timeout

    def _deadline(self) -> float:
        """When the writer has something to do though nothing happens, or is to give up."""
        interval, timeout = self.settings.ping_interval, self.settings.ping_timeout
        if self._sending:
            # While a send is stuck, progress and signs of life put it off.
            return min(self._drop_at, max(self._progress_at, self.last_heard) + self._patience)
        if self._drop_at != inf:
            return self._drop_at
        if self.protocol.state is not State.OPEN:
            return self.last_heard + self._patience  # half-closed: not even a ping may be sent
        if self._probe_at < self.last_heard:
            return inf if interval is None else self.last_heard + interval
        return inf if timeout is None else self._probe_at + timeout

    def _move_deadline(self) -> None:
        """What `_deadline` says has changed while a send is stuck."""
        if self._sending and self._writer_scope is not None:
            self._writer_scope.deadline = self._deadline()

    def _due(self) -> None:
        """The deadline has passed: ping, or give up."""
        now = trio.current_time()
        if self._drop_at != inf:
            self._lose(trio.TooSlowError("the peer did not finish the closing handshake in time"))
        elif self._reader_pause.parked:
            self.last_heard = now  # we do not listen, so silence says nothing
        elif self.protocol.state is not State.OPEN:
            self._lose(trio.TooSlowError("the peer did not answer Close"))
        elif self._probe_at < self.last_heard:
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
        if self.closed_here or self.protocol.state is State.CLOSING:
            return trio.ClosedResourceError("this side has closed the connection")
        return self.end_error(sending=True)

    def _is_full(self) -> bool:
        return self.unsent >= self.settings.write_limit and self.send_error() is None

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
        self.flush()
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
        pending = self.pings.sent(payload)
        self.flush()
        return pending

    # ---- ending

    def start_close(self, code: int, reason: str) -> None:
        """Send Close and go on receiving.

        Raises:
            ValueError: the code or the reason cannot be sent.
        """
        self.protocol.send_close(code, reason)
        self._wake_senders()
        self.flush()
        self._writer_idle.wake()

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
        self._receiver.wake()
        self.resume()
        self._writer_idle.wake()

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7)."""
        if self.protocol.closed is None:
            self.protocol.fail(code, reason)
            self._ended()
            self.flush()

    async def wait_finished(self) -> None:
        """Wait until the transport is closed."""
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
        self._receiver.wake()
        self._reader_pause.wake()
        self._writer_idle.wake()
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
        self._wake_senders()
        self._writer_idle.wake()

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
        error = kind(closed.code, closed.reason, remote=closed.remote)
        error.__cause__ = self._cause if closed.code == CloseCode.ABNORMAL else None
        return error

    def statistics(self) -> Statistics:
        """The figures of this moment."""
        return Statistics(
            bytes_received=self.bytes_received,
            bytes_sent=self.bytes_sent,
            messages_received=self.messages_received,
            messages_sent=self.messages_sent,
            queued_messages=self.inbox.messages,
            queued_bytes=self.inbox.size,
            unparsed_bytes=self.protocol.unparsed,
            unsent_bytes=self.unsent,
            latency=self.pings.latency,
            last_heard=self.last_heard,
        )
