"""HTTP/3 (RFC 9114) as a pure object: takes the bytes of streams, gives events and what to send.

General theory of operation:

Whoever carries it reads the heads of the streams that the peer opens (`stream_heads`) and keeps WebTransport's own streams to
himself. All other bytes come here, in order, stream by stream. What violates the protocol of a connection raises
`Http3Error`, with the code to close it with; what is wrong with one message is an event of its stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from . import varint
from .http3_codes import Http3Code, Http3Error
from .http3_fields import (
    DecoderInstructions,
    EncoderInstructions,
    Fields,
    MalformedMessage,
    Qpack,
    RequestHead,
    ResponseHead,
    TooManyFields,
    content_length,
    parse_request,
    parse_response,
    parse_trailers,
)
from .http3_frames import FrameReader, FrameType
from .http3_settings import MAX_SETTINGS, encode_settings, parse_settings
from .records import OVERSIZE, encode_record, encode_record_head
from .stream_heads import StreamType

__all__ = [
    "Content",
    "ContentEnded",
    "GoawayReceived",
    "Http3Event",
    "Http3Protocol",
    "InterimResponse",
    "MessageFailed",
    "PriorityUpdated",
    "RequestReceived",
    "ResponseReceived",
    "SettingsReceived",
    "TrailersReceived",
]

_MAX_QUARTER_ID: Final = 2**60 - 1
# Longer than any number, so that what is not one is found to be none.
_MAX_INTEGER_FRAME: Final = 64
_MAX_PRIORITY: Final = 1024
# Interim responses to one request.
_MAX_INTERIM: Final = 32
# A type that is kept free for nothing in particular, so that peers stay used to it (RFC 9114 section 7.2.8).
_GREASE: Final = 0x1F * 0x3B + 0x21


@dataclass(slots=True)
class SettingsReceived:
    """The peer's SETTINGS."""

    settings: dict[int, int]


@dataclass(slots=True)
class RequestReceived:
    """A request's head."""

    stream_id: int
    head: RequestHead


@dataclass(slots=True)
class ResponseReceived:
    """A final response's head."""

    stream_id: int
    head: ResponseHead


@dataclass(slots=True)
class InterimResponse:
    """A response with a status from 100 to 199."""

    stream_id: int
    head: ResponseHead


@dataclass(slots=True)
class Content:
    """A piece of a message's content."""

    stream_id: int
    data: bytes


@dataclass(slots=True)
class TrailersReceived:
    """The fields behind a message's content."""

    stream_id: int
    fields: Fields


@dataclass(slots=True)
class ContentEnded:
    """A message is complete."""

    stream_id: int


@dataclass(slots=True)
class MessageFailed:
    """A message cannot be used.

    Attributes:
        stream_id: its stream, on which nothing more will be looked at.
        code: what to stop the stream with.
        status: what a server may answer.
        reason: for people.
    """

    stream_id: int
    code: Http3Code
    status: int
    reason: str


@dataclass(slots=True)
class GoawayReceived:
    """The peer takes no more requests from this stream id on (RFC 9114 section 5.2)."""

    stream_id: int


@dataclass(slots=True)
class PriorityUpdated:
    """A client has thought again about a request's priority (RFC 9218 section 7.2)."""

    stream_id: int
    value: bytes


Http3Event: TypeAlias = (
    SettingsReceived
    | RequestReceived
    | ResponseReceived
    | InterimResponse
    | Content
    | TrailersReceived
    | ContentEnded
    | MessageFailed
    | GoawayReceived
    | PriorityUpdated
)


class Phase(Enum):
    """How far a message has come."""

    HEAD = auto()
    CONTENT = auto()
    #: what CONNECT has opened carries DATA only (RFC 9114 section 4.4)
    TUNNEL = auto()
    TRAILERS = auto()
    ENDED = auto()


class Step(Enum):
    """What a frame, or the end of a stream, means for a message."""

    HEAD = auto()
    CONTENT = auto()
    TRAILERS = auto()
    END = auto()
    INCOMPLETE = auto()
    UNEXPECTED = auto()


