"""A request's stream: HTTP/3's frames around a stream of both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .._errors import ConnectionClosed, StreamReset
from .._headers import Headers
from .._protocol.http3 import (
    Content,
    ContentEnded,
    Http3Event,
    MessageFailed,
    RequestReceived,
    ResponseReceived,
)
from .._protocol.http3_codes import Http3Code
from .._protocol.http3_fields import CONNECTION_SPECIFIC, Fields, RequestHead, ResponseHead
from .._quic.send_stream import SendStream
from .._quic.streams import Stream

if TYPE_CHECKING:
    from .h3 import Http3

__all__ = ["BadMessage", "RequestStream", "fields_of"]


def fields_of(headers: Headers) -> Fields:
    """Header fields as HTTP/3 sends them: names in lower case, none of HTTP/1.1's connections.

    Raises:
        ValueError: one is longer than QPACK's encoder takes.
    """
    for name, value in headers.fields:
        if max(len(name), len(value)) > _MAX_FIELD:
            raise ValueError(f"the header {name[:40]} has more than {_MAX_FIELD} bytes")
    return [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in headers.fields
        if name.lower().encode("ascii") not in CONNECTION_SPECIFIC
        and (name.lower() != "te" or value == "trailers")
    ]


_MAX_FIELD = 65535
# A type and a length.
_MAX_FRAME_HEAD = 9


class RequestStream(Stream):
    """A request or its response comes in, and the other goes out.

    What is received from it is the content; what is sent must be framed by `send_head` and `send_content`.

    Args:
        http3: the connection.
        stream_id: its number.

    Attributes:
        http3: see there.
        head: the head of what comes in; None before it has come.
        failure: why what comes in cannot be used; None if it can.
        on_head: is called as soon as a response's head comes.
    """

    __slots__ = (
        "_changed",
        "_consumer",
        "_held",
        "_on_broken",
        "_on_stopped",
        "failure",
        "head",
        "http3",
        "on_head",
    )

    def __init__(self, http3: Http3, stream_id: int) -> None:
        super().__init__(http3.driver, stream_id)
        self.http3: Http3 = http3
        self.head: RequestHead | ResponseHead | None = None
        self.failure: MessageFailed | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._consumer: Callable[[bytes, bool], None] | None = None
        self._on_broken: Callable[[], None] | None = None
        self._on_stopped: Callable[[], None] | None = None
        self._held = 0
        self.on_head: Callable[[ResponseHead], None] | None = None

    # ---- what arrives

    def arrived(self, data: bytes, *, fin: bool) -> None:
        http3, driver = self.http3, self.http3.driver
        content = 0
        with http3.guard():
            for event in http3.protocol.receive(self._stream_id, data, fin=fin):
                if type(event) is Content:
                    content += len(event.data)
                    self._content(event.data)
                else:
                    self._happened(event)
        # The frames around the content; a head that is not complete is held, at the peer's expense.
        held = http3.protocol.held(self._stream_id)
        around = len(data) - content + self._held - held
        self._held = held
        if around:
            driver.consume(self._stream_id, around)
        if fin:
            http3.protocol.forget(self._stream_id)
            if self._consumer is None:
                super().arrived(b"", fin=True)
            else:
                driver.settle(self._stream_id)
                self._receive_end = b""
                self._consumer(b"", True)
                self._done()

    def _content(self, data: bytes) -> None:
        if self._consumer is None:
            super().arrived(data, fin=False)
        else:
            self._carrier.consume(self._stream_id, len(data))
            self._consumer(data, False)

    def _happened(self, event: Http3Event) -> None:
        if isinstance(event, RequestReceived):
            self.head = event.head
            self.http3.request_ready(self)
        elif isinstance(event, ResponseReceived):
            self.head = event.head
            self.http3.answered(self._stream_id)
            if self.on_head is not None:
                self.on_head(event.head)
        elif isinstance(event, MessageFailed):
            self.failure = event
            if self.head is not None:
                self._cut_off(event)
            elif not self.http3.driver.is_client:
                self.http3.request_ready(self)
        elif isinstance(event, ContentEnded):
            return
        self._changed.unpark_all()

    def _cut_off(self, failure: MessageFailed) -> None:
        """What has come behind the head must not be taken for a message (RFC 9114 section 4.1.2)."""
        self.stop(failure.code)
        self._receive_end = StreamReset(failure.code, remote=True)

    def was_reset(self, code: int) -> None:
        self.http3.protocol.forget(self._stream_id)
        super().was_reset(code)
        self._changed.unpark_all()
        if self._on_broken is not None:
            self._on_broken()
        if self.head is None:
            # A request that nobody has heard of.
            self.http3.router.request_over(self._stream_id)
            self.reset(Http3Code.REQUEST_CANCELLED)
            self.take()

    def was_stopped(self, code: int) -> None:
        super().was_stopped(code)
        if self._on_stopped is not None:
            self._on_stopped()

    def lost(self, end: ConnectionClosed) -> None:
        super().lost(end)
        self._changed.unpark_all()

    def consume_with(
        self,
        consumer: Callable[[bytes, bool], None],
        on_broken: Callable[[], None],
        on_stopped: Callable[[], None],
    ) -> None:
        """From now on content, and the end, go to a function as they come; what has come goes first.

        Args:
            consumer: gets content, and whether it was the last.
            on_broken: is called when the peer resets the stream.
            on_stopped: is called when it wants no more of ours.
        """
        self._on_broken = on_broken
        self._on_stopped = on_stopped
        data = self._take(self._buffered) if self._buffered else b""
        self._consumer = consumer
        ended = self._receive_end == b""
        if data or ended:
            consumer(data, ended)
        if isinstance(self._receive_end, StreamReset):
            on_broken()

    def will_not_be_answered(self) -> None:
        """The server has said that it will not (GOAWAY, RFC 9114 section 5.2)."""
        self.failure = MessageFailed(
            self._stream_id,
            Http3Code.REQUEST_REJECTED,
            503,
            "the server takes no more requests (GOAWAY)",
        )
        self._changed.unpark_all()

    async def wait_head(self) -> RequestHead | ResponseHead:
        """The head of what comes in. A checkpoint.

        Raises:
            StreamReset: the peer has reset the stream.
            ConnectionClosed: the connection has ended.
        """
        await trio.lowlevel.checkpoint()
        while self.head is None and self.failure is None:
            self._check_receive_end()
            await self._changed.park()
        if self.head is None:
            assert self.failure is not None
            raise BadMessage(self.failure)
        return self.head

    # ---- what is sent

    def check_unbroken(self) -> None:
        """Raise what has happened to either direction, if it was not the ordinary end."""
        if self._send_end is not None:
            self._raise_send_end()
        self._check_receive_end()

    def send_head(self, fields: Fields, *, end: bool = False) -> None:
        """Send a head now, and perhaps the end."""
        driver = self.http3.driver
        data = self.http3.protocol.encode_head(self._stream_id, fields)
        if self._send_end is None:
            driver.send(self._stream_id, data, fin=end)
            # Before datagrams, which would go first in a packet, and mean nothing to a browser without the head.
            driver.push(at_once=True)
            if end:
                self._close_sending()

    async def send_content(
        self, data: bytes | bytearray | memoryview, *, end: bool = False
    ) -> None:
        """Send content; otherwise as `SendStream.send_all`."""
        head = self.http3.protocol.encode_content_head(len(data))
        await self.send_all(b"".join((head, data)), eof=end)

    def send_content_nowait(self, data: bytes) -> int:
        """Send as much content as there is room for: how many bytes that is."""
        if self._sending or self._send_end is not None:
            return 0
        size = min(len(data), self._carrier.room(self._stream_id) - _MAX_FRAME_HEAD)
        if size <= 0:
            return 0
        self.send_content_now(data if size == len(data) else data[:size])
        return size

    def send_content_now(self, data: bytes, *, end: bool = False, push: bool = True) -> None:
        """Send a little content, whether or not there is room: at once, or soon, without ``push``."""
        driver = self.http3.driver
        if self._send_end is None:
            head = self.http3.protocol.encode_content_head(len(data)) if data else b""
            driver.send(self._stream_id, head + data, fin=end)
            if push:
                driver.push()
            else:
                driver.wake()
            if end:
                self._close_sending()

    def _finish(self) -> None:
        SendStream._finish(self)
        # What else would come is of no interest (RFC 9114 section 4.1).
        is_client = self.http3.driver.is_client
        self.stop(Http3Code.REQUEST_CANCELLED if is_client else Http3Code.NO_ERROR)

    def _done(self) -> None:
        super()._done()
        if self._finished:
            self.http3.answered(self._stream_id)
            self.http3.protocol.forget(self._stream_id)

    def reject(self, code: Http3Code) -> None:
        """Give up on both directions."""
        self.reset(code)
        self.stop(code)


class BadMessage(Exception):
    """The message that came in cannot be used.

    Attributes:
        failure: why.
    """

    def __init__(self, failure: MessageFailed) -> None:
        super().__init__(failure.reason)
        self.failure: MessageFailed = failure
