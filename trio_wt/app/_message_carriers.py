"""How messages go over a WebSocket, a stream or datagrams, behind one face for `MessageChannel`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol, TypeAlias

import trio

from .._protocol.frames import CloseCode, is_valid_close_code
from .._quic.endings import error_code
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._websocket.websocket import WebSocket
from ._framing import MAX_LENGTH, FrameReader, Oversized, frame
from ._message_errors import IncompleteMessage, StreamEnded

__all__ = ["Link", "MessageCarrier", "link_to"]

#: What a `MessageChannel` may stand on.
MessageCarrier: TypeAlias = (
    WebSocket | trio.abc.SendStream | trio.abc.ReceiveStream | trio.abc.Channel[bytes]
)

# What is asked of a stream at once.
_CHUNK: Final = 65536
# What a WebTransport stream can be reset with; QUIC has more.
_MAX_CODE: Final = 2**32 - 1
_MAX_CLOSE_REASON: Final = 123


class Link(Protocol):
    """A carrier, as a channel sees it."""

    @property
    def buffered(self) -> int:
        """How many bytes are held here that no message was made of yet."""
        ...

    async def send(self, data: bytes | str) -> None:
        """Send a message."""
        ...

    async def receive(self) -> bytes | str | Oversized:
        """The next one. Cancelled, nothing is lost."""
        ...

    async def close(self) -> None:
        """End it gracefully."""
        ...

    async def refuse(self, code: int, reason: str) -> None:
        """End it at once because of what has come; what else there is to do happens in the background."""
        ...

    async def abandon(self, exc: BaseException) -> None:
        """End it at once because a block has ended by ``exc``."""
        ...


def link_to(carrier: MessageCarrier, max_size: int, invalid_code: int | None) -> Link:
    """A carrier's link.

    Args:
        carrier: a WebSocket, anything with the methods of Trio's streams, or with those of its channels.
        max_size: the most bytes that a message may have.
        invalid_code: what it is to be ended with, to be checked.

    Raises:
        TypeError: it is something else.
        ValueError: the size or the code is out of range.
    """
    if max_size < 1:
        raise ValueError(f"max_size is at least 1, not {max_size}")
    if isinstance(carrier, WebSocket):
        if invalid_code is not None and not is_valid_close_code(invalid_code):
            raise ValueError(f"{invalid_code} is no code that a WebSocket can be closed with")
        return _WebSocketLink(carrier)
    if invalid_code is not None and not 0 <= invalid_code <= _MAX_CODE:
        raise ValueError(f"a stream's error code is from 0 to 2^32 - 1, not {invalid_code}")
    # Not by their classes: what has the methods is as good.
    duck: Any = carrier
    if hasattr(duck, "send_all") or hasattr(duck, "receive_some"):
        if max_size > MAX_LENGTH:
            raise ValueError(f"max_size is at most {MAX_LENGTH} on a stream, not {max_size}")
        return _StreamLink(duck, max_size)
    if hasattr(duck, "send") and hasattr(duck, "receive"):
        return _DatagramLink(duck)
    raise TypeError(
        f"messages go over a WebSocket, a stream or datagrams, not {type(duck).__qualname__}"
    )


async def _at_once(closing: Awaitable[None]) -> None:
    """Close without waiting for anything, and without being cancelled from outside."""
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await closing


class _WebSocketLink:
    __slots__ = ("_websocket",)

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    @property
    def buffered(self) -> int:
        return 0

    async def send(self, data: bytes | str) -> None:
        await self._websocket.send(data)

    async def receive(self) -> bytes | str:
        return await self._websocket.receive()

    async def close(self) -> None:
        await self._websocket.close()

    async def refuse(self, code: int, reason: str) -> None:
        cut = reason.encode()[:_MAX_CLOSE_REASON].decode(errors="ignore")
        await _at_once(self._websocket.close(code, cut))

    async def abandon(self, exc: BaseException) -> None:
        await _at_once(self._websocket.close(CloseCode.INTERNAL_ERROR))


class _DatagramLink:
    __slots__ = ("_channel",)

    def __init__(self, channel: trio.abc.Channel[bytes]) -> None:
        self._channel = channel

    @property
    def buffered(self) -> int:
        return 0

    async def send(self, data: bytes | str) -> None:
        await self._channel.send(data.encode() if isinstance(data, str) else data)

    async def receive(self) -> bytes:
        return await self._channel.receive()

    async def close(self) -> None:
        await self._channel.aclose()

    async def refuse(self, code: int, reason: str) -> None:
        await _at_once(self._channel.aclose())

    async def abandon(self, exc: BaseException) -> None:
        await _at_once(self._channel.aclose())


class _StreamLink:
    """Messages as frames, see `FrameReader`.

    Args:
        stream: of both directions, or of one.
        max_size: the most bytes that a message may have.
    """

    __slots__ = ("_cut", "_frames", "_lock", "_stream")

    def __init__(self, stream: Any, max_size: int) -> None:
        self._stream = stream
        self._frames = FrameReader(max_size)
        self._lock = trio.StrictFIFOLock()
        # A cancelled send has sent a part of its frame.
        self._cut = False

    @property
    def buffered(self) -> int:
        return self._frames.buffered

    async def send(self, data: bytes | str) -> None:
        stream = self._stream
        if not hasattr(stream, "send_all"):
            await trio.lowlevel.checkpoint()
            raise TypeError("this channel's stream only receives")
        framed = frame(data.encode() if isinstance(data, str) else data)
        async with self._lock:
            if self._cut:
                raise trio.BrokenResourceError(
                    "a cancelled send has sent a part of its message, so no other can follow it on this stream: close it"
                )
            # Whoever gives up waiting for room has sent nothing.
            await stream.wait_send_all_might_not_block()
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                await stream.send_all(framed)
            except BaseException as exc:
                # After any other error the stream says itself that it is broken.
                self._cut = not isinstance(exc, Exception)
                raise

    async def receive(self) -> bytes | Oversized:
        stream, frames = self._stream, self._frames
        if not hasattr(stream, "receive_some"):
            await trio.lowlevel.checkpoint()
            raise TypeError("this channel's stream only sends")
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while (message := frames.take()) is None:
            data = await stream.receive_some(_CHUNK)
            waited = True
            if not data:
                if frames.incomplete:
                    raise IncompleteMessage(frames.incomplete)
                raise StreamEnded
            frames.feed(data)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    async def close(self) -> None:
        stream = self._stream
        try:
            # To end it in the middle of a message would say that all was sent.
            if hasattr(stream, "send_eof") and not (self._cut or self._lock.locked()):
                await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await stream.aclose()  # noqa: ASYNC102

    async def refuse(self, code: int, reason: str) -> None:
        for half in self._halves():
            if isinstance(half, SendStream):
                half.reset(code)
            if isinstance(half, ReceiveStream):
                half.stop(code)
            if not isinstance(half, SendStream | ReceiveStream):
                await _at_once(half.aclose())

    async def abandon(self, exc: BaseException) -> None:
        for half in self._halves():
            if isinstance(half, SendStream | ReceiveStream):
                half._abort(error_code(exc, half._carrier))
            else:
                await _at_once(half.aclose())

    def _halves(self) -> tuple[Any, ...]:
        """The stream, or those that a `trio.StapledStream` holds together."""
        stream = self._stream
        if isinstance(stream, trio.StapledStream):
            return stream.send_stream, stream.receive_stream
        return (stream,)
