"""A QUIC connection: the pure engine between an endpoint's reader and a writer of its own.

General theory of operation:

The endpoint's reader puts in the datagrams that it has read for this connection and calls `process`, once for a whole
batch. That hands the engine's events to streams and queues, synchronously, wakes who waits, and leaves it to the writer to
send. Neither ever awaits the application.

The writer is the only one that takes packets out of the engine, so packets leave in the order in which they were built.
It awaits "something to send" or the engine's timer, which is the deadline of its own scope.

The end: the engine decides it once. `_ended` fixes the error and wakes everybody at that moment, before the last packet is
out. Leaving the block decides it too, if nobody had: gracefully, once all that was ended is delivered, or at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from .._errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
    TransportClosed,
)
from .._protocol.quic import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    Datagram,
    DatagramFrameReceived,
    End,
    EndKind,
    Engine,
    HandshakeCompleted,
    PingAcknowledged,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from .._protocol.route import Route, Sockaddr
from .._util import Wakeup
from .carrier import Carrier, Sink
from .endings import error_code
from .openers import Openers
from .receive_stream import ReceiveStream
from .send_stream import SendStream
from .settings import QuicSettings
from .upper import Upper

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["Driver"]

# What is sent within this time, in seconds, of what a task sent by itself is left to the writer.
_BURST_PAUSE = 5e-5
_ACK_DELAY = 1e-3
_TOO_LONG = "the handshake took too long"
_CONNECTION_REFUSED = 0x02
# What the last packet may take to go out when all the time was used up before.
_LAST_PACKET = 1.0


# For how many probe timeouts the last words of what stands on a connection may be repeated.
_GENTLE_PTOS = 3


class Driver(Carrier):
    """What `Connection` puts its public face on.

    Args:
        engine: the protocol.
        endpoint: carries its packets.
        settings: limits and times.
        upper: makes what takes in streams and datagrams.
        client: this side's role.

    Attributes:
        is_client: this side's role.
        openers: tasks that wait to open streams.
        can_migrate: this is a client with an endpoint of its own.
        migrating: it is on its way to another socket.
        cancel_scope: covers the connection's block.
        handshake: what came of the handshake; None before it is complete.
        handshake_deadline: when it must be.
        leave_by: when the end of the block must have come; what stands on the connection may set it.
        last_heard: when a packet came last.
    """

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        settings: QuicSettings,
        upper: Callable[[Driver], Upper],
        *,
        client: bool,
    ) -> None:
        self.engine: Engine = engine
        self.endpoint: Endpoint = endpoint
        self.settings: QuicSettings = settings
        self.blocked: set[SendStream] = set()
        self.can_migrate: bool = False
        self.migrating: bool = False
        self.cancel_scope: trio.CancelScope = trio.CancelScope()
        self.end: ConnectionClosed | None = None
        self.is_peers_fault: bool = False
        self.handshake_deadline: float = inf
        self.leave_by: float = inf
        self.handshake: HandshakeCompleted | None = None
        self.last_heard: float = trio.current_time()
        self.is_client: bool = client
        self._streams: dict[int, Sink] = {}
        # The next stream id of each kind that the peer will open: bidirectional and unidirectional.
        self._next_remote = [1, 3] if client else [0, 2]
        self.openers: Openers = Openers(engine)
        self._pings: dict[int, trio.Event] = {}
        self._ping_count = 0
        # Something may be there to send; `_idle` is where the writer waits, under `_scope`.
        self._dirty = False
        self._is_ready = False
        self._idle = Wakeup()
        self._scope: trio.CancelScope | None = None
        self._pushed_at = -inf
        self._outgoing: list[Datagram] = []
        self._last_sent = self.last_heard
        # Something changed that a task may wait for: the handshake, deliveries, a path, the end.
        self._changed = trio.lowlevel.ParkingLot()
        self._finished = trio.Event()
        self.upper: Upper = upper(self)

    # ---- reading

    def feed(self, data: bytes, route: Route, now: float) -> None:
        """A datagram has come; `process` must follow."""
        self.last_heard = now
        self.engine.receive(data, route, now)

    def process(self) -> None:
        """Hand out what has happened."""
        engine = self.engine
        for event in engine.take_events():
            handle = _HANDLERS.get(type(event))
            if handle is not None:
                handle(self, event)
                if self.end is not None:
                    break  # what comes behind its end is nobody's
        if self.end is None:
            end = engine.end
            if end is not None:
                self._ended(end)
            else:
                if not self._is_ready and engine.is_ready:
                    self._is_ready = True
                    self.upper.ready()
                self.openers.grant()
        if self._changed:
            self._changed.unpark_all()
        self.stir()

    def _on_stream_data(self, event: StreamDataReceived) -> None:
        stream = self._streams.get(event.stream_id) or self._stream(event.stream_id)
        if stream is not None:
            stream.arrived(event.data, fin=event.end_stream)
            return
        # A stream that the application is done with.
        self.discard(event.stream_id, len(event.data))
        if event.end_stream:
            self.settle(event.stream_id)

    def _on_stream_reset(self, event: StreamReset) -> None:
        stream = self._stream(event.stream_id)
        if stream is not None:
            stream.was_reset(event.error_code)
        else:
            self.settle(event.stream_id)

    def _on_stop_sending(self, event: StopSendingReceived) -> None:
        stream = self._stream(event.stream_id)
        if stream is not None:
            stream.was_stopped(event.error_code)
        else:
            self.upper.abandoned(event.stream_id)

    def _on_datagram(self, event: DatagramFrameReceived) -> None:
        self.upper.datagram_arrived(event.data)

    def _on_handshake(self, event: HandshakeCompleted) -> None:
        self.handshake = event
        self.endpoint.established(self)

    def _on_ping(self, event: PingAcknowledged) -> None:
        answered = self._pings.pop(event.uid, None)
        if answered is not None:
            answered.set()

    def _on_id_issued(self, event: ConnectionIdIssued) -> None:
        self.endpoint.add_id(event.connection_id, self)

    def _on_id_retired(self, event: ConnectionIdRetired) -> None:
        self.endpoint.remove_id(event.connection_id)

    def _stream(self, stream_id: int) -> Sink | None:
        """The stream, opened by the peer just now perhaps; None if the application is done with it."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id & 1) == self.is_client:
            uni = stream_id >> 1 & 1
            # All lower-numbered streams of the kind open with it (RFC 9000 section 2.1).
            for opened in range(self._next_remote[uni], stream_id + 1, 4):
                self._next_remote[uni] = opened + 4
                self.upper.opened(opened)
            stream = self._streams.get(stream_id)
        return stream

    # ---- streams

    async def open(self, *, unidirectional: bool) -> int:
        return await self.open_for(self, unidirectional=unidirectional)

    async def open_for(self, carrier: Carrier, *, unidirectional: bool) -> int:
        """Open a stream for what may end earlier than the connection; otherwise as `open`."""
        await self._enter()
        stream_id = self.openers.open_now(unidirectional=unidirectional)
        if stream_id is None:
            return await self.openers.wait(carrier, unidirectional=unidirectional)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return stream_id

    def adopt(self, stream_id: int, stream: Sink) -> None:
        self._streams[stream_id] = stream
        if self.end is not None:
            stream.lost(self.end)

    def sink(self, stream_id: int) -> Sink | None:
        """Where a stream's events go."""
        return self._streams.get(stream_id)

    def forget(self, stream_id: int) -> None:
        """A stream's events go nowhere any more."""
        self._streams.pop(stream_id, None)

    def release(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if (stream_id & 1) == self.is_client:
            self.engine.release(stream_id)
            self.stir()

    def room(self, stream_id: int) -> int:
        return self.settings.send_buffer - self.engine.unsent(stream_id)

    def received(self, stream_id: int, count: int, *, fin: bool) -> None:
        """The engine counts by itself."""

    def send(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> None:
        self.engine.send(stream_id, data, fin=fin)

    def reset(self, stream_id: int, code: int) -> None:
        self.engine.reset(stream_id, code)
        self.wake()

    def abandoned(self, stream_id: int) -> None:
        """The engine knows."""

    def stop(self, stream_id: int, code: int) -> None:
        self.engine.stop(stream_id, code)
        self.wake()

    def prioritise(self, stream_id: int, priority: int) -> None:
        self.engine.prioritise(stream_id, priority)

    def consume(self, stream_id: int, count: int) -> None:
        if self.engine.consume(stream_id, count):
            self.wake()

    def discard(self, stream_id: int, count: int) -> None:
        if self.engine.discard(stream_id, count):
            self.wake()

    def settle(self, stream_id: int) -> None:
        # Its part of the connection's window is free again.
        if self.engine.settle(stream_id, self.engine.highest_received(stream_id)):
            self.wake()

    @property
    def max_datagram(self) -> int:
        return self.engine.max_datagram

    def queue_datagram(self, data: bytes) -> None:
        self.engine.queue_datagram(data)

    # ---- writing

    def wake(self) -> None:
        self._dirty = True
        self._idle.wake()

    def wake_later(self) -> None:
        """Something is to be sent, but what follows at once may go with it."""
        self._dirty = True
        scope = self._scope
        due = trio.current_time() + _ACK_DELAY
        if scope is not None and scope.deadline > due:
            scope.deadline = due

    def stir(self) -> None:
        """Something may have to be sent, now or when the engine's timer is due."""
        if self._dirty or self.engine.has_work:
            self.wake()
        else:
            # The engine's last sight of the clock is a moment old at most.
            self._arm(self.engine.now)

    def push(self, *, at_once: bool = False) -> None:
        # In a burst only the first goes this way, so that the writer can put the others into as few packets as possible.
        now = trio.current_time()
        if self._outgoing or (now - self._pushed_at < _BURST_PAUSE and not at_once):
            self.wake()
            return
        self._dirty = False
        try:
            out = self._flush(now)
            sent = self.endpoint.send(out) if out else 0
        except Exception as exc:
            self.failed(exc)
            return
        self._pushed_at = now
        if sent < len(out):
            self._outgoing = out[sent:]
            self._idle.wake()
        else:
            self._arm(now)

    def _flush(self, now: float) -> list[Datagram]:
        """The packets to send, after which streams may have room again."""
        engine = self.engine
        out = engine.flush(now)
        if out:
            self._last_sent = now
        if engine.has_events or (self.end is None and engine.end is not None):
            # Connection ids have been issued, say: the endpoint must know them before the peer does.
            self.process()
        if self.blocked:
            for stream in list(self.blocked):
                stream.room_changed()
        return out

    def _arm(self, now: float) -> None:
        """See to it that the writer runs when the timer is due; it may run earlier, and find that it is not."""
        scope = self._scope
        if scope is None:
            return
        if scope.deadline > now + _ACK_DELAY:
            # An acknowledgement is put off for a millisecond, and nothing else that is new is due earlier.
            due = self._deadline()
            if due < scope.deadline:
                scope.deadline = due
        elif not self.engine.owes_acknowledgement:
            # That has gone out with something else. To run the writer for nothing would cost many times what this does.
            scope.deadline = self._deadline()

    async def _write(self, scope: trio.CancelScope) -> None:
        """See everything out, until the end of the connection. The scope's deadline is when something is due."""
        engine = self.engine
        self._scope = scope
        while True:
            now = trio.current_time()
            if now >= self._deadline():
                self._due(now)
            if self._outgoing:
                await self._send(scope)
            elif self._dirty:
                self._dirty = False
                self._outgoing = self._flush(now)
            elif engine.is_silent:
                break
            else:
                scope.deadline = self._deadline()
                await self._idle.park()
        self._scope = None
        scope.deadline = inf
        route = engine.route
        if self.is_client and route is not None:
            # Nobody will be there to answer late packets: once more, should the first have been lost.
            self.endpoint.send([(data, route) for data in engine.close_datagrams])
        self._finish()

    async def run_writer(self, scope: trio.CancelScope) -> None:
        """The writer, as a service. What it raises, which a socket of the application's may make it do, ends the connection."""
        try:
            await self._write(scope)
        except Exception as exc:
            self.failed(exc)

    async def _send(self, scope: trio.CancelScope) -> None:
        """Hand the packets on; more are built only when these are gone."""
        while True:
            sent = self.endpoint.send(self._outgoing)
            del self._outgoing[:sent]
            if not self._outgoing:
                return
            scope.deadline = inf
            await self.endpoint.wait_writable(self._outgoing[0][1])

    def _deadline(self) -> float:
        timer = self.engine.timer
        due = inf if timer is None else timer + 1e-6
        if self.handshake is None and self.end is None:
            due = min(due, self.handshake_deadline)
        if self.settings.keep_alive is not None and self.end is None:
            due = min(due, max(self.last_heard, self._last_sent) + self.settings.keep_alive)
        return due

    def _due(self, now: float) -> None:
        timer = self.engine.timer
        if self.handshake is None and now >= self.handshake_deadline:
            if self.is_client:
                self.engine.lose(_TOO_LONG)
            else:
                self.engine.shut(_CONNECTION_REFUSED, _TOO_LONG, transport=True)
            self.process()
        elif timer is not None and timer <= now:
            self.engine.fire(now)
            self.process()
        else:
            self._last_sent = now
            self.engine.send_ping(0)
        self._dirty = True

    async def ping(self) -> float:
        """Wait until the peer has acknowledged a packet sent now; how long that took, in seconds.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        await self._enter()
        started = trio.current_time()
        self._ping_count += 1
        number = self._ping_count
        answered = self._pings[number] = trio.Event()
        self.engine.send_ping(number)
        self.wake()
        try:
            await answered.wait()
        finally:
            self._pings.pop(number, None)
        self.check_open()
        return trio.current_time() - started

    async def wait_changed(self) -> None:
        """Wait until something happens on the connection. A checkpoint."""
        await self._changed.park()

    # ---- the end

    async def _enter(self) -> None:
        """Begin an operation that needs an open connection; a checkpoint if it raises, or else if cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.end is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self.check_open()

    def shut(self, code: int, reason: str, *, transport: bool = False) -> None:
        """Decide the end now, if it has not been decided."""
        if self.end is None:
            self.engine.shut(code, reason, transport=transport)
            self.process()

    def _ended(self, end: End) -> None:
        kind: type[ConnectionClosed]
        if end.kind is EndKind.LOST:
            kind = ConnectionLost
        elif end.kind is EndKind.TRANSPORT and end.code:
            kind = TransportClosed
        else:
            clean = end.code == self.upper.clean_code
            kind = ConnectionClosedOK if clean else ConnectionClosedError
        if kind is TransportClosed:
            self.is_peers_fault = True
        closed = self.end = kind(end.code, end.reason, remote=end.remote)
        closed.__cause__ = self.engine.rejection
        for stream in list(self._streams.values()):
            stream.lost(closed)
        self.upper.lost(closed)
        self.openers.give_up()
        for answered in self._pings.values():
            answered.set()
        self._changed.unpark_all()
        if self.settings.cancel_on_close and (end.remote or self.is_peers_fault):
            self.cancel_scope.cancel()

    async def drain(self) -> None:
        """Wait until all that was ended or reset is delivered, or the connection has ended. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self.end is None and self.engine.undelivered:
            await self._changed.park()

    async def wait_finished(self) -> None:
        """Wait until the writer has seen the last packet out."""
        await self._finished.wait()

    def last_moment(self) -> float:
        """Until when a goodbye that begins now may take."""
        return min(trio.current_time() + self.settings.close_timeout, self.leave_by)

    async def goodbye(self, exc: BaseException | None, deadline: float | None = None) -> None:
        """At the end of the block; bounded by `last_moment`, or by an earlier ``deadline``."""
        if deadline is None:
            deadline = self.last_moment()
        try:
            if exc is None or self.upper.is_gentle:
                if exc is not None:
                    soon = _GENTLE_PTOS * self.engine.probe_timeout
                    deadline = min(deadline, trio.current_time() + soon)
                with trio.move_on_at(deadline):
                    await self.drain()
                self.shut(self.upper.clean_code, "")
            else:
                self.shut(error_code(exc, self), "")
            with trio.move_on_at(max(deadline, trio.current_time() + _LAST_PACKET)):
                await self.wait_finished()
        finally:
            self._finish()

    def failed(self, exc: Exception) -> None:
        """The endpoint can carry nothing more."""
        self.engine.lose(f"the socket failed: {exc}")
        if self.end is None:
            self.process()
            if self.end is not None:
                self.end.__cause__ = exc
        self._finish()

    def _finish(self) -> None:
        if not self._finished.is_set():
            self._finished.set()
            self.endpoint.retire(self)
            self.engine.finish()

    # ---- figures

    @property
    def peer_address(self) -> Sockaddr | None:
        """Where packets go."""
        route = self.engine.route
        return None if route is None else route.remote

    @property
    def local_address(self) -> Sockaddr | None:
        """The address of the socket that packets go through."""
        route = self.engine.route
        socket = None if route is None else self.endpoint.sockets.get(route.local)
        return None if socket is None else socket.local_address

    @property
    def may_be_early(self) -> bool:
        """Whether a client may send data before the handshake is complete, or could."""
        ticket = self.engine.config.session_ticket
        return ticket is not None and bool(ticket.max_early_data_size)

    @property
    def has_arrivals(self) -> bool:
        """Whether the peer has sent something for the application."""
        return bool(self._streams or self.upper.has_datagrams)

    @property
    def stream_figures(self) -> tuple[int, int]:
        """Bytes that were not received by the application, and bytes that were not sent."""
        unread = unsent = 0
        for stream_id, stream in self._streams.items():
            if isinstance(stream, ReceiveStream):
                unread += stream.buffered
            if isinstance(stream, SendStream):
                unsent += self.engine.unsent(stream_id)
        return unread, unsent


_HANDLERS: dict[type[QuicEvent], Callable[[Driver, Any], None]] = {
    StreamDataReceived: Driver._on_stream_data,
    StreamReset: Driver._on_stream_reset,
    StopSendingReceived: Driver._on_stop_sending,
    DatagramFrameReceived: Driver._on_datagram,
    HandshakeCompleted: Driver._on_handshake,
    PingAcknowledged: Driver._on_ping,
    ConnectionIdIssued: Driver._on_id_issued,
    ConnectionIdRetired: Driver._on_id_retired,
}
