"""QUIC datagrams."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterable

import trio

import trio_wt

POSITION = struct.Struct("!Idd")


async def send_positions(
    connection: trio_wt.Connection, positions: AsyncIterable[tuple[float, float]]
) -> None:
    number = 0
    async for x, y in positions:
        await connection.datagrams.send(POSITION.pack(number, x, y))
        number += 1


async def follow(connection: trio_wt.Connection) -> None:
    newest = -1
    async for data in connection.datagrams:
        number, x, y = POSITION.unpack(data)
        if number > newest:  # what comes late is out of date
            newest = number
            print(f"{x:g}, {y:g}")


async def send_picture(connection: trio_wt.Connection, picture: bytes) -> str:
    try:
        connection.datagrams.send_nowait(picture)
    except trio_wt.DatagramTooLarge as exc:
        if not exc.max_size:
            return "the peer takes no datagrams"
        async with connection.open_send_stream() as stream:
            await stream.send_all(picture)
        return "by stream"
    return "by datagram"


def latest(connection: trio_wt.Connection) -> bytes | None:
    data = None
    while True:
        try:
            data = connection.datagrams.receive_nowait()
        except trio.WouldBlock:
            return data
