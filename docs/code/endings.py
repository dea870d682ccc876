"""How connections end."""

from __future__ import annotations

import trio

import trio_wt


async def ask(ws: trio_wt.WebSocket, question: str) -> str | bytes | None:
    await ws.send(question)
    with trio.move_on_after(5):
        return await ws.receive()
    return None


async def refuse(ws: trio_wt.WebSocket) -> None:
    await ws.close(4001, "this account is closed")


async def last_words(ws: trio_wt.WebSocket) -> list[str | bytes]:
    await ws.send("that is all from me")
    await ws.send_close()
    return [message async for message in ws]


async def report(ws: trio_wt.WebSocket) -> str:
    try:
        while True:
            await ws.receive()
    except trio_wt.ConnectionClosedOK as exc:
        return f"finished: {exc}"
    except trio_wt.ConnectionClosedError as exc:
        return f"broken: {exc}"
