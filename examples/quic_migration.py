"""A transfer that goes on while the client changes its address, again and again.

Run it: it starts a server and a client on loopback. `serve` and `connect` run them one by one; on a
machine with two networks, `connect --via ADDRESS` moves from one to the other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from quic_common import (
    client_tls,
    describe,
    own_tls,
    parsers,
    positive,
    run,
    serve_forever,
    server_tls,
)

import trio_wt

ALPN = "trio-wt-migration"
PIECE = 64 * 1024
BAD_REQUEST = 0x10
CHECKSUM = hashlib.sha256().digest_size


async def session(connection: trio_wt.Connection) -> None:
    """Serve one connection, one stream after the other."""
    async for stream in connection.incoming_streams:
        with suppress(trio_wt.StreamReset):
            async with stream:
                try:
                    seconds = float(await stream.receive_all(64))
                except (ValueError, trio_wt.ReadLimitExceeded):
                    raise trio_wt.StreamAbort(BAD_REQUEST) from None
                await send_slowly(connection, stream, seconds)


async def send_slowly(
    connection: trio_wt.Connection, stream: trio_wt.Stream, seconds: float
) -> None:
    """Some megabytes a second, their checksum, and a line whenever the client has moved."""
    digest = hashlib.sha256()
    client = connection.peer_address
    print(f"server: the client is at {where(client)}")
    until = trio.current_time() + min(seconds, 60)
    while trio.current_time() < until:
        piece = random.randbytes(PIECE)
        digest.update(piece)
        await stream.send_all(piece)
        await trio.sleep(0.01)
        if connection.peer_address != client:
            client = connection.peer_address
            print(f"server: the client is at {where(client)} now")
    await stream.send_all(digest.digest(), eof=True)


def where(address: Any) -> str:
    """An address for people."""
    return "nowhere" if address is None else f"{address[0]} port {address[1]}"


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled."""
    await trio_wt.serve_quic(
        session, port, host=host, alpn=[ALPN], tls=tls, task_status=task_status
    )


async def move_about(
    connection: trio_wt.Connection, addresses: Sequence[str | None], pause: float
) -> None:
    """To one address after the other, and back to the first."""
    while True:
        for address in addresses:
            await trio.sleep(pause)
            try:
                # Another port each time, so it is a new path even at the same address.
                await connection.migrate(local_address=None if address is None else (address, 0))
            except OSError as exc:
                print(f"client: staying at {where(connection.local_address)}: {describe(exc)}")
            else:
                print(f"client: moved to {where(connection.local_address)}")


async def download(connection: trio_wt.Connection, seconds: float) -> bool:
    """Fetch bytes for some time; whether they are those that were sent."""
    digest = hashlib.sha256()
    tail = b""
    count = 0
    async with connection.open_stream() as stream:
        await stream.send_all(str(seconds).encode(), eof=True)
        async for piece in stream:
            count += len(piece)
            tail += piece
            digest.update(tail[:-CHECKSUM])
            tail = tail[-CHECKSUM:]
    same = digest.digest() == tail
    print(f"client: {count - CHECKSUM:,} bytes, {'undamaged' if same else 'damaged'}")
    return same


async def connect(
    host: str,
    port: int,
    tls: trio_wt.ClientTLS,
    addresses: Sequence[str | None],
    seconds: float = 3,
    pause: float = 0.5,
) -> bool:
    """Fetch bytes and move about meanwhile."""
    async with trio_wt.open_quic(host, port, alpn=[ALPN], tls=tls) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move_about, connection, addresses, pause)
            same = await download(connection, seconds)
            nursery.cancel_scope.cancel()
        figures = connection.statistics()
        print(f"client: {figures.packets_lost} of {figures.packets_sent} packets got lost")
    return same


async def demo(seconds: float = 3, pause: float = 0.5) -> bool:
    """Both ends on loopback."""
    server, client = own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve, server)
        port = sockets[0].local_address[1]
        same = await connect("127.0.0.1", port, client, ["127.0.0.1"], seconds, pause)
        nursery.cancel_scope.cancel()
    return same


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, client = parsers(__doc__)
    client.add_argument(
        "--via",
        action="append",
        metavar="ADDRESS",
        help="an address of this machine to move to; repeatable",
    )
    client.add_argument("--seconds", type=positive, default=10, help="how long to fetch bytes")
    client.add_argument("--pause", type=positive, default=2, help="seconds between two moves")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        addresses = options.via or [None]
        tls = client_tls(options)
        await connect(options.host, options.port, tls, addresses, options.seconds, options.pause)
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
