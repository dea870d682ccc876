"""A network in memory that loses, delays, reorders, duplicates and damages datagrams, the same way for the same seed."""

from __future__ import annotations

import errno
import heapq
import os
import random
import socket as stdlib_socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

import trio

from .._protocol.route import Sockaddr
from .._transport.udp import DatagramSocket

__all__ = ["Network", "NetworkSocket", "NetworkStatistics"]

#: Decides about a datagram by its bytes, sender and receiver: whether it goes on its way.
Filter: TypeAlias = Callable[[bytes, Sockaddr, Sockaddr], bool]

_MAX_QUEUED: Final = 4096
_MAX_QUEUED_BYTES: Final = 4 * 2**20
_MAX_BATCH: Final = 64
_FIRST_PORT: Final = 49152


@dataclass(slots=True)
class NetworkStatistics:
    """What became of the datagrams of a `Network`.

    Attributes:
        sent: given to the network.
        delivered: received, copies included.
        lost: lost at random, in a black hole, or to a filter.
        duplicated: sent a second time by the network.
        corrupted: damaged by the network.
        too_large: lost because they were larger than ``mtu``.
        overflowed: lost because the bottleneck's queue, or the receiver's, was full.
        unreachable: sent where nobody is.
    """

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    too_large: int = 0
    overflowed: int = 0
    unreachable: int = 0


