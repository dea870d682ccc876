"""Several sessions on one connection: each with an end, limits and an order of its own.

Run it: a server counts for each session, and a client has three of them at once, all on the same
connection. One is given up in the middle, and the others notice nothing. `serve` and `connect` run
both ends one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from quic_common import client_tls, https_url, own_tls, parsers, run, serve_forever, server_tls

import trio_wt

TOO_LONG = 1


async def count(session: trio_wt.WebTransportSession) -> None:
    """Serve one session: its path says how far to count."""
    number = session.request.path.rpartition("/")[2]
    with suppress(trio_wt.StreamReset):  # the client has given it up
        async with session.open_send_stream() as stream:
            for n in range(int(number)):
                await stream.send_all(f"{n}\n".encode())
                await trio.sleep(0.001)
    await session.wait_closed()


def check(request: trio_wt.Request) -> None:
    """Before a session is accepted."""
    if request.is_webtransport and not request.path.rpartition("/")[2].isdecimal():
        request.reject(404, body="the path ends in how far to count, as /count/10\n")


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; a connection may have four sessions at a time."""
    await trio_wt.serve_webtransport(
        count, port, host=host, tls=tls, on_request=check, max_sessions=4, task_status=task_status
    )


async def follow(connection: trio_wt.WebTransportConnection, path: str, patience: float) -> None:
    """One session, for as long as there is patience."""
    last = b"nothing"
    async with connection.open_session(path) as session:
        with trio.move_on_after(patience) as scope:
            async with await session.incoming_receive_streams.receive() as stream:
                async for data in stream:
                    last = data.split()[-1]
        if scope.cancelled_caught:
            await session.aclose(TOO_LONG, "this takes too long")
    ended = "given up" if scope.cancelled_caught else "complete"
    print(f"{path}: {ended}; the last number was {last.decode()}")


async def connect(url: str, tls: trio_wt.ClientTLS) -> None:
    """One handshake, three sessions at once, and one that the server refuses."""
    async with trio_wt.open_webtransport_connection(url, tls=tls) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, connection, "/count/10", 5)
            nursery.start_soon(follow, connection, "/count/20", 5)
            nursery.start_soon(follow, connection, "/count/1000000", 0.3)
        try:
            async with connection.open_session("/count/everything"):
                pass
        except trio_wt.Rejected as exc:
            print(f"/count/everything: {exc.status}, {exc.body.decode().strip()}")
        figures = connection.statistics()
        print(f"{connection.open_sessions} sessions left, {figures.packets_received} packets")


async def demo() -> None:
    """Both ends on loopback."""
    server, client = own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve, server)
        await connect(https_url("127.0.0.1", sockets[0].local_address[1]), client)
        nursery.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, _ = parsers(__doc__)
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        await connect(https_url(options.host, options.port), client_tls(options))
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
