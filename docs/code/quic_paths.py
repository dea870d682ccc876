"""Paths: moving, staying alive, sharing a socket."""

from __future__ import annotations

import trio

import trio_wt


async def move(connection: trio_wt.Connection, address: str) -> bool:
    try:
        await connection.migrate(local_address=(address, 0))
    except OSError as exc:
        print(f"staying at {connection.local_address}: {exc}")
        return False
    return True


async def watch_peer(connection: trio_wt.Connection, interval: float) -> None:
    last = connection.peer_address
    while connection.closed is None:
        await trio.sleep(interval)
        if connection.peer_address != last:
            last = connection.peer_address
            print(f"the peer is at {last} now")


async def stay(host: str, port: int, tls: trio_wt.ClientTLS) -> trio_wt.ConnectionClosed:
    async with trio_wt.open_quic(
        host, port, alpn=["chat"], tls=tls, keep_alive=15, idle_timeout=40
    ) as connection:
        return await connection.wait_closed()


async def is_there(connection: trio_wt.Connection, patience: float) -> bool:
    with trio.move_on_after(patience):
        try:
            await connection.ping()
        except trio_wt.ConnectionClosed:
            return False
        return True
    return False


async def ask_both(servers: list[tuple[str, int]], tls: trio_wt.ClientTLS) -> list[float]:
    times = []
    async with trio_wt.open_quic_endpoint() as endpoint:
        for host, port in servers:
            async with trio_wt.open_quic(
                host, port, alpn=["chat"], tls=tls, endpoint=endpoint
            ) as connection:
                times.append(await connection.ping())
    return times
