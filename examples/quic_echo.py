"""Sends back what comes on a stream, and what comes in a datagram.

Run it: it starts a server and a client of it. `serve` and `connect` run them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from quic_common import client_tls, own_tls, parsers, run, serve_forever, server_tls

import trio_wt

ALPN = "echo"


async def session(connection: trio_wt.Connection) -> None:
    """Serve one connection: a task for each stream, and one for the datagrams."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_datagrams, connection)
        async for stream in connection.incoming_streams:
            nursery.start_soon(answer, stream)


async def answer(stream: trio_wt.Stream) -> None:
    """Serve one stream."""
    with suppress(
        trio_wt.StreamReset
    ):  # the client has given it up, which is no harm to the others
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def answer_datagrams(connection: trio_wt.Connection) -> None:
    """Send datagrams back for as long as the connection lasts."""
    async for data in connection.datagrams:
        with suppress(trio_wt.DatagramTooLarge):  # what fits one way need not fit the other
            await connection.datagrams.send(data)


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


async def talk(host: str, port: int, tls: trio_wt.ClientTLS, texts: Sequence[str]) -> None:
    """Send each text on a stream of its own, all at once, and print what comes back."""

    async def ask(text: str) -> None:
        async with connection.open_stream() as stream:
            await stream.send_all(text.encode(), eof=True)
            print((await stream.receive_all()).decode())

    async with trio_wt.open_quic(host, port, alpn=[ALPN], tls=tls) as connection:
        async with trio.open_nursery() as nursery:
            for text in texts:
                nursery.start_soon(ask, text)
        await connection.datagrams.send(b"a datagram")
        with trio.move_on_after(1):  # it may get lost
            print((await connection.datagrams.receive()).decode())
        print(f"there and back in {await connection.ping() * 1000:.2f} ms")


async def demo() -> None:
    """Both ends on loopback."""
    server, client = own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve, server)
        await talk("127.0.0.1", sockets[0].local_address[1], client, ["hello", "goodbye"])
        nursery.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, connect = parsers(__doc__)
    connect.add_argument("--text", action="append", help="what to send; repeatable")
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        await talk(options.host, options.port, client_tls(options), options.text or ["hello"])
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
