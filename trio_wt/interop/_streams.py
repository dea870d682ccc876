"""What the handlers of the interop endpoints do alike: take what comes in a session, each stream in a task of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

import trio

from .._errors import ConnectionClosed
from .._quic.incoming import IncomingStreams
from .._quic.receive_stream import ReceiveStream
from .._quic.streams import Stream
from .._webtransport.session import WebTransportSession

__all__ = ["serve_streams", "until_closed"]

StreamT = TypeVar("StreamT", Stream, ReceiveStream)
Ts = TypeVarTuple("Ts")


async def serve_streams(
    session: WebTransportSession,
    *,
    on_stream: Callable[[Stream], Awaitable[None]],
    on_receive_stream: Callable[[ReceiveStream], Awaitable[None]],
    on_datagram: Callable[[bytes], Awaitable[None]] | None = None,
) -> None:
    """Serve a session to its end.

    Args:
        session: the session.
        on_stream: runs in a task of its own for each bidirectional stream.
        on_receive_stream: the same for unidirectional ones.
        on_datagram: gets each datagram, one at a time; None leaves them alone.

    Once the session is to come to its end, nothing is taken any more, and it is closed when the streams under way have ended.
    """
    async with trio.open_nursery() as nursery:

        async def take(
            incoming: IncomingStreams[StreamT], handle: Callable[[StreamT], Awaitable[None]]
        ) -> None:
            async for stream in incoming:
                nursery.start_soon(until_closed, handle, stream)

        async def take_datagrams(handle: Callable[[bytes], Awaitable[None]]) -> None:
            async for data in session.datagrams:
                await handle(data)

        with trio.CancelScope() as taking:
            nursery.start_soon(until_closed, _cancel_when_draining, session, taking)  # noqa: ASYNC111  # ends with the block
            async with trio.open_nursery() as loops:
                loops.start_soon(until_closed, take, session.incoming_streams, on_stream)
                loops.start_soon(
                    until_closed, take, session.incoming_receive_streams, on_receive_stream
                )
                if on_datagram is not None:
                    loops.start_soon(until_closed, take_datagrams, on_datagram)
        if not taking.cancelled_caught:
            nursery.cancel_scope.cancel()
    await session.aclose()


async def _cancel_when_draining(session: WebTransportSession, scope: trio.CancelScope) -> None:
    await session.wait_draining()
    scope.cancel()


async def until_closed(work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Work in a session; however that ends, it is nothing to complain of."""
    with suppress(ConnectionClosed, trio.ClosedResourceError):
        await work(*args)
