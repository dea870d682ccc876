"""Where a topic's messages go: one kind of outlet for each kind of carrier.

A message becomes a `Parcel` once, and the parcel remembers every form that a carrier has asked for, so a frame is made once
however many subscribers get it.

An outlet is offered each parcel synchronously, and says whether it took it. What it has no room for waits in the
subscription, whose writer calls `serve`; from then on the outlet is offered nothing until all of that is gone, so the order
stays right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from enum import Enum, auto
from typing import Any, ClassVar, Final, Literal, Protocol, TypeAlias

import trio

from .._errors import ConnectionClosed, DatagramTooLarge, StreamReset
from .._protocol.frames import CloseCode
from .._quic.connection import Connection
from .._quic.datagrams import Datagrams
from .._quic.endings import error_code
from .._quic.send_stream import SendStream
from .._websocket.websocket import WebSocket
from .._webtransport.session import WebTransportSession
from ._framing import MAX_LENGTH, frame

__all__ = [
    "TOO_SLOW",
    "TOO_SLOW_CODE",
    "Offer",
    "Outlet",
    "Parcel",
    "Subscriber",
    "Supply",
    "Via",
    "outlet_for",
]

#: What the peer of a subscriber that was too slow is told, whatever the carrier; the code is that of RFC 6455 section 7.4.1.
TOO_SLOW: Final = "too slow"
TOO_SLOW_CODE: Final = int(CloseCode.POLICY_VIOLATION)
# Where the carrier does not say how long a goodbye may take, in seconds.
_PATIENCE: Final = 5.0

#: How messages go over a session.
Via: TypeAlias = Literal["stream", "streams", "datagrams"]
#: What messages can go to.
Subscriber: TypeAlias = (
    WebSocket
    | WebTransportSession
    | Connection
    | Datagrams
    | trio.abc.SendStream
    | trio.abc.SendChannel[Any]
)


class Parcel:
    """A message, in every form that was asked for so far.

    Args:
        value: the message as it was published.
        payload: the message as bytes; None where no subscriber needs that.
        text: whether those are text.

    Attributes:
        frame: the WebSocket frame that servers' connections share.
        size: bytes, for the limits of queues: of the payload; without one, of text as UTF-8, and 0 for other objects.

    Raises:
        ValueError: it is too long for a length prefix.
    """

    __slots__ = ("_prefixed", "frame", "payload", "size", "text", "value")

    def __init__(self, value: Any, payload: bytes | None, *, text: bool) -> None:
        self.value: Any = value
        self.payload: bytes = b"" if payload is None else payload
        self.text: bool = text
        self.frame: list[bytes] | None = None
        self._prefixed: bytes | None = None
        self.size: int = _size(value if payload is None else payload)
        if self.size > MAX_LENGTH:
            raise ValueError(f"a message has {MAX_LENGTH} bytes at most, not {self.size}")

    @property
    def prefixed(self) -> bytes:
        """The message as a `MessageChannel` on the other side reads it."""
        if self._prefixed is None:
            self._prefixed = frame(self.payload)
        return self._prefixed


def _size(value: object) -> int:
    if isinstance(value, str):
        # Text that stays in this process need not be valid UTF-8.
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    return len(value) if isinstance(value, bytes) else 0


class Offer(Enum):
    """What became of an offer."""

    TAKEN = auto()
    #: there is no room now
    FULL = auto()
    #: it can never be sent there, and the next one perhaps can
    UNFIT = auto()
    #: nothing can be sent there any more
    GONE = auto()


class Supply(Protocol):
    """What an outlet sees of a subscription: the parcels that wait."""

    @property
    def waiting(self) -> bool:
        """Whether there are some."""

    def take(self) -> Parcel:
        """The next one; it is under way from now on."""

    def delivered(self) -> None:
        """The one under way is the carrier's."""


class Outlet(ABC):
    """Where the messages of a subscription go.

    Attributes:
        is_direct: `offer` may take parcels; otherwise all of them go through `serve`.
        never_waits: there is always room, because the carrier drops by itself.
        encodes: it needs parcels' payloads.
        patience: how long what waits may take at the end, in seconds.
    """

    __slots__ = ()

    is_direct: ClassVar[bool] = False
    never_waits: ClassVar[bool] = False
    encodes: ClassVar[bool] = True

    @property
    def patience(self) -> float:
        return _PATIENCE

    async def open(self) -> None:
        """The subscription's block begins. A checkpoint."""
        await trio.lowlevel.checkpoint()

    async def close(self, exc: BaseException | None, *, complete: bool) -> None:  # noqa: B027
        """The subscription's block ends, with this exception; ``complete`` says that all was sent."""

    @abstractmethod
    def offer(self, parcel: Parcel) -> Offer:
        """Take a parcel if that can be done at once."""

    async def serve(self, supply: Supply) -> None:
        """Send all that waits.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: nothing can be sent any more.
        """
        raise TypeError("nothing ever waits here")

    def cut(self, supply: Supply) -> None:  # noqa: B027
        """The subscriber was too slow: what of parting needs no waiting."""

    async def part(self) -> None:
        """The subscriber was too slow, and what waited has been sent: end what carries it. May be cancelled."""
        await trio.lowlevel.checkpoint()


