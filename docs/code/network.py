"""TLS, proxies, Unix sockets and other streams."""

from __future__ import annotations

import ssl
from functools import partial
from urllib.parse import quote

import trio

import trio_wt


async def echo(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        await ws.send(message)


async def serve_tls(
    port: int,
    certificate: str,
    key: str,
    task_status: trio.TaskStatus[list[trio.abc.Listener[trio.abc.Stream]]],
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    await trio_wt.serve_websocket(echo, port, ssl_context=context, task_status=task_status)


async def visit_tls(port: int, certificate: str) -> str | bytes:
    context = ssl.create_default_context(cafile=certificate)
    async with trio_wt.open_websocket(f"wss://localhost:{port}/", ssl_context=context) as ws:
        await ws.send("in private")
        return await ws.receive()


async def through_proxy(url: str, proxy: str) -> str | bytes:
    async with trio_wt.open_websocket(url, proxy=proxy) as ws:
        await ws.send("from behind")
        return await ws.receive()


async def log_in(url: str) -> str | bytes:
    async with trio_wt.open_websocket(
        url,
        auth=("ann", "s3cret"),
        headers=[("Cookie", "theme=dark"), ("X-Trace", "42")],
    ) as ws:
        return await ws.receive()


async def over_a_stream(stream: trio.abc.Stream) -> str | bytes:
    async with trio_wt.wrap_client_stream(stream, "ws://device.local/control") as ws:
        await ws.send("status")
        return await ws.receive()


async def serve_unix(path: str) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio_wt.serve_websocket, echo, unix_path=path))
        address = f"ws+unix://{quote(path, safe='')}/target?query"
        async with trio_wt.open_websocket(address) as ws:
            await ws.send("no port needed")
            print(await ws.receive())
        nursery.cancel_scope.cancel()
