"""A feed that survives its connection: the client comes back and goes on where it was.

The server numbers its news and closes each connection after a few of them. Run it: the client
prints every number once, and says each time why it had to connect again.
"""

from __future__ import annotations

from functools import partial

import trio

import trio_wt


async def feed(ws: trio_wt.WebSocket) -> None:
    """The server's side: news from the number that the client asks for, and soon a restart."""
    first = int(await ws.receive())
    for number in range(first, first + 4):
        await ws.send(str(number))
        await trio.sleep(0.01)
    await ws.close(1012, "restarting")


async def follow(url: str, until: int, initial_delay: float = 0.1) -> list[int]:
    """The client's side: the numbers up to ``until``, each once."""
    seen: list[int] = []

    def told(failure: Exception, delay: float) -> None:
        print(f"-- {failure}")

    async for attempt in trio_wt.reconnect(
        trio_wt.open_websocket, url, initial_delay=initial_delay, on_retry=told
    ):
        async with attempt as ws:
            await ws.send(str(len(seen)))
            async for message in ws:
                seen.append(int(message))
                print(message)
                if len(seen) == until:
                    break
        if len(seen) == until:
            break
    return seen


async def main(port: int = 0, until: int = 10) -> None:
    """Start the server, follow it for a while, and stop."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio_wt.serve_websocket, feed, port, host="127.0.0.1")
        listeners = await nursery.start(serve)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        assert await follow(url, until) == list(range(until))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