class WebSocketOutlet(Outlet):
    """A WebSocket, client or server side."""

    __slots__ = ("_connection",)

    is_direct = True

    def __init__(self, websocket: WebSocket) -> None:
        self._connection = websocket._connection

    @property
    def patience(self) -> float:
        return self._connection.settings.close_timeout

    def offer(self, parcel: Parcel) -> Offer:
        connection = self._connection
        if connection.send_error() is not None:
            return Offer.GONE
        if not connection.may_send_now and connection.turns.must_queue:
            return Offer.FULL
        self._send(parcel)
        return Offer.TAKEN

    def _send(self, parcel: Parcel) -> None:
        made = self._connection.send_prepared(parcel.payload, parcel.text, parcel.frame)
        if made is not None:
            parcel.frame = made

    async def serve(self, supply: Supply) -> None:
        connection = self._connection
        while supply.waiting:
            waited = await connection.turns.wait_turn()
            try:
                error = connection.send_error()
                if error is not None:
                    raise error
                limit = connection.settings.write_limit
                while supply.waiting and connection.outbox.size < limit:
                    self._send(supply.take())
                    supply.delivered()
            finally:
                if waited:
                    connection.turns.pass_on()

    def cut(self, supply: Supply) -> None:
        connection = self._connection
        if connection.send_error() is None and not connection.turns.fragmenting:
            # It was accepted, so it goes before the Close frame, which ends the connection in bounded time.
            while supply.waiting:
                self._send(supply.take())
                supply.delivered()
        connection.fail(CloseCode.POLICY_VIOLATION, TOO_SLOW)


