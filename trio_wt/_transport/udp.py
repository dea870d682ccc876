"""stub"""

from __future__ import annotations

import socket as stdsocket
from abc import ABC, abstractmethod

import trio

from .._protocol.route import Sockaddr


class DatagramSocket(ABC):
    @property
    @abstractmethod
    def local_address(self) -> Sockaddr: ...
    @abstractmethod
    def receive(self): ...
    @abstractmethod
    def send(self, datagrams): ...
    @abstractmethod
    async def wait_readable(self): ...
    @abstractmethod
    async def wait_writable(self): ...
    @abstractmethod
    def close(self): ...


class UdpSocket(DatagramSocket):
    def __init__(self, s):
        self.s = s
        self.closed = False
        self.lock = trio.Lock()

    @property
    def family(self):
        return self.s.family

    @property
    def local_address(self):
        return self.s.getsockname()

    def receive(self):
        out = []
        if self.closed:
            raise trio.ClosedResourceError
        while len(out) < 64:
            try:
                out.append(self.s.recvfrom(65536))
            except BlockingIOError:
                break
        return out

    def send(self, datagrams):
        n = 0
        for d, a in datagrams:
            try:
                self.s.sendto(d, a)
            except BlockingIOError:
                break
            except OSError:
                pass
            n += 1
        return n

    async def wait_readable(self):
        await trio.lowlevel.wait_readable(self.s)

    async def wait_writable(self):
        async with self.lock:
            await trio.lowlevel.wait_writable(self.s)

    def close(self):
        self.closed = True
        trio.lowlevel.notify_closing(self.s)
        self.s.close()


async def open_udp_socket(host, port, *, family=stdsocket.AF_INET):
    await trio.lowlevel.checkpoint()
    s = stdsocket.socket(family, stdsocket.SOCK_DGRAM)
    s.setblocking(False)
    s.bind((host or ("" if family == stdsocket.AF_INET else "::"), port))
    return UdpSocket(s)


async def open_udp_sockets(port, host):
    return [await open_udp_socket(host, port)]
