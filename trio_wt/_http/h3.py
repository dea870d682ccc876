"""HTTP/3 on a QUIC connection: which stream is what, and where its bytes go.

General theory of operation:

`Http3` stands on a connection's driver. Streams that the peer opens are read up to their heads, and then belong to whoever they
are for: the protocol's own streams to `Http3Protocol`, requests to `RequestStream`, and WebTransport's to a router that
the layer above gives. All of that happens synchronously, in the endpoint's reader; what violates the protocol closes the
connection, and nothing of it is an exception there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import trio

from .._errors import ConnectionClosed
from .._protocol.http3 import (
    GoawayReceived,
    Http3Event,
    Http3Protocol,
    PriorityUpdated,
    SettingsReceived,
)
from .._protocol.http3_codes import Http3Code, Http3Error
from .._protocol.http3_fields import Fields
from .._protocol.stream_heads import StreamHead, StreamHeadReader, StreamType
from .._quic.upper import Upper
from .request_stream import RequestStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._quic.driver import Driver

__all__ = ["Http3", "SessionRouter"]

_GOING_AWAY = "the server takes no more requests (GOAWAY)"


class SessionRouter(ABC):
    """What takes WebTransport's streams and datagrams."""

    @abstractmethod
    def stream_opened(self, stream_id: int, head: StreamHead, *, fin: bool) -> None:
        """The peer has opened a stream of a session: `Driver.adopt` what takes it in, or refuse it."""

    @abstractmethod
    def abandoned(self, stream_id: int) -> None:
        """The peer has stopped a stream, of a session's perhaps, that the application is done with."""

    @abstractmethod
    def datagram_arrived(self, stream_id: int, data: bytes) -> None:
        """A datagram has come that belongs to the session on a stream."""

    @abstractmethod
    def request_opened(self, stream_id: int) -> None:
        """A request has begun to come, which may ask for a session."""

    @abstractmethod
    def request_over(self, stream_id: int) -> None:
        """It has not become one, or is none any more."""

    @abstractmethod
    def priority_updated(self, stream_id: int, value: bytes) -> None:
        """A client has thought again about a request's priority (RFC 9218 section 7.2)."""

    @abstractmethod
    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended."""

    @abstractmethod
    def shutting_down(self) -> None:
        """The server is to come to its end."""

    @abstractmethod
    def give_up(self, reason: str) -> None:
        """Close all sessions."""


class Http3(Upper):
    """HTTP/3 on a connection.

    Args:
        driver: the connection.
        protocol: the pure part.
        router: makes what takes WebTransport's streams.

    Attributes:
        protocol, driver, router: see there.
        going_away: no more requests are taken, by one side or the other.
    """

    clean_code: ClassVar[int] = Http3Code.NO_ERROR
    is_gentle: ClassVar[bool] = True

    def __init__(
        self,
        driver: Driver,
        protocol: Http3Protocol,
        router: Callable[[Http3], SessionRouter],
    ) -> None:
        self.driver: Driver = driver
        self.protocol: Http3Protocol = protocol
        self.going_away: bool = False
        # Requests that wait for the server to serve them; as many as the peer may have streams.
        self._requests: list[RequestStream] = []
        # Requests that this side has sent.
        self._unanswered: dict[int, RequestStream] = {}
        self._serves_no_more = False
        self._control_id = -1
        # Above all requests so far; the first that is not taken any more, once that was said.
        self._next_request = 0
        self._changed = trio.lowlevel.ParkingLot()
        self.router: SessionRouter = router(self)

    # ---- the connection

    def ready(self) -> None:
        """Say who we are (RFC 9114 section 6.2.1)."""
        if self.driver.engine.openable(unidirectional=True) < 1:
            self.fail(Http3Error(Http3Code.GENERAL_PROTOCOL_ERROR, "no stream to control with"))
            return
        self._control_id = self.driver.engine.open(unidirectional=True)
        self.driver.send(self._control_id, self.protocol.opening())
        self.driver.wake()

    def fail(self, error: Http3Error) -> None:
        """The peer has violated the protocol: close the connection."""
        if self.driver.end is None:
            self.driver.is_peers_fault = True
            self.driver.shut(error.code, error.reason)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What in the block violates the protocol closes the connection."""
        try:
            yield
        except Http3Error as exc:
            self.fail(exc)

    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended."""
        self.router.lost(end)
        self._changed.unpark_all()

    async def wait_settings(self) -> dict[int, int]:
        """The peer's SETTINGS, once they have come. A checkpoint.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        await trio.lowlevel.checkpoint()
        while self.protocol.peer_settings is None:
            self.driver.check_open()
            await self._changed.park()
        return self.protocol.peer_settings

    def has_begun(self, stream_id: int) -> bool:
        """Whether a request was sent, or has come, on a stream."""
        # It may have been overtaken by one with a higher number.
        sink = self.driver.sink(stream_id)
        return stream_id < self._next_request and not isinstance(sink, _Undecided)

    @property
    def is_settled(self) -> bool:
        """Whether the peer's SETTINGS have come."""
        return self.protocol.peer_settings is not None

    def go_away(self) -> None:
        """Take no more requests than have come (RFC 9114 section 5.2)."""
        if not self.going_away and self._control_id >= 0:
            # A client's names a push, of which there are none.
            first = 0 if self.driver.is_client else self._next_request
            self.driver.send(self._control_id, self.protocol.encode_goaway(first))
            self.driver.wake()
        self.going_away = True
        self._changed.unpark_all()

    def shutting_down(self) -> None:
        """The server is to come to its end: GOAWAY, and sessions are told to drain."""
        self.go_away()
        self.router.shutting_down()

    def give_up(self, reason: str) -> None:
        """Sessions are closed; the connection is when its handlers have ended."""
        self.router.give_up(reason)

    # ---- requests

    async def request(self, fields: Fields, *, head_request: bool = False) -> RequestStream:
        """Send a request's head; its stream, to be left as a block. Waits while the peer's limit on streams is reached.

        Raises:
            ConnectionClosed: the connection has ended.
            trio.ClosedResourceError: it was closed on this side, or the server takes no more requests.
        """
        if self.going_away:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError(_GOING_AWAY)
        driver = self.driver
        stream_id = await driver.open(unidirectional=False)
        if self.going_away:  # meanwhile
            driver.reset(stream_id, Http3Code.REQUEST_CANCELLED)
            raise trio.ClosedResourceError(_GOING_AWAY)
        self._next_request = max(self._next_request, stream_id + 4)
        stream = RequestStream(self, stream_id)
        driver.adopt(stream_id, stream)
        self._unanswered[stream_id] = stream
        driver.send(
            stream_id, self.protocol.encode_head(stream_id, fields, head_request=head_request)
        )
        driver.push()
        return stream

    async def next_request(self) -> RequestStream:
        """A request that a client has sent.

        Raises:
            trio.EndOfChannel: there will be no more.
        """
        await trio.lowlevel.checkpoint()
        while not self._requests:
            if self.driver.end is not None or self.going_away:
                self._serves_no_more = True
                raise trio.EndOfChannel
            await self._changed.park()
        return self._requests.pop(0)

    # ---- what arrives

    @property
    def has_datagrams(self) -> bool:
        """They wait for nobody here."""
        return False

    def opened(self, stream_id: int) -> None:
        """The peer has opened a stream: read on to see what it is."""
        self.driver.adopt(stream_id, _Undecided(self, stream_id))

    def abandoned(self, stream_id: int) -> None:
        """What was not sent of a stream will not be."""
        self.router.abandoned(stream_id)

    def datagram_arrived(self, data: bytes) -> None:
        """An HTTP Datagram (RFC 9297 section 2.1)."""
        with self.guard():
            stream_id, at = self.protocol.parse_datagram(data)
            self.router.datagram_arrived(stream_id, data[at:])

    def decided(self, stream_id: int, head: StreamHead, *, fin: bool) -> None:
        """It is known what a stream is.

        Raises:
            Http3Error: it must not be that.
        """
        kind, driver = head.kind, self.driver
        if kind is StreamType.SESSION:
            if head.session_id % 4:
                raise Http3Error(Http3Code.ID_ERROR, "a session that is no request")
            self.router.stream_opened(stream_id, head, fin=fin)
        elif kind is StreamType.REQUEST:
            self._request_opened(stream_id, head, fin=fin)
        elif kind is StreamType.UNKNOWN:
            # Of a kind that we do not know (RFC 9114 section 6.2.3).
            driver.stop(stream_id, Http3Code.STREAM_CREATION_ERROR)
            self.discard(stream_id, len(head.rest), fin=fin)
        elif kind is StreamType.PUSH:
            code = Http3Code.ID_ERROR if self.driver.is_client else Http3Code.STREAM_CREATION_ERROR
            raise Http3Error(code, "a push that was not allowed")
        else:
            self.protocol.open_critical(stream_id, kind)
            critical = _Critical(self, stream_id, kind)
            driver.adopt(stream_id, critical)
            critical.arrived(head.rest, fin=fin)

    def _request_opened(self, stream_id: int, head: StreamHead, *, fin: bool) -> None:
        if self.driver.is_client:
            raise Http3Error(Http3Code.STREAM_CREATION_ERROR, "a request from a server")
        stream = RequestStream(self, stream_id)
        stream.offer()
        self.driver.adopt(stream_id, stream)
        if self.going_away and stream_id >= self._next_request:
            stream.reject(Http3Code.REQUEST_REJECTED)
            stream.take()
            return
        self._next_request = max(self._next_request, stream_id + 4)
        self.router.request_opened(stream_id)
        stream.arrived(head.rest, fin=fin)

    def answered(self, stream_id: int) -> None:
        """A request has its answer, or nobody waits for it any more."""
        self._unanswered.pop(stream_id, None)

    def request_ready(self, stream: RequestStream) -> None:
        """A request's head has come."""
        if self._serves_no_more:
            # It was on its way when GOAWAY was said, and the client may send it again elsewhere (RFC 9114 section 5.2).
            self.router.request_over(stream.stream_id)
            stream.reject(Http3Code.REQUEST_REJECTED)
            stream.take()
            return
        self._requests.append(stream)
        self._changed.unpark_all()

    def discard(self, stream_id: int, count: int, *, fin: bool) -> None:
        """Nobody will take a stream that the peer has opened."""
        self.driver.release(stream_id)
        if count:
            self.driver.discard(stream_id, count)
        if fin:
            self.driver.settle(stream_id)

    def critical_events(self, events: list[Http3Event]) -> None:
        """What the peer says about the connection."""
        # Of many for one request the last one counts.
        priorities: dict[int, bytes] = {}
        for event in events:
            if isinstance(event, SettingsReceived):
                self._changed.unpark_all()
            elif isinstance(event, GoawayReceived) and self.driver.is_client:
                self.going_away = True
                for stream_id, stream in list(self._unanswered.items()):
                    if stream_id >= event.stream_id:
                        stream.will_not_be_answered()
                self.router.shutting_down()
                self._changed.unpark_all()
            elif isinstance(event, PriorityUpdated):
                priorities[event.stream_id] = event.value
        for stream_id, value in priorities.items():
            self.router.priority_updated(stream_id, value)


