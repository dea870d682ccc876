"""What a session's streams and datagrams stand on: a share of a connection, with limits and an end of its own.

General theory of operation:

The streams of a session are the connection's: their bytes come from its driver and go to its engine. In between stands the session's
`SessionCarrier`, which counts what the session's flow control counts, translates error codes, puts the session's number before what it sends, and
knows the session's end. What is said about all that goes over the session's own stream, its `RequestStream`: capsules in, capsules out,
all synchronously.

The end is decided once, by `_ended`: it wakes everybody who waits, resets what is left of the session's streams, and gives
back to the connection what they held of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import trio

from .._errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    ConnectionLost,
)
from .._http.priority import Priority
from .._http.request_stream import RequestStream
from .._protocol.dialects import supports_datagrams
from .._protocol.http3_codes import (
    MAX_APPLICATION_CODE,
    Http3Code,
    from_http3_code,
    to_http3_code,
)
from .._protocol.session_credit import CreditViolation, SessionCredit
from .._protocol.stream_heads import StreamHead, session_stream_head
from .._protocol.webtransport import (
    CreditGrown,
    DatagramReceived,
    DrainRequested,
    SessionEnded,
    SessionEvent,
    SessionProtocol,
)
from .._quic.carrier import Carrier, Sink
from .._quic.datagrams import Datagrams
from .._quic.driver import Driver
from .._quic.incoming import IncomingStreams
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._quic.streams import Stream
from .._util import Wakeup
from .ends import failure, lost_with
from .leftovers import Remainder, refuse_stream
from .settings import WebTransportSettings

__all__ = ["SessionCarrier"]

AnyStream = SendStream | ReceiveStream

# Ids of streams that are long delivered are dropped when there are so many.
_SWEEP = 256
_ABOVE_ALL = 2**40
# How long the end of a session may take to come, when its streams have been reset for it, in seconds.
_GONE_PATIENCE = 1.0
# How long its close may, when the peer wants no more of the session's own stream.
_STOP_PATIENCE = 0.5


class _Turn:
    """A task's turn to open a stream; granted once the session's limit allows it."""

    __slots__ = ("granted", "wakeup")

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self.granted = False


class SessionCarrier(Carrier):
    """What `WebTransportSession` puts its public face on.

    Args:
        driver: the connection.
        stream: the session's own stream, taken and still open.
        credit: the session's flow control; None where it is off.
        settings: limits, times and codes.
        later: calls something after some seconds, while the connection lasts; it returns what takes that back.

    Attributes:
        session_id: the number of the session's own stream.
        datagrams, incoming_streams, incoming_receive_streams: as `WebTransportSession` has them.
        cancel_scope: covers the session's block.
        draining: the session is to come to its end.
        base_priority: what is added to the priority of the session's streams.
        streams: the streams that the application is not done with.
        driver: see there.
    """

    noun: ClassVar[str] = "session"
    max_code: ClassVar[int] = MAX_APPLICATION_CODE

    def __init__(
        self,
        driver: Driver,
        stream: RequestStream,
        credit: SessionCredit | None,
        settings: WebTransportSettings,
        later: Callable[[float, Callable[[], None]], Callable[[], None]],
    ) -> None:
        self.driver: Driver = driver
        self.settings: WebTransportSettings = settings
        self.blocked: set[SendStream] = driver.blocked
        self.end: ConnectionClosed | None = None
        self.is_peers_fault: bool = False
        self.session_id: int = stream.stream_id
        self.cancel_scope: trio.CancelScope = trio.CancelScope()
        self.draining: bool = False
        self.base_priority: int = 0
        self.streams: dict[int, AnyStream] = {}
        self.datagrams: Datagrams = Datagrams(self)
        self.incoming_streams: IncomingStreams[Stream] = IncomingStreams(self)
        self.incoming_receive_streams: IncomingStreams[ReceiveStream] = IncomingStreams(self)
        self._stream = stream
        self._protocol = SessionProtocol(credit)
        self._credit = credit
        # What each datagram begins with; None if the peer takes none (RFC 9297 section 2.1.1).
        self._prefix = self._encode_datagram_head()
        self._heads = tuple(
            session_stream_head(self.session_id, unidirectional=unidirectional)
            for unidirectional in (False, True)
        )
        # What of each stream has come that counts for the session, until its end has.
        self._counted: dict[int, int] = {}
        # Streams whose unsent bytes are given back to the session if they are reset.
        self._charged: set[int] = set()
        # Streams of this side's that may not be delivered yet.
        self._sending: set[int] = set()
        self._sweep_at = _SWEEP
        self._openers: tuple[list[_Turn], list[_Turn]] = ([], [])
        self._changed = trio.lowlevel.ParkingLot()
        self._later = later
        # What is put off because the session seems to be gone.
        self._put_off: list[Callable[[], None]] = []
        self._is_believed_gone = False
        self._is_stopped = False
        # Takes back what is done about a close that is not answered.
        self._take_back: Callable[[], None] | None = None

    def start(self) -> None:
        """The session is open: hear what is said about it."""
        # What grants the peer credit must not wait behind what needs ours.
        self.driver.prioritise(self.session_id, _ABOVE_ALL)
        self._stream.consume_with(self._said, self._broken, self._stopped)

    def _encode_datagram_head(self) -> bytes | None:
        protocol = self._stream.http3.protocol
        if not supports_datagrams(protocol.peer_settings or {}):
            return None
        return protocol.encode_datagram_head(self.session_id)

    # ---- the session's own stream

    def _said(self, data: bytes, fin: bool) -> None:
        if fin and self._take_back is not None:
            self._take_back()
        has_grown = False
        for event in self._protocol.receive(data, fin=fin):
            if isinstance(event, CreditGrown):
                has_grown = True  # once for many
            else:
                self._handle(event)
        if has_grown and self.end is None:
            self._grant_turns()
            self._room_grew()

    def _broken(self) -> None:
        if self._take_back is not None:
            self._take_back()
        for event in self._protocol.reset():
            self._handle(event)

    def _stopped(self) -> None:
        # It may belong to a close that is on its way (draft-ietf-webtrans-http3-16 section 6).
        if not self._is_stopped:
            self._is_stopped = True
            self._later(_STOP_PATIENCE, self._broken)

    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended."""
        if self.end is None:
            self.is_peers_fault = self.driver.is_peers_fault
            self._ended(lost_with(end))

    def _handle(self, event: SessionEvent) -> None:
        if isinstance(event, SessionEnded):
            self._ended_by_peer(event)
        elif isinstance(event, DrainRequested):
            self.asked_to_drain()
        elif isinstance(event, DatagramReceived):
            self.datagrams.arrived(event.data)

    def _tell(self, capsule: bytes, *, end: bool = False) -> None:
        if capsule or end:
            # The writer sends it: this may be in the middle of a flush.
            self._stream.send_content_now(capsule, end=end, push=False)

    def _may_complain(self) -> bool:
        # It is advice, and must not pile up where the peer takes nothing.
        return not self.driver.engine.unsent(self.session_id)

    # ---- sending

    def room(self, stream_id: int) -> int:
        if self._put_off and not self.driver.engine.is_sendable(stream_id):
            return 0  # the peer has stopped it, and the sender will be told why
        room = self.driver.room(stream_id)
        credit = self._credit
        if credit is None:
            return room
        left = credit.room
        if left <= 0 < room and self._may_complain():
            self._tell(credit.data_blocked())
        return min(room, left)

    def send(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> None:
        taken = self.driver.engine.send(stream_id, data, fin=fin)
        # On a stream that the peer has stopped, of which the sender is told later perhaps, nothing goes out.
        if taken and self._credit is not None:
            self._credit.sent(len(data))

    def push(self) -> None:
        self.driver.push()

    def wake(self) -> None:
        self.driver.wake()

    def reset(self, stream_id: int, code: int) -> None:
        self._reset(stream_id, to_http3_code(code))

    def _reset(self, stream_id: int, wire_code: int) -> None:
        # The peer must learn which session the stream was of (draft-ietf-webtrans-http3-16 section 4.4).
        self.driver.engine.reset(stream_id, wire_code, self._head_size(stream_id))
        self.driver.wake()

    def abandoned(self, stream_id: int) -> None:
        credit = self._credit
        if credit is None or stream_id not in self._charged or self.end is not None:
            return
        # What the peer will not hear of was charged to no purpose.
        self._charged.discard(stream_id)
        refund = self.driver.engine.never_sent(stream_id, self._head_size(stream_id))
        if refund:
            credit.sent(-refund)
            self._room_grew()

    def _head_size(self, stream_id: int) -> int:
        """How long the head of what this side sends on a stream is."""
        ours = (stream_id & 1) != self.driver.is_client
        return len(self._heads[stream_id >> 1 & 1]) if ours else 0

    def _room_grew(self) -> None:
        for stream in list(self.blocked):
            stream.room_changed()

    def prioritise(self, stream_id: int, priority: int) -> None:
        self.driver.prioritise(stream_id, self.base_priority + priority)

    # ---- receiving

    def received(self, stream_id: int, count: int, *, fin: bool) -> None:
        credit = self._credit
        if credit is None or self.end is not None:
            return
        if fin:
            self._counted.pop(stream_id, None)
        else:
            self._counted[stream_id] = self._counted.get(stream_id, 0) + count
        self._count(count)

    def _count(self, count: int) -> None:
        assert self._credit is not None
        try:
            self._credit.received(count)
        except CreditViolation:
            self._violated()

    def consume(self, stream_id: int, count: int) -> None:
        self.driver.consume(stream_id, count)
        self._consumed(count)

    def discard(self, stream_id: int, count: int) -> None:
        self.driver.discard(stream_id, count)
        self._consumed(count)

    def _consumed(self, count: int) -> None:
        if self._credit is not None and self.end is None:
            engine = self.driver.engine
            self._tell(self._credit.consumed(count, engine.now, engine.rtt or engine.probe_timeout))

    def settle(self, stream_id: int) -> None:
        if self.end is not None:
            return  # its end has seen to that
        counted = self._counted.pop(stream_id, None)
        if counted is not None:
            # It was reset: what never came, or came out of order, counts too.
            theirs = (stream_id & 1) == self.driver.is_client
            head = len(self._heads[stream_id >> 1 & 1]) if theirs else 0
            rest = self.driver.engine.highest_received(stream_id) - head - counted
            if rest > 0:
                self._count(rest)
                self._consumed(rest)
        self.driver.settle(stream_id)

    def stop(self, stream_id: int, code: int) -> None:
        self.driver.stop(stream_id, to_http3_code(code))

    def release(self, stream_id: int) -> None:
        if self.streams.pop(stream_id, None) is None:
            return
        self.driver.release(stream_id)
        if stream_id in self._counted and self.end is None:
            # What still comes of it counts for the session, up to its end.
            self.driver.adopt(stream_id, Remainder(self, stream_id))
        if self._credit is not None and (stream_id & 1) == self.driver.is_client:
            self._tell(self._credit.released(stream_id >> 1 & 1))

    def puts_off(self, wire_code: int, action: Callable[[], None]) -> bool:
        # Peers reset a session's streams before they say what its end was; that is what whoever waits is to be told.
        if wire_code != Http3Code.WT_SESSION_GONE or self.end is not None or self._is_believed_gone:
            return False
        if not self._put_off:
            self._later(_GONE_PATIENCE, self._believe_gone)
        if len(self._put_off) <= 2 * len(self.streams):
            self._put_off.append(
                action
            )  # once for each direction of a stream; a peer may say it more often
        return True

    def _believe_gone(self) -> None:
        self._is_believed_gone = True
        actions, self._put_off = self._put_off, []
        for action in actions:
            action()

    def application_code(self, wire_code: int) -> int:
        return from_http3_code(wire_code) or 0

    @property
    def send_credit(self) -> int | None:
        """How many bytes the session's flow control still lets us send; None where it is off."""
        return None if self._credit is None else self._credit.room

    # ---- datagrams

    @property
    def max_datagram(self) -> int:
        if self._prefix is None:
            return 0
        return max(0, self.driver.engine.max_datagram - len(self._prefix))

    def queue_datagram(self, data: bytes) -> None:
        assert self._prefix is not None
        self.driver.engine.queue_datagram(self._prefix + data)

    # ---- streams

    async def open(self, *, unidirectional: bool) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.end is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self.check_open()
        credit = self._credit
        if credit is not None:
            await self._wait_turn(credit, int(unidirectional))
        opened = False
        try:
            stream_id = await self.driver.open_for(self, unidirectional=unidirectional)
            opened = True
        finally:
            if not opened and credit is not None:
                credit.opened(int(unidirectional), -1)
                self._grant_turns()
        if self.end is not None:
            self.driver.reset(stream_id, Http3Code.WT_SESSION_GONE)
            self.check_open()
            raise self.closed_error()
        self.driver.engine.send(stream_id, self._heads[unidirectional])
        # With the first bytes, if they come at once.
        self.driver.wake_later()
        return stream_id

    async def _wait_turn(self, credit: SessionCredit, kind: int) -> None:
        queue = self._openers[kind]
        if not queue and credit.may_open(kind):
            credit.opened(kind)
            return
        if self._may_complain():
            self._tell(credit.streams_blocked(kind))
        turn = _Turn()
        queue.append(turn)
        try:
            await turn.wakeup.park()
        except BaseException:
            if turn.granted:
                credit.opened(kind, -1)
                self._grant_turns()
            else:
                queue.remove(turn)
            raise
        if not turn.granted:
            self.check_open()
            raise self.closed_error()

    def _grant_turns(self) -> None:
        credit = self._credit
        if credit is None:
            return
        for kind, queue in enumerate(self._openers):
            while queue and credit.may_open(kind):
                turn = queue.pop(0)
                turn.granted = True
                credit.opened(kind)
                turn.wakeup.wake()

    def adopt(self, stream_id: int, stream: Sink) -> None:
        # One that this side has opened.
        assert isinstance(stream, SendStream)
        self.streams[stream_id] = stream
        self.driver.adopt(stream_id, stream)
        self._follow(stream_id)
        if self._credit is not None and isinstance(stream, ReceiveStream):
            self._counted[stream_id] = 0
        if self.base_priority:
            self.prioritise(stream_id, 0)

    def _follow(self, stream_id: int) -> None:
        self._sending.add(stream_id)
        self._charged.add(stream_id)
        if len(self._sending) >= self._sweep_at:
            self._sending = set(filter(self.driver.engine.is_undelivered, self._sending))
            self._charged &= self._sending
            self._sweep_at = _SWEEP + 2 * len(self._sending)

    def stream_opened(self, stream_id: int, head: StreamHead, *, fin: bool) -> None:
        """The peer has opened a stream of this session."""
        if self._credit is not None:
            try:
                self._credit.peer_opened(stream_id >> 1 & 1)
            except CreditViolation:
                self._violated()
        if self.end is not None:
            refuse_stream(self.driver, stream_id, head, Http3Code.WT_SESSION_GONE, fin=fin)
            return
        if self._credit is not None:
            self._counted[stream_id] = 0
        if stream_id & 2:
            receive_stream = ReceiveStream(self, stream_id)
            self.streams[stream_id] = receive_stream
            self.driver.adopt(stream_id, receive_stream)
            self.incoming_receive_streams.arrived(receive_stream)
        else:
            stream = Stream(self, stream_id)
            self.streams[stream_id] = stream
            self.driver.adopt(stream_id, stream)
            self._follow(stream_id)
            if self.base_priority:
                self.prioritise(stream_id, 0)
            self.incoming_streams.arrived(stream)
        taker = self.driver.sink(stream_id)
        if taker is not None:
            if head.rest or fin:
                taker.arrived(head.rest, fin=fin)
        else:
            # Refused at once: nobody takes streams any more.
            self.driver.discard(stream_id, len(head.rest))
            if fin:
                self.driver.settle(stream_id)

    # ---- the end

    def shut(self, code: int, reason: str) -> None:
        """Close the session now, if it has not ended."""
        if self.end is None:
            capsule = self._protocol.close(code, reason)
            kind = ConnectionClosedError if code else ConnectionClosedOK
            self._ended(kind(code, reason, remote=False))
            if capsule is not None:
                self._tell(capsule, end=True)
                # A peer that never answers must not keep the stream.
                self._take_back = self._later(self.settings.close_timeout, self._stop_listening)

    def asked_to_drain(self) -> None:
        """The peer, or the server that shuts down, would like the session to come to its end."""
        self.draining = True
        self._changed.unpark_all()

    def set_priority(self, priority: Priority) -> None:
        """How urgent the session is to the client."""
        change = priority.base - self.base_priority
        self.base_priority = priority.base
        # Those that were left and are still being sent, too.
        for stream_id in self._sending:
            self.driver.prioritise(stream_id, self.driver.engine.priority(stream_id) + change)

    def _stop_listening(self) -> None:
        self._stream.stop(Http3Code.REQUEST_CANCELLED)

    def drain_peer(self) -> None:
        """Ask the peer to come to an end."""
        self._tell(self._protocol.drain())

    def drain_both(self) -> None:
        """The server shuts down: the session is to come to its end, by whichever side."""
        self.drain_peer()
        self.asked_to_drain()

    def _violated(self) -> None:
        for event in self._protocol.violated():
            self._handle(event)

    def _ended_by_peer(self, event: SessionEnded) -> None:
        if event.error is not None:
            # Both directions: a browser takes a session with one of them for open.
            self._stream.reject(event.error)
            if self.end is None:
                self._ended(ConnectionLost(0, failure(event.error), remote=True))
            return
        if self.end is None:
            kind = ConnectionClosedError if event.code else ConnectionClosedOK
            self._ended(kind(event.code, event.reason, remote=True))
        self._tell(b"", end=True)

    def _ended(self, end: ConnectionClosed) -> None:
        self.end = end
        driver = self.driver
        for stream_id, stream in list(self.streams.items()):
            if driver.end is None:
                driver.stop(stream_id, Http3Code.WT_SESSION_GONE)
                driver.release(stream_id)
            stream.lost(end)
            rest = stream.orphan() if isinstance(stream, ReceiveStream) else 0
            if rest and driver.end is None:
                driver.discard(stream_id, rest)
                driver.settle(stream_id)
        if driver.end is None:
            for stream_id in self._sending:
                self._reset(stream_id, Http3Code.WT_SESSION_GONE)
        self.streams.clear()
        self._put_off.clear()
        self._charged.clear()
        self._sending.clear()
        self._counted.clear()
        if self._credit is not None:
            self._credit.over()
        for part in (self.datagrams, self.incoming_streams, self.incoming_receive_streams):
            part.lost(end)
        for queue in self._openers:
            while queue:
                queue.pop(0).wakeup.wake()
        driver.openers.give_up(self)
        self._changed.unpark_all()
        if self.settings.cancel_on_close and (end.remote or self.is_peers_fault):
            self.cancel_scope.cancel()

    async def wait_changed(self) -> None:
        """Wait until something happens to the session. A checkpoint."""
        await self._changed.park()

    async def wait_delivered(self) -> None:
        """Wait until all that was ended or reset is delivered, or the session has ended. A checkpoint."""
        await trio.lowlevel.checkpoint()
        is_ending = self.driver.engine.is_ending
        while self.end is None and any(map(is_ending, self._sending)):
            await self.driver.wait_changed()
