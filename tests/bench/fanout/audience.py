"""The neutral client: one socket that publishes, and many that listen.

As that of the echo benchmark, it must never be what is measured: messages are framed before the clock starts, and what comes is
counted in bytes, not parsed. Before and after, a whole message is compared byte by byte on every socket.
"""

from __future__ import annotations

import select
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..client import STALL, BenchError, Exchange, connect, disconnect
from .servers import PUBLISH_PATH

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

NAP = 50e-6
"""Seconds to sleep when nothing has come: waking a client that waits would be the server's work."""


@dataclass(frozen=True)
class Heard:
    """What came of some messages."""

    seconds: float
    latencies: list[float]
    """Of each message: the seconds from when it was published until the last one had it."""
    server_cpu: float
    """Microseconds of CPU that the server spent on each delivery."""
    client_load: float
    """The client's CPU time as a share of the time that passed; near 1 it is the bottleneck."""


class Audience:
    """A context manager around the sockets, connected and listening."""

    def __init__(self, port: int, count: int, size: int, clock: Callable[[], float]) -> None:
        self.count = count
        self._port = port
        self._clock = clock
        self._exchange = Exchange.of_size(size, framed=True)
        self._sockets: dict[int, socket.socket] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._poll = stack.enter_context(select.epoll())
            self._publisher = stack.enter_context(connect(self._port, PUBLISH_PATH, framed=True))
            for _ in range(self.count):
                sock = stack.enter_context(connect(self._port, "/", framed=True))
                sock.setblocking(False)
                self._sockets[sock.fileno()] = sock
                self._poll.register(sock, select.EPOLLIN)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def leave(self) -> None:
        """Say goodbye on every socket."""
        for sock in [*self._sockets.values(), self._publisher]:
            sock.setblocking(True)
            disconnect(sock, framed=True)

    def check(self) -> None:
        """One message, compared byte by byte on every socket."""
        reply = self._exchange.reply
        self._publisher.sendall(self._exchange.request)
        got = dict.fromkeys(self._sockets, b"")
        limit = time.monotonic() + STALL
        left = self.count
        while left:
            if time.monotonic() > limit:
                raise BenchError(f"{left} of {self.count} did not get the message")
            for number, _ in self._poll.poll(0.1):
                got[number] += self._sockets[number].recv(65536)
                if len(got[number]) >= len(reply):
                    left -= 1
                    if got[number] != reply:
                        raise BenchError(f"the message came as {got[number][:40]!r}")

    def listen(self, seconds: float, *, window: int, pause: float = 0) -> Heard:
        """Publish for so long, and hear everything.

        Args:
            seconds: for how long messages are published.
            window: how many messages may be under way.
            pause: seconds between the beginnings of two messages, at the least.
        """
        self.check()
        size, count, sockets = len(self._exchange.reply), self.count, self._sockets
        request, publish, poll = self._exchange.request, self._publisher.sendall, self._poll.poll
        heard = dict.fromkeys(sockets, 0)
        begun: list[float] = []
        missing: list[int] = []
        latencies: list[float] = []
        buffer = bytearray(1 << 16)
        now = time.perf_counter
        server, client, start = self._clock(), time.process_time(), now()
        until, due, last_sign = start + seconds, start, start
        while True:
            moment = now()
            if moment < until:
                if moment >= due and len(begun) - len(latencies) < window:
                    begun.append(moment)
                    missing.append(count)
                    publish(request)
                    due = max(due + pause, moment)
            elif len(latencies) == len(begun):
                break
            events = poll(0)
            if not events:
                if moment > last_sign + STALL:
                    raise BenchError(f"nothing came for {STALL} seconds")
                time.sleep(NAP)
                continue
            last_sign = moment
            for number, _ in events:
                got = sockets[number].recv_into(buffer)
                if not got:
                    raise BenchError("the server closed a connection")
                before = heard[number]
                after = heard[number] = before + got
                for message in range(before // size, after // size):
                    missing[message] -= 1
                    if not missing[message]:
                        latencies.append(now() - begun[message])
        passed = now() - start
        client, server = time.process_time() - client, self._clock() - server
        self.check()
        return Heard(passed, latencies, server / (len(begun) * count) * 1e6, client / passed)