class _Undecided:
    """A stream of the peer's whose head has not come yet."""

    __slots__ = ("_http3", "_reader", "_stopped", "_stream_id")

    def __init__(self, http3: Http3, stream_id: int) -> None:
        self._http3 = http3
        self._stream_id = stream_id
        self._stopped: int | None = None
        self._reader = StreamHeadReader(unidirectional=bool(stream_id & 2))

    def arrived(self, data: bytes, *, fin: bool) -> None:
        http3, stream_id = self._http3, self._stream_id
        held = self._reader.held
        head = self._reader.feed(data)
        if head is not None:
            if head.kind is not StreamType.REQUEST:
                http3.driver.consume(stream_id, head.size)
            with http3.guard():
                http3.decided(stream_id, head, fin=fin)
            taker = http3.driver.sink(stream_id)
            if self._stopped is not None and taker is not None and taker is not self:
                taker.was_stopped(self._stopped)
        elif fin:
            # Too short to be anything (RFC 9114 section 6.2).
            if not stream_id & 2:
                http3.driver.reset(stream_id, Http3Code.REQUEST_INCOMPLETE)
            http3.discard(stream_id, held + len(data), fin=True)

    def was_reset(self, code: int) -> None:
        http3, stream_id = self._http3, self._stream_id
        http3.driver.release(stream_id)
        http3.driver.settle(stream_id)
        if not stream_id & 2:
            http3.driver.reset(stream_id, Http3Code.REQUEST_CANCELLED)

    def was_stopped(self, code: int) -> None:
        # For whoever takes it.
        self._stopped = code

    def lost(self, end: ConnectionClosed) -> None:
        """Nobody waits for it."""


class _Critical:
    """A stream that must last as long as the connection: the peer's control stream, or one of QPACK's."""

    __slots__ = ("_http3", "_kind", "_stream_id")

    def __init__(self, http3: Http3, stream_id: int, kind: StreamType) -> None:
        self._http3 = http3
        self._stream_id = stream_id
        self._kind = kind

    def arrived(self, data: bytes, *, fin: bool) -> None:
        http3 = self._http3
        http3.driver.consume(self._stream_id, len(data))
        with http3.guard():
            http3.critical_events(http3.protocol.receive_critical(self._kind, data, fin=fin))

    def was_reset(self, code: int) -> None:
        with self._http3.guard():
            self._http3.protocol.critical_lost(self._kind)

    def was_stopped(self, code: int) -> None:
        """A stream of the peer's has nothing of ours."""

    def lost(self, end: ConnectionClosed) -> None:
        """Nobody waits for it."""
