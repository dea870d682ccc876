"""Tests of an application, in memory and with a clock that skips all waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from chat_app import greeter

import trio_wt
from trio_wt.testing import websocket_pair


def run(scene: Callable[[], Awaitable[None]]) -> None:
    trio.run(scene, clock=trio.testing.MockClock(autojump_threshold=0))


def test_greeting() -> None:
    async def scene() -> None:
        async with websocket_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(greeter, server)
            await client.send("ann")
            assert await client.receive() == "hello ann"
            await client.send("how are you?")
            assert await client.receive() == "I only know how to say hello"
            nursery.cancel_scope.cancel()

    run(scene)


def test_silence_is_noticed_after_a_minute() -> None:
    async def scene() -> None:
        async with websocket_pair() as (client, server), trio.open_nursery() as nursery:
            nursery.start_soon(greeter, server)
            started = trio.current_time()
            with pytest.raises(trio_wt.ConnectionClosedError) as ended:
                await client.receive()
            assert ended.value.code == 4000
            assert trio.current_time() - started == 60

    run(scene)


def test_other_paths_are_refused() -> None:
    def only_chat(request: trio_wt.Request) -> None:
        if request.path != "/chat":
            request.reject(404)

    async def scene() -> None:
        async with websocket_pair("ws://test/chat", on_request=only_chat):
            pass
        with pytest.raises(trio_wt.Rejected) as refused:
            async with websocket_pair("ws://test/elsewhere", on_request=only_chat):
                pass  # not reached
        assert refused.value.status == 404

    run(scene)


def test_over_the_network() -> None:
    async def scene() -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(trio_wt.serve_websocket, greeter, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            async with trio_wt.open_websocket(f"ws://127.0.0.1:{port}/") as ws:
                await ws.send("ann")
                assert await ws.receive() == "hello ann"
            nursery.cancel_scope.cancel()

    trio.run(scene)