class Network:
    """A network whose sockets serve `open_quic` and `serve_quic` in place of the system's.

    It runs on Trio's clock, so a test under `trio.testing.MockClock` with autojump waits for nothing. All parameters are
    attributes too, and may be changed while it runs. Probabilities are from 0 to 1, times in seconds, sizes in bytes.

    Args:
        seed: the same seed, and the same datagrams, make the same network.
        loss: how probably a datagram is lost.
        delay: how long a datagram takes one way; two numbers for anything between them.
        reorder: how probably a datagram takes one more delay, so that later ones overtake it.
        duplicate: how probably a datagram arrives twice.
        corrupt: how probably one of its bits is flipped.
        mtu: larger datagrams vanish.
        rate: a bottleneck of so many bytes a second in each direction between two sockets; None for none.
        queue: how many bytes wait at the bottleneck; what comes then is lost.
        drop: decides about each datagram; False loses it.

    Attributes:
        statistics: what became of the datagrams.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0,
        delay: float | tuple[float, float] = 0.001,
        reorder: float = 0,
        duplicate: float = 0,
        corrupt: float = 0,
        mtu: int = 65507,
        rate: float | None = None,
        queue: int = 2**18,
        drop: Filter | None = None,
    ) -> None:
        self.loss: float = loss
        self.delay: float | tuple[float, float] = delay
        self.reorder: float = reorder
        self.duplicate: float = duplicate
        self.corrupt: float = corrupt
        self.mtu: int = mtu
        self.rate: float | None = rate
        self.queue: int = queue
        self.drop: Filter | None = drop
        self.statistics: NetworkStatistics = NetworkStatistics()
        self._random = random.Random(seed)
        self._sockets: dict[Sockaddr, NetworkSocket] = {}
        self._hosts = 0
        self._count = 0
        self._dark_until = -inf
        # When the bottleneck of each direction is through with what it holds.
        self._busy_until: dict[tuple[Sockaddr, Sockaddr], float] = {}

    def socket(self, address: tuple[str, int] | None = None) -> NetworkSocket:
        """A socket of this network.

        Args:
            address: any name and port that is free; None for one that is.

        Raises:
            OSError: the address is in use.
        """
        address = address or self._free_address()
        if address in self._sockets:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        socket = self._sockets[address] = NetworkSocket(self, address)
        return socket

    def blackhole(self, seconds: float) -> None:
        """Lose everything that is sent in the next ``seconds``."""
        self._dark_until = trio.current_time() + seconds

    def _free_address(self) -> tuple[str, int]:
        self._hosts += 1
        return (
            f"10.{self._hosts >> 16 & 255}.{self._hosts >> 8 & 255}.{self._hosts & 255}",
            _FIRST_PORT,
        )

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def _pick_delay(self) -> float:
        if isinstance(self.delay, tuple):
            return self._random.uniform(*self.delay)
        return self.delay

    def _carry(self, data: bytes, source: Sockaddr, destination: Sockaddr) -> None:
        figures = self.statistics
        figures.sent += 1
        now = trio.current_time()
        if len(data) > self.mtu:
            figures.too_large += 1
            return
        refused = self.drop is not None and not self.drop(data, source, destination)
        if now < self._dark_until or self._chance(self.loss) or refused:
            figures.lost += 1
            return
        waiting = self._pass_bottleneck(len(data), (source, destination), now)
        if waiting is None:
            figures.overflowed += 1
            return
        copies = 1
        if self._chance(self.duplicate):
            figures.duplicated += 1
            copies = 2
        for _ in range(copies):
            delay = waiting + self._pick_delay()
            if self._chance(self.reorder):
                delay += self._pick_delay()
            self._deliver(self._damage(data), source, destination, now + delay)

    def _pass_bottleneck(
        self, size: int, way: tuple[Sockaddr, Sockaddr], now: float
    ) -> float | None:
        """How long a datagram waits for the bottleneck; None if there is no room for it."""
        if self.rate is None:
            return 0
        free_at = max(now, self._busy_until.get(way, now))
        if (free_at - now) * self.rate + size > self.queue:
            return None
        self._busy_until[way] = free_at + size / self.rate
        return self._busy_until[way] - now

    def _damage(self, data: bytes) -> bytes:
        if not data or not self._chance(self.corrupt):
            return data
        self.statistics.corrupted += 1
        damaged = bytearray(data)
        damaged[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    def _deliver(self, data: bytes, source: Sockaddr, destination: Sockaddr, due: float) -> None:
        socket = self._sockets.get(destination)
        if socket is None:
            self.statistics.unreachable += 1
            return
        self._count += 1
        if not socket._put(due, self._count, data, source):
            self.statistics.overflowed += 1


class NetworkSocket(DatagramSocket):
    """A socket of a `Network`, which makes it."""

    __slots__ = ("_address", "_arrival", "_closed", "_network", "_queue", "_queued_bytes")

    def __init__(self, network: Network, address: Sockaddr) -> None:
        self._network = network
        self._address: Sockaddr = address
        # What is on its way here: (due, number, data, sender).
        self._queue: list[tuple[float, int, bytes, Sockaddr]] = []
        self._queued_bytes = 0
        self._arrival = trio.Event()
        self._closed = False

    @property
    def local_address(self) -> Sockaddr:
        """The address from which its peers see it send."""
        return self._address

    @property
    def family(self) -> int:
        """The address family, which names nothing here."""
        return int(stdlib_socket.AF_UNSPEC)

    def rebind(self, address: tuple[str, int] | None = None) -> None:
        """Get another address, as from a NAT that has forgotten the old one; what is sent there vanishes.

        Args:
            address: the new one; None for any that is free.

        Raises:
            OSError: the address is in use.
        """
        network = self._network
        address = address or network._free_address()
        if address in network._sockets:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        network._sockets.pop(self._address, None)
        network._sockets[address] = self
        self._address = address

    def receive(self) -> list[tuple[bytes, Sockaddr]]:
        """What has arrived, 64 datagrams at most, with their senders. Never waits.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        self._check_open()
        now = trio.current_time()
        batch: list[tuple[bytes, Sockaddr]] = []
        while self._queue and self._queue[0][0] <= now and len(batch) < _MAX_BATCH:
            _, _, data, sender = heapq.heappop(self._queue)
            self._queued_bytes -= len(data)
            batch.append((data, sender))
        self._network.statistics.delivered += len(batch)
        return batch

    def send(self, datagrams: Sequence[tuple[bytes, Sockaddr]]) -> int:
        """Send datagrams; there always is room.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        self._check_open()
        for data, destination in datagrams:
            self._network._carry(data, self._address, destination)
        return len(datagrams)

    async def wait_readable(self) -> None:
        """Wait until something is there to receive, for one task at a time.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            due = self._queue[0][0] if self._queue else inf
            if due <= trio.current_time():
                return
            self._arrival = trio.Event()
            with trio.move_on_at(due):
                await self._arrival.wait()

    async def wait_writable(self) -> None:
        """A checkpoint: there always is room.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()

    def close(self) -> None:
        """Close it; tasks that wait get `trio.ClosedResourceError`."""
        if not self._closed:
            self._closed = True
            self._network._sockets.pop(self._address, None)
            self._queue.clear()
            self._arrival.set()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the socket was closed")

    def _put(self, due: float, number: int, data: bytes, sender: Sockaddr) -> bool:
        """A datagram is on its way here; whether there is room for it."""
        if len(self._queue) >= _MAX_QUEUED or self._queued_bytes + len(data) > _MAX_QUEUED_BYTES:
            return False
        earliest = not self._queue or due < self._queue[0][0]
        heapq.heappush(self._queue, (due, number, data, sender))
        self._queued_bytes += len(data)
        if earliest:
            self._arrival.set()
        return True