class FramedOutlet(Outlet):
    """Any stream, with a length before each message."""

    __slots__ = ("_cut", "_stream")

    _stream: trio.abc.SendStream

    def __init__(self) -> None:
        # It was broken off in the middle of a message: what followed would be taken for the rest of that.
        self._cut = False

    async def serve(self, supply: Supply) -> None:
        stream = self._stream
        while supply.waiting:
            # The message is chosen when there is room: a queue that drops may have changed by then.
            await stream.wait_send_all_might_not_block()
            framed = supply.take().prefixed
            try:
                await stream.send_all(framed)
            except (trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
                raise  # nothing of it was sent, or nothing can follow
            except BaseException:
                self._cut = True
                raise
            supply.delivered()


class StreamOutlet(FramedOutlet):
    """A stream of our own.

    Args:
        stream: the stream.
    """

    __slots__ = ()

    _stream: SendStream

    is_direct = True

    def __init__(self, stream: SendStream) -> None:
        super().__init__()
        self._stream = stream

    @property
    def patience(self) -> float:
        return self._stream._carrier.settings.close_timeout

    def offer(self, parcel: Parcel) -> Offer:
        stream = self._stream
        if stream._send_end is not None:
            return Offer.GONE
        carrier, stream_id, data = stream._carrier, stream._stream_id, parcel.prefixed
        if stream._sending or carrier.room(stream_id) < len(data):
            return Offer.FULL
        carrier.send(stream_id, data)
        carrier.push()
        return Offer.TAKEN

    async def close(self, exc: BaseException | None, *, complete: bool) -> None:
        # The stream knows better: a message of which no byte was sent has cut nothing.
        if self._cut and self._stream._cut and self._stream._send_end is None:
            await self._reset(exc)

    async def _reset(self, exc: BaseException | None) -> None:
        carrier = self._stream._carrier
        code = carrier.settings.failed_code if exc is None else error_code(exc, carrier)
        self._stream.reset(code)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def part(self) -> None:
        self._stream.reset(TOO_SLOW_CODE)
        await trio.lowlevel.checkpoint()


class SessionStreamOutlet(StreamOutlet):
    """One stream of a session's for all messages, with a length before each.

    Args:
        session: the session, or the QUIC connection.
    """

    __slots__ = ("_session",)

    def __init__(self, session: WebTransportSession | Connection) -> None:
        # The stream comes with the block.
        FramedOutlet.__init__(self)
        self._session = session

    async def open(self) -> None:
        self._stream = await self._session.open_send_stream().__aenter__()
        # The subscription's block is the stream's.
        self._stream.cancel_scope.__exit__(None, None, None)

    async def close(self, exc: BaseException | None, *, complete: bool) -> None:
        if exc is None and complete:
            await self._stream.aclose()
        else:
            await self._reset(exc)

    async def part(self) -> None:
        try:
            with suppress(ConnectionClosed):
                await self._stream.send_eof()
        finally:
            await self._session.aclose(TOO_SLOW_CODE, TOO_SLOW)  # noqa: ASYNC102 - cancelled, it closes at once


class SessionStreamsOutlet(Outlet):
    """A stream of a session's for each message.

    Args:
        session: the session, or the QUIC connection.
    """

    __slots__ = ("_session",)

    def __init__(self, session: WebTransportSession | Connection) -> None:
        self._session = session

    @property
    def patience(self) -> float:
        return self._session.datagrams._carrier.settings.close_timeout

    def offer(self, parcel: Parcel) -> Offer:
        return Offer.FULL if self._session.closed is None else Offer.GONE

    async def serve(self, supply: Supply) -> None:
        while supply.waiting:
            # The message is chosen when the peer lets us open the stream: a queue that drops may have changed by then.
            async with self._session.open_send_stream() as stream:
                with suppress(StreamReset):  # the peer does not want this one
                    await stream.send_all(supply.take().payload, eof=True)
            supply.delivered()

    async def part(self) -> None:
        await self._session.aclose(TOO_SLOW_CODE, TOO_SLOW)


class DatagramsOutlet(Outlet):
    """A message in each datagram.

    Args:
        datagrams: the datagrams.
    """

    __slots__ = ("_datagrams",)

    is_direct = True
    never_waits = True

    def __init__(self, datagrams: Datagrams) -> None:
        self._datagrams = datagrams

    def offer(self, parcel: Parcel) -> Offer:
        try:
            self._datagrams.send_nowait(parcel.payload)
        except DatagramTooLarge:
            return Offer.UNFIT
        except (ConnectionClosed, trio.ClosedResourceError):
            return Offer.GONE
        return Offer.TAKEN


class ForeignStreamOutlet(FramedOutlet):
    """Any other stream of Trio's.

    Args:
        stream: the stream.
    """

    __slots__ = ()

    def __init__(self, stream: trio.abc.SendStream) -> None:
        super().__init__()
        self._stream = stream

    def offer(self, parcel: Parcel) -> Offer:
        return Offer.FULL

    async def close(self, exc: BaseException | None, *, complete: bool) -> None:
        if self._cut:
            await trio.aclose_forcefully(self._stream)

    async def part(self) -> None:
        await trio.aclose_forcefully(self._stream)


class ChannelOutlet(Outlet):
    """Any channel of Trio's: it gets messages as they were published.

    Args:
        channel: the channel.
    """

    __slots__ = ("_channel",)

    encodes = False

    def __init__(self, channel: trio.abc.SendChannel[Any]) -> None:
        self._channel = channel

    def offer(self, parcel: Parcel) -> Offer:
        return Offer.FULL

    async def serve(self, supply: Supply) -> None:
        while supply.waiting:
            await self._channel.send(supply.take().value)
            supply.delivered()

    async def part(self) -> None:
        await trio.aclose_forcefully(self._channel)


def outlet_for(session: Subscriber, via: Via | None) -> Outlet:
    """The outlet to a subscriber.

    Args:
        session: the subscriber.
        via: how messages go over a session; None for the one way that there is.

    Raises:
        TypeError: it cannot get messages.
        ValueError: there is no such way to it.
    """
    if isinstance(session, WebTransportSession | Connection):
        if via is None or via == "stream":
            return SessionStreamOutlet(session)
        if via == "streams":
            return SessionStreamsOutlet(session)
        if via == "datagrams":
            return DatagramsOutlet(session.datagrams)
        raise ValueError(f'via is "stream", "streams" or "datagrams", not {via!r}')
    if via is not None:
        raise ValueError(f"there is one way only to a {type(session).__name__}: leave via out")
    if isinstance(session, WebSocket):
        return WebSocketOutlet(session)
    if isinstance(session, Datagrams):
        return DatagramsOutlet(session)
    if isinstance(session, SendStream):
        return StreamOutlet(session)
    if isinstance(session, trio.abc.SendStream):
        return ForeignStreamOutlet(session)
    if isinstance(session, trio.abc.SendChannel):
        return ChannelOutlet(session)
    raise TypeError(
        "a subscriber is a WebSocket, a session, a connection, datagrams, a stream, a channel, or None, "
        f"not {type(session).__name__}"
    )
