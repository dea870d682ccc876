"""The neutral client: blocking and non-blocking sockets, and frames built before the clock starts.

It must never be what is measured. Requests are masked (RFC 6455, section 5.3) once, in advance,
and sent as they are; replies are not parsed: a server's frame is unmasked and its length known,
so counting bytes is enough while the clock runs. Before and after, a whole echo is compared byte
by byte, so that a server that answers something else is found out.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Clock = Callable[[], float]

STALL = 15
"""Seconds after which a server that does not answer fails its measurement."""

WARM_UP = 0.2
"""The share of a measurement's time that runs before it counts."""

BLOCK = 128 * 1024
"""Bytes of frames handed to the kernel in one call."""

SMALL = 4096
"""Bytes of a reply below which a pipelining client naps instead of polling."""

NAP = 20e-6
"""Seconds; with the kernel's slack it comes to some 70 microseconds."""

CLOSE = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
"""A masked Close frame with code 1000 (RFC 6455, section 5.5.1)."""


class BenchError(Exception):
    """A server did not do what an echo server does."""


@dataclass(frozen=True)
class Exchange:
    """What is sent for one message, and what must come back."""

    request: bytes
    reply: bytes

    @classmethod
    def of_size(cls, size: int, *, framed: bool) -> Exchange:
        """A binary message of `size` bytes; without `framed` only its payload, for bare TCP."""
        random = Random(size)
        payload, mask = random.randbytes(size), random.randbytes(4)
        if not framed:
            return cls(payload, payload)
        pad = -size % 4
        stretched = mask * ((size + pad) // 4)
        masked = int.from_bytes(payload + bytes(pad)) ^ int.from_bytes(stretched)
        body = masked.to_bytes(size + pad)[:size]
        return cls(_header(size, 0x80) + mask + body, _header(size, 0) + payload)


def _header(size: int, mask_bit: int) -> bytes:
    """The first bytes of a whole binary message (RFC 6455, section 5.2)."""
    if size < 126:
        return struct.pack("!BB", 0x82, mask_bit | size)
    if size < 65536:
        return struct.pack("!BBH", 0x82, mask_bit | 126, size)
    return struct.pack("!BBQ", 0x82, mask_bit | 127, size)


@dataclass(frozen=True)
class Sample:
    """One measurement of one server."""

    rate: float
    """Messages a second."""
    server_cpu: float
    """Microseconds of CPU that the server spent on a message."""
    client_load: float
    """The client's CPU time as a share of the time that passed; near 1 it is the bottleneck."""


def connect(port: int, path: str, *, framed: bool) -> socket.socket:
    """A connected socket, past the opening handshake (RFC 6455, section 4.1) if `framed`.

    Raises BenchError if the server declines, and OSError for what the network does.
    """
    sock = socket.create_connection(("127.0.0.1", port), timeout=STALL)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if framed:
            _upgrade(sock, port, path)
        # A limit kept by the kernel: with one of Python's, each call would poll first.
        sock.settimeout(None)
        limit = struct.pack("ll", STALL, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    except BaseException:
        sock.close()
        raise
    return sock


def _upgrade(sock: socket.socket, port: int, path: str) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    response = b""
    while not response.endswith(b"\r\n\r\n"):
        data = sock.recv(4096)
        if not data:
            break
        response += data
    if not response.startswith(b"HTTP/1.1 101 "):
        raise BenchError(f"the handshake was answered with {response[:80]!r}")


def disconnect(sock: socket.socket, *, framed: bool) -> None:
    """Say goodbye, so that no server logs a loss, and wait until the server is done; and close."""
    with sock:
        if framed:
            sock.sendall(CLOSE)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(BLOCK):
            pass


def echo_once(sock: socket.socket, exchange: Exchange) -> None:
    """One message there and back, compared byte by byte. The socket must be a blocking one."""
    sock.sendall(exchange.request)
    got = bytearray()
    while len(got) < len(exchange.reply):
        data = sock.recv(len(exchange.reply) - len(got))
        if not data:
            raise BenchError("the server closed the connection instead of echoing")
        got += data
    if got != exchange.reply:
        pairs = zip(got, exchange.reply, strict=True)
        at = next(index for index, (came, due) in enumerate(pairs) if came != due)
        raise BenchError(f"the echo is wrong from byte {at} on: {bytes(got[at : at + 16])!r}")


def round_trips(
    sock: socket.socket, exchange: Exchange, seconds: float, server_clock: Clock
) -> Sample:
    """Send one message, wait for its echo, and again."""
    request, expected = exchange.request, len(exchange.reply)
    buffer = bytearray(expected)
    send, receive_into, clock = sock.sendall, sock.recv_into, time.perf_counter
    whole = socket.MSG_WAITALL

    def run(until: float) -> int:
        count = 0
        while clock() < until:
            send(request)
            if receive_into(buffer, expected, whole) != expected:
                raise BenchError("the server closed the connection instead of echoing")
            count += 1
        return count

    echo_once(sock, exchange)
    run(clock() + seconds * WARM_UP)
    server, client, start = server_clock(), time.process_time(), clock()
    count = run(start + seconds)
    passed = clock() - start
    client, server = time.process_time() - client, server_clock() - server
    echo_once(sock, exchange)
    return Sample(count / passed, server / count * 1e6, client / passed)


def pipelined(
    sock: socket.socket, exchange: Exchange, seconds: float, window: int, server_clock: Clock
) -> Sample:
    """Keep up to `window` bytes of messages (eight at the least) under way, and count echoes."""
    echo_once(sock, exchange)
    echoes = _Pipeline(sock, exchange, window)
    echoes.run(time.perf_counter() + seconds * WARM_UP)
    server, client, start = server_clock(), time.process_time(), time.perf_counter()
    before = echoes.received
    echoes.run(start + seconds)
    passed = time.perf_counter() - start
    client, server = time.process_time() - client, server_clock() - server
    count = (echoes.received - before) / len(exchange.reply)
    if not count:
        raise BenchError(f"no echo in {passed:.1f} seconds")
    echoes.drain()
    echo_once(sock, exchange)
    return Sample(count / passed, server / count * 1e6, client / passed)


class _Pipeline:
    """A window of messages under way on one connection.

    The window is refilled when half of it has come back, so that a server that answers message
    by message still gets its input in large pieces. The client never sleeps in wait for bytes:
    waking it would then be the server's work, up to half of what a small message costs it, and
    an answer to how the kernel wakes, not to how the server works. So for large messages it
    polls, and for small ones naps a moment, in which replies gather.
    """

    def __init__(self, sock: socket.socket, exchange: Exchange, window: int) -> None:
        self.received = 0
        self._sock = sock
        self._frame, self._reply = len(exchange.request), len(exchange.reply)
        self._depth = max(8, window // self._frame)
        self._block = memoryview(exchange.request * (BLOCK // self._frame + 1))
        self._buffer = bytearray(2 * BLOCK)
        self._goal = self._sent = 0
        self._small = self._reply < SMALL
        sock.setblocking(False)

    def run(self, until: float) -> None:
        """Go on until the clock says `until`."""
        while time.perf_counter() < until:
            returned = self.received // self._reply
            if self._goal - returned <= self._depth // 2:
                self._goal = returned + self._depth
            self._step()

    def drain(self) -> None:
        """Finish what is under way; the socket is a blocking one again afterwards."""
        limit = time.perf_counter() + STALL
        while self.received < self._goal * self._reply:
            self._step()
            if time.perf_counter() > limit:
                raise BenchError(f"the last echoes did not come back in {STALL} seconds")
        self._sock.setblocking(True)

    def _step(self) -> None:
        """Send what the goal still asks for and take what has come, as far as the kernel lets."""
        pending = self._goal * self._frame - self._sent
        if pending:
            offset = self._sent % self._frame
            with suppress(BlockingIOError):
                self._sent += self._sock.send(self._block[offset : offset + pending])
        try:
            got = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            if self._small:
                time.sleep(NAP)
            else:
                os.sched_yield()
            return
        if not got:
            raise BenchError("the server closed the connection instead of echoing")
        self.received += got