_END: Final = -3
#: RFC 9114 section 4.1
MESSAGE_STEPS: Final[dict[tuple[Phase, int], Step]] = {
    (Phase.HEAD, FrameType.HEADERS): Step.HEAD,
    (Phase.HEAD, FrameType.DATA): Step.UNEXPECTED,
    (Phase.HEAD, _END): Step.INCOMPLETE,
    (Phase.CONTENT, FrameType.HEADERS): Step.TRAILERS,
    (Phase.CONTENT, FrameType.DATA): Step.CONTENT,
    (Phase.CONTENT, _END): Step.END,
    (Phase.TUNNEL, FrameType.HEADERS): Step.UNEXPECTED,
    (Phase.TUNNEL, FrameType.DATA): Step.CONTENT,
    (Phase.TUNNEL, _END): Step.END,
    (Phase.TRAILERS, FrameType.HEADERS): Step.UNEXPECTED,
    (Phase.TRAILERS, FrameType.DATA): Step.UNEXPECTED,
    (Phase.TRAILERS, _END): Step.END,
}


class _Message:
    """The message that comes in on a stream."""

    __slots__ = ("expected", "interim", "phase", "reader", "received")

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self.phase = Phase.HEAD
        # What Content-Length says, and what has come.
        self.expected: int | None = None
        self.received = 0
        self.interim = 0


class _ControlReader(FrameReader):
    """The peer's control stream, on which SETTINGS must come first, also before what nobody knows (RFC 9114 section 6.2.1)."""

    __slots__ = ("_begun",)

    def __init__(self, held: Mapping[int, int], *, takes_data: bool) -> None:
        super().__init__(held, takes_data=takes_data)
        self._begun = False

    def check(self, kind: int) -> None:
        if not self._begun and kind != FrameType.SETTINGS:
            raise Http3Error(Http3Code.MISSING_SETTINGS, "SETTINGS must come first")
        self._begun = True
        super().check(kind)


class _ResponseReader(FrameReader):
    """A stream that a server answers on."""

    __slots__ = ()

    def check(self, kind: int) -> None:
        if kind == FrameType.PUSH_PROMISE:
            # No push was allowed (RFC 9114 section 7.2.5).
            raise Http3Error(Http3Code.ID_ERROR, "a push that was not allowed")
        super().check(kind)


