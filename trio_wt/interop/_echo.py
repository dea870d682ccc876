"""Whatever comes goes back."""

from __future__ import annotations

from contextlib import suppress

from .._errors import DatagramTooLarge, StreamAbort, StreamReset
from .._quic.receive_stream import ReceiveStream
from .._quic.send_stream import SendStream
from .._quic.streams import Stream
from .._websocket.websocket import WebSocket
from .._webtransport.session import WebTransportSession
from ..app import Session
from ._streams import serve_streams

__all__ = ["serve_echo"]


async def serve_echo(session: Session) -> None:
    """A handler that sends back what comes, until the session is closed.

    A WebSocket's messages come back as they were, text or binary. A bidirectional stream comes back on itself, a unidirectional one on
    a new one of this side's, a datagram as a datagram; one that does not fit the way back is dropped. Streams come back while they are
    received, and one that is reset is reset with the same code.

    Args:
        session: a session of either kind. Once a WebTransport session is to come to its end, no new streams are taken, and it is
            closed with code 0 when those under way have ended.
    """
    if isinstance(session, WebSocket):
        async for message in session:
            await session.send(message)
    else:
        await _echo_streams(session)


async def _echo_streams(session: WebTransportSession) -> None:
    async def on_stream(stream: Stream) -> None:
        async with stream:
            await _copy(stream, stream)

    async def on_receive_stream(stream: ReceiveStream) -> None:
        async with stream, session.open_send_stream() as answer:
            await _copy(stream, answer)

    async def on_datagram(data: bytes) -> None:
        with suppress(DatagramTooLarge):
            await session.datagrams.send(data)

    await serve_streams(
        session,
        on_stream=on_stream,
        on_receive_stream=on_receive_stream,
        on_datagram=on_datagram,
    )


async def _copy(source: ReceiveStream, target: SendStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except StreamReset as exc:
        raise StreamAbort(exc.code) from None
