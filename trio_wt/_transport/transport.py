"""How a connection's bytes move, whatever moves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final, TypeAlias

import trio

__all__ = ["CHUNK", "Address", "Interrupted", "Pieces", "StreamTransport", "Transport", "take"]

#: What a socket calls an address: (host, port, ...) for IP, a path for Unix, None where there is none.
Address: TypeAlias = "tuple[str, int] | str | None"
#: Bytes to send, in order; senders take from its beginning what they have sent.
Pieces: TypeAlias = "list[bytes | memoryview]"

#: How much one receive asks for, and how much one send to a stream carries.
CHUNK: Final = 65536

_FAREWELL: Final = 1.0


class Interrupted(Exception):
    """`Transport.interrupt` ended a receive; nothing was received."""


class Transport(ABC):
    """A pair of byte streams with a connection's reader on one end and its writer on the other.

    Attributes:
        peer: the peer's address, where it is known.
        local: this side's address.
        interruptible: whether `interrupt` works.
    """

    __slots__ = ("local", "peer")

    peer: Address
    local: Address
    interruptible: ClassVar[bool] = False

    def interrupt(self) -> None:
        """Make a `receive` that waits raise `Interrupted`."""
        raise TypeError("this transport cannot be interrupted")

    @abstractmethod
    async def receive(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed on this side.
        """

    def send_nowait(self, data: bytes) -> int:
        """Send what goes out without waiting: how many bytes did, perhaps none."""
        return 0  # a stream's send_all cannot be tried

    @abstractmethod
    async def send_some(self, pieces: Pieces) -> None:
        """Send at least something, waiting if need be.

        Cancelled, it has sent an unknown part where the transport is a `trio.abc.Stream`: it may not be used for
        sending again then.

        Raises:
            trio.BrokenResourceError: the connection broke.
            trio.ClosedResourceError: it was closed on this side.
        """

    @abstractmethod
    async def send_eof(self) -> None:
        """Say that nothing more will be sent, where the transport can; errors are swallowed."""

    @abstractmethod
    async def aclose(self, *, graceful: bool) -> None:
        """Close.

        Args:
            graceful: say goodbye on the layers below (TLS's close_notify), for a second at most.
        """

    def certificate(self) -> bytes | None:
        """The peer's certificate as DER, if the peer showed one over TLS."""
        return None


def take(pieces: Pieces, size: int) -> None:
    """Drop the first ``size`` bytes."""
    done = 0
    while size:
        first = pieces[done]
        if len(first) > size:
            pieces[done] = memoryview(first)[size:]
            break
        size -= len(first)
        done += 1
    del pieces[:done]


class StreamTransport(Transport):
    """Any `trio.abc.Stream` as a transport, TLS among them.

    Args:
        stream: the stream; the transport owns it from now on.
        peer: what `Transport.peer` is to say.
        local: what `Transport.local` is to say.
    """

    __slots__ = ("_stream",)

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        peer: Address = None,
        local: Address = None,
    ) -> None:
        self._stream = stream
        self.peer = peer
        self.local = local

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(CHUNK))

    async def send_some(self, pieces: Pieces) -> None:
        first = pieces[0]
        if len(first) >= CHUNK:
            chunk: bytes | memoryview = memoryview(first)[:CHUNK]
        else:
            parts: list[bytes | memoryview] = []
            size = 0
            for piece in pieces:
                size += len(piece)
                if parts and size > CHUNK:
                    break
                parts.append(piece)
            chunk = b"".join(parts)
        await self._stream.send_all(chunk)
        take(pieces, len(chunk))

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
        else:
            await trio.lowlevel.checkpoint()

    async def aclose(self, *, graceful: bool) -> None:
        with trio.move_on_after(_FAREWELL if graceful else 0):
            await self._stream.aclose()

    def certificate(self) -> bytes | None:
        if not isinstance(self._stream, trio.SSLStream):
            return None
        certificate: bytes | None = self._stream.getpeercert(binary_form=True)
        return certificate
