"""Connecting again."""

from __future__ import annotations

import trio_wt


async def follow(url: str) -> None:
    async for attempt in trio_wt.reconnect(trio_wt.open_websocket, url):
        async with attempt as ws:
            async for message in ws:
                print(message)


async def follow_from(url: str, position: int = 0) -> None:
    def told(failure: Exception, delay: float) -> None:
        print(f"{failure}; again in {delay:.1f} s")

    async for attempt in trio_wt.reconnect(
        trio_wt.open_websocket,
        url,
        on_retry=told,
        max_delay=10,
        max_failures=5,
    ):
        async with attempt as ws:
            await ws.send(f"from {position}")
            async for _ in ws:
                position += 1
            if ws.close_code == 1000:
                break


def also_not_found(failure: Exception) -> bool:
    if isinstance(failure, trio_wt.Rejected) and failure.status == 404:
        return True  # the service registers its paths late
    return trio_wt.is_transient(failure)


async def first_word(url: str) -> None:
    async for attempt in trio_wt.reconnect(trio_wt.open_websocket, url, retry=also_not_found):
        async with attempt as ws:
            print(await ws.receive())
            break
