"""An echo server on wss, that stops gracefully on SIGTERM and Ctrl-C.

Make a certificate with `trio-wt cert` and run it with the two files. A client must trust the
certificate.
"""

from __future__ import annotations

import signal
import ssl
import sys
from typing import Any

import trio

import trio_wt


async def echo(ws: trio_wt.WebSocket) -> None:
    """Serve one connection."""
    async for message in ws:
        await ws.send(message)


async def set_on_signal(event: trio.Event) -> None:
    """Turn the first SIGTERM or SIGINT into an event."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            event.set()


async def main(
    certificate: str,
    key: str,
    port: int = 8765,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on loopback until a signal comes; clients get Close with code 1001 then."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(set_on_signal, stop)
        await trio_wt.serve_websocket(
            echo,
            port,
            host="127.0.0.1",
            ssl_context=context,
            shutdown=stop,
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tls_server.py CERTIFICATE KEY")
    trio.run(main, sys.argv[1], sys.argv[2])
