"""What stands on a connection: an application's streams as they are, or HTTP/3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from .._errors import ConnectionClosed
from .datagrams import Datagrams
from .incoming import IncomingStreams
from .receive_stream import ReceiveStream
from .streams import Stream

if TYPE_CHECKING:
    from .driver import Driver

__all__ = ["RawStreams", "Upper"]


class Upper(ABC):
    """What a connection hands what it receives to, synchronously.

    Attributes:
        clean_code: the error code that closes a connection without any error.
        is_gentle: whether a connection whose block has failed is still closed without an error, once its last words are
            delivered: what has failed has said so itself.
    """

    clean_code: ClassVar[int] = 0
    is_gentle: ClassVar[bool] = False

    @abstractmethod
    def ready(self) -> None:
        """Streams may be opened from now on."""

    @abstractmethod
    def shutting_down(self) -> None:
        """The server is to come to its end, and accepts no more connections."""

    @abstractmethod
    def give_up(self, reason: str) -> None:
        """The time for that is up, and handlers have been cancelled: close what stands on the connection, or the connection."""

    @abstractmethod
    def opened(self, stream_id: int) -> None:
        """The peer has opened a stream: `Driver.adopt` what takes it in, or forget it by releasing it."""

    @abstractmethod
    def abandoned(self, stream_id: int) -> None:
        """The peer has stopped a stream that the application is done with: what was not sent of it will not be."""

    @abstractmethod
    def datagram_arrived(self, data: bytes) -> None:
        """A datagram has come."""

    @abstractmethod
    def lost(self, end: ConnectionClosed) -> None:
        """The connection has ended; its streams have been told."""

    @property
    @abstractmethod
    def has_datagrams(self) -> bool:
        """Whether datagrams have come that wait for the application."""


class RawStreams(Upper):
    """QUIC as it is: an application takes the streams and the datagrams.

    Args:
        driver: the connection.

    Attributes:
        datagrams: unreliable datagrams.
        incoming_streams: the bidirectional streams that the peer opens.
        incoming_receive_streams: the unidirectional ones.
    """

    def __init__(self, driver: Driver) -> None:
        self.datagrams: Datagrams = Datagrams(driver)
        self.incoming_streams: IncomingStreams[Stream] = IncomingStreams(driver)
        self.incoming_receive_streams: IncomingStreams[ReceiveStream] = IncomingStreams(driver)
        self._driver = driver

    def ready(self) -> None:
        """Nothing to be done about it."""

    def shutting_down(self) -> None:
        """Handlers are not told; they are given some time, and cancelled after that."""

    def give_up(self, reason: str) -> None:
        """The connection is all there is."""
        self._driver.shut(0, reason)

    def opened(self, stream_id: int) -> None:
        driver = self._driver
        if stream_id & 2:
            receive_stream = ReceiveStream(driver, stream_id)
            driver.adopt(stream_id, receive_stream)
            self.incoming_receive_streams.arrived(receive_stream)
        else:
            stream = Stream(driver, stream_id)
            driver.adopt(stream_id, stream)
            self.incoming_streams.arrived(stream)

    def abandoned(self, stream_id: int) -> None:
        """Nobody is concerned."""

    def datagram_arrived(self, data: bytes) -> None:
        self.datagrams.arrived(data)

    def lost(self, end: ConnectionClosed) -> None:
        for part in (self.datagrams, self.incoming_streams, self.incoming_receive_streams):
            part.lost(end)

    @property
    def has_datagrams(self) -> bool:
        return bool(self.datagrams.unread)
