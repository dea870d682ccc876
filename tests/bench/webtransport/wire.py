"""What the contestants' clients and servers say to each other, beyond what those of QUIC do.

Streams and messages are those of ``tests.bench.quic``, and two more: a datagram that begins with
``FLOOD`` is counted in place of sent back, and a stream of ``TALLY`` is answered with the count.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ..quic.wire import Peer

PATH = "/bench"
FLOOD = b"F"
TALLY = b"T"

_FORMAT = struct.Struct("!Qdd")


def flood_message(number: int) -> bytes:
    """A datagram of the flood with that number."""
    return FLOOD + bytes([number]) + bytes(62)


class Tally(NamedTuple):
    """What has come of a flood, and when, by the server's clock."""

    count: int
    first: float
    last: float

    @classmethod
    def read(cls, data: bytes) -> Self:
        return cls(*_FORMAT.unpack(data))


class Counter:
    """What a server has seen of floods; a new number begins a new count."""

    def __init__(self) -> None:
        self._number = -1
        self._count = 0
        self._first = self._last = 0.0

    def note(self, data: bytes | memoryview) -> None:
        self._last = time.perf_counter()
        if data[1] != self._number:
            self._number, self._count, self._first = data[1], 0, self._last
        self._count += 1

    def tally(self) -> bytes:
        return _FORMAT.pack(self._count, self._first, self._last)


class Session(Protocol):
    """One session of a contestant's client. What comes back is checked everywhere."""

    async def round_trips(self, count: int) -> None:
        """Messages on one stream of their own, each sent when the last has come back."""

    async def requests(self, count: int) -> None:
        """Messages on a new stream each, with its end, answered likewise, one after the other."""

    async def datagrams(self, count: int) -> None:
        """Messages in datagrams, each sent when the last has come back."""

    async def flood(self, number: int, seconds: float) -> int:
        """As many datagrams as the library takes in that time; returns how many."""
        ...

    async def tally(self) -> bytes:
        """What the server says of the flood."""
        ...

    async def upload(self, size: int) -> None:
        """As many bytes on a stream, in chunks, and wait for the server to confirm them."""

    async def download(self, size: int) -> None:
        """Ask for as many bytes on a stream, and read them to their end."""


class Client(Protocol):
    """A contestant's client. `run` is the event loop's: it takes an async function."""

    def __init__(self, peer: Peer) -> None: ...

    def connect(self) -> AbstractAsyncContextManager[Session]:
        """A session on a connection of its own, which the server has accepted."""
        ...

    def run(self, function: Callable[[], Awaitable[None]]) -> None: ...

    async def sleep(self, seconds: float) -> None: ...


class Module(Protocol):
    """What each ``with_*`` module has."""

    Client: type[Client]

    def run_server(self, peer: Peer, ready: Callable[[], None]) -> None:
        """Serve for ever; call `ready` when a client may come."""
