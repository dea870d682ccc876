"""A WebTransport session as an application sees it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from .._errors import ConnectionClosed
from .._headers import Headers
from .._http.request import Request
from .._protocol.route import Sockaddr
from .._quic.datagrams import Datagrams
from .._quic.endings import error_code
from .._quic.incoming import IncomingStreams
from .._quic.opening import OpenStream
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._quic.streams import Stream
from .carrier import SessionCarrier
from .statistics import SessionStatistics

if TYPE_CHECKING:
    from .connection import WebTransportConnection

__all__ = ["SessionBlock", "WebTransportSession"]

_EXPORTER_LABEL = b"EXPORTER-WebTransport"
_MAX_EXPORTER_PART = 255


class WebTransportSession:
    """A WebTransport session, made by `open_webtransport`, `WebTransportConnection.open_session` and `serve_webtransport`.

    Leaving its block normally sees out what was ended, for ``close_timeout`` seconds at most, and closes with code 0. Leaving it
    by an exception or a cancellation closes at once, with the ``failed_code`` or ``cancelled_code`` of the settings.

    Attributes:
        connection: the connection that it is on.
        datagrams: unreliable datagrams.
        incoming_streams: the bidirectional streams that the peer opens.
        incoming_receive_streams: the unidirectional ones.
        request: the request that has opened it.
        response_headers: the headers of the answer.
        subprotocol: the subprotocol agreed on; None for none.
    """

    __slots__ = (
        "_carrier",
        "_dialect",
        "connection",
        "datagrams",
        "incoming_receive_streams",
        "incoming_streams",
        "request",
        "response_headers",
        "subprotocol",
    )

    def __init__(
        self,
        carrier: SessionCarrier,
        connection: WebTransportConnection,
        *,
        request: Request,
        response_headers: Headers,
        subprotocol: str | None,
        dialect: str,
    ) -> None:
        self._carrier = carrier
        self._dialect = dialect
        self.connection: WebTransportConnection = connection
        self.datagrams: Datagrams = carrier.datagrams
        self.incoming_streams: IncomingStreams[Stream] = carrier.incoming_streams
        self.incoming_receive_streams: IncomingStreams[ReceiveStream] = (
            carrier.incoming_receive_streams
        )
        self.request: Request = request
        self.response_headers: Headers = response_headers
        self.subprotocol: str | None = subprotocol

    def __repr__(self) -> str:
        state = "open" if self._carrier.end is None else "closed"
        return f"<WebTransportSession {self.request.target} {state}, peer {self.peer_address}>"

    # ---- streams

    def open_stream(self, *, priority: int = 0) -> AbstractAsyncContextManager[Stream]:
        """Open a bidirectional stream, as an async context manager: ``async with session.open_stream() as stream:``.

        Entering it waits while the peer's limits on streams are reached.

        Args:
            priority: streams of a higher priority are sent first.

        Raises:
            ConnectionClosed: the session has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        return OpenStream(self._carrier, Stream, priority)

    def open_send_stream(self, *, priority: int = 0) -> AbstractAsyncContextManager[SendStream]:
        """Open a unidirectional stream; otherwise as `open_stream`."""
        return OpenStream(self._carrier, SendStream, priority)

    # ---- what it is

    @property
    def session_id(self) -> int:
        """The number of the session on its connection."""
        return self._carrier.session_id

    @property
    def peer_address(self) -> Sockaddr | None:
        """Where packets go; it may change while the session lasts (RFC 9000 section 9)."""
        return self.connection.peer_address

    @property
    def local_address(self) -> Sockaddr | None:
        """The address of the socket that packets go through."""
        return self.connection.local_address

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """A secret that only the two sides of this session share (draft-ietf-webtrans-http3-16 section 4.8).

        Args:
            label: what it is for, up to 255 bytes.
            context: what it is bound to, up to 255 bytes.
            length: how many bytes, up to 8160.

        Raises:
            ValueError: one of them is too long.
        """
        if max(len(label), len(context)) > _MAX_EXPORTER_PART:
            raise ValueError(f"label and context have at most {_MAX_EXPORTER_PART} bytes each")
        parts = b"".join(len(part).to_bytes(1) + part for part in (label, context))
        return self._carrier.driver.engine.export_keying_material(
            _EXPORTER_LABEL, self.session_id.to_bytes(8) + parts, length
        )

    def statistics(self) -> SessionStatistics:
        """Figures of the session at this moment; `WebTransportConnection.statistics` has those of its connection."""
        carrier = self._carrier
        streams = carrier.streams.values()
        unsent = carrier.driver.engine.unsent
        return SessionStatistics(
            open_streams=len(streams),
            unaccepted_streams=len(self.incoming_streams) + len(self.incoming_receive_streams),
            unread_bytes=sum(s.buffered for s in streams if isinstance(s, ReceiveStream)),
            unsent_bytes=sum(unsent(s.stream_id) for s in streams if isinstance(s, SendStream)),
            datagrams_unread=self.datagrams.unread,
            datagrams_dropped=self.datagrams.dropped,
            send_credit=carrier.send_credit,
            dialect=self._dialect,
        )

    # ---- life

    def drain(self) -> None:
        """Ask the peer to bring the session to its end; nothing else changes (draft-ietf-webtrans-http3-16 section 4.7)."""
        self._carrier.drain_peer()

    @property
    def draining(self) -> bool:
        """Whether the session is to come to its end: the peer has asked for that, or takes no new sessions any more, or this side is a
        server that shuts down.
        """
        return self._carrier.draining

    async def wait_draining(self) -> None:
        """Wait until the session is `draining`.

        Raises:
            ConnectionClosed: the session has ended.
            trio.ClosedResourceError: it was closed on this side.
        """
        await trio.lowlevel.checkpoint()
        carrier = self._carrier
        while not carrier.draining:
            if carrier.end is not None:
                raise carrier.closed_error(iterating=True)
            await carrier.wait_changed()

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """Covers the session's block."""
        return self._carrier.cancel_scope

    @property
    def closed(self) -> ConnectionClosed | None:
        """How the session ended; None while it has not."""
        return self._carrier.end

    async def wait_closed(self) -> ConnectionClosed:
        """Wait for the end of the session, whoever ends it; how it ended."""
        await trio.lowlevel.checkpoint()
        while self._carrier.end is None:
            await self._carrier.wait_changed()
        return self._carrier.end

    def close_now(self, code: int = 0, reason: str = "") -> None:
        """Close at once: what was not delivered yet is lost. Without effect if the session has ended.

        Args:
            code: the application's error code, below 2^32; the peer sees 0 as a clean end.
            reason: for people; cut to 1024 bytes of UTF-8.

        Raises:
            ValueError: the code is out of range.
        """
        self._carrier.check_code(code)
        self._carrier.shut(code, reason)

    async def aclose(self, code: int = 0, reason: str = "", *, graceful: bool = True) -> None:
        """Close.

        Cancelled, it closes at once.

        Args:
            code: the application's error code, below 2^32; the peer sees 0 as a clean end.
            reason: for people; cut to 1024 bytes of UTF-8.
            graceful: first see out the streams that were ended, for ``close_timeout`` seconds at most.

        Raises:
            ValueError: the code is out of range.
        """
        carrier = self._carrier
        try:
            carrier.check_code(code)
        except ValueError:
            await trio.lowlevel.checkpoint()
            raise
        try:
            if graceful and carrier.end is None:
                with trio.move_on_after(carrier.settings.close_timeout):
                    await carrier.wait_delivered()
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self.close_now(code, reason)


class SessionBlock:
    """Covers a session's block, and closes the session at its end.

    Args:
        carrier: the session's.
    """

    __slots__ = ("_carrier",)

    def __init__(self, carrier: SessionCarrier) -> None:
        self._carrier = carrier

    async def __aenter__(self) -> Self:
        self._carrier.cancel_scope.__enter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        carrier = self._carrier
        if exc is not None:
            carrier.shut(error_code(exc, carrier), "")
        outcome = exc
        try:
            if carrier.cancel_scope.__exit__(exc_type, exc, traceback):
                outcome = None
        except BaseException as filtered:  # a group, less what the scope has caught  # noqa: ASYNC103
            outcome = filtered
        if exc is None:
            with trio.CancelScope(shield=True), trio.move_on_after(carrier.settings.close_timeout):
                await carrier.wait_delivered()  # noqa: ASYNC102
            carrier.shut(0, "")
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if outcome is None or outcome is exc:
            return outcome is None
        raise outcome
