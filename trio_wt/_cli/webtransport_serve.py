"""What `trio-wt serve` does over HTTP/3: sessions whose streams and datagrams come back, on the port that TCP has, too."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from .._errors import ConnectionClosed, DatagramTooLarge, StreamAbort, StreamReset
from .._quic.receive_stream import ReceiveStream
from .._quic.streams import Stream
from .._transport.udp import UdpSocket, open_udp_sockets
from .._webtransport.session import WebTransportSession
from .errors import CommandFailed, describe

__all__ = ["Echo", "open_both"]

# A port that is free for UDP may not be free for TCP.
_TRIES: Final = 16


async def open_both(host: str, port: int) -> tuple[list[trio.SocketListener], list[UdpSocket]]:
    """Listen on a port, by TCP and by UDP.

    Args:
        host: the address.
        port: the port; 0 takes one that is free for both.

    Raises:
        CommandFailed: the port is in use for UDP.
        OSError: the address cannot be listened on.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            sockets = await open_udp_sockets(port, host)
        except socket.gaierror:
            raise
        except OSError as exc:
            raise CommandFailed(
                f"cannot listen on UDP port {port} of {host} for WebTransport: {describe(exc)} "
                "(--no-webtransport does without)"
            ) from exc
        try:
            return await trio.open_tcp_listeners(sockets[0].local_address[1], host=host), sockets
        except BaseException as exc:  # noqa: ASYNC103  # tried again, or raised
            for opened in sockets:
                opened.close()
            in_use = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
            if port or not in_use or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


class Echo:
    """Sends back what comes: on the same stream, on a new one if it has one direction, or as a datagram.

    Args:
        stop: once set, no new streams are taken, and sessions end when those under way have.
    """

    def __init__(self, stop: trio.Event) -> None:
        self._stop = stop

    async def __call__(self, session: WebTransportSession) -> None:
        """Serve one session."""
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as taking:
                nursery.start_soon(self._stop_taking, taking)  # noqa: ASYNC111  # ends with the block
                async with trio.open_nursery() as loops:
                    for loop in (self._take_streams, self._take_receive_streams):
                        loops.start_soon(_until_the_end, loop, session, nursery)
                    loops.start_soon(_until_the_end, self._answer_datagrams, session)
            if not taking.cancelled_caught:
                nursery.cancel_scope.cancel()
        await session.aclose(0, "the server is stopping")

    async def _stop_taking(self, taking: trio.CancelScope) -> None:
        await self._stop.wait()
        taking.cancel()

    async def _take_streams(self, session: WebTransportSession, nursery: trio.Nursery) -> None:
        async for stream in session.incoming_streams:
            nursery.start_soon(_until_the_end, self._answer, stream)

    async def _take_receive_streams(
        self, session: WebTransportSession, nursery: trio.Nursery
    ) -> None:
        async for stream in session.incoming_receive_streams:
            nursery.start_soon(_until_the_end, self._answer_elsewhere, stream, session)

    async def _answer_datagrams(self, session: WebTransportSession) -> None:
        async for data in session.datagrams:
            with suppress(DatagramTooLarge):  # what fits one way need not fit the other
                await session.datagrams.send(data)

    async def _answer(self, stream: Stream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send_all(data)
            except StreamReset as exc:
                raise StreamAbort(exc.code) from None

    async def _answer_elsewhere(self, stream: ReceiveStream, session: WebTransportSession) -> None:
        async with stream, session.open_send_stream() as answer:
            try:
                async for data in stream:
                    await answer.send_all(data)
            except StreamReset as exc:
                raise StreamAbort(exc.code) from None


async def _until_the_end(serve: Callable[..., Awaitable[None]], *args: object) -> None:
    """However the session ends, it is nothing to complain of."""
    with suppress(ConnectionClosed, trio.ClosedResourceError):
        await serve(*args)
