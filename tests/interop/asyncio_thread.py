"""asyncio peers, in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

# Starts a server on a free port of 127.0.0.1; gives the port and how to stop it.
Start = Callable[[], Awaitable[tuple[int, Callable[[], Awaitable[object]]]]]


@asynccontextmanager
async def asyncio_server(start: Start) -> AsyncIterator[int]:
    """Run an asyncio server in a thread, for as long as the block lasts."""
    send, receive = trio.open_memory_channel[int](1)
    token = trio.lowlevel.current_trio_token()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        port, close = await start()
        trio.from_thread.run_sync(send.send_nowait, port, trio_token=token)
        await stop.wait()
        await close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="asyncio peer")
    thread.start()
    try:
        with trio.fail_after(10):
            port = await receive.receive()
        yield port
    finally:
        with trio.CancelScope(shield=True):
            loop, stop = loops[0]
            loop.call_soon_threadsafe(stop.set)
            await trio.to_thread.run_sync(thread.join, 10)
        assert not thread.is_alive()


async def in_asyncio(function: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Run an asyncio coroutine function in a thread, bounded."""

    async def main() -> Any:
        return await asyncio.wait_for(function(*args), 20)

    return await trio.to_thread.run_sync(lambda: asyncio.run(main()))
