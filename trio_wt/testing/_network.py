"""stub"""

from __future__ import annotations

import heapq
import itertools
import random

import trio

from .._transport.udp import DatagramSocket


class Network:
    def __init__(
        self, seed=0, *, loss=0, delay=0.001, reorder=0, duplicate=0, corrupt=0, mtu=65507
    ):
        self.random = random.Random(seed)
        self.loss = loss
        self.delay = delay
        self.mtu = mtu
        self.sockets = {}
        self.n = itertools.count()
        self.reorder = reorder
        self.duplicate = duplicate
        self.corrupt = corrupt

    def socket(self, address=None):
        address = address or (f"10.0.0.{len(self.sockets) + 1}", 1000)
        s = NetworkSocket(self, address)
        self.sockets[address] = s
        return s


class NetworkSocket(DatagramSocket):
    def __init__(self, net, address):
        self.net = net
        self.address = address
        self.q = []
        self.ev = trio.Event()
        self.closed = False

    family = 0

    @property
    def local_address(self):
        return self.address

    def receive(self):
        if self.closed:
            raise trio.ClosedResourceError
        now = trio.current_time()
        out = []
        while self.q and self.q[0][0] <= now and len(out) < 64:
            _, _, d, a = heapq.heappop(self.q)
            out.append((d, a))
        return out

    def send(self, datagrams):
        net = self.net
        for d, a in datagrams:
            if net.random.random() < net.loss or len(d) > net.mtu:
                continue
            delay = (
                net.delay if isinstance(net.delay, (int, float)) else net.random.uniform(*net.delay)
            )
            t = net.sockets.get(a)
            if t:
                heapq.heappush(t.q, (trio.current_time() + delay, next(net.n), d, self.address))
                t.ev.set()
        return len(datagrams)

    async def wait_readable(self):
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            now = trio.current_time()
            if self.q and self.q[0][0] <= now:
                await trio.lowlevel.checkpoint()
                return
            self.ev = trio.Event()
            with trio.move_on_at(self.q[0][0] if self.q else float("inf")):
                await self.ev.wait()

    async def wait_writable(self):
        await trio.lowlevel.checkpoint()

    def close(self):
        self.closed = True
        self.ev.set()
