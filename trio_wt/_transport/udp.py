"""UDP sockets: datagrams in batches, with the kernel's help where it has any.

Linux can take a train of datagrams in one call (GSO, UDP_SEGMENT) and hand one out in one (GRO), each at a fraction of the cost of
single calls. Neither is needed: what a kernel does not know is not asked for twice.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import trio

from .._protocol.route import Sockaddr

__all__ = ["DatagramSocket", "UdpSocket", "check_route", "open_udp_socket", "open_udp_sockets"]

# linux/udp.h, linux/in.h and linux/in6.h; Python's socket module does not have them in all versions.
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3

_MAX_BATCH: Final = 64
_MAX_TRAIN_SEGMENTS: Final = 64
_MAX_TRAIN_BYTES: Final = 65000
_MAX_DATAGRAM: Final = 65535
_BUFFER_SIZE: Final = 4 * 2**20
_ANCILLARY_SIZE: Final = 64
# A datagram alone that is smaller than this is taken for one of a conversation rather than of a transfer.
_SMALL: Final = 1000

_MAX_PORT: Final = 65535

_WOULD_BLOCK: Final = {errno.EAGAIN, errno.EWOULDBLOCK}
# What a kernel answers that has no segmentation, or none for this interface.
_NO_SEGMENTATION: Final = {errno.EINVAL, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP}


class DatagramSocket(ABC):
    """What a QUIC endpoint needs of a socket, be it the system's or one in memory."""

    __slots__ = ()

    @property
    @abstractmethod
    def local_address(self) -> Sockaddr:
        """The address that it is bound to."""

    @property
    @abstractmethod
    def family(self) -> int:
        """The address family, as in the `socket` module."""

    @abstractmethod
    def receive(self) -> list[tuple[bytes, Sockaddr]]:
        """What has arrived, some dozens of datagrams at most, with their senders; nothing if there is nothing. Never waits.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """

    @abstractmethod
    def send(self, datagrams: Sequence[tuple[bytes, Sockaddr]]) -> int:
        """Send datagrams, in order. Never waits.

        A datagram that the system will not carry, because it is too large or its way is closed, counts as sent: it is
        lost, as datagrams are.

        Returns:
            how many were sent, from the front; fewer than all if the next would have to wait.
        """

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until there may be something to receive, for one task at a time.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """

    @abstractmethod
    async def wait_writable(self) -> None:
        """Wait until something may be sent again; any number of tasks may wait.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it; tasks that wait get `trio.ClosedResourceError`."""


class UdpSocket(DatagramSocket):
    """A UDP socket of the system's.

    Args:
        socket: a bound datagram socket; owned from now on.
    """

    __slots__ = ("_address", "_coalesces", "_segments", "_socket", "_writable")

    def __init__(self, socket: stdlib_socket.socket) -> None:
        socket.setblocking(False)
        self._socket = socket
        self._address: Sockaddr = socket.getsockname()
        self._writable: trio.Lock | None = None
        for option in (stdlib_socket.SO_RCVBUF, stdlib_socket.SO_SNDBUF):
            _try_option(socket, stdlib_socket.SOL_SOCKET, option, _BUFFER_SIZE)
        self._segments = self._coalesces = False
        if sys.platform == "linux":
            # Packets must not be cut into fragments (RFC 9000 section 14), and the kernel's own idea of the path's MTU is
            # not asked: we probe.
            _try_option(socket, stdlib_socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            if socket.family == stdlib_socket.AF_INET6:
                _try_option(socket, stdlib_socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._segments = True
            self._coalesces = _try_option(socket, _SOL_UDP, _UDP_GRO, 1)

    @property
    def local_address(self) -> Sockaddr:
        """The address that it is bound to."""
        return self._address

    @property
    def family(self) -> int:
        """The address family, as in the `socket` module."""
        return int(self._socket.family)

    # ---- receiving

    def receive(self) -> list[tuple[bytes, Sockaddr]]:
        """What has arrived, 64 datagrams or a train more at most, with their senders. Never waits.

        Raises:
            trio.ClosedResourceError: the socket was closed.
            OSError: the socket is broken for good.
        """
        batch: list[tuple[bytes, Sockaddr]] = []
        errors = 0
        while len(batch) < _MAX_BATCH:
            try:
                if not self._coalesces:
                    batch.append(self._socket.recvfrom(_MAX_DATAGRAM))
                    continue
                data, ancillary, _, sender = self._socket.recvmsg(_MAX_DATAGRAM, _ANCILLARY_SIZE)
            except OSError as exc:
                if self._socket.fileno() < 0:
                    raise trio.ClosedResourceError("the socket was closed") from None
                if exc.errno in _WOULD_BLOCK:
                    break
                errors += 1
                if errors > _MAX_BATCH:
                    raise
                continue  # what became of something sent before: ECONNREFUSED and the like
            size = _segment_size(ancillary)
            if 0 < size < len(data):
                batch += [(data[at : at + size], sender) for at in range(0, len(data), size)]
            else:
                batch.append((data, sender))
                if len(batch) == 1 and len(data) < _SMALL:
                    break  # the next is worth a wait: a conversation has one packet at a time
        return batch

    # ---- sending

    def send(self, datagrams: Sequence[tuple[bytes, Sockaddr]]) -> int:
        """Send datagrams, in order, in trains where they go the same way and have the same size. Never waits.

        Returns:
            how many were sent, or lost, from the front.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        sent = 0
        while sent < len(datagrams):
            count = self._train(datagrams, sent) if self._segments else 1
            try:
                if count > 1:
                    self._send_train(datagrams[sent : sent + count])
                else:
                    data, address = datagrams[sent]
                    self._socket.sendto(data, address)
            except OSError as exc:
                if self._socket.fileno() < 0:
                    raise trio.ClosedResourceError("the socket was closed") from None
                if exc.errno in _WOULD_BLOCK:
                    break
                if count > 1:
                    if exc.errno in _NO_SEGMENTATION:
                        self._segments = False
                    else:
                        # One of them is too large for the way, or the way is closed: let each find out.
                        sent += self._send_singly(datagrams[sent : sent + count])
                    continue
            sent += count
        return sent

    def _train(self, datagrams: Sequence[tuple[bytes, Sockaddr]], start: int) -> int:
        """How many datagrams, from ``start``, the kernel can cut from one piece: all equal, but for a shorter last one."""
        first, address = datagrams[start]
        size = len(first)
        limit = min(len(datagrams), start + min(_MAX_TRAIN_SEGMENTS, _MAX_TRAIN_BYTES // size))
        end = start + 1
        while end < limit:
            data, to = datagrams[end]
            if len(data) > size or to != address:
                break
            end += 1
            if len(data) < size:
                break
        return end - start

    def _send_train(self, train: Sequence[tuple[bytes, Sockaddr]]) -> None:
        first, address = train[0]
        segment = (_SOL_UDP, _UDP_SEGMENT, struct.pack("H", len(first)))
        self._socket.sendmsg([data for data, _ in train], [segment], 0, address)

    def _send_singly(self, train: Sequence[tuple[bytes, Sockaddr]]) -> int:
        for index, (data, address) in enumerate(train):
            try:
                self._socket.sendto(data, address)
            except OSError as exc:
                if exc.errno in _WOULD_BLOCK:
                    return index
        return len(train)

    # ---- waiting

    async def wait_readable(self) -> None:
        """Wait until there may be something to receive, for one task at a time.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        if self._socket.fileno() < 0:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the socket was closed")
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Wait until something may be sent again; any number of tasks may wait.

        Raises:
            trio.ClosedResourceError: the socket was closed.
        """
        if self._writable is None:
            self._writable = trio.Lock()
        async with self._writable:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError("the socket was closed")
            await trio.lowlevel.wait_writable(self._socket)

    def close(self) -> None:
        """Close it; tasks that wait get `trio.ClosedResourceError`."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _try_option(socket: stdlib_socket.socket, level: int, option: int, value: int) -> bool:
    """Set an option that a system may lack; whether it has it."""
    try:
        socket.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _segment_size(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    """The size of the datagrams that a received train consists of; 0 if it is a single one."""
    for level, kind, value in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            return int.from_bytes(value[:4], sys.byteorder)
    return 0


async def open_udp_socket(
    host: str | bytes | None, port: int, *, family: int = stdlib_socket.AF_UNSPEC
) -> UdpSocket:
    """A socket bound to an address.

    Args:
        host: a name or an address of this machine's; None for all of its addresses.
        port: 0 for any.
        family: the address family to use; by default IPv6 for IPv4 too where that is to be had, for a host of None.

    Raises:
        OSError: the address cannot be bound.
        OverflowError: there is no such port.
    """
    if not 0 <= port <= _MAX_PORT:
        await trio.lowlevel.checkpoint()
        raise OverflowError(f"a port is from 0 to {_MAX_PORT}, not {port}")
    if host is None and family == stdlib_socket.AF_UNSPEC:
        await trio.lowlevel.checkpoint()
        return _bind_all(port)
    found = await trio.socket.getaddrinfo(
        host,
        port,
        family=family,
        type=stdlib_socket.SOCK_DGRAM,
        flags=stdlib_socket.AI_PASSIVE,
    )
    found_family, _, _, _, address = found[0]
    return _bind(found_family, address)


async def open_udp_sockets(port: int, host: str | bytes | None) -> list[UdpSocket]:
    """The sockets of a server, one for each address of a host.

    Args:
        port: the port; 0 takes one that is free on all of them.
        host: a name or an address of this machine's; None for all, by one socket for IPv6 and IPv4 where the system has both.

    Raises:
        OSError: an address cannot be bound.
    """
    if host is None:
        await trio.lowlevel.checkpoint()
        return [_bind_all(port)]
    found = await trio.socket.getaddrinfo(
        host, port, type=stdlib_socket.SOCK_DGRAM, flags=stdlib_socket.AI_PASSIVE
    )
    sockets: list[UdpSocket] = []
    try:
        for family, _, _, _, address in found:
            if sockets and not port:
                address = (address[0], sockets[0].local_address[1], *address[2:])
            sockets.append(_bind(family, address))
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def check_route(family: int, remote: Sockaddr) -> None:
    """Ask the system whether it knows a way to an address; nothing is sent.

    Raises:
        OSError: it knows none.
    """
    with stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM) as probe:
        probe.connect(remote)


def _bind_all(port: int) -> UdpSocket:
    if stdlib_socket.has_dualstack_ipv6():
        try:
            return _bind(stdlib_socket.AF_INET6, ("::", port), dual_stack=True)
        except OSError as exc:
            if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return _bind(stdlib_socket.AF_INET, ("0.0.0.0", port))  # noqa: S104  # all addresses are what was asked for


def _bind(family: int, address: Sockaddr, *, dual_stack: bool = False) -> UdpSocket:
    socket = stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM)
    try:
        if family == stdlib_socket.AF_INET6:
            socket.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, not dual_stack)
        socket.bind(address)
        return UdpSocket(socket)
    except BaseException:
        socket.close()
        raise
