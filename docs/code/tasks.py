"""Several tasks that share a connection."""

from __future__ import annotations

import trio

import trio_wt


async def ticker(ws: trio_wt.WebSocket) -> None:
    while True:
        await ws.send("tick")
        await trio.sleep(1)


async def session(ws: trio_wt.WebSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker, ws)
        async for message in ws:
            await ws.send(f"you said {message!s}")
        nursery.cancel_scope.cancel()


async def either(ws: trio_wt.WebSocket, urgent: trio.Event) -> str | bytes | None:
    answer: str | bytes | None = None
    async with trio.open_nursery() as nursery:

        async def wait_for_message() -> None:
            nonlocal answer
            answer = await ws.receive()
            nursery.cancel_scope.cancel()

        async def wait_for_event() -> None:
            await urgent.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_message)
        nursery.start_soon(wait_for_event)
    return answer