class Http3Protocol:
    """One side of an HTTP/3 connection.

    Args:
        client: this side's role.
        settings: what to send as SETTINGS.
        max_field_section: the largest field section to read, in bytes as RFC 9114 section 4.2.2 counts them.
        max_fields: how many lines it may have.

    Attributes:
        peer_settings: the peer's SETTINGS; None before they came.
        peer_goaway: from which stream id on the peer takes no requests; None if it takes all.
    """

    def __init__(
        self,
        *,
        client: bool,
        settings: Mapping[int, int],
        max_field_section: int,
        max_fields: int,
    ) -> None:
        self.peer_settings: dict[int, int] | None = None
        self.peer_goaway: int | None = None
        self._client = client
        self._settings = settings
        self._qpack = Qpack(max_field_section, max_fields)
        self._encoder_instructions = EncoderInstructions()
        self._decoder_instructions = DecoderInstructions()
        self._held_on_requests: dict[int, int] = {FrameType.HEADERS: max_field_section}
        self._messages: dict[int, _Message] = {}
        # HEAD requests have responses without content, whatever Content-Length says.
        self._heads_only: set[int] = set()
        # What a server accepts of these carries DATA only (RFC 9114 section 4.4).
        self._connects: set[int] = set()
        held: dict[int, int] = {
            FrameType.SETTINGS: MAX_SETTINGS,
            FrameType.GOAWAY: _MAX_INTEGER_FRAME,
        }
        held[FrameType.CANCEL_PUSH] = _MAX_INTEGER_FRAME
        if not client:
            held[FrameType.MAX_PUSH_ID] = _MAX_INTEGER_FRAME
            held[FrameType.PRIORITY_UPDATE] = _MAX_PRIORITY
            held[FrameType.PRIORITY_UPDATE_PUSH] = _MAX_PRIORITY
        self._control = _ControlReader(held, takes_data=False)
        self._critical: dict[StreamType, int] = {}
        self._max_push_id = -1

    # ---- what to send

    def opening(self) -> bytes:
        """What the control stream begins with (RFC 9114 section 6.2.1)."""
        return (
            varint.encode(StreamType.CONTROL)
            + encode_record(FrameType.SETTINGS, encode_settings(self._settings))
            + encode_record(_GREASE, b"")
        )

    def encode_head(self, stream_id: int, fields: Fields, *, head_request: bool = False) -> bytes:
        """A HEADERS frame.

        Args:
            stream_id: the stream that it is for.
            fields: pseudo-header fields first, names in lower case.
            head_request: it is a HEAD request.
        """
        if head_request:
            self._heads_only.add(stream_id)
        if fields[:1] == [(b":method", b"CONNECT")]:
            self._connects.add(stream_id)
        return encode_record(FrameType.HEADERS, self._qpack.encode(fields))

    @staticmethod
    def encode_content_head(length: int) -> bytes:
        """What precedes so many bytes of content."""
        return encode_record_head(FrameType.DATA, length)

    @staticmethod
    def encode_goaway(stream_id: int) -> bytes:
        """A GOAWAY frame for the control stream (RFC 9114 section 5.2)."""
        return encode_record(FrameType.GOAWAY, varint.encode(stream_id))

    @staticmethod
    def encode_datagram_head(stream_id: int) -> bytes:
        """What precedes the payload of an HTTP Datagram (RFC 9297 section 2.1)."""
        return varint.encode(stream_id // 4)

    # ---- what arrives

    @staticmethod
    def parse_datagram(data: bytes) -> tuple[int, int]:
        """The stream that an HTTP Datagram belongs to, and where its payload begins.

        Raises:
            Http3Error: it is none.
        """
        head = varint.decode(data)
        if head is None or head[0] > _MAX_QUARTER_ID:
            raise Http3Error(Http3Code.DATAGRAM_ERROR, "a datagram of no stream")
        return 4 * head[0], head[1]

    def open_critical(self, stream_id: int, kind: StreamType) -> None:
        """The peer has opened its control stream, or one of QPACK's; its bytes go to `receive_critical`.

        Raises:
            Http3Error: it had one.
        """
        if kind in self._critical:
            raise Http3Error(
                Http3Code.STREAM_CREATION_ERROR, f"a second {kind.name.lower()} stream"
            )
        self._critical[kind] = stream_id

    def receive_critical(self, kind: StreamType, data: bytes, *, fin: bool) -> list[Http3Event]:
        """Bytes of one of these streams.

        Raises:
            Http3Error: they violate the protocol, or the stream has ended.
        """
        events: list[Http3Event] = []
        if kind is StreamType.CONTROL:
            for frame, payload in self._control.feed(data):
                events += self._receive_control(frame, payload)
        elif kind is StreamType.QPACK_ENCODER:
            self._encoder_instructions.feed(data)
        else:
            self._decoder_instructions.feed(data)
        if fin:
            self.critical_lost(kind)
        return events

    @staticmethod
    def critical_lost(kind: StreamType) -> None:
        """One of these streams was ended or reset, which must not be."""
        raise Http3Error(
            Http3Code.CLOSED_CRITICAL_STREAM, f"the {kind.name.lower()} stream was closed"
        )

    def _receive_control(self, frame: int, payload: bytes) -> Iterator[Http3Event]:
        if frame == OVERSIZE:
            raise Http3Error(Http3Code.EXCESSIVE_LOAD, "a control frame of too many bytes")
        if self.peer_settings is None:
            self.peer_settings = parse_settings(payload)
            yield SettingsReceived(self.peer_settings)
            return
        if frame == FrameType.SETTINGS:
            raise Http3Error(Http3Code.FRAME_UNEXPECTED, "a second SETTINGS")
        number = varint.decode(payload)
        if number is None:
            raise Http3Error(Http3Code.FRAME_ERROR, "a control frame that is cut off")
        if frame in (FrameType.PRIORITY_UPDATE, FrameType.PRIORITY_UPDATE_PUSH):
            if frame == FrameType.PRIORITY_UPDATE_PUSH or number[0] % 4:
                raise Http3Error(Http3Code.ID_ERROR, "a priority of no request")
            else:
                yield PriorityUpdated(number[0], payload[number[1] :])
            return
        if number[1] != len(payload):
            raise Http3Error(Http3Code.FRAME_ERROR, "a control frame with more than a number")
        if frame == FrameType.GOAWAY:
            yield self._receive_goaway(number[0])
        elif frame == FrameType.MAX_PUSH_ID:
            if number[0] < self._max_push_id:
                raise Http3Error(Http3Code.ID_ERROR, "MAX_PUSH_ID must not decrease")
            self._max_push_id = number[0]
        elif frame == FrameType.CANCEL_PUSH:
            raise Http3Error(Http3Code.ID_ERROR, "nothing is pushed here")

    def _receive_goaway(self, stream_id: int) -> GoawayReceived:
        # To a client it names a request; to a server a push, of which there are none.
        if self._client and stream_id % 4:
            raise Http3Error(Http3Code.ID_ERROR, "GOAWAY with the id of no request")
        if self.peer_goaway is not None and stream_id > self.peer_goaway:
            raise Http3Error(Http3Code.ID_ERROR, "GOAWAY must not increase")
        self.peer_goaway = stream_id
        return GoawayReceived(stream_id)

    # ---- messages

    def receive(self, stream_id: int, data: bytes, *, fin: bool) -> list[Http3Event]:
        """Bytes of a request's stream: requests for a server, responses for a client.

        Raises:
            Http3Error: they violate the protocol.
        """
        message = self._messages.get(stream_id)
        if message is None:
            kind = _ResponseReader if self._client else FrameReader
            reader = kind(self._held_on_requests, takes_data=True)
            message = self._messages[stream_id] = _Message(reader)
        events: list[Http3Event] = []
        if message.phase is Phase.ENDED:
            return events
        try:
            for frame, payload in message.reader.feed(data):
                event = self._receive_frame(stream_id, message, frame, payload)
                if event is not None:
                    events.append(event)
            if fin:
                events.append(self._end(stream_id, message))
        except MalformedMessage as exc:
            if exc.content:
                events.append(Content(stream_id, exc.content))
            failed = MessageFailed(stream_id, Http3Code.MESSAGE_ERROR, 400, str(exc))
            events.append(self._failed(message, failed))
        except TooManyFields as exc:
            failed = MessageFailed(stream_id, Http3Code.EXCESSIVE_LOAD, 431, str(exc))
            events.append(self._failed(message, failed))
        return events

    def held(self, stream_id: int) -> int:
        """How many bytes of a stream wait for the rest of a frame."""
        message = self._messages.get(stream_id)
        return 0 if message is None else message.reader.held

    def forget(self, stream_id: int) -> None:
        """Nothing more of a request's stream will be received, or is wanted."""
        self._messages.pop(stream_id, None)
        self._heads_only.discard(stream_id)
        self._connects.discard(stream_id)

    def _failed(self, message: _Message, event: MessageFailed) -> MessageFailed:
        message.phase = Phase.ENDED
        return event

    def _receive_frame(
        self, stream_id: int, message: _Message, frame: int, payload: bytes
    ) -> Http3Event | None:
        if message.phase is Phase.ENDED:
            return None
        # Nothing else is held that could be too long.
        kind = FrameType.HEADERS if frame == OVERSIZE else FrameType(frame)
        step = MESSAGE_STEPS[message.phase, kind]
        if step is Step.UNEXPECTED:
            raise Http3Error(Http3Code.FRAME_UNEXPECTED, f"{kind.name} where a message has none")
        if frame == OVERSIZE:
            raise TooManyFields("a field section of too many bytes")
        if step is Step.CONTENT:
            if not payload:
                return None
            message.received += len(payload)
            if message.expected is not None and message.received > message.expected:
                within = len(payload) - (message.received - message.expected)
                raise MalformedMessage("more content than Content-Length says", payload[:within])
            return Content(stream_id, payload)
        fields = self._qpack.decode(payload)
        if step is Step.TRAILERS:
            message.phase = Phase.TRAILERS
            return TrailersReceived(stream_id, parse_trailers(fields))
        if self._client:
            return self._receive_response(stream_id, message, parse_response(fields))
        request = parse_request(fields)
        message.phase = Phase.CONTENT
        if request.method == "CONNECT":
            message.phase = Phase.TUNNEL
        else:
            message.expected = content_length(request.fields)
        return RequestReceived(stream_id, request)

    def _receive_response(
        self, stream_id: int, message: _Message, response: ResponseHead
    ) -> Http3Event:
        if response.status < 200:
            message.interim += 1
            if message.interim > _MAX_INTERIM:
                raise MalformedMessage("too many interim responses")
            return InterimResponse(stream_id, response)
        message.phase = Phase.CONTENT
        if stream_id in self._connects and response.status < 300:
            message.phase = Phase.TUNNEL
        elif stream_id not in self._heads_only and response.status != 304:
            message.expected = content_length(response.fields)
        return ResponseReceived(stream_id, response)

    def _end(self, stream_id: int, message: _Message) -> Http3Event:
        if message.phase is Phase.ENDED:
            return ContentEnded(stream_id)
        if not message.reader.is_between:
            raise Http3Error(Http3Code.FRAME_ERROR, "a frame that is cut off")
        step = MESSAGE_STEPS[message.phase, _END]
        if step is Step.INCOMPLETE:
            code = Http3Code.REQUEST_INCOMPLETE
            return self._failed(message, MessageFailed(stream_id, code, 400, "no whole message"))
        if message.expected is not None and message.received < message.expected:
            raise MalformedMessage("less content than Content-Length says")
        message.phase = Phase.ENDED
        return ContentEnded(stream_id)
