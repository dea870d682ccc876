"""What streams, datagrams and queues of streams stand on: a QUIC connection, or a session that shares one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import trio

from .._errors import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from .settings import QuicSettings

if TYPE_CHECKING:
    from .send_stream import SendStream

__all__ = ["MAX_CODE", "Carrier", "Sink"]

#: The largest error code (RFC 9000 section 20.2).
MAX_CODE: Final = 2**62 - 1


class Sink(Protocol):
    """What takes in what happens to a stream."""

    def arrived(self, data: bytes, *, fin: bool) -> None:
        """Bytes have come, and perhaps the end."""

    def was_reset(self, code: int) -> None:
        """The peer has reset the stream."""

    def was_stopped(self, code: int) -> None:
        """The peer does not want more."""

    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended."""


class Carrier(ABC):
    """What the objects that an application holds need of what carries them.

    Attributes:
        blocked: streams with a task that waits for room to send.
        is_peers_fault: it has ended by what the peer did, though this side has said so.
        max_code: the largest error code of an application's.
        end: how it ended, as an error; None while it has not.
        noun: what it is, for messages.
        settings: limits, times and codes.
    """

    __slots__ = ()

    noun: ClassVar[str] = "connection"
    max_code: ClassVar[int] = MAX_CODE

    blocked: set[SendStream]
    end: ConnectionClosed | None
    is_peers_fault: bool
    settings: QuicSettings

    # ---- sending

    @abstractmethod
    def room(self, stream_id: int) -> int:
        """How many bytes of a stream may be handed over now; none if that is not positive."""

    @abstractmethod
    def send(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False
    ) -> None:
        """Take bytes, and perhaps the end, of a stream; within its room."""

    @abstractmethod
    def push(self) -> None:
        """Let what was handed over go out now, if nothing is in the way."""

    @abstractmethod
    def wake(self) -> None:
        """Let what was handed over go out soon."""

    @abstractmethod
    def reset(self, stream_id: int, code: int) -> None:
        """Give up sending on a stream."""

    @abstractmethod
    def abandoned(self, stream_id: int) -> None:
        """Nothing more of a stream will be sent: it was reset here, or stopped by the peer."""

    @abstractmethod
    def prioritise(self, stream_id: int, priority: int) -> None:
        """Serve a stream before those of a lower priority."""

    # ---- receiving

    @abstractmethod
    def received(self, stream_id: int, count: int, *, fin: bool) -> None:
        """So many bytes of a stream have come, and perhaps its end."""

    @abstractmethod
    def consume(self, stream_id: int, count: int) -> None:
        """The application has taken so many bytes: the peer may send as many more."""

    @abstractmethod
    def discard(self, stream_id: int, count: int) -> None:
        """So many bytes have come that nobody will take."""

    @abstractmethod
    def settle(self, stream_id: int) -> None:
        """Nothing more of a stream will be received."""

    @abstractmethod
    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to send no more on a stream."""

    @abstractmethod
    def release(self, stream_id: int) -> None:
        """The application is done with a stream, both ways."""

    # ---- streams

    @abstractmethod
    async def open(self, *, unidirectional: bool) -> int:
        """Open a stream when the peer lets us, first come, first served; its number. A checkpoint.

        Raises:
            ConnectionClosed: there was an end.
            trio.ClosedResourceError: it was closed on this side.
        """

    @abstractmethod
    def adopt(self, stream_id: int, stream: Sink) -> None:
        """From now on a stream's events go there."""

    # ---- codes and ends

    def check_code(self, code: int) -> None:
        """Raise `ValueError` for what is no error code of an application's."""
        if not 0 <= code <= self.max_code:
            bits = self.max_code.bit_length()
            raise ValueError(f"an error code is at least 0 and less than 2^{bits}, not {code}")

    def puts_off(self, wire_code: int, action: Callable[[], None]) -> bool:
        """Whether a reset, or a stop, is to be told of later, by calling ``action``, or not at all."""
        return False

    def application_code(self, wire_code: int) -> int:
        """What a peer's application meant by a code of the wire; 0 if it was none of an application's."""
        return wire_code

    def check_open(self, *, iterating: bool = False) -> None:
        """Raise `closed_error`, if there was an end."""
        if self.end is not None:
            raise self.closed_error(iterating=iterating) from self.end.__cause__

    def closed_error(self, *, iterating: bool = False) -> Exception:
        """The end as an exception of its own for each who meets it; ``iterating`` says that a clean one was to be expected."""
        end = self.end
        if end is None or not (end.remote or self.is_peers_fault):
            return trio.ClosedResourceError(f"the {self.noun} was closed on this side")
        if isinstance(end, ConnectionClosedOK) and not iterating:
            return ConnectionClosedError(end.code, end.reason, remote=end.remote)
        return type(end)(end.code, end.reason, remote=end.remote)

    # ---- datagrams

    @property
    @abstractmethod
    def max_datagram(self) -> int:
        """The most bytes that a datagram may have now; 0 if the peer takes none."""

    @abstractmethod
    def queue_datagram(self, data: bytes) -> None:
        """Take a datagram that fits."""
