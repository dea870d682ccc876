"""Sending and receiving messages."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import trio

import trio_wt


async def kinds(ws: trio_wt.WebSocket, buffer: bytearray) -> None:
    await ws.send("text")
    await ws.send(b"binary")
    await ws.send(memoryview(buffer)[:4])
    await ws.send(b'{"already": "UTF-8"}', text=True)


async def listen(ws: trio_wt.WebSocket) -> None:
    async for message in ws:
        if isinstance(message, str):
            print("text:", message)
        else:
            print("binary:", len(message), "bytes")


async def send_rows(ws: trio_wt.WebSocket, rows: Iterable[str]) -> None:
    await ws.send(f"{row}\n" for row in rows)


async def send_as_it_comes(ws: trio_wt.WebSocket, rows: AsyncIterator[str]) -> None:
    async with ws.send_stream(text=True) as message:
        await message.send("name,age\n")
        async for row in rows:
            await message.send(f"{row}\n")


async def checksum(ws: trio_wt.WebSocket) -> str:
    digest = hashlib.sha256()
    async with ws.receive_stream() as message:
        async for part in message:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


async def read_header(ws: trio_wt.WebSocket) -> bytes | str | None:
    async with ws.receive_stream() as message:
        return await message.receive_some()


async def echo_in_batches(ws: trio_wt.WebSocket) -> None:
    with suppress(trio_wt.ConnectionClosedOK):
        while True:
            await ws.send_many(await ws.receive_many())


async def newest(ws: trio_wt.WebSocket) -> str | bytes:
    return (await ws.receive_many())[-1]


def poll(ws: trio_wt.WebSocket) -> str | bytes | None:
    try:
        return ws.receive_nowait()
    except trio.WouldBlock:
        return None
