"""The same WebSocket handler over TCP and over HTTP/3 (RFC 9220), on the same port number.

Run it: it starts both servers, and talks to each. Over HTTP/3 the WebSocket shares its connection
with a plain request and with a second WebSocket, and none of them waits for a packet that another
has lost. `serve` and `connect` run both ends one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import trio
from quic_common import client_tls, https_url, own_tls, parsers, run, serve_forever, server_tls

import trio_wt


async def shout(ws: trio_wt.WebSocket) -> None:
    """Serve one WebSocket, whatever carries it."""
    async for message in ws:
        await ws.send(f"{message!s}! (over HTTP/{ws.request.http_version})")


def health(request: trio_wt.Request) -> None:
    """Answer plain requests."""
    if request.path == "/health" and not request.asks_for_session:
        request.respond(200, body="ok\n")


async def serve(
    tls: trio_wt.ServerTLS,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. In earnest, TCP would have TLS, too, with the same certificate."""
    async with trio.open_nursery() as nursery:
        over_quic = partial(
            trio_wt.serve_webtransport,
            None,  # no WebTransport
            port,
            host=host,
            tls=tls,
            websocket_handler=shout,
            on_request=health,
        )
        sockets = await nursery.start(over_quic)
        port = sockets[0].local_address[1]
        over_tcp = partial(trio_wt.serve_websocket, shout, port, host=host, on_request=health)
        await nursery.start(over_tcp)
        task_status.started(sockets)


async def connect(host: str, port: int, tls: trio_wt.ClientTLS) -> None:
    """Talk over TCP, then over HTTP/3."""
    async with trio_wt.open_websocket(f"ws://{host}:{port}/") as ws:
        await ws.send("hello")
        print(await ws.receive())
    async with (
        trio_wt.open_webtransport_connection(https_url(host, port), tls=tls) as connection,
        connection.open_websocket("/") as one,
        connection.open_websocket("/") as two,
    ):
        await one.send("hello")
        await two.send("hello from the other one")
        print(await one.receive())
        print(await two.receive())
        response = await connection.request("GET", "/health")
        print(f"GET /health: {response.status}, {response.body.decode().strip()}")


async def demo() -> None:
    """Both ends on loopback."""
    server, client = own_tls()
    async with trio.open_nursery() as nursery:
        sockets = await nursery.start(serve, server)
        await connect("127.0.0.1", sockets[0].local_address[1], client)
        nursery.cancel_scope.cancel()


async def program(arguments: Sequence[str] | None) -> None:
    """What the command line says."""
    parser, _, _ = parsers(__doc__)
    options = parser.parse_args(arguments)
    if options.command == "serve":
        await serve_forever(serve, server_tls(options), options.host, options.port)
    elif options.command == "connect":
        await connect(options.host, options.port, client_tls(options))
    else:
        await demo()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    run(program, arguments)


if __name__ == "__main__":
    main()
