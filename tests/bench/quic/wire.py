"""What the contestants' clients and servers say to each other, and what they are given.

The first byte of a stream tells the server what it is: ``UPLOAD`` is read to its end and answered
with its size in eight bytes; ``DOWNLOAD`` asks for as many bytes as the next eight say; ``REQUEST``
is read to its end and sent back with an end; anything else is sent back as it comes. Every datagram
is sent back.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trustme

from ..client import BenchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

HOST = "127.0.0.1"
NAME = "localhost"
ALPN = "bench"

CHUNK = 64 * 1024
"""Bytes of a write, and at most of a read, of a transfer."""

MANY_STREAMS = 6000
"""Streams that a server lets a client keep open where the cost of idle ones is measured."""

UPLOAD = b"U"
DOWNLOAD = b"D"
REQUEST = b"R" + bytes(range(1, 64))
MESSAGE = b"M" + bytes(range(1, 64))


class Files(NamedTuple):
    """Paths of what a server and a client need to know about the certificate."""

    chain: str
    key: str
    ca: str

    @classmethod
    def inside(cls, folder: str) -> Files:
        return cls(*(str(Path(folder) / name) for name in ("chain.pem", "key.pem", "ca.pem")))

    def write(self) -> None:
        """A new authority and an ECDSA certificate by it."""
        authority = trustme.CA()
        certificate = authority.issue_cert(NAME, HOST)
        authority.cert_pem.write_to_path(self.ca)
        certificate.private_key_pem.write_to_path(self.key)
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(self.chain, append=number > 0)


class Peer(NamedTuple):
    """What a contestant's module is told."""

    port: int
    files: Files
    variant: str
    """A way to drive or to set up the library, of those its module knows; "" is the usual one."""
    many_streams: bool


class Session(Protocol):
    """One connection of a contestant's client. What comes back is checked everywhere."""

    async def round_trips(self, count: int) -> None:
        """Messages on one stream of their own, each sent when the last has come back."""

    async def requests(self, count: int) -> None:
        """Messages on a new stream each, with its end, answered likewise, one after the other."""

    async def datagrams(self, count: int) -> None:
        """Messages in datagrams, each sent when the last has come back."""

    async def upload(self, size: int) -> None:
        """As many bytes on a stream, in chunks, and wait for the server to confirm them."""

    async def download(self, size: int) -> None:
        """Ask for as many bytes on a stream, and read them to their end."""

    async def open_idle(self, count: int) -> None:
        """More streams that stay open, each after a message there and back."""


class Client(Protocol):
    """A contestant's client. `run` is the event loop's: it takes an async function."""

    def __init__(self, peer: Peer) -> None: ...

    def connect(self) -> AbstractAsyncContextManager[Session]:
        """A connection whose handshake is complete."""
        ...

    def run(self, function: Callable[[], Awaitable[None]]) -> None: ...


class Module(Protocol):
    """What each ``with_*`` module has."""

    Client: type[Client]

    def run_server(self, peer: Peer, ready: Callable[[], None]) -> None:
        """Serve for ever; call `ready` when a client may come."""


def check(reply: bytes | memoryview, due: bytes = MESSAGE) -> None:
    """Find out a server that answers something else."""
    if reply != due:
        raise BenchError(f"the echo is wrong: {bytes(reply)!r}")


def check_size(came: int, due: int) -> None:
    if came != due:
        raise BenchError(f"a transfer had {came} bytes in place of {due}")


def free_port() -> int:
    """A UDP port that is free for all local addresses: not every library tells which it chose."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port
