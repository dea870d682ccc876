"""`WebSocket`: what users hold."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Sequence,
)
from typing import TYPE_CHECKING, TypeAlias

import trio

from .._protocol.frames import CONTROL_PAYLOAD_MAX
from .connection import Connection
from .statistics import Statistics
from .streams import ReceiveMessageStream, SendMessageStream, payload_of

if TYPE_CHECKING:
    from .._headers import Headers
    from .._http.request import Request
    from .._transport.transport import Address

__all__ = ["Message", "WebSocket"]

#: What a whole message may be given as.
Message: TypeAlias = str | bytes | bytearray | memoryview
_WHOLE = (str, bytes, bytearray, memoryview)
_Parts: TypeAlias = Iterable[Message] | AsyncIterable[Message]


class WebSocket(trio.abc.Channel[str | bytes]):
    """A WebSocket connection (RFC 6455), client or server side.

    `open_websocket`, `serve_websocket`, `wrap_client_stream` and `wrap_server_stream` make it. Text messages are
    `str`, binary ones `bytes`. Iterating gives messages until the connection ends cleanly.

    Several tasks may send; messages never mix. One task at a time may receive. Every method is cancel-safe: a
    cancelled send has sent nothing, unless it says otherwise, and a cancelled receive has lost nothing.

    Attributes:
        request: the opening handshake's request, as sent or received.
        response_headers: the response's headers.
        subprotocol: the subprotocol agreed on, or None.
    """

    __slots__ = ("_connection", "request", "response_headers", "subprotocol")

    def __init__(
        self,
        connection: Connection,
        *,
        request: Request,
        response_headers: Headers,
        subprotocol: str | None,
    ) -> None:
        self._connection = connection
        self.request: Request = request
        self.response_headers: Headers = response_headers
        self.subprotocol: str | None = subprotocol

    # ---- sending

    async def send(
        self,
        value: Message | _Parts,
        /,
        *,
        text: bool | None = None,
        compress: bool | None = None,
    ) -> None:
        """Send a message.

        Args:
            value: `str` is sent as text, bytes-like as binary; an iterable or async iterable of one of them is sent
                as fragments of one message, as its items come.
            text: send bytes-like as text (they must be UTF-8), or `str` as binary.
            compress: True or False to insist, None to leave it to the extension's threshold.

        Returns once the message is queued, which waits while ``write_limit`` bytes or more are unsent.

        Raises:
            ConnectionClosedError: the connection has ended.
            trio.ClosedResourceError: this side has closed it.
            TypeError: the message is of another type, or the items of an iterable are of different kinds.
            ValueError: text that cannot be UTF-8.

        Cancelled, nothing was sent; but an iterable that is cut off in the middle of its message closes the
        connection with code 1011.
        """
        connection = self._connection
        if type(value) is bytes and text is None:
            payload, as_text = value, False
        elif isinstance(value, _WHOLE):
            try:
                payload, as_text = _encode(value, text)
            except ValueError:
                await trio.lowlevel.checkpoint()
                raise
        else:
            await self._send_parts(value, text, compress)
            return
        waited = False
        if connection.may_send_now:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            waited = await connection.turns.wait_turn()
        error = connection.send_error()
        if error is None:
            connection.protocol.send_message(payload, text=as_text, compress=compress)
            connection.messages_sent += 1
            connection.outbox.flush()
            if waited:
                connection.turns.pass_on()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if error is not None:
            raise error

    async def send_many(self, messages: Iterable[Message], /) -> None:
        """Send several messages, framed one by one and handed to the transport together.

        Args:
            messages: each as for `send`; all of them are queued at once, so the buffer grows by their size.

        Raises as `send` does. Cancelled, none was sent.
        """
        try:
            encoded = [_encode(message, None) for message in messages]
        except (TypeError, ValueError):
            await trio.lowlevel.checkpoint()
            raise
        connection = self._connection
        waited = await connection.turns.wait_turn()
        error = connection.send_error()
        if error is None:
            send = connection.protocol.send_message
            for payload, as_text in encoded:
                send(payload, text=as_text)
            connection.messages_sent += len(encoded)
            connection.outbox.flush()
            if waited:
                connection.turns.pass_on()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if error is not None:
            raise error

    async def _send_parts(self, parts: _Parts, text: bool | None, compress: bool | None) -> None:
        if isinstance(parts, AsyncIterable):
            iterator = parts.__aiter__()
            try:
                await self._send_iterator(iterator, text, compress)
            finally:
                # A generator that was not read to its end must not be left to the garbage collector.
                if isinstance(iterator, AsyncGenerator):
                    await iterator.aclose()
        elif isinstance(parts, Iterable):
            await self._send_iterator(iter(parts), text, compress)
        else:
            await trio.lowlevel.checkpoint()
            payload_of(parts)  # raises TypeError

    async def _send_iterator(
        self,
        parts: AsyncIterator[Message] | Iterator[Message],
        text: bool | None,
        compress: bool | None,
    ) -> None:
        async def next_part() -> Message | None:
            if isinstance(parts, AsyncIterator):
                return await anext(parts, None)
            return next(parts, None)

        part = await next_part()
        kind = isinstance(part, str) if text is None else text
        async with self.send_stream(text=kind, compress=compress) as stream:
            while part is not None:
                await stream.send(part)
                part = await next_part()

    def send_stream(self, *, text: bool, compress: bool | None = None) -> SendMessageStream:
        """A message to send part by part: ``async with ws.send_stream(text=True) as message``.

        Args:
            text: whether the message is text.
            compress: as for `send`.

        Other messages wait until it is complete; pings, pongs and Close do not.
        """
        return SendMessageStream(self._connection, text=text, compress=compress)

    # ---- receiving

    async def receive(self) -> str | bytes:
        """The next message, whole.

        Raises:
            ConnectionClosedOK: the connection ended cleanly and nothing is left to receive.
            ConnectionClosedError: it ended any other way.
            trio.ClosedResourceError: this side called `close`.
            trio.BusyResourceError: another task is receiving.

        Cancelled, nothing is lost.
        """
        connection = self._connection
        if connection.inbox.streaming:
            await trio.lowlevel.checkpoint()
            raise trio.BusyResourceError("another task is receiving from this connection")
        if connection.is_quiet:
            message = await connection.wait_message()
            if message is not None:
                connection.messages_received += 1
                return message
        else:
            await trio.lowlevel.checkpoint()
        while True:
            message = self._take()
            if message is not None:
                return message
            connection.inbox.greedy = True
            try:
                connection.resume(end=True)
                if not connection.inbox.ready:
                    self._check_receive()
                    await connection.wait_arrival()
            finally:
                connection.inbox.greedy = False

    def _take(self) -> str | bytes | None:
        connection = self._connection
        message = connection.inbox.take()
        if message is not None:
            connection.messages_received += 1
            connection.resume()
        return message

    def _check_receive(self) -> None:
        connection = self._connection
        if connection.closed_here:
            raise trio.ClosedResourceError("this side has closed the connection")
        if connection.protocol.closed is not None:
            raise connection.end_error()

    def receive_nowait(self) -> str | bytes:
        """The next message, if it is there.

        Raises:
            trio.WouldBlock: no whole message has arrived.
            ConnectionClosed: the connection ended, as for `receive`.
            trio.ClosedResourceError: this side called `close`.
            trio.BusyResourceError: another task is receiving.
        """
        connection = self._connection
        if connection.receiving or connection.inbox.streaming:
            raise trio.BusyResourceError("another task is receiving from this connection")
        if not connection.inbox.ready:
            connection.resume(end=True)
        message = self._take()
        if message is None:
            self._check_receive()
            raise trio.WouldBlock
        return message

    async def receive_many(self, max_messages: int | None = None) -> list[str | bytes]:
        """All messages that have arrived, at least one, in one wake.

        Args:
            max_messages: the most to return; None for all, which is bounded by what one read brings and by
                ``max_queue_bytes``.

        Raises as `receive` does. Cancelled, nothing is lost.
        """
        if max_messages is not None and max_messages < 1:
            await trio.lowlevel.checkpoint()
            raise ValueError(f"max_messages must be 1 or more, not {max_messages}")
        messages = [await self.receive()]
        connection = self._connection
        size, limit = len(messages[0]), connection.settings.max_queue_bytes
        while (max_messages is None or len(messages) < max_messages) and size < limit:
            left = None if max_messages is None else max_messages - len(messages)
            more = connection.take_all(left)
            if not more:
                break
            messages += more
            size += sum(map(len, more))
        connection.messages_received += len(messages) - 1
        return messages

    def receive_stream(self) -> ReceiveMessageStream:
        """The next message, part by part as it arrives: ``async with ws.receive_stream() as message``.

        The limit on a message's size still holds; with none, memory stays bounded by ``max_queue_bytes``.
        """
        return ReceiveMessageStream(self._connection)

    # ---- pings

    async def ping(self, payload: bytes | None = None) -> float:
        """Send a ping and wait for its pong.

        Args:
            payload: at most 125 bytes, different from pings under way; None for a random one.

        Returns:
            the round-trip time in seconds.

        Raises:
            ConnectionClosed: the connection ended before the pong came.
            trio.ClosedResourceError: this side has closed it.
            ValueError: the payload is too long, or under way already.

        Cancelled, the ping may have been sent; its pong is then only counted.
        """
        connection = self._connection
        if not await connection.turns.wait_room():
            await trio.lowlevel.cancel_shielded_checkpoint()
        error = connection.send_error()
        if error is not None:
            raise error
        pending = connection.begin_ping(payload)
        await pending.done.wait()
        if pending.round_trip is None:
            if connection.closed_here:
                raise trio.ClosedResourceError(
                    "this side closed the connection before the pong came"
                )
            raise connection.end_error(sending=True)
        return pending.round_trip

    async def pong(self, payload: bytes = b"") -> None:
        """Send a pong that answers no ping (RFC 6455 section 5.5.3): a one-way sign of life.

        Args:
            payload: at most 125 bytes.

        Raises:
            ConnectionClosedError: the connection has ended.
            trio.ClosedResourceError: this side has closed it.
            ValueError: the payload is too long.
        """
        connection = self._connection
        if len(payload) > CONTROL_PAYLOAD_MAX:
            await trio.lowlevel.checkpoint()
            raise ValueError(f"a pong's payload has at most {CONTROL_PAYLOAD_MAX} bytes")
        waited = await connection.turns.wait_room()
        error = connection.send_error()
        if error is None:
            connection.protocol.send_pong(payload)
            connection.outbox.flush()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if error is not None:
            raise error

    # ---- closing

    async def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Send Close and go on receiving until the peer's Close arrives: a half-close.

        Args:
            code: the close code (RFC 6455 section 7.4), 1000 to 1014 or 3000 to 4999; 1005 to send none.
            reason: why, at most 123 bytes, without line breaks.

        Raises:
            ValueError: the code or the reason cannot be sent.
            ConnectionClosedError: the connection has ended.
            trio.ClosedResourceError: Close was sent before.
        """
        await trio.lowlevel.checkpoint()
        error = self._connection.send_error()
        if error is not None:
            raise error
        self._connection.start_close(code, reason)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: the closing handshake, then the transport, within ``close_timeout`` seconds.

        What has arrived and was not received is dropped. Closing what is closed does nothing.

        Args:
            code: as for `send_close`; ignored if Close went either way before.
            reason: as for `send_close`.

        Raises:
            ValueError: the code or the reason cannot be sent.

        Cancelled, the connection is closed all the same, in the background until its block ends.
        """
        try:
            self._connection.close_now(code, reason)
        except ValueError:
            await trio.lowlevel.checkpoint()
            raise
        await trio.lowlevel.checkpoint()
        await self._connection.wait_finished()

    async def aclose(self) -> None:
        """`close` with code 1000."""
        await self.close()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended and its transport is closed, whoever ends it."""
        await trio.lowlevel.checkpoint()
        await self._connection.wait_finished()

    # ---- looking

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope that covers the connection's block; cancelling it closes with code 1011."""
        return self._connection.cancel_scope

    @property
    def close_code(self) -> int | None:
        """The close code, once the connection has ended; 1005 for none given, 1006 for no Close at all."""
        closed = self._connection.protocol.closed
        return None if closed is None else int(closed.code)

    @property
    def close_reason(self) -> str | None:
        """The close reason, once the connection has ended."""
        closed = self._connection.protocol.closed
        return None if closed is None else closed.reason

    @property
    def extensions(self) -> Sequence[str]:
        """The names of the extensions agreed on."""
        return [codec.name for codec in self._connection.protocol.codecs]

    @property
    def latency(self) -> float | None:
        """The last round-trip time that a ping measured, the keepalive's too, in seconds."""
        return self._connection.pings.latency

    @property
    def peer(self) -> Address:
        """The peer's address, as its socket says it; None where there is none."""
        return self._connection.transport.peer

    @property
    def local(self) -> Address:
        """The address of this side."""
        return self._connection.transport.local

    def statistics(self) -> Statistics:
        """Figures of this moment: traffic, queues and latency."""
        connection = self._connection
        return Statistics(
            bytes_received=connection.bytes_received,
            bytes_sent=connection.outbox.sent,
            messages_received=connection.messages_received,
            messages_sent=connection.messages_sent,
            queued_messages=connection.inbox.messages,
            queued_bytes=connection.inbox.size,
            unparsed_bytes=connection.protocol.unparsed,
            unsent_bytes=connection.outbox.size,
            latency=connection.pings.latency,
            last_heard=connection.last_heard,
        )

    def __repr__(self) -> str:
        state = self._connection.protocol.state.name.lower()
        return f"<WebSocket {self.request.target!r} with {self.peer!r}, {state}>"


def _encode(value: Message, text: bool | None) -> tuple[bytes, bool]:
    payload = payload_of(value)
    is_text = isinstance(value, str)
    if text and not is_text:
        payload.decode()  # a peer would have to fail the connection (RFC 6455 section 8.1)
    return payload, is_text if text is None else text
