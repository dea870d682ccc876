"""One message at a time, sent or received piece by piece."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from .._protocol.frames import CloseCode
from .connection import Connection
from .inbox import Assembly

__all__ = ["ReceiveMessageStream", "SendMessageStream", "payload_of"]


def payload_of(part: str | bytes | bytearray | memoryview) -> bytes:
    """The bytes to send: a buffer that its owner may change afterwards is copied."""
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes):
        return part
    if isinstance(part, bytearray | memoryview):
        return bytes(part)
    raise TypeError(
        f"a message is str or bytes-like, or an iterable of one of them, not {type(part).__name__}"
    )


class SendMessageStream:
    """A message that is sent as fragments (RFC 6455 section 5.4), from `WebSocket.send_stream`.

    An async context manager: leaving it normally ends the message. Leaving it by an exception or a cancellation
    cannot take back what was sent, so it closes the connection with code 1011, unless nothing had been sent.
    """

    def __init__(self, connection: Connection, *, text: bool, compress: bool | None) -> None:
        self._connection = connection
        self._text = text
        self._compress = compress
        self._begun = False
        self._open = False

    async def __aenter__(self) -> Self:
        connection = self._connection
        waited = await connection.turns.wait_turn()
        error = connection.send_error()
        if error is None:
            # Before anything else is awaited: the turn is ours only until another task runs.
            connection.turns.fragmenting = True
            self._open = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if error is not None:
            raise error
        return self

    async def send(self, part: str | bytes | bytearray | memoryview) -> None:
        """Send a part of the message.

        Args:
            part: text if the message is text, bytes-like otherwise; it goes out as a frame of its own.

        Raises:
            TypeError: the part is not of the message's kind.
            ConnectionClosedError: the connection has ended.
            trio.ClosedResourceError: this side has closed it, or the message has been ended.

        Cancelled while it waits for room, it has sent nothing of the part.
        """
        if isinstance(part, str) is not self._text:
            await trio.lowlevel.checkpoint()
            kind = "text, so its parts are str" if self._text else "binary, so its parts are bytes"
            raise TypeError(f"this message is {kind}, not {type(part).__name__}")
        payload = payload_of(part)
        waited = await self._connection.turns.wait_room()
        self._push(payload, final=False)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _push(self, payload: bytes, *, final: bool) -> None:
        if not self._open:
            raise trio.ClosedResourceError("this message has been ended")
        error = self._connection.send_error()
        if error is not None:
            raise error
        self._begun = True
        self._connection.protocol.send_fragment(
            payload, text=self._text, final=final, compress=self._compress
        )
        self._connection.outbox.flush()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection = self._connection
        complete = False
        try:
            if exc is None:
                await trio.lowlevel.checkpoint()  # noqa: ASYNC102
                self._push(b"", final=True)
                connection.messages_sent += 1
                complete = True
        finally:
            self._open = False
            connection.turns.fragmenting = False
            if self._begun and not complete and connection.send_error() is None:
                connection.start_close(CloseCode.INTERNAL_ERROR, "a message was abandoned")
            connection.turns.pass_on()


class ReceiveMessageStream:
    """A message as it arrives, from `WebSocket.receive_stream`; iterate over it for its parts.

    An async context manager: leaving it drops what was not taken, and the next message is received next.

    Attributes:
        text: whether the message is text, so that its parts are `str`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._assembly: Assembly | None = None
        self._ended = False
        self.text: bool = False

    async def __aenter__(self) -> Self:
        self._assembly = await _next_assembly(self._connection)
        self.text = self._assembly.text
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | bytes:
        part = await self.receive_some()
        if part is None:
            raise StopAsyncIteration
        return part

    async def receive_some(self) -> str | bytes | None:
        """What has arrived of the message since the last call, at least one byte or character.

        Returns:
            `str` or `bytes`; None at the message's end.

        Raises:
            ConnectionClosed: the connection ended in the middle of the message.
            trio.ClosedResourceError: the block was left, or this side closed the connection.

        Cancelled, nothing is lost.
        """
        await trio.lowlevel.checkpoint()
        connection = self._connection
        while True:
            assembly = self._assembly
            if assembly is None or connection.closed_here:
                raise trio.ClosedResourceError(
                    "this message, or its connection, was closed on this side"
                )
            part = assembly.take()
            if part:
                connection.resume()
                return part
            if assembly.final:
                return None
            connection.resume(end=True)
            if len(assembly) or assembly.final:
                continue
            if connection.protocol.closed is not None:
                raise connection.end_error()
            await connection.wait_arrival()

    async def read_all(self, max_bytes: int = 2**20) -> str | bytes:
        """The rest of the message.

        Args:
            max_bytes: the most to collect, in characters for text.

        Raises:
            ValueError: the message is longer; what was read is lost.
            ConnectionClosed: the connection ended in the middle of the message.
        """
        parts: list[str | bytes] = []
        size = 0
        async for part in self:
            size += len(part)
            if size > max_bytes:
                raise ValueError(
                    f"the message has more than {max_bytes} {'characters' if self.text else 'bytes'}"
                )
            parts.append(part)
        if self.text:
            return "".join(str(part) for part in parts)
        return b"".join(part for part in parts if isinstance(part, bytes))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._assembly = None
        self._connection.inbox.release()
        self._connection.resume()
        await trio.lowlevel.cancel_shielded_checkpoint()


async def _next_assembly(connection: Connection) -> Assembly:
    await trio.lowlevel.checkpoint()
    while True:
        if connection.receiving or connection.inbox.streaming:
            raise trio.BusyResourceError("another task is receiving from this connection")
        if connection.closed_here:
            raise trio.ClosedResourceError("this side has closed the connection")
        if not connection.inbox.begun:
            connection.resume(end=True)
        if connection.inbox.begun:
            return connection.inbox.stream()
        if connection.protocol.closed is not None:
            raise connection.end_error()
        await connection.wait_arrival()
