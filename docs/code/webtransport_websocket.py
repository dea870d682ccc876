"""WebSockets over HTTP/3."""

from __future__ import annotations

from functools import partial

import trio

import trio_wt


async def chat(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(f"{message!s}, over HTTP/{ws.request.http_version}")


async def serve_both(
    port: int,
    certificate: trio_wt.Certificate,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with trio.open_nursery() as nursery:
        over_http3 = partial(
            trio_wt.serve_webtransport,
            None,  # no WebTransport
            port,
            tls=trio_wt.ServerTLS(certificate),
            websocket_handler=chat,
            websocket_settings=trio_wt.Settings(max_message_size=65536),
        )
        sockets = await nursery.start(over_http3)
        port = sockets[0].local_address[1]
        over_tcp = partial(trio_wt.serve_websocket, chat, port, max_message_size=65536)
        await nursery.start(over_tcp)
        task_status.started(port)


async def talk(url: str, tls: trio_wt.ClientTLS) -> None:
    async with (
        trio_wt.open_webtransport_connection(url, tls=tls) as connection,
        connection.open_websocket("/chat", max_message_size=65536) as ws,
    ):
        await ws.send("hello")
        print(await ws.receive())
