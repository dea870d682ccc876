"""Rooms: one message to many subscribers."""

from __future__ import annotations

import trio

import trio_wt
from trio_wt.app import JsonCodec, Rooms, TooSlow, Topic

rooms = Rooms[str | bytes]()


async def chat(ws: trio_wt.WebSocket) -> None:
    room = rooms[ws.request.path]
    async with room.subscribe(ws):
        async for message in ws:
            await room.publish(message)


async def watch(session: trio_wt.WebTransportSession) -> None:
    async with rooms[session.request.path].subscribe(session):
        await session.wait_closed()


async def show_room(session: trio_wt.WebTransportSession) -> None:
    async with await session.incoming_receive_streams.receive() as stream:
        while True:
            size = int.from_bytes(await stream.receive_exactly(4))
            print(await stream.receive_exactly(size))


prices = Topic[dict[str, float]](JsonCodec(dict[str, float]))


async def ticker(ws: trio_wt.WebSocket) -> None:
    async with prices.subscribe(ws, slow="drop oldest", limit=1):
        await ws.wait_closed()


async def ledger(ws: trio_wt.WebSocket) -> None:
    try:
        async with prices.subscribe(ws, slow="disconnect", limit=1000):
            await ws.wait_closed()
    except TooSlow:
        print(f"{ws.request.path} was too slow")


async def highest(name: str) -> float:
    highest = 0.0
    async with prices.subscribe(slow="wait") as subscription:
        async for price in subscription:
            if not price:
                break
            highest = max(highest, price.get(name, 0.0))
    return highest


def on_price(name: str, price: float) -> None:
    try:
        prices.publish_nowait({name: price})
    except trio.WouldBlock:
        print("somebody has to be waited for")


def load() -> str:
    figures = prices.statistics()
    return f"{figures.subscribers} subscribers, {figures.queued} queued, {figures.dropped} dropped"
