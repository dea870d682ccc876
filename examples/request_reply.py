"""Many questions at once over one connection: each has a number, and its answer has the same.

The client's block owns a task that receives; any number of tasks may call `Client.ask` meanwhile.
Run it: it starts a server, asks it ten sums at once, and prints the answers as they come.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import trio

import trio_wt


async def answer(ws: trio_wt.WebSocket) -> None:
    """The server's side: a task per question, so a slow answer holds up no other."""

    async def answer_one(question: dict[str, Any]) -> None:
        await trio.sleep(random.uniform(0, 0.1))  # hard thinking
        reply = {"id": question["id"], "sum": sum(question["terms"])}
        await ws.send(json.dumps(reply))

    async with trio.open_nursery() as nursery:
        async for message in ws:
            nursery.start_soon(answer_one, json.loads(message))
        nursery.cancel_scope.cancel()  # nobody is there any more to take the rest


class Client:
    """The client's side of a connection."""

    def __init__(self, ws: trio_wt.WebSocket) -> None:
        self._ws = ws
        self._numbers = count()
        self._waiting: dict[int, trio.MemorySendChannel[Any]] = {}

    async def ask(self, terms: list[int]) -> int:
        """The sum of the terms; cancel it to stop waiting.

        Raises:
            trio.EndOfChannel: the server closed the connection before it answered.
            trio_wt.ConnectionClosedError: the connection has ended.
        """
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[int](1)
        self._waiting[number] = send
        try:
            await self._ws.send(json.dumps({"id": number, "terms": terms}))
            return await receive.receive()
        finally:
            del self._waiting[number]

    async def distribute(self) -> None:
        """Give each reply to the task that waits for it."""
        try:
            async for message in self._ws:
                reply = json.loads(message)
                if (waiting := self._waiting.get(reply["id"])) is not None:
                    waiting.send_nowait(reply["sum"])
        finally:
            for waiting in self._waiting.values():
                waiting.close()


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[Client]:
    """Connect, and receive in the background for as long as the block runs."""
    async with trio_wt.open_websocket(url) as ws, trio.open_nursery() as nursery:
        client = Client(ws)
        nursery.start_soon(client.distribute)
        yield client
        nursery.cancel_scope.cancel()


async def main(port: int = 0) -> None:
    """Start a server on loopback, ask it, and stop."""

    async def ask_and_print(client: Client, terms: list[int]) -> None:
        print(" + ".join(map(str, terms)), "=", await client.ask(terms))

    async with trio.open_nursery() as server:
        serve = partial(trio_wt.serve_websocket, answer, port, host="127.0.0.1")
        listeners = await server.start(serve)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        async with open_client(url) as client, trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(ask_and_print, client, list(range(n + 1)))
        server.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
