"""Stream sockets, TCP and Unix, driven without a layer in between.

A non-blocking call plus `trio.lowlevel.wait_readable` costs three quarters of what a `trio.SocketStream` does, and
`send_nowait` lets a sender's own task send when nothing is queued.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import trio

from .transport import CHUNK, Address, Interrupted, Pieces, StreamTransport, Transport, take

__all__ = ["SocketTransport", "transport_of"]

# Below the system's limit on elements of one sendmsg() everywhere (POSIX promises 16, Linux has 1024).
_MAX_PIECES: Final = 256
# What a read asks for while data stream in.
_MOST: Final = 4 * CHUNK


class SocketTransport(Transport):
    """A connected stream socket as a transport.

    Args:
        sock: the socket, non-blocking; the transport owns it from now on.
        peer: the peer's address; asked from the socket if not given.
    """

    __slots__ = ("_ask_for", "_sock")

    def __init__(self, sock: socket.socket, peer: Address = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._ask_for = CHUNK
        self.peer = peer if peer is not None else _address(sock.getpeername)
        self.local = _address(sock.getsockname)
        if sock.family != socket.AF_UNIX:
            # Small messages must not wait for the peer's delayed ACK (RFC 896, Nagle).
            with suppress(OSError):  # some systems refuse it once the peer has reset
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    interruptible = True

    def interrupt(self) -> None:
        # Wakes everybody who waits for the socket; who was not meant waits again.
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)

    async def _check_open(self) -> None:
        if self._sock.fileno() == -1:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this side closed the socket") from None

    async def receive(self) -> bytes:
        await self._check_open()
        while True:
            try:
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                await self._check_open()
                raise Interrupted from None
            try:
                data = self._sock.recv(self._ask_for)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as exc:
                raise _broken(exc) from exc
            # A full read means that more is there, and every wake-up saved counts.
            self._ask_for = _MOST if len(data) >= CHUNK else CHUNK
            return data

    def _send(self, pieces: Pieces) -> None:
        if len(pieces) == 1:
            only = pieces[0]
            sent = self._sock.send(only)
            if sent == len(only):
                pieces.clear()
                return
        else:
            sent = self._sock.sendmsg(pieces[:_MAX_PIECES])
        take(pieces, sent)

    def send_nowait(self, data: bytes) -> int:
        try:
            return self._sock.send(data)
        except OSError:
            return 0  # full, or broken: either way the writer's next send_some finds out

    async def send_some(self, pieces: Pieces) -> None:
        await self._check_open()
        while True:
            try:
                await trio.lowlevel.wait_writable(self._sock)
                self._send(pieces)
                return
            except (BlockingIOError, InterruptedError):
                continue
            except trio.ClosedResourceError:
                await self._check_open()
            except OSError as exc:
                raise _broken(exc) from exc

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    async def aclose(self, *, graceful: bool) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()


def _broken(exc: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if exc.errno == errno.EBADF:  # closed by another task of ours
        return trio.ClosedResourceError("this side closed the socket")
    return trio.BrokenResourceError(f"the connection broke: {exc.strerror or exc}")


def _address(ask: Callable[[], object]) -> Address:
    try:
        address = ask()
    except OSError:
        return None
    if isinstance(address, bytes):
        return address.decode(errors="surrogateescape")
    if isinstance(address, str):
        return address or None
    return cast("Address", address)


def transport_of(stream: trio.abc.Stream, *, owned: bool) -> Transport:
    """The transport for a stream.

    Args:
        stream: what to carry bytes over.
        owned: whether we opened or accepted it, so that nobody else holds it: a `trio.SocketStream` then gives
            its socket away.
    """
    if owned and isinstance(stream, trio.SocketStream):
        return SocketTransport(socket.socket(fileno=stream.socket.detach()))
    inner = stream
    while isinstance(inner, trio.SSLStream):
        inner = inner.transport_stream
    if isinstance(inner, trio.SocketStream):
        peer, local = _address(inner.socket.getpeername), _address(inner.socket.getsockname)
        return StreamTransport(stream, peer=peer, local=local)
    return StreamTransport(stream)
