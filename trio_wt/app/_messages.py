"""Typed messages over whatever carries them.

General theory of operation:

A codec makes bytes or text of a message, and back; it never waits. A link (`_message_carriers`) takes them from there to the
peer, and knows how to end what carries them. The channel stands between the two: it checks sizes, turns whatever a codec raises for
what has come into `InvalidMessage`, and decides what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, TypeVar

import trio

from .._protocol.frames import CloseCode
from ._codecs import Codec, check_codec, told
from ._framing import Oversized
from ._message_carriers import MessageCarrier, link_to
from ._message_errors import InvalidMessage, MessageTooLarge

__all__ = ["MessageChannel", "MessageStatistics"]

T = TypeVar("T")

_MAX_SIZE: Final = 2**20


@dataclass(frozen=True, slots=True)
class MessageStatistics:
    """Figures of a `MessageChannel`.

    Attributes:
        sent: how many messages were sent.
        received: how many valid ones were received.
        invalid: how many others.
        buffered: how many bytes of a stream were taken that no message was made of yet; a message and 64 KiB at most.
    """

    sent: int
    received: int
    invalid: int
    buffered: int


class MessageChannel(trio.abc.Channel[T]):
    """Typed messages over a WebSocket, a stream or datagrams.

    On a WebSocket a message is a message, and as a datagram it is a datagram. On a stream it is its length in bytes, as 4 bytes in
    network byte order, and then so many bytes. A stream of one direction makes a channel that only sends, or only receives.

    Several tasks may send; messages never mix. One task at a time may receive. Iterating gives messages until the carrier ends
    cleanly.

    The carrier has a block of its own as a rule, which says how it ends, and the channel needs none. Leaving the channel's
    block normally is `aclose`; leaving it by an exception or a cancellation ends the carrier at once, as its own block would:
    a WebSocket is closed with code 1011, and a stream is reset.

    Args:
        carrier: a `WebSocket`; a `Stream`, `SendStream`, `ReceiveStream`, or anything else with the methods of Trio's streams;
            `Datagrams`, or another channel of bytes. Nobody else may use it.
        codec: what makes bytes or text of messages, and back.
        max_size: the most bytes that a message may have, encoded. A WebSocket's own ``max_message_size`` acts before.
        invalid: what a message costs that is too large, or that the codec cannot read. "raise" costs that message: `receive`
            raises `InvalidMessage`, and goes on behind it when it is called again. "close" costs the channel as well: a
            WebSocket is closed, a stream is reset and the peer told to stop, any other stream or channel is closed.
        invalid_code: the code to do this with. None is 1007 for what cannot be read and 1009 for what is too large, a
            WebSocket's codes (RFC 6455 section 7.4.1), also on streams.

    Raises:
        TypeError: the carrier is something else.
        ValueError: ``max_size`` or ``invalid_code`` is out of range for the carrier, or ``invalid`` is something else.
    """

    __slots__ = (
        "_closed",
        "_codec",
        "_invalid",
        "_invalid_code",
        "_invalid_count",
        "_link",
        "_max_size",
        "_received",
        "_receiving",
        "_sent",
    )

    def __init__(
        self,
        carrier: MessageCarrier,
        codec: Codec[T],
        *,
        max_size: int = _MAX_SIZE,
        invalid: Literal["raise", "close"] = "raise",
        invalid_code: int | None = None,
    ) -> None:
        if invalid not in ("raise", "close"):
            raise ValueError(f'invalid is "raise" or "close", not {invalid!r}')
        check_codec(codec, "encode", "decode")
        self._link = link_to(carrier, max_size, invalid_code)
        self._codec = codec
        self._max_size = max_size
        self._invalid = invalid
        self._invalid_code = invalid_code
        self._receiving = False
        # Why nothing can be done any more.
        self._closed: str | None = None
        self._sent = self._received = self._invalid_count = 0

    # ---- sending

    async def send(self, value: T) -> None:
        """Send a message.

        Cancelled, nothing was sent, but on a stream: there a message that has begun cannot be taken back, and so nothing can be
        sent behind it any more. Waiting for room in the stream's buffer comes before that.

        Raises:
            MessageTooLarge: it has more than ``max_size`` bytes; nothing was sent.
            DatagramTooLarge: it does not fit a datagram; nothing was sent.
            trio.BrokenResourceError: an earlier message was cut off by a cancellation.
            trio.ClosedResourceError: the channel was closed on this side.
            TypeError: the carrier is a stream that only receives.

        Otherwise as the codec's ``encode``, and then nothing was sent, and as the carrier's ``send`` or ``send_all``.
        """
        try:
            self._check_open()
            data = self._encode(value)
        except Exception:
            await trio.lowlevel.checkpoint()
            raise
        await self._link.send(data)
        self._sent += 1

    def _encode(self, value: T) -> bytes | str:
        data = self._codec.encode(value)
        if not isinstance(data, bytes | str):
            codec, given = type(self._codec).__qualname__, type(data).__qualname__
            raise TypeError(f"encode() of {codec} must return bytes or str, not {given}")
        size = _size(data)
        if size > self._max_size:
            raise MessageTooLarge(size, self._max_size)
        return data

    # ---- receiving

    async def receive(self) -> T:
        """The next message. Cancelled, nothing is lost.

        Raises:
            InvalidMessage: it is too large, or the codec cannot read it; the channel goes on, unless ``invalid`` is "close".
            IncompleteMessage: a stream ended inside a message.
            trio.EndOfChannel: the carrier has ended cleanly, and all messages were received.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: the channel was closed on this side.
            TypeError: the carrier is a stream that only sends.

        Otherwise as the carrier's ``receive`` or ``receive_some``.
        """
        if self._receiving:
            await trio.lowlevel.checkpoint()
            raise trio.BusyResourceError("another task is receiving from this channel")
        try:
            self._check_open()
        except trio.ClosedResourceError:
            await trio.lowlevel.checkpoint()
            raise
        self._receiving = True
        try:
            data = await self._link.receive()
        finally:
            self._receiving = False
        size = data.size if isinstance(data, Oversized) else _size(data)
        code = CloseCode.INVALID_DATA
        if isinstance(data, Oversized) or size > self._max_size:
            code = CloseCode.MESSAGE_TOO_BIG
            reason = f"it has {size} bytes, and at most {self._max_size} are allowed"
            error = self._invalid_message(reason)
        else:
            try:
                message = self._codec.decode(data)
            except InvalidMessage as exc:
                error = exc
            except ValueError as exc:
                error = self._invalid_message(str(exc), exc)
            except Exception as exc:
                error = self._invalid_message(told(exc), exc)
            else:
                self._received += 1
                return message
        self._invalid_count += 1
        if self._invalid == "close":
            self._closed = "the channel was closed because an invalid message had come"
            code_to_tell = code if self._invalid_code is None else self._invalid_code
            await self._link.refuse(code_to_tell, _told_to_peer(error, code))
        raise error

    def _invalid_message(self, reason: str, cause: Exception | None = None) -> InvalidMessage:
        kind = f"message for {type(self._codec).__qualname__}"
        error = InvalidMessage(reason or "the codec cannot read it", "", kind)
        error.__cause__ = cause
        return error

    def _check_open(self) -> None:
        if self._closed is not None:
            raise trio.ClosedResourceError(self._closed)

    # ---- closing and looking

    async def aclose(self) -> None:
        """Close the carrier: a WebSocket with code 1000, of a stream what is sent is ended first.

        Closing what is closed does nothing. Cancelled, it is closed all the same.
        """
        if self._closed is not None:
            await trio.lowlevel.checkpoint()
            return
        self._closed = "the channel was closed on this side"
        await self._link.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_value is None or self._closed is not None:
            await self.aclose()  # noqa: ASYNC102
            return
        self._closed = "the channel's block has ended"
        await self._link.abandon(exc_value)  # noqa: ASYNC102
        await trio.lowlevel.cancel_shielded_checkpoint()

    def statistics(self) -> MessageStatistics:
        """Figures of the channel at this moment."""
        return MessageStatistics(
            self._sent, self._received, self._invalid_count, self._link.buffered
        )


def _size(data: bytes | str) -> int:
    """In bytes, of text as UTF-8."""
    return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())


def _told_to_peer(error: InvalidMessage, code: int) -> str:
    """What is wrong is the peer's to know as far as it is about what it sent."""
    if code == CloseCode.MESSAGE_TOO_BIG:
        return error.reason
    return f"invalid message, at {error.path}" if error.path else "invalid message"
