"""Connected streams, and servers on networks in memory: what every test of QUIC needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache

import trio

from tests.certificates import make
from trio_wt import (
    Certificate,
    ClientTLS,
    Connection,
    ReceiveStream,
    SendStream,
    ServerTLS,
    Stream,
    open_quic,
    serve_quic,
)
from trio_wt.testing import Network

HOST, PORT = "server.test", 4433
# What is sent takes a millisecond on a `Network` as it is by default.
LONG_ENOUGH = 0.1

Handler = Callable[[Connection], Awaitable[object]]


@cache
def certificate() -> Certificate:
    """For the server, under all the names that it has in tests."""
    made = make((HOST, "localhost", "127.0.0.1", "::1"))
    return Certificate.from_pem(made.pem, made.key_pem)


def client_tls() -> ClientTLS:
    """Which believes that certificate."""
    return ClientTLS(server_certificate_hashes=[certificate().sha256])


async def start_serving(
    nursery: trio.Nursery, handler: Handler, network: Network, **options: object
) -> trio.CancelScope:
    """Start a server on the network; what cancels it."""
    options = {"alpn": ["test"], "tls": ServerTLS(certificate()), **options}
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[object]) -> None:
        with scope:
            await serve_quic(
                handler,
                sockets=[network.socket((HOST, PORT))],
                task_status=task_status,
                **options,  # type: ignore[arg-type]
            )

    await nursery.start(serve)
    return scope


@asynccontextmanager
async def serving(handler: Handler, network: Network, **options: object) -> AsyncIterator[None]:
    """A server on the network for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        scope = await start_serving(nursery, handler, network, **options)
        yield
        scope.cancel()


def visit(network: Network, **options: object) -> AbstractAsyncContextManager[Connection]:
    """Connect to it."""
    options = {"alpn": ["test"], "tls": client_tls(), **options}
    if not {"endpoint", "socket"} & set(options):
        options["socket"] = network.socket()
    return open_quic(HOST, PORT, **options)  # type: ignore[arg-type]


async def echo(connection: Connection) -> None:
    """Send back what comes, one stream at a time."""
    async for stream in connection.incoming_streams:
        async with stream:
            await stream.send_all(await stream.receive_all(2**24))


async def ask(connection: Connection, question: bytes) -> bytes:
    """What such a server says."""
    async with connection.open_stream() as stream:
        await stream.send_all(question, eof=True)
        return await stream.receive_all(2**24)


@asynccontextmanager
async def stream_pair(a: Connection, b: Connection) -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a new stream, in their blocks. The end that has opened it is left last."""
    async with a.open_stream() as opened:
        await opened.send_all(b".")
        async with await b.incoming_streams.receive() as accepted:
            assert await accepted.receive_exactly(1) == b"."
            yield opened, accepted


@asynccontextmanager
async def one_way_pair(
    a: Connection, b: Connection
) -> AsyncIterator[tuple[SendStream, ReceiveStream]]:
    """The same for a stream that only ``a`` sends on."""
    async with a.open_send_stream() as opened:
        await opened.send_all(b".")
        async with await b.incoming_receive_streams.receive() as accepted:
            assert await accepted.receive_exactly(1) == b"."
            yield opened, accepted


async def settle() -> None:
    """Let all that is under way arrive."""
    await trio.sleep(LONG_ENOUGH)
