"""Stopping as soon as the peer of a QUIC connection has gone."""

from __future__ import annotations

import trio

import trio_wt


async def measure(connection: trio_wt.Connection) -> None:
    async with connection.open_send_stream() as stream:
        while True:
            await stream.send_all(b"21.5 C\n")
            await trio.sleep(60)


async def measure_until_gone(host: str, port: int, tls: trio_wt.ClientTLS) -> int | None:
    async with trio_wt.open_quic(
        host, port, alpn=["probe"], tls=tls, cancel_on_close=True
    ) as connection:
        await measure(connection)
    return None if connection.closed is None else connection.closed.code
