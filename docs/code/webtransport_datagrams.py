"""Datagrams of WebTransport sessions."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterable

import trio

import trio_wt

POSITION = struct.Struct("!Iff")  # its number, x and y


async def send_positions(
    session: trio_wt.WebTransportSession, positions: AsyncIterable[tuple[float, float]]
) -> None:
    number = 0
    async for x, y in positions:
        await session.datagrams.send(POSITION.pack(number, x, y))
        number += 1


async def follow(session: trio_wt.WebTransportSession) -> None:
    newest = -1
    async for data in session.datagrams:
        number, x, y = POSITION.unpack(data)
        if number > newest:  # otherwise it was overtaken, and is of no use any more
            newest = number
            print(f"{x:g}, {y:g}")


async def send_picture(session: trio_wt.WebTransportSession, picture: bytes) -> str:
    try:
        await session.datagrams.send(picture)
    except trio_wt.DatagramTooLarge:
        async with session.open_send_stream() as stream:
            await stream.send_all(picture)
        return "by stream"
    return "by datagram"


def latest(session: trio_wt.WebTransportSession) -> bytes | None:
    newest = None
    try:
        while True:
            newest = session.datagrams.receive_nowait()
    except trio.WouldBlock:
        return newest
