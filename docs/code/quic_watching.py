"""Looking into QUIC connections."""

from __future__ import annotations

import trio

import trio_wt


def figures(connection: trio_wt.Connection) -> str:
    now = connection.statistics()
    rtt = "unknown" if now.rtt is None else f"{now.rtt * 1000:.0f} ms"
    return (
        f"round trip {rtt}, packets of {now.packet_size} bytes, "
        f"{now.packets_lost} of {now.packets_sent} lost, "
        f"{now.unread_bytes} bytes to read, {now.unsent_bytes} to send"
    )


async def trace(host: str, port: int, tls: trio_wt.ClientTLS, folder: trio.Path) -> None:
    await folder.mkdir(exist_ok=True)
    async with trio_wt.open_quic(host, port, alpn=["echo"], tls=tls, qlog_dir=folder) as connection:
        await connection.ping()


def readable_server(certificate: trio_wt.Certificate) -> trio_wt.ServerTLS:
    return trio_wt.ServerTLS(certificate, keylog="secrets.log")
