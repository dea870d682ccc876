"""Pings, keepalive and backpressure."""

from __future__ import annotations

from collections.abc import AsyncIterable

import trio

import trio_wt


async def measure(ws: trio_wt.WebSocket) -> None:
    seconds = await ws.ping()
    print(f"there and back in {seconds * 1000:.1f} ms")


async def patient(stream: trio.abc.Stream) -> None:
    async with trio_wt.wrap_client_stream(
        stream, "ws://satellite.test/", ping_interval=60, ping_timeout=120
    ) as ws:
        await ws.wait_closed()


async def stream_frames(ws: trio_wt.WebSocket, frames: AsyncIterable[bytes]) -> int:
    dropped = 0
    async for frame in frames:
        if not await trio_wt.broadcast([ws], frame, slow="drop"):
            dropped += 1
    return dropped


def load(ws: trio_wt.WebSocket) -> str:
    now = ws.statistics()
    return f"{now.queued_messages} messages to read, {now.unsent_bytes} bytes to send"
